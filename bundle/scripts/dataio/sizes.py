"""Sizes of the slices during a training: smaller ones first, which cost less, then the size of prediction."""

from __future__ import annotations

from collections.abc import Sequence

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


class SizeSchedule:
    """Which size the slices of an epoch have.

    Attributes:
        stages: pairs of a size ``(H, W)`` and its fraction of the training, in their order; the fractions sum to 1.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | int,
        early_sizes: Sequence[Sequence[float]] = (),
        *,
        spatial_dims: int = 2,
    ) -> None:
        """
        Args:
            spatial_size: ``(H, W)`` in pixels, or one number for both: the size of the last stage and of prediction.
            early_sizes: pairs of pixels of the longer side and fraction of the training, in (0, 1), in their order.
                The other side is in proportion. Sizes that are not below ``spatial_size`` are left out.
            spatial_dims: 3 for patches, which have one size throughout.

        Raises:
            InputError: no such pairs, or fractions that leave nothing for the last stage; any in 3D.
        """
        if check_dims(spatial_dims) == 3:
            if early_sizes:
                raise InputError(f"early_sizes: are of slices; in 3D expected [], received {early_sizes!r}.")
            self.stages: tuple[tuple[Size, float], ...] = ((patch_size(spatial_size), 1.0),)
            return
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
