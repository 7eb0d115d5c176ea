"""Whether the images of a data set lie alike: a network that never sees a mirrored image knows left from right."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from ..errors import InputError
from .datalist import readable_items
from .geometry import states_grid
from .nifti import NIFTI
from .readers import read_grids

logger = logging.getLogger("semsim")

#: Below this cosine to the nearest axis of the body, an axis may be taken for another one in the next patient.
BETWEEN = 0.8
#: Share of such images from which on they count, and how many files of a list are looked at.
SHARE, MOST_FILES = 0.05, 20
#: Probability of a flip where images do not lie alike.
FLIPS = 0.5


def flip_probability(
    given: float | Sequence[float] | str,
    spatial_dims: int,
    datalist: str | os.PathLike = "",
    dataset_dir: str | os.PathLike = "",
    *,
    items: Iterable[Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[float]:
    """Probability of a flip along each axis: as given, or as the images of a data set suggest.

    Args:
        given: from 0 to 1, one for all axes or one for each, or ``auto``.
        spatial_dims: 2 or 3.
        datalist: JSON file, whose lists ``training`` and ``unlabeled`` count.
        dataset_dir: folder that its paths are relative to.
        items: with ``image``, in the place of a datalist.
        options: of :func:`~scripts.dataio.datalist.read_datalist`.

    Raises:
        InputError: anything else.
    """
    if given != "auto":
        each: list[Any] = list(given) if isinstance(given, list | tuple) else [given] * spatial_dims
        if len(each) != spatial_dims or not all(type(p) in (int, float) and 0 <= p <= 1 for p in each):
            raise InputError(
                f"flips: expected a probability from 0 to 1, or one for each of {spatial_dims} axes, or auto, received "
                f"{given!r}."
            )
        return [float(p) for p in each]
    if items is None:
        items = readable_items(datalist, dataset_dir, **options) if os.path.isfile(datalist) else []
    flips = common_flips(_looked_at([*items]))
    if flips:
        logger.info(
            "Images are flipped in training, because they may lie turned or mirrored against each other (pictures, "
            "files that state no place in space, oblique volumes); --flips 0 turns that off."
        )
    return [flips] * spatial_dims


def common_flips(images: Iterable[np.ndarray | None]) -> float:
    """0 where images lie alike, once they are turned to the axes of the body; 0.5 where they may not.

    Pictures, and files that state no place in space, say nothing of the body; oblique volumes, as of the heart, may
    come out turned by 90 degrees or mirrored against those of other patients.

    Args:
        images: affine of each, ``(4, 4)``; ``None`` where it states no place.
    """
    unsure = [affine is None or not states_grid(affine) or _oblique(affine) for affine in images]
    return FLIPS if sum(unsure) > SHARE * len(unsure) else 0.0


def _oblique(affine: np.ndarray) -> bool:
    """Whether an axis lies between two axes of the body."""
    axes = affine[:3, :3] / voxel_sizes(affine)
    return bool(np.abs(axes).max(axis=0).min() < BETWEEN)


def _looked_at(items: Sequence[Mapping[str, Any]]) -> Iterable[np.ndarray | None]:
    for file, affine, _ in read_grids(items, MOST_FILES):
        told = {"filename_or_obj": file}
        if file.endswith(NIFTI):
            header: Any = nib.load(file).header
            told |= {code: header[code] for code in ("qform_code", "sform_code")}
        yield affine if states_grid(affine, told) else None
