"""Labels on another grid: each new voxel has the class that most of what it lies on has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

#: Shares of a voxel that differ by less are alike.
ALIKE = 1e-4
#: New voxels that are voted on at once, to bound memory.
AT_ONCE = 2**20


def scaled_positions(length: int, target: int) -> Tensor:
    """Centres of ``target`` new voxels over the same extent, in indices of the ``length`` old ones."""
    return (torch.arange(target, dtype=torch.float64) + 0.5) * length / target - 0.5


def on_grid(label: Tensor, resampled: Tensor, affine: Any) -> MetaTensor:
    """A label that was resampled, as MONAI's transforms would return it: float, with its file and its new affine."""
    meta = {k: v for k, v in label.meta.items() if k != "affine"} if isinstance(label, MetaTensor) else {}
    return MetaTensor(resampled.float(), affine=torch.as_tensor(affine), meta=meta)


def resampled_label(label: Tensor, positions: Sequence[Tensor | None], *, outside: int | None = None) -> Tensor:
    """A label at other places along its axes, by a vote of the voxels around each place with the weights of linear
    interpolation.

    The nearest voxel alone would move a label against its image, by half a voxel where a grid is made half as fine: new
    centres then lie between two voxels, one of which is always taken. Where two classes have as much, the higher index
    counts, so that a small organ is kept.

    Args:
        label: class indices, ``(1, *spatial)``.
        positions: along each spatial axis, in indices of its voxels; ``None``: as they are.
        outside: class beyond the border; ``None``: that of the outermost voxel.

    Returns:
        ``(1, *lengths)``, of the same type.
    """
    first = next((number for number, places in enumerate(positions) if places is not None), None)
    if first is None:
        return label.clone()
    lengths = [n if places is None else len(places) for n, places in zip(label.shape[1:], positions)]
    slabs = positions[first].split(max(1, AT_ONCE * lengths[first] // prod(lengths)))  # type: ignore[union-attr]
    parts = [_voted(label, [*positions[:first], slab, *positions[first + 1 :]], outside) for slab in slabs]
    return torch.cat(parts, dim=1 + first)


def _voted(label: Tensor, positions: Sequence[Tensor | None], outside: int | None) -> Tensor:
    """:func:`resampled_label` of a part that is small enough for all its candidates."""
    around = list(_around(label, list(positions), 1, outside, torch.ones((), dtype=torch.float32)))
    result = around[0][0].clone()
    mixed = torch.zeros(result.shape, dtype=torch.bool)
    for classes, _ in around[1:]:
        mixed |= classes != result
    if not mixed.any():
        return result
    candidates = torch.stack([classes[mixed] for classes, _ in around])
    weights = torch.stack([weight.expand(result.shape)[mixed] for _, weight in around])
    best, most = candidates[0].clone(), torch.full(candidates.shape[1:], -1.0)
    for candidate in candidates:
        share = ((candidates == candidate) * weights).sum(dim=0)
        wins = (share > most + ALIKE) | ((share > most - ALIKE) & (candidate > best))
        best, most = torch.where(wins, candidate, best), torch.where(wins, share, most)
    result[mixed] = best
    return result


def _around(
    label: Tensor, positions: list[Tensor | None], axis: int, outside: int | None, weight: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """The voxels around each place, from one side or the other along each axis from ``axis`` on, and their weights."""
    if axis > len(positions):
        yield label, weight
        return
    places = positions[axis - 1]
    if places is None:
        yield from _around(label, positions, axis + 1, outside, weight[..., None])
        return
    length, lower = label.shape[axis], places.floor()
    if bool(((places - places.round()).abs() < ALIKE).all() and (lower >= 0).all() and (places < length - 0.5).all()):
        part = label.index_select(axis, places.round().long())  # on voxels: there is nothing to vote on
        yield from _around(part, positions, axis + 1, outside, weight[..., None])
        return
    for index, share in ((lower, lower + 1 - places), (lower + 1, places - lower)):
        part = label.index_select(axis, index.long().clamp(0, length - 1))
        if outside is not None and bool((beyond := (index < 0) | (index >= length)).any()):
            part.index_fill_(axis, beyond.nonzero()[:, 0], outside)
        yield from _around(part, positions, axis + 1, outside, weight[..., None] * share.float())
