"""Validations and evaluations that have nothing to score: no number is made up, and what follows still works."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import samples
import torch
from helpers import read_rows, workflow
from scripts.dataio.storage import json_text
from scripts.errors import find_input_error
from scripts.evaluation.metrics import score_case, summarize
from scripts.training.handlers import CountedDice


def make(folder: Path, **lists: list[int]) -> dict:
    """Patients by list; those above 1 are healthy. Options of a training on them."""
    items = {}
    for name, patients in lists.items():
        items[name] = []
        for patient in patients:
            image, label = samples.blob((24, 20, 3), seed=patient)
            healthy = patient > 1
            samples.write_nifti(folder / f"images/p{patient}.nii.gz", image)
            samples.write_nifti(folder / f"labels/p{patient}.nii.gz", label * (not healthy))
            items[name].append({"image": f"images/p{patient}.nii.gz", "label": f"labels/p{patient}.nii.gz"})
    (folder / "list.json").write_text(json.dumps(items))
    return {"dataset_dir": str(folder), "datalist": str(folder / "list.json"), "output_dir": str(folder / "run"),
            "spatial_size": 32, "batch_size": 2, "class_names": ["background", "organ"], "show_progress": False,
            "epochs": 2, "steps_per_epoch": 1, "val_interval": 1}  # fmt: skip


def run(options: dict, *names: str, run_id: str = "run") -> None:
    workflow("train", *names, run_id=run_id, **options).run()


def test_healthy_patients_choose_no_best_and_score_nothing(tmp_path, caplog):
    options = make(tmp_path, training=[0, 1], validation=[2], testing=[3])
    run(options, "train", "labeled_only")
    assert not (tmp_path / "run" / "model_best.pt").exists() and (tmp_path / "run" / "model_last.pt").exists()
    told = [
        r.message for r in caplog.records if "no best weights are kept and model_last.pt is the result" in r.message
    ]
    assert len(told) == 1, "said once"
    rows = read_rows(tmp_path / "run" / "validation_log.csv")
    assert [row["mean_dice"] for row in rows] == ["nan", "nan"]
    assert not any("0.0000" in r.message for r in caplog.records if "validation after" in r.message)
    run(options, "train", "evaluate", run_id="reporting")
    assert "NaN" not in (tmp_path / "run" / "scores.json").read_text()
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_the_best_weights_are_best_by_the_scores_that_are_reported():
    """An organ found in a healthy patient counts as evaluation counts it, not as nothing."""
    truth = torch.zeros(3, 1, 8, 8, 2, dtype=torch.long)
    truth[0, :, 2:6, 2:6] = 1  # one ill patient and two healthy ones
    careful, careless = torch.zeros_like(truth), truth.clone()
    careful[0, :, 2:6, 3:6] = 1
    careless[1:, :, 0, 0] = 1
    found = {}
    for name, predicted in (("careful", careful), ("careless", careless)):
        metric = CountedDice(num_classes=2, save_details=False)
        metric.update(([*predicted], [*truth]))
        reported = [score_case(p[0], t[0], num_classes=2, spacing=(1, 1, 1), metrics=["dice"])["dice"][0]
                    for p, t in zip(predicted, truth)]  # fmt: skip
        found[name] = float(metric.compute())
        assert found[name] == pytest.approx(np.nanmean(reported), abs=1e-6)
    assert found == pytest.approx({"careful": 6 / 7, "careless": 1 / 3}, abs=1e-6)
    metric = CountedDice(num_classes=2, save_details=False)
    metric.update(([*careless[1:]], [*truth[1:]]))
    assert np.isnan(float(metric.compute())), "healthy patients alone cannot tell which weights are best"


def test_the_mean_of_a_validation_is_that_of_its_evaluation():
    """Not every patient shows every class: the mean is over patients, then over classes, as in `scores.json`."""
    truth = torch.zeros(3, 1, 8, 8, 2, dtype=torch.long)
    truth[:, :, 2:6, 2:6], truth[2, :, 6:] = 1, 2  # one of three has a tumour
    found = truth.clone()
    found[:2, :, 2:6, 3:6], found[2, :, 7:] = 0, 0
    metric = CountedDice(num_classes=3, save_details=False)
    metric.update(([*found], [*truth]))
    rows = [{"case": k, "class": name, "unit": "mm", "dice": dice}
            for k, (p, t) in enumerate(zip(found, truth))
            for name, dice in zip(("organ", "tumour"), score_case(p[0], t[0], num_classes=3, spacing=(1, 1, 1),
                                                                  metrics=["dice"])["dice"])]  # fmt: skip
    assert metric.compute() == pytest.approx(summarize(pd.DataFrame(rows))["mean"]["dice"], abs=1e-6)
    assert metric.compute() == pytest.approx(((0.4 + 0.4 + 1) / 3 + 2 / 3) / 2, abs=1e-6)


def test_a_score_of_nothing_is_null():
    rows = [{"case": "a", "class": "organ", "dice": float("nan"), "hd95": float("nan"), "unit": "mm"}]
    summary = json.loads(json_text(summarize(pd.DataFrame(rows))), parse_constant=pytest.fail)
    assert summary["mean"] == {"dice": None, "hd95": None} and summary["classes"]["organ"]["counted"] == 0


def test_without_validation_and_test_cases_report_and_prediction_go_on(tmp_path):
    options = make(tmp_path, training=[0, 1])
    run(options, "train", "labeled_only")
    run(options, "train", "evaluate", run_id="reporting")
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Not evaluated yet" in page and "Loss terms" in page
    with pytest.raises(RuntimeError) as caught:
        run(options, "train", "evaluate", run_id="evaluating")
    assert "expected labelled cases in `testing` or `validation`" in str(find_input_error(caught.value))
    workflow("infer", "inference", dataset_dir=str(tmp_path / "images"), ckpt_path=str(tmp_path / "run"),
             output_dir=str(tmp_path / "out"), show_progress=False).run()  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["p0_seg.nii.gz", "p1_seg.nii.gz"]
