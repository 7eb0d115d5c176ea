"""The order of the modules, as scripts/__init__.py states it, and what prediction does without."""

from __future__ import annotations

import ast
import importlib
import re
import sys

import warm
from conftest import BUNDLE, ROOT

SCRIPTS = BUNDLE / "scripts"
ROOMS = ["dataio", "preparation", "method", "training", "evaluation", "report", "hosts"]


def stated_order() -> list[str]:
    """``errors``, ``dataio.files``, ...: rooms from above, modules from the left."""
    text = (SCRIPTS / "__init__.py").read_text().split("left.")[1].split("\n\n")[1]
    order, room = [], ""
    for line in text.splitlines():
        head, colon, names = line.partition(":")
        room = f"{head.strip()}." if colon else "" if not line.strip().startswith("->") else room
        order += [f"{room}{name}" for name in re.findall(r"\w+", names if colon else line)]
    return order


def imported(name: str) -> set[str]:
    """Modules of the bundle that a module imports, anywhere in it."""
    found = set()
    parts = ["scripts", *name.split(".")]
    for node in ast.walk(ast.parse((SCRIPTS / f"{name.replace('.', '/')}.py").read_text())):
        assert not (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "scripts" for a in node.names)), name
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "scripts" or node.level, f"{name}: relative imports alone"
            if node.level:
                base = [*parts[: -node.level], *filter(None, (node.module or "").split("."))][1:]
                is_module = (SCRIPTS.joinpath(*base).with_suffix(".py")).is_file() and base
                found |= {".".join(base)} if is_module else {".".join([*base, a.name]) for a in node.names}
    return found


def test_modules_import_from_rooms_above_and_modules_to_their_left_only():
    order = stated_order()
    files = [p.relative_to(SCRIPTS).with_suffix("") for p in SCRIPTS.rglob("*.py") if p.stem != "__init__"]
    assert sorted(order) == sorted(".".join(file.parts) for file in files)
    assert list(dict.fromkeys(name.split(".")[0] for name in order if "." in name)) == ROOMS
    assert imported("training.settings") >= {"errors", "dataio.files", "training.checkpoints"}, "they are found"
    assert "report.plots" in imported("report.build") and "errors" in imported("report.overlay")
    for position, name in enumerate(order):
        assert imported(name) <= set(order[:position]), name


def test_rooms_hold_no_code_of_their_own():
    for room in ROOMS:
        (text,) = ast.parse((SCRIPTS / room / "__init__.py").read_text()).body
        assert isinstance(text, ast.Expr), f"{room}: what it holds, in words"


TARGET = re.compile(r"""(?:_target_"?: *|\b(?=scripts\.\w+\.\w+\.))["']?(scripts(?:\.\w+)+)""")
#: folder -> files that name classes and functions by their place
CONFIGS = {"bundle": ("configs/*.yaml", "models/*.json"), "benchmarks": ("configs/*.yaml",),
           "algo_template": ("semsim/configs/*.yaml",)}  # fmt: skip


def test_every_place_that_a_configuration_names_exists():
    files = [file for folder, patterns in CONFIGS.items() for name in patterns for file in (ROOT / folder).glob(name)]
    named = {(target, file.name) for file in files for target in TARGET.findall(file.read_text())}
    assert len(named) > 60
    for target, file in sorted(named):
        if target == "scripts.options.moved_along":  # of the template itself
            continue
        module, name = target.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name), f"{file}: {target}"


def test_every_module_that_the_app_of_monai_label_names_exists():
    """It imports them by name, from the bundle of its own folder."""
    texts = [file.read_text() for file in (ROOT / "label_app" / "lib").glob("*.py")]
    named = {name for text in texts for name in re.findall(r"\bmodule\([^\"\n]+, \"([\w.]+)\"\)", text)}
    assert {"errors", "dataio.readers"} <= named <= {*stated_order()}


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
    named = set(re.findall(r"\bscripts\.[\w.]+(?=\.)", (BUNDLE / "configs" / "inference.yaml").read_text()))
    assert {"scripts.method.network", "scripts.evaluation.predict"} <= named
    slow = "jinja2 matplotlib mlflow pandas skimage sklearn tensorboard"
    command = [sys.executable, "-c", WITHOUT, slow]
    done = warm.run([*command, " ".join(sorted(named))], cwd=BUNDLE)
    assert done.returncode == 0, done.stderr
    report = warm.run([*command, "scripts.report.build"], cwd=BUNDLE)
    assert "import of" in report.stderr and report.returncode == 1, "the check refuses what it should"
