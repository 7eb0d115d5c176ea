"""What a file is, by its name and its first bytes: image endings, kinds of DICOM, names of cases and of labels."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

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


def beginnings(name: str) -> list[tuple[str, list[str]]]:
    """What a name begins with, and the words behind it: ``a_b-c`` -> ``a`` and ``b``, ``c``; ``a_b`` and ``c``."""
    parts = re.split(r"([_.-])", name)
    return [("".join(parts[:k]), parts[k + 1 :: 2]) for k in range(1, len(parts), 2)]


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
