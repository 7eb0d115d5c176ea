"""Positions of voxels in space, and labels on the grid of their images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import SpatialResample
from nibabel.affines import voxel_sizes

from ..errors import InputError
from .files import is_picture, is_segmentation

#: What may count where the headers of image and label contradict each other.
TRUST = ("header", "voxels")
#: Units of length, by NIfTI's number of it; mm where it says another or none.
UNITS = {1: "m", 3: "um"}
#: Headers that put the same voxels further apart than so many voxels contradict each other.
APART = 0.5


def file_name(tensor: torch.Tensor, item: Mapping[Any, Any] | None = None) -> str:
    """The file that a tensor was read from, else the case of the item that it belongs to, for messages."""
    meta = tensor.meta if isinstance(tensor, MetaTensor) else {}
    return str(meta.get("filename_or_obj") or (item or {}).get("case") or "(in memory)")


def vanished(before: torch.Tensor, after: torch.Tensor, class_names: Sequence[str]) -> str:
    """Classes of a label that a coarser grid leaves nothing of, for a message; by number where there are no names."""
    lost = sorted(_class_indices(before) - _class_indices(after))
    return ", ".join(repr(class_names[c]) if c < len(class_names) else f"class {c}" for c in lost)


def _class_indices(label: torch.Tensor) -> set[int]:
    """The class indices that a label shows, without negative ones."""
    values = torch.as_tensor(label).flatten() + 1  # faster than torch.unique
    return {c - 1 for c in torch.bincount(values.clamp(min=0).to(torch.int16)).nonzero().flatten().tolist() if c > 0}


def states_grid(affine: Any, meta: Mapping[str, Any] | None = None) -> bool:
    """Whether a file says how its voxels lie in space.

    Args:
        affine: as the reader gives it; the identity is what most make up where a file says nothing.
        meta: what the reader tells besides. A NIfTI file says by two codes of zero that its affine means nothing, and
            nibabel then makes one up from the voxel size. The resolution of a picture is that of its print.
    """
    meta = meta or {}
    codes = [meta[name] for name in ("qform_code", "sform_code") if name in meta]
    if codes and not any(int(code) for code in codes):
        return False
    if is_picture(str(meta.get("filename_or_obj", ""))):
        return False
    matrix = to_affine_nd(3, np.asarray(affine, dtype=float))
    return not np.allclose(matrix, np.eye(4), atol=1e-6)


def unit_of(meta: Mapping[str, Any]) -> str:
    """The unit of sizes and distances, by what the reader of an image tells besides: ``mm``, ``um`` or ``m``."""
    return UNITS.get(int(meta.get("xyzt_units", 0)) % 8, "mm")


def voxels_apart(affine: Any, other: Any, shape: Sequence[int]) -> float:
    """How far apart two headers put the corners of a volume, at most, in voxels of the finest axis.

    Args:
        affine, other: from voxels to mm, ``(4, 4)`` (or smaller for a picture).
        shape: voxels along each axis.
    """
    matrices = [to_affine_nd(3, np.asarray(a, dtype=float)) for a in (affine, other)]
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]) * (*(n - 1 for n in (*shape, 1)[:3]), 1)
    distance = np.linalg.norm(corners @ (matrices[0] - matrices[1]).T, axis=1).max()
    return float(distance / voxel_sizes(matrices[0]).min())


def contradict(affine: Any, other: Any, shape: Sequence[int]) -> bool:
    """Whether two headers both state a place in space, and not the same. Arguments as of :func:`voxels_apart`."""
    return states_grid(affine) and states_grid(other) and voxels_apart(affine, other, shape) > APART


def on_image_grid(label: MetaTensor, image: MetaTensor, trust: str | None = None) -> MetaTensor:
    """A label on the grid of its image, of the same shape.

    One that does not state its grid, or whose image does not, lies on its image voxel by voxel. One that was stored in
    another orientation is turned to its image's, one of a part of the image is filled up. Pictures and volumes of one
    slice are no exception.

    Args:
        label: ``(1, *spatial)``, two or three axes.
        image: ``(C, *spatial)``, two or three axes.
        trust: what counts where the headers put the same voxels in different places: ``header`` or ``voxels``, which
            then ignores the headers of all labels; ``None``: such a label is refused.

    Raises:
        InputError: by size or place it does not belong on its image, or part of its foreground would be lost.
    """
    if trust not in (None, *TRUST):
        raise InputError(f"trust: expected header, voxels or None, received {trust!r}.")
    array = np.asarray(label[0].cpu())
    array = array[..., None] if array.ndim == 2 else array
    shape = (*image.shape[1:], 1)[:3]
    target, source = (to_affine_nd(3, t.affine.cpu().numpy().astype(float)) for t in (image, label))
    if trust == "voxels" or not (states_grid(source, label.meta) and states_grid(target, image.meta)):
        if array.shape != shape:
            raise InputError(_other_size(label, image))
    else:
        array, source = turned(array, source, target)
        if array.shape != shape or voxels_apart(target, source, shape) > APART:
            array = _placed(label, image, array, source, target, trust)
    result = array if image.ndim == 4 else array[..., 0]
    meta = {key: value for key, value in label.meta.items() if key != "affine"}
    return MetaTensor(torch.as_tensor(np.ascontiguousarray(result))[None], affine=image.affine, meta=meta)


def turned(array: np.ndarray, affine: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume ``(X, Y, Z)`` or ``(X, Y, Z, C)`` with its axes in order and direction of another's, and its affine."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(like))
    if np.isnan(turn).any():
        return array, affine
    return nib.apply_orientation(array, turn), affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


def _placed(
    label: MetaTensor, image: MetaTensor, array: np.ndarray, source: np.ndarray, target: np.ndarray, trust: str | None
) -> np.ndarray:
    """A label by its header, where nothing contradicts it or ``trust`` says so; ``(X, Y, Z)`` of the image."""
    shape = (*image.shape[1:], 1)[:3]
    to_image = np.linalg.inv(target) @ source
    offset = np.round(to_image[:3, 3]).astype(int)
    # one that begins where its image does may have lost its origin when it was cut, unless its format does not let it
    name = file_name(label)
    sure = trust == "header" or name.lower().endswith(".seg.nrrd") or is_segmentation(name)
    cut = array.shape != shape and (offset.any() or sure)
    part = cut and voxels_apart(np.eye(4), to_image - _shift(offset), array.shape) < 0.1
    if not part and trust is None and (array.any() or array.shape != shape):
        raise InputError(_contradiction(label, image, array, source, target))
    here = np.argwhere(array) @ to_image[:3, :3].T + to_image[:3, 3]
    lost = int((~((here > -1) & (here < np.array(shape))).all(axis=1)).sum())
    result = np.zeros(shape, array.dtype)
    if part:
        ours = tuple(slice(max(o, 0), max(o + n, 0)) for o, n in zip(offset, array.shape))
        theirs = tuple(slice(max(-o, 0), max(m - o, 0)) for o, m in zip(offset, shape))
        result[ours] = array[theirs]
    elif array.any():
        resample = SpatialResample(mode="nearest", padding_mode="zeros")
        volume = MetaTensor(torch.as_tensor(np.ascontiguousarray(array))[None], affine=torch.as_tensor(source))
        result = np.asarray(resample(volume, dst_affine=torch.as_tensor(target), spatial_size=shape)[0])
    gone = [f"{value:g}" for value in np.setdiff1d(np.unique(array), np.unique(result)) if value]
    if lost or gone:
        raise InputError(
            f"{file_name(label)}: by its header {lost} of its {len(here)} foreground voxels lie outside of its image "
            f"{_short(image)}{f', and of the value {gone[0]} nothing is left' if gone else ''} "
            f"({compared(source, target)}); "
            + ("mend its header, or pair it with its image." if array.shape != shape else "give --trust voxels.")
        )
    return result


def _shift(offset: np.ndarray) -> np.ndarray:
    matrix = np.zeros((4, 4))
    matrix[:3, 3] = offset
    return matrix


def _short(image: MetaTensor) -> str:
    return os.path.basename(file_name(image))


def _grid(affine: np.ndarray) -> str:
    spacing = " x ".join(f"{s:.4g}" for s in voxel_sizes(affine))
    return f"{spacing} mm from ({', '.join(f'{o:.4g}' for o in affine[:3, 3])})"


def compared(source: np.ndarray, target: np.ndarray) -> str:
    """Two grids, a label's in the orientation of its image's, and the angle between them if there is one."""
    axes = [m[:3, :3] / voxel_sizes(m) for m in (source, target)]
    angle = math.degrees(math.acos(float(np.clip((axes[0] * axes[1]).sum(axis=0).min(), -1, 1))))
    turned = f", turned by {angle:.3g} degrees" if angle > 0.05 else ""
    return f"{_grid(source)} against {_grid(target)}{turned}"


def _contradiction(
    label: MetaTensor, image: MetaTensor, array: np.ndarray, source: np.ndarray, target: np.ndarray
) -> str:
    shape = (*image.shape[1:], 1)[:3]
    to_image = np.linalg.inv(target) @ source
    here = np.argwhere(array) @ to_image[:3, :3].T + to_image[:3, 3]
    inside = int(((here > -0.5) & (here < np.array(shape) - 0.5)).all(axis=1).sum())
    numbers = f"{compared(source, target)}; of its {len(here)} foreground voxels {inside} lie in the image"
    if array.shape != shape:
        return (
            f"{file_name(label)}: label has shape {tuple(label.shape[1:])}, its image {_short(image)} has "
            f"{tuple(image.shape[1:])}, by the headers {numbers}; resample the label to the image's grid, or let its "
            "header place it: --trust header."
        )
    return (
        f"{file_name(label)}: has as many voxels as its image {_short(image)}, but lies elsewhere by its header: "
        f"{numbers}. Say which is right: --trust header, or --trust voxels to lay it on its image voxel by voxel."
    )


def _other_size(label: MetaTensor, image: MetaTensor) -> str:
    """Why a label without a place in space cannot lie on its image, and what to do."""
    sizes = [tuple(t.shape[1:]) for t in (label, image)]
    if sorted(sizes[0]) == sorted(sizes[1]):
        remedy = "the same sides in another order: turn the label as its image is stored"
    elif len(sizes[0]) != len(sizes[1]):
        remedy = "one is a plane and one a volume: pair it with its own image"
    else:
        remedy = (
            "a label that says no place in space needs the size of its image: pair it with its own image, or resample "
            "the label to the image's grid"
        )
    return f"{file_name(label)}: label has shape {sizes[0]}, its image {_short(image)} has {sizes[1]}; {remedy}."
