"""Sizes of the slices during a training: smaller ones first, which cost less, then the size of prediction."""

from __future__ import annotations

from collections.abc import Sequence

from monai.utils import ensure_tuple_rep

from ..errors import InputError

#: Sides are multiples of this, so that every stage of the network halves evenly.
MULTIPLE = 16

Size = tuple[int, int]


class SizeSchedule:
    """Which size the slices of an epoch have.

    Attributes:
        stages: pairs of a size ``(H, W)`` and its fraction of the training, in their order; the fractions sum to 1.
    """

    def __init__(self, spatial_size: Sequence[int] | int, early_sizes: Sequence[Sequence[float]] = ()) -> None:
        """
        Args:
            spatial_size: ``(H, W)`` in pixels, or one number for both: the size of the last stage and of prediction.
            early_sizes: pairs of pixels of the longer side and fraction of the training, in (0, 1), in their order.
                The other side is in proportion. Sizes that are not below ``spatial_size`` are left out.

        Raises:
            InputError: no such pairs, or fractions that leave nothing for the last stage.
        """
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
        self.stages = (*stages, (last, 1 - sum(share for _, share in stages)))

    @property
    def last(self) -> Size:
        """The size of prediction."""
        return self.stages[-1][0]

    def size(self, epoch: int, epochs: int) -> Size:
        """The size in an epoch, from 1, of a training of so many; that of the last epoch is that of prediction."""
        end = 0.0
        for size, share in self.stages:
            end += share
            if (epoch - 0.5) / epochs < end and epoch < epochs:
                return size
        return self.last
