"""Labels on other grids: they stay where they are, and have the class that most of a voxel shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from scripts.dataio.label_resampling import resampled_label, scaled_positions
from scripts.dataio.loaders import SliceDataset
from scripts.dataio.transforms import SliceGridd
from scripts.dataio.volume_grid import VolumeGridd

KEYS = ["image", "label"]


def discs(size: int, radius: float, number: int = 24) -> np.ndarray:
    """Discs at random places, ``(size, size, number)``."""
    rng = np.random.default_rng(3)
    x, y = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    centers = rng.uniform(size / 2 - size / 20, size / 2 + size / 20, (number, 2))
    return np.stack([(x - a) ** 2 + (y - b) ** 2 < radius**2 for a, b in centers], axis=-1).astype(np.float32)


def middle(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Mean over slices of the middle of what they show, in space."""
    places = []
    for k in range(array.shape[-1]):
        at = np.argwhere(array[..., k] > 0)
        weights = array[..., k][array[..., k] > 0]
        places.append((affine @ [*(at * weights[:, None]).sum(0) / weights.sum(), k, 1])[:2])
    return np.mean(places, axis=0)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [128, 64, 112])
def test_a_label_of_slices_stays_on_its_image(size, sign):
    """Half as fine, the nearest pixel would be half a pixel away, always on the same side."""
    array, affine = discs(256, 20), np.diag([sign * 0.7, sign * 0.7, 5.0, 1.0])
    item = {key: MetaTensor(torch.tensor(array[None]), affine=torch.tensor(affine)) for key in KEYS}
    seen = SliceGridd(KEYS, size, slice_axis="S", mode=["bilinear", "nearest"])(item)
    truth = middle(array, affine)
    for key in KEYS:
        away = (middle(seen[key][0].numpy(), seen[key].affine.numpy()) - truth) / 0.7
        assert np.abs(away).max() < 0.15, (key, away)
    assert {*seen["label"].unique().tolist()} == {0, 1}


@pytest.mark.parametrize("spacing", [2.0, 1.5, 4.0])
def test_a_label_of_volumes_stays_on_its_image(spacing):
    rng, grid = np.random.default_rng(0), np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij"))
    away = []
    for _ in range(6):
        center = rng.uniform(28, 36, 3).reshape(3, 1, 1, 1)
        array = (((grid - center) ** 2).sum(axis=0) < 15**2).astype(np.float32)
        item = {"label": MetaTensor(torch.tensor(array[None]), affine=torch.eye(4, dtype=torch.float64))}
        seen = VolumeGridd("label", [spacing] * 3, mode="nearest-exact")(item)["label"]
        place = seen.affine.numpy() @ [*np.argwhere(seen[0].numpy()).mean(axis=0), 1]
        away.append(place[:3] - np.argwhere(array).mean(axis=0))
    assert np.abs(np.mean(away, axis=0)).max() < 0.2


def test_a_label_of_smaller_slices_stays_on_its_image():
    """As in the first part of a training."""
    array = discs(128, 20)
    volume = torch.tensor(array).permute(2, 0, 1)[:, None]
    dataset = SliceDataset([{"image": "x"}], lambda _: dict.fromkeys(KEYS, volume.movedim(0, -1)), progress=False)
    dataset.size = (64, 64)
    affine = np.diag([2.0, 2.0, 1.0, 1.0])
    affine[:2, 3] = 0.5
    for key in KEYS:
        small = torch.stack([dataset[k][key][0] for k in range(24)], dim=-1).numpy()
        assert np.abs(middle(small, affine) - middle(array, np.eye(4))).max() < 0.15, key


@pytest.mark.parametrize("sizes", [((20, 17, 9), (11, 8, 9)), ((8, 9, 7), (13, 20, 15)), ((12, 12, 12), (12, 12, 12))])
def test_the_class_with_the_largest_share(sizes):
    """That of the linear interpolation of every class."""
    stored, target = sizes
    blocks = torch.randint(0, 5, (1, 1, 4, 4, 3), generator=torch.Generator().manual_seed(0)).float()
    label = F.interpolate(blocks, stored, mode="nearest")[0] - 1  # -1 is not judged
    found = resampled_label(label, [scaled_positions(n, m) for n, m in zip(stored, target)])
    shares = torch.stack(
        [F.interpolate((label == c).float()[None], target, mode="trilinear")[0, 0] for c in range(-1, 4)]
    )
    best = shares.topk(2, dim=0)
    clear = best.values[0] - best.values[1] > 1e-3
    assert found.dtype == label.dtype and found.shape == (1, *target) and clear.float().mean() > 0.6
    assert torch.equal(found[0][clear], best.indices[0][clear].float() - 1)
    if stored == target:
        assert torch.equal(found, label)


def test_ties_keep_the_organ_and_what_is_beyond_is_background():
    label = torch.tensor([[0.0, 2.0, 2.0, 0.0]])
    assert resampled_label(label, [torch.tensor([0.5, 1.5, 2.5])]).tolist() == [[2, 2, 2]]
    places = [torch.tensor([-2.0, -0.4, 0.0, 3.0, 5.0], dtype=torch.float64)]
    ones = torch.ones(1, 4)
    assert resampled_label(ones, places, outside=0).tolist() == [[0, 1, 1, 1, 0]]
    assert resampled_label(ones, places).tolist() == [[1, 1, 1, 1, 1]]
    assert resampled_label(ones.byte()[..., None], [None, torch.zeros(2)], outside=0).shape == (1, 4, 2)
