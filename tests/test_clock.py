"""Training by the clock: what the time buys, that measuring changes nothing, and what happens when the pace changes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from time import process_time

import pytest
import torch
from helpers import flat, make, same, workflow
from ignite.engine import Engine, Events
from scripts.dataio.sizes import Stage, Stages
from scripts.errors import InputError, find_input_error
from scripts.training import clock as clock_module
from scripts.training.budget import RESERVE, Length, affordable, bought, check_one_length, few_steps
from scripts.training.clock import Clock, KeepTime
from scripts.training.cost import Plan
from torch.optim.lr_scheduler import PolynomialLR


@pytest.mark.parametrize(
    "seconds, validation, one_pass, given, expected",
    [
        (270, 2.0, 20, {}, Length(31, 8, 4)),  # 20 s for ten validations; an epoch is a thirtieth of 250 steps
        (270, 2.0, 5, {}, Length(50, 5, 5)),  # or a pass
        (270, 0.0, 20, {}, Length(30, 9, 3)),  # nothing to validate
        (270, 9.0, 20, {}, Length(30, 8, 10)),  # a tenth of the time: three validations
        (270, 100.0, 20, {}, Length(34, 5, 34)),  # one there is in any case
        (270, 2.0, 20, {"steps_per_epoch": 50}, Length(5, 50, 1)),
        (270, 2.0, 20, {"val_interval": 1}, Length(27, 8, 1)),  # 27 epochs of 8 + 2 s
        (5, 2.0, 20, {}, Length(3, 1, 3)),
        (2.5, 2.0, 20, {}, None),
        (40, 2.0, 20, {"steps_per_epoch": 50}, None),
    ],
)
def test_what_a_time_buys_at_a_second_a_step(seconds, validation, one_pass, given, expected):
    assert affordable(seconds, 1.0, validation, one_pass=one_pass, **given) == expected


def test_the_time_is_kept_and_used():
    """Over a grid of machines and data: within the time, most of it used, validations and epochs bounded."""
    for seconds in (30, 280, 3400, 27_000):
        for step in (0.05, 0.7, 3.0):
            for validation in (0.0, 1.0, 5.0):
                for one_pass in (3, 40, 2000):
                    length = affordable(seconds, step, validation, one_pass=one_pass)
                    spent = length.seconds(step, validation)
                    assert 0.8 * seconds <= spent <= seconds
                    assert length.steps_per_epoch <= one_pass and length.steps_per_epoch <= math.ceil(length.steps / 30)
                    assert length.validations <= max(1, min(10, 0.1 * seconds / validation if validation else 10))


def test_too_few_minutes_are_refused_with_the_least_that_would_do():
    with pytest.raises(InputError, match=r"minutes 0\.5: expected at least 0\.6, for start and measuring took 27 s"):
        bought(0.5, 27.0, 2.0, 3.0, one_pass=20)
    assert bought(0.6, 27.0, 2.0, 3.0, one_pass=20).steps == 2
    with pytest.raises(InputError, match=r"expected at least 0\.7"):  # 0.61 would do, but 0.6 not
        bought(0.6, 30.2, 2.0, 3.0, one_pass=20)


@pytest.mark.parametrize(
    "minutes, spent, step, validation, given",
    [(5, 44, 6.0, 10.0, {}), (9, 40, 1.0, 300.0, {}), (5, 40, 0.5, 20.0, {"steps_per_epoch": 10, "val_interval": 1})],
)
def test_too_few_steps_are_named_with_the_minutes_that_would_do(minutes, spent, step, validation, given):
    given = {"one_pass": 50, **given}
    short = bought(minutes, spent, step, validation, **given)
    said = few_steps(short, spent, step, validation, **given)
    enough = int(re.search(r"--minutes (\d+) here", said)[1])
    assert said.startswith(f"{short.steps} steps are few;") and enough > minutes
    long = bought(enough, spent, step, validation, **given)
    assert long.steps >= 300 > bought(0.9 * enough, spent, step, validation, **given).steps
    assert few_steps(long, spent, step, validation, **given) == ""


@pytest.mark.parametrize(
    "minutes, epochs, message",
    [
        (60, 300, "minutes 60 and epochs 300: expected one of the two"),
        (None, None, "received neither"),
        (0, None, "expected a number above 0"),
        ("an hour", None, "received 'an hour'"),
        (True, None, "received True"),
    ],
)
def test_one_length_is_asked_for(minutes, epochs, message):
    check_one_length(60, None)
    check_one_length(None, 300)
    with pytest.raises(InputError, match=message):
        check_one_length(minutes, epochs)


class Time:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        monkeypatch.setattr(clock_module, "now", lambda: self.seconds)

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


def train(phantom, output, *, stop=None, wait=lambda: None, **given):
    """The checkpoint that a training of SemSim- at 32 x 32 leaves, and its settings."""
    flow = workflow(
        "train", "train", "semsim_minus", dataset_dir=str(phantom), output_dir=str(output), spatial_size=32,
        batch_size=4, unlabeled_start=0.5, show_progress=False, **given,
    )  # fmt: skip
    trainer = flow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, wait)
    if stop:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), trainer.terminate)
    flow.run()
    newest = max(output.glob("resume_checkpoint_*.pt"), key=lambda p: int(p.stem.split("_")[-1]))
    return torch.load(newest, weights_only=True), json.loads((output / "training.json").read_text())


def test_a_training_by_the_clock_is_the_one_by_hand_also_when_resumed(phantom_dir, tmp_path, monkeypatch):
    """A minute with steps of 10 s and validations of 5 s: five steps. Measuring is real and leaves no trace."""
    time, speed, measured = Time(monkeypatch), Plan.speed, []

    def slow(plan):
        measured.append(speed(plan))
        plan.step_seconds.clear()  # of every stage alike
        return 10.0, 5.0

    monkeypatch.setattr(Plan, "speed", slow)
    whole, settings = train(phantom_dir, tmp_path / "clock", minutes=1, wait=lambda: time.wait(10))
    assert len(measured) == 1 and min(measured[0]) > 0
    assert {k: settings[k] for k in ("minutes", "epochs", "steps_per_epoch")} == {
        "minutes": 1, "epochs": 5, "steps_per_epoch": 1,
    }  # fmt: skip
    assert whole["optimizer"]["param_groups"][0]["lr"] == 0, "the schedule ends with the last step"
    assert len((tmp_path / "clock" / "validation_log.csv").read_text().splitlines()) == 2

    hand, _ = train(phantom_dir, tmp_path / "hand", epochs=5, steps_per_epoch=1, val_interval=5)
    assert hand.pop("clock") == {}
    train(phantom_dir, tmp_path / "parts", minutes=1, stop=2, wait=lambda: time.wait(9))
    monkeypatch.setattr(Plan, "speed", lambda _: pytest.fail("a resumed training measures nothing"))
    parts, _ = train(phantom_dir, tmp_path / "parts", minutes=1, resume="auto", wait=lambda: time.wait(11))
    assert parts["clock"]["seconds"] == 2 * 9 + 3 * 11 and whole["clock"]["seconds"] == 50
    for state in (whole, parts):
        assert state.pop("clock")["epochs"] == 5
        state, expected = flat(state), flat(hand)
        assert state.keys() == expected.keys()
        assert [k for k in state if not same(state[k], expected[k])] == []

    longer, settings = train(phantom_dir, tmp_path / "parts", minutes=2, resume="auto", wait=lambda: time.wait(10))
    assert longer["trainer"]["iteration"] == settings["epochs"] >= 9 and settings["minutes"] == 2
    assert longer["optimizer"]["param_groups"][0]["lr"] == 0 and longer["clock"]["seconds"] <= 120

    for given, message in (
        ({"minutes": 1, "output_dir": "hand"}, "a training by epochs, received minutes 1"),
        ({"minutes": 1, "epochs": 5, "output_dir": "new"}, "minutes 1 and epochs 5: expected one"),
        ({"minutes": 1, "output_dir": "clock", "resume": ""}, "an earlier training has its files here"),
    ):
        given = {"resume": "auto", **given, "output_dir": str(tmp_path / given["output_dir"])}
        flow = workflow("train", "train", "semsim_minus", dataset_dir=str(phantom_dir), spatial_size=32, **given)
        with pytest.raises(Exception) as caught:
            flow.run()
        assert message in str(find_input_error(caught.value))
    assert not (tmp_path / "new").exists()


def steady(_):
    return 1.0


def slower(seconds):
    return 1.0 if seconds < 120 else 2.5


def faster(seconds):
    return 1.0 if seconds < 120 else 0.4


@pytest.mark.parametrize("early", [None, 0.5])
@pytest.mark.parametrize("pace", [steady, slower, faster, lambda _: 2.0, lambda _: 0.5])
def test_the_number_is_kept_while_the_pace_is_and_the_time_in_any_case(tmp_path, monkeypatch, caplog, pace, early):
    """Five minutes on a machine that keeps its pace, loses or gains it, or was measured wrongly by a factor of two.

    With slices that grow, a step of the first 60 % takes half of the average, and one of the others the more.
    """
    time = Time(monkeypatch)
    monkeypatch.setattr(Plan, "speed", lambda _: (1.0, 2.0))
    clock = Clock(5, lambda: make()[0], output_dir=tmp_path)
    clock.length = planned = affordable(288, 1.0, 2.0, one_pass=20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule, rates = PolynomialLR(optimizer, total_iters=planned.steps, power=0.9), []
    (tmp_path / "training.json").write_text(json.dumps({"epochs": planned.epochs, "seed": 7}))

    stages = Stages(224, [[128, 0.6]]) if early else None
    if stages:
        clock.step_seconds = {Stage((128, 128), True): early, Stage((224, 224), True): (1 - 0.6 * early) / 0.4}

    def step(engine, *_):
        stage = stages.stage(engine.state.epoch, engine.state.max_epochs) if stages else None
        time.wait(pace(time.seconds) * clock.step_seconds.get(stage, 1.0))
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])

    engine = Engine(step)
    KeepTime(clock, schedule, tmp_path, stages).attach(engine)

    def between(engine):
        validated = engine.state.epoch % planned.val_interval == 0 or engine.state.epoch == engine.state.max_epochs
        time.wait(2.1 if validated else 0.1)  # and a checkpoint

    engine.add_event_handler(Events.EPOCH_COMPLETED, between)
    engine.run(range(planned.steps_per_epoch), max_epochs=planned.epochs)
    assert 270 <= time.seconds <= 305
    kept = pace is steady
    assert (clock.length == planned) is kept and ("than before" in caplog.text) is not kept
    assert engine.state.iteration == clock.length.steps == schedule.total_iters == len(rates)
    assert rates[-1] == pytest.approx(0) and min(rates[:-1]) > 0
    assert json.loads((tmp_path / "training.json").read_text()) == {"epochs": engine.state.epoch, "seed": 7}


@pytest.mark.parametrize("minutes, slow", [(4, 10), (5, 30), (20, 300)])
def test_the_last_epoch_has_the_full_size_however_slow_it_is(tmp_path, monkeypatch, caplog, minutes, slow):
    """Where the time was over in an early stage the training ended at once, and the learning rate had not decayed."""
    time = Time(monkeypatch)
    monkeypatch.setattr(Plan, "speed", lambda _: (1.0, 2.0))
    clock = Clock(minutes, lambda: make()[0], output_dir=tmp_path)
    clock.length = planned = Length(30, 10, 3)
    stages = Stages(224, [[128, 0.6]], 0.3)
    clock.step_seconds = dict(zip((stage for stage, _ in stages.shares), (0.2, 1.0, 3.0)))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule, sizes = PolynomialLR(optimizer, total_iters=planned.steps, power=0.9), {}

    def step(engine, *_):
        stage = sizes.setdefault(engine.state.epoch, stages.begin(engine.state.epoch, engine.state.max_epochs))
        time.wait(clock.step_seconds[stage] * (slow if engine.state.epoch > 6 else 1))
        optimizer.step()
        schedule.step()

    engine = Engine(step)
    KeepTime(clock, schedule, tmp_path, stages).attach(engine)
    engine.run(range(planned.steps_per_epoch), max_epochs=planned.epochs)
    assert [*sizes.values()].count(stages.last) == 1 and sizes[engine.state.epoch] == stages.last
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)
    assert "begins the last stage" in caplog.text and f"minutes, not {minutes} minutes" in caplog.text


def test_minutes_that_are_used_up_are_refused(phantom_dir, tmp_path, monkeypatch):
    """Such a resume was ended by the clock after a few epochs, in an early stage."""
    time = Time(monkeypatch)
    monkeypatch.setattr(Plan, "speed", lambda _: (10.0, 5.0))
    train(phantom_dir, tmp_path, minutes=1, stop=2, wait=lambda: time.wait(20))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RuntimeError) as caught:
        train(phantom_dir, tmp_path, minutes=0.5, resume="auto")
    assert str(find_input_error(caught.value)) == (
        f"{tmp_path}/resume_checkpoint_2.pt: expected more minutes than the 0.7 that its training has used, received "
        "minutes 0.5; give more."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    train(phantom_dir, tmp_path, minutes=1, resume="auto", wait=lambda: time.wait(1))
    train(phantom_dir, tmp_path, minutes=0.5, resume="auto")  # nothing is left to do


def test_many_short_epochs_are_counted_at_once(tmp_path):
    """Eight hours of a few slices; each look at the clock took longer than an epoch, and a new number hours."""
    clock = Clock(None, lambda: make()[0])
    clock.minutes, planned = 480, Length(500_000, 1, 50_000)
    stages = Stages(224, [[128, 0.6]], 0.3)
    clock.step_seconds = dict(zip((stage for stage, _ in stages.shares), (0.01, 0.02, 0.16)))
    keeper = KeepTime(clock, None, tmp_path, stages)
    keeper.seconds, keeper.completed = [0.04] * 100_000, 4000.0
    begin = process_time()
    epochs = keeper._epochs(100_000, planned)
    assert process_time() - begin < 1
    ends = [keeper._end(100_000, replace(planned, epochs=epochs + more), 0.04) for more in (0, 1)]
    assert ends[0] <= 480 * 60 * (1 - RESERVE / 2) < ends[1] and epochs > planned.epochs


def test_options_of_a_resume_count(phantom_dir, tmp_path, monkeypatch):
    """Of validations, and of steps, which would be other ones; both were left out without a word."""
    time = Time(monkeypatch)
    monkeypatch.setattr(Plan, "speed", lambda _: (10.0, 5.0))
    train(phantom_dir, tmp_path, minutes=1, stop=1)
    with pytest.raises(RuntimeError) as caught:
        train(phantom_dir, tmp_path, minutes=1, resume="auto", steps_per_epoch=7)
    assert "steps_per_epoch: expected 1, received 7); resume with those" in str(find_input_error(caught.value))
    train(phantom_dir, tmp_path, minutes=1, resume="auto", val_interval=2, wait=lambda: time.wait(10))
    assert "2,0." in (tmp_path / "validation_log.csv").read_text()


@pytest.mark.parametrize("pace, epochs", [(25, range(8, 11)), (4, [21])])
def test_a_schedule_of_another_kind_keeps_its_course(phantom_dir, tmp_path, monkeypatch, pace, epochs):
    """One that nothing can stretch: four minutes of 21 steps become fewer where they last longer, but never more."""
    time = Time(monkeypatch)

    def measured(plan):
        plan.step_seconds.update(dict.fromkeys((stage for stage, _ in plan.loader.stages.shares), 10.0))
        return 10.0, 5.0

    monkeypatch.setattr(Plan, "speed", measured)
    halved = {"_target_": "torch.optim.lr_scheduler.LambdaLR", "optimizer": "@optimizer"}
    state, settings = train(
        phantom_dir, tmp_path, minutes=4, steps_per_epoch=1, wait=lambda: time.wait(pace),
        lr_scheduler={**halved, "lr_lambda": "$lambda n: 0.5**n"},
    )  # fmt: skip
    done = state["trainer"]["iteration"]
    assert done in epochs and settings["epochs"] == done
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.001 * 0.5**done)
