"""TIFF as it is stored, voxel by voxel, or refused in one line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from monai.data import ITKReader
from monai.utils import ensure_tuple
from PIL import Image, ImageSequence, UnidentifiedImageError

from ..errors import InputError
from .itk_read import itk_read

#: TIFF and EXIF: how a picture is to be turned for viewing; 1: not at all.
ORIENTATION_TAG = 274

#: TIFF: how pixels are stored, whether a page shows another one in small, and how many slices it holds.
TIFF = {"bits": 258, "colours": 262, "samples": 277, "planes": 284, "tiles": 322, "small": 254, "depth": 32997}

#: TIFF: where ImageJ, OME and tifffile describe a stack whose pages are not slices alone.
DESCRIPTION_TAG = 270
HYPERSTACK = re.compile(r"^(channels|slices|frames)=(\d+)\s*$", re.MULTILINE)
COMPOSITE = re.compile(r"^mode=(composite|color)\s*$", re.MULTILINE)
OME = re.compile(r'\bSize([CZT])="(\d+)"')
OME_AXES = {"C": "channels", "Z": "slices", "T": "frames"}
SHAPE = re.compile(r'^\{"shape": \[([\d, ]+)\]')


class TiffReader(ITKReader):
    """Reads TIFF voxel by voxel: its resolution is that of the print, not of the patient.

    ITK makes bytes of red, green, blue and alpha of what it does not know, such as tiles; Pillow knows those.

    Raises:
        InputError: it is to be turned for viewing, or holds what neither reads as it is.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        return all(os.fspath(name).lower().endswith((".tif", ".tiff")) for name in ensure_tuple(filename))

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        images = []
        for name in map(os.fspath, ensure_tuple(data)):
            try:
                picture: Any = Image.open(name)
            except UnidentifiedImageError:
                with open(name, "rb") as file:
                    if file.read(2) not in (b"II", b"MM"):
                        raise
                raise InputError(_odd_tiff(name, "numbers or channels of another kind")) from None
            with picture:
                picture.seek(getattr(picture, "n_frames", 1) - 1)  # ITK leaves out a last page that is cut off
                kinds = sorted({(*page.size, page.mode) for page in _pages(picture)})
                picture.seek(0)
                turn, mode = picture.getexif().get(ORIENTATION_TAG, 1), picture.mode
                described = str(getattr(picture, "tag_v2", {}).get(DESCRIPTION_TAG, ""))
                axes = _page_axes(described, getattr(picture, "n_frames", 1))
                image = None if axes or len(kinds) > 1 or turn != 1 or mode == "P" else _by_pillow(picture, name)
            if axes:
                raise InputError(
                    f"{name}: a TIFF stack whose pages are {' times '.join(axes)} in turn; save each channel or frame "
                    "as a stack of its own (in ImageJ: Image > Color > Split Channels, or Hyperstacks > Reduce "
                    "Dimensionality)."
                )
            if len(kinds) > 1:
                found = " and ".join(f"{width} x {height} ({mode})" for width, height, mode in kinds)
                raise InputError(
                    f"{name}: expected pages of one size and kind, as of the slices of a volume, received {found}, as "
                    "of a preview beside an image; save the pages that are wanted as a file of their own."
                )
            if turn != 1 or mode == "P":
                what = "a palette" if mode == "P" else f"an orientation ({turn}) that viewers turn it by"
                raise InputError(
                    f"{name}: a TIFF with {what}, which is not read here; save it as PNG, for instance with Pillow: "
                    "ImageOps.exif_transpose(Image.open(FILE)).save(FILE.png)."
                )
            images.append(itk_read(name) if image is None else image)
        return images if len(images) > 1 else images[0]

    def _get_affine(self, img: Any, lps_to_ras: bool = True) -> np.ndarray:
        return np.eye(img.GetImageDimension() + 1)


def _pages(picture: Any) -> Iterator[Any]:
    """The pages of an open TIFF, one after the other, without those that show another one in small."""
    return (p for p in ImageSequence.Iterator(picture) if not getattr(p, "tag_v2", {}).get(TIFF["small"], 0) & 1)


def _odd_tiff(name: str, found: str) -> str:
    return (
        f"{name}: expected a TIFF of one number a pixel, of up to 32 bits, or of 3 or 4 channels of 8 bits, received "
        f"{found}; save it so, or each channel as a file of its own."
    )


def _by_pillow(picture: Any, name: str) -> Any:
    """An open TIFF that ITK would make bytes of red, green, blue and alpha of, as ITK's image; ``None`` for others.

    Raises:
        InputError: several channels of other numbers than bytes.
    """
    import itk

    tags = getattr(picture, "tag_v2", {})
    bits, samples = tags.get(TIFF["bits"], (1,)), int(tags.get(TIFF["samples"], 1))
    if int(tags.get(TIFF["depth"], 1)) > 1:
        raise InputError(_odd_tiff(name, f"{tags[TIFF['depth']]} slices in one page"))
    plain = TIFF["tiles"] not in tags and tags.get(TIFF["planes"], 1) == 1 and tags.get(TIFF["colours"], 1) in (0, 1, 2)
    if plain and samples in (1, 3, 4) and bits[0] in (8, 16, 32):
        return None
    if samples not in (1, 3, 4) or (samples > 1 and {*bits} != {8}):
        raise InputError(_odd_tiff(name, f"{samples} channels of {bits[0]} bits"))
    pages = []
    for page in _pages(picture):
        pages.append(np.asarray(page.convert("RGB") if page.mode == "CMYK" else page))
    array = np.stack(pages) if len(pages) > 1 else pages[0]
    if tags.get(TIFF["colours"]) == 0 and bits[0] == 8:
        array = 255 - array  # Pillow turns numbers of which 0 is white round, ITK leaves them
    array = np.ascontiguousarray(array, np.uint8 if array.dtype == bool else array.dtype.newbyteorder("="))
    return itk.image_from_array(array, is_vector=samples > 1)


def _page_axes(described: str, pages: int) -> list[str]:
    """What the pages of a TIFF stack are, ``["2 channels", "5 slices"]``, if not the slices of one volume.

    Args:
        described: by the program that wrote it.
        pages: how many.
    """
    if "<OME" in described:
        sizes = {axis: int(count) for axis, count in OME.findall(described)}
        if sizes.get("C", 1) * sizes.get("Z", 1) * sizes.get("T", 1) != pages:
            sizes.pop("C", None)  # colours of one page
        found = [f"{count} {OME_AXES[axis]}" for axis, count in sizes.items() if count > 1]
        return found if len(found) > 1 or sizes.get("C", 1) > 1 else []
    if match := SHAPE.match(described):
        shape = [int(n) for n in match[1].split(",")]
        leading = next((shape[:k] for k in range(len(shape)) if math.prod(shape[:k]) == pages), [])
        channels = " channels" if '"axes": "C' in described else ""
        found = [f"{n}{channels if not k else ''}" for k, n in enumerate(leading) if n > 1]
    else:
        found = [f"{count} {axis}" for axis, count in HYPERSTACK.findall(described) if int(count) > 1]
        # each in a colour; programs also call slices channels, which they show in grey
        channels = "channels" if COMPOSITE.search(described) else ""
    return found if len(found) > 1 or (channels and channels in "".join(found)) else []
