"""What is checked of NRRD before ITK reads it."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError
from .headers import check_unit, check_whole_stream

#: Its endings.
NRRD = (".nrrd", ".nhdr")


def check_nrrd(path: str) -> None:
    """That a NRRD is in mm, which ITK takes for granted, that no axis counts layers or times, and its voxels are whole.

    Slicer keeps segments that overlap in layers, along an axis of their own, and so the volumes of a sequence.

    Raises:
        InputError: it is not so.
    """
    with open(path, "rb") as file:
        header = file.read(65536).split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    units = re.findall(rb"^(?:space )?units:(.*)$", header, flags=re.MULTILINE)
    check_unit(path, re.findall(r'"([^"]*)"', b" ".join(units).decode("utf-8", "replace")))
    if kind := re.search(rb"^kinds:.*\b(list|time)\b", header, flags=re.MULTILINE):
        if not (path.lower().endswith(".seg.nrrd") or re.search(rb"^Segment\d+_", header, flags=re.MULTILINE)):
            raise InputError(
                f"{path}: expected one volume, received several (kinds: {kind[1].decode()}), as of a sequence or of "
                "diffusion; save each as a file of its own."
            )
        raise InputError(
            f"{path}: a Slicer segmentation whose segments overlap, in layers; classes exclude each other here: in "
            "Slicer's Segmentations module export it as a labelmap."
        )
    _check_packed(path)


def _check_packed(path: str) -> None:
    """That the voxels of a NRRD file are whole, if it holds them compressed by gzip."""
    with open(path, "rb") as file:
        start = file.read(2**20)
    end = re.search(rb"\r?\n\r?\n", start)
    header = start[: end.start()] if end else b""
    packed = re.search(rb"^encoding: *(gz|gzip)\s*$", header, flags=re.MULTILINE | re.IGNORECASE)
    if end and packed and not re.search(rb"^(data ?file|byte ?skip|line ?skip):", header, flags=re.MULTILINE):
        check_whole_stream(Path(path), end.end())
