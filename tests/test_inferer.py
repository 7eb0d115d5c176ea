"""Prediction in blocks of slices: the labels of a prediction of the whole volume, in little memory."""

from __future__ import annotations

import logging
from itertools import permutations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SliceInferer
from monai.networks.blocks import Convolution
from monai.networks.nets import AttentionUnet, UNet
from monai.transforms import (
    Activationsd,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    OneOf,
    RandAxisFlipd,
    RandFlipd,
    RandRotate90d,
    ScaleIntensityd,
)
from PIL import Image
from scipy.ndimage import gaussian_filter
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.transforms import AsVolumed, SliceGridd
from scripts.errors import InputError
from scripts.evaluation import inferer as module
from scripts.evaluation.inferer import SliceLabelInferer, for_mixed_precision
from scripts.evaluation.stored_grid import AsStoredd
from scripts.evaluation.volume_inferer import label_inferer
from scripts.method.network import SegmentationNet
from scripts.precision import Precision
from torch import nn
from torch.profiler import profile

CLASSES = 5
TURNS = [(order, flips) for order in permutations(range(3)) for flips in ((1, 1, 1), (-1, 1, -1), (1, -1, -1))]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Slices in, patches of every class out."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 7, padding=3), nn.InstanceNorm2d(16), nn.Tanh(),
                         nn.Conv2d(16, CLASSES, 3, padding=1), nn.InstanceNorm2d(CLASSES)).eval()  # fmt: skip


def write(path: Path, order=(0, 1, 2), flips=(1, 1, 1), *, oblique: bool = False) -> str:
    """A volume of 37 x 50 x 9 voxels, stored in some orientation."""
    values = gaussian_filter(np.random.default_rng(0).normal(size=(37, 50, 9)), (2, 2, 0)).astype(np.float32)
    affine = np.diag([1.2, 0.9, 8, 1])
    affine[:3, 3] = 3, -5, 7
    if oblique:
        turn, tilt = np.eye(4), np.eye(4)
        turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
        tilt[1:3, 1:3] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
        affine = tilt @ turn @ affine
    nib.save(nib.Nifti1Image(values, affine).as_reoriented(np.array(list(zip(order, flips)))), path)
    return str(path)


def prepared(size: int | tuple[int, int], slice_axis: int | None = None) -> Compose:
    return Compose([LoadFilesd("image"), EnsureChannelFirstd("image"), AsVolumed("image"), ScaleIntensityd("image"),
                    SliceGridd("image", size, slice_axis=slice_axis)])  # fmt: skip


def roi(size: int | tuple[int, int]) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


@torch.no_grad()
def of_the_whole(transform: Compose, path: str, size, network: nn.Module) -> MetaTensor:
    """Probabilities of the whole volume, resampled by MONAI to the grid of the file."""
    batch = dict(list_data_collate([transform({"image": path})]))
    batch["pred"] = SliceInferer(roi_size=roi(size), sw_batch_size=16, spatial_dim=2)(batch["image"], network)
    back = Invertd("pred", transform, orig_keys="image", nearest_interp=False)
    return Compose([Activationsd("pred", softmax=True), back])(decollate_batch(batch)[0])["pred"]


@torch.no_grad()
def in_blocks(transform: Compose, path: str, size, network: nn.Module, **options) -> MetaTensor:
    batch = dict(list_data_collate([transform({"image": path})]))
    inferer = SliceLabelInferer(roi_size=roi(size), sw_batch_size=4, spatial_dim=2, **{"amp": False, **options})
    batch["pred"] = inferer(batch["image"], network)
    return AsStoredd("pred")(decollate_batch(batch)[0])["pred"]


def assert_the_same(transform: Compose, path: str, size, network: nn.Module) -> None:
    p, labels = of_the_whole(transform, path, size, network), in_blocks(transform, path, size, network)
    expected = p.argmax(dim=0, keepdim=True)
    assert labels.dtype == torch.uint8 and labels.shape == expected.shape
    np.testing.assert_allclose(labels.affine, p.affine, atol=1e-6)
    assert labels.meta["filename_or_obj"] == path
    two = p.as_tensor().topk(2, dim=0).values
    other = (labels.as_tensor() != expected.as_tensor())[0]
    assert not (other & (two[0] - two[1] > 1e-5)).any(), "up to ties"
    assert len(expected.unique()) == CLASSES and other.float().mean() < 1e-3


@pytest.mark.parametrize("number, turn", enumerate(TURNS))
def test_labels_are_those_of_the_whole_volume(number, turn, network, tmp_path):
    """Whatever the orientation: probabilities on the grid of the file, and then the most probable class."""
    size = (48, 32) if number % 3 else 40
    path = write(tmp_path / "a.nii.gz", *turn, oblique=number % 2 == 1)
    assert_the_same(prepared(size), path, size, network)


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_along_another_axis(axis, network, tmp_path):
    assert_the_same(prepared(32, axis), write(tmp_path / "a.nii.gz"), 32, network)


def test_pictures_and_slices_of_the_same_size(network, tmp_path):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (50, 70), dtype=np.uint8)).save(tmp_path / "p.png")
    assert_the_same(prepared((32, 48)), str(tmp_path / "p.png"), (32, 48), network)
    same = gaussian_filter(rng.normal(size=(32, 32, 5)), (2, 2, 0)).astype(np.float32)
    nib.save(nib.Nifti1Image(same, np.diag([1.0, 1.0, 3.0, 1.0])), tmp_path / "same.nii.gz")
    assert_the_same(prepared(32), str(tmp_path / "same.nii.gz"), 32, network)


class Head(nn.Module):
    """Logits of ``classes`` classes at no cost."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.factors = torch.linspace(-1, 1, classes)[:, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


def bytes_in_use(classes: int, slices: int) -> int:
    """What tensors take at most while a volume of 64 x 64 x ``slices`` is predicted, beyond the volume itself."""
    item = SliceGridd("image", 48)({"image": MetaTensor(torch.rand(1, 64, 64, slices), affine=np.diag([1, 1, 4.0, 1]))})
    inferer = SliceLabelInferer(roi_size=(48, 48), sw_batch_size=4, spatial_dim=2, amp=False)
    with torch.no_grad(), profile(profile_memory=True) as record:
        inferer(item["image"][None], Head(classes))
    held = highest = 0
    changes = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def test_memory_of_a_long_volume_does_not_depend_on_the_number_of_classes():
    """A block of slices has K probabilities a voxel; what a further slice takes is its labels, one byte a pixel."""
    more = {k: bytes_in_use(k, 60) - bytes_in_use(k, 20) for k in (2, 16)}
    for grown in more.values():
        assert 0 < grown < 2 * 64 * 64 * 40, "one byte a voxel of the file, not 4 K"


def test_half_precision_gives_the_labels_of_float32(network, tmp_path, caplog):
    path = write(tmp_path / "a.nii.gz")
    seen = []
    handle = network[0].register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    with caplog.at_level(logging.INFO, logger="semsim"):
        plain, half = (in_blocks(prepared(40), path, 40, network, amp=amp) for amp in (False, True))
    handle.remove()
    assert set(seen[: len(seen) // 2]) == {torch.float32} and set(seen[len(seen) // 2 :]) == {torch.bfloat16}
    assert (plain == half).float().mean() > 0.98
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Prediction in ")]
    assert len(said) == 2 and "float32 (amp is False)" in said[0] and "bfloat16" in said[1]


@pytest.mark.parametrize("given", [[2], [-1], "yes", [0.5], 1.0, [True], 0, 1])
def test_flips_along_other_axes_are_refused(given):
    with pytest.raises(InputError, match="flip_tta: expected True, False or a list of axes from 0 to 1, received"):
        SliceLabelInferer(roi_size=(32, 32), spatial_dim=2, flip_tta=given)


@pytest.mark.parametrize(
    "flip_tta, flips",
    [(True, ((), (2,), (3,), (2, 3))), ([1], ((), (3,))), ([1, 0], ((), (2,), (3,), (2, 3)))],
)
def test_flips_give_the_mean_of_the_predictions(network, tmp_path, flip_tta, flips):
    """By hand: probabilities of each flip, flipped back, and their mean."""
    volume = prepared(32)({"image": write(tmp_path / "a.nii.gz")})["image"].as_tensor()[None]
    plain, flipped = (SliceLabelInferer(roi_size=(32, 32), sw_batch_size=4, spatial_dim=2, flip_tta=t)
                      for t in (False, flip_tta))  # fmt: skip
    with torch.no_grad():
        found = flipped.logits(volume, network).softmax(1)
        p = [plain.logits(volume.flip(d), network).softmax(1).flip(d) for d in flips]
    assert torch.allclose(found, torch.stack(p).mean(0), atol=1e-5) and not torch.allclose(found, p[0], atol=1e-2)


@pytest.mark.parametrize(
    ("transforms", "known"),
    [
        ([RandFlipd("image", 0.5, 0), RandRotate90d("image"), RandFlipd("image", 0.5, -1)], True),
        ([RandAxisFlipd("image")], True),
        ([RandFlipd("image", 0.5, 1)], [1]),  # left and right are different classes
        ([RandFlipd("image", 0.5, None)], False),  # both axes at once, never one of them
        ([RandFlipd("image", 0.5, [0, 1])], False),
        ([RandRotate90d("image")], False),
        ([RandFlipd("image", 0.0, 0), RandFlipd("image", 0.5, 1)], [1]),  # turned off by an option
        ([RandFlipd("label", 0.5, 0), RandFlipd("label", 0.5, 1)], False),
        ([], False),
        (None, False),
        (Compose([RandFlipd("image", 0.5, 0), Compose([RandFlipd("image", 0.5, 1)])]), True),
        ([OneOf([RandFlipd("image", 0.5, 0), RandFlipd("image", 0.5, 1)])], False),
        (RandAxisFlipd("image", 0.1), True),
    ],
)
def test_a_network_knows_the_flips_that_it_has_seen(transforms, known):  # true: along both axes
    assert module.flips_learnt(transforms) == known


def test_the_precision_is_the_one_rule_and_probabilities_are_float32(monkeypatch, network):
    monkeypatch.setattr(module, "precision", lambda amp, device: Precision("cpu", torch.bfloat16, f"{amp} on {device}"))
    inferer = SliceLabelInferer(roi_size=(16, 16), sw_batch_size=4, spatial_dim=2)
    dtypes = []
    handle = network[3].register_forward_hook(lambda _m, _i, output: dtypes.append(output.dtype))
    with torch.no_grad():
        logits = inferer.logits(torch.rand(1, 1, 16, 16, 3), network)
    handle.remove()
    assert dtypes == [torch.bfloat16] and logits.dtype == torch.float32 and logits.shape == (1, CLASSES, 16, 16, 3)


def test_half_precision_keeps_the_edges_of_a_unet():
    """Batch norm in the convolutions and the level at full resolution in float32: a third of the rounding goes."""
    torch.manual_seed(0)
    network = SegmentationNet(features=(8, 8, 16, 16, 32, 8)).eval()
    for block in network.modules():
        if isinstance(block, nn.BatchNorm2d):
            nn.init.normal_(block.weight, 1.0, 0.3)
            block.running_mean.normal_()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.rand(4, 1, 48, 48)
    prepared = for_mixed_precision(network)
    with torch.no_grad():
        exact = network(image)
        torch.testing.assert_close(prepared(image), exact, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(n(image) - exact).abs().mean() for n in (network, prepared)]
    assert errors[1] < 0.67 * errors[0]
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert for_mixed_precision(network.train()) is network


@pytest.mark.parametrize(
    "net",
    [
        lambda: AttentionUnet(2, 1, 3, channels=(4, 8), strides=(2,)),
        lambda: UNet(2, 1, 3, channels=(4, 8, 8), strides=(2, 2), num_res_units=1, norm="batch", dropout=0.2),
        lambda: UNet(2, 1, 3, channels=(4, 8), strides=(2,), norm="batch", adn_ordering="DAN"),
        lambda: Convolution(2, 1, 3, norm="batch", adn_ordering="AND"),
        lambda: Convolution(2, 1, 3, norm=("batch", {"track_running_stats": False})),
    ],
    ids=["attention", "residual", "order", "block", "no statistics"],
)
def test_half_precision_computes_any_network_of_monai(net):
    """Transposed convolutions, and batch norm after the activation: prepared or not, the network is the same one."""
    torch.manual_seed(0)
    network = net().eval()
    for block in network.modules():
        if isinstance(block, nn.BatchNorm2d) and block.running_mean is not None:
            nn.init.normal_(block.weight, 1.0, 0.3)
            block.running_mean.normal_()
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(for_mixed_precision(network)(image), network(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("flip_tta", [True, False])
def test_logits_that_are_no_numbers_are_no_background(value, flip_tta):
    """Of one voxel, in 2D and 3D; minus infinity is a probability of 0."""

    def network(x):
        logits = torch.cat([x, -x, torch.full_like(x, -torch.inf)], dim=1)
        logits[-1, 1, 3, 4] = value
        return logits

    for inferer, image in (
        (label_inferer(2, 16, 2, amp=False, flip_tta=flip_tta), torch.rand(1, 1, 16, 16, 3)),
        (label_inferer(3, 16, 16, amp=False, flip_tta=flip_tta), torch.rand(1, 1, 16, 16, 20)),
    ):
        with pytest.raises(InputError, match="network: expected finite logits, received NaN or infinity"):
            inferer.logits(image, network)
        assert inferer.logits(image, lambda x: network(x).nan_to_num(0, 0, -torch.inf)).shape[1] == 3


@pytest.mark.parametrize("given", [0, -1, 2.0, True, "16"])
def test_no_slice_at_once_is_refused(given):
    for dims in (2, 3):
        with pytest.raises(InputError, match="slice_batch: expected a whole number of 1 or more, received"):
            label_inferer(dims, 32, given)


def test_what_cannot_be_predicted_is_refused(network):
    options = {"roi_size": (16, 16), "sw_batch_size": 4, "spatial_dim": 2}
    with pytest.raises(InputError, match="expected auto, True or False, received 'fast'"):
        SliceLabelInferer(**options, amp="fast")
    with pytest.raises(ValueError, match="SliceGridd has prepared"):
        SliceLabelInferer(**options)(MetaTensor(torch.rand(1, 1, 16, 16, 3)), network)
    with pytest.raises(ValueError, match="one volume at a time"):
        SliceLabelInferer(**options)(MetaTensor(torch.rand(2, 1, 16, 16, 3)), network)
