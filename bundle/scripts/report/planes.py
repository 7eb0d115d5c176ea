"""Volumes as slices that one looks at: turned, chosen, cropped around their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from nibabel.affines import voxel_sizes
from torch import Tensor

from ..dataio.files import evenly
from ..dataio.geometry import states_grid
from ..dataio.slice_axis import DIRECTIONS, stored_axis

#: The plane across a direction of the body.
PLANES = {"S": "axial", "A": "coronal", "R": "sagittal"}


@dataclass(frozen=True)
class Planes:
    """An image and labels of it as slices to be shown.

    Attributes:
        image: ``(rows, columns, slices)``, or ``(rows, columns, slices, 3)`` for colour, in [0, 1].
        labels: class indices ``(rows, columns, slices)`` by name.
        aspect: height of a pixel divided by its width.
        numbers: index of each slice, as the file stores it.
        plane: axial, coronal or sagittal, if that was asked for; else empty.
    """

    image: np.ndarray
    labels: Mapping[str, np.ndarray]
    aspect: float
    numbers: np.ndarray
    plane: str = ""


def as_planes(
    image: MetaTensor, labels: Mapping[str, Tensor], *, picture: bool = False, slice_axis: str | int | None = None
) -> Planes:
    """Turn a volume as it is stored into slices as one looks at them.

    Volumes are shown with the patient's right on the left and the front (or the head) on top, where the file says which
    is which; pictures as they are.

    Args:
        image: ``(C, *spatial)``, two or three axes.
        labels: class indices ``(1, *spatial)`` on its grid, by name.
        picture: whether the rows of the file run downwards, as in PNG and JPG.
        slice_axis: what slices are stacked along, see :func:`stored_axis`; ``None``: the coarsest axis.
    """
    affine = np.asarray(image.affine.cpu())
    tensors: dict[str, Any] = {"image": image}
    tensors |= {
        name: MetaTensor(torch.tensor(np.asarray(label.cpu())), affine=image.affine) for name, label in labels.items()
    }
    flat = image.ndim == 3
    spacing = voxel_sizes(affine)
    axis = 2 if flat else stored_axis(affine, image.shape[1:], slice_axis, picture=picture)
    flipped = False
    if not flat and states_grid(affine):
        orient = Orientation(axcodes="LAS", labels=None)
        tensors = {name: orient(tensor) for name, tensor in tensors.items()}
        world, direction = nib.io_orientation(affine)[axis]
        axis, flipped = int(world), bool(direction * (-1 if world == 0 else 1) < 0)
        spacing = voxel_sizes(np.asarray(tensors["image"].affine.cpu()))
    arrays = {name: np.asarray(tensor.cpu())[..., None] if flat else np.asarray(tensor.cpu())
              for name, tensor in tensors.items()}  # fmt: skip

    def shown(array: np.ndarray) -> np.ndarray:
        # (X, Y, slices) -> rows from top to bottom, columns from left to right
        array = np.moveaxis(array, axis, -1).swapaxes(0, 1)
        return array if picture else array[::-1]

    channels = np.stack([shown(channel) for channel in arrays["image"]], axis=-1).astype(np.float32)
    colour = channels.shape[-1] == 3
    values = channels if colour else channels[..., 0]
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-6), posinf=1.0)
    numbers = np.arange(scaled.shape[2])
    plane = [float(spacing[a]) for a in range(3) if a != axis]
    return Planes(
        image=scaled.clip(0, 1),
        labels={name: shown(arrays[name][0]).round().astype(int) for name in labels},
        aspect=plane[1] / plane[0],
        numbers=numbers[::-1] if flipped else numbers,
        plane="" if picture else PLANES.get(str(slice_axis), ""),
    )


def as_axes(slice_axis: Any, *, picture: bool = False) -> list[Any]:
    """``"S,A,R"`` or a list -> its entries, one row of slices each; one axis or ``None`` -> itself alone.

    A stack of pictures says nothing of the body: several directions are its stored axes, from its pages on.
    """
    if isinstance(slice_axis, str):
        slice_axis = [name.strip() for name in slice_axis.split(",")]
    axes = list(slice_axis) if isinstance(slice_axis, (list, tuple)) else [slice_axis]
    return [DIRECTIONS.get(axis, axis) for axis in axes] if picture and len(axes) > 1 else axes


def choose_slices(planes: Planes, number: int) -> np.ndarray:
    """Positions of ``number`` slices, evenly spaced among those where a label shows anything."""
    filled = np.flatnonzero(sum((a > 0).any(axis=(0, 1)).astype(int) for a in planes.labels.values()))
    filled = filled if len(filled) else np.arange(planes.image.shape[2])
    return np.array(evenly(filled, number))  # type: ignore[arg-type]


def foreground_window(planes: Planes, *, margin: float = 0.5) -> tuple[tuple[float, float], tuple[float, float]]:
    """Rows and columns, first and last, around all that the labels show: with ``margin`` of it on either side."""
    shown = np.any([a > 0 for a in planes.labels.values()], axis=0).any(axis=2)
    window = []
    for axis, length in enumerate(shown.shape):
        inside = np.flatnonzero(shown.any(axis=1 - axis))
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (0, length)
        room = max(margin * (last - first), 0.1 * length)
        window.append((max(first - room, 0.0) - 0.5, min(last + room, float(length)) - 0.5))
    return window[0], window[1]
