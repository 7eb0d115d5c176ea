"""The template as MONAI uses it: runs, generated folders, their training and prediction."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import warm
import yaml
from conftest import ENVIRONMENT as ENV
from conftest import ROOT
from monai.apps.auto3dseg import AutoRunner

TEMPLATES = ROOT / "algo_template"
#: A training of seconds.
QUICK = {"epochs": 2, "val_interval": 1, "batch_size": 4, "spatial_size": [32, 32]}


def runner(data: Path, work: Path, **kwargs) -> AutoRunner:
    given = {"modality": "mri", "datalist": str(data / "a3d.json"), "dataroot": str(data), **kwargs.pop("given", {})}
    return AutoRunner(work_dir=str(work), input=given, algos="semsim", templates_path_or_url=str(TEMPLATES), **kwargs)


def load(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def algo_class() -> type:
    """The template's class, imported as MONAI imports it."""
    sys.path.append(str(TEMPLATES))
    return importlib.import_module("semsim.scripts.algo").SemsimAlgo


def inferer(folder: Path, **override):
    files = [str(p) for p in (folder / "configs").iterdir()]
    return load(folder / "scripts" / "infer.py", "InferClass").InferClass(files, **override)


def train(folder: Path, *args: str, check: bool = True, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(folder / "scripts" / "train.py"), "run", *args]
    result = warm.run(command, env=env or ENV, timeout=200, cwd="/")
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result


def generated(work: Path, target: Path, **values) -> Path:
    """A copy of fold 0 as it was before training, with other values in its configuration."""
    shutil.copytree(work / "semsim_0", target, ignore=shutil.ignore_patterns("model_fold*"))
    path = target / "configs" / "hyper_parameters.yaml"
    content = {**yaml.safe_load(path.read_text()), "mlflow_tracking_uri": None, **QUICK, **values}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return target


def stats(spacing, shape, labels=(0, 1, 2)):
    return {"stats_summary": {
        "image_stats": {"spacing": {"median": list(spacing)}, "shape": {"median": list(shape)}, "channels": {"max": 1}},
        "image_foreground_stats": {"intensity": {"percentile_00_5": -120.0, "percentile_99_5": 240.0}},
        "label_stats": {"labels": list(labels)},
    }}  # fmt: skip


def filled(folder: Path, statistics: dict, given: dict):
    """The algorithm of an input of four labelled volumes."""
    algo = algo_class()(str(TEMPLATES))
    algo.name = "semsim"
    items = [{"image": f"{k}.nii.gz", "label": f"l{k}.nii.gz"} for k in range(4)]
    (folder / "list.json").write_text(json.dumps({"training": items}))
    given = {"modality": "ct", "datalist": str(folder / "list.json"), "dataroot": str(folder), **given}
    (folder / "input.yaml").write_text(yaml.safe_dump(given))
    (folder / "stats.yaml").write_text(yaml.safe_dump(statistics))
    algo.set_data_source(str(folder / "input.yaml"))
    algo.set_data_stats(str(folder / "stats.yaml"))
    return algo
