"""Scores of images: hand values, bounds, and what they rise with."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.errors import InputError
from scripts.method.active_learning import Acquisition, disagreement, entropy
from scripts.method.network import SemSimNet


def certain(*classes: int, k: int = 4) -> torch.Tensor:
    """One-hot distributions ``(1, K, n)``."""
    return torch.nn.functional.one_hot(torch.tensor(classes), k).T[None].float()


def test_entropy_by_hand():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]]).T[None]  # (1, 2, 3)
    expected = [0.0, math.log(2), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    torch.testing.assert_close(entropy(p)[0], torch.tensor(expected))
    torch.testing.assert_close(entropy(torch.full((1, 4, 1), 0.25))[0, 0], torch.tensor(math.log(4)))


def test_disagreement_by_hand():
    """Zero where all agree, sure or unsure; log 2 between two sure and contrary ones; the entropy of the votes."""
    unsure = torch.full((1, 4, 2), 0.25)
    assert disagreement([unsure, unsure, unsure]).abs().max() < 1e-6
    torch.testing.assert_close(disagreement([certain(0, 1), certain(0, 2)])[0], torch.tensor([0.0, math.log(2)]))
    votes = disagreement([certain(1), certain(1), certain(3)])
    torch.testing.assert_close(votes[0, 0], torch.tensor(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))))
    with pytest.raises(ValueError, match="received 1"):
        disagreement([unsure])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SemSimNet(fusion="conv").eval()


def slices(number: int, size: int = 32) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(number, 1, size, size, generator=generator)
    label = torch.randint(4, (number, 1, size, size), generator=generator).float()
    return [{"image": i, "label": y} for i, y in zip(image, label)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_scores_of_an_image(network, batch_size):
    """The mean over its slices, however they are batched; disagreement once there is something to compare with."""
    image = torch.stack([s["image"] for s in slices(5)])
    scorer = Acquisition(network, num_classes=4, batch_size=batch_size)
    before = scorer.score(image)
    assert set(before) == {"entropy"} and 0 < before["entropy"] <= math.log(4)
    scorer.learn(slices(6))
    after = scorer.score(image)
    assert after["entropy"] == pytest.approx(before["entropy"]) and 0 < after["disagreement"] < math.log(4)
    alone = [scorer.score(image[k : k + 1])["disagreement"] for k in range(5)]
    assert after["disagreement"] == pytest.approx(sum(alone) / 5, rel=1e-4)


def test_prototypes_of_some_slices(network):
    scorer = Acquisition(network, num_classes=4)
    scorer.learn(slices(10), most=4)
    assert scorer.prototypes is not None and scorer.prototypes.vectors.shape[:3] == (4, 16, 4)
    scorer.learn([])
    assert scorer.prototypes is None


def test_no_fused_features():
    scorer = Acquisition(SemSimNet(fusion="none").eval(), num_classes=4)
    with pytest.raises(InputError, match="score by entropy"):
        scorer.learn(slices(2))
    assert set(scorer.score(slices(1)[0]["image"][None])) == {"entropy"}
