"""Published figures come from committed results, and the command behind them works."""

from __future__ import annotations

import hashlib
import json
import shutil

import comparison
import infer
import plan_check
import processes
import pytest
import step
import weights
from conftest import BUNDLE, ROOT

FOLDER = ROOT / "benchmarks" / "results"
#: whose table stands on which page
TABLES = {
    "step": (step, "COSTS.md"),
    "infer": (infer, "COSTS.md"),
    "plan": (plan_check, "COSTS.md"),
    "two": (processes, "RELIABILITY.md"),
}


MADE = sorted(p for kind in TABLES for p in FOLDER.glob(f"{kind}_*.json") if "against" not in p.stem)


@pytest.mark.parametrize("path", MADE, ids=lambda p: p.stem)
def test_tables_are_those_of_the_results(path, capsys):
    record = json.loads(path.read_text())
    assert record["command"].startswith("python benchmarks/") and {"seed", "cases", "commit", "versions"} <= set(record)
    module, page = TABLES[path.name.split("_")[0]]
    module.table(str(path))
    text = (ROOT / "benchmarks" / page).read_text()
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) >= 4
    for line in lines:
        assert line in text, line


@pytest.mark.parametrize("path", FOLDER.glob("step_against_*.json"), ids=lambda p: p.stem)
def test_the_comparison_of_two_checkouts_is_that_of_the_results(path):
    text = (ROOT / "benchmarks" / "COSTS.md").read_text()
    for rows in json.loads(path.read_text())["sizes"].values():
        for name, row in rows.items():
            here = [row[f"{kind}_here"]["median"] for kind in ("amp", "float32")]
            before = [row[f"{kind}_against"]["median"] for kind in ("amp", "float32")]
            cells = [f"{a:.3f}" for a in here] + [f"{a / b:.2f}" for a, b in zip(here, before)]
            cells += [f"{here[0] / here[1]:.2f}", f"{here[0] / row['amp_unimatch']['median']:.2f}"]
            assert f"| {name} | {' | '.join(cells)} |" in text


def test_the_readme_tells_the_ratio_of_the_results():
    for size in ("96", "224"):
        methods = json.loads((FOLDER / f"step_cpu_{size}.json").read_text())["sizes"][size]["methods"]
        assert round(methods["semsim"]["seconds"]["median"] / methods["semsim_minus"]["seconds"]["median"]) == 3
    assert "three times as fast on a CPU" in " ".join((ROOT / "README.md").read_text().split())


def test_publishing_weights(tmp_path):
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle" / "configs")
    shutil.copytree(BUNDLE / "models", tmp_path / "bundle" / "models")
    [path, *_] = sorted((ROOT / "benchmarks" / "results" / "accuracy").glob("*.json"))
    record = json.loads(path.read_text())
    run = tmp_path / record["name"]
    run.mkdir()
    (run / "model_last.pt").write_bytes(b"weights")
    (run / "training.json").write_text('{"spatial_size": 96}')
    publish = weights.publish
    publish(str(path), str(run), str(tmp_path / "bundle"), str(tmp_path / "weights.json"), keep_largest=True)
    settings = json.loads((tmp_path / "bundle" / "models" / "training.json").read_text())
    assert settings == {"spatial_size": 96, "keep_largest": True}
    assert (tmp_path / "bundle" / "models" / "model.pt").read_bytes() == b"weights"
    facts = json.loads((tmp_path / "weights.json").read_text())
    assert facts["sha256"] == hashlib.sha256(b"weights").hexdigest() and facts["result"] == path.name
    with pytest.raises(SystemExit, match="expected the training of"):
        publish(str(path), str(tmp_path), str(tmp_path / "bundle"), str(tmp_path / "weights.json"))


def test_scoring_the_shipped_weights(phantom_dir, tmp_path):
    names = sorted(p.name.split(".")[0] for p in (phantom_dir / "labels").iterdir())
    splits = {"training": names[:2], "validation": names[2:4], "labelled": {"1": names[:1]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    before = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(before))
    weights.score(str(phantom_dir), 1, str(tmp_path / "splits.json"), str(tmp_path / "scores.json"), str(path))
    record = json.loads((tmp_path / "scores.json").read_text())
    plain, flips, kept = (record[way] for way in weights.WAYS)
    assert plain["cases"] == kept["cases"] == 2 and plain["list"] == "validation"
    assert plain["mean"] != flips["mean"] != kept["mean"], "they do not know the phantom, so there are pieces to drop"
    after = json.loads(path.read_text())
    told = after.pop("eval_metrics")["validation_mean_dice"]
    assert told == round(kept["mean"]["dice"], 4), "scored as they predict"
    before.pop("eval_metrics")
    assert after == before


def test_the_shipped_weights_are_those_of_their_result():
    """The file, its settings and its scores in the metadata and on the model card, held to the committed result."""
    facts = json.loads((ROOT / "benchmarks" / "results" / "weights.json").read_text())
    record = json.loads((ROOT / "benchmarks" / "results" / "accuracy" / facts["result"]).read_text())
    model = (BUNDLE / "models" / "model.pt").read_bytes()
    assert hashlib.sha256(model).hexdigest() == facts["sha256"] and len(model) < 12e6
    settings = json.loads((BUNDLE / "models" / "training.json").read_text())
    assert settings["labeled_cases"] == record["labelled_cases"] and settings["spatial_size"] == record["spatial_size"]
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    card = (BUNDLE / "docs" / "README.md").read_text()
    ways = json.loads((ROOT / "benchmarks" / "results" / "weights_scores.json").read_text())
    assert ways["weights_sha256"] == facts["sha256"] and ways["plain"]["list"] == "validation"
    assert ways["plain"]["mean"] == pytest.approx(record["last"]["mean"], abs=1e-4)
    assert settings["keep_largest"] and settings["flip_tta"]
    assert metadata["eval_metrics"] == weights.metrics(ways["post_processed"])
    kept = ways["post_processed"]["mean"]
    told = " ".join((ROOT / "benchmarks" / "ACCURACY.md").read_text().split())
    assert f"weights come to {kept['dice']:.3f} and {kept['hd95']:.1f} voxels" in told
    assert f"reach {kept['dice']:.3f} / {kept['hd95']:.1f}." in (ROOT / "README.md").read_text()
    for name in ("mean", *record["last"]["classes"]):
        shown = [ways[way]["classes"].get(name, ways[way]["mean"]) for way in weights.WAYS]
        assert f"| {name} | " + " | ".join(f"{v['dice']:.3f} / {v['hd95']:.1f}" for v in shown) + " |" in card
    assert record["command"] in " ".join(card.replace("\\\n", " ").split())


def test_a_mark_of_an_unknown_kind_is_named():
    """Else its part would keep the figures of before."""
    with pytest.raises(SystemExit, match=r"unknown kind.*tabel"):
        comparison.fill("<!-- tabel acdc* -->\n<!-- end -->\n", ROOT / "benchmarks" / "results" / "accuracy")
