"""From the grid that a network sees back to the grid of the file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation
from torch import Tensor

from ..dataio.transforms import AsVolumed, SliceGrid


def applied(volume: MetaTensor, name: str) -> Mapping[str, Any]:
    """What a transform noted on a volume, or on the first of a batch, when it was applied.

    Raises:
        ValueError: it was not applied.
    """
    history = getattr(volume, "applied_operations", [])
    steps = history[0] if history and isinstance(history[0], list) else history
    for step in reversed(steps):
        if step["class"] == name:
            return step
    raise ValueError(f"Expected a volume that {name}d has prepared, received one with {[s['class'] for s in steps]}.")


@dataclass(frozen=True)
class StoredGrid:
    """How the slices that the network sees lie in the array of their file.

    Attributes:
        axes: axes of the stored array along which H, W and the slices of the slice grid run.
        shape: voxels of the stored array along each of its axes.
        scale, offset: for H and for W; pixel ``i`` of a stored slice is pixel ``scale * i + offset`` of the slice grid.
    """

    axes: tuple[int, int, int]
    shape: tuple[int, int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]

    @classmethod
    def of(cls, volume: MetaTensor) -> StoredGrid:
        """From what ``SliceGridd`` noted on a volume, or on the only one of a batch."""
        step = applied(volume, SliceGrid.__name__)
        stored = np.asarray(step["extra_info"]["src_affine"], dtype=float).reshape(4, 4)
        matrix = np.linalg.solve(np.asarray(volume.affine.cpu(), dtype=float).reshape(4, 4), stored)
        h, w, s = np.abs(matrix[:3, :3]).argmax(axis=1).tolist()
        x, y, z = (int(n) for n in step["orig_size"])
        return cls((h, w, s), (x, y, z), (matrix[0, h], matrix[1, w]), (matrix[0, 3], matrix[1, 3]))

    def sampling(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """Where the pixels of a stored slice lie in a slice of ``size``, for ``grid_sample``: ``(1, H', W', 2)``."""
        h, w = (
            (2 * (scale * torch.arange(self.shape[axis], dtype=torch.float64) + offset) + 1) / length - 1
            for axis, scale, offset, length in zip(self.axes, self.scale, self.offset, size)
        )
        grid = torch.stack(torch.meshgrid(h, w, indexing="ij")[::-1], dim=-1)
        return grid[None].to(device, torch.float32)

    def stored(self, slices: Tensor) -> Tensor:
        """Slices ``(slices, H', W')`` in the order of the stored array, ``(X, Y, Z)``."""
        return slices.permute(*np.argsort([self.axes[2], self.axes[0], self.axes[1]]).tolist())


def stored_affine(volume: MetaTensor) -> np.ndarray:
    """From voxels as stored to mm, ``(4, 4)``, as ``SliceGridd`` or ``VolumeGridd`` noted it."""
    names = {step["class"] for step in getattr(volume, "applied_operations", []) if isinstance(step, Mapping)}
    grid = SliceGrid.__name__ if SliceGrid.__name__ in names else Orientation.__name__
    known = applied(volume, grid)["extra_info"]
    affine = known["src_affine" if grid == SliceGrid.__name__ else "original_affine"]
    return np.asarray(affine, dtype=float).reshape(4, 4)


class AsStoredd(MapTransform):
    """Give class indices of an inferer, ``(1, X, Y, Z)``, the affine, the dimensions and the name of the image's file.

    They are of ``image``, prepared by ``AsVolumed``, and ``SliceGridd`` or ``VolumeGridd``.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        image = data["image"]
        size = applied(image, AsVolumed.__name__)["orig_size"]  # without the axis that a 2D image was given
        affine = stored_affine(image)
        result = dict(data)
        for key in self.key_iterator(data):
            labels = torch.as_tensor(data[key]).reshape(data[key].shape[0], *size)
            result[key] = MetaTensor(labels, meta=dict(image.meta))
            result[key].affine = torch.as_tensor(affine)
        return result
