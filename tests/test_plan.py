"""`planning` says what a training will cost, leaves nothing behind, and is near the truth."""

from __future__ import annotations

import json

import plan_check
import pytest
import torch
from conftest import config_args
from helpers import Slices, make
from scripts.dataio.sizes import Stages
from scripts.errors import InputError
from scripts.memory import available_memory
from scripts.training import cost as plan_module
from scripts.training.budget import duration
from scripts.training.cost import Line, Plan

GIB = 2**30


def test_planning_by_command_is_near_the_training_and_writes_nothing(run_bundle, phantom_dir, tmp_path, monkeypatch):
    """The same options as a training; memory within 30 % of the training's."""
    given = {"spatial_size": 64, "epochs": 3, "val_interval": 3, "batch_size": 4}
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    out, file = tmp_path / "out", tmp_path / "plan.json"
    data = ["--dataset_dir", str(phantom_dir), "--output_dir", str(out)]
    result = run_bundle(
        "run", "planning", *config_args("train", "semsim_minus"), *data, *options, "--plan_file", str(file)
    )
    assert not out.exists(), "a training may follow in the same folder"
    figures = json.loads(file.read_text())
    spent = figures["start_seconds"] + 3 * figures["steps_per_epoch"] * figures["step_seconds"]
    assert figures["total_seconds"] == pytest.approx(spent + figures["validation_seconds"])
    assert figures["validations"] == 1 and figures["epochs"] == 3 and figures["batch_size"] == 4
    for shown in (
        "slices a step, in ",
        "  step  ",
        "  epoch  ",
        "for 1 volumes, every 3 epochs",
        "3 epochs, ",
        "GiB available",
        "fits",
    ):
        assert shown in result.stderr + result.stdout, shown

    monkeypatch.setitem(plan_check.CONFIGURATIONS, "test", (["semsim_minus"], given))
    plan_check.measure(str(tmp_path / "check.json"), "test", str(phantom_dir))
    checked = json.loads((tmp_path / "check.json").read_text())["configurations"]["test"]
    assert 0.7 < checked["ratio"]["peak_bytes"] < 1.3


def make_plan(**kwargs) -> tuple[Plan, list[int]]:
    """A plan of a tiny training, and the batch sizes of the steps that it takes."""
    trainer, _, _ = make(fusion="conv", epochs=2, batch_size=4)
    sizes: list[int] = []
    step = trainer._iteration
    trainer._iteration = lambda engine, batch: sizes.append(len(batch["labeled"]["image"])) or step(engine, batch)
    return Plan(lambda: trainer, steps=3, epochs=2, **kwargs), sizes


def test_a_batch_that_does_not_fit_is_never_run(monkeypatch, caplog):
    """Memory that grows by one GiB a slice, 3.5 GiB there: three slices fit, and are what is timed."""

    class Peak:
        before = 0

        def __init__(self, _):
            self.start = len(sizes)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.peak = max(sizes[self.start :]) * GIB

    monkeypatch.setattr(plan_module, "PeakMemory", Peak)
    monkeypatch.setattr(plan_module, "available_memory", lambda _: int(3.5 * GIB))
    caplog.set_level("INFO")
    plan, sizes = make_plan()
    figures = plan.run()
    assert max(sizes) == 3 and figures["largest_batch_size"] == 3 and figures["peak_bytes"] == 4 * GIB
    assert "does NOT fit: lower --batch_size to 3" in caplog.text

    monkeypatch.setattr(plan_module, "available_memory", lambda _: GIB // 2)
    plan, sizes = make_plan()
    with pytest.raises(
        InputError, match=r"One slice of each stream needs about 1\.0 GiB, of 0\.5 GiB available: lower"
    ):
        plan.run()


def test_plan_of_a_supervised_training_without_validation(monkeypatch, caplog):
    caplog.set_level("INFO")
    plan, sizes = make_plan()
    figures = plan.run()
    assert figures["validations"] == 0 and "no labelled volume" in caplog.text
    assert figures["largest_batch_size"] == 8 and "there are no more slices" in caplog.text
    caplog.clear()
    plan, _ = make_plan()
    plan.loader.set_steps(1)  # --steps_per_epoch 1: an epoch is half of the slices
    with monkeypatch.context() as patch:
        patch.setattr(Line, "largest", lambda *_: 6)
        assert plan.run()["largest_batch_size"] == 6 and "there are no more" not in caplog.text
    monkeypatch.setattr(Slices, "unit", ("patch", "patches"))  # as in 3D
    make_plan()[0].run()
    assert "there are no more patches" in caplog.text
    assert 4 in sizes and figures["step_seconds"] >= figures["loading_seconds"] > 0
    assert figures["device"] == "cpu" and figures["threads"] == torch.get_num_threads()


def test_a_plan_says_what_minutes_buy(monkeypatch, caplog):
    """Steps of a second, a pass of two steps, no validation: all but the reserve and the start goes into steps."""
    caplog.set_level("INFO")
    monkeypatch.setattr(plan_module, "age", lambda: 6.0)
    monkeypatch.setattr(Plan, "_time", lambda self, batches, seconds: (1.0, 0.1))
    plan, _ = make_plan()
    offers = plan.run()["minutes_buy"]
    assert offers["10"] == {"steps": 570, "epochs": 285, "steps_per_epoch": 2, "validations": 0}
    assert offers["60"]["steps"] == 3450 and offers["480"]["steps"] == 27_642
    assert "--minutes 10    570 steps (285 epochs of 2)" in caplog.text

    monkeypatch.setattr(Plan, "_time", lambda self, batches, seconds: (700.0, 0.1))
    plan, _ = make_plan()
    assert plan.run()["minutes_buy"]["10"] is None and "--minutes 10    nothing: too short" in caplog.text

    plan, _ = make_plan()
    plan.epochs, plan.minutes = None, 480.0
    assert plan.run()["epochs"] * plan.run()["steps_per_epoch"] == int(480 * 60 * 0.96 - 6) // 700
    assert "39 steps are few" in caplog.text


def test_a_short_training_is_planned_by_the_stages_of_its_epochs(monkeypatch):
    """The last epoch is of the last stage: with one epoch all of them."""
    stages = Stages(32, [[16, 0.6]])
    seconds = {(16, 16): 1.0, (32, 32): 5.0}
    measure = Plan._batches
    monkeypatch.setattr(Plan, "_batches", lambda self, stage=None: measure(self) if stage is None else iter([stage]))
    monkeypatch.setattr(Plan, "_part", staticmethod(lambda batch, size: batch))
    monkeypatch.setattr(Plan, "_memory", lambda *_: Line([(0, 0), (1, 1)]))
    monkeypatch.setattr(Plan, "_time", lambda self, batches, most: (seconds[next(batches).size], 0.1))
    for epochs, expected in ((1, 5.0), (2, 3.0), (10, 0.6 + 0.4 * 5)):
        trainer, _, _ = make(fusion="conv", epochs=epochs, batch_size=4, stages=stages)
        figures = Plan(lambda trainer=trainer: trainer, epochs=epochs).run()
        assert figures["step_seconds"] == pytest.approx(expected)
        bought = figures["minutes_buy"]["60"]["steps"]
        assert bought == pytest.approx(3600 * 0.96 / 2.6, rel=0.01), "of a long training"


def test_one_of_several_processes_tells_the_plan(monkeypatch, caplog, tmp_path):
    caplog.set_level("INFO")
    for rank in (0, 1):
        monkeypatch.setattr(plan_module, "rank_and_size", lambda rank=rank: (rank, 2))
        caplog.clear()
        plan, _ = make_plan(plan_file=str(tmp_path / f"{rank}.json"))
        assert plan.run()["batch_size"] == 4
        assert ("What this training costs" in caplog.text) == (tmp_path / f"{rank}.json").exists() == (rank == 0)


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = available_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(torch.device("cpu")) < alone


def test_line_and_duration():
    line = Line([(0, 100), (2, 300), (4, 600)])
    assert line(4) == 600 and line(2) == 300 and line(8) == 1200
    assert line.largest(1000) == 6 and line.largest(100) == 0
    assert Line([(1, 500), (2, 400)]).largest(500) > 2, "memory that does not grow"
    assert [duration(s) for s in (5, 100, 6000, 864000)] == ["5.0 seconds", "1.7 minutes", "1.7 hours", "10.0 days"]


def test_a_plan_that_cannot_be_written_is_refused_before_it_is_measured(tmp_path):
    (tmp_path / "a").touch()
    for name, said in (("", "expected a file, received a folder"), ("a/plan.json", "expected a folder")):
        with pytest.raises(InputError, match=f"--plan_file .*: {said}"):
            Plan(lambda: pytest.fail("made a trainer"), plan_file=str(tmp_path / name))
