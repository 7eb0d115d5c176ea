"""The command that joins masks, a file for each class, to labels: ``python -m scripts merge --help``."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data.utils import to_affine_nd
from tqdm import tqdm

from ..command_line import command
from ..dataio.files import IMAGE_SUFFIXES, LABEL_FOLDERS, case_name, is_picture
from ..dataio.folders import entries, find_images
from ..dataio.geometry import APART, compared, voxels_apart
from ..dataio.readers import image_loader
from ..dataio.storage import check_new
from ..errors import InputError, raise_all
from .next_commands import quoted
from .split import Names, words

#: What names of masks have beside that of the class.
AROUND = r"(?:(?:masks?|seg|segmentation|label|roi|gt)_)?{}(?:_(?:masks?|seg|segmentation|label|roi|gt))?"


def merge(data: str, classes: Names, output: str, image_suffix: str = "", overlap: str = "") -> None:
    """Join masks, a file for each class, to one label for each case, and print how to make a datalist of them.

    Each folder in the data is a case. Its image and its masks lie in it or in folders below, the masks named by their
    class: s0001/segmentations/liver.nii.gz as TotalSegmentator writes it, or P1/mask_liver.nii.gz.

    Args:
        data: Folder with a folder for each case; a case without any of the masks stays without a label
        classes: Names of the classes with commas, in the order of their values in the label: 1, 2, ...
        output: Folder to write the labels to, which must not exist yet
        image_suffix: Ending of the image's name, if there are other files than image and masks
        overlap: last, if the class that is named last counts where masks overlap; else such masks are refused
    """
    names = [str(name) for name in words(classes)]
    if len({_plain(name) for name in names}) < len(names) or not all(map(_plain, names)):
        raise InputError(f"classes: expected different names with commas, received {','.join(names)}.")
    if overlap not in ("", "last"):
        raise InputError(f"overlap: expected last or nothing, received {overlap!r}.")
    if not Path(data).is_dir():
        raise InputError(f"{data}: no such folder. Expected one with a folder for each case.")
    check_new(output)
    folders = sorted(path for path in Path(data).iterdir() if path.is_dir() and not path.name.startswith("."))
    masks = {folder: _masks(folder, names) for folder in folders}
    labelled = {folder: found for folder, found in masks.items() if any(found.values())}
    if not labelled:
        raise InputError(
            f"{data}: expected folders with masks that are named {', '.join(names)}, found none; give a folder with a "
            "folder for each case, and the names of the masks as --classes."
        )
    problems = []
    for folder, found in labelled.items():
        if missing := [name for name in names if not found[name]]:
            problems.append(f"{folder}: no mask of {', '.join(missing)}; add an empty one if the image shows none, "
                            "or take the case out.")  # fmt: skip
        problems += [f"{files[1]}: a second mask of {name} beside {files[0]}; keep one."
                     for name, files in found.items() if len(files) > 1]  # fmt: skip
    raise_all(problems)
    images = {folder: _image(folder, found, image_suffix, problems) for folder, found in labelled.items()}
    raise_all(problems)
    with tempfile.TemporaryDirectory(prefix=".merge_", dir=Path(output).absolute().parent) as part:
        joined = Path(part) / "labels"
        for folder, found in tqdm(labelled.items(), "masks", disable=None):
            try:
                label = _joined([found[name][0] for name in names], names, overlap)
            except InputError as error:
                problems.append(str(error))
                continue
            file = joined / f"{images[folder][0]}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.save(label, file)
        raise_all(problems)
        os.chmod(joined, 0o755)
        os.rename(joined, output)
    print(f"wrote {len(labelled)} labels to {output}; {len(folders) - len(labelled)} cases have no masks")
    suffix, times = Counter(suffix for _, suffix in images.values()).most_common(1)[0]
    if times == len(images):
        print("to make a datalist:")
        print(f"  python -m scripts datalist create --images {quoted(data)} --labels {quoted(output)} "
              f"--image_suffix {quoted(suffix)} --class_names {quoted(','.join(['background', *names]))} "
              "--output LIST.json")  # fmt: skip


def _plain(name: str) -> str:
    """A name in small letters, its words joined by ``_``."""
    return re.sub(r"[\s_.-]+", "_", name.strip().lower()).strip("_")


def _masks(folder: Path, names: list[str]) -> dict[str, list[Path]]:
    """Files of the masks of each class in a case's folder."""
    found: dict[str, list[Path]] = {name: [] for name in names}
    for path in sorted(path for path in entries(folder, True) if path.name.lower().endswith(IMAGE_SUFFIXES)):
        own = _plain(case_name(path)).removeprefix(_plain(folder.name)).strip("_")
        for name in names:
            if re.fullmatch(AROUND.format(re.escape(_plain(name))), own):
                found[name].append(path)
    return found


def _image(folder: Path, masks: dict[str, list[Path]], suffix: str, problems: list[str]) -> tuple[str, str]:
    """Name of the label of a case's image, below the folder of labels, and what the image's name has beside it."""
    taken = {path for files in masks.values() for path in files}
    files = find_images(folder, recursive=True, labels=True)
    if files == {folder.name: folder}:  # DICOM slices directly in it
        return folder.name, ""
    there = [
        name
        for name, path in files.items()
        if path not in taken and not any(LABEL_FOLDERS.fullmatch(part) for part in name.split("/")[:-1])
    ]
    chosen = [name for name in there if name.endswith(suffix.lstrip("_.-/"))]
    if len(chosen) != 1:
        problems.append(
            f"{folder}: {len(chosen)} files beside the masks ({', '.join(chosen or there) or 'none'}), expected the "
            "image; say which by --image_suffix, or take the case out."
        )
        return "", ""
    own = chosen[0].rsplit("/", 1)[-1]
    rest = own.removeprefix(folder.name)
    if rest != own:
        return f"{folder.name}/{chosen[0].removesuffix(rest)}", rest
    return folder.name, f"/{chosen[0]}"


def _joined(files: list[Path], names: list[str], overlap: str) -> nib.Nifti1Image:
    """The label of some masks of one grid: the n-th has the value n.

    Raises:
        InputError: masks on different grids, that overlap, or that are none.
    """
    label, grid = np.zeros(0, np.uint16), np.eye(4)
    for value, (file, name) in enumerate(zip(files, names), 1):
        if is_picture(file):
            raise InputError(f"{file}: expected the mask of a volume, received a picture.")
        mask = image_loader(label=True)(file)
        array, affine = np.asarray(mask[0]), to_affine_nd(3, mask.affine.numpy())
        if mask.shape[0] > 1 or not np.isin(array, (0, array.max())).all():
            shown = ", ".join(f"{one:g}" for one in np.unique(array)[:5])
            raise InputError(f"{file}: expected a mask, 0 and one other value, received {shown}.")
        inside = array != 0
        if value == 1:
            label, grid = np.zeros(array.shape, np.uint8 if len(files) < 256 else np.uint16), affine
        if array.shape != label.shape or voxels_apart(affine, grid, array.shape) >= APART:
            raise InputError(
                f"{file}: expected the grid of {files[0].name}, {' x '.join(map(str, label.shape))} voxels, received "
                f"{' x '.join(map(str, array.shape))} ({compared(affine, grid)}); resample it to that grid."
            )
        if not overlap and (twice := label[inside]).any():
            other = names[int(twice.max()) - 1]
            raise InputError(
                f"{file}: {np.count_nonzero(twice)} voxels belong to another class, {other}, as well; correct one of "
                f"the two masks, or give --overlap last if {name}, which is named later, counts there."
            )
        label[inside] = value
    image = nib.Nifti1Image(label, grid)
    image.header.set_xyzt_units("mm")
    return image


def main() -> None:
    """Command line of this module."""
    command(merge)
