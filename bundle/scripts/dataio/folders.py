"""Which files below a folder are images, and what else lies there: labels, predictions of before, files not read."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import InputError, raise_all
from .files import (
    BIDS_LABELS,
    CHANNEL,
    COMPANIONS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    LABEL_NAMES,
    LABEL_WORD,
    beginnings,
    case_name,
    is_dicom,
    is_picture,
    is_segmentation,
    is_series,
)

logger = logging.getLogger("semsim")

#: Endings of images that are not read: of Analyze and of NIfTI in two files, of FreeSurfer, MINC and Philips, arrays.
UNREAD = (".hdr", ".img", ".nhdr", ".mgz", ".mgh", ".mnc", ".par", ".gipl", ".npy", ".npz")
#: Folders where storage systems keep previews and what was deleted.
ASIDE = ("@eaDir", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN")


def entries(folder: Path, recursive: bool) -> Iterator[Path]:
    """Files below ``folder``; a folder of DICOM slices comes as one entry, without what lies in it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ASIDE:
            continue
        if not path.is_dir() or is_series(path):
            yield path
        elif recursive and not (path.is_symlink() and folder.resolve().is_relative_to(path.resolve())):  # no loops
            yield from entries(path, recursive)


def find_images(folder: str | os.PathLike, *, recursive: bool = False, labels: bool = False) -> dict[str, Path]:
    """Images in ``folder`` by case name, sorted: files by their ending, and folders of DICOM slices.

    Args:
        folder: where to look. If DICOM slices lie directly in it, it is one image itself.
        recursive: also in the folders below; their names become part of the case name: ``visit1/mr``.
        labels: whether DICOM segmentation objects count, too; one alone in a folder is named by it.

    Raises:
        InputError: no such folder, no image in it, or files of one case name, all of them listed. Images of kinds that
            are not read are said in the log, or in the error if there are no others.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a folder of images ({', '.join(IMAGE_SUFFIXES)}).")
    if is_series(folder):
        return {folder.name: folder}
    found: dict[str, Path] = {}
    problems, unread = [], []
    for path in entries(folder, recursive):
        segmentation = labels and is_segmentation(path)
        if path.name.lower().endswith(UNREAD) and path.is_file():
            unread.append(path)
        if not path.is_dir() and not path.name.lower().endswith(IMAGE_SUFFIXES) and not segmentation:
            continue
        alone = segmentation and path.parent != folder and len(list(path.parent.glob("[!.]*"))) == 1
        name = str((path.parent if alone else path.parent / case_name(path)).relative_to(folder))
        name = unicodedata.normalize("NFC", name)
        if name in found:
            problems.append(f"{path}: a second file of the case {name} beside {found[name]}; keep one of them.")
        found.setdefault(name, path)
    raise_all(problems)
    found = found if labels else _once(found, folder)
    remark = _unread_line(unread) if unread else ""
    if not found:
        raise InputError(
            f"{folder}: expected image files ({', '.join(IMAGE_SUFFIXES)}) or folders of DICOM slices, found none"
            f"{f', but {remark}' if remark else '.'}"
        )
    if remark:
        logger.warning(remark)
    return found


def _unread_line(files: Sequence[Path]) -> str:
    """What is said of images of kinds that are not read."""
    kinds = ", ".join(sorted({path.suffix.lower() for path in files}))
    return (
        f"{len(files)} files of kinds that are not read ({kinds}), {files[0]} first; convert them to NIfTI, in 3D "
        "Slicer or ITK-SNAP, or by nibabel: nibabel.save(nibabel.load(FILE), 'NAME.nii.gz')."
    )


def _once(found: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Those of some files below a folder that are no links to others of them, with a warning."""
    top, own = folder.resolve(), {name: path.resolve() for name, path in found.items()}
    kept: dict[Path, str] = {}
    for name in sorted(found, key=lambda name: own[name] != top / found[name].relative_to(folder)):  # links last
        kept.setdefault(own[name], name)
    if left := [path for name, path in found.items() if kept[own[name]] != name]:
        logger.warning(f"{len(left)} images are links to others in {folder} and count once, {left[0]} first.")
    return {name: found[name] for name in found if kept[own[name]] == name}


def without_labels(found: Mapping[str, Path]) -> dict[str, Path]:
    """Those of :func:`find_images` that are no labels by their folder or their name; all where none would be left.

    Args:
        found: files by case name; ``labelsTr/a`` is a label, ``P1/mask``, ``sub-1_dseg``, and where there is an ``a``
            in whatever folder ``a_seg`` and ``a_tumour_seg``.
    """
    images, bare = {}, {name.rpartition("/")[2] for name in found}
    for name, path in found.items():
        *folders, own = name.split("/")
        in_folder = any(LABEL_FOLDERS.fullmatch(part) for part in folders)
        alone = LABEL_NAMES.fullmatch(own) or BIDS_LABELS.fullmatch(own)
        label = any(
            base in bare and any(re.fullmatch(LABEL_WORD, word, re.IGNORECASE) for word in words)
            for base, words in beginnings(own)
        )
        if not in_folder and not alone and not label:
            images[name] = path
    return images or dict(found)


def without_labels_told(found: Mapping[str, Path]) -> dict[str, Path]:
    """:func:`without_labels`, with a warning that names the first file that is left out."""
    images = without_labels(found)
    if left := [path for name, path in found.items() if name not in images]:
        logger.warning(f"{len(left)} files are labels by their names and not taken for images, {left[0]} first.")
    return images


def without_predictions(found: Mapping[str, Path], output_dir: str | os.PathLike, ending: str) -> dict[str, Path]:
    """Those of :func:`find_images` that are no predictions of before, with a warning.

    Args:
        found: files by case name.
        output_dir: folder of the predictions, all of which are left out unless all images lie in it; of other folders
            those whose image is among the files.
        ending: of the predictions' names.
    """
    folder = os.path.join(os.path.abspath(output_dir), "")
    inside = {name for name, path in found.items() if os.path.abspath(path).startswith(folder)}
    if not output_dir or ending.startswith("_."):
        return dict(found)
    bare = {name.rpartition("/")[2] for name in found}
    ours = {name for name, path in found.items() if path.name.endswith(ending)}
    # of an image that is here, too, those of another folder as well
    old = {name for name in ours if name.rpartition("/")[2].removesuffix(case_name(ending)) in bare}
    if len(inside) < len(found):
        old |= ours & inside
    if old:
        logger.warning(
            f"{len(old)} files are predictions by their names and not predicted again, {found[min(old)]} first."
        )
    return {name: path for name, path in found.items() if name not in old}


def hidden_beside(images: Iterable[Path], labels: Iterable[Path] = ()) -> tuple[list[str], list[str]]:
    """A line for each DICOM series in whose folder other volumes lie, or series below it: nothing reads those.

    One file below a series of many is no series but a report, say; below one of a single file, an X-ray, it is another.

    Args:
        images: files and folders of DICOM series.
        labels: what is read as a label.

    Returns:
        of labels and of whole series; and of the rest, such as a NIfTI file that was made of the slices.
    """
    known = {os.path.abspath(path) for path in labels}
    grave: list[str] = []
    slight: list[str] = []
    for folder in (path for path in images if path.is_dir()):
        few, remark = min(2, sum(map(is_dicom, folder.iterdir()))), ""
        for path in sorted(folder.rglob("*")):
            image = path.name.lower().endswith(IMAGE_SUFFIXES)
            if path.name.startswith(".") or not (image or path.parent != folder) or is_picture(path):
                continue
            own = os.path.abspath(path)
            if own in known or os.path.dirname(own) in known or not path.is_file():
                continue
            named = LABEL_NAMES.fullmatch(re.split(r"[_.-]", case_name(path))[-1]) or path.name.endswith(".seg.nrrd")
            label = (image and bool(named)) or is_segmentation(path)
            series = not image and not label and is_dicom(path) and sum(map(is_dicom, path.parent.iterdir())) >= few
            line = (
                f"{path}: lies in the folder of a DICOM series ({folder}), where nothing reads it; keep each series "
                "and each label in a folder of its own."
            )
            if label or series:
                grave.append(line)
                break
            if image:
                remark = remark or line
        slight += [remark] if remark else []
    return grave, slight


def join_channels(found: Mapping[str, Path]) -> dict[str, Path | list[Path]]:
    """Files of a case name with ``_0000``, ``_0001``, ... behind it as the channels of one image, as nnU-Net has them.

    Where no name ends with ``_0001`` all stay as they are.

    Raises:
        InputError: cases that lack a channel which others have, or with an image without a number besides.
    """
    numbered = {name: match for name in found if (match := CHANNEL.fullmatch(name))}
    stems: dict[str, dict[str, Path]] = {}
    for name, match in numbered.items():
        stems.setdefault(match[1], {})[match[2]] = found[name]
    several = {stem: parts for stem, parts in stems.items() if {"0000", "0001"} <= {*parts}}
    if not several:
        return dict(found)
    every = sorted({channel for parts in several.values() for channel in parts})
    raise_all(
        f"{next(iter(parts.values()))}: the channels {', '.join(sorted({*every} - {*parts}))} of {stem} are missing, "
        "which other cases have; add them or take the case out."
        for stem, parts in stems.items()
        if "0000" in parts and {*parts} != {*every}
    )
    raise_all(f"{found[stem]}: the image of {stem} once more, beside its channels; keep one of them."
              for stem in several if stem in found)  # fmt: skip
    joined: dict[str, Path | list[Path]] = {name: path for name, path in found.items() if name not in numbered}
    joined |= {stem: [parts[channel] for channel in every] for stem, parts in several.items()}
    joined |= {name: found[name] for name, match in numbered.items() if match[1] not in several}
    return dict(sorted(joined.items()))


def ignored_line(folder: str | os.PathLike, where: str = "", used: Collection[Path] = ()) -> str:
    """What :func:`find_images` passes over, without files that belong to an image format; empty for nothing.

    Args:
        folder: of the files.
        where: what to say of where they are.
        used: files that are read, whatever their ending.
    """
    endings = Counter(
        path.suffix.lower() or "(no ending)"
        for path in entries(Path(folder), True)
        if not path.is_dir() and not path.name.lower().endswith(IMAGE_SUFFIXES) and path not in used
    )
    kept = Counter({ending: number for ending, number in endings.items() if ending not in COMPANIONS})
    shown = ", ".join(f"{ending} {number}" for ending, number in kept.most_common(5))
    return f"{'ignored':<11} {kept.total()} files{where} that are not read: {shown}" if kept else ""
