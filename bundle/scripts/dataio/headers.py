"""What readers of several formats check: endings in any case, units of length, compressed voxels that are whole."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from ..errors import InputError

#: Units other than mm, as headers of NRRD and MetaImage spell them.
OTHER_UNITS = re.compile(
    r"[cdun\u00b5\u03bc\ufffd]?m|(centi|deci|micro|nano)?met(er|re)s?|microns?|in|inch(es)?", re.IGNORECASE
)


def ends(filename: Sequence[Any] | Any, endings: tuple[str, ...]) -> bool:
    """Whether every file has one of ``endings``, in any case."""
    names = [os.fspath(name) for name in ensure_tuple(filename)]
    return all(name.lower().endswith(endings) and os.path.isfile(name) for name in names)


def check_unit(name: str, units: Sequence[str]) -> None:
    """That sizes and places are told in mm: ITK takes their numbers for that, whatever the header calls them.

    Args:
        name: the file.
        units: as its header spells them, one an axis; what is no unit of length does not matter.

    Raises:
        InputError: they are not.
    """
    if other := [unit for unit in units if OTHER_UNITS.fullmatch(unit.strip())]:
        raise InputError(
            f"{name}: expected sizes and places in mm, received {other[0]} by its header; save it anew with its "
            "spacing and its origin in mm."
        )


def check_whole_stream(path: Path, start: int = 0) -> None:
    """That a stream of zlib or gzip in a file is whole: nobody else reads the check sum at its end.

    Args:
        path: the file.
        start: byte at which the stream begins.

    Raises:
        InputError: it is not.
    """
    told = path.stat()
    if not _uncompresses(path, start, told.st_size, told.st_mtime_ns):
        raise InputError(f"{path}: expected compressed voxels, received some that are cut off or broken; copy it anew.")


@cache
def _uncompresses(path: Path, start: int, size: int, changed: int) -> bool:
    """Once for a file of a size and a time of change: where volumes are not kept they are read again and again."""
    stream = zlib.decompressobj(wbits=47)  # of either kind
    with path.open("rb") as file:
        file.seek(start)
        try:
            while not stream.eof and (block := file.read(2**16)):
                stream.decompress(block)
        except zlib.error:
            return False
    return stream.eof
