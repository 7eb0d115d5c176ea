"""What the values in label files stand for, where the files say so: the same in every file, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ..dataio.files import is_segmentation

#: How a segment of 3D Slicer is told in the header of a .seg.nrrd.
SEGMENT = re.compile(rb"^Segment(\d+)_(Name|LabelValue|Layer):=(.*?)\r?$", re.MULTILINE)
#: Endings of pictures that may have a palette.
PALETTES = (".png", ".bmp")
#: How a palette's black is called here.
BLACK = "colour 0 0 0"
#: Names that 3D Slicer makes up, or none.
UNNAMED = re.compile(r"(segment[ _]?\d*)?", re.IGNORECASE)


def segments(path: Path) -> list[dict[str, str]]:
    """``Name``, ``LabelValue`` and ``Layer`` of every segment in the header of a ``.seg.nrrd``, where they are told."""
    with path.open("rb") as file:
        header = file.read(200_000).split(b"\n\n")[0]
    told: dict[str, dict[str, str]] = {}
    for number, key, value in SEGMENT.findall(header):
        told.setdefault(number.decode(), {})[key.decode()] = value.decode(errors="replace").strip()
    return list(told.values())


def value_names(path: Path) -> dict[int, str]:
    """Names of the values in a label: of 3D Slicer's and DICOM's segments, or the colours of a palette; else none."""
    if path.name.lower().endswith(".seg.nrrd"):
        named = {int(one.get("LabelValue", 1)): one.get("Name", "") for one in segments(path)}
        return {value: name for value, name in named.items() if not UNNAMED.fullmatch(name)}
    if path.suffix.lower() in PALETTES:
        with Image.open(path) as picture:
            palette = picture.getpalette() if picture.mode == "P" else None
        return {k: "colour {} {} {}".format(*rgb) for k, rgb in enumerate(np.reshape(palette or [], (-1, 3)))}
    if is_segmentation(path):
        from highdicom.seg import segread  # installed, or the file could not have been read

        found = segread(path)
        named = {int(k): str(found.get_segment_description(k).segment_label) for k in found.segment_numbers}
        return {value: name for value, name in named.items() if not UNNAMED.fullmatch(name)}
    return {}


def background_elsewhere(labels: Iterable[tuple[Path, Mapping[float, int]]], ignore_label: int | None) -> list[str]:
    """A line for the first label whose palette has black, as of the background, at another value than 0.

    Pillow's ``quantize`` makes white the value 0 and black 1 of a mask, so that the classes change places.

    Args:
        labels: files, and the values that each shows.
        ignore_label: value of voxels to ignore, whose colour says nothing.
    """
    for path, values in labels:
        names = value_names(path) if path.suffix.lower() in PALETTES else {}  # others are large
        black = [v for v in sorted(map(int, values)) if v != ignore_label and names.get(v) == BLACK]
        if black and (zero := names.get(0, BLACK)) != BLACK:
            return [
                f"{path}: expected 0 for the background, received a palette in which 0 is {zero!r} and {black[0]} is "
                "black; save the labels as grey values (Pillow: Image.open(FILE).convert('L')), or give the values by "
                "--label_values, background first."
            ]
    return []


def contradictions(labels: Iterable[tuple[Path, Mapping[float, int]]]) -> list[str]:
    """A line for each label in which a value stands for something else than in a label before it.

    Args:
        labels: files, and the values that each shows.
    """
    first: dict[int, tuple[str, Path]] = {}
    lines = []
    for path, values in labels:
        names = value_names(path)
        for value in sorted(int(v) for v in values if int(v) in names):
            name, earlier = first.setdefault(value, (names[value], path))
            if name.casefold() != names[value].casefold():
                lines.append(
                    f"{path}: the value {value} is {names[value]!r}, in {earlier} {name!r}; save the labels so that a "
                    "value means one class, or if the values are right give them by --label_values."
                )
                break
    return lines
