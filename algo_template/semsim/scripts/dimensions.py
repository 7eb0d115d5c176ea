"""Slices or volumes, and how large what the network sees of them is, from the data statistics and the memory.

For the generation of folders alone, by which the package of the bundle is installed; a template has no ``dataio``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

#: Pixels of a slice at most, with and without a GPU.
LARGEST = {True: 256, False: 128}
#: How often a patch may grow by 16 voxels a side, with and without a GPU: without, time ends sooner than memory.
GROWTH = {True: 4, False: 0}
#: Bytes that a training takes for a slice of either stream and a pixel, SemSim and SemSim-, in float32.
BYTES = {"sfm": 6.9e9 / 8 / 224**2, "conv": 2.6e9 / 8 / 224**2}
#: Bytes that a training with volumes.yaml takes for a patch of either stream and a voxel, in float32.
BYTES_3D = 0.55e9 / (64 * 64 * 32)


class Sizes(NamedTuple):
    """What a training sees of a volume.

    Attributes:
        values: keys of the configuration.
        bytes: memory that a training takes for a slice or patch of either stream.
        items: slices or patches of a volume in an epoch.
        voxels: of a volume as it is kept in memory.
        most: slices or patches of a batch, at most.
    """

    values: dict[str, Any]
    bytes: float
    items: float
    voxels: float
    most: int


def forced(given: Mapping[str, Any], shape: np.ndarray) -> int | None:
    """The dimensions that ``force_2d`` or ``force_3d`` in the input ask for, if any.

    Args:
        given: the input.
        shape: voxels of the median volume.

    Raises:
        InputError: both at once, or 3D of images without a third dimension.
    """
    if not given.get("force_3d"):
        return 2 if given.get("force_2d") else None
    from semsim_bundle.scripts.errors import InputError

    if given.get("force_2d"):
        raise InputError("force_2d, force_3d: expected true for one of them at most, received both; remove one.")
    if _flat(shape):
        raise InputError(
            f"force_3d: expected volumes, received images of {short(shape)} voxels at the median; remove it."
        )
    return 3


def dimensions(
    given: Mapping[str, Any], spacing: np.ndarray, shape: np.ndarray, patch: Sequence[int]
) -> tuple[int, str]:
    """Whether volumes are trained on as slices or in 3D.

    Args:
        given: the input.
        spacing: mm of a voxel at the median, along each axis.
        shape: voxels of the median volume.
        patch: voxels of the smallest patch in 3D.

    Returns:
        2 or 3, and why.

    Raises:
        InputError: as :func:`forced`.
    """
    if (asked := forced(given, shape)) is not None:
        return asked, f"force_{asked}d in the input"
    if _flat(shape):
        return 2, f"{short(shape)} voxels are no volume"
    from semsim_bundle.scripts.dataio.slice_axis import ANISOTROPIC

    stated = "" if not np.allclose(spacing, 1.0) else " (perhaps none stated)"
    ratio = float(spacing.max() / spacing.min())
    facts = f"median spacing {short(spacing)} mm{stated}, ratio {ratio:.3g}"
    if round(ratio, 2) >= ANISOTROPIC:
        return 2, f"{facts}, {ANISOTROPIC:g} or more"
    if shape.min() < min(patch):
        return 2, f"median shape {short(shape)}, fewer slices than the {min(patch)} of a patch"
    return 3, f"{facts}, below {ANISOTROPIC:g}; median shape {short(shape)}, at least {min(patch)} slices"


def of_slices(spacing: np.ndarray, shape: np.ndarray, *, gpu: bool) -> Sizes:
    """Slices that hold the median volume in plane."""
    from semsim_bundle.scripts.dataio.slice_axis import find_slice_axis

    axis = find_slice_axis(spacing.tolist(), shape.tolist()) if len(shape) == 3 else 2
    plane = [a for a in range(len(shape)) if a != axis]
    pixel = float(max(min(spacing[a] for a in plane), max(shape[a] * spacing[a] for a in plane) / LARGEST[gpu]))
    size = max(int(np.clip(16 * round(shape[a] * spacing[a] / pixel / 16), 32, LARGEST[gpu])) for a in plane)
    depth = shape[axis] if len(shape) == 3 else 1
    fusion = "sfm" if gpu else "conv"
    values = {"spatial_size": [size] * 2, "working_resolution": round(pixel, 4), "fusion": fusion}
    return Sizes(values, BYTES[fusion] * size**2, depth, size**2 * depth, 8)


def of_patches(shape: np.ndarray, overlay: Mapping[str, Any], memory: float, *, gpu: bool) -> Sizes:
    """Patches of ``volumes.yaml``, grown as far as memory allows, within the median volume.

    Args:
        shape: voxels of the median volume.
        overlay: content of ``volumes.yaml``.
        memory: bytes that a training may take.
        gpu: whether there is one.
    """
    first, batch = overlay["spatial_size"], overlay["batch_size"]
    within = [max(16, int(n) // 16 * 16) for n in shape]
    sizes = [[min(n + 16 * k, most) for n, most in zip(first, within)] for k in range(GROWTH[gpu] + 1)]
    fitting = [size for size in sizes[1:] if batch * BYTES_3D * math.prod(size) <= memory]
    size = [sizes[0], *fitting][-1]
    values = {"spatial_size": size}
    return Sizes(values, BYTES_3D * math.prod(size), overlay["patches"], math.prod(shape.tolist()), batch)


def short(values: np.ndarray) -> str:
    """``1.5 x 1.5 x 10``."""
    return " x ".join(f"{v:.4g}" for v in values)


def _flat(shape: np.ndarray) -> bool:
    return len(shape) < 3 or shape.min() < 2
