"""Slices that grow in the course of a training: when, how, and that nothing else notices."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from helpers import read_rows, workflow
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from scripts.dataio.sizes import Stage, Stages
from scripts.errors import InputError, find_input_error


@pytest.mark.parametrize(
    "spatial_size, early, epochs, expected",
    [
        (224, [[128, 0.6]], 10, 6 * [128] + 4 * [224]),
        (224, [[96, 0.5], [160, 0.25]], 8, 4 * [96] + 2 * [160] + 2 * [224]),
        (224, [], 3, 3 * [224]),
        (128, [[128, 0.6]], 4, 4 * [128]),
        (64, [[128, 0.6]], 4, 4 * [64]),
        (224, [[128, 0.6]], 1, [224]),
        (224, [[128, 0.25], [96, 0.25], [128, 0.25]], 4, [128, 96, 128, 224]),
        (224, [[128, 0.99]], 2, [128, 224]),
    ],
)
def test_every_epoch_has_its_size_and_the_last_that_of_prediction(spatial_size, early, epochs, expected):
    stages = Stages(spatial_size, early)
    assert [stages.stage(e, epochs) for e in range(1, epochs + 1)] == [((n, n), True) for n in expected]
    assert sum(share for _, share in stages.shares) == pytest.approx(1)


@pytest.mark.parametrize(
    "early, start, expected",
    [
        ([[128, 0.6]], 0.3, {(128, False): 0.3, (128, True): 0.3, (224, True): 0.4}),
        ([[128, 0.6]], 0.8, {(128, False): 0.6, (224, False): 0.2, (224, True): 0.2}),
        ([[128, 0.5]], 0.5, {(128, False): 0.5, (224, True): 0.5}),
        ([[96, 0.1], [128, 0.2]], 0.3, {(96, False): 0.1, (128, False): 0.2, (224, True): 0.7}),
        ([], 0.25, {(224, False): 0.25, (224, True): 0.75}),
    ],
)
def test_labelled_slices_alone_come_first_whatever_their_size(early, start, expected):
    stages = Stages(224, early, start)
    assert {(s.size[0], s.unlabeled): share for s, share in stages.shares} == pytest.approx(expected)
    epochs = [stages.stage(e, 20) for e in range(1, 21)]
    assert {(s.size[0], s.unlabeled): epochs.count(s) / 20 for s in epochs} == pytest.approx(expected)
    assert stages.last == Stage((224, 224), True)


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_epochs_are_counted_by_stage(reached):
    stages = Stages(224, [[64, 0.2], [128, 0.3]], 0.3)
    stages.reached = reached
    for epochs in (1, 2, 3, 7, 40):
        for first in range(1, epochs + 1):
            for last in range(first - 1, epochs + 1):
                expected = Counter(stages.stage(epoch, epochs) for epoch in range(first, last + 1))
                assert {stage: n for stage, n in stages.numbers(first, last, epochs) if n} == dict(expected)


def test_proportions_are_kept():
    assert Stages([160, 320], [[160, 0.5]]).shares[0] == (Stage((80, 160), True), 0.5)
    assert Stages([64, 512], [[100, 0.5]]).shares[0] == (Stage((16, 96), True), 0.5), "multiples of 16"


@pytest.mark.parametrize("early", [[[128, 1.0]], [[128, 0]], [[8, 0.5]], [[128, 0.6], [160, 0.4]], [128, 0.6], "128"])
def test_what_is_no_schedule_is_refused(early):
    with pytest.raises(InputError, match=r"early_sizes: expected pairs .* \[\[128, 0.6\]\]; received"):
        Stages(224, early)


SETTINGS = {"spatial_size": 64, "early_sizes": [[32, 0.5]], "unlabeled_start": 0.25, "batch_size": 4,
            "show_progress": False}  # fmt: skip


def run(phantom, output, *names, stop=None, **given):
    """Train SemSim- with slices that grow; the shapes of the images of every step, and the checkpoint that is left."""
    flow = workflow("train", "train", "semsim_minus", *names, dataset_dir=str(phantom), output_dir=str(output),
                    **{**SETTINGS, **given})  # fmt: skip
    trainer = flow.parser.get_parsed_content("train#trainer")
    shapes: list[tuple[int, ...]] = []

    def look(engine):
        views = engine.state.views
        shapes.append(tuple(views.image_l.shape[2:]))
        assert views.unlabeled is None or views.unlabeled["image_strong_1"].shape == views.image_l.shape
        assert set(views.label.unique().tolist()) <= {0, 1, 2, 3}

    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, look)
    if stop:
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), trainer.terminate)
    flow.run()
    newest = max(output.glob("resume_checkpoint_*.pt"), key=lambda p: int(p.stem.split("_")[-1]))
    return shapes, torch.load(newest, weights_only=True)["network"]


def test_a_training_grows_and_resumes_as_if_it_had_not_stopped(phantom_dir, tmp_path):
    shapes, whole = run(phantom_dir, tmp_path / "whole", epochs=4, val_interval=4)
    steps = len(shapes) // 4
    assert shapes == 2 * steps * [(32, 32)] + 2 * steps * [(64, 64)]
    settings = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert settings["early_sizes"] == [[32, 0.5]] and settings["spatial_size"] == 64
    assert len(read_rows(tmp_path / "whole" / "validation_log.csv")) == 1

    run(phantom_dir, tmp_path / "parts", epochs=4, val_interval=4, stop=3)
    shapes, parts = run(phantom_dir, tmp_path / "parts", epochs=4, val_interval=4, resume="auto")
    assert shapes == steps * [(64, 64)]
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    with pytest.raises(Exception) as caught:
        run(phantom_dir, tmp_path / "parts", epochs=4, val_interval=4, resume="auto", early_sizes=[])
    assert "early_sizes: expected [[32, 0.5]], received []" in str(find_input_error(caught.value))


def test_no_stage_comes_again_where_a_training_becomes_longer(phantom_dir, tmp_path):
    stages = Stages(64, [[32, 0.5]], 0.25)
    assert [stages.begin(e, 4) for e in (1, 2, 3)] == [stage for stage, _ in stages.shares]
    assert {stages.stage(e, 400) for e in (4, 5, 400)} == {stages.last}

    run(phantom_dir, tmp_path, epochs=4, steps_per_epoch=1, stop=3)
    shapes, _ = run(phantom_dir, tmp_path, epochs=12, steps_per_epoch=1, resume="auto", stop=5)
    assert shapes == 2 * [(64, 64)], "epochs 4 and 5 of 12 are early, but come after one in full size"
    shapes, _ = run(phantom_dir, tmp_path, epochs=24, steps_per_epoch=1, resume="auto", stop=6)
    assert shapes == [(64, 64)]
    rows = read_rows(tmp_path / "training_log.csv")
    assert [bool(row["loss_u"]) for row in rows] == [False, *5 * [True]], "and the log keeps all epochs"

    older = tmp_path / "resume_checkpoint_6.pt"
    content = torch.load(older, weights_only=True)
    assert content.pop("stages") == {"reached": 2}
    torch.save(content, older)  # as an earlier version left it
    shapes, _ = run(phantom_dir, tmp_path, epochs=7, steps_per_epoch=1, resume="auto")
    assert shapes == [(64, 64)]


def test_other_widths_are_saved_and_restored(phantom_dir, tmp_path):
    """A narrower network: whoever loads its weights finds its widths beside them."""
    widths = [8, 8, 16, 16, 32, 8]
    _, state = run(phantom_dir, tmp_path, epochs=1, features=widths)
    assert state["backbone.conv_0.conv_0.conv.weight"].shape[0] == 8
    for names in (["inference"], ["train", "semsim_minus", "evaluate"]):
        flow = workflow("infer", *names, dataset_dir=str(phantom_dir), output_dir=str(tmp_path),
                        ckpt_path=str(tmp_path / "model_last.pt"))  # fmt: skip
        network = flow.parser.get_parsed_content("network")
        assert network.backbone.conv_0.conv_0.conv.weight.shape[0] == 8
