"""The order of the modules, as scripts/__init__.py states it."""

from __future__ import annotations

import re

from conftest import BUNDLE

SCRIPTS = BUNDLE / "scripts"


def test_modules_import_from_their_left_only():
    order = re.findall(r"\w+", (SCRIPTS / "__init__.py").read_text().split("left:")[1])
    assert sorted(order) == sorted(p.stem for p in SCRIPTS.glob("*.py") if p.stem != "__init__")
    for position, name in enumerate(order):
        used = re.findall(r"^\s*from \.(\w+) import", (SCRIPTS / f"{name}.py").read_text(), flags=re.M)
        assert set(used) <= set(order[:position]), name
