"""U-Net with a spatial-aware fusion module (paper III-D), or with the plain convolution of SemSim-."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from ..errors import InputError
from .fusion import ConvFusion, SpatialAwareFusion
from .memory_format import CHANNELS_LAST, dense_gradient, parts

#: Paper IV-B: five stages of 16 to 256 channels; the last entry is the width after the last upsampling.
FEATURES = (16, 32, 64, 128, 256, 16)


class UNet(BasicUNet):
    """MONAI's U-Net, encoder and decoder apart, with no padding where nothing is to be padded.

    MONAI pads before every concatenation, by nothing if the sides divide by 16. That costs a pass over the largest
    maps, forward and backward, and in autocast a conversion to float32 of all that follows.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, features: Sequence[int]) -> None:
        """
        Args:
            spatial_dims: 2 or 3.
            in_channels: channels of the image.
            out_channels: number of classes, background included.
            features: widths of the five stages and of the last upsampling.
        """
        super().__init__(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            features=tuple(features),
            norm="batch",
            upsample="nontrainable",
        )
        # weights, and so all that is computed, with channels last in memory: the faster layout
        self.to(memory_format=CHANNELS_LAST[spatial_dims])  # type: ignore[call-overload]

    def encode(self, image: Tensor) -> list[Tensor]:
        """The five stages of the encoder; stage i has ``1 / 2**i`` of the resolution, i from 0."""
        x0 = self.conv_0(image)
        x1 = self.down_1(x0)
        x2 = self.down_2(x1)
        x3 = self.down_3(x2)
        return [x0, x1, x2, x3, self.down_4(x3)]

    def decode(self, stages: list[Tensor]) -> Tensor:
        """Logits ``(B, K, *spatial)`` from the five stages."""
        x = self.upcat_4.convs(joined(stages[3], self.upcat_4.upsample(stages[4])))
        x = self.upcat_3.convs(joined(stages[2], self.upcat_3.upsample(x)))
        x = self.upcat_2.convs(joined(stages[1], self.upcat_2.upsample(x)))
        x = self.upcat_1.convs(joined(stages[0], self.upcat_1.upsample(x)))
        return self.final_conv(x)

    def forward(self, x: Tensor) -> Tensor:
        """``x: (B, C, *spatial)`` -> logits ``(B, K, *spatial)``."""
        return self.decode(self.encode(x))


def joined(skip: Tensor, upsampled: Tensor) -> Tensor:
    """Maps of the encoder and of the decoder, concatenated; the latter gets a border where a side is odd.

    Args:
        skip: ``(B, C, *spatial)``.
        upsampled: ``(B, D, *spatial)``, sides of ``skip`` or one less.
    """
    if skip.shape[2:] != upsampled.shape[2:]:
        padding: list[int] = []
        for axis in range(skip.ndim - 1, 1, -1):
            padding += [0, skip.shape[axis] - upsampled.shape[axis]]
        upsampled = F.pad(upsampled, padding, "replicate")
    if not torch.jit.is_scripting() and upsampled.requires_grad:
        upsampled = dense_gradient(upsampled)
    return torch.cat([skip, upsampled], dim=1)


class SegmentationNet(nn.Module):
    """The U-Net alone: what inference, export and evaluation need.

    It loads the state of a :class:`SemSimNet` strictly, save for the entries ``fusion.*``, which it drops.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 4,
        features: Sequence[int] = FEATURES,
    ) -> None:
        """Arguments as of :class:`UNet`."""
        super().__init__()
        self.backbone = UNet(spatial_dims, in_channels, out_channels, features)
        self._register_load_state_dict_pre_hook(_drop_fusion)

    def forward(self, image: Tensor) -> Tensor:
        """``image: (B, C, *spatial)`` -> logits ``(B, K, *spatial)``."""
        return self.backbone(image)


def _drop_fusion(state_dict: dict, prefix: str, *_: object) -> None:
    for key in [k for k in state_dict if k.startswith(f"{prefix}fusion.")]:
        del state_dict[key]


@dataclass(frozen=True)
class Streams:
    """Which streams a forward computes what for; a stream that is not named gets nothing beyond the encoder.

    Attributes:
        decode: streams that get logits.
        fuse: streams that get fused features.
        perturb: streams whose encoder features lose channels before the decoder.
    """

    decode: tuple[str, ...] = ()
    fuse: tuple[str, ...] = ()
    perturb: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """Result of a forward over several streams.

    Attributes:
        logits: ``(B, K, *spatial)`` by stream.
        features: f~, ``(B, D, *spatial / 4)``, by stream.
    """

    logits: Mapping[str, Tensor]
    features: Mapping[str, Tensor]


def takes_streams(network: nn.Module) -> bool:
    """Whether a network serves the streams of a step as :class:`SemSimNet` does; others turn images into logits."""
    return "streams" in inspect.signature(network.forward).parameters


def plain_output(network: Callable[[Tensor], Tensor], image: Mapping[str, Tensor], num_classes: int) -> Output:
    """Logits of every stream from a network that turns images into logits: one forward, so one batch-norm pass.

    Args:
        network: ``(B, C, *spatial)`` -> ``(B, K, *spatial)``.
        image: a batch ``(B, C, *spatial)`` for each stream; batch sizes may differ.
        num_classes: K, background included.

    Raises:
        InputError: the network gives something else.
    """
    batch = torch.cat(list(image.values()))
    logits, expected = network(batch), (len(batch), num_classes, *batch.shape[2:])
    if not isinstance(logits, Tensor) or logits.shape != expected:
        received = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"network_def: expected logits {expected} for images {tuple(batch.shape)}, received {received}; see "
            "`A network of your own` in docs/HOWTO.md."
        )
    return Output(dict(zip(image, parts(logits, [len(part) for part in image.values()]))), {})


class SemSimNet(nn.Module):
    """U-Net with fused features f~ at a quarter of the resolution, for training.

    ``network(image)`` gives logits at the cost of the plain U-Net. ``network({"labeled": x_l, ...}, streams=...)``
    serves all streams of a step in one forward, as distributed training needs: their encoders share one batch-norm
    pass, and so do the decoders of those that are decoded and the fusion of those that are fused.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 4,
        features: Sequence[int] = FEATURES,
        *,
        fusion: str = "sfm",
        fusion_channels: int = 128,
        fusion_checkpoint: bool = False,
        feature_dropout: float = 0.5,
    ) -> None:
        """
        Args:
            spatial_dims, in_channels, out_channels, features: as of :class:`UNet`.
            fusion: ``sfm`` (SemSim), ``conv`` (SemSim-: 1x1 convolutions) or ``none`` (no similarity terms).
            fusion_channels: D, channels of f~.
            fusion_checkpoint: compute the tokens of ``sfm`` again in the backward pass instead of keeping them: less
                memory, more time.
            feature_dropout: fraction of the encoder channels dropped in perturbed streams (paper IV-B: 0.5).

        Raises:
            InputError: unknown ``fusion``.
        """
        super().__init__()
        kinds: dict[str, Callable[..., nn.Module]] = {
            "sfm": partial(SpatialAwareFusion, checkpointed=fusion_checkpoint),
            "conv": ConvFusion,
        }
        if fusion not in (*kinds, "none"):
            raise InputError(
                f"fusion: expected {', '.join(kinds)} or none, received {fusion!r}; weights of another kind need the "
                "version that they were trained with."
            )
        self.backbone = UNet(spatial_dims, in_channels, out_channels, features)
        self.fusion: nn.Module | None = None
        if fusion != "none":
            self.fusion = kinds[fusion](spatial_dims, tuple(features[1:4]), fusion_channels)
            self.fusion.to(memory_format=CHANNELS_LAST[spatial_dims])  # type: ignore[call-overload]
        else:
            self._register_load_state_dict_pre_hook(_drop_fusion)
        self.channel_dropout = {2: nn.Dropout2d, 3: nn.Dropout3d}[spatial_dims](feature_dropout)

    def _kept_channels(self, stage: Tensor, parts: Sequence[tuple[int, bool]]) -> Tensor:
        """Factors of channel dropout ``(B, C, 1, ...)`` for parts of a batch, one where a part is not perturbed."""
        ones = [stage.new_ones(number, stage.shape[1], *[1] * (stage.ndim - 2)) for number, _ in parts]
        return torch.cat([self.channel_dropout(x) if perturbed else x for x, (_, perturbed) in zip(ones, parts)])

    def forward(self, image: Tensor | Mapping[str, Tensor], streams: Streams | None = None) -> Tensor | Output:
        """
        Args:
            image: ``(B, C, *spatial)``, or one such batch for each stream; batch sizes may differ.
            streams: what to compute for which stream; needed when ``image`` is a mapping.

        Returns:
            logits ``(B, K, *spatial)`` for a tensor, an :class:`Output` for a mapping.

        Raises:
            ValueError: features asked of a network with ``fusion: none``.
        """
        if isinstance(image, Tensor):
            return self.backbone(image)
        streams = streams or Streams(decode=tuple(image))
        if streams.fuse and self.fusion is None:
            raise ValueError("This network has `fusion: none`; the similarity terms need another.")
        # streams without logits last, so that the decoder's share of a stage is a view
        order = sorted(image, key=lambda name: name not in streams.decode)
        sizes = [image[name].shape[0] for name in order]
        stages = self.backbone.encode(torch.cat([image[name] for name in order]))

        def chosen(maps: Tensor, names: Sequence[str]) -> Tensor:
            """The maps of some streams, in their order."""
            if len(names) == len(order):
                return maps
            if names == order[: len(names)]:  # a view, not a copy
                count = sum(sizes[: len(names)])
                return parts(maps, [count, len(maps) - count])[0]
            by_name = dict(zip(order, parts(maps, sizes)))
            return torch.cat([by_name[name] for name in names])

        def by_stream(maps: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
            return dict(zip(names, parts(maps, [image[name].shape[0] for name in names])))

        logits: dict[str, Tensor] = {}
        if streams.decode:
            names = [name for name in order if name in streams.decode]
            skips = [chosen(stage, names) for stage in stages]
            if streams.perturb:
                perturbed = [(image[name].shape[0], name in streams.perturb) for name in names]
                skips = [skip * self._kept_channels(skip, perturbed) for skip in skips]
            logits = by_stream(self.backbone.decode(skips), names)

        fused: dict[str, Tensor] = {}
        if streams.fuse and self.fusion is not None:
            names = [name for name in order if name in streams.fuse]
            fused = by_stream(self.fusion([chosen(stage, names) for stage in stages[1:4]]), names)
        return Output(logits=logits, features=fused)
