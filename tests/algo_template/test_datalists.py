"""Datalists as AutoRunner hands them on: with the folds that it draws or makes of a list `validation`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.apps.auto3dseg import auto_runner
from scripts.dataio.datalist import read_datalist

from .folds import runner


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """MONAI's line about a list `validation` has an argument too many, on which pytest insists."""
    monkeypatch.setattr(auto_runner.logger, "disabled", True)


def as_autorunner_writes(folder: Path, training: list[dict], **lists) -> Path:
    """The datalist in the work directory, made of one with files that are there."""
    for number in range(5):
        for kind in ("image", "label"):
            (folder / f"{kind}{number}.nii.gz").touch()
    (folder / "a3d.json").write_text(json.dumps({"training": training, **lists}))
    run = runner(folder, folder / "work")
    assert run.num_fold == (1 if lists else 2)
    return folder / "work" / "a3d.json"


def case(number: int, **more) -> dict:
    return {"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz", **more}


@pytest.mark.parametrize("repeated", [False, True])
def test_a_list_for_validation_is_a_fold(tmp_path, repeated):
    """AutoRunner copies its items into `training`: they validate, and none counts as standing in two lists."""
    training = [case(0), case(1), *([case(2)] if repeated else [])]
    path = as_autorunner_writes(
        tmp_path, training, validation=[case(2), case(3)], unlabeled=[{"image": "image4.nii.gz"}]
    )
    assert len(json.loads(path.read_text())["training"]) == 4
    for fold in (0, None):  # of the training, and of what it looks up before
        found = {
            key: [int(Path(item["image"]).name[5]) for item in read_datalist(path, tmp_path, key, fold=fold)]
            for key in ("training", "validation", "unlabeled")
        }
        assert {key: sorted(numbers) for key, numbers in found.items()} == {
            "training": [0, 1], "validation": [2, 3], "unlabeled": [4]
        }  # fmt: skip


def test_folds_that_are_text(tmp_path):
    """As tables give them; AutoRunner takes them for numbers."""
    path = as_autorunner_writes(tmp_path, [case(0, fold="0"), case(1, fold="1"), case(2, fold="0")])
    assert [len(read_datalist(path, tmp_path, key, fold=0)) for key in ("training", "validation")] == [1, 2]
