"""Small files of every kind that data come in, as other programs write them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
from PIL import Image


def blob(shape, seed: int = 0, classes: int = 2):
    """An image with one bright disc a class in every slice, and its label; ``(X, Y, slices)`` int16 and uint8."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    plane = np.zeros(shape[:2], np.uint8)
    center = rng.uniform(-0.2, 0.2, 2)
    for c in range(1, classes):
        plane[np.hypot(x - center[0], y - center[1]) < 0.7 * (classes - c) / (classes - 1)] = c
    label = np.repeat(plane[..., None], shape[2], axis=2)
    image = 100 + 150 * label.astype(np.int16) + rng.integers(0, 60, shape).astype(np.int16)
    return image, label


def write_nifti(path: Path, array: np.ndarray, spacing=(1.5, 1.5, 8.0), *, slope: float | None = None) -> None:
    """NIfTI; with ``slope`` stored as int16 with scl_slope, so that the numbers on disk are not the intensities."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = array if slope is None else np.round(array / slope).astype(np.int16)
    image = nib.Nifti1Image(stored, np.diag([*spacing, 1.0]))
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)


def write_mhd(path: Path, array: np.ndarray, spacing=(0.6, 0.6, 3.6), *, big_endian=False, compressed=False) -> None:
    """MetaImage header with its voxels beside it: ``.raw`` of either byte order, or ``.zraw``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "int8": "MET_CHAR"}[array.dtype.name]
    voxels = array.T.astype(array.dtype.newbyteorder(">" if big_endian else "<")).tobytes()
    voxels = zlib.compress(voxels) if compressed else voxels
    file = path.with_suffix(".zraw" if compressed else ".raw")
    file.write_bytes(voxels)
    path.write_text(
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {big_endian}\n"
        f"CompressedData = {compressed}\n{f'CompressedDataSize = {len(voxels)}{chr(10)}' if compressed else ''}"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 10 -20 5\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = RAI\nElementSpacing = {' '.join(map(str, spacing))}\n"
        f"DimSize = {' '.join(map(str, array.shape))}\nElementType = {kind}\nElementDataFile = {file.name}\n"
    )


def write_itk(path: Path, array: np.ndarray, spacing=(0.8, 0.8, 5.0)) -> None:
    """Whatever ITK writes by its ending: MHA, NRRD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(_itk(array, spacing), str(path))


def _itk(array: np.ndarray, spacing):
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    image.SetSpacing([float(s) for s in spacing])
    return image


def write_dicom(
    folder: Path,
    array: np.ndarray,
    spacing=(0.9, 0.9, 6.0),
    *,
    series: int = 1,
    ending=".dcm",
    skip=(),
    shift: float = 0.0,
    positions=None,
    turned=(),
    cropped=(),
    coloured=(),
    storage: str = "1.2.840.10008.5.1.4.1.1.4",
    told: Sequence[Mapping[str, str]] = (),
) -> None:
    """A series, one file a slice, numbered against the order of the positions.

    Faults: slices that are missing (``skip``), ``shift`` of each against the one before in mm, other ``positions``,
    slices of another orientation (``turned``) or size (``cropped``) or in colours (``coloured``), another class of
    ``storage``, and what else is ``told`` of each slice, by its tag.
    """
    folder.mkdir(parents=True, exist_ok=True)
    io = itk.GDCMImageIO.New()
    io.KeepOriginalUIDOn()
    for k in range(array.shape[2]):
        if k in skip:
            continue
        plane = array[: -2 if k in cropped else None, :, k]
        image = itk.image_from_array(np.ascontiguousarray(plane.T)[None].astype(np.int16))
        if k in coloured:
            image = itk.image_from_array(np.stack([plane.T[None].astype(np.uint8)] * 3, axis=-1), is_vector=True)
        image.SetSpacing([float(s) for s in spacing])
        z = k * spacing[2] if positions is None else float(positions[k])
        image.SetOrigin([0.0, k * shift, z])
        directions = "1\\0\\0\\0\\0\\-1" if k in turned else "1\\0\\0\\0\\1\\0"
        tags = image.GetMetaDataDictionary()
        for tag, value in {
            "0008|0060": "MR", "0020|000d": "1.2.826.1", "0020|000e": f"1.2.826.1.{series}", "0008|0016": storage,
            "0008|0018": f"1.2.826.1.{series}.{k + 1}", "0020|0013": str(k + 1),
            "0020|0032": f"0\\{k * shift}\\{z}", "0020|0037": directions, "0018|0050": str(spacing[2]),
            **(told[k] if told else {}),
        }.items():  # fmt: skip
            tags.SetString(tag, value) if hasattr(tags, "SetString") else tags.__setitem__(tag, value)
        writer = itk.ImageFileWriter.New(image, FileName=str(folder / f"s{series}_{array.shape[2] - k:03d}.dcm"))
        writer.SetImageIO(io)
        writer.Update()
    if ending != ".dcm":
        for path in folder.glob(f"s{series}_*.dcm"):
            path.rename(path.with_suffix(ending))


def write_picture(path: Path, array: np.ndarray, **options) -> None:
    """PNG or JPG of ``(X, Y)`` or ``(X, Y, 3)`` uint8, X to the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.moveaxis(array, 0, 1)).save(path, **options)


def write_tiff(path: Path, array: np.ndarray, *, dpi: float, orientation: int = 1) -> None:
    """TIFF of pages of ``(X, Y, pages)``, X to the right, with a print resolution."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(np.ascontiguousarray(array[..., k].T)) for k in range(array.shape[2])]
    tags = {274: orientation}
    pages[0].save(path, save_all=True, append_images=pages[1:], dpi=(dpi, dpi), tiffinfo=tags)


def make_acdc(root: Path, patients, *, both: bool = False) -> Path:
    """``patientNNN`` with ED and ES, their truth, a 4D file and ``Info.cfg``; in `training` as unpacked."""
    for number in patients:
        name, ed, es = f"patient{number:03d}", 1, 7 + number % 9
        folder = root / "training" / name
        for frame in (ed, es):
            image, label = blob((14, 12, 3), seed=number * 100 + frame, classes=4)
            # int16 with a slope: 2.5 units a step
            write_nifti(folder / f"{name}_frame{frame:02d}.nii.gz", image * 2.5, (1.56, 1.56, 10.0), slope=2.5)
            write_nifti(folder / f"{name}_frame{frame:02d}_gt.nii.gz", label, (1.56, 1.56, 10.0))
        nib.save(nib.Nifti1Image(np.zeros((14, 12, 3, 12), np.int16), np.eye(4)), folder / f"{name}_4d.nii.gz")
        (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    (root / "testing" / "patient101").mkdir(parents=True)
    image, label = blob((14, 12, 3), classes=4)
    for ending, array in (("", image), ("_gt", label)):
        write_nifti(root / "testing" / "patient101" / f"patient101_frame01{ending}.nii.gz", array)
    return root


def make_organs(root: Path, cases) -> Path:
    """Folders as TotalSegmentator's: ``P1/ct.nii.gz``, and a mask of each class that a case is given."""
    for seed, (case, classes) in enumerate(cases.items()):
        image, label = blob((20, 24, 6), seed=seed, classes=len(classes) + 1)
        write_nifti(root / case / "ct.nii.gz", image)
        for value, name in enumerate(classes, 1):
            write_nifti(root / case / "segmentations" / f"{name}.nii.gz", (label == value).astype(np.uint8))
    return root


def oblique(spacing, order=(0, 1, 2), flips=(1, 1, 1)) -> np.ndarray:
    """An affine of tilted axes that are stored in another order and direction."""
    turn = np.eye(4)
    a, b = 0.3, 0.2
    turn[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = turn @ np.diag([*spacing, 1.0])
    affine[:3, :3] = (affine[:3, :3] * np.array(flips))[:, list(order)]
    affine[:3, 3] = 5, -7, 11
    return affine


def balls(shape, affine: np.ndarray) -> np.ndarray:
    """Two organs that are round in mm, one of them small, in ``(X, Y, Z)``."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = grid @ affine[:3, :3].T + affine[:3, 3]
    middle = (np.array(shape) - 1) / 2 @ affine[:3, :3].T + affine[:3, 3]
    extent = np.linalg.norm(affine[:3, :3], axis=0) * np.array(shape)
    label = np.zeros(shape, np.uint8)
    label[np.linalg.norm(mm - middle, axis=-1) < 0.38 * extent.min()] = 1
    label[np.linalg.norm(mm - middle - 0.2 * extent.min(), axis=-1) < 0.13 * extent.min()] = 2
    return label


def write_ct(folder: Path, name: str, shape=(28, 24, 20), affine: np.ndarray | None = None, seed: int = 0) -> dict:
    """A CT of two organs in HU, and its label."""
    affine = np.diag([1.5, 1.5, 1.5, 1.0]) if affine is None else affine
    label = balls(shape, affine)
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    image = np.choose(label, [-80, 60, 180]) + noise
    folder.mkdir(parents=True, exist_ok=True)
    item = {}
    for kind, array in (("image", image.astype(np.int16)), ("label", label)):
        path = folder / f"{kind}s" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        item[kind] = str(path)
    return item


def make_isotropic_ct(folder: Path) -> Path:
    """A tiny CT: two labelled volumes, two without labels, one of validation and one of test; with a datalist."""
    items = [write_ct(folder, f"ct{k}", (26 + k, 24, 22), seed=k) for k in range(6)]
    named = [{key: str(Path(path).relative_to(folder)) for key, path in item.items()} for item in items]
    lists = {"training": named[:2], "unlabeled": [{"image": item["image"]} for item in named[2:4]],
             "validation": named[4:5], "testing": named[5:]}  # fmt: skip
    (folder / "datalist.json").write_text(json.dumps(lists))
    return folder
