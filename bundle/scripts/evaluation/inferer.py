"""Prediction slice by slice: the class of every voxel of a file, in memory that does not grow with the classes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from monai.networks.blocks import Convolution
from monai.networks.nets import BasicUNet
from monai.transforms import Compose, RandAxisFlipd, RandFlipd
from monai.utils import ensure_tuple
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import InputError
from ..precision import Precision, precision
from .stored_grid import StoredGrid

logger = logging.getLogger("semsim")


class InFloat32(nn.Module):
    """A part of a network that computes in float32 whatever the rest does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.module(x.float())


def for_mixed_precision(network: Any) -> Any:
    """A copy of a network that loses less where it computes in half precision, and is faster.

    Every map that is written in half precision is rounded, so batch norm is made part of the convolutions before it;
    and the level of a U-Net at full resolution, where the image comes in and edges are drawn, stays in float32. Of
    the foreground of ACDC 0.1 % then get another label than in float32, without this 0.3 %.

    Args:
        network: in evaluation mode; one that is trained, or that is not of MONAI's blocks, comes back as it is.
    """
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if not isinstance(network, nn.Module) or isinstance(network, torch.jit.ScriptModule) or network.training:
        return network
    network = copy.deepcopy(network)
    blocks: list[Any] = [m for m in network.modules() if isinstance(m, Convolution)]
    unets: list[Any] = [m for m in network.modules() if isinstance(m, BasicUNet)]
    for block in blocks:
        # what follows the convolution at prediction, in the order of the block
        steps = [part for part in getattr(block, "adn", nn.Module()).children() if not isinstance(part, _DropoutNd)]
        norm = steps[0] if steps else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and not block.is_transposed:
            block.conv = fuse_conv_bn_eval(block.conv, norm)
            del block.adn.N
    for unet in unets:
        unet.conv_0, unet.final_conv = InFloat32(unet.conv_0), InFloat32(unet.final_conv)
        unet.upcat_1.upsample, unet.upcat_1.convs = InFloat32(unet.upcat_1.upsample), InFloat32(unet.upcat_1.convs)
    return network


class InPrecision:
    """What inferers share: the network as it computes on a device.

    Attributes:
        amp: what the network computes in, see :func:`~scripts.precision.precision`.
        flip_tta: whether probabilities are the mean over the flips of what the network sees, or the axes of those.
    """

    amp: bool | str
    flip_tta: bool | Sequence[int]
    _told: Precision | None = None

    def prepared(self, network: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
        """The network as it computes on a device; says once in what precision."""
        chosen = precision(self.amp, device)
        if chosen != self._told:
            logger.info(f"Prediction in {chosen}.")
            self._told = chosen
        return for_mixed_precision(network) if chosen.mixed else network


def flip_axes(flip_tta: bool | Sequence[int], dims: int) -> list[int]:
    """Axes along which a prediction is flipped: all, none, or those given.

    Raises:
        InputError: other than true, false or a list of axes from 0 to ``dims`` - 1.
    """
    if isinstance(flip_tta, bool):
        return list(range(dims)) if flip_tta else []
    listed = isinstance(flip_tta, list | tuple)  # a number alone, 0, may mean an axis or off
    if not listed or not all(type(axis) is int and 0 <= axis < dims for axis in flip_tta):
        raise InputError(
            f"flip_tta: expected True, False or a list of axes from 0 to {dims - 1}, received {flip_tta!r}."
        )
    return sorted({*flip_tta})


def mean_over_flips(logits: Callable[[Tensor], Tensor], x: Tensor, flip_tta: bool | Sequence[int]) -> Tensor:
    """Logits of ``x: (B, C, *spatial)``, whose softmax is the mean over the flips.

    Args:
        logits: of the network, ``(B, K, *spatial)``, float32.
        x: slices or patches.
        flip_tta: see :func:`flip_axes`.
    """
    learnt = [2 + axis for axis in flip_axes(flip_tta, x.ndim - 2)]
    if not learnt:
        return logits(x)
    flips = [axes for number in range(len(learnt) + 1) for axes in combinations(learnt, number)]
    total: Any = 0
    for axes in flips:
        total = total + logits(x.flip(axes)).softmax(dim=1).flip(axes)
    # a probability may be 0, and overlapping patches add up
    return (total / len(flips)).clamp(min=torch.finfo(total.dtype).tiny).log()


def flips_learnt(transforms: Any) -> bool | list[int]:
    """Axes along which an augmentation flips slices, for a network knows the flips that it has seen.

    Args:
        transforms: of slices, a transform or a list of them; those in a ``OneOf`` or ``SomeOf`` do not count.

    Returns:
        true for both axes, false for none, else the one; see :func:`flip_axes`.
    """
    axes: set[int] = set()
    for transform in _one_by_one(transforms):
        if not isinstance(transform, RandFlipd | RandAxisFlipd) or not transform.prob or "image" not in transform.keys:
            continue
        if isinstance(transform, RandAxisFlipd):
            axes |= {0, 1}
        elif len(axis := ensure_tuple(transform.flipper.spatial_axis)) == 1 and axis[0] is not None:  # one at a time
            axes |= {axis[0] % 2}
    return len(axes) == 2 if len(axes) != 1 else [*axes]


def _one_by_one(transforms: Any) -> Iterator[Any]:
    for transform in () if transforms is None else ensure_tuple(transforms):
        if type(transform) is Compose:  # not a subclass of it, which applies some of them
            yield from _one_by_one(transform.transforms)
        else:
            yield transform


class SliceLabelInferer(InPrecision, SliceInferer):
    """Classes of the voxels of a file: a few slices at a time through the network and back to the file's own pixels.

    Probabilities are resampled to the file's grid before the most probable class is taken, so that edges are those of a
    prediction of the whole volume; but they exist for one slice of the file at a time. Slices are never resampled
    across, see :class:`~scripts.dataio.transforms.SliceGrid`, so nothing is lost. ``postprocessing`` needs
    :class:`AsStoredd`.
    """

    def __init__(
        self, *args: Any, amp: bool | str = "auto", flip_tta: bool | Sequence[int] = False, **kwargs: Any
    ) -> None:
        """
        Args:
            args, kwargs: as in MONAI's ``SliceInferer``.
            amp: what the network computes in, see :func:`~scripts.precision.precision`.
            flip_tta: whether probabilities are the mean over the four flips of a slice, or the axes of fewer.

        Raises:
            InputError: another ``amp`` or ``flip_tta``.
        """
        super().__init__(*args, **kwargs)
        self.amp, self.flip_tta = amp, flip_axes(flip_tta, 2)
        precision(amp, "cpu")

    def __call__(  # type: ignore[override]
        self, inputs: MetaTensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """
        Args:
            inputs: a volume that ``SliceGridd`` has prepared, ``(1, C, H, W, slices)``.
            network: ``(B, C, H, W)`` -> logits ``(B, K, H, W)``.
            args, kwargs: for the network.

        Returns:
            class indices ``(1, 1, X, Y, Z)`` as the voxels are stored in the file, unsigned bytes.

        Raises:
            ValueError: another volume, or several.
        """
        if inputs.shape[0] != 1:
            raise ValueError(f"Expected one volume at a time, received {inputs.shape[0]}; set batch_size to 1.")
        grid, volume, network = StoredGrid.of(inputs), inputs.as_tensor(), self.prepared(network, inputs.device)
        sampling = grid.sampling((volume.shape[2], volume.shape[3]), volume.device)
        size, number = sampling.shape[1:3], volume.shape[4]
        labels = torch.empty((number, *size), dtype=torch.uint8, device=volume.device)
        for start in range(0, number, self.sw_batch_size):
            block = volume[..., start : start + self.sw_batch_size]
            logits: Any = super().__call__(block, network, *args, **kwargs)
            logits = logits[0].movedim(-1, 0)  # (slices, K, H, W)
            for k, p in enumerate(logits.contiguous().softmax(dim=1), start):
                stored_p = F.grid_sample(p[None], sampling, padding_mode="zeros", align_corners=False)[0]
                labels[k] = stored_p.max(dim=0).indices  # ten times as fast as argmax
        return grid.stored(labels)[None, None]

    def logits(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits ``(B, K, H, W, slices)`` of volumes ``(B, C, H, W, slices)``, float32: MONAI's ``SliceInferer``."""
        network = self.prepared(network, inputs.device)
        return super().__call__(inputs, network, *args, **kwargs)  # type: ignore[return-value]

    def network_wrapper(  # type: ignore[override]
        self, network: Callable[..., Tensor], x: Tensor, condition: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Slices ``(B, C, H, W, 1)`` through the network, in the precision that ``amp`` means on its device."""

        def logits(flipped: Tensor) -> Tensor:
            slices: Any = partial(super(SliceLabelInferer, self).network_wrapper, network, flipped, condition)
            return precision(self.amp, x.device).predicted(lambda: [slices(*args, **kwargs)])[0]

        return mean_over_flips(logits, x, self.flip_tta)
