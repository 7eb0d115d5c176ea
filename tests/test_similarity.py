"""Similarities against the slow reference, and what a user of them would notice."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from conftest import BUNDLE
from scripts.method import similarity
from scripts.method.similarity import (
    affinity,
    agreement,
    class_prototypes,
    cross_log_probabilities,
    cross_similarity,
    merge_regions,
    refine,
    split_regions,
)

torch.manual_seed(0)


def random_features(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64) ** 3  # rectified, as f~ is


def as_positions(x: torch.Tensor) -> np.ndarray:
    return x.flatten(1).T.numpy()


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 7), (2, 3, 4)])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("channels", [8, 3])
def test_refine_equals_reference(size, temperature, channels):
    features, p = random_features(2, channels, *size), random_features(2, 4, *size)
    p = p / p.sum(dim=1, keepdim=True)
    fast = refine(features, p, temperature=temperature)
    printed = refine(features, p, temperature=temperature, axis="column", combine="sum")
    for b in range(2):
        slow = reference.refine(as_positions(features[b]), as_positions(p[b]), temperature)
        np.testing.assert_allclose(as_positions(fast[b]), slow, atol=1e-10)
        slow = reference.refine_printed(as_positions(features[b]), as_positions(p[b]), temperature)
        np.testing.assert_allclose(as_positions(printed[b]), slow, atol=1e-10)
    torch.testing.assert_close(fast.sum(dim=1), torch.ones_like(fast[:, 0]))


@pytest.mark.parametrize("block", [3, 7, 100])
def test_refinement_by_blocks(monkeypatch, block):
    """Any cut of the map gives the reference's values and the right gradients, zero features included."""
    monkeypatch.setitem(similarity.BLOCK, "cpu", block)
    features, p = random_features(2, 5, 4, 4), random_features(2, 3, 4, 4)
    features[0, :, 1, 2] = 0
    fast = refine(features, p, temperature=0.3)
    m = affinity(features, temperature=0.3)
    expected = (p + (p.flatten(2) @ m.transpose(1, 2)).view_as(p)) / 2
    torch.testing.assert_close(fast, expected)
    features = random_features(2, 5, 4, 4)  # a normalised zero has no gradient
    inputs = (features.requires_grad_(), p.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, q: refine(f, q, temperature=0.3), inputs)


def test_refinement_in_bfloat16_is_that_of_float64_up_to_rounding():
    """Value, and the gradients of features and probabilities, of like regions as a trained network has them."""
    torch.manual_seed(0)
    classes = torch.randint(0, 4, (2, 24, 20))
    centers = torch.rand(4, 32, dtype=torch.float64)
    features = (centers[classes] + 0.3 * torch.rand(2, 24, 20, 32, dtype=torch.float64)).movedim(-1, 1)
    p = torch.softmax(3 * torch.randn(2, 4, 24, 20, dtype=torch.float64), dim=1)
    g = torch.randn_like(p)
    results = []
    for kind in (torch.float64, torch.bfloat16):
        f, q = features.to(kind).double().requires_grad_(), p.clone().requires_grad_()
        out = refine(f.to(kind), q if kind == torch.float64 else q.float())
        results.append([out.double(), *torch.autograd.grad(out, [f, q], g.to(out.dtype))])
    for expected, found in zip(*results):
        error = (found - expected).norm() / expected.norm()
        assert error < 0.02, error


def test_refinement_is_finite_down_to_its_lowest_temperature():
    features = random_features(1, 4, 3, 3).float()
    features[..., 0, 0] = 0
    p = torch.rand(1, 2, 3, 3)
    features.requires_grad_()
    result = refine(features, p, temperature=similarity.LOWEST_TEMPERATURE)
    result.square().sum().backward()
    assert torch.isfinite(result).all() and torch.isfinite(features.grad).all()
    with pytest.raises(ValueError, match=r"should be 0\.012 at least, received 0\.001"):
        refine(features, p, temperature=0.001)


def test_affinity_rows_are_distributions_and_literal_ones_are_nearly_uniform():
    features = random_features(1, 128, 14, 14)
    m = affinity(features, temperature=1.0)
    torch.testing.assert_close(m.sum(dim=-1), torch.ones(1, 196, dtype=torch.float64))
    assert m.max() < 3 / 196  # METHOD 4, row 3: why there is a temperature
    assert affinity(features, temperature=0.02).max() > 20 / 196


def test_refinement_pulls_a_wrong_pixel_to_its_like():
    features = torch.zeros(1, 2, 4, 4)
    features[:, 0, :, :2], features[:, 1, :, 2:] = 1.0, 1.0
    p = torch.zeros(1, 2, 4, 4)
    p[:, 0, :, :2], p[:, 1, :, 2:] = 1.0, 1.0
    p[0, :, 0, 0] = torch.tensor([0.4, 0.6])  # wrong beside seven of its own kind
    assert p[0, :, 0, 0].argmax() == 1
    assert refine(features, p, temperature=0.05)[0, :, 0, 0].argmax() == 0


PEAK = """
import sys, resource, torch
sys.path.insert(0, {bundle!r})
from scripts.method.similarity import affinity, refine
torch.set_num_threads(1)
n = int(sys.argv[1]); side = int(n ** 0.5)
f = torch.rand(1, 128, side, side, requires_grad=True); p = torch.rand(1, 4, side, side, requires_grad=True)
refine(f[..., :8, :8], p[..., :8, :8]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[2] == "map":
    flat = p.flatten(2).transpose(1, 2)
    (affinity(f) @ flat).sum().backward()
else:
    refine(f, p).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_kib(positions: int, how: str) -> int:
    code = PEAK.format(bundle=str(BUNDLE))
    result = subprocess.run(
        [sys.executable, "-c", code, str(positions), how], capture_output=True, text=True, check=True, timeout=200
    )
    return int(result.stdout)


def test_memory_of_refinement_is_linear_in_positions():
    small, large = peak_kib(3136, "fast"), peak_kib(12544, "fast")
    assert large < 6 * max(small, 8 * 1024), (small, large)  # four times the positions; a map would take sixteen times
    assert large < 0.2 * 12544**2 * 4 / 1024, large  # far below one float32 map of n x n


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (2, 3), (4, 4, 4), (3, 5, 2)])
def test_regions_are_inverted(size):
    x = torch.rand(2, 3, *size)
    assert torch.equal(merge_regions(split_regions(x, 4), 4, size), x)


@pytest.mark.parametrize("size", [(8, 8), (6, 7), (4, 4, 3)])
@pytest.mark.parametrize("regions", [1, 2, 4])
@pytest.mark.parametrize("average", [True, False])
def test_cross_similarity_equals_reference(size, regions, average):
    torch.manual_seed(1)
    dims, images, classes = len(size), 3, 4
    features_l, features_u = random_features(images, 6, *size), random_features(2, 6, *size)
    labels = torch.randint(0, classes - 1, (images, *size))  # the last class is absent from the whole batch
    labels[0][labels[0] == 1] = 0  # and class 1 from the first image
    labels[:, 0] = 0  # and foreground from some sub-regions
    protos = class_prototypes(features_l, labels, num_classes=classes, regions=regions)
    similarity = cross_similarity(features_u, protos, regions=regions)
    log_p = cross_log_probabilities(similarity, protos.present, temperature=0.2, average_images=average)
    p = merge_regions(log_p, regions, size).exp()
    weight = merge_regions(agreement(similarity, protos.present, scale=10.0).unsqueeze(-1), regions, size)[:, 0]

    last = list(range(2, 2 + dims))
    slow = reference.prototypes(features_l.permute(0, *last, 1).numpy(), labels.numpy(), classes, regions)
    for b in range(2):
        f = features_u[b].permute(*range(1, dims + 1), 0).numpy()
        expected = reference.cross_probabilities(f, slow, images, classes, regions, 0.2, average)
        np.testing.assert_allclose(p[b].permute(*range(1, dims + 1), 0).numpy(), expected, atol=1e-9)
        expected = reference.agreement(f, slow, images, classes, regions, 10.0)
        np.testing.assert_allclose(weight[b].numpy(), expected, atol=1e-9)
    assert torch.all(p[:, classes - 1] == 0), "a class that no labelled image shows is never predicted"


def test_without_temperature_confidence_stays_below_every_threshold():
    for classes in (2, 4):
        best = torch.zeros(1, classes)
        best[0, 0] = 1.0  # cosine one with its own class, zero with the others: as sure as it gets
        present = torch.ones(1, classes, dtype=torch.bool)
        literal = cross_log_probabilities(best, present, temperature=1.0).exp().max().item()
        assert literal == pytest.approx(math.e / (math.e + classes - 1), abs=1e-6)
        assert literal < 0.95 < cross_log_probabilities(best, present, temperature=0.1).exp().max()


def test_agreement_is_one_where_images_agree_and_carries_no_gradient():
    present = torch.ones(2, 3, dtype=torch.bool)
    m = torch.tensor([[[0.9, 0.1, 0.2], [0.9, 0.1, 0.2]], [[0.9, 0.1, 0.2], [0.1, 0.9, 0.2]]], requires_grad=True)
    weight = agreement(m, present, scale=1000.0)
    assert weight[0] == pytest.approx(1.0) and weight[1] < 1e-6 and not weight.requires_grad
    assert torch.isfinite(agreement(torch.zeros(1, 2, 3), present, divergence="cosine")).all()


def test_classes_that_an_image_lacks_are_no_disagreement():
    """Identical cosines agree wholly, also when half of the labelled slices show background alone."""
    m = torch.tensor([0.9, 0.2, 0.3, 0.1]).expand(8, 4)
    present = torch.ones(8, 4, dtype=torch.bool)
    present[:5, 1:] = False
    assert agreement(m, present, scale=1000.0).item() == pytest.approx(1.0, abs=1e-3)


def test_labels_meet_the_features_under_them():
    """A class border between two pixels of f~ is met exactly: no prototype takes in its neighbour's features."""
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = 1
    labels[:, :, 4] = 1  # one stray column, far from the centre of any feature
    features = torch.zeros(1, 2, 4, 4)
    features[:, 0, :, :2], features[:, 1, :, 2:] = 1.0, 1.0
    vectors = class_prototypes(features, labels, num_classes=2, regions=1).vectors[0, 0]
    torch.testing.assert_close(vectors, torch.eye(2))


def test_gradients():
    torch.manual_seed(2)
    features = (torch.rand(2, 3, 4, 4, dtype=torch.float64) + 0.1).requires_grad_()
    p = torch.rand(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 2, (2, 4, 4))
    assert torch.autograd.gradcheck(lambda f, q: refine(f, q, temperature=0.5), (features, p))

    def cross(f):
        protos = class_prototypes(f, labels, num_classes=3, regions=2)
        return cross_log_probabilities(cross_similarity(f, protos, regions=2), protos.present)

    assert torch.autograd.gradcheck(cross, (features,))


def test_refusals():
    f, p = torch.rand(1, 4, 4, 4), torch.rand(1, 2, 4, 5)
    with pytest.raises(ValueError, match="agree in batch and size"):
        refine(f, p)
    with pytest.raises(ValueError, match="row or column"):
        refine(f, p[..., :4], axis="diagonal")
    with pytest.raises(ValueError, match="labels should be"):
        class_prototypes(f, torch.zeros(2, 4, 4), num_classes=2)
    with pytest.raises(ValueError, match="softmax or cosine"):
        agreement(torch.rand(1, 2), torch.ones(1, 2, dtype=torch.bool), divergence="euclid")
