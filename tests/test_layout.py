"""The order of the modules, as scripts/__init__.py states it, and what prediction does without."""

from __future__ import annotations

import re
import sys

import warm
from conftest import BUNDLE

SCRIPTS = BUNDLE / "scripts"


def test_modules_import_from_their_left_only():
    order = re.findall(r"\w+", (SCRIPTS / "__init__.py").read_text().split("left:")[1])
    assert sorted(order) == sorted(p.stem for p in SCRIPTS.glob("*.py") if p.stem != "__init__")
    for position, name in enumerate(order):
        used = re.findall(r"^\s*from \.(\w+) import", (SCRIPTS / f"{name}.py").read_text(), flags=re.M)
        assert set(used) <= set(order[:position]), name


#: forgets what MONAI has loaded of the slow packages, and refuses them from now on
WITHOUT = """
import importlib, sys
slow, modules = (names.split() for names in sys.argv[1:])
for name in [n for n in sys.modules if n.split(".")[0] in slow]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys(slow))
for module in modules:
    importlib.import_module(module)
"""


def test_prediction_imports_no_slow_package_of_its_own():
    """What `inference.yaml` names works without the packages of tables, pictures, reports and tracking."""
    named = set(re.findall(r"\bscripts\.\w+(?=\.)", (BUNDLE / "configs" / "inference.yaml").read_text()))
    assert {"scripts.network", "scripts.prediction"} <= named
    slow = "jinja2 matplotlib mlflow pandas skimage sklearn tensorboard"
    command = [sys.executable, "-c", WITHOUT, slow]
    done = warm.run([*command, " ".join(sorted(named))], cwd=BUNDLE)
    assert done.returncode == 0, done.stderr
    report = warm.run([*command, "scripts.html_report"], cwd=BUNDLE)
    assert "import of" in report.stderr and report.returncode == 1, "the check refuses what it should"
