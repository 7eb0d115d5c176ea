"""Logs, warnings and the estimate of the time left."""

from __future__ import annotations

import errno
import logging

import pytest
import torch
from helpers import engine_with, read_rows
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from scripts.errors import explain
from scripts.method.network import Output
from scripts.training.handlers import (
    PseudoLabelQuality,
    RegularValidation,
    TrainingLog,
    TrainingProgress,
    append_row,
)


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)


def test_training_log_writes_means_and_warns_of_collapse(tmp_path, caplog):
    present = {"loss": 1.0, "label_0": 0.9, "label_1": 0.1, "pseudo_0": 0.9, "pseudo_1": 0.1}
    gone = {**present, "loss": 0.5, "pseudo_0": 1.0, "pseudo_1": 0.0}
    engine = engine_with([gone, present, gone, gone, present])
    TrainingLog(tmp_path, optimizer(), ["background", "heart"]).attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0, 1], max_epochs=5)
    rows = read_rows(tmp_path / "training_log.csv")
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


@pytest.mark.parametrize("interval, expected", [(2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_the_last_epoch_is_always_validated(interval, expected):
    evaluator = SupervisedEvaluator("cpu", [0], torch.nn.Identity(), epoch_length=1)
    validated = []
    evaluator.run = validated.append
    engine = Engine(lambda *_: None)
    RegularValidation(interval, evaluator).attach(engine)
    engine.run([0], max_epochs=5)
    assert validated == expected


def test_quality_of_pseudo_labels_by_hand(tmp_path):
    """Two slices of four pixels; the teacher is sure of three in each, and once surely wrong."""
    truth = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]).view(2, 1, 2, 2)
    said = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]).view(2, 2, 2)
    sure = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]]).view(2, 1, 2, 2)
    logits = 10.0 * torch.nn.functional.one_hot(said, 2).movedim(-1, 1) * sure

    class Network(torch.nn.Module):
        def forward(self, images, _streams):
            return Output({"weak": logits[images["weak"].flatten().long()]}, {})

    class Known:
        network = Network()

    slices = [{"image": torch.tensor([[[float(k)]]]), "label": truth[k]} for k in range(2)]
    engine = engine_with([{"loss": 1.0}] * 2)
    PseudoLabelQuality(tmp_path, slices, Known(), ["background", "heart"], interval=2).attach(engine)
    engine.run([0], max_epochs=2)
    (row,) = read_rows(tmp_path / "pseudo_labels.csv")
    # background: 3 pixels, all sure and right; heart: 5 pixels, 3 sure, one of them called background
    assert row == {
        "epoch": "2", "background confident": "1.0", "background precision": "0.75", "background recall": "1.0",
        "heart confident": "0.6", "heart precision": "1.0", "heart recall": "0.6667",
    }  # fmt: skip


def test_log_of_other_columns_is_kept(tmp_path):
    append_row(tmp_path / "log.csv", {"epoch": 1, "a": 1})
    append_row(tmp_path / "log.csv", {"epoch": 2, "a": 2})
    append_row(tmp_path / "log.csv", {"epoch": 3, "b": 3})
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,b", "3,3"]
    kept = [p for p in tmp_path.iterdir() if p.name != "log.csv"]
    assert len(kept) == 1 and kept[0].read_text().split() == ["epoch,a", "1,1", "2,2"]


def test_a_full_disk_leaves_the_log_as_it_was_and_is_said_with_its_name(tmp_path, monkeypatch):
    append_row(tmp_path / "log.csv", {"epoch": 1, "a": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError) as error:
        append_row(tmp_path / "log.csv", {"epoch": 2, "a": 2})
    assert explain(error.value).startswith(f"{tmp_path / 'log.csv'}: no space left to write")
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,a", "1,1"]


def test_columns_that_come_later_are_empty_before(tmp_path):
    """Unlabelled slices take part from an epoch on; one that is done again is without them again."""
    for epoch, more in ((1, {}), (2, {"b": 20}), (3, {"b": 30}), (2, {}), (3, {"b": 31})):
        append_row(tmp_path / "log.csv", {"epoch": epoch, "a": epoch, **more})
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,a,b", "1,1,", "2,2,", "3,3,31"]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_epoch_done_again_has_one_row(tmp_path):
    """A process died after writing its row and before its checkpoint; the next one does that epoch again."""
    for epoch, a in ((1, 10), (2, 20), (3, 30), (2, 21), (3, 31)):
        append_row(tmp_path / "log.csv", {"epoch": epoch, "a": a})
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,a", "1,10", "2,21", "3,31"]
    (tmp_path / "log.csv").write_text("epoch,a\n1.0,10\n2.0,21\n")  # as pandas may have saved it
    append_row(tmp_path / "log.csv", {"epoch": 2, "a": 22})
    assert (tmp_path / "log.csv").read_text().split() == ["epoch,a", "1.0,10", "2,22"]


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
