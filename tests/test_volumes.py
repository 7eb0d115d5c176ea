"""Training and prediction in 3D: the grid of the network, patches, and the way back to the grid of the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import samples
import torch
from helpers import read_rows, volume_transform, workflow
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import DynUNet
from monai.transforms import Compose
from PIL import Image
from scripts.dataio.sizes import Stages, patch_size
from scripts.dataio.volume_grid import voxel_spacing
from scripts.errors import InputError, find_input_error
from scripts.evaluation.export import export
from scripts.evaluation.inferer import SliceLabelInferer
from scripts.evaluation.stored_grid import AsStoredd
from scripts.evaluation.volume_inferer import VolumeLabelInferer, label_inferer
from scripts.method.network import SemSimNet
from scripts.precision import amp_of_patches
from scripts.training import settings as settings_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

SIZE = (16, 16, 16)


class ByIntensity(nn.Module):
    """A network that knows the answer: organs by their Hounsfield units, with no context."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -((x - torch.tensor([-80.0, 60.0, 180.0]).view(1, 3, 1, 1, 1)) ** 2) / 400


def predicted(item: dict, transform: Compose, network: nn.Module, **options) -> MetaTensor:
    batch = dict(list_data_collate([transform(item)]))
    inferer = VolumeLabelInferer(options.pop("size", SIZE), 2, amp=False, **options)
    with torch.no_grad():
        batch["pred"] = inferer(batch["image"], network)
    return AsStoredd("pred")(decollate_batch(batch)[0])["pred"]


# ---- the grid --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order, flips", [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 0, 2), (1, -1, 1))])
def test_a_network_that_knows_the_answer_gives_the_labels_of_the_file(tmp_path, order, flips):
    """From an anisotropic oblique file to voxels of one size and back, on the file's own grid."""
    affine = samples.oblique((1.1, 1.4, 2.5), order, flips)
    shape = tuple(np.array([40, 32, 18])[list(order)])
    item = samples.write_ct(tmp_path, "a", shape, affine)
    nib.save(
        nib.Nifti1Image(np.choose(samples.balls(shape, affine), [-80, 60, 180]).astype(np.int16), affine), item["image"]
    )
    pred = predicted({"image": item["image"]}, volume_transform(keys=["image"]), ByIntensity())
    truth = nib.load(item["label"])
    assert pred.dtype == torch.uint8 and pred.shape[1:] == truth.shape
    np.testing.assert_allclose(pred.affine, truth.affine, atol=1e-5)
    expected = np.asarray(truth.dataobj)
    for c, least in ((1, 0.93), (2, 0.75)):  # resampling blurs the edges
        found = pred[0].numpy() == c
        assert 2 * (found & (expected == c)).sum() / (found.sum() + (expected == c).sum()) > least


def test_the_grid_of_the_network_is_that_of_the_body_with_voxels_of_one_size(tmp_path):
    affine = samples.oblique((1.0, 2.0, 3.0), (2, 0, 1), (-1, 1, 1))
    item = volume_transform((2.0, 2.0, 2.0))(samples.write_ct(tmp_path, "a", (10, 30, 20), affine))
    assert item["image"].shape == item["label"].shape == (1, 15, 20, 15)
    assert nib.aff2axcodes(item["image"].affine.numpy()) == ("R", "A", "S")
    np.testing.assert_allclose(np.linalg.norm(item["image"].affine[:3, :3], axis=0), 2.0, atol=1e-5)
    assert set(item["label"].unique().tolist()) <= {0, 1, 2}


def test_the_spacing_of_a_data_set_is_its_median_in_the_axes_of_the_body(tmp_path, caplog):
    for name, spacing, order in (("a", (1, 1, 3), (0, 1, 2)), ("b", (1, 2, 3), (2, 0, 1)), ("c", (4, 2, 5), (0, 1, 2))):
        samples.write_ct(tmp_path, name, (5, 6, 7), samples.oblique(spacing, order))
    lists = {"training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}],
             "unlabeled": [{"image": f"images/{n}.nii.gz"} for n in "bc"]}  # fmt: skip
    path = tmp_path / "d.json"
    path.write_text(json.dumps(lists))
    with caplog.at_level(logging.INFO, logger="semsim"):
        assert voxel_spacing("auto", 3, path, tmp_path) == pytest.approx([1, 2, 3])
    assert "1 x 2 x 3 mm" in caplog.text and "slices are thick, so 2D may do better" in caplog.text
    caplog.clear()
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        samples.write_ct(tmp_path, name, (5, 6, 7), samples.oblique((1.1, 2, 3), order))
    assert voxel_spacing("auto", 3, path, tmp_path) == pytest.approx([1.1, 2, 3]) and "thick" not in caplog.text
    assert voxel_spacing([1, 1, 2], 3, path, tmp_path) == [1, 1, 2] and voxel_spacing(None, 2, path, tmp_path) is None


@pytest.mark.parametrize(
    "given, dims, expected",
    [
        ([1, 1], 3, "three sizes of a voxel"),
        ([1, 0, 1], 3, "three sizes of a voxel"),
        (None, 3, "configs/volumes.yaml"),
        ([1, 1, 1], 2, "spatial_dims is 2"),
        ("auto", 3, "none in `training`"),
        ("auto", 4, r"expected 2 \(slices\) or 3"),
    ],
)
def test_a_spacing_that_makes_no_sense_is_refused(tmp_path, given, dims, expected):
    (tmp_path / "d.json").write_text(json.dumps({"training": []}))
    with pytest.raises(InputError, match=expected):
        voxel_spacing(given, dims, tmp_path / "d.json", tmp_path)


def test_sizes_and_overlaps_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="three multiples of 16"):
        patch_size([64, 64])
    with pytest.raises(InputError, match="three multiples of 16"):
        label_inferer(3, [64, 64, 30], 16)
    with pytest.raises(InputError, match=r"early_sizes: are of slices; in 3D expected \[\]"):
        Stages(32, [[16, 0.5]], spatial_dims=3)
    with pytest.raises(InputError, match="overlap"):
        label_inferer(3, 16, 16, overlap=1.0)
    assert isinstance(label_inferer(2, 32, 16), SliceLabelInferer)


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    return samples.make_isotropic_ct(tmp_path_factory.mktemp("ct"))


# ---- prediction ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(40, 33, 50), (10, 40, 12), (16, 16, 16), (20, 20, 17)])
def test_patches_of_a_network_without_context_give_the_whole_volume(shape):
    volume = torch.rand(1, 1, *shape) * 300 - 100
    found = VolumeLabelInferer(SIZE, 3, overlap=0.4, amp=False).logits(volume, ByIntensity()).softmax(dim=1)
    torch.testing.assert_close(found, ByIntensity()(volume).softmax(dim=1), atol=1e-4, rtol=1e-4)


def test_slabs_blend_as_one_sliding_window():
    """Loops over slabs and their patches, each with MONAI's weights; and near MONAI's window of the whole volume."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv3d(4, 3, 5, padding=2)).eval()
    volume, step = torch.rand(1, 1, 32, 16, 40), SIZE[0] // 2
    weight, along = compute_importance_map(SIZE, mode="gaussian"), compute_importance_map(SIZE[2:], mode="gaussian")
    sums, weights = torch.zeros(3, 32, 16, 40), torch.zeros(40)
    with torch.no_grad():
        for z in (0, step, 2 * step, 40 - SIZE[2]):
            slab, total = torch.zeros(3, 32, 16, SIZE[2]), torch.zeros(32, 16, SIZE[2])
            for x in (0, step, 32 - SIZE[0]):
                patch = volume[:, :, x : x + SIZE[0], :, z : z + SIZE[2]]
                slab[:, x : x + SIZE[0]] += network(patch)[0] * weight
                total[x : x + SIZE[0]] += weight
            sums[..., z : z + SIZE[2]] += slab / total * along
            weights[z : z + SIZE[2]] += along
        found = VolumeLabelInferer(SIZE, 4, overlap=0.5, amp=False).logits(volume, network)[0]
        whole = SlidingWindowInferer(SIZE, 4, 0.5, mode="gaussian")(volume, network)[0].log_softmax(dim=0)
    torch.testing.assert_close(found, (sums / weights).log_softmax(dim=0), atol=1e-4, rtol=1e-4)
    assert float((found - whole).abs().mean()) < 0.1 * float(whole.std())  # MONAI puts a floor under its Gaussian


def test_flips_give_the_mean_of_eight_predictions():
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 3, padding=1).eval()
    volume = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        found = VolumeLabelInferer(SIZE, 1, amp=False, flip_tta=True).logits(volume, network).exp()
        axes = [[d for d, flipped in zip((2, 3, 4), f"{k:03b}") if flipped == "1"] for k in range(8)]
        p = torch.stack([network(volume.flip(a)).softmax(1).flip(a) for a in axes])
    torch.testing.assert_close(found, p.mean(0), atol=1e-5, rtol=1e-4)
    assert float((p[0] - p.mean(0)).abs().max()) > 1e-3


def test_volumes_that_were_not_prepared_are_refused():
    with pytest.raises(ValueError, match="Orientationd has prepared"):
        VolumeLabelInferer(SIZE)(MetaTensor(torch.rand(1, 1, *SIZE)), ByIntensity())
    with pytest.raises(ValueError, match="one volume at a time"):
        VolumeLabelInferer(SIZE)(MetaTensor(torch.rand(2, 1, *SIZE)), ByIntensity())


def test_gradients_of_patches_do_not_read_foreign_memory():
    """bfloat16 on a CPU: patches that torch goes wrong with are trained on in float32, the default size is safe."""
    assert amp_of_patches(True, "cpu", [32, 64, 64]) is False and amp_of_patches(True, "cpu", 16) is False
    assert amp_of_patches(True, "cpu", [48, 16, 16]) is True and amp_of_patches("auto", "cpu", [64, 64, 32]) == "auto"
    assert amp_of_patches(True, "cpu", 64, SemSimNet(3, features=(2, 2, 2, 2, 2, 2), fusion="none")) is True
    deep = DynUNet(3, 1, 2, [3] * 6, [1] + [2] * 5, [2] * 5, filters=[2] * 6)  # two voxels of 64 are left in its lowest
    assert amp_of_patches(True, "cpu", 64, deep) is False and amp_of_patches(False, "cpu", 64, deep) is False
    for sides in ((4, 4, 2), (3, 1, 1), (1, 1, 1)):  # the lowest stages of [64, 64, 32] and of [48, 16, 16]
        conv = nn.Conv3d(16, 16, 3, padding=1).to(memory_format=torch.channels_last_3d)
        image = torch.randn(2, 16, *sides)
        (expected,) = torch.autograd.grad(conv(image).square().mean(), conv.weight)
        with torch.autocast("cpu", torch.bfloat16):
            loss = conv(image).square().mean()
        junk = [torch.full((2**k,), 1e20) for k in range(6, 17)]
        del junk
        (found,) = torch.autograd.grad(loss, conv.weight)
        assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


# ---- the whole way ---------------------------------------------------------------------------------------------------
CLASSES = ["background", "liver", "gallbladder"]
SMALL = {"class_names": CLASSES, "window": [-150, 250], "spatial_size": 16, "features": [4, 4, 8, 8, 16, 4],
         "batch_size": 2, "patches": 2, "show_progress": False}  # fmt: skip


@pytest.fixture(scope="module")
def trained(ct, tmp_path_factory) -> Path:
    """A training of two epochs."""
    output = tmp_path_factory.mktemp("trained")
    train(ct, output)
    return output


def train(ct: Path, output: Path, **options) -> None:
    workflow("train", "train", "volumes", dataset_dir=str(ct), output_dir=str(output),
             **{**SMALL, "epochs": 2, "val_interval": 1, **options}).run()  # fmt: skip


def test_a_training_in_3d_says_what_prediction_has_to_know(trained):
    settings = json.loads((trained / "training.json").read_text())
    assert settings["spatial_dims"] == 3 and settings["spacing"] == [1.5, 1.5, 1.5] and settings["spatial_size"] == 16
    known = settings_module.trained(trained)
    assert known["spatial_dims"] == 3 and known["spacing"] == [1.5, 1.5, 1.5]
    log = read_rows(trained / "training_log.csv")
    assert len(log) == 2 and {k for k in log[0] if k.startswith("loss_")} == {
        "loss_s",
        "loss_u",
        "loss_intra",
        "loss_cross",
    }
    assert log[0]["loss_u"] == "", "labelled patches alone at first"
    assert all(np.isfinite(float(row[k])) for row in log for k in row if k.startswith("loss") and row[k])
    assert len(read_rows(trained / "validation_log.csv")) == 2
    events = EventAccumulator(str(trained / "tensorboard"), size_guidance={"images": 0}).Reload()
    (tag,) = [tag for tag in events.Tags()["images"] if "pseudo-label" in tag]
    (picture, *_) = events.Images(tag)
    assert (picture.width, picture.height) == (5 * 16, 2 * 16), "the middle slice of both patches, five columns"


def test_weights_of_3d_need_no_overlay_to_be_scored_and_to_predict(ct, trained, tmp_path, caplog):
    workflow("train", "train", "evaluate", dataset_dir=str(ct), output_dir=str(trained), show_progress=False,
             run_id="reporting").run()  # fmt: skip
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["cases"] == 1 and list(scores["classes"]) == CLASSES[1:] and scores["distance_unit"] == "mm"
    page = (trained / "report" / "index.html").read_text(encoding="utf-8")
    assert "this network sees volumes" in page and "made only from the files" not in page
    width, height = Image.open(trained / "report" / "case_best.png").size
    assert height > width / 2, "three planes, one below the other"
    assert "trained on" not in caplog.text
    workflow("train", "train", "evaluate", dataset_dir=str(ct), output_dir=str(tmp_path / "seen"),
             evaluate_list="training", ckpt_path=str(trained), show_progress=False).run()  # fmt: skip
    assert "these weights were trained on" in caplog.text
    workflow("infer", "inference", dataset_dir=str(ct / "images"), output_dir=str(tmp_path), flip_tta=True,
             ckpt_path=str(trained), show_progress=False).run()  # fmt: skip
    found = sorted(tmp_path.glob("*_seg.nii.gz"))
    assert [f.name for f in found] == [f"ct{k}_seg.nii.gz" for k in range(6)]
    image = nib.load(ct / "images" / "ct3.nii.gz")
    pred = nib.load(tmp_path / "ct3_seg.nii.gz")
    assert pred.shape == image.shape and pred.get_data_dtype() == np.uint8
    np.testing.assert_allclose(pred.affine, image.affine)


def test_a_network_that_was_taken_for_another_is_refused(ct, trained, tmp_path):
    """Slices of 3D options; weights whose settings are lost say themselves that they are of 3D."""
    lost = tmp_path / "lost.pt"
    lost.write_bytes((trained / "model_last.pt").read_bytes())
    assert settings_module.trained(lost)["spatial_dims"] == 3
    assert settings_module.trained_network(lost)(torch.rand(1, 1, 16, 16, 16)).shape[2:] == (16, 16, 16)
    for names, dims, expected in ((["train", "volumes"], 2, "spacing auto"), (["train"], 3, "configs/volumes.yaml")):
        options = {k: v for k, v in SMALL.items() if k != "patches" or "volumes" in names}
        options |= {"dataset_dir": str(ct), "output_dir": str(tmp_path), "spatial_dims": dims}
        with pytest.raises(RuntimeError) as error:
            workflow("train", *names, **options).run()
        assert expected in str(find_input_error(error.value)), error.value


def test_exports_of_3d_compute_what_the_network_does(trained, tmp_path):
    network = settings_module.trained_network(trained)
    image = torch.rand(1, 1, 32, 16, 48)
    with torch.no_grad():
        expected = network(image)
    export(str(tmp_path / "m.ts"), str(trained))
    export(str(tmp_path / "m.onnx"), str(trained))
    scripted = torch.jit.load(str(tmp_path / "m.ts"))
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), expected, atol=1e-4, rtol=0)
    assert not any("fusion" in name for name, _ in scripted.named_parameters())
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
