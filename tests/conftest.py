"""Shared fixtures: the bundle on the path as MONAI puts it there, a tiny phantom, small networks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: see the Makefile

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(BUNDLE), str(ROOT / "tests")]
torch.set_num_threads(2)
#: `make test-label` runs these in an environment of their own
collect_ignore = [] if importlib.util.find_spec("monailabel") else ["label"]


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory) -> Path:
    """A small phantom: 1 labelled, 3 unlabelled, 1 validation and 2 test patients."""
    from scripts import phantom

    split = {"training": 1, "unlabeled": 3, "validation": 1, "testing": 2}
    return phantom.generate(tmp_path_factory.mktemp("data") / "phantom", seed=7, split=split)


#: of processes that tests start; MONAI calls `python` by name
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "2",
    "MPLBACKEND": "Agg",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


@pytest.fixture
def run_bundle():
    """Run ``python -m monai.bundle ...`` (or another module) in the bundle's folder, as a user would."""

    def run(
        *args: str, module: str = "monai.bundle", check: bool = True, cwd: Path = BUNDLE, timeout: int = 240
    ) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", module, *args]
        result = subprocess.run(
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
