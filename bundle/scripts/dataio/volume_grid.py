"""The grid of a 3D network: volumes turned to the axes of the body, with voxels of one size."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Orientation, Resize
from monai.utils import ensure_tuple_rep

from ..errors import InputError
from .datalist import readable_items
from .files import evenly, image_files, is_picture
from .geometry import file_name
from .readers import read_grid
from .sizes import check_dims
from .slice_axis import MOST_FILES, world_axes
from .smoothing import smoothed

logger = logging.getLogger("semsim")

#: What to do where 3D is asked of the configuration for slices.
OVERLAY = "train in 3D with --config_file \"['configs/train.yaml','configs/volumes.yaml']\""


class VolumeGridd(MapTransform, InvertibleTransform):
    """Turn volumes ``(C, X, Y, Z)`` to right, front, head, and resample them to voxels of one size.

    The grid covers what the stored one covers, so its voxels measure ``spacing`` up to the rounding of their number.
    Oblique volumes keep their axes. Images are smoothed before they are made coarser. ``inverse`` returns to the stored
    grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] | None,
        *,
        mode: Sequence[str] | str = "trilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        """
        Args:
            keys: images and labels.
            spacing: mm of a voxel from left to right, back to front and feet to head.
            mode: ``trilinear`` for images, ``nearest-exact`` for labels, one for each key.
            allow_missing_keys: whether items without one of the keys pass.

        Raises:
            InputError: no three positive numbers.
        """
        super().__init__(keys, allow_missing_keys)
        self.spacing = checked_spacing(spacing)
        self.turn = Orientation(axcodes="RAS", labels=None)
        self.resize = {
            key: Resize((1, 1, 1), mode=m) for key, m in zip(self.keys, ensure_tuple_rep(mode, len(self.keys)))
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            volume = result[key]
            if volume.ndim != 4 or min(volume.shape[1:]) < 2:
                raise InputError(
                    f"{file_name(volume)}: expected a volume of several slices, as 3D needs it, received "
                    f"{' x '.join(map(str, volume.shape[1:]))} voxels; take it off the list, or train on slices "
                    "(configs/train.yaml alone)."
                )
            turned: Any = self.turn(volume if isinstance(volume, MetaTensor) else MetaTensor(volume))
            stored = np.linalg.norm(turned.affine[:3, :3].numpy(), axis=0)
            resize = self.resize[key]
            resize.spatial_size = tuple(
                max(1, round(n * s / wanted)) for n, s, wanted in zip(turned.shape[1:], stored, self.spacing)
            )
            # as scikit-image: of half a voxel for each whole one by which voxels become larger
            sigma = [max(0.0, (n / m - 1) / 2) for n, m in zip(turned.shape[1:], resize.spatial_size)]
            if any(sigma) and resize.mode != "nearest-exact":
                turned = smoothed(turned.float(), sigma)
            result[key] = resize(turned)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.turn.inverse(self.resize[key].inverse(result[key]))
        return result


def checked_spacing(given: Any) -> list[float]:
    """Three positive numbers.

    Raises:
        InputError: anything else.
    """
    try:
        spacing = [float(value) for value in given]
    except (TypeError, ValueError):
        spacing = []
    if len(spacing) != 3 or not all(0 < value < np.inf for value in spacing):
        raise InputError(
            f'spacing: expected auto or three sizes of a voxel in mm, --spacing "[1.5,1.5,2]" say, received {given!r}; '
            f"{OVERLAY}."
        )
    return spacing


def voxel_spacing(
    given: Sequence[float] | str | None,
    spatial_dims: int,
    datalist: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    **options: Any,
) -> list[float] | None:
    """Voxels of a 3D network: as given, or the median of the data set.

    Args:
        given: mm from left to right, back to front and feet to head; or ``auto``.
        spatial_dims: of the network, 2 or 3.
        datalist: JSON file, whose lists ``training`` and ``unlabeled`` count.
        dataset_dir: folder that its paths are relative to.
        options: of :func:`~scripts.dataio.datalist.read_datalist`.

    Returns:
        three sizes in mm; ``None`` in 2D.

    Raises:
        InputError: a spacing in 2D, or in 3D neither three numbers nor volumes to take them from.
    """
    if check_dims(spatial_dims) == 2:
        if given is not None:
            raise InputError(f"spacing {given}: is of 3D, and spatial_dims is 2; leave it out, or {OVERLAY}.")
        return None
    if given != "auto":
        return checked_spacing(given)
    spacing = median_spacing(readable_items(datalist, dataset_dir, **options))
    if spacing is None:
        raise InputError(
            f"{datalist}: expected volumes to take the size of a voxel from, found none in `training` and `unlabeled`; "
            'give --spacing "[1.5,1.5,2]", say.'
        )
    return spacing


def median_spacing(items: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Median voxel in mm of the volumes of a list, along the axes of the body; ``None`` where it has no volumes."""
    found = spacings_of(items)
    if not found:
        return None
    spacing = [float(f"{value:.4g}") for value in np.median(found, axis=0)]
    logger.info(f"Volumes are resampled to {' x '.join(f'{s:g}' for s in spacing)} mm, the median of the data set.")
    return spacing


def spacings_of(items: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Voxel sizes along the axes of the body of the volumes of a list, 200 of them at most, evenly spread."""
    found = []
    for item in evenly(items, MOST_FILES):
        file = image_files(item)[0]
        try:
            affine, shape = read_grid(file)
        except Exception as error:  # whoever reads it next names it
            logger.debug(f"{file}: {error}")
            continue
        if len(shape) == 3 and min(shape) > 1 and not is_picture(file):
            spacing = np.linalg.norm(affine[:3, :3], axis=0)
            found.append([float(spacing[world_axes(affine).index(axis)]) for axis in range(3)])
    return found


def turned_back(volume: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """A volume in the axes of the body, ``(X, Y, Z)``, as it is stored.

    Args:
        volume: ``(X, Y, Z)``.
        matrix: from stored voxels to those of the volume, ``(4, 4)``; axes may be turned by right angles and scaled.
    """
    axes = np.abs(matrix[:3, :3]).argmax(axis=1)  # stored axis of each axis of the volume
    flips = [axis for axis, stored in enumerate(axes) if matrix[axis, stored] < 0]
    return volume.flip(flips).permute(*np.argsort(axes).tolist())
