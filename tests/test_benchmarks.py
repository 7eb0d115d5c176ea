"""Published figures come from committed results, and the command behind them works."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare
import infer
import plan_check
import step

FOLDER = ROOT / "benchmarks" / "results"
#: what running costs; every other result is of accuracy
COSTS = {"step": step, "infer": infer, "plan": plan_check}
RESULTS = sorted(path for path in FOLDER.glob("*.json") if path.name.split("_")[0] not in (*COSTS, "auto3dseg"))


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


@pytest.mark.parametrize(
    "path", sorted(p for kind in COSTS for p in FOLDER.glob(f"{kind}_*.json")), ids=lambda p: p.stem
)
def test_tables_of_costs_are_those_of_the_results(path, capsys):
    record = json.loads(path.read_text())
    assert record["command"].startswith("python benchmarks/") and {"seed", "cases", "commit", "versions"} <= set(record)
    COSTS[path.name.split("_")[0]].table(str(path))
    text = (ROOT / "benchmarks" / "COSTS.md").read_text()
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) > 4
    for line in lines:
        assert line in text, line


def test_the_readme_tells_the_ratios_of_the_results():
    readme = " ".join((ROOT / "README.md").read_text().split())
    sizes = {s: json.loads((FOLDER / f"step_cpu_{s}.json").read_text())["sizes"][s] for s in ("96", "224")}
    for config, method in (("semsim_minus", "semsim_minus"), ("semsim_light", "semsim_light"), ("train", "semsim")):
        rows = [(part["methods"][method], part["methods"]["unimatch"]) for part in sizes.values()]
        times = [f"{a['seconds']['median'] / b['seconds']['median']:.1f}" for a, b in rows]
        memory = [f"{a['peak_bytes'] / b['peak_bytes']:.1f}" for a, b in rows]
        assert f"| `{config}.yaml` | {' / '.join(times)} | {' / '.join(memory)} |" in readme, (config, times, memory)


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
