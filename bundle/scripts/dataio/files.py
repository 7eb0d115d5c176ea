"""Which files are images: file endings, DICOM series, and the names of cases."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError, raise_all

logger = logging.getLogger("semsim")

T = TypeVar("T")

#: Endings of image files, longest first; ``case_name`` strips them.
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
#: Storage classes of DICOM segmentation objects, of a mask a segment or of labelmaps, of contours (RTSTRUCT) and doses.
SEGMENTATION = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.66\.[47](?![.\d])")
CONTOURS = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.481\.3(?![.\d])")
DOSE = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.481\.2(?![.\d])")
#: Folders of labels, and what names of labels end with beside their images.
LABEL_FOLDERS = re.compile(
    r"(labels?|masks?|segmentations?|annotations?|ground[_-]?truths?|gts?)([_-]?(tr|ts|train|training|test|val)|[_-].+)?",
    re.IGNORECASE,
)  # labels_rater2, too
LABEL_NAMES = re.compile(
    r"seg|segmentation|labels?|mask|msk|gt|ground_?truth|annotations?|manual|laendo", re.IGNORECASE
)
#: Masks that prepare an image: beside another label they are not the one that is meant.
HELPER_MASKS = re.compile(r"(.*[_.-])?(brain|skull|head)[_.-]?mask", re.IGNORECASE)
BIDS_LABELS = re.compile(r"sub-[^/]*_(label-[^/]*|dseg|mask|msk|seg|roi)")
LABEL_WORD = r"(seg|segmentation|labels?|mask|msk|gt)"
LABEL_ENDINGS = re.compile(rf"(.+)[_.-]{LABEL_WORD}", re.IGNORECASE)
#: nnU-Net's number of a channel behind a name.
CHANNEL = re.compile(r"(.+)_(\d{4})")
#: Other files that image formats bring along, and what systems leave behind.
COMPANIONS = (".raw", ".zraw", ".ds_store", ".db", ".json")
#: Endings of images that are not read: of Analyze and of NIfTI in two files, of FreeSurfer, MINC and Philips, arrays.
UNREAD = (".hdr", ".img", ".nhdr", ".mgz", ".mgh", ".mnc", ".par", ".gipl", ".npy", ".npz")


def case_name(path: str | os.PathLike) -> str:
    """File name without folder and image ending: ``images/patient001_frame01.nii.gz`` -> ``patient001_frame01``."""
    name = unicodedata.normalize("NFC", os.path.basename(os.fspath(path).rstrip("/")))  # macOS writes umlauts apart
    for suffix in (*IMAGE_SUFFIXES, ".dcm"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def image_files(item: Mapping[str, Any]) -> list[str]:
    """Files of an item of a datalist: of its image, or of the image's channels."""
    image = item["image"]
    return [os.fspath(f) for f in (image if isinstance(image, (list, tuple)) else [image])]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of some items, evenly spaced, away from the ends where some are left out."""
    number = min(most, len(items))
    return [items[int((k + 0.5) * len(items) / number)] for k in range(number)]


def is_picture(path: str | os.PathLike) -> bool:
    """Whether a file's rows run downwards: photographs and screenshots, which carry no orientation."""
    return os.fspath(path).lower().endswith((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))


def case_names(files: Sequence[str | os.PathLike]) -> list[str]:
    """A name for each of some image files that no other has.

    Args:
        files: paths, absolute or relative to one folder.

    Returns:
        the file names without endings; where two files share one, all with the folders below the deepest that holds
        them all: ``P01/mr``, ``P02/mr``. In the order of ``files``.
    """
    paths = [os.path.normpath(os.fspath(f)) for f in files]
    names = [case_name(path) for path in paths]
    distinct = set(paths)
    if len({case_name(path) for path in distinct}) == len(distinct):
        return names
    top = os.path.commonpath([os.path.dirname(path) for path in distinct])
    below = {path: os.path.relpath(path, top or ".") for path in distinct}
    short = {path: os.path.join(os.path.dirname(below[path]), case_name(path)) for path in distinct}
    shared = Counter(short.values())  # a.nii.gz beside a.mha keep their endings
    return [short[path] if shared[short[path]] == 1 else below[path] for path in paths]


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file is a slice of a DICOM series, by its first bytes; endings vary, as of names that are UIDs."""
    start = _dicom_start(path)
    if os.path.basename(path).upper() == "DICOMDIR":  # the directory of a medium, in the same format
        return False
    return bool(start) and not SEGMENTATION.search(start)


def is_segmentation(path: str | os.PathLike) -> bool:
    """Whether a file is a DICOM segmentation object, by the storage class in its first bytes."""
    return stores(path, SEGMENTATION)


def stores(path: str | os.PathLike, storage: re.Pattern[bytes]) -> bool:
    """Whether a file is DICOM of a storage class, by its first bytes."""
    return bool(storage.search(_dicom_start(path)))


def contours_line(path: str | os.PathLike) -> str:
    """A line for a file of contours (RTSTRUCT), or for those in a folder; empty for no such file."""
    inside = sorted(Path(path).iterdir()) if os.path.isdir(path) else [path]
    found = [file for file in inside if stores(file, CONTOURS)]
    if not found:
        return ""
    more = f", and {len(found) - 1} more in its folder" if len(found) > 1 else ""
    remedy = "export them as a labelmap, by SlicerRT in 3D Slicer or `plastimatch convert`"
    return f"{found[0]}: contours (RTSTRUCT), which are not read{more}; {remedy}."


def _dicom_start(path: str | os.PathLike) -> bytes:
    """The first bytes of a DICOM file; none of another file, and of one that another format's ending names."""
    if not os.path.isfile(path) or os.fspath(path).lower().endswith((*IMAGE_SUFFIXES, *COMPANIONS)):
        return b""
    with open(path, "rb") as file:
        start = file.read(1024)
    return start if start[128:132] == b"DICM" else b""


def is_series(folder: Path) -> bool:
    """Whether DICOM slices lie directly in ``folder``."""
    return any(is_dicom(path) for path in sorted(folder.iterdir()))


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


def beginnings(name: str) -> list[tuple[str, list[str]]]:
    """What a name begins with, and the words behind it: ``a_b-c`` -> ``a`` and ``b``, ``c``; ``a_b`` and ``c``."""
    parts = re.split(r"([_.-])", name)
    return [("".join(parts[:k]), parts[k + 1 :: 2]) for k in range(1, len(parts), 2)]


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


def place(bundle_root: str | os.PathLike) -> Path:
    """Where data and results go by default: the bundle's folder; the working folder where that is installed."""
    root = Path(bundle_root)
    return Path() if "site-packages" in root.resolve().parts else root


def results_folder(bundle_root: str | os.PathLike, name: str = "") -> str:
    """Folder of results where none is given: ``output``, or one below it.

    Args:
        bundle_root: folder of the bundle.
        name: of a folder below ``output``.
    """
    return str(place(bundle_root) / "output" / name)
