"""A training goes on with what it began with: every setting that changes what is learnt is compared at a resume."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import workflow
from ignite.engine import Events
from scripts.errors import find_input_error
from scripts.training.recipe import recipe


def begun(phantom, output, *overlays, stop=1, **changes):
    """Train to the end of an epoch, or go on; the last checkpoint's epoch."""
    settings = {"epochs": 4, "steps_per_epoch": 1, "batch_size": 2, "spatial_size": 32, "features": [4, 4, 8, 8, 8, 4],
                "val_interval": 4, "show_progress": False, "resume": "auto"}  # fmt: skip
    flow = workflow("train", "train", "labeled_only", *overlays, dataset_dir=str(phantom), output_dir=str(output),
                    **{**settings, **changes})  # fmt: skip
    trainer = flow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=stop), trainer.terminate)
    flow.run()
    return trainer.state.epoch


@pytest.fixture(scope="module")
def first(phantom_dir, tmp_path_factory):
    """An output folder after one epoch."""
    folder = tmp_path_factory.mktemp("first") / "out"
    begun(phantom_dir, folder)
    return folder


def refused(*args, **changes) -> str:
    with pytest.raises(Exception) as caught:  # MONAI wraps it
        begun(*args, **changes)
    return str(find_input_error(caught.value))


def test_a_resume_that_would_mix_two_recipes_is_refused(phantom_dir, first):
    before = {path.name: path.read_bytes() for path in first.glob("[!.]*.*")}
    changes = {"loss#threshold": 0.9, "loss#perturb": ["strong_1"], "weight_decay": 0.1, "poly_power": 1.0}
    assert refused(phantom_dir, first, **changes) == (
        f"{first}/training.json: the training here began with other settings (loss#perturb: expected [], received "
        '["strong_1"]; loss#threshold: expected 0.8, received 0.9; lr_scheduler#power: expected 0.9, received 1.0; '
        "optimizer#weight_decay: expected 0.01, received 0.1); resume with those, or begin anew in another "
        "--output_dir."
    )
    assert "class_names: expected" in refused(phantom_dir, first, class_names=["background", "a", "b", "c"])
    said = refused(phantom_dir, first, labeled_transforms=[])
    assert 'labeled_transforms#0#_target_: expected "RandFlipd", received nothing' in said and "; and " in said
    assert before == {path.name: path.read_bytes() for path in first.glob("[!.]*.*")}


def test_what_does_not_change_what_is_learnt_may_change(phantom_dir, first, tmp_path):
    """Also the place of the data; and a training whose recipe was not saved goes on."""
    folder, data = tmp_path / "out", tmp_path / "moved"
    shutil.copytree(first, folder)
    shutil.copytree(phantom_dir, data)
    assert begun(data, folder, stop=2, epochs=5, num_workers=1, amp=False, cache_rate=0.5) == 2
    old = json.loads((folder / "training.json").read_text())
    old["recipe"]["train#dataset#class_names"] = old["class_names"]  # as it was noted before
    old["ema_decay"] = old["recipe"]["teacher#ema_decay"] = 0.0
    old["recipe"]["loss#ignore"] = False
    (folder / "training.json").write_text(json.dumps(old))
    assert begun(data, folder, stop=3, epochs=5) == 3
    assert old.pop("recipe") and old.pop("processes") == 1
    (folder / "training.json").write_text(json.dumps(old))
    assert begun(data, folder, stop=4, epochs=5, **{"loss#threshold": 0.9}) == 4


def test_the_first_weights_need_not_stay_where_they_were(phantom_dir, first, tmp_path):
    weights, folder = tmp_path / "weights.pt", tmp_path / "out"
    content = torch.load(first / "resume_checkpoint_1.pt", weights_only=True)
    torch.save(content["network"], weights)
    assert begun(phantom_dir, folder, initial=str(weights)) == 1
    moved = weights.rename(tmp_path / "moved.pt")
    assert begun(phantom_dir, folder, stop=2) == 2
    assert json.loads((folder / "training.json").read_text())["initial"] == str(weights), "still its origin"
    assert begun(phantom_dir, folder, stop=3, initial=str(moved)) == 3
    assert json.loads((folder / "training.json").read_text())["initial"] == str(moved)
    assert "initial: expected " in refused(phantom_dir, first, initial=str(moved)), "which would do nothing"


def test_a_checkpoint_of_another_folder_is_compared_with_the_settings_there(phantom_dir, first, tmp_path):
    file = str(first / "resume_checkpoint_1.pt")
    said = refused(phantom_dir, tmp_path, resume=file, **{"loss#threshold": 0.9})
    assert said.startswith(f"{first}/training.json: ") and "loss#threshold: expected 0.8, received 0.9" in said
    assert begun(phantom_dir, tmp_path, resume=file, stop=2) == 2


def test_a_checkpoint_under_another_name_is_compared_too_or_said_not_to_be(phantom_dir, first, tmp_path, caplog):
    kept = tmp_path / "kept" / "first_epoch.pt"
    kept.parent.mkdir()
    shutil.copy(first / "resume_checkpoint_1.pt", kept)
    for name in ("training.json", "training_lists.json"):
        shutil.copy(first / name, kept.parent)
    other = {"resume": str(kept), "loss#threshold": 0.9}
    assert "loss#threshold: expected 0.8, received 0.9" in refused(phantom_dir, tmp_path / "out", **other)
    (kept.parent / "training.json").unlink()
    assert begun(phantom_dir, tmp_path / "out", stop=2, **other) == 2
    assert f"{kept.parent}/training.json: missing" in caplog.text


def test_patches_are_part_of_the_recipe_and_the_machine_is_not(phantom_dir, tmp_path):
    flow = workflow("train", "train", "volumes", dataset_dir=str(phantom_dir), output_dir=str(tmp_path),
                    spatial_size=[16, 16, 16])  # fmt: skip
    flow.parser.get_parsed_content("train#trainer")
    found = recipe(flow.parser)
    assert found["train#dataset#patches"] == 4 and found["train#dataset#foreground"] == 0.5
    assert found["cutmix#labeled_share"] == 0.5 and found["network_def#fusion"] == "conv"
    assert str(phantom_dir) not in json.dumps(found) and str(tmp_path) not in json.dumps(found)
    assert not {"amp", "device", "pin_memory", "cache_rate"} & {part for key in found for part in key.split("#")}
