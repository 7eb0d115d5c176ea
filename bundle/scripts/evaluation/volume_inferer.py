"""Prediction in 3D: the class of every voxel of a file from overlapping patches, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import Orientation
from monai.utils import ensure_tuple_rep
from torch import Tensor

from ..dataio.sizes import check_dims, patch_size
from ..dataio.volume_grid import turned_back
from ..errors import InputError
from ..precision import precision
from .inferer import InPrecision, SliceLabelInferer, flip_axes, mean_over_flips
from .stored_grid import applied

#: Voxels of patches that are predicted at once in the place of one slice. In float32 on a CPU, torch convolves the
#: small maps of a single patch several times as slowly as those of two.
VOXELS = 2**15


def label_inferer(
    spatial_dims: int,
    spatial_size: Sequence[int] | int,
    slice_batch: int,
    *,
    overlap: float = 0.25,
    amp: bool | str = "auto",
    flip_tta: bool = False,
) -> Inferer:
    """The inferer of a network: of slices or of volumes.

    Args:
        spatial_dims: 2 or 3.
        spatial_size: what the network sees: pixels of a slice, or voxels of a patch.
        slice_batch: slices predicted at once; in 3D as many patches as have that many times 32,768 voxels, or one.
        overlap: of neighbouring patches, as a share of their sides.
        amp: what the network computes in, see :func:`~scripts.precision.precision`.
        flip_tta: whether probabilities are the mean over the flips of a slice or patch.

    Raises:
        InputError: another number of axes, a size that is not one of a patch, or no slice at once.
    """
    if type(slice_batch) is not int or slice_batch < 1:
        raise InputError(f"slice_batch: expected a whole number of 1 or more, received {slice_batch!r}; change it.")
    if check_dims(spatial_dims) == 2:
        size = ensure_tuple_rep(spatial_size, 2)
        return SliceLabelInferer(roi_size=size, sw_batch_size=slice_batch, spatial_dim=2, amp=amp, flip_tta=flip_tta)
    size = patch_size(spatial_size)
    batch = max(1, slice_batch * VOXELS // math.prod(size))
    return VolumeLabelInferer(size, batch, overlap=overlap, amp=amp, flip_tta=flip_tta)


class VolumeLabelInferer(InPrecision, SlidingWindowInferer):
    """Classes of the voxels of a file from patches that overlap, each weighted by a Gaussian around its middle.

    The patches of a slab, a layer as thick as a patch is high, are MONAI's sliding window. Slabs overlap likewise, from
    the feet to the head, and what no further slab reaches is finished: its probabilities go to the grid of the file,
    plane by plane, and only the most probable class is kept. So beside the volume and one byte for each voxel of the
    file there are the logits of a single slab, however long the volume. ``postprocessing`` needs
    :class:`~scripts.evaluation.stored_grid.AsStoredd`.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        sw_batch_size: int = 1,
        *,
        overlap: float = 0.25,
        amp: bool | str = "auto",
        flip_tta: bool | Sequence[int] = False,
    ) -> None:
        """
        Args:
            roi_size: voxels of a patch.
            sw_batch_size: patches predicted at once.
            overlap: of neighbouring patches, as a share of their sides, in [0, 1).
            amp: what the network computes in, see :func:`~scripts.precision.precision`.
            flip_tta: whether probabilities are the mean over the eight flips of a patch, or the axes of fewer.

        Raises:
            InputError: another ``amp``, ``flip_tta`` or ``overlap``.
        """
        if not 0 <= overlap < 1:
            raise InputError(f"overlap: a share of a patch's sides, expected 0 to below 1, received {overlap}.")
        super().__init__(tuple(roi_size), sw_batch_size, overlap, mode="gaussian")
        self.height, self.amp, self.flip_tta = roi_size[2], amp, flip_axes(flip_tta, 3)
        precision(amp, "cpu")

    def __call__(  # type: ignore[override]
        self, inputs: MetaTensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """
        Args:
            inputs: a volume that ``VolumeGridd`` has prepared, ``(1, C, X, Y, Z)``.
            network: ``(B, C, X, Y, Z)`` -> logits ``(B, K, X, Y, Z)``.
            args, kwargs: for the network.

        Returns:
            class indices ``(1, 1, X, Y, Z)`` as the voxels are stored in the file, unsigned bytes.

        Raises:
            ValueError: another volume, or several.
        """
        if inputs.shape[0] != 1:
            raise ValueError(f"Expected one volume at a time, received {inputs.shape[0]}; set batch_size to 1.")
        step = applied(inputs, Orientation.__name__)
        stored = np.asarray(step["extra_info"]["original_affine"], dtype=float).reshape(4, 4)
        affine = np.asarray(inputs.affine.cpu(), dtype=float).reshape(4, 4)
        matrix = np.linalg.solve(affine, stored)
        axes = np.abs(matrix[:3, :3]).argmax(axis=1)
        x, y, z = (int(step["orig_size"][axis]) for axis in axes)  # of the file, in the axes of the body
        labels = torch.empty((x, y, z), dtype=torch.uint8, device=inputs.device)
        planes = self._planes(inputs.as_tensor(), network, *args, **kwargs)
        for k, p in enumerate(_resampled(planes, inputs.shape[-1], z)):
            fine = F.interpolate(p[None], size=(x, y), mode="bilinear", align_corners=False)[0]
            labels[..., k] = fine.max(dim=0).indices
        return turned_back(labels, matrix)[None, None]

    def logits(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Log probabilities ``(1, K, X, Y, Z)`` of a whole volume ``(1, C, X, Y, Z)``, in memory for all of them."""
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return torch.stack(list(self._planes(volume, network, *args, **kwargs)), dim=-1)[None].log()

    def _planes(self, volume: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        """Probabilities of one plane of the grid after the other, ``(K, X, Y)`` each, from the feet to the head."""
        network = self.prepared(network, volume.device)
        depth = volume.shape[-1]
        height = min(self.height, depth)
        interval = max(int(height * (1 - self.overlap)), 1)  # type: ignore[operator]
        starts = [window[0].start for window in dense_patch_slices((depth,), (height,), (interval,))]
        weight = compute_importance_map((height,), mode="gaussian", device=volume.device)
        rest: Tensor | None = None  # sums of the planes that were begun, from the start of a slab on
        total = weight.new_zeros(0)
        for start, following in zip(starts, [*starts[1:], depth]):
            slab: Any = super().__call__(
                volume[..., start : start + height], lambda x: self._logits(network, x, *args, **kwargs)
            )
            sums, weights = slab[0] * weight, weight.clone()  # (K, X, Y, height)
            if rest is not None:
                sums[..., : rest.shape[-1]] += rest
                weights[: len(total)] += total
            done = following - start
            for k in range(done):
                yield (sums[..., k] / weights[k]).softmax(dim=0)
            rest, total = sums[..., done:].clone(), weights[done:].clone()

    def _logits(self, network: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Patches ``(B, C, X, Y, Z)`` through the network, in the precision that ``amp`` means on its device."""

        def once(patch: Tensor) -> Tensor:
            return precision(self.amp, x.device).predicted(lambda: [network(patch, *args, **kwargs)])[0]

        return mean_over_flips(once, x, self.flip_tta)


def _resampled(planes: Iterator[Tensor], number: int, wanted: int) -> Iterator[Tensor]:
    """``number`` planes that come one after the other, linearly interpolated to ``wanted`` of the same extent."""
    above, last = next(planes), 0  # the plane of index `last`, and the one before it
    below = above
    for k in range(wanted):
        place = min(max((k + 0.5) * number / wanted - 0.5, 0.0), number - 1.0)
        low = int(place)
        while last < min(low + 1, number - 1):
            below, above, last = above, next(planes), last + 1
        share = place - low
        yield above if low == last else torch.lerp(below, above, share)
