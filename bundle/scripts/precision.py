"""Mixed precision: one rule for the precision of training, planning, prediction and evaluation on a device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor

from .errors import InputError

logger = logging.getLogger("semsim")


@dataclass(frozen=True)
class Precision:
    """What a run computes in.

    Attributes:
        device_type: ``cpu``, ``cuda``, ...
        dtype: of products and convolutions; losses, weights and running statistics are float32 in any case.
        reason: why, for the log.
    """

    device_type: str
    dtype: torch.dtype
    reason: str

    @property
    def mixed(self) -> bool:
        """Whether anything is computed in less than float32."""
        return self.dtype != torch.float32

    @property
    def scaled(self) -> bool:
        """Whether the loss needs a scaler: float16 has too few exponents for gradients."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager:
        """Context in which a network computes in this precision."""
        # without mixing a dtype is given all the same: the default of a CPU warns of float32
        dtype = self.dtype if self.mixed else torch.bfloat16
        return torch.autocast(self.device_type, dtype=dtype, enabled=self.mixed)

    def predicted(self, network: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        """Maps that a network predicts in this precision, as float32.

        Where they are not finite in less than float32, they are computed anew in it: float16 ends at 65,504.

        Args:
            network: gives maps ``(B, C, *spatial)``.

        Raises:
            InputError: some are NaN, or infinite so that they stand for no probabilities, in float32 as well: of such
                logits, every voxel would be of the class 0.
        """
        with self.autocast():
            maps = [x.float() for x in network()]
        if all(x.amax(dim=1).isfinite().all() for x in maps):  # minus infinity is a probability of 0
            return maps
        if self.mixed:
            return replace(self, dtype=torch.float32).predicted(network)
        raise InputError(
            "network: expected finite logits, received NaN or infinity in float32; give other weights or another image."
        )

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} ({self.reason})"


def precision(amp: bool | str, device: str | torch.device) -> Precision:
    """The precision that ``amp`` means on a device.

    Args:
        amp: ``auto``: bfloat16 where the processor (AMX or AVX512-BF16) or the GPU has it, float16 on older GPUs,
            float32 elsewhere. True: bfloat16, on a GPU without it float16. False: float32.
        device: where the network computes.

    Raises:
        InputError: another ``amp``.
    """
    if isinstance(amp, str) and amp.lower() in ("true", "false"):  # from a command line
        amp = amp.lower() == "true"
    if amp not in ("auto", True, False):
        raise InputError(f"amp: expected auto, True or False, received {amp!r}.")
    kind = torch.device(device).type
    if not amp:
        return Precision(kind, torch.float32, "amp is False")
    if kind == "cuda":
        with torch.cuda.device(device):  # which may be older than the first GPU
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if has_bfloat16:
            return Precision(kind, torch.bfloat16, "this GPU has it")
        return Precision(kind, torch.float16, "this GPU has no bfloat16")
    feature = bfloat16_of_processor() if kind == "cpu" else ""
    if feature:
        return Precision(kind, torch.bfloat16, f"this processor has {feature}")
    if amp == "auto":
        return Precision(kind, torch.float32, "this processor has no fast bfloat16" if kind == "cpu" else f"on {kind}")
    return Precision(kind, torch.bfloat16, "amp is True, though nothing here makes it faster")


def bfloat16_of_processor() -> str:
    """What makes bfloat16 products fast on this processor: ``AMX``, ``AVX512-BF16``, or nothing."""
    has = torch.cpu.get_capabilities()
    return "AMX" if has.get("amx_bf16") else "AVX512-BF16" if has.get("avx512_bf16") else ""


def amp_of_patches(
    amp: bool | str,
    device: str | torch.device,
    spatial_size: Sequence[int] | int,
    network: torch.nn.Module | None = None,
) -> bool | str:
    """``amp`` for a training on patches: float32 on processors where bfloat16 goes wrong.

    The weight gradient of torch's 3D convolution in bfloat16 (2.13, oneDNN, on a CPU) reads memory that nobody has
    written where a map is two voxels long along its first axis, as a stage of the U-Net is of patches of less than 48
    voxels along theirs. Of another network nobody knows how often it halves a patch.

    Args:
        amp: as for :func:`precision`.
        device: where the network computes.
        spatial_size: voxels of a patch.
        network: that is trained; default: the U-Net.
    """
    first = spatial_size if isinstance(spatial_size, int) else spatial_size[0]
    chosen = precision(amp, device)
    other = network is not None and not any(isinstance(part, BasicUNet) for part in network.modules())
    if chosen.device_type != "cpu" or not chosen.mixed or (first >= 48 and not other):
        return amp
    what = "a network of your own" if other else "patches of less than 48 voxels from left to right"
    logger.info(f"Training in float32: in bfloat16, {what} may go wrong in 3D on a CPU.")
    return False
