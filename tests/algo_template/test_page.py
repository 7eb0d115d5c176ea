"""Every block of the template's page, and the benchmark of the template."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ENVIRONMENT as ENV
from conftest import ROOT
from helpers import read_rows
from monai.apps.auto3dseg import AutoRunner, BundleGen

from .folds import QUICK, TEMPLATES


def blocks(language: str) -> list[str]:
    """Code blocks of the template's page."""
    page = (TEMPLATES / "semsim" / "docs" / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.S)


def as_written(code: str, **places: Path) -> str:
    """A block with its folders replaced and its training made short."""
    for name, folder in places.items():
        code = code.replace({"data": "/data", "work": "/data/auto3dseg", "search": "/data/search"}[name], str(folder))
    scalars = {**QUICK, "spatial_size": 32}  # MONAI makes a folder's name and a command of them
    quick = ", ".join(f'"{k}": {v}' for k, v in scalars.items())
    return code.replace('"epochs": 20', quick).replace("epochs: 20", yaml.safe_dump(scalars).strip())


def test_the_commands_of_the_page(data, tmp_path):
    (tmp_path / "input.yaml").write_text("")
    code = as_written(blocks("bash")[0], work=tmp_path / "work", data=tmp_path)
    code = code.replace(f"dataroot: {tmp_path}", f"dataroot: {data}")
    shutil.copy(data / "a3d.json", tmp_path)
    result = subprocess.run(["bash", "-ec", code], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    assert len(list((tmp_path / "work" / "ensemble_output").rglob("*.nii.gz"))) == 2


def test_the_python_of_the_page(data, tmp_path, monkeypatch, warm_trainings):
    """AutoRunner, beside another algorithm, and a search: each block as it stands there."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setenv("PATH", ENV["PATH"])
    monkeypatch.chdir(ROOT)
    first, together, search = (code for code in blocks("python"))
    work = tmp_path / "work"
    code = as_written(first, work=work, data=data).replace("runner.run()", "runner.ensemble = False; runner.run()")
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    folder = work / "semsim_0" / "model_fold0"
    assert (folder / "model_best.pt").exists()
    assert json.loads((folder / "training.json").read_text())["class_names"] == ["background", "RV", "Myo", "LV"]

    code = as_written(search, work=work, search=tmp_path / "search").replace("n_trials=2", "n_trials=1")
    exec(compile(code, "page", "exec"), space := {})
    (found,) = (tmp_path / "search").iterdir()
    assert (found / "model_fold0" / "model_best.pt").exists() and 0 <= space["study"].best_value <= 1
    log = read_rows(found / "model_fold0" / "training_log.csv")[0]
    rate = space["study"].best_params["learning_rate"]
    assert float(log["learning_rate"]) == pytest.approx(rate * 0.5**0.9), "after the first of two epochs"

    # a stand-in for the other template
    other = tmp_path / "algorithm_templates" / "segresnet2d"
    shutil.copytree(TEMPLATES / "semsim", other)
    algo = other / "scripts" / "algo.py"
    algo.write_text(algo.read_text().replace("class SemsimAlgo", "class Segresnet2dAlgo"))
    (tmp_path / "input.yaml").write_text(
        yaml.safe_dump({"modality": "mri", "dataroot": str(data), "datalist": str(data / "a3d.json")})
    )
    code = together.replace("/data/auto3dseg", str(tmp_path / "both")).replace("/data", str(tmp_path))
    exec(compile(code, "page", "exec"), space := {"AutoRunner": AutoRunner})
    files = {"data_stats_filename": str(work / "datastats.yaml"),
             "data_src_cfg_name": str(tmp_path / "both" / "input.yaml")}  # fmt: skip
    BundleGen(str(tmp_path), space["algos"], **files).generate(str(tmp_path / "both"), num_fold=1)
    assert {p.name for p in (tmp_path / "both").iterdir()} >= {"semsim_0", "segresnet2d_0"}


def test_the_benchmark_of_the_template(data, tmp_path, monkeypatch, capsys, warm_trainings):
    """With and without the list, the same number of steps, scored on patients whose labels it never saw."""
    import auto3dseg

    monkeypatch.setenv("PATH", ENV["PATH"])
    names = sorted(p.name.split(".")[0] for p in (data / "labels").iterdir())
    splits = {"training": names[:4], "validation": names[4:6], "labelled": {"2": names[:2]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    output = tmp_path / "result.json"
    auto3dseg.run(str(data), str(tmp_path / "work"), str(output), epochs=1, spatial_size=32,
                  splits=str(tmp_path / "splits.json"))  # fmt: skip
    record = json.loads(output.read_text())
    assert record["with_unlabeled"]["unlabeled_images"] == [2, 2] and record["without"]["unlabeled_images"] == [0, 0]
    for variant in auto3dseg.VARIANTS:
        assert {row["case"] for row in record[variant]["per_case"]} == set(names[4:6])
        assert min(record[variant]["steps"]) >= 1
    assert "| with unlabeled | 2 |" in capsys.readouterr().out


def test_the_page_of_the_benchmark_is_made_from_its_result():
    import auto3dseg

    page = (ROOT / "benchmarks" / "AUTO3DSEG.md").read_text()
    assert auto3dseg.fill(page) == page and page.count("| with unlabeled |") == 1
    record = json.loads((ROOT / "benchmarks" / "results" / "auto3dseg_acdc.json").read_text())
    difference = record["with_unlabeled"]["mean"]["dice"] - record["without"]["mean"]["dice"]
    assert f"mean Dice is {difference:.3f} higher" in page
