"""Every method, stopped at the end of an epoch and resumed, ends bit by bit where one ends that was not stopped."""

from __future__ import annotations

import pytest
import torch
from helpers import TRAINING_OVERLAYS, flat, same, workflow
from ignite.engine import Events

METHODS = ["semsim", *(name for name in TRAINING_OVERLAYS if name != "demo")]


def run(phantom, output, method, workers, *, stop=None, resume="") -> dict:
    """What the last checkpoint of two epochs holds, or of the first where it is stopped."""
    names = ["train"] if method == "semsim" else ["train", method]
    flow = workflow(
        "train", *names, dataset_dir=str(phantom), output_dir=str(output), epochs=2, steps_per_epoch=2, spatial_size=32,
        batch_size=4, num_workers=workers, val_interval=1, resume=resume, show_progress=False,
    )  # fmt: skip
    if stop:
        trainer = flow.parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), trainer.terminate)
    flow.run()
    return torch.load(output / f"resume_checkpoint_{stop or 2}.pt", weights_only=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_is_the_uninterrupted_one(phantom_dir, tmp_path, method, workers):
    whole = flat(run(phantom_dir, tmp_path / "whole", method, workers))
    first = flat(run(phantom_dir, tmp_path / "parts", method, workers, stop=1))
    rest = flat(run(phantom_dir, tmp_path / "parts", method, workers, resume="auto"))
    assert {"network", "optimizer", "lr_scheduler", "best_model", "trainer"} <= {k.split("/")[1] for k in whole}
    assert whole.keys() == rest.keys()
    differing = [k for k in whole if not same(whole[k], rest[k])]
    assert not differing, differing[:5]
    assert any(not same(first[k], whole[k]) for k in whole if k.startswith("/network"))
    for name in ("training_log.csv", "validation_log.csv"):
        logs = [(tmp_path / folder / name).read_text().splitlines() for folder in ("whole", "parts")]
        columns = logs[0][0].split(",")
        kept = [i for i, column in enumerate(columns) if column != "seconds"]
        tables = [[[line.split(",")[i] for i in kept] for line in log] for log in logs]
        assert tables[0] == tables[1], name
