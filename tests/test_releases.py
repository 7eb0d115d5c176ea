"""Public benchmarks from their own files, recreated small with their names, types and header quirks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import samples
from conftest import ROOT
from helpers import read_rows, workflow
from PIL import Image
from scripts.errors import InputError
from scripts.preparation.public_datasets import prepare


def make_promise12(root: Path, cases: int) -> Path:
    """``CaseNN.mhd``: one big-endian, one compressed, the others as released; test cases of the same numbers beside."""
    for number in range(cases):
        image, label = samples.blob((16, 16, 4), seed=number)
        folder = root / f"TrainingData_Part{1 + number % 3}"
        options = {0: {"big_endian": True}, 1: {"compressed": True}}.get(number, {})
        samples.write_mhd(folder / f"Case{number:02d}.mhd", image, **options)
        options.pop("big_endian", None)
        samples.write_mhd(folder / f"Case{number:02d}_segmentation.mhd", label.astype(np.int8), **options)
    samples.write_mhd(root / "TestData" / "Case00.mhd", image)
    return root


def make_isic(root: Path, pictures: int) -> Path:
    """Uneven JPGs and masks of 0 and 255 in their two folders, with superpixels and the licence beside them."""
    for number in range(pictures):
        image, label = samples.blob((40 + 8 * number, 60 - 2 * number, 1), seed=number)
        name = f"ISIC_{number:07d}"
        inputs, truth = root / "ISIC2018_Task1-2_Training_Input", root / "ISIC2018_Task1_Training_GroundTruth"
        colour = np.repeat(image.clip(0, 255).astype(np.uint8), 3, axis=-1) // np.array([1, 2, 3], np.uint8)
        samples.write_picture(inputs / f"{name}.jpg", colour, quality=90)
        samples.write_picture(inputs / f"{name}_superpixels.png", colour)
        samples.write_picture(truth / f"{name}_segmentation.png", label[..., 0] * 255)
    for folder in (inputs, truth):
        (folder / "LICENSE.txt").write_text("CC-0")
    return root


def listed(path: Path) -> dict[str, set[str]]:
    content = json.loads(path.read_text())
    return {name: {Path(i["image"]).name for i in content[name]} for name in ("training", "unlabeled", "validation",
            "testing")}  # fmt: skip


def train_and_evaluate(source: Path, datalist: Path, config: str, output: Path, **options) -> list[dict[str, str]]:
    """A short training from raw files and its scores, as the printed command starts it."""
    given = {"dataset_dir": str(source), "datalist": str(datalist), "output_dir": str(output), "show_progress": False}
    for name, more in (("training", {"spatial_size": 32, "batch_size": 2, **options}), ("evaluating", {})):
        files = ["train", config, "semsim_minus", *(["evaluate"] if name == "evaluating" else [])]
        workflow("train", *files, run_id=name, **given, **more).run()
    return read_rows(output / "scores.csv")


@pytest.fixture(scope="module")
def acdc100(tmp_path_factory) -> Path:
    return samples.make_acdc(tmp_path_factory.mktemp("acdc"), range(1, 101))


@pytest.mark.parametrize("labeled", [1, 3, 7])
def test_acdc_follows_the_published_lists(acdc100, tmp_path, labeled, capsys):
    prepare("acdc", str(acdc100), str(tmp_path / "d.json"), labeled=labeled, check=False)
    published = json.loads((ROOT / "benchmarks" / "configs" / "acdc_splits.json").read_text())
    patients = {use: {name.split("_")[0] for name in names} for use, names in listed(tmp_path / "d.json").items()}
    assert patients["training"] == set(published["labelled"][str(labeled)])
    assert patients["unlabeled"] == set(published["training"]) - patients["training"]
    assert patients["validation"] == set(published["validation"]) and len(patients["testing"]) == 20
    lists = json.loads((tmp_path / "d.json").read_text())
    assert [len(lists[n]) for n in ("training", "validation", "testing")] == [2 * labeled, 20, 40], "both frames"
    assert all("label" not in item for item in lists["unlabeled"]) and not list(acdc100.rglob("*.json"))
    assert "patient099" in capsys.readouterr().out, "identifiers are printed"


def test_acdc_from_files_to_scores(tmp_path, capsys):
    """int16 with a slope, 4D files and the other test set left alone, millimetres kept."""
    source = samples.make_acdc(tmp_path / "ACDC", range(1, 9))
    prepare("acdc", str(source), str(tmp_path / "d.json"), labeled=2, split=(5, 1, 2), seed=3)
    shown = capsys.readouterr().out
    assert "16 of 8 patients" in shown and "1.56x1.56x10 mm" in shown and "label 3 left ventricle" in shown
    assert "250 to" in shown, "intensities with their slope"
    scores = train_and_evaluate(source, tmp_path / "d.json", "acdc", tmp_path / "out", epochs=2, val_interval=1)
    assert len(scores) == 4 * 3 and {row["unit"] for row in scores} == {"mm"} and "assd" not in scores[0]
    assert {row["class"] for row in scores} == {"right ventricle", "myocardium", "left ventricle"}


def test_acdc_numbers_shares_and_seeds(acdc100, tmp_path):
    lists = []
    for name, options in {
        "a": {"split": (0.5, 0.2, 0.3), "labeled": 5, "seed": 1}, "b": {"split": "50,20,30", "labeled": 10, "seed": 1},
        "c": {"split": (0.5, 0.2, 0.3), "labeled": 5, "seed": 2}, "d": {"labeled": 14}, "e": {"labeled": "patient003"},
    }.items():  # fmt: skip
        prepare("acdc", str(acdc100), str(tmp_path / f"{name}.json"), check=False, **options)
        lists.append(listed(tmp_path / f"{name}.json"))
    a, b, c, d, e = lists
    assert a["testing"] == b["testing"] and a["training"] < b["training"] and a["testing"] != c["testing"]
    assert [len(a[use]) for use in a] == [10, 90, 40, 60]
    assert len(d["training"]) == 28 and d["testing"] == e["testing"] and len(e["training"]) == 2


def test_acdc_incomplete_releases_name_every_gap(tmp_path):
    source = samples.make_acdc(tmp_path / "ACDC", range(1, 5))
    (source / "training/patient001/patient001_frame01.nii.gz").unlink()
    (source / "training/patient002/Info.cfg").unlink()
    (source / "training/patient003/patient003_frame01_gt.nii.gz").unlink()
    with pytest.raises(InputError) as error:
        prepare("acdc", str(source), str(tmp_path / "d.json"))
    for part in ("names frame 1 as ED", "patient002/Info.cfg: no such file", "patient003_frame01.nii.gz: no segment"):
        assert part in str(error.value), error.value
    with pytest.raises(InputError, match=r"expected 100 patients .* found 3.*--split"):
        prepare("acdc", str(samples.make_acdc(tmp_path / "few", range(1, 4))), str(tmp_path / "d.json"), check=False)


def test_promise12_from_files_to_scores(tmp_path, capsys):
    """Big-endian and compressed voxels; test cases that share numbers with training cases."""
    source = make_promise12(tmp_path / "PROMISE12", 6)
    prepare("promise12", str(source), str(tmp_path / "d.json"), split=(4, 1, 1), labeled=1)
    shown = capsys.readouterr().out
    assert "6 of 6 cases" in shown and "0.6x0.6x3.6 mm" in shown and "label 1 prostate" in shown
    assert "100 to 309" in shown, "read in the right byte order"
    content = json.loads((tmp_path / "d.json").read_text())
    assert not any("TestData" in item["image"] for name in ("training", "unlabeled") for item in content[name])
    scores = train_and_evaluate(source, tmp_path / "d.json", "promise12", tmp_path / "out", epochs=2, val_interval=1)
    assert len(scores) == 1 and scores[0]["class"] == "prostate" and float(scores[0]["assd"]) >= 0
    assert "hd95" not in scores[0]
    summary = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(summary["mean"]) == {"dice", "assd"} and summary["distance_unit"] == "mm"


def test_promise12_of_the_paper(tmp_path):
    source = make_promise12(tmp_path / "PROMISE12", 50)
    for labeled in (1, 2):
        prepare("promise12", str(source), str(tmp_path / f"{labeled}.json"), labeled=labeled, check=False)
    one, two = listed(tmp_path / "1.json"), listed(tmp_path / "2.json")
    assert [len(one[use]) for use in one] == [1, 34, 5, 10] and one["training"] < two["training"]


def test_promise12_header_without_its_voxels(tmp_path):
    source = make_promise12(tmp_path / "PROMISE12", 4)
    for path in sorted(source.rglob("Case0[23].raw")):
        path.unlink()
    with pytest.raises(InputError) as error:
        prepare("promise12", str(source), str(tmp_path / "d.json"), split=(2, 1, 1), labeled=1)
    assert str(error.value).count("unpack the case again") == 2 and "Case02.mhd" in str(error.value)


def test_isic_from_files_to_scores_and_predictions(tmp_path, capsys):
    """RGB of uneven sizes, masks of 0 and 255, no validation list; the prediction has the size of its picture."""
    source = make_isic(tmp_path / "ISIC2018", 8)
    prepare("isic", str(source), str(tmp_path / "d.json"), split=(6, 0, 2), labeled=2)
    shown = capsys.readouterr().out
    assert "8 of 8 images" in shown and "channels" in shown and "label 255 lesion" in shown and "8 different" in shown
    assert not any("superpixels" in name for names in listed(tmp_path / "d.json").values() for name in names)
    scores = train_and_evaluate(source, tmp_path / "d.json", "isic", tmp_path / "out", epochs=12)
    assert len(scores) == 2 and {row["class"] for row in scores} == {"lesion"} and "hd95" not in scores[0]
    assert np.mean([float(row["dice"]) for row in scores]) > 0.5, "masks of 0 and 255 are learned from"
    picture = source / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000003.jpg"
    workflow("infer", "inference", "isic", dataset_dir=str(picture), output_dir=str(tmp_path / "p"), output_ext=".png",
             ckpt_path=str(tmp_path / "out" / "model_last.pt"), show_progress=False).run()  # fmt: skip
    predicted = Image.open(tmp_path / "p" / "ISIC_0000003_seg.png")
    assert predicted.size == (64, 54) and set(np.unique(predicted)) <= {0, 255}


def test_isic_mask_of_other_values_is_named(tmp_path):
    source = make_isic(tmp_path / "ISIC2018", 4)
    for number in (1, 2):
        path = source / "ISIC2018_Task1_Training_GroundTruth" / f"ISIC_{number:07d}_segmentation.png"
        samples.write_picture(path, np.asarray(Image.open(path)).T // 2)
    with pytest.raises(InputError) as error:
        prepare("isic", str(source), str(tmp_path / "d.json"), split=(3, 0, 1), labeled=1)
    assert str(error.value).count("holds the value(s) 127") == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": (90, 10, 20)}, "at most the 100"),
        ({"split": (1, 2)}, "three numbers or fractions"),
        ({"labeled": 71}, "expected 1 to 70"),
        ({"labeled": "patient002"}, "not one of the patients for training"),
    ],
)
def test_refused(acdc100, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        prepare("acdc", str(acdc100), str(tmp_path / "d.json"), check=False, **options)
    assert not (tmp_path / "d.json").exists()


def test_unknown_release_and_wrong_folder(tmp_path):
    with pytest.raises(InputError, match="datalist create"):
        prepare("lits", str(tmp_path), "d.json")
    for name in ("acdc", "promise12", "isic"):
        with pytest.raises(InputError, match=r"expected .* found"):
            prepare(name, str(tmp_path), str(tmp_path / "d.json"))


def test_by_command_dry(run_bundle, acdc100, tmp_path):
    result = run_bundle("benchmark", "acdc", "--source", str(acdc100), "--output", str(tmp_path / "d.json"),
                        "--dry_run", "--labeled", "3", module="scripts")  # fmt: skip
    assert "patient038 patient050 patient099" in result.stdout and "nothing written" in result.stdout
    assert "Reading files" in result.stderr and not (tmp_path / "d.json").exists()
