"""Intra-image and cross-image semantic similarity (paper III-B, III-C) as pure functions on tensors.

Symbols: f~ ``features`` ``(B, D, *spatial)``; n the number of positions; K classes; J labelled images; R sub-regions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..distributed import Gather, started
from ..errors import InputError
from .fusion import departition, partition

#: Features shorter than this count as zero; a smaller bound would let the gradient of a cosine explode.
EPS = 1e-6


#: Positions a side of the blocks that the affinity map is computed in, by device: small enough for a CPU's cache.
BLOCK = {"cpu": 256, "cuda": 2048}
#: Below, exp(-1 / t_a) is no normal float32.
LOWEST_TEMPERATURE = 0.012


def full(x: Tensor) -> Tensor:
    """Float32 at least: the half precision of an autocast network is no precision for losses."""
    return x if x.dtype == torch.float64 else x.float()


def _tokens(x: Tensor) -> Tensor:
    """``(B, C, *spatial)`` -> ``(B, n, C)``."""
    return x.flatten(2).transpose(1, 2)


def affinity(features: Tensor, *, temperature: float = 0.1) -> Tensor:
    """M of eq. 4, materialised: softmax over k2 of cos(f(k1), f(k2)) / t_a.

    Args:
        features: ``(B, D, *spatial)``.
        temperature: t_a; 1 as printed.

    Returns:
        ``(B, n, n)``; each row sums to one. Memory grows with n squared: for looking at, not for training.
    """
    f = _tokens(F.normalize(features, dim=1, eps=EPS))
    return torch.softmax(f @ f.transpose(1, 2) / temperature, dim=-1)


class _Spread(torch.autograd.Function):
    """M p of eq. 4 and 5 for normalised features, without ever holding the n x n map.

    E = exp((f f^T - 1) / t) is symmetric, so only its blocks on and above the diagonal are computed, each once for
    both of its places; M = E / (row sums). No row maximum is needed, as no cosine exceeds one. With D channels the
    forward pass takes n^2 D / 2 multiply-adds and the backward pass 3 n^2 D / 2; attention, 2 and 5 times n^2 D.

    Products take place in the precision of f, sums over blocks and what is small by cancellation in that of p.
    """

    @staticmethod
    def forward(ctx: Any, f: Tensor, p: Tensor, temperature: float) -> Tensor:  # type: ignore[override]
        """``f: (B, n, D)``, ``p: (B, K, n)`` -> ``(B, K, n)``. Narrow products are fast with K rows, not K columns."""
        value = torch.cat([p, p.new_ones(p.shape[0], 1, p.shape[2])], dim=1)  # (B, K + 1, n): for the row sums, too
        total = torch.zeros_like(value)
        factor = value.to(f.dtype)
        for i, j in _upper_blocks(f):
            e = _block(f, i, j, temperature)
            total[..., i] += factor[..., j] @ e.transpose(1, 2)
            if i != j:
                total[..., j] += factor[..., i] @ e
        sums = total[:, -1:]
        result = total[:, :-1] / sums
        ctx.temperature = temperature
        ctx.save_for_backward(f, value, result, sums)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        f, value, result, sums = ctx.saved_tensors
        upper = grad / sums  # gradient of E p
        lower = -(upper * result).sum(dim=1, keepdim=True)  # gradient of the row sums
        slope = torch.cat([upper, lower], dim=1)
        # dL/dE_ij + dL/dE_ji = slope_i . value_j + value_i . slope_j
        left = torch.cat([slope, value], dim=1).transpose(1, 2) / ctx.temperature
        right = torch.cat([value, slope], dim=1)
        need_f, need_p = ctx.needs_input_grad[:2]
        grad_f = torch.zeros_like(f, dtype=value.dtype) if need_f else None
        grad_p = torch.zeros_like(grad) if need_p else None
        factor = upper.to(f.dtype)
        for i, j in _upper_blocks(f):
            e = _block(f, i, j, ctx.temperature)
            if grad_p is not None:
                grad_p[..., i] += factor[..., j] @ e.transpose(1, 2)
                if i != j:
                    grad_p[..., j] += factor[..., i] @ e
            if grad_f is not None:
                # a difference of nearly equal numbers, so in the precision of p, whatever that of f
                both = (left[:, i] @ right[..., j]).mul_(e).to(f.dtype)
                grad_f[:, i] += both @ f[:, j]
                if i != j:
                    grad_f[:, j] += both.transpose(1, 2) @ f[:, i]
        return None if grad_f is None else grad_f.to(f.dtype), grad_p, None


def _upper_blocks(f: Tensor) -> list[tuple[slice, slice]]:
    """Blocks on and above the diagonal of the map of ``f: (B, n, D)``, nearly equal in size."""
    n = f.shape[1]
    number = -(-n // BLOCK.get(f.device.type, 1024))
    edges = [n * k // number for k in range(number + 1)]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [(i, j) for k, i in enumerate(parts) for j in parts[k:]]


def _block(f: Tensor, rows: slice, columns: slice, temperature: float) -> Tensor:
    """exp((f f^T - 1) / t) for some rows and columns."""
    shift = f.new_full((1, 1, 1), -1 / temperature)
    return torch.baddbmm(shift, f[:, rows], f[:, columns].transpose(1, 2), alpha=1 / temperature).exp_()


def refine(
    features: Tensor,
    probabilities: Tensor,
    *,
    temperature: float = 0.1,
    axis: str = "row",
    combine: str = "mean",
) -> Tensor:
    """Prediction refined by the affinities within an image, eq. 5: p_in = (p + p M^T) / 2.

    Deviations from the paper: the two distributions are averaged, not added, so that p_in is one; every position
    receives a weighted mean of all (M^T), where the printed M would not sum to one; cosines are divided by a
    temperature, as otherwise no weight of M is more than e times another. The n x n map is computed block by block
    and never held: memory grows linearly with n, and gradients are of first order only.

    Args:
        features: f~, ``(B, D, *spatial)``; where they are bfloat16, so are the products of ``axis: row``.
        probabilities: I(p), ``(B, K, *spatial)``, at the size of ``features``.
        temperature: t_a of eq. 4; 1 as printed.
        axis: ``row`` as described, ``column`` as printed (forms the map).
        combine: ``mean``, or ``sum`` as printed.

    Returns:
        ``(B, K, *spatial)``.

    Raises:
        ValueError: sizes that differ.
        InputError: unknown ``axis`` or ``combine``, a temperature below 0.012.
    """
    if features.shape[0] != probabilities.shape[0] or features.shape[2:] != probabilities.shape[2:]:
        raise ValueError(
            f"features and probabilities should agree in batch and size, received {tuple(features.shape)} and "
            f"{tuple(probabilities.shape)}."
        )
    if axis not in ("row", "column") or combine not in ("mean", "sum"):
        raise InputError(f"axis should be row or column and combine mean or sum, received {axis!r} and {combine!r}.")
    p = probabilities.flatten(2)  # (B, K, n)
    if axis == "column":
        spread = p @ affinity(full(features), temperature=temperature)
    else:
        if temperature < LOWEST_TEMPERATURE:
            raise InputError(
                f"The affinity temperature should be {LOWEST_TEMPERATURE} at least, received {temperature}."
            )
        f = F.normalize(full(features), dim=1, eps=EPS)
        if features.dtype == torch.bfloat16:
            f = f.to(features.dtype)
        f = _tokens(f).contiguous()  # (B, n, D)
        spread = _Spread.apply(f, p, float(temperature))
    result = (p + spread) * (0.5 if combine == "mean" else 1.0)
    return result.view(probabilities.shape)


def split_regions(x: Tensor, regions: int) -> Tensor:
    """Cut maps into ``regions`` sub-regions a side.

    Args:
        x: ``(B, C, *spatial)``. Where a side does not divide, sub-regions are ``ceil(side / regions)`` wide and zeros
            fill up the last.
        regions: N, sub-regions a side.

    Returns:
        ``(B, R, L, C)`` with R = N ** dims sub-regions of L positions.
    """
    return partition(x, [regions] * (x.ndim - 2), [-(-n // regions) for n in x.shape[2:]])


def merge_regions(x: Tensor, regions: int, size: Sequence[int]) -> Tensor:
    """Inverse of :func:`split_regions`: ``(B, R, L, C)`` -> ``(B, C, *size)``, the filling cut off."""
    return departition(x, [regions] * len(size), [-(-n // regions) for n in size], size)


def nearest(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Class indices ``(J, 1, *)`` resized to ``(J, *size)`` by nearest, pixel centres aligned."""
    return F.interpolate(labels.float(), size=tuple(size), mode="nearest-exact")[:, 0].long()


@dataclass(frozen=True)
class Prototypes:
    """Class prototypes of a labelled batch (eq. 7, 8).

    Attributes:
        vectors: G, ``(J, R, K, D)``.
        present: ``(J, K)`` bool; false where image j does not show class c, whose vectors are then zero.
    """

    vectors: Tensor
    present: Tensor

    def gathered(self) -> Prototypes:
        """Those of all processes of a distributed training, J from each, with their gradient; itself without one."""
        if not started():
            return self
        return Prototypes(Gather.apply(self.vectors), Gather.apply(self.present.byte()).bool())


def class_prototypes(features: Tensor, labels: Tensor, *, num_classes: int, regions: int = 4) -> Prototypes:
    """G of eq. 7 and 8: the mean feature of each class in each sub-region of each labelled image.

    A class absent from a sub-region is given its mean over the whole image; a class absent from the image is left out.

    Args:
        features: f~ of the labelled images, ``(J, D, *spatial)``.
        labels: class indices ``(J, *any_spatial)``, negative for pixels to ignore, resized to the features by nearest
            (pixel centres aligned, as in the linear resize of predictions).
        num_classes: K.
        regions: N, sub-regions a side (paper: 4).

    Returns:
        vectors ``(J, R, K, D)`` and which classes each image shows, ``(J, K)``.

    Raises:
        ValueError: another number of labels than of features.
    """
    if labels.ndim != features.ndim - 1 or labels.shape[0] != features.shape[0]:
        raise ValueError(
            f"labels should be (J, *spatial) for features (J, D, *spatial), received {tuple(labels.shape)} and "
            f"{tuple(features.shape)}."
        )
    small = nearest(labels[:, None], features.shape[2:])  # (J, *spatial)
    one_hot = F.one_hot(small.clamp(min=0), num_classes).movedim(-1, 1).to(features.dtype)  # (J, K, *spatial)
    one_hot = one_hot * (small >= 0).unsqueeze(1)  # what nobody judged is of no class
    members = split_regions(one_hot, regions)  # (J, R, L, K)
    total = members.transpose(2, 3) @ split_regions(features, regions)  # (J, R, K, D)
    count = members.sum(dim=2).unsqueeze(-1)  # (J, R, K, 1)
    whole = total.sum(dim=1, keepdim=True) / count.sum(dim=1, keepdim=True).clamp(min=1)
    vectors = torch.where(count > 0, total / count.clamp(min=1), whole)
    return Prototypes(vectors=vectors, present=count.sum(dim=(1, 3)) > 0)


def cross_similarity(features: Tensor, prototypes: Prototypes, *, regions: int = 4) -> Tensor:
    """m(j, c, i) of eq. 9: cosine of every position's feature with the prototypes of its own sub-region.

    Args:
        features: f~ of the unlabelled images, ``(B, D, *spatial)``.
        prototypes: of the labelled images.
        regions: N, as the prototypes were made with.

    Returns:
        ``(B, R, L, J, K)``, positions in the order of :func:`split_regions`; zero for an absent class.
    """
    queries = split_regions(F.normalize(features, dim=1, eps=EPS), regions)  # (B, R, L, D)
    keys = F.normalize(prototypes.vectors, dim=-1, eps=EPS)  # (J, R, K, D)
    images, number, classes, channels = keys.shape
    keys = keys.permute(1, 3, 0, 2).reshape(number, channels, images * classes)
    return (queries @ keys).reshape(*queries.shape[:3], images, classes)


def cross_log_probabilities(
    similarity: Tensor, present: Tensor, *, temperature: float = 0.1, average_images: bool = True
) -> Tensor:
    """log p_cr of eq. 9: a softmax over classes of exp(m / t_p), pooled over the labelled images.

    Deviations from the paper: the temperature t_p (without one p_cr can never exceed e / (e + K - 1), 0.475 for four
    classes); the mean over the images that show a class instead of the sum, which favours frequent classes.

    Args:
        similarity: m, ``(..., J, K)``.
        present: ``(J, K)`` bool.
        temperature: t_p; 1 as printed.
        average_images: false for the sum over j, as printed.

    Returns:
        ``(..., K)``, finite; a class that no image shows has a probability of zero to rounding.
    """
    lowest = torch.finfo(similarity.dtype).min / 4
    evidence = (similarity / temperature).masked_fill(~present, lowest)
    pooled = torch.logsumexp(evidence, dim=-2)
    if average_images:
        pooled = pooled - present.sum(dim=0).clamp(min=1).to(similarity.dtype).log()
    pooled = pooled.masked_fill(~present.any(dim=0), -1e4)  # finite, so that no gradient turns into NaN
    return torch.log_softmax(pooled, dim=-1)


def agreement(similarity: Tensor, present: Tensor, *, scale: float = 10.0, divergence: str = "softmax") -> Tensor:
    """U_bar of eq. 11 and 12: how far the labelled images agree on a position, as a weight.

    U(j) = KL(q_j || mean over j of q_j) and U_bar = mean over j of exp(-r U(j)).

    Deviations from the paper: q_j is a softmax of the cosines over the classes of the batch, because cosines are
    not distributions, and their logarithms may not exist. An image that does not show a class is given the mean
    cosine of those that do. Otherwise U_bar would measure which classes the labelled slices happen to show.

    Args:
        similarity: m, ``(..., J, K)``.
        present: ``(J, K)`` bool.
        scale: r (paper: 1000).
        divergence: ``softmax``, or ``cosine`` for the equation as printed, on clipped cosines.

    Returns:
        ``(...)`` in [0, 1], without gradient: else raising the uncertainty would lower the loss. 1 where no image shows
        any class.

    Raises:
        InputError: unknown ``divergence``.
    """
    similarity = similarity.detach()
    count = present.sum(dim=0)
    consensus = (similarity * present).sum(dim=-2, keepdim=True) / count.clamp(min=1)
    opinion = torch.where(present, similarity, consensus)
    if divergence == "softmax":
        unknown = (count == 0) & present.any()  # labels may be ignored all over: no softmax of nothing
        q = torch.softmax(opinion.masked_fill(unknown, float("-inf")), dim=-1)
    elif divergence == "cosine":
        q = opinion.clamp(min=EPS).masked_fill(count == 0, 0.0)
    else:
        raise InputError(f"divergence should be softmax or cosine, received {divergence!r}.")
    mean = q.mean(dim=-2, keepdim=True)
    uncertainty = (torch.xlogy(q, q) - torch.xlogy(q, mean)).sum(dim=-1).clamp(min=0)  # (..., J)
    return torch.exp(-scale * uncertainty).mean(dim=-1)
