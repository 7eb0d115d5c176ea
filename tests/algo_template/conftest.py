"""Data, an AutoRunner run and an import path as the tests of the template share them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import pytest
import warm
from conftest import ENVIRONMENT as ENV

from .folds import QUICK, runner


@contextmanager
def own_path() -> Iterator[None]:
    """MONAI leaves the folders of templates on the path; the tests that follow do not want them there."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
        for name in [n for n in sys.modules if n.split(".")[0] in ("semsim", "segresnet2d")]:
            del sys.modules[name]
        importlib.invalidate_caches()


@pytest.fixture(scope="module", autouse=True)
def import_path():
    with own_path():
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """6 labelled, 6 unlabelled, 2 test volumes of mixed sizes, one labelled and one test volume oblique."""
    from scripts.dataio import phantom

    folder = phantom.generate(tmp_path_factory.mktemp("a3d") / "data", seed=3,
                              split={"training": 6, "unlabeled": 6, "testing": 2})  # fmt: skip
    content = json.loads((folder / "datalist.json").read_text())
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    for item in (content["training"][0], content["testing"][0]):
        for file in item.values():
            volume = nib.load(folder / file)
            nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), turn @ volume.affine), folder / file)
    lists = {key: content[key] for key in ("training", "unlabeled", "testing")}
    for number, item in enumerate(lists["training"]):
        item["fold"] = number % 2
    (folder / "a3d.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="session")
def work(data, tmp_path_factory) -> Path:
    """A finished AutoRunner run: analysis, generation, training of both folds, ensemble."""
    folder = tmp_path_factory.mktemp("a3d") / "work"
    tracking = f"sqlite:///{folder.parent}/mlflow.db"
    with own_path(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", ENV["PATH"])  # MONAI calls `python`
        run = runner(data, folder, mlflow_tracking_uri=tracking, given={"class_names": ["RV", "myocardium", "LV"]})
        run.set_training_params({**QUICK, "num_epochs_per_validation": 1, "num_warmup_epochs": 7})
        run.set_prediction_params({"flip_tta": True})
        run.run()
    return folder


@pytest.fixture
def warm_trainings(monkeypatch):
    """The commands of an AutoRunner in processes that have MONAI loaded."""
    monkeypatch.setattr(monai.utils.misc, "subprocess", warm)
