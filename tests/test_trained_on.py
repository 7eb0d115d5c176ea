"""Whoever scores cases that the weights were trained on is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scripts.training.inputs import inputs
from scripts.training.trained_on import warn_of_trained_on


def case(folder: Path, name: str) -> dict[str, str]:
    """An item whose files are as long as its name and hold it."""
    files = {key: folder / key / f"{name}.nii.gz" for key in ("image", "label")}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return {key: str(file) for key, file in files.items()}


@pytest.fixture
def items(tmp_path) -> dict[str, dict[str, str]]:
    return {name: case(tmp_path / "data", name) for name in ("one", "second", "thirdly", "fourthly")}


def training(folder: Path, data: Path, labelled: list, unlabelled: list, initial: str = "") -> Path:
    folder.mkdir()
    lists = inputs({"labelled": labelled, "unlabelled": unlabelled}, data)
    (folder / "training_lists.json").write_text(json.dumps(lists))
    (folder / "training.json").write_text(json.dumps({"initial": initial}))
    (folder / "model_last.pt").touch()
    return folder


def test_cases_of_a_training_and_of_the_one_that_it_began_with_are_named(tmp_path, items, caplog):
    one, second, third, fourth = items.values()
    first = training(tmp_path / "first", tmp_path / "data", [one, {**second, "labeled_slices": [1]}], [third])
    later = training(tmp_path / "later", tmp_path / "data", [third], [fourth], str(first / "model_last.pt"))
    for run, scored, said in (
        (first, [third, fourth], ""),
        (first, [third, second], "trained on 1 of the 2 cases to be scored, with their labels, second first"),
        (later, [one, second, third, fourth], "3 of the 4 cases to be scored, with their labels, one first"),
        (later / "model_last.pt", [fourth], ""),
    ):
        caplog.clear()
        warn_of_trained_on(run, scored)
        assert said in caplog.text and bool(said) == bool(caplog.text)


def test_names_may_hold_any_words(tmp_path, caplog):
    """As those between the files in `training_lists.json`."""
    data = [case(tmp_path / "data", name) for name in ("CT with contrast", "b slices [1]", "MR with fat with water")]
    data[1]["labeled_slices"] = [0]
    warn_of_trained_on(training(tmp_path / "run", tmp_path / "data", data, []), data)
    assert "trained on 3 of the 3 cases to be scored" in caplog.text


def test_copies_are_known_and_others_of_the_same_name_are_not(tmp_path, items, caplog):
    run = training(tmp_path / "run", tmp_path / "data", [items["one"]], [])
    moved = shutil.copytree(tmp_path / "data", tmp_path / "copy")
    for path in (moved / "image", moved / "label"):
        (path / "one.nii.gz").rename(path / "renamed.nii.gz")
    other = case(tmp_path / "other", "two")
    Path(other["image"]).rename(tmp_path / "one.nii.gz")
    warn_of_trained_on(run, [{**other, "image": str(tmp_path / "one.nii.gz")}])
    warn_of_trained_on(tmp_path / "data", [items["one"]])  # weights of unknown origin
    empty = [case(tmp_path / folder, "empty") for folder in "abc"]  # as long, and with the same label
    warn_of_trained_on(training(tmp_path / "alike", tmp_path, empty[:2], []), empty[2:])
    assert not caplog.text
    warn_of_trained_on(run, [{key: str(moved / key / "renamed.nii.gz") for key in ("image", "label")}])
    assert "renamed first" in caplog.text
