"""Training and prediction in 3D: the grid of the network, patches, and the way back to the grid of the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from helpers import workflow
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.data.utils import compute_importance_map
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import DynUNet
from monai.transforms import Compose, EnsureChannelFirstd, RandGaussianNoised
from PIL import Image
from scripts.dataio.loaders import SliceDataset, TwoStreamLoader
from scripts.dataio.patches import PatchDataset
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.sizes import Stages, patch_size
from scripts.dataio.transforms import AsVolumed
from scripts.dataio.volume_grid import VolumeGridd, voxel_spacing
from scripts.errors import InputError, find_input_error
from scripts.evaluation.export import export
from scripts.evaluation.inferer import SliceLabelInferer
from scripts.evaluation.stored_grid import AsStoredd
from scripts.evaluation.volume_inferer import VolumeLabelInferer, label_inferer
from scripts.method.network import SemSimNet
from scripts.precision import amp_of_patches
from scripts.training import settings as settings_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_configs import rows
from torch import nn

KEYS = ["image", "label"]
SIZE = (16, 16, 16)


def oblique(spacing, order=(0, 1, 2), flips=(1, 1, 1)) -> np.ndarray:
    """An affine of tilted axes that are stored in another order and direction."""
    turn = np.eye(4)
    a, b = 0.3, 0.2
    turn[:3, :3] = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = turn @ np.diag([*spacing, 1.0])
    affine[:3, :3] = (affine[:3, :3] * np.array(flips))[:, list(order)]
    affine[:3, 3] = 5, -7, 11
    return affine


def balls(shape, affine: np.ndarray) -> np.ndarray:
    """Two organs that are round in mm, one of them small, in ``(X, Y, Z)``."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = grid @ affine[:3, :3].T + affine[:3, 3]
    middle = (np.array(shape) - 1) / 2 @ affine[:3, :3].T + affine[:3, 3]
    extent = np.linalg.norm(affine[:3, :3], axis=0) * np.array(shape)
    label = np.zeros(shape, np.uint8)
    label[np.linalg.norm(mm - middle, axis=-1) < 0.38 * extent.min()] = 1
    label[np.linalg.norm(mm - middle - 0.2 * extent.min(), axis=-1) < 0.13 * extent.min()] = 2
    return label


def write(folder: Path, name: str, shape=(28, 24, 20), affine: np.ndarray | None = None, seed: int = 0) -> dict:
    """A CT of two organs in HU, and its label."""
    affine = np.diag([1.5, 1.5, 1.5, 1.0]) if affine is None else affine
    label = balls(shape, affine)
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    image = np.choose(label, [-80, 60, 180]) + noise
    folder.mkdir(parents=True, exist_ok=True)
    item = {}
    for kind, array in (("image", image.astype(np.int16)), ("label", label)):
        path = folder / f"{kind}s" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        item[kind] = str(path)
    return item


def prepared(spacing=(1.5, 1.5, 1.5), keys=("image", "label")) -> Compose:
    return Compose([
        LoadFilesd(list(keys), allow_missing_keys=True),
        EnsureChannelFirstd(list(keys), allow_missing_keys=True),
        AsVolumed("image"),
        VolumeGridd(list(keys), spacing, mode=["trilinear", "nearest-exact"][: len(keys)], allow_missing_keys=True),
    ])  # fmt: skip


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
    affine = oblique((1.1, 1.4, 2.5), order, flips)
    shape = tuple(np.array([40, 32, 18])[list(order)])
    item = write(tmp_path, "a", shape, affine)
    nib.save(nib.Nifti1Image(np.choose(balls(shape, affine), [-80, 60, 180]).astype(np.int16), affine), item["image"])
    pred = predicted({"image": item["image"]}, prepared(keys=["image"]), ByIntensity())
    truth = nib.load(item["label"])
    assert pred.dtype == torch.uint8 and pred.shape[1:] == truth.shape
    np.testing.assert_allclose(pred.affine, truth.affine, atol=1e-5)
    expected = np.asarray(truth.dataobj)
    for c, least in ((1, 0.93), (2, 0.75)):  # resampling blurs the edges
        found = pred[0].numpy() == c
        assert 2 * (found & (expected == c)).sum() / (found.sum() + (expected == c).sum()) > least


def test_the_grid_of_the_network_is_that_of_the_body_with_voxels_of_one_size(tmp_path):
    affine = oblique((1.0, 2.0, 3.0), (2, 0, 1), (-1, 1, 1))
    item = prepared((2.0, 2.0, 2.0))(write(tmp_path, "a", (10, 30, 20), affine))
    assert item["image"].shape == item["label"].shape == (1, 15, 20, 15)
    assert nib.aff2axcodes(item["image"].affine.numpy()) == ("R", "A", "S")
    np.testing.assert_allclose(np.linalg.norm(item["image"].affine[:3, :3], axis=0), 2.0, atol=1e-5)
    assert set(item["label"].unique().tolist()) <= {0, 1, 2}


def test_the_spacing_of_a_data_set_is_its_median_in_the_axes_of_the_body(tmp_path, caplog):
    for name, spacing, order in (("a", (1, 1, 3), (0, 1, 2)), ("b", (1, 2, 3), (2, 0, 1)), ("c", (4, 2, 5), (0, 1, 2))):
        write(tmp_path, name, (5, 6, 7), oblique(spacing, order))
    lists = {"training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}],
             "unlabeled": [{"image": f"images/{n}.nii.gz"} for n in "bc"]}  # fmt: skip
    path = tmp_path / "d.json"
    path.write_text(json.dumps(lists))
    with caplog.at_level(logging.INFO, logger="semsim"):
        assert voxel_spacing("auto", 3, path, tmp_path) == pytest.approx([1, 2, 3])
    assert "1 x 2 x 3 mm" in caplog.text and "slices are thick, so 2D may do better" in caplog.text
    caplog.clear()
    for name, order in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        write(tmp_path, name, (5, 6, 7), oblique((1.1, 2, 3), order))
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


def test_other_nonsense_is_refused(tmp_path):
    with pytest.raises(InputError, match="three multiples of 16"):
        patch_size([64, 64])
    with pytest.raises(InputError, match="three multiples of 16"):
        label_inferer(3, [64, 64, 30], 16)
    with pytest.raises(InputError, match=r"early_sizes: are of slices; in 3D expected \[\]"):
        Stages(32, [[16, 0.5]], spatial_dims=3)
    with pytest.raises(InputError, match="overlap"):
        label_inferer(3, 16, 16, overlap=1.0)
    assert isinstance(label_inferer(2, 32, 16), SliceLabelInferer)
    flat = write(tmp_path, "flat", (20, 20, 1))
    with pytest.raises(InputError, match=r"flat\.nii\.gz: expected a volume of several slices.*20 x 20 x 1"):
        PatchDataset([flat], prepared(), spatial_size=16, progress=False)
    partly = {**write(tmp_path, "partly"), "labeled_slices": [3]}
    with pytest.raises(InputError, match=r"partly\.nii\.gz: labeled_slices: in 3D"):
        PatchDataset([partly], prepared(), spatial_size=16, progress=False)
    with pytest.raises(InputError, match="patches: expected a whole number"):
        PatchDataset([], prepared(), spatial_size=16, patches=0)
    with pytest.raises(InputError, match="foreground: a share"):
        PatchDataset([], prepared(), spatial_size=16, foreground=2)


def isotropic_ct(folder: Path) -> Path:
    """A tiny CT: two labelled volumes, two without labels, one of validation and one of test."""
    items = [write(folder, f"ct{k}", (26 + k, 24, 22), seed=k) for k in range(6)]
    named = [{key: str(Path(path).relative_to(folder)) for key, path in item.items()} for item in items]
    lists = {"training": named[:2], "unlabeled": [{"image": item["image"]} for item in named[2:4]],
             "validation": named[4:5], "testing": named[5:]}  # fmt: skip
    (folder / "datalist.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    return isotropic_ct(tmp_path_factory.mktemp("ct"))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_patches_follows_from_seed_and_epoch_alone(ct, workers):
    lists = json.loads((ct / "datalist.json").read_text())

    def loader(seed=0):
        streams = [
            PatchDataset(
                [{key: str(ct / path) for key, path in item.items()} for item in lists[name]],
                prepared(), Compose([RandGaussianNoised("image", prob=1.0)]), spatial_size=16, patches=4,
                foreground=0.5, progress=False,
            )
            for name in ("training", "unlabeled")
        ]  # fmt: skip
        stages = Stages(16, spatial_dims=3)
        return TwoStreamLoader(*streams, batch_size=2, seed=seed, num_workers=workers, stages=stages)

    def epoch(streams, number):
        streams.set_epoch(number, 5)
        return [batch[name]["image"] for batch in streams for name in ("labeled", "unlabeled")]

    first = loader()
    assert len(first) == 4, "2 volumes of 4 patches, in pairs"
    epoch(first, 1)
    second = epoch(first, 2)
    assert all(torch.equal(a, b) for a, b in zip(second, epoch(loader(), 2))), "whatever was drawn before"
    assert not any(torch.equal(a, b) for a, b in zip(second, epoch(first, 3)))
    assert not any(torch.equal(a, b) for a, b in zip(second, epoch(loader(1), 2)))


def test_too_few_patches_are_called_patches(ct):
    item = {"image": str(ct / "images" / "ct0.nii.gz"), "label": str(ct / "labels" / "ct0.nii.gz")}
    labeled = PatchDataset([item], prepared(), spatial_size=16, patches=2, progress=False)
    with pytest.raises(InputError, match=r"Fewer patches than a batch: 2 unlabelled patches for 1 x 4"):
        TwoStreamLoader(labeled, labeled, batch_size=4)
    assert isinstance(labeled, SliceDataset)


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
    flow = workflow("train", "train", "volumes", dataset_dir=str(ct), output_dir=str(output),
                    **{**SMALL, "epochs": 2, "val_interval": 1, **options})  # fmt: skip
    flow.initialize()
    flow.run()


def test_a_training_in_3d_says_what_prediction_has_to_know(trained):
    settings = json.loads((trained / "training.json").read_text())
    assert settings["spatial_dims"] == 3 and settings["spacing"] == [1.5, 1.5, 1.5] and settings["spatial_size"] == 16
    known = settings_module.trained(trained)
    assert known["spatial_dims"] == 3 and known["spacing"] == [1.5, 1.5, 1.5]
    log = rows(trained / "training_log.csv")
    assert len(log) == 2 and {k for k in log[0] if k.startswith("loss_")} == {
        "loss_s",
        "loss_u",
        "loss_intra",
        "loss_cross",
    }
    assert log[0]["loss_u"] == "", "labelled patches alone at first"
    assert all(np.isfinite(float(row[k])) for row in log for k in row if k.startswith("loss") and row[k])
    assert len(rows(trained / "validation_log.csv")) == 2
    events = EventAccumulator(str(trained / "tensorboard"), size_guidance={"images": 0}).Reload()
    (tag,) = [tag for tag in events.Tags()["images"] if "pseudo-label" in tag]
    (picture, *_) = events.Images(tag)
    assert (picture.width, picture.height) == (5 * 16, 2 * 16), "the middle slice of both patches, five columns"


def test_weights_of_3d_need_no_overlay_to_be_scored_and_to_predict(ct, trained, tmp_path, caplog):
    flow = workflow("train", "train", "evaluate", dataset_dir=str(ct), output_dir=str(trained), show_progress=False,
                    run_id="reporting")  # fmt: skip
    flow.initialize()
    flow.run()
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["cases"] == 1 and list(scores["classes"]) == CLASSES[1:] and scores["distance_unit"] == "mm"
    page = (trained / "report" / "index.html").read_text(encoding="utf-8")
    assert "this network sees volumes" in page and "made only from the files" not in page
    width, height = Image.open(trained / "report" / "case_best.png").size
    assert height > width / 2, "three planes, one below the other"
    assert "trained on" not in caplog.text
    flow = workflow("train", "train", "evaluate", dataset_dir=str(ct), output_dir=str(tmp_path / "seen"),
                    evaluate_list="training", ckpt_path=str(trained), show_progress=False)  # fmt: skip
    flow.initialize()
    flow.run()
    assert "these weights were trained on" in caplog.text
    flow = workflow("infer", "inference", dataset_dir=str(ct / "images"), output_dir=str(tmp_path), flip_tta=True,
                    ckpt_path=str(trained), show_progress=False)  # fmt: skip
    flow.initialize()
    flow.run()
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
        flow = workflow("train", *names, dataset_dir=str(ct), output_dir=str(tmp_path), spatial_dims=dims, **options)
        with pytest.raises(RuntimeError) as error:
            flow.initialize()
            flow.run()
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
