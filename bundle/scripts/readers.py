"""MONAI's image loading, and the one kind of file in the benchmarks that it cannot read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import ITKReader
from monai.transforms import LoadImage, LoadImaged
from monai.utils import ensure_tuple

from .endings import register

#: What the headers of MetaImage and NRRD call a signed byte.
SIGNED_BYTE = re.compile(rb"^ElementType\s*=\s*MET_CHAR\s*$|^type:\s*(signed char|int8|int8_t)\s*$", flags=re.MULTILINE)


class SignedByteReader(ITKReader):
    """Reads MetaImage and NRRD files of signed bytes as 16 bit.

    ITK's Python package has no images of signed bytes, so MONAI's reader fails on them; PROMISE12's segmentations are
    such files (``ElementType = MET_CHAR``).
    """

    def __init__(self) -> None:
        import itk  # slow, and few files need it

        super().__init__(pixel_type=itk.SS)

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether every file is one of signed bytes, by its header."""
        return all(_holds_signed_bytes(os.fspath(name)) for name in ensure_tuple(filename))


def _holds_signed_bytes(path: str) -> bool:
    if not path.lower().endswith((".mhd", ".mha", ".nrrd")) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return SIGNED_BYTE.search(file.read(4096).replace(b"\r\n", b"\n")) is not None


def image_loader() -> LoadImage:
    """MONAI's ``LoadImage`` with :class:`SignedByteReader`; files and DICOM folders become ``(C, *spatial)``."""
    loader = LoadImage(image_only=True, ensure_channel_first=True)
    loader.register(SignedByteReader())
    register(loader)
    return loader


class LoadFilesd(LoadImaged):
    """MONAI's ``LoadImaged`` with :class:`SignedByteReader`."""

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        """Arguments as in ``LoadImaged``."""
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self._loader.register(SignedByteReader())
        register(self._loader)
