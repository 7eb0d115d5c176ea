"""Patches that disagree, and the precision that their mean is kept in."""

from __future__ import annotations

from time import process_time

import pytest
import torch
from scripts.evaluation.volume_inferer import VolumeLabelInferer, label_inferer
from scripts.method.network import UNet
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


@pytest.mark.parametrize(
    "size, slices, patches",
    [([64, 64, 32], 16, 4), ([32, 32, 32], 16, 16), ([128, 128, 128], 16, 1), ([32, 32, 32], 1, 1)],
)
def test_several_patches_are_predicted_at_once_unless_they_are_large(size, slices, patches):
    seen = []

    def network(x):
        seen.append(len(x))
        return torch.cat([x, -x], dim=1)

    label_inferer(3, size, slices, overlap=0.0, amp=False).logits(torch.rand(1, 1, 256, 256, size[2]), network)
    assert max(seen) == patches


def test_that_is_faster_on_a_cpu():
    """In float32; in seconds of the processor, whatever else it does."""
    network, volume = UNet(3, 1, 2, (8, 16, 32, 64, 128, 8)).eval(), torch.rand(1, 1, 96, 96, 32)
    seconds = {}
    for slices in (1, 16, 1, 16):
        inferer = label_inferer(3, 32, slices, amp=False)
        start = process_time()
        with torch.no_grad():
            inferer.logits(volume, network)
        seconds[slices] = min(process_time() - start, seconds.get(slices, float("inf")))
    assert seconds[1] > 1.5 * seconds[16], seconds
