"""Stages of a training: smaller slices and labelled ones alone first, which cost less, then the size of prediction."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

from monai.utils import ensure_tuple_rep

from ..errors import InputError

#: Sides are multiples of this, so that every stage of the network halves evenly.
MULTIPLE = 16

Size = tuple[int, ...]


def check_dims(spatial_dims: int) -> int:
    """The number of spatial axes that a network works on.

    Raises:
        InputError: neither 2 nor 3.
    """
    if spatial_dims not in (2, 3):
        raise InputError(f"spatial_dims: expected 2 (slices) or 3 (volumes), received {spatial_dims!r}.")
    return spatial_dims


def patch_size(spatial_size: Sequence[int] | int) -> Size:
    """Voxels of a patch along each axis.

    Args:
        spatial_size: three numbers, or one for all.

    Raises:
        InputError: no such numbers, or no multiples of 16.
    """
    size = (spatial_size,) * 3 if isinstance(spatial_size, int) else tuple(spatial_size)
    if len(size) != 3 or any(not isinstance(n, int) or n < MULTIPLE or n % MULTIPLE for n in size):
        raise InputError(
            f"spatial_size: in 3D expected the voxels of a patch, three multiples of {MULTIPLE} or one, [64, 64, 32] "
            f"say, received {spatial_size!r}."
        )
    return size


class Stage(NamedTuple):
    """A part of the training: the size of its slices or patches, and whether unlabelled ones take part."""

    size: Size
    unlabeled: bool


class Stages:
    """What the epochs of a training consist of: smaller slices first, and labelled ones alone.

    A training that becomes longer on its way goes back to no stage that it has left.

    Attributes:
        shares: pairs of a stage and its fraction of the training, in their order; the fractions sum to 1.
        reached: place among them of the last stage that has begun.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | int,
        early_sizes: Sequence[Sequence[float]] = (),
        unlabeled_start: float = 0.0,
        *,
        spatial_dims: int = 2,
    ) -> None:
        """
        Args:
            spatial_size: ``(X, Y)`` in pixels, X to the right, or one number for both: the size of the last stage
                and of prediction.
            early_sizes: pairs of pixels of the longer side and fraction of the training, in (0, 1), in their order.
                The other side is in proportion. Sizes that are not below ``spatial_size`` are left out.
            unlabeled_start: fraction of the training, in [0, 1), before unlabelled slices take part.
            spatial_dims: 3 for patches, which have one size throughout.

        Raises:
            InputError: no such pairs, or fractions that leave nothing for the last stage; sizes in 3D.
        """
        if not isinstance(unlabeled_start, (int, float)) or not 0 <= unlabeled_start < 1:
            raise InputError(
                f"unlabeled_start: expected a fraction of the training, 0 or more and less than 1, received "
                f"{unlabeled_start!r}."
            )
        sizes = _sizes(spatial_size, early_sizes, spatial_dims)
        ends = [round(end, 9) for end in accumulate(share for _, share in sizes)]
        start = round(float(unlabeled_start), 9)
        shares: list[tuple[Stage, float]] = []
        for begin, end in pairwise(sorted({0.0, start, *ends})):
            size = next(size for (size, _), until in zip(sizes, ends) if begin < until)
            shares.append((Stage(size, begin >= start), end - begin))
        self.shares = tuple(shares)
        self.reached = 0

    @property
    def last(self) -> Stage:
        """The stage of the last epoch, with the size of prediction."""
        return self.shares[-1][0]

    def stage(self, epoch: int, epochs: int) -> Stage:
        """That of an epoch, from 1, of a training of so many, for epochs that are still to come."""
        return self.shares[self._place(epoch, epochs)][0]

    def numbers(self, first: int, last: int, epochs: int) -> Iterator[tuple[Stage, int]]:
        """How many of the epochs from ``first`` to ``last``, of a training of so many, are of each stage."""
        for place, (stage, _) in enumerate(self.shares):
            following = bisect_right(range(last + 1), place, lo=first, key=partial(self._place, epochs=epochs))
            yield stage, following - first
            first = following

    def begin(self, epoch: int, epochs: int) -> Stage:
        """Begin an epoch, whose stage is that of :meth:`stage`; the first begins a training anew."""
        self.reached = 0 if epoch == 1 else self.reached
        self.reached = self._place(epoch, epochs)
        return self.shares[self.reached][0]

    def _place(self, epoch: int, epochs: int) -> int:
        ends = accumulate(share for _, share in self.shares[:-1])
        passed = sum((epoch - 0.5) / epochs >= end or epoch >= epochs for end in ends)
        return max(passed, self.reached)

    def state_dict(self) -> dict[str, int]:
        """The stage that has begun, for the resume checkpoint."""
        return {"reached": self.reached}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up the stage of an earlier process."""
        self.reached = min(state["reached"], len(self.shares) - 1)


def _sizes(
    spatial_size: Sequence[int] | int, early_sizes: Sequence[Sequence[float]], spatial_dims: int
) -> list[tuple[Size, float]]:
    """Sizes and their fractions of the training, in their order."""
    if check_dims(spatial_dims) == 3:
        if early_sizes:
            raise InputError(f"early_sizes: are of slices; in 3D expected [], received {early_sizes!r}.")
        return [(patch_size(spatial_size), 1.0)]
    last: Size = ensure_tuple_rep(spatial_size, 2)  # type: ignore[assignment]
    try:
        early = [(int(pixels), float(share)) for pixels, share in early_sizes or ()]
    except (TypeError, ValueError):
        early = [(0, 0.0)]
    if any(pixels < MULTIPLE or not 0 < share < 1 for pixels, share in early) or sum(s for _, s in early) >= 1:
        raise InputError(
            f"early_sizes: expected pairs of a size ({MULTIPLE} pixels or more) and a fraction of the training, "
            f"with fractions that sum to less than 1, such as [[128, 0.6]]; received {early_sizes!r}."
        )
    stages: list[tuple[Size, float]] = []
    for pixels, share in early:
        factor = pixels / max(last)
        if factor < 1:
            h, w = (max(MULTIPLE, MULTIPLE * round(n * factor / MULTIPLE)) for n in last)
            stages.append(((h, w), share))
    return [*stages, (last, 1 - sum(share for _, share in stages))]
