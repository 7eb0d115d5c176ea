"""A training that begins with the weights of another one."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import BUNDLE
from helpers import workflow
from ignite.engine import Engine
from scripts.dataio.intensity import NAME
from scripts.errors import InputError, find_input_error
from scripts.method.network import SemSimNet
from scripts.training.checkpoints import ResumeFrom, check_start
from scripts.training.warm_start import initialized
from scripts.training.weights import load_weights, read_state

HEART = ["background", "right ventricle", "myocardium", "left ventricle"]
FEATURES = [4, 4, 8, 8, 8, 4]


def net(classes: int = 4, fusion: str = "conv", channels: int = 1) -> SemSimNet:
    return SemSimNet(2, channels, classes, FEATURES, fusion=fusion)


@pytest.fixture
def weights(tmp_path):
    """Of the heart's classes, with the settings beside them."""
    torch.save(net().state_dict(), tmp_path / "w.pt")
    (tmp_path / "training.json").write_text(json.dumps({"class_names": HEART}))
    return tmp_path / "w.pt"


def parts(network, state):
    """Which parts of a network hold the weights of the file."""
    own = network.state_dict()
    same = {k for k in own if k in state and own[k].shape == state[k].shape and torch.equal(own[k], state[k])}
    return {p: all(k in same for k in own if k.startswith(p) and "num_batches" not in k)
            for p in ("backbone.conv_0", "backbone.upcat_1", "backbone.final_conv", "fusion")}  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "fusion", "head", "fused", "said"),
    [
        (HEART, "conv", True, True, ""),
        (HEART, "sfm", True, False, "initialised anew"),
        (["background", "liver"], "conv", False, True, "initialised anew for background, liver"),
        ([*HEART[:3], "atrium"], "conv", False, True, "weights of classes background, right ventricle"),
    ],
)
def test_what_means_the_same_is_kept(weights, caplog, classes, fusion, head, fused, said):
    caplog.set_level("INFO")
    found = parts(initialized(net(len(classes), fusion), weights, classes), read_state(weights))
    assert found["backbone.conv_0"] and found["backbone.upcat_1"]
    assert (found["backbone.final_conv"], found["fusion"]) == (head, fused) and said in caplog.text


def test_a_network_with_another_last_layer_is_told_to_keep_it(tmp_path, caplog):
    network, file = torch.nn.Conv2d(1, 4, 1), tmp_path / "w.pt"
    torch.save(torch.nn.Conv2d(1, 4, 1).state_dict(), file)
    (tmp_path / "training.json").write_text(json.dumps({"class_names": HEART}))
    assert torch.equal(initialized(network, file, [*HEART[:3], "atrium"]).weight, read_state(file)["weight"])
    assert "begins with all of them, also for background" in caplog.text and "anew" not in caplog.text


def test_other_intensities_or_voxels_are_warned_of(weights, caplog):
    seen = {"intensity": {"_target_": NAME, "window": [-150, 250]}, "spacing": [1.0, 1.0, 3.0]}
    (weights.parent / "training.json").write_text(json.dumps({"class_names": HEART, **seen}))
    initialized(net(), weights, HEART, preparation=seen)
    assert "prepared" not in caplog.text
    initialized(net(), weights, HEART, preparation={**seen, "spacing": (1.0, 1.0, 2.0)})
    assert "spacing: expected [1.0, 1.0, 3.0], received [1.0, 1.0, 2.0]" in caplog.text
    initialized(net(), weights, HEART, preparation={**seen, "intensity": {"_target_": NAME, "window": None}})
    assert "in another way (intensity#window: expected [-150, 250], received null)" in caplog.text


def test_a_network_without_fusion_takes_the_rest(weights):
    network = initialized(net(fusion="none"), weights, HEART)
    assert torch.equal(network.backbone.final_conv.weight, read_state(weights)["backbone.final_conv.weight"])
    torch.save(network.state_dict(), weights)
    initialized(net(), weights, HEART)


def test_weights_of_slices_for_volumes_are_called_so(weights, caplog):
    """And the other way round; nothing is said of channels, features, classes and fusion, which agree."""
    caplog.set_level("INFO")
    with pytest.raises(InputError, match=r"w\.pt: expected weights of volumes \(3D\), .* of slices.*without configs"):
        initialized(SemSimNet(3, 1, 4, FEATURES, fusion="conv"), weights, HEART)
    torch.save(SemSimNet(3, 1, 4, FEATURES, fusion="conv").state_dict(), weights)
    with pytest.raises(InputError, match=r"of slices \(2D\), received weights of volumes \(3D\).*, with configs"):
        initialized(net(), weights, HEART, preparation={"spacing": None})
    assert not caplog.records


def test_what_cannot_be_meant_is_refused(weights):
    with pytest.raises(InputError, match=r"of another network.*conv_0"):
        initialized(net(channels=3), weights, HEART)
    with pytest.raises(InputError, match=r"expected weights of background, liver, .*or switch `pretrained` off"):
        initialized(net(2), weights, ["background", "liver"], same_classes=True)
    state = read_state(weights)
    torch.save({k: v for k, v in state.items() if "final_conv" not in k}, weights)
    with pytest.raises(InputError, match=r"of another network.*final_conv"):
        initialized(net(), weights, HEART)
    with pytest.raises(InputError, match="no such file; give --initial FILE"):
        initialized(net(), weights.with_name("none.pt"), HEART)


def test_the_folder_of_a_training_stands_for_its_weights(weights, caplog):
    """As it does at prediction; its classes are known from the settings in it."""
    caplog.set_level("INFO")
    weights.rename(weights.with_name("model_last.pt"))
    found = initialized(net(2), weights.parent, ["background", "liver"])
    assert parts(found, read_state(weights.with_name("model_last.pt")))["backbone.upcat_1"]
    assert "initialised anew for background, liver" in caplog.text


def test_known_wrappings_are_taken_off(tmp_path):
    state = net().state_dict()
    file = tmp_path / "w.pt"
    for content in (
        {"model": state},
        {"network": state, "epoch": 1},
        {"state_dict": {f"module.{k}": state[k] for k in state}},
    ):
        torch.save(content, file)
        loaded = load_weights(net(), str(file), "cpu").state_dict()
        assert all(torch.equal(loaded[k], state[k]) for k in state)
    for content in ([1], {"weights": state}, torch.zeros(3), {}):
        torch.save(content, file)
        with pytest.raises(InputError):
            load_weights(net(), str(file), "cpu")


def test_fine_tuning_on_the_command_line(run_bundle, phantom_dir, tmp_path):
    """The shipped weights on classes of one's own; where they lie is noted for whoever asks from another folder."""
    options = ["run", "training", "--config_file", "['configs/train.yaml','configs/semsim_minus.yaml']",
               "--dataset_dir", str(phantom_dir), "--output_dir", str(tmp_path / "out"), "--spatial_size", "32",
               "--epochs", "1", "--steps_per_epoch", "1", "--batch_size", "2", "--show_progress", "False",
               "--class_names", "['background','a','b','c']"]  # fmt: skip
    done = run_bundle(*options, "--initial", "models/model.pt")
    assert "initialised anew for background, a, b, c" in done.stdout + done.stderr
    noted = json.loads((tmp_path / "out" / "training.json").read_text())
    assert noted["initial"] == str(BUNDLE / "models" / "model.pt")


def test_a_folder_that_nothing_can_be_written_in_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match=f"out/run: not permitted to write in {tmp_path}; give an --out"):
        check_start("", str(tmp_path / "out" / "run"))


def test_weights_alone_are_nothing_to_resume_from(weights):
    engine = Engine(lambda *_: None)
    with pytest.raises(InputError, match="--initial FILE"):
        ResumeFrom(str(weights), str(weights.parent / "new"), {})._load(engine)


@pytest.mark.parametrize("run, given, message", [
    ("training", {"initial": "none.pt"}, "no such file; give --initial FILE"),
    ("training", {"resume": "none.pt"}, "no such checkpoint"),
    ("training", {"output_dir": "used"}, "an earlier training has its files here"),
    ("training", {"output_dir": "d.json/out"}, "d.json is no folder; give another name"),
    ("training", {}, "p0.nii.gz"),
    ("planning", {"initial": "none.pt"}, "no such file; give --initial FILE"),
    ("planning", {"output_dir": "used"}, "p0.nii.gz"),  # it writes nothing
])  # fmt: skip
def test_what_a_training_begins_with_is_looked_at_before_its_images(tmp_path, run, given, message):
    """A wrong path is told at once, not after hundreds of volumes; here none of them can be read."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "model_last.pt").touch()
    lists = {"training": [{"image": "p0.nii.gz", "label": "p0_seg.nii.gz"}], "unlabeled": [{"image": "p1.nii.gz"}],
             "labels": ["background", "organ"]}  # fmt: skip
    (tmp_path / "d.json").write_text(json.dumps(lists))
    for name in ("p0", "p0_seg", "p1"):
        (tmp_path / f"{name}.nii.gz").write_text("no image")
    paths = {key: str(tmp_path / value) for key, value in {"output_dir": "new", **given}.items()}
    flow = workflow("train", "train", "semsim_minus", dataset_dir=str(tmp_path), datalist=str(tmp_path / "d.json"),
                    spatial_size=32, epochs=1, show_progress=False, **paths)  # fmt: skip
    with pytest.raises(Exception) as caught:
        flow.parser.get_parsed_content(run)
    assert message in str(find_input_error(caught.value))
    assert not (tmp_path / "new").exists()
