"""Which way volumes are cut into slices: decided once for a data set, in the directions of the body."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np

from .errors import InputError
from .files import is_picture
from .readers import read_grid

logger = logging.getLogger("semsim")

#: Directions of the body by the axis of space that they lie along, and what they are called.
DIRECTIONS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
NAMES = {"R": "left to right", "A": "back to front", "S": "feet to head"}
#: Spacings that differ by less are taken for equal.
ALIKE = 0.01
#: Files of a list that are looked at where it does not say how to cut.
MOST_FILES = 200


def find_slice_axis(spacing: Sequence[float], shape: Sequence[int], slice_axis: int | None = None) -> int:
    """Which axis of a stored volume the slices are stacked along, by itself.

    Args:
        spacing: voxel size along each axis, in mm.
        shape: voxels along each axis.
        slice_axis: 0, 1 or 2 to override.

    Returns:
        ``slice_axis`` if given; the axis of a single voxel if there is one; otherwise the axis of the coarsest spacing,
        and among axes whose spacings agree within 1 % (files that carry no spacing) the one with the fewest voxels, the
        last one of equals.
    """
    if slice_axis is not None:
        if not 0 <= slice_axis < len(shape):
            raise InputError(f"slice_axis should be R, A, S, or 0, 1 or 2, received {slice_axis}.")
        return slice_axis
    if sum(n == 1 for n in shape) == 1:
        return list(shape).index(1)
    coarsest = max(spacing)
    candidates = [axis for axis, size in enumerate(spacing) if size >= (1 - ALIKE) * coarsest]
    return min(candidates, key=lambda axis: (shape[axis], -axis))


def stored_axis(
    affine: np.ndarray, shape: Sequence[int], slice_axis: str | int | None = None, *, picture: bool = False
) -> int:
    """Which axis of a stored volume the slices are stacked along.

    Args:
        affine: from voxels to mm, ``(4, 4)``.
        shape: voxels along each axis.
        slice_axis: ``R``, ``A`` or ``S``, the stored axis nearest to that direction of the body, except that an image
            of one slice is that slice; 0, 1 or 2, that stored axis; ``None``, see :func:`find_slice_axis`.
        picture: whether it is a stack of pictures, which are its slices.

    Raises:
        InputError: another ``slice_axis``.
    """
    if isinstance(slice_axis, str) and slice_axis.upper() not in DIRECTIONS:
        raise InputError(f"slice_axis should be R, A, S, or 0, 1 or 2, received {slice_axis}.")
    if isinstance(slice_axis, int) or sum(n == 1 for n in shape) == 1:
        return find_slice_axis(np.ones(3).tolist(), shape, slice_axis if isinstance(slice_axis, int) else None)
    if picture:
        return 2
    if slice_axis is None:
        return find_slice_axis(np.linalg.norm(affine[:3, :3], axis=0).tolist(), shape)
    return world_axes(affine).index(DIRECTIONS[slice_axis.upper()])


def world_axes(affine: np.ndarray) -> list[int]:
    """The axis of space nearest to each stored axis; every one of them once."""
    nearest = nib.io_orientation(affine)[:, 0]
    missing = [a for a in range(3) if a not in nearest]
    return [missing.pop(0) if np.isnan(axis) else int(axis) for axis in nearest]


def coarser_elsewhere(affine: np.ndarray, axis: int) -> bool:
    """Whether a volume has clearly larger voxels along another axis than along that it is cut along."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(spacing[axis] < 0.9 * spacing.max())


def _own_direction(affine: np.ndarray, shape: Sequence[int], picture: bool) -> tuple[str, bool]:
    """Along which direction a volume was acquired, and whether its voxels tell: all but one of its spacings agree."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axis = stored_axis(affine, shape, picture=picture)
    single = sum(n == 1 for n in shape) == 1
    if not single and not picture:
        odd = [a for a in range(3) if np.ptp(np.delete(spacing, a)) <= ALIKE * np.delete(spacing, a).max()]
        axis = odd[0] if len(odd) == 1 else axis
    clear = single or bool(spacing.min() < (1 - ALIKE) * spacing.max())
    return "RAS"[world_axes(affine)[axis]], clear


def common_direction(volumes: Iterable[tuple[np.ndarray, Sequence[int], bool]]) -> str | None:
    """The direction that most volumes of a data set were acquired along: ``R``, ``A`` or ``S``.

    Args:
        volumes: of each, affine, voxels along each axis, and whether it is a stack of pictures. Planes have no say, and
            where some volumes have voxels of unequal sides those alone have.

    Returns:
        ``None`` for planes alone.
    """
    found = [_own_direction(*volume) for volume in volumes if len(volume[1]) == 3]
    votes = Counter(direction for direction, clear in found if clear) or Counter(direction for direction, _ in found)
    return max(votes, key=lambda direction: (votes[direction], "RAS".index(direction))) if votes else None


def direction_of(items: Sequence[Mapping[str, Any]]) -> str | None:
    """:func:`common_direction` of the images of a list; unreadable ones are passed over."""
    volumes = []
    for number in sorted({round(k) for k in np.linspace(0, len(items) - 1, min(len(items), MOST_FILES))}):
        image = items[number]["image"]
        file = image if isinstance(image, str) else image[0]
        try:
            volumes.append((*read_grid(file), is_picture(file)))
        except Exception as error:  # whoever reads it next names it
            logger.debug(f"{file}: {error}")
    direction = common_direction(volumes)
    if direction is not None:
        logger.info(f"Slices are cut along {direction} ({NAMES[direction]}), as most of the images suggest.")
    return direction
