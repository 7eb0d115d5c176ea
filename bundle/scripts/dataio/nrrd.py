"""What is checked of NRRD before ITK reads it."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError
from .headers import check_unit, check_whole_stream

#: Its endings.
NRRD = (".nrrd", ".nhdr")


def check_nrrd(path: str) -> None:
    """That ITK reads a NRRD as it is meant: in mm, in a space of the body, one volume, its voxels whole.

    ITK takes every space that is none of the body for left-posterior-superior. So it stays where a file names none; the
    axes of a scanner, or of a hand, are refused.
    Slicer keeps segments that overlap in layers, along an axis of their own, and so the volumes of a sequence.

    Raises:
        InputError: it is not so.
    """
    with open(path, "rb") as file:
        header = file.read(65536).split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    units = re.findall(rb"^(?:space )?units:(.*)$", header, flags=re.MULTILINE)
    check_unit(path, re.findall(r'"([^"]*)"', b" ".join(units).decode("utf-8", "replace")))
    if space := re.search(rb"^space:[ \t]*((?:scanner|3D).*?)\s*$", header, flags=re.MULTILINE | re.IGNORECASE):
        raise InputError(
            f"{path}: expected a space of the body, such as left-posterior-superior, received "
            f"{space[1].decode('utf-8', 'replace')}, which does not say where left is; save it anew in LPS or RAS, "
            "from 3D Slicer for instance, and compare the sides with a scan that you know."
        )
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
