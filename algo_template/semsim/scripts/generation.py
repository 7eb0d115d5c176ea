"""What a folder is generated from: the files of the bundle, and the input, whose later changes are to be noticed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HYPER_PARAMETERS = "hyper_parameters.yaml"
#: Keys of ``input.yaml`` that decide about the run and not about a folder.
RUN_KEYS = {
    "name", "task", "datalist", "work_dir", "num_fold", "algos", "analyze", "algo_gen", "train", "ensemble", "hpo",
    "hpo_backend", "not_use_cache", "allow_skip", "templates_path_or_url", "mlflow_tracking_uri",
    "mlflow_experiment_name",
}  # fmt: skip


def origin(given: Mapping[str, Any], datalist: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder is made of, in JSON.

    Args:
        given: content of ``input.yaml``.
        datalist: content of its datalist.

    Returns:
        the keys of the input that count, and ``datalist: <list>`` with a digest of each list, whatever the folds.
    """
    values = {key: value for key, value in given.items() if key not in RUN_KEYS}
    values["dataroot"] = os.path.abspath(str(given["dataroot"]))
    for name, items in datalist.items():
        if isinstance(items, list):
            bare = [{k: v for k, v in i.items() if k != "fold"} if isinstance(i, Mapping) else i for i in items]
            text = json.dumps(bare, sort_keys=True, default=str)
            values[f"datalist: {name}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return json.loads(json.dumps(values, default=str))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two results of :func:`origin`."""
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def bundle_folder() -> str:
    """Where the installed bundle lies; empty if it is not."""
    try:
        spec = importlib.util.find_spec("semsim_bundle.scripts")
    except ModuleNotFoundError:
        return ""
    return str(Path(spec.origin).parents[1]) if spec and spec.origin else ""


def bundle_files(source: Path) -> dict[str, bytes]:
    """Scripts and configurations of the bundle, by their place in a folder. MONAI lists ``configs`` unfiltered."""
    if not (source / "scripts").is_dir():
        raise ModuleNotFoundError(
            "SemSim needs the package semsim_bundle to generate its folders: pip install it first."
        )
    patterns = ("scripts/**/*.py", "scripts/**/*.html", "configs/*.yaml", "configs/*.json")
    files = [file for pattern in patterns for file in source.glob(pattern)]
    modules = ("algo", "classes", "dimensions", "generation", "infer", "options", "train")
    own = {*(f"scripts/{name}.py" for name in modules), f"configs/{HYPER_PARAMETERS}", "configs/metadata.json"}
    found = {f.relative_to(source).as_posix(): f for f in files}
    return {name: file.read_bytes() for name, file in found.items() if name not in own}
