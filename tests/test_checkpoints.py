"""Resuming, the best weights, the settings beside them, and the safe loading of weights."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUNDLE
from helpers import engine_with, workflow
from ignite.engine import Engine, Events
from scripts.dataio.intensity import NAME, transform_of
from scripts.errors import InputError, explain
from scripts.evaluation.export import export
from scripts.hosts.scoring import BundleScorer
from scripts.method.network import SegmentationNet, SemSimNet
from scripts.training.checkpoints import ResumeCheckpoint, check_start, resume_checkpoints, resume_path
from scripts.training.lock import locked, release
from scripts.training.settings import SaveSettings, check_noted, find_checkpoint, trained, write_settings
from scripts.training.weights import SaveBest, load_weights, save_weights


def test_settings_follow_the_weights(tmp_path):
    engine = engine_with([{"loss": 1.0}])
    settings = {"spatial_size": [96, 64], "class_names": ["background", "heart"]}
    SaveSettings(tmp_path, settings, [{"image": "images/p1.nii.gz"}, {"image": ["p2_0.nii.gz", "p2_1.nii.gz"]}]).attach(
        engine
    )
    engine.run([0], max_epochs=1)
    kept = json.loads((tmp_path / "training.json").read_text())
    assert kept["labeled_cases"] == ["p1", "p2_0"] and kept["versions"]["torch"] == torch.__version__
    known = trained(tmp_path / "model_best.pt")
    assert known["spatial_size"] == [96, 64] and known["slice_axis"] is None
    assert trained(tmp_path / "other" / "model.pt")["spatial_size"] == 224


def test_best_is_kept_across_restarts(tmp_path):
    network = torch.nn.Linear(1, 1)

    def validate(best, score, epoch):
        engine = Engine(lambda *_: None)
        best.attach(engine)
        engine.state.key_metric_name = "dice"
        engine.state.metrics = {"dice": score}
        with torch.no_grad():
            network.weight.fill_(score)
        engine.run([0], max_epochs=1)
        return torch.load(tmp_path / "model_best.pt", weights_only=True)["weight"].item()

    best = SaveBest(tmp_path, network)
    assert [validate(best, s, e) for e, s in enumerate((0.5, 0.75, 0.25))] == [0.5, 0.75, 0.75]
    resumed = SaveBest(tmp_path, network)
    resumed.load_state_dict(best.state_dict())
    assert validate(resumed, 0.5, 4) == 0.75, "a worse first validation after a restart replaces nothing"
    assert validate(resumed, 1.0, 5) == 1.0
    (tmp_path / "model_best.pt").unlink()
    elsewhere = SaveBest(tmp_path, network)
    elsewhere.load_state_dict(resumed.state_dict())
    assert validate(elsewhere, 0.25, 6) == 0.25, "the weights of the record are not here, as in another output folder"
    assert not list(tmp_path.glob("*.part"))


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    def start(**settings):
        engine = engine_with([{"loss": 1.0}])
        SaveSettings(tmp_path, {"spatial_size": 96, "epochs": 4, **settings}, [{"image": "p1.nii.gz"}]).attach(engine)
        engine.run([0], max_epochs=1)

    start()
    start(spatial_size=64)  # nothing was trained yet
    (tmp_path / "resume_checkpoint_1.pt").touch()
    start(spatial_size=64, epochs=8, keep_largest=True)
    start(spatial_size=64, epochs=8, keep_largest=False)
    with pytest.raises(InputError, match="spatial_size: expected 64, received 96"):
        start(spatial_size=96)
    assert json.loads((tmp_path / "training.json").read_text())["spatial_size"] == 64

    old = {
        **json.loads((tmp_path / "training.json").read_text()),
        "intensity": {"_target_": "scripts.intensity.Intensityd"},
    }
    (tmp_path / "training.json").write_text(json.dumps(old))  # as written before the module moved
    start(spatial_size=64, intensity={"_target_": NAME}, early_sizes=[])
    with pytest.raises(InputError, match="intensity#window: expected nothing, received"):
        start(spatial_size=64, intensity={"_target_": NAME, "window": [0, 255]})


def test_settings_are_whole_and_of_a_training_that_has_begun(tmp_path, monkeypatch):
    engine = engine_with([{"loss": 1.0}])
    SaveSettings(tmp_path, {"spatial_size": 96}, [{"image": "p1.nii.gz"}]).attach(engine)

    @engine.on(Events.STARTED)
    def refuse():
        raise InputError("another number of steps")

    with pytest.raises(InputError, match="steps"):
        engine.run([0], max_epochs=1)
    path = tmp_path / "training.json"
    assert not path.exists(), "what is refused leaves no settings behind"
    write_settings(path, {"spatial_size": 96, "recipe": {"loss#views": {"a": [1, 2]}, "x": None}})
    before = path.read_text()
    assert json.loads(before) == {"spatial_size": 96, "recipe": {"loss#views": {"a": [1, 2]}, "x": None}}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_settings(path, {"spatial_size": 64})
    assert path.read_text() == before and not list(tmp_path.glob("*.part"))


def test_one_training_at_a_time_in_a_folder(tmp_path):
    code = "import sys, pathlib; from scripts.training.lock import locked; file = locked(pathlib.Path(sys.argv[1]))"

    def other():
        return subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=BUNDLE, capture_output=True, text=True)

    assert other().returncode == 0, "and its lock ends with it"
    file = locked(tmp_path)
    done = other()
    assert done.returncode == 1 and f"{tmp_path}: another process is training here" in done.stderr
    release(file)
    assert not list(tmp_path.iterdir())
    assert other().returncode == 0


def test_the_newest_checkpoint_is_of_the_last_epoch_whatever_its_time(tmp_path):
    """Copies have the time of the copying, and a clock may go back between two processes."""
    for age, epoch in enumerate((8, 9, 10)):
        torch.save({}, tmp_path / f"resume_checkpoint_{epoch}.pt")
        os.utime(tmp_path / f"resume_checkpoint_{epoch}.pt", (1e9 - age, 1e9 - age))
    shutil.copy(tmp_path / "resume_checkpoint_8.pt", tmp_path / "resume_checkpoint_8 (copy).pt")
    assert resume_path("auto", tmp_path) == str(tmp_path / "resume_checkpoint_10.pt")
    ResumeCheckpoint(str(tmp_path), {})._keep_two()
    kept = [path.name for path in resume_checkpoints(tmp_path)]
    assert kept == ["resume_checkpoint_9.pt", "resume_checkpoint_10.pt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, value):
    network = SegmentationNet(features=[4, 4, 8, 8, 8, 4])
    state = network.state_dict()
    state["backbone.conv_0.conv_0.adn.N.running_var"][2] = value
    torch.save(state, tmp_path / "model.pt")
    said = (
        "model.pt: expected finite weights, received NaN or infinity .backbone.conv_0.conv_0.adn.N.running_var., as of"
    )
    with pytest.raises(InputError, match=f"{said} .* as --ckpt_path"):
        load_weights(network, str(tmp_path / "model.pt"), "cpu")
    with pytest.raises(InputError, match=f"{said} .* as --initial"):
        check_start("", str(tmp_path / "out"), tmp_path / "model.pt")


def kidney_beside_liver(folder: Path) -> Path:
    """Weights of one training in the folder of another, whose networks are alike."""
    window = {"_target_": NAME, "keys": "image", "window": [-150, 250]}
    for name, size in (("liver", 64), ("kidney", 128)):
        (folder / name).mkdir()
        known = {"spatial_size": size, "in_channels": 1, "class_names": ["background", name], "slice_axis": "S",
                 "features": [4, 4, 8, 8, 8, 4], "intensity": window, "fusion": "conv"}  # fmt: skip
        (folder / name / "training.json").write_text(json.dumps(known))
        save_weights(SemSimNet(2, 1, 2, known["features"], fusion="conv"), folder / name / "model_best.pt")
        check_noted(folder / name)
    shutil.copy(folder / "kidney" / "model_best.pt", folder / "liver")
    return folder / "liver"


def test_weights_beside_the_settings_of_another_training_are_used_by_nobody(tmp_path, phantom_dir):
    """They would be called by its classes, and see its intensities and sizes."""
    mixed = kidney_beside_liver(tmp_path)
    said = (
        r"liver/model_best.pt: these weights were trained with other settings than .*liver/training.json says .*"
        r'class_names: expected \["background", "liver"\], received \["background", "kidney"\]; spatial_size: expected '
        r"64, received 128.*; put them there together with their own training.json"
    )
    for given in (mixed, mixed / "model_best.pt"):
        with pytest.raises(InputError, match=said):
            check_noted(given)
    with pytest.raises(InputError, match=said):
        export(str(tmp_path / "a.ts"), str(mixed))
    shutil.copytree(mixed, tmp_path / "models")
    (tmp_path / "models" / "model_best.pt").rename(tmp_path / "models" / "model.pt")
    with pytest.raises(InputError, match=r"models/model.pt: these weights were trained with other settings"):
        BundleScorer(tmp_path)
    common = {"dataset_dir": str(phantom_dir), "output_dir": str(tmp_path / "out"), "ckpt_path": str(mixed)}
    for kind, names, options in (
        ("infer", ["inference"], {"window": [0, 1]}),
        ("train", ["train", "evaluate"], {}),
        ("train", ["train", "evaluate"], {"run_id": "reporting"}),
    ):
        flow = workflow(kind, *names, **common, **options)
        with pytest.raises(RuntimeError) as error:
            flow.run()
        assert re.search(said, str(explain(error.value, "prediction")))
    assert not (tmp_path / "a.ts").exists() and not list((tmp_path / "out").rglob("*.*"))


def test_weights_without_their_settings_say_themselves_what_they_need(tmp_path, caplog):
    """As far as they know it; the rest is said to be as by default."""
    folder = kidney_beside_liver(tmp_path)
    (folder / "training.json").unlink()
    known = trained(folder / "model_best.pt")
    assert known["class_names"] == ["background", "kidney"] and known["spatial_size"] == 128
    assert known["features"] == [4, 4, 8, 8, 8, 4] and known["intensity"]["window"] == [-150, 250]
    (line,) = caplog.messages
    assert (
        "taken from the weights themselves: spatial_size," in line and "; by default, unless given: flip_tta," in line
    )
    caplog.clear()
    check_noted(folder)
    (folder / "training.json").write_text('{"spatial_size": 128, "class_names": ["background", "kidney"]}')
    assert trained(folder, window=[0, 1])["intensity"]["window"] == [0, 1]
    assert trained(folder)["slice_axis"] == "S" and "themselves: in_channels, features" in caplog.messages[-1]
    check_noted(folder)


@pytest.mark.parametrize("text", ["", '{"spatial_size": 2', "[1]"])
def test_settings_that_are_cut_off_are_said_in_a_line(tmp_path, text):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(InputError, match=r"training\.json: expected a .*JSON .* copy it anew"):
        trained(tmp_path / "model_best.pt")


def test_a_window_that_is_none_is_said_in_a_line(tmp_path):
    with pytest.raises(InputError, match="window 5: expected lowest and highest intensity"):
        transform_of(trained(tmp_path / "model_best.pt", window=5)["intensity"])


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "file/below", "link"):
        with pytest.raises(InputError, match=r"expected a folder, .*/(file|link) is no folder"):
            check_start(None, str(tmp_path / name))


@pytest.mark.parametrize("kind, names", [("train", ("train", "evaluate")), ("infer", ("inference",))])
def test_what_could_not_be_written_is_not_computed(phantom_dir, tmp_path, monkeypatch, kind, names):
    """An evaluation of hours would lose its scores at the end."""
    (tmp_path / "file").touch()
    monkeypatch.setattr("monai.engines.SupervisedEvaluator.run", lambda _: pytest.fail("it ran"))
    flow = workflow(kind, *names, dataset_dir=str(phantom_dir), output_dir=str(tmp_path / "file" / "below"),
                    ckpt_path=str(BUNDLE / "models" / "model.pt"), show_progress=False)  # fmt: skip
    with pytest.raises(Exception) as error:
        flow.run()
    assert explain(error.value) == (
        f"--output_dir {tmp_path}/file/below: expected a folder, {tmp_path}/file is no folder; give another name."
    )


def test_best_before_last_before_shipped(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(InputError, match="--ckpt_path"):
        find_checkpoint(tmp_path / "out", tmp_path)
    for path in ("models/model.pt", "out/model_last.pt", "out/model_best.pt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
        assert find_checkpoint(tmp_path / "out", tmp_path) == str(tmp_path / path)


def test_shipped_weights_score_their_own_classes_alone(tmp_path):
    (tmp_path / "models").mkdir()
    shipped, datalist = tmp_path / "models" / "model.pt", tmp_path / "datalist.json"
    shipped.touch()

    def name(*names):
        datalist.write_text(json.dumps({"testing": [], "labels": dict(enumerate(["background", *names]))}))

    name("liver", "tumour", "vessel")
    with pytest.raises(InputError, match=r"out: no trained .* right .*not for background, liver.*--output_dir"):
        find_checkpoint(tmp_path / "out", tmp_path, datalist)
    for names in (["right ventricle", "myocardium", "left ventricle"], ["class 1", "class 2", "class 3"]):
        name(*names)
        assert find_checkpoint(tmp_path / "out", tmp_path, datalist) == str(shipped)


def test_weights_load_strictly_and_safely(tmp_path):
    path = str(tmp_path / "model.pt")
    trained = SemSimNet()
    for content in (trained.state_dict(), {"model": trained.state_dict()}, {"network": trained.state_dict()}):
        torch.save(content, path)
        network = load_weights(SegmentationNet(), path, "cpu")
        assert not network.training
        torch.testing.assert_close(network.backbone.final_conv.bias, trained.backbone.final_conv.bias)
    with pytest.raises(InputError, match=r"model\.pt: these weights are of another network .*final_conv"):
        load_weights(SegmentationNet(out_channels=2), path, "cpu")
    with pytest.raises(InputError, match="no such file"):
        load_weights(SegmentationNet(), str(tmp_path / "none.pt"), "cpu")

    class Harmless:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with open(path, "wb") as file:
        pickle.dump(Harmless(), file)
    with pytest.raises(InputError, match="could not load"):
        load_weights(SegmentationNet(), path, "cpu")
    assert not (tmp_path / "ran").exists(), "a pickle with code is never run"
