"""The axis along which volumes are cut into slices: chosen once for a data set, as a direction of the body."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from ..errors import InputError
from .files import is_picture
from .readers import read_grids

logger = logging.getLogger("semsim")

#: Directions of the body by the axis of space that they lie along, and what they are called.
DIRECTIONS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
NAMES = {"R": "left to right", "A": "back to front", "S": "feet to head"}
#: Spacings that differ by less are taken for equal.
ALIKE = 0.01
#: Slices are thick from this ratio of spacings on, and lie along a direction from this cosine on.
THICK, OBLIQUE = 1.5, 0.5
#: Cosine from which on an axis counts as one of the body's, not as an oblique one.
STRAIGHT = 0.9
#: Files of a list that are looked at where it does not say how to cut.
MOST_FILES = 200
#: Ratio of the longest to the shortest side of a voxel from which slices are the better choice, and the fewest slices
#: of which a 3D network has anything.
ANISOTROPIC, FEWEST = 3.0, 32


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
        slice_axis: ``R``, ``A`` or ``S``, the stored axis nearest to that direction of the body, or that of thick
            slices within 60 degrees of it, except that an image of one slice is that slice; 0, 1 or 2, that stored
            axis; ``None``, see :func:`find_slice_axis`.
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
        return find_slice_axis(voxel_sizes(affine).tolist(), shape)
    direction = DIRECTIONS[slice_axis.upper()]
    spacing = voxel_sizes(affine)
    thick, others = int(spacing.argmax()), float(np.sort(spacing)[1])
    if spacing[thick] > THICK * others and abs(affine[direction, thick]) > OBLIQUE * spacing[thick]:
        return thick  # acquired obliquely: its own slices are nearer to what is meant than a cut across them
    return world_axes(affine).index(direction)


def world_axes(affine: np.ndarray) -> list[int]:
    """The axis of space nearest to each stored axis; every one of them once."""
    nearest = nib.io_orientation(affine)[:, 0]
    missing = [a for a in range(3) if a not in nearest]
    return [missing.pop(0) if np.isnan(axis) else int(axis) for axis in nearest]


def worth_3d(spacing: Sequence[float], shape: Sequence[int]) -> bool:
    """Whether volumes suit a 3D network: voxels nearly alike in all directions, and enough slices.

    Args:
        spacing: mm of a voxel along each axis.
        shape: voxels along each axis.
    """
    return len(shape) == 3 and max(spacing) < ANISOTROPIC * min(spacing) and min(shape) >= FEWEST


def name_of(slice_axis: str | int | None) -> str:
    """What slices are stacked along, for a reader: ``S (feet to head)``, ``the stored axis 2``; pages of pictures."""
    if slice_axis is None:
        return "their pages"
    return f"{slice_axis} ({NAMES[str(slice_axis)]})" if slice_axis in NAMES else f"the stored axis {slice_axis}"


def coarser_elsewhere(affine: np.ndarray, axis: int) -> bool:
    """Whether a volume has clearly larger voxels along another axis than along that it is cut along."""
    spacing = voxel_sizes(affine)
    return bool(spacing[axis] < 0.9 * spacing.max())


@dataclass(frozen=True)
class _Acquired:
    """How a volume was acquired.

    Attributes:
        axis: its slice axis, as stored.
        direction: of the body, nearest to that axis.
        clear: whether its voxels tell, because they have unequal sides.
        oblique: whether the axis is an oblique one.
    """

    axis: int
    direction: str
    clear: bool
    oblique: bool


def _acquired(affine: np.ndarray, shape: Sequence[int]) -> _Acquired:
    spacing = voxel_sizes(affine)
    axis = stored_axis(affine, shape)
    single = sum(n == 1 for n in shape) == 1
    if not single:  # square pixels tell the third axis
        odd = [a for a in range(3) if np.ptp(np.delete(spacing, a)) <= ALIKE * np.delete(spacing, a).max()]
        axis = odd[0] if len(odd) == 1 else axis
    world = world_axes(affine)[axis]
    return _Acquired(
        axis,
        "RAS"[world],
        clear=single or bool(spacing.min() < (1 - ALIKE) * spacing.max()),
        oblique=bool(abs(affine[world, axis]) < STRAIGHT * spacing[axis]),
    )


def common_direction(volumes: Iterable[tuple[np.ndarray, Sequence[int], bool]]) -> str | int | None:
    """The direction that most volumes of a data set were acquired along.

    Args:
        volumes: of each, affine, voxels along each axis, and whether it is a stack of pictures. Planes and such stacks
            have no say, and where some volumes have voxels of unequal sides those alone have.

    Returns:
        ``R``, ``A`` or ``S``; the stored axis where directions differ because volumes are oblique, as of the heart, and
        that agrees; ``None`` for planes and pictures alone.
    """
    found = [_acquired(affine, shape) for affine, shape, picture in volumes if len(shape) == 3 and not picture]
    found = [one for one in found if one.clear] or found
    votes = Counter(one.direction for one in found)
    if not votes:
        return None
    most = max(votes, key=lambda direction: (votes[direction], "RAS".index(direction)))
    if (
        len(votes) > 1
        and all(one.oblique for one in found if one.direction != most)
        and len({o.axis for o in found}) == 1
    ):
        return found[0].axis
    return most


def direction_of(items: Sequence[Mapping[str, Any]]) -> str | int | None:
    """:func:`common_direction` of the images of a list; unreadable ones are passed over."""
    grids = read_grids(items, MOST_FILES)
    direction = common_direction((affine, shape, is_picture(file)) for file, affine, shape in grids)
    if direction is not None:
        logger.info(f"Volumes are cut into slices along {name_of(direction)}, as most of the images suggest.")
    return direction
