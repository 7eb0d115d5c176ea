"""Shared fixtures: the bundle on the path as MONAI puts it there, a tiny phantom, small networks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

#: of these tests and of processes that they start, before torch is loaded: see the Makefile
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", MPLBACKEND="Agg")

import pytest
import torch
import warm

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(BUNDLE), *(str(ROOT / folder) for folder in ("tests", "benchmarks", "label_app"))]
torch.set_num_threads(1)
#: files whose tests take longest: first, so that processes which share the work end together
LONGEST = (
    "test_docs",
    "test_fold_training",
    "test_page",
    "test_run",
    "test_isotropic",
    "test_fold_inference",
    "test_distributed",
    "test_prediction",
    "test_configs",
    "test_resume",
    "test_errors",
    "test_plan",
    "test_accuracy",
    "test_step",
)
#: folders of tests and what they need; `make test-label` runs one of them in an environment of its own
NEEDS = {"label": "monailabel", "algo_template": "sklearn"}
collect_ignore = [folder for folder, package in NEEDS.items() if not importlib.util.find_spec(package)]


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory) -> Path:
    """A small phantom: 1 labelled, 3 unlabelled, 1 validation and 2 test patients."""
    from scripts.dataio import phantom

    split = {"training": 1, "unlabeled": 3, "validation": 1, "testing": 2}
    return phantom.generate(tmp_path_factory.mktemp("data") / "phantom", seed=7, split=split)


#: of processes that tests start; MONAI calls `python` by name
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture
def run_bundle():
    """Run ``python -m monai.bundle ...`` (or another module) in the bundle's folder, as a user would.

    ``fresh``: in a new interpreter, instead of one that has MONAI loaded.
    """

    def run(
        *args: str,
        module: str = "monai.bundle",
        check: bool = True,
        cwd: Path = BUNDLE,
        timeout: int = 240,
        fresh: bool = False,
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", module, *args]
        result = (subprocess if fresh else warm).run(
            command, cwd=cwd, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=timeout
        )
        if check:
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result

    return run


def config_args(*names: str) -> list[str]:
    """``--config_file`` for files of ``configs/``, as they are written on a command line."""
    files = [f"configs/{name}.yaml" for name in names]
    return ["--config_file", files[0] if len(files) == 1 else str(files)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; within a file the order stays, which some tests rely on."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
