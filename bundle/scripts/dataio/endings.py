"""Readers of NIfTI and MetaImage by any spelling of the ending, ``.Nii.gz`` or ``.MHA``, which nibabel and ITK lack."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import nibabel as nib
from monai.data import ITKReader, NibabelReader
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import LoadImage
from monai.utils import ensure_tuple
from nibabel.fileholders import FileHolder

from ..errors import InputError
from .geometry import APART, voxels_apart


def _odd(filename: Sequence[Any] | Any, endings: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether every file has one of ``endings`` in some case, and none as in ``known``."""
    names = [os.fspath(name) for name in ensure_tuple(filename)]
    return all(name.lower().endswith(endings) and not name.endswith(known) and os.path.isfile(name) for name in names)


class NiftiReader(NibabelReader):
    """Reads NIfTI of one real number a voxel and channel; also ``.Nii``, ``.NII.gz`` and the like.

    Raises:
        InputError: complex numbers, of which nothing but the real part would be left, or colours.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether every file is NIfTI by its ending."""
        return _odd(filename, (".nii", ".nii.gz"), ())

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
        if name.endswith((".nii", ".nii.gz", ".NII", ".NII.GZ")):
            image = super().read(name, **kwargs)
        else:  # nibabel looks for it under another name
            image = correct_nifti_header_if_necessary(nib.Nifti1Image.from_file_map({"image": FileHolder(name)}))
        if (kind := image.get_data_dtype().kind) not in "iuf":
            found, remedy = {
                "c": ("complex numbers", "save their magnitude (numpy.abs), or what else is to be segmented"),
                "V": ("colours (RGB24 or RGBA32)", "save the colours as channels along a fourth axis"),
            }.get(kind, (str(image.get_data_dtype()), "save it as float32"))
            raise InputError(f"{name}: expected one real number a voxel, received a NIfTI of {found}; {remedy}.")
        return image


class AnyCaseMetaReader(ITKReader):
    """Reads ``.MHA``, ``.Mhd`` and the like, which ITK takes for no format of its own."""

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether every file is MetaImage by an ending that ITK does not know."""
        return _odd(filename, (".mha", ".mhd"), (".mha", ".mhd"))

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        """As in MONAI's reader."""
        import itk  # slow, and few files need it

        return super().read(data, imageio=itk.MetaImageIO.New(), **kwargs)


def register(loader: LoadImage) -> None:
    """Let a loader try these readers first."""
    loader.register(NiftiReader())
    loader.register(AnyCaseMetaReader())
