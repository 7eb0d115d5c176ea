"""The simulation of annotation: its choices, that it goes on where it stopped, and its page."""

from __future__ import annotations

import json
import re

import annotation
import common
import numpy as np
import pytest
import warm
from conftest import ROOT
from scripts.dataio import phantom


@pytest.fixture
def simulation(tmp_path, monkeypatch):
    """Arguments of a tiny simulation: six patients to choose from, one to validate, one that is nobody's."""
    monkeypatch.setattr(common, "subprocess", warm)
    data = phantom.generate(tmp_path / "p", seed=7, split={"training": 7, "testing": 1})
    names = [f"patient{n:03d}" for n in range(7)]
    (tmp_path / "splits.json").write_text(json.dumps({"training": names[:6], "validation": names[6:]}))
    return {
        "data": str(data), "splits": str(tmp_path / "splits.json"), "work": str(tmp_path / "work"),
        "results": str(tmp_path / "results"), "seeds": 1, "rounds": 2, "spatial_size": 32, "epochs": 1,
        "steps_per_epoch": 2, "batch_size": 4,
    }  # fmt: skip


def test_rounds_grow_and_go_on(simulation, tmp_path, monkeypatch, capsys):
    annotation.run(strategies=["disagreement"], **simulation)
    records = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "results").iterdir()}
    assert set(records) == {"seed0_all_2", "seed0_disagreement_4"}
    first, second = records["seed0_all_2"], records["seed0_disagreement_4"]
    pool = {f"patient{n:03d}" for n in range(6)}
    assert set(first["scores"]) == pool - set(first["annotated"]) and len(first["annotated"]) == 2
    asked = sorted(first["scores"], key=lambda p: -first["scores"][p]["disagreement"])[:2]
    assert second["annotated"] == [*first["annotated"], *asked], "the most disputed are annotated next"
    assert first["steps"] == second["steps"] == 2 and second["unlabeled_images"] == 2
    assert set(second["last"]["per_case"]) == {"patient006"} and second["warm_start"] == "seed0_all_2"
    log = (tmp_path / "work" / "seed0_disagreement_4" / "output.log").read_text()
    assert "seed0_all_2/model_last.pt" in log, "goes on from the weights of the round before"
    datalist = json.loads((tmp_path / "work" / "seed0_disagreement_4" / "datalist.json").read_text())
    assert "patient007" not in json.dumps(datalist), "other patients are not touched"
    assert "--steps_per_epoch 2" in second["command"] and re.fullmatch("[0-9a-f]{40}", second["commit"][0])

    # again: nothing is trained twice; a result that is missing is made anew, alike
    with monkeypatch.context() as patch:
        patch.setattr(annotation, "train", lambda *_: pytest.fail("trained again"))
        annotation.run(strategies=["disagreement"], **simulation)
    (tmp_path / "results" / "seed0_disagreement_4.json").unlink()
    annotation.run(strategies=["disagreement"], **simulation)
    again = json.loads((tmp_path / "results" / "seed0_disagreement_4.json").read_text())
    assert again["last"] == second["last"] and again["scores"] == second["scores"]
    with pytest.raises(SystemExit, match="received luck"):
        annotation.run(strategies=["luck"], **simulation)


def test_choices():
    scores = {f"p{n}": {"entropy": n / 10, "disagreement": -n / 10} for n in range(9)}
    assert annotation.choose("entropy", scores, 2, 0) == ["p8", "p7"]
    assert annotation.choose("disagreement", scores, 2, 0) == ["p0", "p1"]
    drawn = {tuple(annotation.choose("random", scores, 2, seed)) for seed in range(20)}
    assert len(drawn) > 5 and annotation.choose("random", scores, 2, 3) == annotation.choose("random", scores, 2, 3)


def made_up(folder, strategy, seed, patients, value):
    """A result in which every validation patient has about the same Dice."""
    noise = np.random.default_rng(patients).normal(0, 0.01, 10)
    cases = {f"patient{p:03d}_frame01": {"dice": [value + noise[p]] * 3} for p in range(10)}
    record = {"strategy": strategy, "seed": seed, "patients": patients,
              "last": {"mean": {"dice": value}, "per_case": cases}}  # fmt: skip
    (folder / f"{annotation.run_name(seed, strategy, patients)}.json").write_text(json.dumps(record))


def test_a_page_from_results(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for seed in (0, 1):
        made_up(results, "all", seed, 2, 0.4)
        for strategy, gain in (("random", 0.0), ("entropy", 0.0), ("disagreement", 0.1)):
            made_up(results, strategy, seed, 4, 0.6 + gain * (1 + 0.1 * seed))
    made_up(results, "random", 2, 4, 0.9)  # a seed that the others do not have yet
    page = "Words.\n<!-- table -->\nold\n<!-- end -->\n<!-- curve -->\n<!-- end -->\nMore.\n"
    filled = annotation.fill(page, results, tmp_path / "figures")
    assert "old" not in filled and filled.startswith("Words.") and filled.endswith("More.\n")
    assert "| random | 0.400 (0.400, 0.400) | 0.600 (0.600, 0.600) |" in filled
    assert "| entropy | random | 4 | 2 | +0.000" in filled and "tie" in filled
    assert "| disagreement | random | 4 | 2 | +0.105" in filled
    assert annotation.fill(filled, results) == filled
    assert (tmp_path / "figures" / "annotation.png").stat().st_size > 5000


RESULTS = sorted(annotation.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_published_rounds_are_of_the_protocol(path):
    record = json.loads(path.read_text())
    splits = json.loads((ROOT / "benchmarks" / "configs" / "acdc_splits.json").read_text())
    assert set(record["annotated"]) <= set(splits["training"]) and len(set(record["annotated"])) == record["patients"]
    assert {common.patient_of(c) for c in record["last"]["per_case"]} == set(splits["validation"])
    assert record["steps"] == 500 and record["command"].startswith("python benchmarks/annotation.py run --data DIR")
    assert not record["changed_since_commit"], "trained on committed code"
    if record["warm_start"]:
        before = json.loads((annotation.RESULTS / f"{record['warm_start']}.json").read_text())
        asked = annotation.choose(record["strategy"], before["scores"], 2, record["seed"])
        assert record["annotated"] == [*before["annotated"], *asked]


def test_the_published_page_is_that_of_the_results():
    text = (ROOT / "benchmarks" / "ANNOTATION.md").read_text()
    assert annotation.fill(text, annotation.RESULTS) == text
    assert (ROOT / "benchmarks" / "figures" / "annotation.png").stat().st_size > 5000
