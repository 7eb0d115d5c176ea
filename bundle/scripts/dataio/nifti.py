"""Reader of NIfTI with any spelling of the ending, ``.Nii.gz`` say, whose header states one place and size."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.utils import ensure_tuple
from nibabel.affines import voxel_sizes
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError

from ..errors import InputError
from .geometry import APART, voxels_apart
from .headers import check_whole_stream, ends

logger = logging.getLogger("semsim")

#: Share by which two sizes of a voxel differ where they were rounded.
ROUNDING = 0.01
#: Endings by which nibabel knows NIfTI.
NIFTI = (".nii", ".nii.gz", ".NII", ".NII.GZ")


def with_one_size(image: Any, name: str) -> Any:
    """A NIfTI image whose place in space has voxels of the size that its header states besides.

    MONAI takes the size, and NIfTI's other place, which may be none: so a volume that lies turned would be taken for
    one that does not. It is kept where the two sizes differ by rounding alone, and said, once, where they do not.

    Raises:
        InputError: no place of the two is one.
    """
    image = _without_single_axes(image, name)
    before = image.affine.copy()
    size, zooms = voxel_sizes(before), image.header.get_zooms()
    number = min(3, len(zooms))
    if np.allclose(size[:number], zooms[:number], rtol=ROUNDING, atol=0):
        if found := _two_places(image):
            _tell(
                f"{name}: its header states two places in space, of which {found}; that of the sform is used: mend the "
                "header if left and right or the place are wrong."
            )
        image.header["pixdim"][1 : 1 + number] = size[:number]
    image = correct_nifti_header_if_necessary(image)
    axes = image.affine[:3, :3] if number == 3 else np.eye(3)
    if not np.isfinite(image.affine).all() or np.linalg.matrix_rank(axes) < 3:
        found = ", ".join(f"{s:.4g}" for s in np.linalg.norm(axes, axis=0))
        raise InputError(
            f"{name}: expected a place of its voxels in mm, received an affine whose axes are {found} mm long, or not "
            "apart; mend the header, or save the array anew: nibabel.Nifti1Image(array, numpy.diag([x, y, z, 1]))."
        )
    if not voxels_apart(image.affine, before, image.shape) <= APART:  # nor where it is NaN
        sizes = [" x ".join(f"{s:.4g}" for s in one[:number]) for one in (zooms, size)]
        _tell(
            f"{name}: its header states voxels of {sizes[0]} mm, and a place in space with voxels of {sizes[1]} mm, "
            "which is not used, nor the directions in it; mend the header if left and right or the voxels are wrong."
        )
    return image


def _two_places(image: Any) -> str:
    """How the two places of a NIfTI header contradict each other; empty where they do not.

    By their codes they may lie in different spaces, that of the scanner and that of an atlas, but none is a mirror.
    """
    try:
        places = [image.header.get_qform(coded=True), image.header.get_sform(coded=True)]
    except (ValueError, HeaderDataError):  # no rotation
        return ""
    if any(matrix is None or not np.isfinite(matrix).all() for matrix, _ in places):
        return ""
    (quaternion, code), (matrix, other) = places
    if np.linalg.det(quaternion[:3, :3]) * np.linalg.det(matrix[:3, :3]) < 0:
        return "one mirrors the other"
    apart = voxels_apart(matrix, quaternion, image.shape[:3]) if code == other else 0.0
    return f"the corners lie {apart:.3g} voxels apart, in one space by their codes" if apart > APART else ""


def _without_single_axes(image: Any, name: str) -> Any:
    """A NIfTI image of three axes, and one of channels if it has several: NIfTI lists those along its fifth.

    Raises:
        InputError: several axes of more than one.
    """
    more = [n for n in image.shape[3:] if n > 1]
    if len(image.shape) < 5:
        return image
    if len(more) > 1:
        shape = " x ".join(map(str, image.shape))
        raise InputError(f"{name}: expected a volume, or one of several channels, received {shape} voxels; split it "
                         "into one file a time point.")  # fmt: skip
    return type(image)(image.dataobj.reshape((*image.shape[:3], *more)), image.affine, image.header)


@cache
def _tell(warning: str) -> None:
    """Warn once."""
    logger.warning(warning)


class NiftiReader(NibabelReader):
    """Reads NIfTI of one real number a voxel and channel; also ``.Nii``, ``.NII.gz`` and the like.

    Raises:
        InputError: complex numbers, of which nothing but the real part would be left, or colours.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether every file is NIfTI by its ending."""
        return ends(filename, (".nii", ".nii.gz"))

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        """As in MONAI's reader."""
        images = [self._read(os.fspath(name), **kwargs) for name in ensure_tuple(data)]
        for k, image in enumerate(images[1:], 1):  # a place by a quaternion is rounded, and MONAI asks for equal ones
            first = images[0].affine
            if image.shape == images[0].shape and voxels_apart(first, image.affine, image.shape[:3]) < APART:
                images[k] = nib.Nifti1Image(image.dataobj, first, image.header)
        self.filenames = tuple(os.fspath(name) for name in ensure_tuple(data))
        return images if len(images) > 1 else images[0]

    def _read(self, name: str, **kwargs: Any) -> Any:
        _check_packed(name)
        if name.endswith(NIFTI):
            image: Any = nib.load(name, **{**self.kwargs, **kwargs})
        else:  # nibabel looks for it under another name
            image = nib.Nifti1Image.from_file_map({"image": FileHolder(name)})
        image = with_one_size(image, name)
        if (kind := image.get_data_dtype().kind) not in "iuf":
            found, remedy = {
                "c": ("complex numbers", "save their magnitude (numpy.abs), or what else is to be segmented"),
                "V": ("colours (RGB24 or RGBA32)", "save the colours as channels along a fourth axis"),
            }.get(kind, (str(image.get_data_dtype()), "save it as float32"))
            raise InputError(f"{name}: expected one real number a voxel, received a NIfTI of {found}; {remedy}.")
        return image


def _check_packed(name: str) -> None:
    """That a NIfTI file is compressed where its name says so, and only there, and whole.

    Raises:
        InputError: it was given the ending of the other kind, or is broken.
    """
    with open(name, "rb") as file:
        start = file.read(348)
    packed = start[:2] == b"\x1f\x8b"
    if packed and not name.lower().endswith(".gz"):
        raise InputError(f"{name}: expected NIfTI, received it compressed by gzip; call the file .nii.gz.")
    if not packed and name.lower().endswith(".gz") and start[344:347] in (b"n+1", b"ni1"):
        raise InputError(f"{name}: expected NIfTI compressed by gzip, received it as it is; call the file .nii.")
    if packed:
        check_whole_stream(Path(name))
