"""Predictions as files: pictures as pictures, volumes whole, and segments with their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException

#: Endings of pictures; of these, TIFF can hold several slices, and JPEG smears labels.
PICTURES = (".png", ".jpg", ".jpeg", ".tif")
#: Where ITK, and so 3D Slicer, puts a picture.
ITK_ORIGIN = np.diag([-1.0, -1.0, 1.0, 1.0])


def ending(asked: str | None, image: str, shape: Sequence[int]) -> str:
    """The ending of the file of a prediction.

    Args:
        asked: by the request.
        image: file of the image, whose kind is taken otherwise.
        shape: of the image.

    Raises:
        HTTPException: 400, a picture is asked for, and the image has several slices.
    """
    kind = next((end for end in (".nii.gz", *PICTURES) if image.lower().endswith(end)), Path(image).suffix)
    kind = asked or (".png" if kind in PICTURES and kind != ".tif" else kind)
    if kind == ".png" and len(shape) > 2 and shape[2] > 1:
        raise HTTPException(400, f"result_extension: expected .nii.gz or .nrrd for {shape[2]} slices, received {kind}.")
    return kind


def flat(pred: Any, meta: dict[str, Any], image: str, kind: str) -> Any:
    """The prediction of an image without a third axis, ``(1, X, Y)``: ``(X, Y)`` for a picture, else ``(X, Y, 1)``.

    Args:
        pred: class indices.
        meta: of the file to be written; a picture's place is put into it.
        image: file of the image.
        kind: ending of the file to be written.
    """
    if kind in PICTURES:
        return pred[0]
    if image.lower().endswith(PICTURES):
        meta["affine"] = ITK_ORIGIN
    return pred[0][..., None]


def name_segments(file: Path, class_names: Sequence[str]) -> None:
    """Write names and values of the classes into a ``.seg.nrrd``, without which Slicer calls them Segment_1, ..."""
    header, _, voxels = file.read_bytes().partition(b"\n\n")
    sizes = next(line for line in header.decode().splitlines() if line.startswith("sizes:")).split()[1:4]
    extent = " ".join(f"0 {int(size) - 1}" for size in sizes)
    for value, name in list(enumerate(class_names))[1:]:
        told = {"ID": name, "Name": name, "LabelValue": value, "Layer": 0, "Extent": extent}
        header += "".join(f"\nSegment{value - 1}_{key}:={entry}" for key, entry in told.items()).encode()
    file.write_bytes(header + b"\n\n" + voxels)
