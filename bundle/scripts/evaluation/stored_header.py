"""Predictions as NIfTI that say of their place in space what the files of their images say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
from monai.data import NibabelWriter

#: NIfTI's number of the unit.
MILLIMETRES = 2


class StoredHeaderWriter(NibabelWriter):
    """MONAI's writer, which else states a place where the image states none, and forgets the unit of length.

    Programs make up different places for a file that states none, so that a stated one would lie elsewhere, mirrored.
    """

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """As in MONAI's writer; ``meta_dict`` also has the header of the image."""
        super().set_metadata(meta_dict, resample, **options)
        self.header = dict(meta_dict or {})

    def write(self, filename: Any, verbose: bool = False, **obj_kwargs: Any) -> None:
        """As in MONAI's writer."""
        super().write(filename, verbose, **obj_kwargs)
        image: Any = self.data_obj
        codes = [int(self.header[name]) for name in ("qform_code", "sform_code") if name in self.header]
        unit = int(self.header.get("xyzt_units", 0)) % 8
        if codes and not any(codes):
            image.set_qform(None, code=0, update_affine=False)
            image.set_sform(None, code=0, update_affine=False)
        elif unit in (0, MILLIMETRES):  # as written: without a unit, which programs take for mm
            return
        image.header["xyzt_units"] = unit
        nib.save(image, filename)


def writer_of(output_ext: str) -> type[NibabelWriter] | None:
    """The writer for an ending: of this module for NIfTI, otherwise ``None``, MONAI's own."""
    return StoredHeaderWriter if output_ext.lower() in (".nii", ".nii.gz") else None
