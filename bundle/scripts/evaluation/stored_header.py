"""Predictions as files: written whole or not at all, and as NIfTI with the place in space that the image states."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ImageWriter, NibabelWriter, resolve_writer
from monai.data.utils import affine_to_spacing, to_affine_nd

from ..dataio.files import is_picture

#: NIfTI's number of the unit.
MILLIMETRES = 2
#: Codes of NIfTI's two places, and all fields that these consist of.
PLACE = ("qform_code", "sform_code")
FIELDS = (
    *PLACE,
    "pixdim",
    *(f"quatern_{a}" for a in "bcd"),
    *(f"{kind}_{a}" for kind in ("qoffset", "srow") for a in "xyz"),
)


def _two_places(header: Mapping[str, Any]) -> bool:
    """Whether a header states two places that are not the same, of NIfTI alone."""
    if any(field not in header for field in FIELDS):
        return False
    stored = nib.Nifti1Header()
    for field in FIELDS:
        stored[field] = header[field]
    try:
        return not np.allclose(stored.get_qform(), stored.get_sform(), atol=1e-3)
    except ValueError:  # a quaternion that is no rotation: the image is read by its other place alone
        return False


class StoredHeaderWriter(NibabelWriter):
    """MONAI's writer, which else states one place of the image as both of a NIfTI file, and forgets the unit of length.

    Programs differ in which of two places they take, and make up different ones for a file that states none, so that
    a prediction would lie elsewhere in some of them, or mirrored.
    """

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Without MONAI's resampling, which fails on a plane from front to back; the header of the image is kept."""
        self.header = dict(meta_dict or {})
        self.affine = self.header.get("affine")
        if "pixdim" in self.header and self.affine is not None:  # MONAI put the voxels there that the network sees
            size = affine_to_spacing(np.asarray(self.affine, dtype=float))
            pixdim = self.header["pixdim"]
            self.header["pixdim"] = [*pixdim[:1], *size, *pixdim[1 + len(size) :]]

    def write(self, filename: Any, verbose: bool = False, **obj_kwargs: Any) -> None:
        """As in MONAI's writer."""
        super().write(filename, verbose, **obj_kwargs)
        image: Any = self.data_obj
        codes = [int(self.header[name]) for name in PLACE if name in self.header]
        unit = int(self.header.get("xyzt_units", 0)) % 8
        if codes and not any(codes):
            image.set_qform(None, code=0, update_affine=False)
            image.set_sform(None, code=0, update_affine=False)
        elif all(codes) and _two_places(self.header):
            for field in FIELDS:
                image.header[field] = self.header[field]
        elif unit in (0, MILLIMETRES):  # as written: without a unit, which programs take for mm
            return
        image.header["xyzt_units"] = unit
        nib.save(image, filename)


def ending_of(text: Any) -> str:
    """An ending of files as it is written here, however it is spelt: ``NII.GZ`` -> ``.nii.gz``."""
    return f".{str(text).lower().lstrip('.')}"


def _in_space(affine: Any) -> bool:
    """Whether a plane lies elsewhere in space than two axes can say: turned, at a height, or with a thickness."""
    matrix = to_affine_nd(3, np.eye(4) if affine is None else np.asarray(affine, dtype=float))
    return not (np.allclose(matrix[2], [0, 0, 1, 0]) and np.allclose(matrix[:2, 2], 0))


def part_of(file: Path) -> Path:
    """Folder in which a file is written until it is complete."""
    return file.with_name(f".part-{file.name}")


def writer_of(output_ext: str) -> type[ImageWriter]:
    """The writer for an ending, :class:`StoredHeaderWriter` or MONAI's own, that keeps the axis of a single slice.

    ITK's files of two axes have no place in three: a plane of a NIfTI file that lies in space becomes a volume of one
    slice in them.

    Its files come into being in a folder of their name with ``.part-`` before it, so that a full disk or the end of
    the program leaves no part of one for a whole one.
    """
    ending = ending_of(output_ext)
    nifti = ending in (".nii", ".nii.gz")
    writer = StoredHeaderWriter if nifti else resolve_writer(ending.lstrip("."))[0]

    class Whole(writer):  # type: ignore[misc, valid-type]
        data_obj: Any

        def set_data_array(self, data_array: Any, *args: Any, **kwargs: Any) -> None:
            super().set_data_array(data_array, *args, **kwargs)
            if not is_picture(ending):  # MONAI would make a plane of it, which has no place in space
                self.data_obj = self.data_obj.reshape(data_array.shape[1:])

        def set_metadata(self, meta_dict: Mapping | None, *args: Any, **options: Any) -> None:
            affine = (meta_dict or {}).get("affine")
            if not nifti and not is_picture(ending) and self.data_obj.ndim == 2 and _in_space(affine):
                self.data_obj = self.data_obj[..., None]
            super().set_metadata(meta_dict, *args, **options)

        def write(self, filename: Any, verbose: bool = False, **kwargs: Any) -> None:
            final = Path(filename)
            part = part_of(final)
            part.mkdir(exist_ok=True)
            try:
                super().write(part / final.name, verbose, **kwargs)
                for file in sorted(part.iterdir(), key=lambda file: file.name == final.name):  # .mhd after its voxels
                    os.replace(file, final.with_name(file.name))
            finally:
                shutil.rmtree(part, ignore_errors=True)

    return Whole
