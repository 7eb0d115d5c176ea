"""DICOM segmentation objects as labels, through highdicom where it is installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils import ensure_tuple

from ..errors import InputError
from .files import is_segmentation


class SegmentationReader(ImageReader):
    """Reads a DICOM segmentation object as a label: the number of each segment where it is, 0 elsewhere.

    Frames without any segment may be left out of the file; by its place in space the label is filled up.

    Raises:
        InputError: highdicom is not installed, or the object is none of exclusive segments in space.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        return all(is_segmentation(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        (path,) = (os.fspath(name) for name in ensure_tuple(data))
        try:
            from highdicom.seg import segread
        except ImportError:
            raise InputError(
                f"{path}: a DICOM segmentation object, which highdicom reads: pip install highdicom, or convert it to "
                "NIfTI in 3D Slicer."
            ) from None
        try:
            return segread(path).get_volume(combine_segments=True)
        except Exception as error:
            raise InputError(
                f"{path}: a DICOM segmentation object that is no label of exclusive classes in space "
                f"({type(error).__name__}: {str(error).splitlines()[0][:200]}); convert it to NIfTI in 3D Slicer."
            ) from error

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ img.affine  # DICOM counts to the left and back
        meta = {"affine": affine, "original_affine": affine.copy(), "spatial_shape": np.asarray(img.array.shape),
                "original_channel_dim": float("nan"), "space": "RAS"}  # fmt: skip
        return np.asarray(img.array), meta
