"""Patches that disagree, and the precision that their mean is kept in."""

from __future__ import annotations

import torch
from scripts.evaluation.volume_inferer import VolumeLabelInferer
from torch import nn


class Certain(nn.Module):
    """Never background; every other patch is certain of class 1 and the rest of class 2, in all of its flips."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sign = -200.0 if self.calls // 8 % 2 else 200.0
        self.calls += 1
        one = torch.ones_like(x)
        return torch.cat([-400 * one, sign * one, -sign * one], dim=1)


def test_patches_that_are_certain_of_different_classes_do_not_make_background():
    """The mean over flips is a probability that may be 0 in float32; two of its logarithms used to give NaN."""
    for shape in ((40, 16, 16), (16, 16, 40)):
        inferer = VolumeLabelInferer((16, 16, 16), 1, overlap=0.5, amp=False, flip_tta=True)
        found = inferer.logits(torch.rand(1, 1, *shape), Certain()).softmax(dim=1)
        assert not found.isnan().any() and set(found.argmax(dim=1).unique().tolist()) == {1, 2}
