"""From stored volumes to slices and back; what is refused; strong views and CutMix."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    RandFlip,
    RandScaleIntensity,
    RandSimulateLowResolution,
    RandZoom,
)
from scripts.dataio.slice_axis import find_slice_axis
from scripts.dataio.transforms import AsVolumed, CheckVolumed, LabelValuesd, SliceGridd
from scripts.errors import InputError, find_input_error
from scripts.method.augmentation import CutMix, RandCutMix, StrongViewsd

RNG = np.random.default_rng(0)


def rotation(degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])


#: name -> direction matrix and voxel size of a stored volume
ORIENTATIONS = {
    "RAS": (np.eye(3), (1.5, 1.5, 8.0)),
    "LPS": (np.diag([-1, -1, 1.0]), (1.5, 1.5, 8.0)),
    "slices first": (np.eye(3)[[2, 0, 1]].T, (8.0, 1.5, 1.2)),
    "upside down": (np.diag([1, 1, -1.0]), (1.2, 1.5, 8.0)),
    "oblique": (rotation(25) @ np.roll(rotation(15), 1, axis=(0, 1)), (1.4, 1.4, 9.0)),
}


def store(path, shape, direction=None, spacing=(1.5, 1.5, 8.0), volume=None):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if direction is None else direction) @ np.diag(spacing)
    affine[:3, 3] = [7.0, -20.0, 3.0]
    volume = RNG.random(shape).astype(np.float32) if volume is None else volume
    nib.save(nib.Nifti1Image(volume, affine), path)
    return volume, affine


def pipeline(size, keys=("image",), slice_axis=None, mode="bilinear"):
    return Compose([
        LoadImaged(keys), EnsureChannelFirstd(keys), AsVolumed(keys),
        SliceGridd(keys, size, slice_axis=slice_axis, mode=mode),
    ])  # fmt: skip


@pytest.mark.parametrize(
    "spacing, shape, axis",
    [
        ((1.5, 1.5, 8), (200, 200, 10), 2),
        ((8, 1.5, 1.5), (10, 200, 200), 0),
        ((1, 1, 1), (216, 256, 10), 2),  # an identity affine: fewest voxels
        ((1, 1, 1), (10, 256, 216), 0),
        ((1, 1, 1), (64, 64, 64), 2),
        ((1, 1.005, 1), (20, 64, 64), 0),
    ],
)
def test_slice_axis(spacing, shape, axis):
    assert find_slice_axis(spacing, shape) == axis
    assert find_slice_axis(spacing, shape, 1) == 1
    with pytest.raises(InputError, match="slice_axis"):
        find_slice_axis(spacing, shape, 3)


@pytest.mark.parametrize("name", list(ORIENTATIONS))
def test_labels_return_to_their_own_grid(tmp_path, name):
    """A blocky label, sent to the network's grid and back, is itself again, whatever the stored orientation."""
    direction, spacing = ORIENTATIONS[name]
    axis = int(np.argmax(spacing))
    shape = [40, 44, 48]
    shape[axis] = 6
    volume = np.zeros(shape, np.float32)
    block = [slice(10, 30)] * 3
    block[axis] = slice(1, 4)
    volume[tuple(block)] = 1
    volume[tuple(slice(s.start, s.start + 5) if i != axis else slice(1, 2) for i, s in enumerate(block))] = 2
    _, affine = store(tmp_path / "a.nii.gz", shape, direction, spacing, volume)
    transform, item = pipeline(96), {"image": str(tmp_path / "a.nii.gz")}
    data, label = transform(item), pipeline(96, mode="nearest")(item)["image"]
    assert label.shape == (1, 96, 96, 6)
    np.testing.assert_allclose(label.affine, data["image"].affine, atol=1e-6)
    pred = torch.nn.functional.one_hot(label[0].long().as_tensor(), 3).movedim(-1, 0).float()
    back = Invertd("pred", transform, "image", nearest_interp=False)({**data, "pred": MetaTensor(pred)})["pred"]
    assert back.shape == (3, *shape)
    assert (back.argmax(0).numpy() == volume).mean() > 0.995
    np.testing.assert_allclose(back.affine.numpy(), affine, atol=1e-4)


def test_anatomy_looks_alike_however_it_is_stored(tmp_path):
    volume, _ = store(tmp_path / "ras.nii.gz", (40, 30, 5))
    lps = np.diag([-1, -1, 1.0])
    store(tmp_path / "lps.nii.gz", None, lps, volume=volume[::-1, ::-1].copy())
    store(tmp_path / "first.nii.gz", None, np.eye(3)[[2, 0, 1]].T, (8.0, 1.5, 1.5), volume=np.moveaxis(volume, 2, 0))
    slices = [pipeline((32, 32))({"image": str(tmp_path / f"{n}.nii.gz")})["image"] for n in ("ras", "lps", "first")]
    for other in slices[1:]:
        np.testing.assert_allclose(slices[0].numpy(), other.numpy(), atol=1e-4)


def test_proportions_are_kept_and_the_image_is_centred(tmp_path):
    store(tmp_path / "a.nii.gz", (60, 30, 4), volume=np.ones((60, 30, 4), np.float32))
    image = pipeline((64, 64))({"image": str(tmp_path / "a.nii.gz")})["image"][0, :, :, 0]
    inside = image > 0.5
    rows, cols = inside.any(1).sum().item(), inside.any(0).sum().item()
    assert rows == 64 and cols == pytest.approx(32, abs=1)
    assert abs(int(inside.any(0).nonzero().float().mean()) - 31) <= 1
    # pixels of 2 x 1 mm: 60 x 30 voxels are 120 x 30 mm
    store(tmp_path / "b.nii.gz", (60, 30, 4), spacing=(2.0, 1.0, 8.0), volume=np.ones((60, 30, 4), np.float32))
    image = pipeline((64, 48))({"image": str(tmp_path / "b.nii.gz")})["image"][0, :, :, 0]
    assert (image > 0.5).any(0).sum().item() == pytest.approx(16, abs=1) and image.shape == (64, 48)


def test_slices_keep_the_stored_order(tmp_path):
    volume = np.broadcast_to(np.arange(7, dtype=np.float32), (20, 20, 7)).copy()
    for direction in (np.eye(3), np.diag([1, 1, -1.0])):
        store(tmp_path / "a.nii.gz", None, direction, volume=volume)
        image = pipeline(16)({"image": str(tmp_path / "a.nii.gz")})["image"]
        assert image[0, 8, 8].round(decimals=4).tolist() == list(range(7)), "labeled_slices counts as the file does"


def check(tmp_path, image, label=None, channels=1, classes=4):
    data = {"image": str(tmp_path / "image.nii.gz")}
    nib.save(nib.Nifti1Image(np.asarray(image, np.float32), np.eye(4)), data["image"])
    if label is not None:
        data["label"] = str(tmp_path / "label.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(label, np.float32), np.eye(4)), data["label"])
    keys = list(data)
    steps = [LoadImaged(keys), EnsureChannelFirstd(keys), CheckVolumed(in_channels=channels, num_classes=classes)]
    return Compose([*steps, AsVolumed(keys)])(data)


@pytest.mark.parametrize(
    "image, label, message",
    [
        (np.full((4, 4, 2), np.nan), None, r"image\.nii\.gz: expected finite intensities, received 32 NaN"),
        (np.zeros((4, 4, 2)), np.zeros((4, 5, 2)), r"label\.nii\.gz: label has shape \(4, 5, 2\), its image"),
        (np.zeros((4, 4, 2)), np.full((4, 4, 2), 7), r"label\.nii\.gz: expected label values 0 to 3 .* received 7"),
        (np.zeros((4, 4, 2)), np.full((4, 4, 2), 0.5), "received 0.5"),
        (np.zeros((4, 4, 2)), np.full((4, 4, 2), -1), "received -1"),
        (np.zeros((4, 4, 2, 5)), None, r"image\.nii\.gz: expected 1 channel\(s\), received 5"),
    ],
)
def test_refused_with_the_file_and_the_remedy(tmp_path, image, label, message):
    with pytest.raises(Exception) as error:
        check(tmp_path, image, label)
    found = find_input_error(error.value)
    assert found is not None
    with pytest.raises(InputError, match=message):
        raise found


def test_good_volumes_and_channels_pass(tmp_path):
    assert check(tmp_path, np.zeros((4, 4, 2)), np.ones((4, 4, 2)))["image"].shape == (1, 4, 4, 2)
    assert check(tmp_path, np.zeros((4, 4, 2, 3)), channels=3)["image"].shape == (3, 4, 4, 2)
    assert check(tmp_path, np.zeros((4, 5)), np.ones((4, 5)))["image"].shape == (1, 4, 5, 1)


@pytest.mark.parametrize("kind", [Compose, list])
def test_strong_views_differ_and_follow_their_seed(kind):
    views = StrongViewsd("image", kind([RandScaleIntensity(0.5, prob=1.0)]))
    image = torch.rand(1, 8, 8)
    views.set_random_state(3)
    first = views({"image": image})
    views.set_random_state(3)
    again = views({"image": image})
    assert torch.equal(first["image"], image), "the weak view stays as it is"
    assert not torch.allclose(first["image_strong_1"], first["image_strong_2"])
    for name in ("image_strong_1", "image_strong_2"):
        assert torch.equal(first[name], again[name])


def test_a_strong_view_stays_in_its_place():
    with pytest.raises(InputError, match=r"strong_transforms: .* received RandFlip, RandZoom, which moves pixels away"):
        StrongViewsd("image", [RandScaleIntensity(0.5), RandFlip(0.5), Compose([RandZoom(0.5)])])
    StrongViewsd("image", [RandSimulateLowResolution(1.0)])  # blurs, though MONAI counts it among the spatial ones


def test_strong_views_keep_an_image_of_another_range_than_0_to_1():
    """Of an `intensity` of one's own, as deviations from the mean: nothing below 0 or above 1 is cut off."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
    views = StrongViewsd("image", parser.get_parsed_content("strong_transforms"))
    unit = torch.rand(1, 32, 32)
    unit[0, 0, :2] = torch.tensor([0.0, 1.0])
    for seed in range(10):
        views.set_random_state(seed)
        expected = views({"image": unit})
        views.set_random_state(seed)
        found = views({"image": 6 * unit - 2})
        for name in ("image_strong_1", "image_strong_2"):
            assert expected[name].min() >= 0 and expected[name].max() <= 1
            torch.testing.assert_close(found[name], 6 * expected[name] - 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (50, 80), (16, 24, 20)])
def test_cutmix_boxes(size):
    torch.manual_seed(0)
    image = torch.rand(400, 1, *size)
    mix = RandCutMix(prob=0.5)(image)
    share = mix.box.float().flatten(1).mean(dim=1)
    drawn = share > 0
    assert 0.4 < drawn.float().mean() < 0.6
    assert share[drawn].max() < 0.5 and 0.12 < share[drawn].mean() < 0.26
    assert len({tuple(b.nonzero()[0].tolist()) for b in mix.box[drawn]}) > 100, "every image has a corner of its own"
    assert torch.all(mix.partner != torch.arange(400)) and len(set(mix.partner.tolist())) == 400
    mixed = mix(image)
    assert torch.equal(mixed, torch.where(mix.box, image[mix.partner], image))


def test_cutmix_keeps_image_and_labels_together_at_every_resolution():
    box = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    box[0, :, :4, :4] = True
    mix = CutMix(box, torch.tensor([1, 0]))
    label = torch.tensor([1, 2]).view(2, 1, 1).expand(2, 8, 8)
    assert mix(label)[0, 0, 0] == 2 and mix(label)[0, 7, 7] == 1 and torch.all(mix(label)[1] == 2)
    small = mix(label[:, ::4, ::4])
    assert small[0].tolist() == [[2, 1], [1, 1]]
    assert torch.equal(mix(label[:, None].float())[:, 0].long(), mix(label))
    alone = RandCutMix(prob=1.0)(torch.rand(1, 1, 8, 8))
    assert alone.partner.tolist() == [0]


@pytest.mark.parametrize("codes", ["LPS", "RAS", "ASR"])
def test_a_label_stored_in_another_orientation_is_turned_to_its_image(tmp_path, codes):
    label = np.zeros((9, 9, 9), np.uint8)
    label[1:4, 2:7, 5:6] = 1
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nib.save(nib.Nifti1Image(label.astype(np.float32), affine), tmp_path / "image.nii.gz")
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    nib.save(nib.Nifti1Image(label, affine).as_reoriented(turn), tmp_path / "label.nii.gz")
    keys = ["image", "label"]
    steps = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), CheckVolumed(in_channels=1, num_classes=2)])
    result = steps({key: str(tmp_path / f"{key}.nii.gz") for key in keys})
    np.testing.assert_array_equal(result["label"], result["image"])
    np.testing.assert_allclose(result["label"].affine, affine)


def test_a_label_of_another_place_is_refused(tmp_path):
    for name, shift in (("image", 0.0), ("label", 500.0)):
        affine = np.diag([1.5, 1.5, 5.0, 1.0])
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), affine), tmp_path / f"{name}.nii.gz")
    keys = ["image", "label"]
    steps = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), CheckVolumed(in_channels=1, num_classes=2)])
    with pytest.raises(RuntimeError) as error:
        steps({key: str(tmp_path / f"{key}.nii.gz") for key in keys})
    assert "lies elsewhere by its header" in str(error.value.__cause__)


def label_on_image(tmp_path, image_affine, label_affine, label_array=None):
    """Where a label of one voxel lies, read as in training; ``None``: the file states no affine."""
    array = np.zeros((8, 10, 4), np.float32)
    array[1, 2, 3] = 1
    for name, affine, values in (("image", image_affine, array), ("label", label_affine, label_array)):
        volume = nib.Nifti1Image(array if values is None else values, affine)
        if affine is None:
            volume.header.set_zooms((1.5, 1.5, 8.0))
        nib.save(volume, tmp_path / f"{name}.nii.gz")
    read = LoadImaged(["image", "label"], ensure_channel_first=True)(
        {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}
    )
    checked = CheckVolumed(in_channels=1, num_classes=2)(read)
    np.testing.assert_allclose(checked["label"].affine, checked["image"].affine, atol=1e-4)
    return np.argwhere(np.asarray(checked["label"][0]) == 1).tolist()


def test_a_label_that_states_no_grid_lies_on_its_image(tmp_path):
    """NIfTI says so by two codes of zero; nibabel then makes up an affine that would mirror the label."""
    affine = np.diag([1.5, 1.5, 8, 1.0])
    affine[:3, 3] = (-47, -59, -36)
    assert label_on_image(tmp_path, affine, None) == [[1, 2, 3]]
    assert label_on_image(tmp_path, None, affine) == [[1, 2, 3]]
    assert label_on_image(tmp_path, affine, np.eye(4)) == [[1, 2, 3]]


def test_an_image_of_one_millimetre_states_its_grid(tmp_path):
    """The same anatomy, the label stored from left to right, is turned to an image whose axes are those of space."""
    affine = np.eye(4)
    affine[:3, 3] = (-4, -5, -2)
    turned = np.zeros((8, 10, 4), np.float32)
    turned[8 - 1 - 1, 10 - 1 - 2, 3] = 1
    other = np.diag([-1.0, -1.0, 1.0, 1.0])
    other[:3, 3] = (-4 + 7, -5 + 9, -2)
    assert label_on_image(tmp_path, affine, other, turned) == [[1, 2, 3]]


def test_a_value_that_is_no_class_is_refused():
    label = MetaTensor(torch.tensor([[[0.0, 1.0, 2.0]]]), meta={"filename_or_obj": "a.nii.gz"})
    to_classes = LabelValuesd("label", [0, 2], ["background", "tumour"])
    with pytest.raises(InputError, match=r"a\.nii\.gz: expected label values \[0, 2\], received 1, too"):
        to_classes({"label": label})
    label[label == 1] = 0
    assert to_classes({"label": label})["label"].flatten().tolist() == [0, 0, 1]


def test_more_classes_than_a_prediction_can_hold():
    CheckVolumed(in_channels=1, num_classes=256)
    with pytest.raises(InputError, match=r"class_names: expected 256 classes at most.*received 257"):
        CheckVolumed(in_channels=1, num_classes=257)
