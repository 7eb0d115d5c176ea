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
from monai.transforms.utils import scale_affine
from monai.utils import ensure_tuple_rep
from nibabel.affines import voxel_sizes

from ..errors import InputError
from .datalist import readable_items
from .files import is_picture
from .geometry import file_name, states_grid, vanished
from .label_resampling import on_grid, resampled_label, scaled_positions
from .readers import read_grids
from .sizes import check_dims
from .slice_axis import ANISOTROPIC, MOST_FILES, world_axes
from .smoothing import smoothed

logger = logging.getLogger("semsim")

#: What to do where 3D is asked of the configuration for slices.
OVERLAY = "train in 3D with --config_file \"['configs/train.yaml','configs/volumes.yaml']\""

#: A volume that is not as long as so many voxels of the network, or that has more of them, has another unit than mm.
FEWEST, MOST = 4, 2**33


class VolumeGridd(MapTransform, InvertibleTransform):
    """Turn volumes ``(C, X, Y, Z)`` to right, front, head, and resample them to voxels of one size.

    The grid covers what the stored one covers, so its voxels measure ``spacing`` up to the rounding of their number.
    Oblique volumes keep their axes. Images are smoothed before they are made coarser. A warning names images that state
    no voxel size, and classes of a label that coarser voxels leave nothing of. ``inverse`` returns images to the stored
    grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] | None,
        *,
        mode: Sequence[str] | str = "trilinear",
        class_names: Sequence[str] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        """
        Args:
            keys: images and labels.
            spacing: mm of a voxel from left to right, back to front and feet to head.
            mode: ``trilinear`` for images, ``nearest-exact`` for labels, one for each key. Labels are resampled by a
                vote of the voxels around, see :func:`~scripts.dataio.label_resampling.resampled_label`.
            class_names: for warnings.
            allow_missing_keys: whether items without one of the keys pass.

        Raises:
            InputError: no three positive numbers.
        """
        super().__init__(keys, allow_missing_keys)
        self._told, self.class_names = set[str](), tuple(class_names)
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
            resize = self.resize[key]
            label = resize.mode == "nearest-exact"
            resize.spatial_size = self._size(turned)
            if not label:
                self._tell_unstated(turned)
            # as scikit-image: of half a voxel for each whole one by which voxels become larger
            sigma = [max(0.0, (n / m - 1) / 2) for n, m in zip(turned.shape[1:], resize.spatial_size)]
            if not label:
                result[key] = resize(smoothed(turned.float(), sigma) if any(sigma) else turned)
                continue
            places = [scaled_positions(n, m) for n, m in zip(turned.shape[1:], resize.spatial_size)]
            matrix = scale_affine(turned.shape[1:], resize.spatial_size)
            result[key] = on_grid(turned, resampled_label(turned.as_tensor(), places), turned.affine.numpy() @ matrix)
            if any(sigma):
                self._tell_lost(turned, result[key])
        return result

    def _size(self, turned: MetaTensor) -> tuple[int, ...]:
        """Voxels along each axis of the body that the network sees of a volume ``(C, X, Y, Z)``."""
        shape, stored = turned.shape[1:], voxel_sizes(turned.affine.numpy())
        size = tuple(max(1, round(n * s / wanted)) for n, s, wanted in zip(shape, stored, self.spacing))
        if max(size) < min(FEWEST, *shape) or np.prod(size, dtype=float) > MOST:
            raise InputError(
                f"{file_name(turned)}: by its header voxels measure {_mm(stored)}, so the network would see "
                f"{' x '.join(map(str, size))} voxels of {_mm(self.spacing)}; mend its header, whose unit may not be "
                "mm, or train with another --spacing."
            )
        return size

    def _tell_unstated(self, turned: MetaTensor) -> None:
        """Warn of an image without a voxel size where that matters."""
        affine = turned.affine.numpy()
        unit = np.allclose(voxel_sizes(affine), 1.0, atol=1e-6)
        if unit and not np.allclose(self.spacing, 1.0, atol=0.05) and not states_grid(affine, turned.meta):
            self._tell(
                f"{file_name(turned)}: states no size of its voxels, so they are taken to measure 1 x 1 x 1 mm, and "
                f"resampled to {_mm(self.spacing)}; mend its header if that is not so."
            )

    def _tell_lost(self, stored: MetaTensor, seen: MetaTensor) -> None:
        """Warn of classes of a label that nothing is left of."""
        if lost := vanished(stored, seen, self.class_names):
            self._tell(
                f"{file_name(stored)}: nothing is left of {lost} in voxels of {_mm(self.spacing)}; a --spacing of "
                "smaller voxels keeps it."
            )

    def _tell(self, warning: str) -> None:
        if warning not in self._told:
            self._told.add(warning)
            logger.warning(warning)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.turn.inverse(self.resize[key].inverse(result[key]))
        return result


def _mm(sizes: Sequence[float]) -> str:
    return f"{' x '.join(f'{s:.4g}' for s in sizes)} mm"


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
    if max(spacing) >= ANISOTROPIC * min(spacing):
        logger.warning(
            "Their slices are thick, so 2D may do better: leave out configs/volumes.yaml, in MONAI Label --volumes."
        )
    return spacing


def spacings_of(items: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Voxel sizes along the axes of the body of the volumes of a list, 200 of them at most, evenly spread.

    Those that state none count only where none does.
    """
    found: dict[bool, list[list[float]]] = {True: [], False: []}
    for file, affine, shape in read_grids(items, MOST_FILES):
        if len(shape) == 3 and min(shape) > 1 and not is_picture(file):
            spacing = voxel_sizes(affine)
            sizes = [float(spacing[world_axes(affine).index(axis)]) for axis in range(3)]
            found[states_grid(affine)].append(sizes)
    return found[True] or found[False]


def turned_back(volume: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """A volume in the axes of the body, ``(X, Y, Z)``, as it is stored.

    Args:
        volume: ``(X, Y, Z)``.
        matrix: from stored voxels to those of the volume, ``(4, 4)``; axes may be turned by right angles and scaled.
    """
    axes = np.abs(matrix[:3, :3]).argmax(axis=1)  # stored axis of each axis of the volume
    flips = [axis for axis, stored in enumerate(axes) if matrix[axis, stored] < 0]
    return volume.flip(flips).permute(*np.argsort(axes).tolist())
