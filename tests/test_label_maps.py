"""Label maps of other programs are scored like ours, on the same patients."""

from __future__ import annotations

import json

import common
import comparison
import label_maps
import nibabel as nib
import numpy as np
import pytest

FACTS = {
    "program": "Other", "cases": 3, "steps": 2500, "minutes": 90, "commands": ["other train"],
    "versions": {"other": "1"}, "machine": "a CPU", "seed": None,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Labels of two patients for validation and one for training; predictions with a speck far from the organ."""
    truth = np.zeros((20, 20, 4), np.uint8)
    truth[2:6, 2:6], truth[6:10, 2:6], truth[2:6, 6:10] = 1, 2, 3
    said = truth.copy()
    said[15:17, 15:17, 0] = 1
    for kind in ("labels", "predictions"):
        (tmp_path / kind).mkdir()
        for patient in ("a", "b", "c"):
            array = truth if kind == "labels" or patient == "b" else said
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / kind / f"{patient}_frame01.nii.gz")
    (tmp_path / "predictions" / "c_frame01.nii.gz").unlink()
    (tmp_path / "splits.json").write_text(json.dumps({"validation": ["a", "b"], "training": ["c"]}))
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    return tmp_path


def score(folder, **changed):
    given = {name: str(folder / name) for name in ("predictions", "labels")}
    given |= {"facts": str(folder / "facts.json"), "splits": str(folder / "splits.json")}
    label_maps.score(**{**given, "output": str(folder / "result.json"), **changed})
    return json.loads((folder / "result.json").read_text())


def test_label_maps_are_scored_as_predicted_and_without_specks(folder):
    record = score(folder)
    assert {name: record[name] for name in FACTS} == FACTS
    rows = {(r["case"], r["class"]): r for r in record["as_predicted"]["per_case"]}
    assert {case for case, _ in rows} == {"a_frame01", "b_frame01"}
    assert rows["a_frame01", "right ventricle"]["dice"] == pytest.approx(2 * 64 / (64 + 68), abs=1e-5)
    assert rows["a_frame01", "myocardium"]["dice"] == rows["b_frame01", "right ventricle"]["dice"] == 1
    assert record["as_predicted"]["mean"]["dice"] == pytest.approx((5 + 2 * 64 / 132) / 6, abs=1e-5)
    assert record["largest_component"]["mean"] == {"dice": 1, "hd95": 0, "assd": 0}
    assert record["as_predicted"]["distance_unit"] == "voxel"


def test_what_cannot_be_scored_is_one_line(folder):
    score(folder)
    with pytest.raises(SystemExit, match=r"result\.json exists"):
        score(folder)
    (folder / "result.json").unlink()
    file = folder / "predictions" / "a_frame01.nii.gz"
    for array, found in ((np.full((20, 20, 4), 7, np.uint8), "7 to 7"), (np.zeros((20, 20, 3), np.uint8), "20, 3")):
        nib.save(nib.Nifti1Image(array, np.eye(4)), file)
        with pytest.raises(SystemExit, match=rf"a_frame01\.nii\.gz: expected values 0 to 3 .*{found}"):
            score(folder)
    file.unlink()
    with pytest.raises(SystemExit, match=r"a_frame01\.nii\.gz: expected a prediction of every validation image"):
        score(folder)
    (folder / "labels" / "a_frame01.nii.gz").unlink()
    with pytest.raises(SystemExit, match="labels of 2 patients, a for one is missing"):
        score(folder)
    (folder / "facts.json").write_text(json.dumps({k: v for k, v in FACTS.items() if k != "commands"}))
    with pytest.raises(SystemExit, match=r"facts\.json: expected .*; commands is missing"):
        score(folder)
    assert not (folder / "result.json").exists()


RESULTS = sorted(label_maps.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_published_results_are_of_the_validation_patients(path):
    record = json.loads(path.read_text())
    assert all(name in record for name in label_maps.FACTS) and record["commands"]
    patients = set(common.read_splits()["validation"])
    for way in label_maps.WAYS:
        assert {common.patient_of(row["case"]) for row in record[way]["per_case"]} == patients


def test_a_difference_is_ours_less_theirs_patient_by_patient():
    """Of a result that is ours said to be another program's: none from itself, and from UniMatch that of the tables."""
    files = [comparison.RESULTS / f"acdc3_224_3000_{method}_seed0.json" for method in ("fixmatch", "unimatch")]
    ours, unimatch = (json.loads(file.read_text()) for file in files)
    other = {"program": "Other", "cases": 3, "steps": 2500, "minutes": 90}
    for way, alike in label_maps.WAYS.items():
        cases = ours[alike]["per_case"].items()
        rows = [{"case": case, "dice": dice} for case, found in cases for dice in found["dice"]]
        other[way] = {"mean": ours[alike]["mean"], "per_case": rows}
    found = {line.split(" | ")[1]: line for line in label_maps.lines([other])[2:]}
    assert [*found] == ["Other", *comparison.TITLES.values()]
    assert found["FixMatch"].count("0.000 (") == 2
    for way in label_maps.WAYS.values():
        assert common.shown(comparison.paired([ours], [unimatch], way)) in found["UniMatch"]


def test_the_page_is_that_of_the_results():
    text = label_maps.PAGE.read_text()
    assert RESULTS and label_maps.fill(text) == text
