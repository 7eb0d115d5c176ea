"""Reader of MetaImage with any spelling of the ending, ``.MHA`` say, whose voxels are there and told in mm."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.data import ITKReader
from monai.utils import ensure_tuple

from ..errors import InputError
from .headers import check_unit, check_whole_stream, ends
from .itk_read import itk_read


class MetaReader(ITKReader):
    """Reads MetaImage of any type of number; also ``.MHA``, ``.Mhd`` and the like, which ITK takes for no format."""

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether every file is MetaImage by its ending."""
        return ends(filename, (".mha", ".mhd"))

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        """As in MONAI's reader."""
        import itk  # slow, and few files need it

        names = [os.fspath(name) for name in ensure_tuple(data)]
        for name in names:
            _check_meta_image(name)
        images = [itk_read(name, imageio=itk.MetaImageIO.New(), **kwargs) for name in names]
        return images if len(images) > 1 else images[0]


def _check_meta_image(name: str) -> None:
    """That a MetaImage is told in mm, and its voxels are there, and whole where they are compressed: ITK makes up what
    it cannot read.

    Raises:
        InputError: they are not.
    """
    told: dict[str, str] = {}
    with open(name, "rb") as file:
        while "ElementDataFile" not in told and (line := file.readline(4096)):
            key, _, value = line.decode("utf-8", "replace").partition("=")
            told[key.strip()] = value.strip()
        check_unit(name, [told.get("DistanceUnits", "")])
        where = told.get("ElementDataFile", "")
        local = where.lower() == "local"
        voxels = Path(name) if local else Path(name).parent / where
        if not where or where.startswith("LIST") or "%" in where:
            return
        if not voxels.is_file():
            raise InputError(
                f"{name}: expected its voxels in {voxels}, as its header says, found no such file; copy it there, too."
            )
        if told.get("CompressedData", "").lower() != "true":
            return
        start = file.tell() if local else 0
    if local and "CompressedDataSize" not in told:
        raise InputError(f"{name}: compressed, and without the CompressedDataSize that ITK needs; save it anew.")
    check_whole_stream(voxels, start)


def voxel_file(name: str | os.PathLike) -> Path | None:
    """The file in which the voxels of an .mhd lie; ``None`` for other formats, and where its header names none."""
    path = Path(name)
    if path.suffix.lower() != ".mhd" or not path.is_file():
        return None
    named = re.search(rb"^\s*ElementDataFile\s*=\s*([^\r\n]+?)\s*$", path.read_bytes(), flags=re.MULTILINE)
    voxels = path.parent / os.fsdecode(named[1]) if named else path.parent
    return voxels if voxels.is_file() else None
