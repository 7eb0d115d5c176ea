"""Which files are images: endings, DICOM series, the name of a case."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, raise_all

#: Endings of image files, longest first; ``case_name`` strips them.
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
#: Endings of the slices of a DICOM series; many have none at all.
DICOM_SUFFIXES = (".dcm", ".ima", "")
#: Storage class of DICOM segmentation objects.
SEGMENTATION = b"1.2.840.10008.5.1.4.1.1.66.4"
#: Other files that image formats bring along, and what systems leave behind.
COMPANIONS = (".raw", ".zraw", ".ds_store", ".db", ".json")


def case_name(path: str | os.PathLike) -> str:
    """File name without folder and image ending: ``images/patient001_frame01.nii.gz`` -> ``patient001_frame01``."""
    name = os.path.basename(os.fspath(path).rstrip("/"))
    for suffix in (*IMAGE_SUFFIXES, ".dcm"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_picture(path: str | os.PathLike) -> bool:
    """Whether a file's rows run downwards: photographs and screenshots, which carry no orientation."""
    return os.fspath(path).lower().endswith((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file is a slice of a DICOM series, by its ending and its first bytes."""
    if not os.path.isfile(path) or os.path.splitext(path)[1].lower() not in DICOM_SUFFIXES:
        return False
    if os.path.basename(path).upper() == "DICOMDIR":  # the directory of a medium, in the same format
        return False
    with open(path, "rb") as file:
        start = file.read(1024)
    return start[128:132] == b"DICM" and SEGMENTATION not in start


def is_segmentation(path: str | os.PathLike) -> bool:
    """Whether a file is a DICOM segmentation object, by its ending and the storage class in its first bytes."""
    if not os.path.isfile(path) or os.path.splitext(path)[1].lower() not in DICOM_SUFFIXES:
        return False
    with open(path, "rb") as file:
        start = file.read(1024)
    return start[128:132] == b"DICM" and SEGMENTATION in start


def is_series(folder: Path) -> bool:
    """Whether DICOM slices lie directly in ``folder``."""
    return any(is_dicom(path) for path in sorted(folder.iterdir()))


def _entries(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files below ``folder``; a folder of DICOM slices comes as one entry, without what lies in it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir() or is_series(path):
            yield path
        elif recursive:
            yield from _entries(path, recursive)


def find_images(folder: str | os.PathLike, *, recursive: bool = False, labels: bool = False) -> dict[str, Path]:
    """Images in ``folder`` by case name, sorted: files by their ending, and folders of DICOM slices.

    Args:
        folder: where to look. If DICOM slices lie directly in it, it is one image itself.
        recursive: also in the folders below; their names become part of the case name: ``visit1/mr``.
        labels: whether DICOM segmentation objects count, too; one alone in a folder is named by it.

    Raises:
        InputError: no such folder, no image in it, or files of one case name, all of them listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a folder of images ({', '.join(IMAGE_SUFFIXES)}).")
    if is_series(folder):
        return {folder.name: folder}
    found: dict[str, Path] = {}
    problems = []
    for path in _entries(folder, recursive):
        segmentation = labels and is_segmentation(path)
        if not path.is_dir() and not path.name.lower().endswith(IMAGE_SUFFIXES) and not segmentation:
            continue
        alone = segmentation and path.parent != folder and len(list(path.parent.iterdir())) == 1
        name = str((path.parent if alone else path.parent / case_name(path)).relative_to(folder))
        if name in found:
            problems.append(f"{path}: a second file of the case {name} beside {found[name]}; keep one of them.")
        found.setdefault(name, path)
    raise_all(problems)
    if not found:
        raise InputError(
            f"{folder}: expected image files ({', '.join(IMAGE_SUFFIXES)}) or folders of DICOM slices, found none."
        )
    return found


def pair_files(
    images: str | os.PathLike, labels: str | os.PathLike, image_suffix: str = "", label_suffix: str = ""
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Image and label files by the name that they share.

    Args:
        images: folder of images, with all below it.
        labels: folder of labels; with a ``label_suffix`` it may be the same.
        image_suffix: what image names end with and label names do not.
        label_suffix: what label names end with and image names do not.

    Raises:
        InputError: one folder without a suffix to tell the two apart, or one of the two not there.
    """
    images, labels = Path(images), Path(labels)
    same = images.resolve() == labels.resolve()
    if same and not label_suffix:
        raise InputError(
            f"{images}: expected images and labels in two folders, received one; separate them, or say what the names "
            "of the labels end with, for instance --label_suffix _seg."
        )
    image_files, label_files = find_images(images, recursive=True), find_images(labels, recursive=True, labels=True)
    if same:
        image_files = {name: path for name, path in image_files.items() if not name.endswith(label_suffix)}
        label_files = {name: path for name, path in label_files.items() if name.endswith(label_suffix)}
        if not image_files or not label_files:
            raise InputError(
                f"{images}: expected images, and labels whose names end with {label_suffix}, received only one of the "
                "two; give the ending that tells them apart as --label_suffix."
            )
    return (
        {name.removesuffix(image_suffix): path for name, path in image_files.items()},
        {name.removesuffix(label_suffix): path for name, path in label_files.items()},
    )


def ignored_line(folder: str | os.PathLike) -> str:
    """What :func:`find_images` passes over, without files that belong to an image format; empty for nothing."""
    endings = Counter(
        path.suffix.lower() or "(no ending)"
        for path in _entries(Path(folder), True)
        if not path.is_dir() and not path.name.lower().endswith(IMAGE_SUFFIXES)
    )
    kept = Counter({ending: number for ending, number in endings.items() if ending not in COMPANIONS})
    shown = ", ".join(f"{ending} {number}" for ending, number in kept.most_common(5))
    return f"{'ignored':<11} {kept.total()} files that are no images: {shown}" if kept else ""


def cell(text: str) -> str:
    """A text for a cell of a table: one that spreadsheets would run as a formula gets a quote in front."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
