"""Published figures come from committed results, and the command behind them works."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("prefix", ["phantom", "acdc7"])
def test_tables_of_the_readme_are_those_of_the_results(prefix, capsys):
    files = [str(p) for p in RESULTS if p.name.startswith(prefix)]
    assert files
    compare.table(*files)
    readme = (ROOT / "README.md").read_text()
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) > 2 + len(files)
    for line in lines:
        assert line in readme, line


def test_results_say_where_they_come_from():
    for path in RESULTS:
        record = json.loads(path.read_text())
        assert record["command"].startswith("python benchmarks/compare.py train"), path.name
        assert record["settings"]["labeled_cases"] and len(record["commit"]) >= 7, path.name
        assert {"monai", "torch"} <= set(record["versions"]) and record["iterations"] > 0
        cases = {row["case"] for row in record["last"]["per_case"]}
        assert not cases & set(record["settings"]["labeled_cases"]), "nothing is scored on what it was trained on"
        assert len(cases) == record["last"]["cases"]


def test_train_records_a_method(phantom_dir, tmp_path):
    out, result = tmp_path / "run", tmp_path / "result.json"
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text("spatial_size: 32\nepochs: 1\nval_interval: 1\n")
    compare.train("fixmatch", str(out), str(result), overlay=str(overlay), seed=4, dataset_dir=str(phantom_dir))
    record = json.loads(result.read_text())
    assert record["method"] == "fixmatch" and record["settings"]["seed"] == 4
    assert record["settings"]["spatial_size"] == 32
    assert len(record["validation_curve"]) == 1 and len(record["last"]["per_case"]) == 2 * 3
    assert record["last"]["list"] == "testing" and record["best_on_validation"]["cases"] == 2
