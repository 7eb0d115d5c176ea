"""Logs, warnings, settings beside the weights, and the safe loading of weights."""

from __future__ import annotations

import csv
import json
import logging
import pickle

import pytest
import torch
from ignite.engine import Engine, Events
from scripts.errors import InputError
from scripts.handlers import (
    SaveBest,
    SaveSettings,
    TrainingLog,
    TrainingProgress,
    append_row,
    duration,
    find_checkpoint,
    load_weights,
    trained_setting,
)
from scripts.network import SegmentationNet, SemSimNet


def engine_with(scalars_by_epoch):
    """An engine of two steps an epoch whose step leaves the given scalars."""

    def step(engine, _):
        engine.state.scalars = scalars_by_epoch[engine.state.epoch - 1]

    engine = Engine(step)
    engine.state.device = "cpu"
    return engine


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)


def test_training_log_writes_means_and_warns_of_collapse(tmp_path, caplog):
    present = {"loss": 1.0, "label_0": 0.9, "label_1": 0.1, "pseudo_0": 0.9, "pseudo_1": 0.1}
    gone = {**present, "loss": 0.5, "pseudo_0": 1.0, "pseudo_1": 0.0}
    engine = engine_with([gone, present, gone, gone, present])
    TrainingLog(tmp_path, optimizer(), ["background", "heart"]).attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0, 1], max_epochs=5)
    rows = list(csv.DictReader((tmp_path / "training_log.csv").open()))
    assert [float(r["loss"]) for r in rows] == [0.5, 1.0, 0.5, 0.5, 1.0]
    assert rows[-1]["epoch"] == "5" and float(rows[0]["learning_rate"]) == 0.01
    warnings = [r.getMessage() for r in caplog.records if "Collapse" in r.getMessage()]
    assert len(warnings) == 1 and "epoch 3" in warnings[0] and "'heart'" in warnings[0]


def test_a_class_that_never_comes_is_warned_of_later(tmp_path, caplog):
    gone = {"loss": 1.0, "label_0": 0.9, "label_1": 0.1, "pseudo_0": 1.0, "pseudo_1": 0.0}
    engine = engine_with([gone] * 4)
    TrainingLog(tmp_path, optimizer(), ["background", "heart"], patience=3).attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0], max_epochs=4)
    assert [r.getMessage() for r in caplog.records if "epoch 3" in r.getMessage()]


def test_log_of_other_columns_is_kept(tmp_path):
    append_row(tmp_path / "log.csv", {"a": 1})
    append_row(tmp_path / "log.csv", {"a": 2})
    append_row(tmp_path / "log.csv", {"b": 3})
    assert (tmp_path / "log.csv").read_text().split() == ["b", "3"]
    kept = [p for p in tmp_path.iterdir() if p.name != "log.csv"]
    assert len(kept) == 1 and kept[0].read_text().split() == ["a", "1", "2"]


def test_estimate_names_the_demo_when_it_will_be_long(caplog):
    engine = engine_with([{"loss": 1.0}] * 2000)
    TrainingProgress(hint="Use demo.yaml.", warmup=0, after=1).attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def slow(e):
        if e.state.iteration == 1:
            import time

            time.sleep(0.01)
        if e.state.iteration == 3:
            e.terminate()

    with caplog.at_level(logging.INFO):
        engine.run(range(1000), max_epochs=2000)
    text = next(r.getMessage() for r in caplog.records if "left for" in r.getMessage())
    assert "2000 epochs of 1000 steps on cpu" in text
    assert [duration(s) for s in (5, 1500, 4020)] == ["5 s", "25 min", "1 h 7 min"]


def test_settings_follow_the_weights(tmp_path):
    engine = engine_with([{"loss": 1.0}])
    settings = {"spatial_size": [96, 64], "class_names": ["background", "heart"]}
    SaveSettings(tmp_path, settings, [{"image": "images/p1.nii.gz"}, {"image": ["p2_0.nii.gz", "p2_1.nii.gz"]}]).attach(
        engine
    )
    engine.run([0], max_epochs=1)
    kept = json.loads((tmp_path / "training.json").read_text())
    assert kept["labeled_cases"] == ["p1", "p2_0"] and kept["versions"]["torch"] == torch.__version__
    assert trained_setting(tmp_path / "model_best.pt", "spatial_size", 224) == [96, 64]
    assert trained_setting(tmp_path / "model_best.pt", "slice_axis") is None
    assert trained_setting(tmp_path / "other" / "model.pt", "spatial_size", 224) == 224


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
    assert not list(tmp_path.glob("*.part"))


def test_a_run_goes_on_with_its_own_settings_only(tmp_path):
    def start(**settings):
        engine = engine_with([{"loss": 1.0}])
        SaveSettings(tmp_path, {"spatial_size": 96, "epochs": 4, **settings}, [{"image": "p1.nii.gz"}]).attach(engine)
        engine.run([0], max_epochs=1)

    start()
    start(spatial_size=64)  # nothing was trained yet
    (tmp_path / "resume_checkpoint_1.pt").touch()
    start(spatial_size=64, epochs=8)
    with pytest.raises(InputError, match="spatial_size: expected 64, received 96"):
        start(spatial_size=96)
    assert json.loads((tmp_path / "training.json").read_text())["spatial_size"] == 64


def test_best_before_last_before_shipped(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(InputError, match="--ckpt_path"):
        find_checkpoint(tmp_path / "out", tmp_path)
    for path in ("models/model.pt", "out/model_last.pt", "out/model_best.pt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
        assert find_checkpoint(tmp_path / "out", tmp_path) == str(tmp_path / path)


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
