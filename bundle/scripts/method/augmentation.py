"""The strong augmentation A_s: views drawn anew, and CutMix boxes, which need the whole batch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, Randomizable, Transform
from torch import Tensor

from ..dataio.transforms import movers
from ..errors import InputError

Item = Mapping[Hashable, Any]

#: How far from 0 to 1 an image may reach by the rounding of its resampling.
ROUNDING = 1e-3


@dataclass(frozen=True)
class CutMix:
    """Boxes to be filled from a partner image: the part of A_s that needs the whole batch.

    Attributes:
        box: ``(B, 1, *spatial)`` bool, true where the partner shows.
        partner: ``(B,)`` index of the partner, in the same batch or, from B on, in the labelled one.
    """

    box: Tensor
    partner: Tensor

    def __call__(self, x: Tensor, labeled: Tensor | None = None) -> Tensor:
        """Paste into ``x: (B, *spatial)`` or ``(B, C, *spatial)`` of any resolution; boxes are resized by nearest.

        ``labeled`` is what the labelled images have in its place; needed where partners are drawn from them.
        """
        spatial_dims = self.box.ndim - 2
        size = x.shape[-spatial_dims:]
        box = (
            self.box
            if self.box.shape[2:] == size
            else F.interpolate(self.box.float(), size=size, mode="nearest-exact") > 0.5
        )
        source = x if labeled is None else torch.cat([x, labeled.to(x.dtype)])
        return torch.where(box if x.ndim == self.box.ndim else box[:, 0], source[self.partner], x)


class RandCutMix:
    """Draw a box for every image of a batch, each at a place and of a shape of its own.

    MONAI's ``CutMix`` gives all images of a batch one corner and clips boxes at the border. Draws from torch's global
    generator.
    """

    def __init__(
        self,
        *,
        prob: float = 0.5,
        area: tuple[float, float] = (0.02, 0.4),
        aspect: tuple[float, float] = (0.3, 3.3),
        labeled_share: float = 0.0,
    ) -> None:
        """
        Args:
            prob: probability that an image receives a box.
            labeled_share: probability that the partner is a labelled image, whose box brings its true label along.
            area: smallest and largest fraction of the image that a box covers.
            aspect: smallest and largest ratio of a box's later sides to its first, as fractions of the image.
        """
        self.prob, self.area, self.aspect, self.labeled_share = prob, area, aspect, labeled_share

    def __call__(self, image: Tensor, labeled: int = 0) -> CutMix:
        """Boxes and partners for a batch ``(B, C, *spatial)``, beside which there are ``labeled`` labelled images."""
        batch, size = image.shape[0], image.shape[2:]
        dims = len(size)
        area = torch.empty(batch).uniform_(*self.area)
        ratio = torch.empty(batch, dims - 1).uniform_(*(math.log(a) for a in self.aspect)).exp()
        sides = torch.cat([torch.ones(batch, 1), ratio], dim=1)
        sides = sides / sides.prod(dim=1, keepdim=True) ** (1 / dims) * area[:, None] ** (1 / dims)
        sides = sides.clamp(max=1.0)  # (B, n), as fractions of the image
        start = torch.rand(batch, dims) * (1 - sides)
        box = (torch.rand(batch) < self.prob).view(-1, *[1] * dims)
        for axis, length in enumerate(size):
            position = (torch.arange(length) + 0.5) / length
            inside = (position >= start[:, axis, None]) & (position < (start + sides)[:, axis, None])
            box = box & inside.view(batch, *[length if a == axis else 1 for a in range(dims)])
        # a random cyclic shift: nobody is its own partner unless it is alone
        shift = int(torch.randint(1, batch, ())) if batch > 1 else 0
        partner = torch.randperm(batch)
        inverse = torch.empty_like(partner)
        inverse[partner] = torch.arange(batch)
        partner = partner[(inverse + shift) % batch]
        if self.labeled_share > 0 and labeled:
            drawn = batch + torch.randint(labeled, (batch,))
            partner = torch.where(torch.rand(batch) < self.labeled_share, drawn, partner)
        return CutMix(box=box[:, None].to(image.device), partner=partner.to(image.device))


class StrongViewsd(Randomizable, MapTransform):
    """Add independently augmented copies of an image: ``image`` -> ``image_strong_1``, ``image_strong_2``.

    The strong augmentation A_s of the method without CutMix, which needs the whole batch and is done by the trainer.
    Its transforms are of intensities from 0 to 1 and cut off what lies outside: images of another range, as of an
    ``intensity`` of one's own, are brought into this one for them and back again.
    """

    def __init__(self, keys: KeysCollection, transform: Transform | Sequence[Transform]) -> None:
        """
        Args:
            keys: images ``(C, *spatial)`` to make views of.
            transform: random intensity transforms on a tensor, one or a list, applied once for each view.

        Raises:
            InputError: one that moves pixels, away from their pseudo-labels.
        """
        super().__init__(keys)
        self.transform: Any = transform if isinstance(transform, Transform) else Compose(transform)
        if moving := [type(part).__name__ for part in movers(self.transform)]:
            raise InputError(
                f"strong_transforms: expected transforms of intensities, received {', '.join(moving)}, which moves "
                "pixels away from their pseudo-labels; put it into weak_transforms."
            )

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> StrongViewsd:
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed, state)
        return self

    def randomize(self, data: Any) -> None:
        """Nothing of its own is drawn here; ``transform`` draws."""

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            low, high = min(0.0, float(data[key].min())), max(1.0, float(data[key].max()))
            if low > -ROUNDING and high < 1 + ROUNDING:
                low, high = 0.0, 1.0
            for view in (1, 2):
                scaled = (data[key] - low) / (high - low)
                result[f"{key}_strong_{view}"] = self.transform(scaled) * (high - low) + low
        return result
