"""Readers of files with endings that nibabel and ITK do not recognise: ``.Nii.gz``, ``.MHA``."""

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


def _odd(filename: Sequence[Any] | Any, endings: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether every file has one of ``endings`` in some case, and none as in ``known``."""
    names = [os.fspath(name) for name in ensure_tuple(filename)]
    return all(name.lower().endswith(endings) and not name.endswith(known) and os.path.isfile(name) for name in names)


class AnyCaseNiftiReader(NibabelReader):
    """Reads ``.Nii``, ``.NII.gz`` and the like, for which nibabel looks under another name."""

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether every file is NIfTI by an ending that nibabel does not find."""
        return _odd(filename, (".nii", ".nii.gz"), (".nii", ".nii.gz", ".NII", ".NII.GZ"))

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        """As in MONAI's reader."""
        files = [nib.Nifti1Image.from_file_map({"image": FileHolder(os.fspath(name))}) for name in ensure_tuple(data)]
        self.filenames = tuple(os.fspath(name) for name in ensure_tuple(data))
        images = [correct_nifti_header_if_necessary(file) for file in files]
        return images if len(images) > 1 else images[0]


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
    loader.register(AnyCaseNiftiReader())
    loader.register(AnyCaseMetaReader())
