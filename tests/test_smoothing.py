"""Smoothing of patches and volumes that end within the body."""

from __future__ import annotations

import pytest
import torch
from helpers import BUNDLE
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import RandGaussianSmooth
from scripts.dataio.smoothing import RandSmooth, RandSmoothd, smoothed
from scripts.dataio.volume_grid import VolumeGridd


@pytest.mark.parametrize("shape", [(2, 20, 12), (1, 20, 12, 9)])
def test_inside_it_is_monais_and_at_the_border_nothing_gets_darker(shape):
    """Beyond the border the outermost voxels are repeated, so a ramp stays within its values."""
    torch.manual_seed(0)
    image, options = torch.rand(shape), {"sigma_x": (0.5, 0.5), "sigma_y": (0.3, 0.3), "sigma_z": (0.6, 0.6)}
    ours = RandSmoothd("image", prob=1.0, **options)({"image": image})["image"]
    theirs = RandGaussianSmooth(prob=1.0, **options)(image).as_tensor()
    inner = (slice(None), *[slice(3, -3)] * (len(shape) - 1))
    torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-5, rtol=0)
    flat = smoothed(torch.full(shape, 0.7), (2.0,) * (len(shape) - 1))
    torch.testing.assert_close(flat, torch.full(shape, 0.7), atol=1e-3, rtol=0)


@pytest.mark.parametrize("sigma", [(0.4, 1.7, 0.0), (3.0, 0.2, 5.0)])
def test_sums_of_shifted_images_are_the_convolution(sigma):
    """Up to the border, and beyond a kernel that is longer than the image."""
    image = torch.rand((2, 12, 9, 15), generator=torch.Generator().manual_seed(0))
    kernels = [gaussian_1d(torch.as_tensor(s)) for s in sigma]
    expected = separable_filtering(image[None], kernels, mode="replicate")[0]
    torch.testing.assert_close(smoothed(image, sigma), expected, atol=1e-5, rtol=0)


def test_draws_are_those_of_monai():
    image = torch.rand(1, 24, 24, 24)
    ours, theirs = RandSmooth(prob=0.5), RandGaussianSmooth(prob=0.5)
    for transform in (ours, theirs):
        transform.set_random_state(3)
    inner = (slice(None), *[slice(8, -8)] * 3)
    changed = []
    for _ in range(8):
        a, b = ours(image), theirs(image)
        torch.testing.assert_close(a[inner], b.as_tensor()[inner], atol=1e-3, rtol=0)
        changed.append(not torch.equal(a, image))
    assert any(changed) and not all(changed)


def test_strong_views_of_a_uniform_patch_are_uniform():
    """In the organ a patch has no border: brightness may change, but alike everywhere."""
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "volumes")])
    views = parser.get_parsed_content("strong_transforms")
    views.set_random_state(0)
    for transform in views.transforms:
        transform.prob = 1.0
    for _ in range(3):
        view = torch.as_tensor(views(torch.full((1, 16, 16, 16), 0.4)))
        assert float(view.max() - view.min()) < 1e-3


def test_a_uniform_volume_stays_so_when_its_voxels_become_larger():
    volume = MetaTensor(torch.full((1, 18, 20, 24), 0.5), affine=torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0])))
    coarse = VolumeGridd("image", (2.5, 1.0, 4.0))({"image": volume})["image"]
    assert coarse.shape == (1, 7, 20, 12)
    torch.testing.assert_close(coarse.as_tensor(), torch.full((1, 7, 20, 12), 0.5), atol=1e-4, rtol=0)
