"""The spatial-aware fusion module (paper III-D), and the plain convolution of SemSim-."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, MLPBlock, SABlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Windows that a call of attention takes: a GPU's grid has no more blocks along an axis, and not every kernel minds it.
MOST_WINDOWS = 65535
LINEAR = {2: "bilinear", 3: "trilinear"}


def tokens_at_once(device: torch.device, checkpointed: bool = False) -> int | None:
    """Tokens that the transformer block of the SFM takes at once; ``None``: all.

    On a CPU few enough for one thread's cache, or enough for several threads to share; where tokens are computed again
    in the backward pass, few enough to save memory.
    """
    if device.type != "cpu":
        return 65536 if checkpointed else None
    return 2048 if checkpointed or torch.get_num_threads() == 1 else 16384


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """I(.): linear interpolation of ``x: (B, C, *)`` to the spatial ``size``; the identity where sizes agree."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if all(n == 2 * half for n, half in zip(x.shape[2:], size)):  # the mean of two neighbours a side, computed as such
        return {2: F.avg_pool2d, 3: F.avg_pool3d}[x.ndim - 2](x, 2)
    return F.interpolate(x, size=tuple(size), mode=LINEAR[x.ndim - 2], align_corners=False)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V for windows of few tokens, ``(W, heads, tokens, D)`` each.

    On a CPU the map of so short a window is formed: the kernel that never forms it takes seven times as long over 84
    tokens in bfloat16, forward and backward, and no less in float32.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    # in float32 at least, where it is also twice as fast as in bfloat16
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.to(value.dtype) @ value


class ConvFusion(nn.Module):
    """SemSim-: a plain convolution in place of the SFM.

    Each stage is projected by a 1x1 convolution and resized to the middle stage; their sum, normalised and rectified,
    is f~. (A 1x1 convolution and a linear resize commute, so this equals one convolution of the concatenated stages.)
    """

    def __init__(self, spatial_dims: int, in_channels: Sequence[int], channels: int = 128) -> None:
        """
        Args:
            spatial_dims: 2 or 3.
            in_channels: channels of stages 2, 3, 4.
            channels: D, channels of f~.
        """
        super().__init__()
        self.projections = nn.ModuleList(
            Convolution(spatial_dims, c, channels, kernel_size=1, conv_only=True, bias=False) for c in in_channels
        )
        self.norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial_dims](channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Three stages ``(B, C_i, *)`` -> f~ ``(B, D, *)`` at the size of the middle one."""
        size = stages[1].shape[2:]
        finest, *others = zip(self.projections, stages)
        maps = [finest[0](resize(finest[1], size))]  # resized first, for there is less to project then
        maps += [resize(project(stage), size) for project, stage in others]
        return F.relu(self.norm(sum(maps)))


class SpatialAwareFusion(nn.Module):
    """SFM (III-D): windows of three stages attend to each other, scale by scale, before they are fused.

    Patch matching cuts every stage into the same grid of windows (8, 4 and 2 pixels wide, 84 tokens in 2D); scale
    interacting is one pre-norm transformer block on a window's tokens; scale splitting puts the tokens back; fusion
    resizes to the middle stage, concatenates and convolves (eq. 17).

    Deviation from the paper: it does not give the grid S. Windows of 8, 4 and 2 at every image size make S = 14 at 224
    pixels and keep the cost proportional to the image.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: Sequence[int],
        channels: int = 128,
        *,
        windows: Sequence[int] = (8, 4, 2),
        num_heads: int = 4,
        checkpointed: bool = False,
    ) -> None:
        """
        Args:
            spatial_dims: 2 or 3.
            in_channels: channels of stages 2, 3, 4.
            channels: D, channels of tokens and of f~.
            windows: width of a window in each stage, each half of the one before.
            num_heads: attention heads.
            checkpointed: compute the tokens again in the backward pass instead of keeping them.
        """
        super().__init__()
        self.windows, self.checkpointed = tuple(windows), checkpointed
        self.projections = nn.ModuleList(
            Convolution(spatial_dims, c, channels, kernel_size=1, conv_only=True) for c in in_channels
        )
        # SABlock and MLPBlock rather than TransformerBlock: the latter keeps an unused layer norm, which
        # distributed training would wait for
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = SABlock(channels, num_heads, use_flash_attention=True)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = MLPBlock(channels, 4 * channels)
        total = len(in_channels) * channels
        self.fuse = Convolution(spatial_dims, total, channels, kernel_size=3, act="relu", norm="batch", bias=False)

    def interact(self, *windows: Tensor) -> tuple[Tensor, ...]:
        """Windows of the stages ``(W, tokens, C_i)`` -> their tokens, projected and mixed, ``(W, tokens, D)`` each."""
        x = torch.cat([_linear(projection.conv, t) for projection, t in zip(self.projections, windows)], dim=1)
        x = x + self._attend(self.norm_attention(x))
        x = x + self.mlp(self.norm_mlp(x))
        return x.split([t.shape[1] for t in windows], dim=1)

    def _attend(self, x: Tensor) -> Tensor:
        """What ``self.attention(x)`` computes; query, key and value are unbound, whose backward pass is one copy."""
        block: Any = self.attention
        query, key, value = block.input_rearrange(block.qkv(x)).unbind(0)
        return block.out_proj(block.out_rearrange(attention(query, key, value)))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Three stages ``(B, C_i, *)`` -> f~ ``(B, D, *)`` at the size of the middle one."""
        size = stages[1].shape[2:]
        dims, batch = len(size), stages[0].shape[0]
        grid = [max(-(-m.shape[2 + axis] // w) for m, w in zip(stages, self.windows)) for axis in range(dims)]
        windows = [partition(m, grid, [w] * dims, mode="replicate") for m, w in zip(stages, self.windows)]

        again = self.checkpointed and torch.is_grad_enabled()
        at_once = tokens_at_once(stages[0].device, again)
        number = max(at_once // sum(t.shape[2] for t in windows), 1) if at_once else batch * math.prod(grid)
        chunks = list(zip(*(t.flatten(0, 1).split(min(number, MOST_WINDOWS)) for t in windows)))
        if again:
            mixed = [checkpoint(self.interact, *c, use_reentrant=False, preserve_rng_state=False) for c in chunks]
        else:
            mixed = [self.interact(*c) for c in chunks]

        tokens = [torch.cat(parts).unflatten(0, (batch, -1)) for parts in zip(*mixed)]
        maps = [departition(t, grid, [w] * dims, m.shape[2:]) for t, w, m in zip(tokens, self.windows, stages)]
        return self.fuse(torch.cat([resize(m, size) for m in maps], dim=1))


def _linear(convolution: Any, tokens: Tensor) -> Tensor:
    """A 1x1 convolution of tokens ``(..., C)``: a linear layer."""
    return F.linear(tokens, convolution.weight.flatten(1), convolution.bias)


def partition(x: Tensor, grid: Sequence[int], windows: Sequence[int], *, mode: str = "constant") -> Tensor:
    """Cut maps into a grid of windows of tokens.

    Args:
        x: ``(B, D, *spatial)``; filled up at the far borders to ``grid * windows``.
        grid: number of windows along each axis.
        windows: width of a window along each axis.
        mode: ``constant`` fills with zeros, ``replicate`` with the border.

    Returns:
        ``(B, prod(grid), prod(windows), D)``.
    """
    dims = len(grid)
    padding = [g * w - n for g, w, n in zip(grid, windows, x.shape[2:])]
    if any(padding):
        x = F.pad(x, [p for amount in reversed(padding) for p in (0, amount)], mode=mode)
    x = x.reshape(*x.shape[:2], *(n for pair in zip(grid, windows) for n in pair))
    # (B, D, g0, w0, g1, w1, ...) -> (B, g0, g1, ..., w0, w1, ..., D)
    x = x.permute(0, *(2 + 2 * i for i in range(dims)), *(3 + 2 * i for i in range(dims)), 1)
    return x.reshape(x.shape[0], math.prod(grid), math.prod(windows), x.shape[-1])


def departition(tokens: Tensor, grid: Sequence[int], windows: Sequence[int], size: Sequence[int]) -> Tensor:
    """Inverse of :func:`partition`: ``(B, prod(grid), prod(windows), D)`` -> ``(B, D, *size)``, the filling cut off.

    The result has its channels last in memory.
    """
    dims = len(grid)
    x = tokens.reshape(tokens.shape[0], *grid, *windows, tokens.shape[-1])
    # (B, g0, g1, ..., w0, w1, ..., D) -> (B, g0, w0, g1, w1, ..., D), moving whole tokens
    x = x.permute(0, *(a for i in range(dims) for a in (1 + i, 1 + dims + i)), 1 + 2 * dims)
    x = x.reshape(x.shape[0], *(g * w for g, w in zip(grid, windows)), x.shape[-1]).movedim(-1, 1)
    for axis, n in enumerate(size):
        if x.shape[2 + axis] > n:
            x = x.narrow(2 + axis, 0, n)
    return x
