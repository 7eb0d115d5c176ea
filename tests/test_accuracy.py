"""The benchmark of accuracy: runs can be interrupted, results say everything, tables call a tie a tie."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import accuracy
import common
import comparison
import gradients
import nibabel as nib
import numpy as np
import pseudo_labels
import pytest
import samples
import scoring
import torch
import warm
import yaml
from conftest import BUNDLE, ROOT
from scripts.method.network import SegmentationNet
from scripts.precision import precision

SIZES = {"spatial_size": 224, "iterations": 3000}  # where a plan does not say
RUN = {"cases": 1, "spatial_size": 32, "iterations": 1, "batch_size": 4}


@pytest.fixture
def protocol(phantom_dir, tmp_path, monkeypatch):
    """Arguments of a tiny protocol: 1 labelled, 2 unlabelled, 1 validation patient."""
    monkeypatch.setattr(accuracy, "subprocess", warm)
    names = sorted(p.name.split(".")[0] for p in (phantom_dir / "labels").iterdir())
    splits = {"training": names[:3], "validation": names[3:4], "labelled": {"1": names[:1]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    return {
        "data": str(phantom_dir),
        "splits": str(tmp_path / "splits.json"),
        "work": str(tmp_path / "work"),
        "results": str(tmp_path / "results"),
        **RUN,
    }


def result_of(protocol, method, change=""):
    name = accuracy.run_name(method, 1, 0, 32, 1, change)
    return json.loads((Path(protocol["results"]) / f"{name}.json").read_text())


def test_a_result_says_everything(protocol, tmp_path, capsys):
    accuracy.train(method="semsim_minus", change="regions_2+t_p_0.2", **protocol)
    record = result_of(protocol, "semsim_minus", "regions_2+t_p_0.2")
    run = Path(protocol["work"]) / record["name"]
    for _ in range(2):  # the second time nothing is done
        accuracy.predict(str(run), protocol["data"] + "/images", str(tmp_path / "results" / "predictions.npz"))
    splits = json.loads(Path(protocol["splits"]).read_text())
    assert record["labelled_cases"] == splits["labelled"]["1"] and record["steps"] == record["steps_per_epoch"] >= 1
    for which in scoring.EVALUATIONS:
        assert set(record[which]["per_case"]) == set(splits["validation"])
        for metric in ("dice", "hd95"):
            values = [case[metric] for case in record[which]["per_case"].values()]
            assert np.shape(values) == (1, 3)
            assert record[which]["mean"][metric] == pytest.approx(np.mean(values), abs=1e-4)
    processed = {name: record.pop(name) for name in scoring.ways(flip_tta=True)}
    for name, keep in (("flips", False), ("post_processed", True)):
        assert processed[name]["flip_tta"] and processed[name]["keep_largest"] is keep
        assert set(processed[name]["per_case"]) == set(splits["validation"])
    result = Path(protocol["results"]) / f"{record['name']}.json"
    result.write_text(json.dumps(record))
    accuracy.add_post_processed(str(Path(protocol["work"]) / record["name"]), protocol["data"], protocol["results"])
    assert {name: json.loads(result.read_text())[name] for name in processed} == processed
    assert re.fullmatch("[0-9a-f]{40}", record["commit"][0]) and {"monai", "torch"} <= set(record["versions"])
    assert "--change regions_2+t_p_0.2" in record["command"] and record["training_seconds"] > 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert record["precision"] == str(precision("auto", device)).split()[0], "as this machine is fast with"
    assert len(record["validation_curve"]["mean_dice"]) == 1 and "loss_cross" in record["training_curve"]
    assert record["pseudo_labels"]["epoch"] == [1] and 0 <= record["pseudo_labels"]["background confident"][0] <= 1
    settings = yaml.safe_load((BUNDLE / "configs" / "train.yaml").read_text())["loss"]
    assert settings["regions"] != 2, "the change departs from the default"

    assert record["recipe"]["copy_paste"] == 0.5 and record["recipe"]["features"] == [16, 32, 64, 128, 256, 16]
    with np.load(Path(protocol["results"]) / "predictions.npz") as predicted:
        images = sorted((Path(protocol["data"]) / "images").iterdir())
        assert sorted(predicted) == [p.name.split(".")[0] for p in images]
        assert predicted[images[0].name.split(".")[0]].shape == nib.load(images[0]).shape

    capsys.readouterr()
    accuracy.train(method="semsim_minus", change="regions_2+t_p_0.2", **protocol)
    assert "nothing to do. To train it anew give another folder as --results" in capsys.readouterr().out

    # what the similarities know: of the last weights and of a checkpoint, which are the same after one epoch
    (checkpoint,) = run.glob("resume_checkpoint_*.pt")
    found = []
    for given in ("", str(checkpoint)):
        pseudo_labels.measure(str(run), protocol["data"], given, every=1, output=str(tmp_path / "similarities.json"))
        found.append(json.loads((tmp_path / "similarities.json").read_text()))
    assert found[0]["decoder"] == found[1]["decoder"] and found[0]["steps"] == found[1]["steps"] == record["steps"]
    assert found[0]["regions"] == 2, "as the change says"
    assert found[0]["images"] == 2 and sum(found[0]["positions"]) == pytest.approx(1, abs=1e-3)
    assert "| p_w2 right |" in " ".join(capsys.readouterr().out.replace("|  |", "|").split())

    # and in which directions the terms pull
    gradients.measure(str(run), protocol["data"], batches=2, output=str(tmp_path / "gradients.json"))
    found = json.loads((tmp_path / "gradients.json").read_text())
    assert {*found["norms"]} == {"strong_1", "strong_2", "weak_perturbed", "L_intra", "L_cross"}
    assert all(len(norms) == 2 and min(norms) >= 0 for norms in found["norms"].values())
    assert all(-1 <= c <= 1 for cosines in found["cosines_with_loss_u_on_strong_1"].values() for c in cosines)
    unknown = shutil.copytree(run, run.with_name(run.name.replace("regions_2", "regions_two")))
    with pytest.raises(SystemExit, match=r"changes\.yaml, its name has 'regions_two'"):
        pseudo_labels.measure(str(unknown), protocol["data"])
    settings_file = run / "training.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"fusion": "none"}))
    for module in (pseudo_labels, gradients):
        with pytest.raises(SystemExit, match="this one has no similarities"):
            module.measure(str(run), protocol["data"])


def test_directions_of_terms_by_hand():
    """Of (a + 2 b)^2 at (1, 0) the gradient is (2, 4); of a alone (1, 0), though b does not enter it."""
    a, b = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Parameter(torch.tensor(0.0))
    both, one = (gradients.flat_gradient(term, [a, b]).tolist() for term in ((a + 2 * b) ** 2, a))
    assert both == [2, 4] and one == [1, 0]
    record = {"run": "r", "norms": {"strong_1": [2.0, 4.0]}, "cosines_with_loss_u_on_strong_1": {}}
    for name in ("L_intra", "L_cross", "strong_2", "weak_perturbed"):
        record["norms"][name], record["cosines_with_loss_u_on_strong_1"][name] = [1.0, 2.0], [0.5, 1.0]
    assert (
        comparison.gradient_lines([record])[-1] == "| r | 2 | 0.75 (0.50) | 0.75 (0.50) | 0.75 (0.50) | 0.75 (0.50) |"
    )


def test_methods_of_a_column_are_compared_over_the_seeds_that_all_have():
    """A second seed of one method, far from the first, does not change which of two is ahead; it stands behind."""
    runs = [made_up("fixmatch", 0, lambda p: 0.9), made_up("fixmatch", 1, lambda p: 0.7),
            made_up("semsim_minus", 0, lambda p: 0.85)]  # fmt: skip
    cells = comparison.cells_lines(runs)
    assert any(line.startswith("| FixMatch | 0.90") and "0.80" in line and "over 2 seeds" in line for line in cells)
    assert any(line.startswith("| SemSim- | 0.85") and "seeds" not in line for line in cells)
    cells = comparison.cells_lines([*runs, made_up("semsim_minus", 1, lambda p: 0.75)])
    assert [("(2 seeds)" in line, "over" in line) for line in cells[-2:]] == [(True, False)] * 2


def test_predictions_are_counted_by_the_confidence_of_the_decoder():
    """Five positions of three classes, two unsure ones: numbers by hand."""
    truth, decoder = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 1, 2, 2])
    said, bins = torch.tensor([0, 2, 2, 2, 2]), torch.tensor([3, 3, 3, 0, 0])
    tally = pseudo_labels.Tally(3)
    tally.add(said, decoder, truth, bins)
    record = tally.record()
    assert record["dice"] == [0.0, round(2 * 2 / (4 + 2), 4)]
    assert record["right"][0] == 0.5 and record["right"][3] == pytest.approx(2 / 3, abs=1e-4)
    assert record["agrees"][0] == 1 and record["agrees"][3] == pytest.approx(1 / 3, abs=1e-4)
    assert record["right_where_it_agrees"][0] == 0.5 and record["right_where_it_agrees"][3] == 1
    assert record["right"][1] is None, "no such position"


def test_predictions_are_kept_as_class_numbers(tmp_path, monkeypatch):
    """Whatever the labels of that data set hold."""
    lines = []
    monkeypatch.setattr(common, "run", lambda line, *_: lines.append(line))
    scoring.predict(str(tmp_path / "run"), str(tmp_path), output=str(tmp_path / "run.npz"))
    (line,) = lines
    assert line[line.index("--label_values") + 1] == "$None"


def test_a_plan_that_fails_is_one_line(tmp_path, monkeypatch):
    """Planning has said why by itself."""
    monkeypatch.setattr(accuracy.subprocess, "run", lambda line, **_: accuracy.subprocess.CompletedProcess(line, 1))
    with pytest.raises(SystemExit, match="planning failed"):
        accuracy._run([], tmp_path, 1, 0, plan=True)


def test_volumes_of_la_are_trained_on_in_3d(tmp_path, monkeypatch):
    """Three numbers as size: patches of volumes, whole volumes scored in mm, hidden labels looked at."""
    monkeypatch.setattr(accuracy, "subprocess", warm)
    names = [f"train{n:03d}" for n in range(4)]
    place = np.stack(np.meshgrid(*(np.arange(n) for n in (24, 20, 18)), indexing="ij"))
    for n, name in enumerate(names):
        label = (((place - 9 - n % 2) ** 2).sum(axis=0) < 36).astype(np.uint8)
        image = (100 * label + np.random.default_rng(n).normal(50, 10, label.shape)).astype(np.float32)
        for kind, array in (("images", image), ("labels", label)):
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-1.25, -1.25, 1.25, 1])), tmp_path / kind / f"{name}.nii.gz")
    splits = {"training": names[:3], "validation": names[3:], "labelled": {"4": names[:1]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    accuracy.train(
        str(tmp_path), "semsim_minus", cases=4, spatial_size=[16, 16, 16], iterations=1, dataset="la", plan=False,
        splits=str(tmp_path / "splits.json"), work=str(tmp_path / "work"), results=str(tmp_path / "results"),
    )  # fmt: skip
    record = json.loads((tmp_path / "results" / "la4_16x16x16_1_semsim_minus_seed0.json").read_text())
    assert record["last"]["distance_unit"] == "mm" and list(record["last"]["per_case"]) == names[3:]
    assert "--spatial_size [16,16,16] " in record["command"]
    processed = record["post_processed"]
    assert processed["keep_largest"] and not processed["flip_tta"] and list(processed["per_case"]) == names[3:]
    assert "flips" not in record
    assert record["command"].endswith("--dataset la --splits FILE")
    assert record["recipe"]["batch_size"] == 4 and 0 <= record["pseudo_labels"]["left atrium confident"][0] <= 1
    pseudo_labels.measure(str(tmp_path / "work" / record["name"]), str(tmp_path), every=1, regions=2,
                          output=str(tmp_path / "similarities.json"))  # fmt: skip
    found = json.loads((tmp_path / "similarities.json").read_text())
    assert found["regions"] == 2 and len(found["p_w2"]["dice"]) == 1 and found["spatial_size"] == [16, 16, 16]
    with pytest.raises(SystemExit, match="one of acdc, la, received brats"):
        accuracy.train(str(tmp_path), "semsim_minus", dataset="brats")
    with pytest.raises(SystemExit, match="--test: expected a folder of images, received True"):  # a bare --test
        accuracy.train(str(tmp_path), "fixmatch", test=True)


def test_a_training_begins_with_the_weights_of_another(protocol, tmp_path):
    weights = tmp_path / "w.pt"
    torch.save(SegmentationNet(out_channels=4).state_dict(), weights)
    accuracy.train(method="labeled_only", initial=str(weights), **protocol)
    (result,) = Path(protocol["results"]).iterdir()
    record = json.loads(result.read_text())
    assert record["name"] == "acdc1_32_1_labeled_only+initial_seed0" and record["initial_sha256"]
    log = (Path(protocol["work"]) / record["name"] / "output.log").read_text()
    assert f"Starting from the weights in {weights}" in log


def test_an_interrupted_training_goes_on(protocol, monkeypatch):
    """Its time over after some epochs, it ends as if it had not been stopped."""
    accuracy.train(method="labeled_only", **{**protocol, "iterations": 40})
    name = accuracy.run_name("labeled_only", 1, 0, 32, 40)
    whole = json.loads((Path(protocol["results"]) / f"{name}.json").read_text())
    shutil.rmtree(protocol["results"])
    shutil.rmtree(protocol["work"])

    folder = Path(protocol["work"]) / name
    Popen = accuracy.subprocess.Popen

    class Stopped(Popen):
        """A process whose time is over as soon as there is a checkpoint of a second epoch."""

        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            while super().poll() is None:
                if len(list(folder.glob("resume_checkpoint_*.pt"))) > 1:
                    raise accuracy.subprocess.TimeoutExpired("training", timeout)
            return super().wait()

    with monkeypatch.context() as patch, pytest.raises(accuracy.Unfinished):
        patch.setattr(accuracy.subprocess, "Popen", Stopped)
        accuracy.train(method="labeled_only", **{**protocol, "iterations": 40}, minutes=1)
    assert not Path(protocol["results"]).exists()
    accuracy.train(method="labeled_only", **{**protocol, "iterations": 40})
    resumed = json.loads((Path(protocol["results"]) / f"{name}.json").read_text())
    for key in ("last", "best_on_validation", "mean_of_last_five", "validation_curve", "steps"):
        assert resumed[key] == whole[key], key
    assert len(json.loads((folder / "starts.json").read_text())) == 2
    assert resumed["machine"] == common.machine() and "python 3" in resumed["machine"], "said once if it is one"
    assert resumed["precision"] == whole["precision"]


def test_a_queue_works_through_a_plan(protocol, tmp_path, capfd):
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump([{**RUN, "method": ["labeled_only", "fixmatch"], "splits": protocol["splits"]}]))
    common = {k: protocol[k] for k in ("data", "work", "results")}
    with pytest.raises(SystemExit):
        accuracy.queue(str(plan), **common, minutes=0.01)
    assert "0 of 2 done" in capfd.readouterr().out
    accuracy.queue(str(plan), **common, jobs=1, minutes=5, workers=1)
    assert "2 of 2 done" in capfd.readouterr().out
    for method, field in (("labeled_only", None), ("fixmatch", "loss_u")):
        record = result_of(protocol, method)
        curve = record["training_curve"]
        assert record["command"].endswith("--workers 1"), "what changes the course of a run is said"
        assert ("loss_u" in curve) == (field is not None)


def test_plans_name_what_exists():
    """Every committed plan: known methods, changes and cases, nothing twice; and the table has all of its cells."""
    for path in sorted((ROOT / "benchmarks" / "configs").glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, list):
            continue
        runs = accuracy.expand(content)
        names = [accuracy.run_name(**{**SIZES, **run}) for run in runs]
        assert len(set(names)) == len(names), path.name
        for run in runs:
            assert run["method"] in accuracy.METHODS, path.name
            assert str(run["cases"]) in common.read_splits(dataset=run.get("dataset", "acdc"))["labelled"], path.name
            assert set(accuracy._as_list(run.get("change", ""))) <= set(accuracy.changes()), path.name
    table = accuracy.expand(yaml.safe_load((ROOT / "benchmarks" / "configs" / "table.yaml").read_text()))
    cells = {(r["method"], r["cases"]) for r in table if r["seed"] == 0}
    assert {
        (m, c) for m in ("labeled_only", "fixmatch", "unimatch", "semsim_minus", "semsim") for c in (1, 3, 7)
    } <= cells


def test_changes_are_keys_of_the_configuration():
    from monai.bundle import ConfigParser

    parsers = [ConfigParser(), ConfigParser()]
    for parser, overlays in zip(parsers, (["train"], ["train", "volumes"])):
        parser.read_config([*(str(BUNDLE / "configs" / f"{name}.yaml") for name in overlays),
                            str(ROOT / "benchmarks" / "configs" / "accuracy.yaml")])  # fmt: skip
        parser["iterations"] = 3000
    for name, settings in accuracy.changes().items():
        for key, value in settings.items():
            assert all(key.replace("#", "::") in parser for parser in parsers), f"{name}: {key}"
            assert any(parser[key] != value for parser in parsers), f"{name}: {key}"


def test_test_patients_are_never_touched(tmp_path):
    splits = json.loads((ROOT / "benchmarks" / "configs" / "acdc_splits.json").read_text())
    assert len(splits["training"]) == 70 and len(splits["validation"]) == 10
    assert not set(splits["training"]) & set(splits["validation"])
    (tmp_path / "images").mkdir()
    for n in range(1, 101):
        (tmp_path / "images" / f"patient{n:03d}_frame01.nii.gz").touch()
    for cases in (1, 3, 7, 70):
        accuracy.make_datalist(tmp_path, cases, tmp_path / "list.json")
        lists = json.loads((tmp_path / "list.json").read_text())
        assert {k: len(v) for k, v in lists.items()} == {
            "training": cases,
            "unlabeled": 70 - cases,
            "validation": 10,
        }
        assert all("label" not in item for item in lists["unlabeled"])
        labelled = splits["labelled"].get(str(cases), splits["training"])
        assert set(labelled) == {accuracy.patient_of(i["image"]) for i in lists["training"]}
    with pytest.raises(SystemExit, match="1, 3, 7, 70, received 2"):
        accuracy.make_datalist(tmp_path, 2, tmp_path / "list.json")
    (tmp_path / "images" / "patient099_frame01.nii.gz").unlink()
    with pytest.raises(SystemExit, match="patient099"):
        accuracy.make_datalist(tmp_path, 3, tmp_path / "list.json")


def test_all_labelled_leaves_nothing_to_learn_from_without_labels(tmp_path):
    with pytest.raises(SystemExit, match="--cases 70: leaves no scans without labels; expected --method labeled_only"):
        accuracy.train(str(tmp_path), "fixmatch", cases=70, work=str(tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def released(root, patients):
    """ACDC as it is released, whose sform says 1 mm and turns by 180 degrees, whose qform has the size."""
    source = samples.make_acdc(root, patients) / "training"
    for path in source.glob("*/*_frame*.nii.gz"):
        volume = nib.load(path)
        volume.header.set_sform(np.diag([-1, -1, 1, 1]), code=1)
        volume.header.set_qform(np.diag([-1.56, -1.56, 10, 1]), code=1)
        voxels = np.asarray(volume.dataobj)
        path.unlink()
        nib.save(nib.Nifti1Image(voxels, None, volume.header), path)
    return source


def test_a_cell_from_acdc_as_released(tmp_path, monkeypatch):
    """In a folder whose own name is `images`, too."""
    monkeypatch.setattr(accuracy, "subprocess", warm)
    monkeypatch.setattr(accuracy, "post_processed", lambda *_: {})  # two more processes, which another test starts
    source, data = released(tmp_path / "database", (1, 2, 3, 4)), tmp_path / "images" / "acdc"
    splits = {"training": ["patient001", "patient002"], "validation": ["patient003"], "labelled": {"1": ["patient001"]}}
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    accuracy.arrange(str(source), str(data), str(tmp_path / "splits.json"))
    names = ["patient001_frame01", "patient001_frame08", "patient002_frame01", "patient002_frame09",
             "patient003_frame01", "patient003_frame10"]  # fmt: skip
    for kind, ending in (("images", ""), ("labels", "_gt")):
        assert sorted(path.name for path in (data / kind).iterdir()) == [f"{name}.nii.gz" for name in names]
        stored = nib.load(source / "patient003" / f"patient003_frame10{ending}.nii.gz")
        written = nib.load(data / kind / "patient003_frame10.nii.gz")
        assert np.array_equal(written.dataobj, stored.dataobj) and np.array_equal(written.affine, np.eye(4))
    places = {name: str(tmp_path / name) for name in ("work", "results")}
    accuracy.train(str(data), "labeled_only", splits=str(tmp_path / "splits.json"), plan=False, **places, **RUN)
    record = json.loads(next((tmp_path / "results").iterdir()).read_text())
    assert list(record["last"]["per_case"]) == names[4:] and record["last"]["distance_unit"] == "voxel"
    with pytest.raises(SystemExit, match=r"--output: .*images exists"):
        accuracy.arrange(str(source), str(data))
    with pytest.raises(SystemExit, match=r"expected 80 patients, 77 are missing \(patient005"):
        accuracy.arrange(str(source), str(tmp_path / "all"))
    with pytest.raises(SystemExit, match=r"--source: .*found none"):
        accuracy.arrange(str(tmp_path / "splits.json"), str(tmp_path / "all"))
    assert not (tmp_path / "all").exists()


def test_packed_data_is_small_and_the_same(phantom_dir, tmp_path):
    for kind in ("images", "labels"):
        source = next(iter(sorted((phantom_dir / kind).iterdir())))
        (tmp_path / "data" / kind).mkdir(parents=True)
        shutil.copy(source, tmp_path / "data" / kind / "patient099_frame01.nii.gz")
        shutil.copy(source, tmp_path / "data" / kind / "patient001_frame01.nii.gz")  # of neither list
    accuracy.pack(str(tmp_path / "data"), str(tmp_path / "small"))
    files = sorted(p.relative_to(tmp_path / "small").as_posix() for p in (tmp_path / "small").rglob("*.gz"))
    assert files == ["images/patient099_frame01.nii.gz", "labels/patient099_frame01.nii.gz"]
    before, after = (nib.load(tmp_path / d / "labels/patient099_frame01.nii.gz") for d in ("data", "small"))
    assert np.array_equal(before.dataobj, after.dataobj) and np.allclose(before.affine, after.affine)
    before, after = (nib.load(tmp_path / d / "images/patient099_frame01.nii.gz") for d in ("data", "small"))
    assert after.get_data_dtype() == np.uint8
    low, high = np.percentile(before.dataobj, [0.5, 99.5])
    assert np.abs(np.clip((before.get_fdata() - low) / (high - low), 0, 1) * 255 - after.get_fdata()).max() <= 0.51


def made_up(method, seed, dice, change=()):
    """A result of ten patients with two frames; ``dice(patient)`` for every class."""
    cases = {f"patient{p:03d}_frame{f}": {"dice": [dice(p)] * 3, "hd95": [2.0] * 3, "assd": [1.0] * 3}
             for p in range(10) for f in (1, 2)}  # fmt: skip
    mean = float(np.mean([dice(p) for p in range(10)]))
    classes = {n: {"dice": mean, "hd95": 2.0, "assd": 1.0} for n in ("RV", "Myo", "LV")}
    scores = {"mean": {"dice": mean, "hd95": 2.0}, "classes": classes, "per_case": cases, "distance_unit": "voxel"}
    return {
        "method": method, "seed": seed, "cases": 3, "change": list(change), "steps_per_epoch": 10,
        "class_names": ["background", "RV", "Myo", "LV"], **{w: scores for w in scoring.EVALUATIONS},
        "validation_curve": {"epoch": [1, 2], "mean_dice": [0.1, mean]},
        "training_curve": {"loss_u": [0.9, dice(0)]},
        "pseudo_labels": {f"{c} {k}": [0.1, dice(1)] for c in classes for k in ("confident", "precision", "recall")},
    }  # fmt: skip


def test_a_tie_is_called_a_tie(capsys):
    noise = np.random.default_rng(0).normal(0, 0.05, 10)
    base = [made_up("fixmatch", s, lambda p: 0.5 + 0.01 * p) for s in (0, 1)]
    same = [made_up("unimatch", s, lambda p: 0.501 + 0.01 * p + noise[p]) for s in (0, 1)]
    better = [made_up("semsim_minus", 0, lambda p: 0.6 + 0.01 * p + 0.2 * noise[p])]
    assert comparison.paired(base, same, "last")["verdict"] == "tie"
    found = comparison.paired(base, better, "last")
    assert found["verdict"] == "ahead" and found["low"] < found["mean"] < found["high"] and len(found["seeds"]) == 1
    assert found["mean"] == pytest.approx(0.1 + 0.2 * noise.mean(), abs=1e-5)
    assert comparison.paired(better, base, "last")["verdict"] == "behind"
    assert comparison.paired(base, base, "last")["verdict"] == "tie"
    assert common.interval(np.array([0.1]))["verdict"] == "tie", "one patient gives no interval"
    # the interval is Student's t over patients: by hand
    d = 0.1 + 0.2 * noise
    half = 2.262157 * d.std(ddof=1) / np.sqrt(10)
    assert (found["low"], found["high"]) == pytest.approx((d.mean() - half, d.mean() + half), abs=1e-5)
    lines = comparison.table_lines([*base, *same, *better])
    assert [line.split(" | ")[:2] for line in lines[2:5]] == [
        ["| fixmatch", "2"],
        ["| unimatch", "2"],
        ["| semsim_minus", "1"],
    ]
    assert " tie | " in lines[-2] and " ahead | " in lines[-1]
    for case in better[0]["last"]["per_case"].values():
        case["dice"][1] -= 0.2  # behind in one class alone
    cells = comparison.class_lines([*base, *same, *better], "fixmatch")[-1].strip("| ").split(" | ")
    assert cells[:2] == ["semsim_minus", "1"]
    assert [c.split()[-1] for c in cells[2:]] == ["ahead", "ahead", "behind", "ahead"]


def test_the_rest_is_right_as_often_as_the_whole_says():
    """Of 10 positions 6 are agreed on, 3 of them right, and 5 of all: of the other 4 two."""
    assert comparison._elsewhere(0.5, 0.6, 0.5) == pytest.approx(0.5)
    assert comparison._elsewhere(0.8, 0.5, 1.0) == pytest.approx(0.6)
    assert comparison._elsewhere(0.5, 1.0, 0.5) is None and comparison._elsewhere(None, None, None) is None


def test_scores_with_post_processing_stand_beside_the_others():
    """Only where every result has them; a table of results without any says nothing of them."""
    base, better, older = (made_up(m, 0, lambda p, d=d: d + 0.001 * p)
                           for m, d in (("labeled_only", 0.5), ("fixmatch", 0.6), ("semsim_minus", 0.55)))  # fmt: skip
    assert "flips" not in "".join(comparison.table_lines([base, better]))
    for record, gain in ((base, 0.1), (better, 0.2)):
        cases = {c: {**v, "dice": [d + gain for d in v["dice"]]} for c, v in record["last"]["per_case"].items()}
        mean = {"dice": record["last"]["mean"]["dice"] + gain, "hd95": 1.5}
        record["post_processed"] = {**record["last"], "per_case": cases, "mean": mean, "flip_tta": True}
        record["flips"] = record["last"]
    lines = comparison.table_lines([base, better, older], "labeled_only")
    at = next(n for n, line in enumerate(lines) if line.startswith("| flips and largest component"))
    assert [line.split(" | ")[0] for line in lines[at + 2 : at + 4]] == ["| labeled_only", "| fixmatch"]
    assert lines[at + 3].endswith("| 0.804 | 1.5 | 0.605 |") and lines[at + 4] == ""
    assert [line.split(" | ")[4] for line in lines[-2:]] == ["+0.200 (+0.200 to +0.200) ahead", "-"]
    cells = comparison.cells_lines([base, better], "post_processed")
    assert "| FixMatch | 0.804 / 1.5 |" in cells, "a column for each number that was run"
    for record in (base, better):  # patches are not flipped
        record["post_processed"]["flip_tta"] = False
        del record["flips"]
    lines = comparison.table_lines([base, better])
    at = next(n for n, line in enumerate(lines) if line.startswith("| largest component"))
    assert lines[at + 3].endswith("| 0.804 | 1.5 |")


def test_pages_are_filled_from_results(tmp_path):
    for seed in (0, 1):
        for method, dice in (("fixmatch", 0.5), ("semsim_minus", 0.6)):
            record = made_up(method, seed, lambda p, d=dice, s=seed: d + 0.01 * p * (d + 0.1 * s))
            (tmp_path / f"acdc3_{method}_seed{seed}.json").write_text(json.dumps(record))
    tables = (
        "<!-- table acdc3_* against fixmatch -->\nold\n<!-- end -->\nMore.\n<!-- quality acdc3_* -->\n<!-- end -->\n"
        "<!-- classes acdc3_* against fixmatch -->\n<!-- end -->\n"
    )
    page = f"Words.\n{tables}" + "".join(
        f"<!-- {kind} acdc3_* against fixmatch -->\n<!-- end -->\n" for kind in comparison.DRAW
    )
    filled = comparison.fill(page, tmp_path, tmp_path / "figures")
    assert (
        "old" not in filled
        and filled.startswith("Words.")
        and "\nMore.\n" in filled
        and "| semsim_minus | 2 |" in filled
    )
    assert "\n| fixmatch | " + 3 * "0.51 / 0.51 / 0.51 | " + "0.500, -, - |\n" in filled, (
        "means over seeds, no such terms"
    )
    assert comparison.fill(filled, tmp_path) == filled
    pictures = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert pictures == sorted(f"{kind}_acdc3.png" for kind in comparison.DRAW)
    assert all(f"figures/{name}" in filled for name in pictures)
    for kind in ("table", "classes", "differences"):
        with pytest.raises(SystemExit, match="unimatch: no result of this to compare with; there are fixmatch, sem"):
            comparison.fill(f"<!-- {kind} acdc3_* against unimatch -->\n<!-- end -->\n", tmp_path, tmp_path / "figures")


RESULTS = sorted(accuracy.RESULTS.glob("*.json"))


@pytest.mark.parametrize("page", comparison.PAGES, ids=lambda p: p.name)
def test_the_published_pages_are_those_of_the_results(page):
    text = page.read_text()
    assert len(common.MARKED.findall(text)) > 0 and comparison.fill(text, accuracy.RESULTS) == text
    for name in re.findall(r"\]\((figures/\S+)\)", text):
        assert (page.parent / name).stat().st_size > 5000, name


def test_sub_regions_in_3d_are_told_as_measured():
    names = [f"pseudo_labels_la8_64x64x32_300_semsim_minus_seed0_320_regions_{n}.json" for n in (1, 2, 4)]
    a, b, c = (json.loads((common.RESULTS / name).read_text())["p_w2"]["dice"][0] for name in names)
    page = " ".join((BUNDLE / "docs" / "METHOD.md").read_text().split())
    assert f"Dice of p_cr {a:.3f}, {b:.3f} and {c:.3f}" in page


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_published_results_are_of_the_protocol(path):
    record = json.loads(path.read_text())
    splits = common.read_splits(dataset=record.get("dataset", "acdc"))
    assert record["name"] == path.stem and record["command"].startswith(
        "python benchmarks/accuracy.py train --data DIR"
    )
    assert not record["changed_since_commit"], "trained on committed code"
    assert record["steps"] >= record["iterations"] > record["steps"] - record["steps_per_epoch"]
    labelled = splits["labelled"].get(str(record["cases"]), splits["training"])
    assert {accuracy.patient_of(c) for c in record["labelled_cases"]} == set(labelled)
    assert len(labelled) == record["cases"]
    for which in scoring.EVALUATIONS:
        assert {accuracy.patient_of(c) for c in record[which]["per_case"]} == set(splits["validation"])
    assert record["last"]["epochs"][0] * record["steps_per_epoch"] == record["steps"]
    assert len(record["mean_of_last_five"]["epochs"]) == min(5, len(record["validation_curve"]["epoch"]))


def test_results_of_methods_that_are_gone_are_still_read():
    assert {r["method"] for r in comparison.load(RESULTS)} == {*accuracy.METHODS, *comparison.FORMER}


def test_trainings_of_other_lengths_are_no_seeds_of_one():
    found = comparison.load([f"{comparison.RESULTS}/acdc3_224_{n}_fixmatch_seed0.json" for n in (3000, 7500)])
    assert [*comparison.groups_of(found)] == ["fixmatch, 3000 steps", "fixmatch, 7500 steps"]
