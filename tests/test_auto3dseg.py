"""The Auto3DSeg template: an AutoRunner run from two folders of images to an ensemble, and what surrounds it."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
import warm
import yaml
from conftest import ENVIRONMENT as ENV
from conftest import ROOT
from scripts.dataio import slice_axis
from test_volumes import oblique, write

pytest.importorskip("sklearn")
from monai.apps.auto3dseg import AutoRunner, BundleAlgo, BundleGen, import_bundle_algo_history
from monai.apps.auto3dseg.utils import AlgoKeys
from monai.bundle import ConfigParser

TEMPLATES = ROOT / "algo_template"
#: A training of seconds.
QUICK = {"epochs": 2, "val_interval": 1, "batch_size": 4, "spatial_size": [32, 32]}


@pytest.fixture(scope="module", autouse=True)
def import_path():
    """MONAI leaves the folders of templates on the path; the tests that follow do not want them there."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in [n for n in sys.modules if n.split(".")[0] in ("semsim", "segresnet2d")]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """6 labelled, 6 unlabelled, 2 test volumes of mixed sizes, one labelled and one test volume oblique."""
    from scripts.dataio import phantom

    folder = phantom.generate(tmp_path_factory.mktemp("a3d") / "data", seed=3,
                              split={"training": 6, "unlabeled": 6, "testing": 2})  # fmt: skip
    content = json.loads((folder / "datalist.json").read_text())
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    for item in (content["training"][0], content["testing"][0]):
        for file in item.values():
            volume = nib.load(folder / file)
            nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), turn @ volume.affine), folder / file)
    lists = {key: content[key] for key in ("training", "unlabeled", "testing")}
    for number, item in enumerate(lists["training"]):
        item["fold"] = number % 2
    (folder / "a3d.json").write_text(json.dumps(lists))
    return folder


def runner(data: Path, work: Path, **kwargs) -> AutoRunner:
    given = {"modality": "mri", "datalist": str(data / "a3d.json"), "dataroot": str(data), **kwargs.pop("given", {})}
    return AutoRunner(work_dir=str(work), input=given, algos="semsim", templates_path_or_url=str(TEMPLATES), **kwargs)


@pytest.fixture(scope="module")
def work(data, tmp_path_factory) -> Path:
    """A finished AutoRunner run: analysis, generation, training of both folds, ensemble."""
    before, os.environ["PATH"] = os.environ["PATH"], ENV["PATH"]  # MONAI calls `python`
    try:
        folder = tmp_path_factory.mktemp("a3d") / "work"
        tracking = f"sqlite:///{folder.parent}/mlflow.db"
        run = runner(data, folder, mlflow_tracking_uri=tracking, given={"class_names": ["RV", "myocardium", "LV"]})
        run.set_training_params({**QUICK, "num_epochs_per_validation": 1, "num_warmup_epochs": 7})
        run.set_prediction_params({"flip_tta": True})
        run.run()
    finally:
        os.environ["PATH"] = before
    return folder


@pytest.fixture
def warm_trainings(monkeypatch):
    """The commands of an AutoRunner in processes that have MONAI loaded."""
    monkeypatch.setattr(monai.utils.misc, "subprocess", warm)


def load(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def algo_class() -> type:
    """The template's class, imported as MONAI imports it."""
    sys.path.append(str(TEMPLATES))
    return importlib.import_module("semsim.scripts.algo").SemsimAlgo


def inferer(folder: Path, **override):
    files = [str(p) for p in (folder / "configs").iterdir()]
    return load(folder / "scripts" / "infer.py", "InferClass").InferClass(files, **override)


def knowing(folder: Path):
    """Prediction with the shipped weights: what a generated folder needs to predict at all, phantom or not."""
    content = yaml.safe_load((ROOT / "bundle" / "configs" / "inference.yaml").read_text())
    size = json.loads((ROOT / "bundle" / "models" / "training.json").read_text())["spatial_size"]
    return inferer(folder, ckpt_name=str(ROOT / "bundle" / "models" / "model.pt"), spatial_size=[size, size],
                   intensity=content["intensity"])  # fmt: skip


def train(folder: Path, *args: str, check: bool = True, env: dict | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, str(folder / "scripts" / "train.py"), "run", *args]
    result = warm.run(command, env=env or ENV, timeout=200, cwd="/")
    assert not check or result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result


def generated(work: Path, target: Path, **values) -> Path:
    """A copy of fold 0 as it was before training, with other values in its configuration."""
    shutil.copytree(work / "semsim_0", target, ignore=shutil.ignore_patterns("model_fold*"))
    path = target / "configs" / "hyper_parameters.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **QUICK, **values}, sort_keys=False))
    return target


def test_a_run_from_images_to_an_ensemble(work, data):
    for fold in (0, 1):
        folder = work / f"semsim_{fold}" / f"model_fold{fold}"
        assert (folder / "model_best.pt").exists() and (folder / "model_last.pt").exists()
        entries = yaml.safe_load((folder / "progress.yaml").read_text())
        assert [e["epoch"] for e in entries] == [1, 2]
        assert 0 <= entries[-1]["best_avg_dice_score"] <= 1
        settings = json.loads((folder / "training.json").read_text())
        assert settings["spatial_size"] == [32, 32], "a list that arrives as a string"
        assert settings["unlabeled_images"] == 6 and settings["epochs"] == 2
        listed = json.loads((data / "a3d.json").read_text())["training"]
        of_fold = {Path(item["image"]).name.split(".")[0] for item in listed if item["fold"] == fold}
        rows = list(csv.DictReader((folder / "scores.csv").open()))
        assert {row["case"] for row in rows} == of_fold and {row["class"] for row in rows} == {"RV", "myocardium", "LV"}
        assert set(settings["labeled_cases"]).isdisjoint(of_fold) and len(settings["labeled_cases"]) == 3
    history = import_bundle_algo_history(str(work), only_trained=True)
    assert sorted(h[AlgoKeys.ID] for h in history) == ["semsim_0", "semsim_1"]

    outputs = sorted((work / "ensemble_output").rglob("*.nii.gz"))
    tests = [data / item["image"] for item in json.loads((data / "a3d.json").read_text())["testing"]]
    assert [p.name.split("_")[0] for p in outputs] == [p.name.split(".")[0] for p in tests]
    for output, image in zip(outputs, tests):
        a, b = nib.load(output), nib.load(image)
        assert a.shape == b.shape and set(np.unique(a.dataobj)) <= {0, 1, 2, 3}
        np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)


def test_mlflow_has_the_training(work):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{work.parent}/mlflow.db")
    runs = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    assert len(runs) == 2 and all({"loss_u", "loss", "val_mean_dice"} <= set(r.data.metrics) for r in runs)
    assert {Path(r.info.run_name).name for r in runs} == {"model_fold0", "model_fold1"}
    history = client.get_metric_history(runs[0].info.run_id, "val_mean_dice")
    assert [m.step for m in history] == [1, 2], "by epoch of the training"


def test_hyper_parameters_follow_the_data(work, data):
    content = yaml.safe_load((work / "semsim_0" / "configs" / "hyper_parameters.yaml").read_text())
    stats = yaml.safe_load((work / "datastats.yaml").read_text())["stats_summary"]
    assert content["in_channels"] == 1 and content["class_names"] == ["background", "RV", "myocardium", "LV"]
    median = max(stats["image_stats"]["shape"]["median"][:2])
    assert content["spatial_size"][0] % 16 == 0 and abs(content["spatial_size"][0] - median) <= 16
    assert content["working_resolution"] == pytest.approx(stats["image_stats"]["spacing"]["median"][0], rel=0.05)
    assert content["intensity"]["transforms"][0]["_target_"] == "NormalizeIntensityd"
    assert content["epochs"] > 100, "a small data set takes many passes"
    assert all(p.suffix in (".yaml", ".json") for p in (work / "semsim_0" / "configs").iterdir())


def stats(spacing, shape, labels=(0, 1, 2)):
    return {"stats_summary": {
        "image_stats": {"spacing": {"median": list(spacing)}, "shape": {"median": list(shape)}, "channels": {"max": 1}},
        "image_foreground_stats": {"intensity": {"percentile_00_5": -120.0, "percentile_99_5": 240.0}},
        "label_stats": {"labels": list(labels)},
    }}  # fmt: skip


@pytest.mark.parametrize(
    "spacing, shape, given, expected",
    [
        ((1.5, 1.5, 10), (120, 120, 9), {}, ""),
        ((0.9, 0.9, 1.0), (180, 200, 190), {}, ""),
        ((1.5, 1.5, 10), (120, 120, 9), {"sigmoid": True}, "overlap"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": [{"name": "organ", "index": [1, 2]},
                                                        {"name": "tumour", "index": [2]}]}, "overlap"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": ["a", "a"]}, "name of its own"),
        ((1.5, 1.5, 10), (120, 120, 9), {"class_names": ["background"]}, "values 1 to"),
        ((1.5, 1.5, 10), (120, 120, 9), {"dataroot": "/d/set #2"}, "'#'"),
        ((1.5, 1.5, 10), (120, 120, 9), {"extra_modalities": {"image2": "ct"}}, "one image as its channels"),
    ],
)  # fmt: skip
def test_what_is_skipped_and_why(tmp_path, spacing, shape, given, expected):
    algo = algo_class()(str(TEMPLATES))
    (tmp_path / "input.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "stats.yaml").write_text(yaml.safe_dump(stats(spacing, shape)))
    algo.set_data_source(str(tmp_path / "input.yaml"))
    algo.set_data_stats(str(tmp_path / "stats.yaml"))
    skip, reason = algo.pre_check_skip_algo()
    assert skip == bool(expected)
    assert not expected or re.search(expected, reason), reason
    (tmp_path / "stats.yaml").write_text(yaml.safe_dump(stats((1, 1, 8), (99, 99, 9), labels=(0, 2))))
    if not given:
        assert "renumber" in algo.pre_check_skip_algo()[1]


@pytest.mark.parametrize(
    "spacing, shape, given, dims, why",
    [
        ((1.5, 1.5, 10), (120, 120, 9), {}, 2, "ratio 6.67, 3 or more"),
        ((1, 1, 3), (256, 256, 90), {}, 2, "ratio 3, 3 or more"),
        ((3, 0.9, 0.9), (60, 256, 256), {}, 2, "3 or more"),
        ((0.7, 0.7, 1.5), (512, 512, 300), {}, 3, "below 3"),
        ((0.9, 0.9, 1.0), (180, 200, 190), {}, 3, "median shape 180 x 200 x 190, at least 32"),
        ((1, 1, 1), (256, 256, 10), {}, 2, "fewer slices"),  # an identity affine: the shape tells
        ((1, 1, 1), (180, 200, 190), {}, 3, "perhaps none stated"),
        ((0.9, 0.9, 1.0), (512, 512, 31), {}, 2, "fewer slices than the 32 of a patch"),
        ((0.9, 0.9, 1.0), (512, 512, 32), {}, 3, "at least 32"),
        ((1, 1, 1), (256, 256, 1), {}, 2, "no volume"),
        ((1, 1), (256, 256), {}, 2, "no volume"),
        ((0.9, 0.9, 1.0), (180, 200, 190), {"force_2d": True}, 2, "force_2d in the input"),
        ((1.5, 1.5, 10), (120, 120, 9), {"force_3d": True}, 3, "force_3d in the input"),
        ((1.5, 1.5, 10), (120, 120, 9), {"force_3d": False}, 2, "3 or more"),
    ],
)
def test_slices_or_volumes(spacing, shape, given, dims, why):
    algo_class()
    module = importlib.import_module("semsim.scripts.dimensions")
    found, reason = module.dimensions(given, np.array(spacing, float), np.array(shape, float), [64, 64, 32])
    assert found == dims and why in reason, reason
    assert given or slice_axis.worth_3d(spacing, shape) == (dims == 3), "`datalist create` says the same"


def test_dimensions_that_cannot_be_meant_are_refused(tmp_path):
    for given, shape, expected in (
        ({"force_2d": True, "force_3d": True}, (99, 99, 99), "one of them at most, received both"),
        ({"force_3d": True}, (99, 99, 1), "expected volumes, received images of 99 x 99 x 1"),
    ):
        algo = filled(tmp_path, stats((1, 1, 1), shape), given)
        with pytest.raises(ValueError, match=expected) as error:
            algo.pre_check_skip_algo()
        assert error.type.__name__ == "InputError"
        with pytest.raises(ValueError, match=expected):
            algo.export_to_disk(str(tmp_path), "semsim_0", fold=0)


@pytest.mark.parametrize(
    "shape, gigabytes, gpu, expected",
    [
        ((180, 200, 190), 64, False, [64, 64, 32]),  # without a GPU, time is short before memory is
        ((180, 200, 190), 0.5, True, [64, 64, 32]),
        ((180, 200, 190), 12, True, [96, 96, 64]),
        ((180, 200, 190), 80, True, [128, 128, 96]),
        ((100, 200, 40), 80, True, [96, 128, 32]),
        ((40, 50, 12), 80, False, [32, 48, 16]),
    ],
)
def test_patches_follow_memory_and_median_shape(shape, gigabytes, gpu, expected):
    algo_class()
    module = importlib.import_module("semsim.scripts.dimensions")
    overlay = yaml.safe_load((ROOT / "bundle" / "configs" / "volumes.yaml").read_text())
    sizes = module.of_patches(np.array(shape, float), overlay, 1e9 * gigabytes, gpu=gpu)
    assert sizes.values == {"spatial_size": expected}


def filled(folder: Path, statistics: dict, given: dict):
    """The algorithm of an input of four labelled volumes."""
    algo = algo_class()(str(TEMPLATES))
    algo.name = "semsim"
    items = [{"image": f"{k}.nii.gz", "label": f"l{k}.nii.gz"} for k in range(4)]
    (folder / "list.json").write_text(json.dumps({"training": items}))
    given = {"modality": "ct", "datalist": str(folder / "list.json"), "dataroot": str(folder), **given}
    (folder / "input.yaml").write_text(yaml.safe_dump(given))
    (folder / "stats.yaml").write_text(yaml.safe_dump(statistics))
    algo.set_data_source(str(folder / "input.yaml"))
    algo.set_data_stats(str(folder / "stats.yaml"))
    return algo


def test_a_fold_in_3d_takes_its_settings_from_the_overlay(tmp_path, caplog):
    """What the template does not choose, and what the user does."""
    given = {"roi_size": "48,48,32", "foreground": 0.7, "spatial_dims": 2, "loss#lambda_u": 0.4}
    for number, more in enumerate(({}, given)):
        algo = filled(tmp_path, stats((0.8, 0.8, 1.0), (180, 200, 190)), more)
        algo.export_to_disk(str(tmp_path), f"semsim_{number}", fold=number)
        configs = tmp_path / f"semsim_{number}" / "configs"
        content = yaml.safe_load((configs / "hyper_parameters.yaml").read_text())
        assert content["spatial_dims"] == 3 and "ratio 1.25, below 3" in content["spatial_dims_because"]
        parser = ConfigParser()
        parser.read_config([str(configs / f"{n}.yaml") for n in ("train", "volumes", "hyper_parameters")])
        assert parser["fusion"] == "conv" and parser["spacing"] == "auto" and parser["early_sizes"] == []
        assert parser["loss"]["regions"] == 1 and parser["epochs"] == 750, "3000 steps of 4 patches of 4 volumes"
        assert parser["spatial_size"] == ([48, 48, 32] if more else [64, 64, 32])
        assert parser["foreground"] == (0.7 if more else 0.5) and parser["loss"]["lambda_u"] == (0.4 if more else 0.5)
        metadata = json.loads((configs / "metadata.json").read_text())
        assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == ["16*n"] * 3
    assert "spatial_dims stays as generated" in caplog.text
    assert [r.message for r in caplog.records if "trains in 3D: median spacing" in r.message][1].startswith(
        str(tmp_path)
    )
    algo.export_to_disk(str(tmp_path), "semsim_1_lr", fill_with_datastats=False, learning_rate=0.1)
    again = yaml.safe_load((tmp_path / "semsim_1_lr" / "configs" / "hyper_parameters.yaml").read_text())
    changed = {k for k in again.keys() | content.keys() if again.get(k) != content.get(k)}
    assert changed == {"bundle_root", "generated_in", "learning_rate"}


@pytest.fixture(scope="module")
def isotropic(tmp_path_factory) -> Path:
    """A CT of 1.5 mm: 4 labelled volumes in two folds, 2 unlabelled ones, and an oblique one of test."""
    folder = tmp_path_factory.mktemp("isotropic")
    places = [None] * 6 + [oblique((1.5, 1.5, 1.5), (2, 0, 1), (-1, 1, 1))]
    items = [write(folder, f"ct{k}", (36, 34, 32 + k), place, seed=k) for k, place in enumerate(places)]
    named = [{key: str(Path(path).relative_to(folder)) for key, path in item.items()} for item in items]
    images = [{"image": item["image"]} for item in named]
    training = [{**item, "fold": k % 2} for k, item in enumerate(named[:4])]
    lists = {"training": training, "unlabeled": images[4:6], "testing": images[6:]}
    (folder / "a3d.json").write_text(json.dumps(lists))
    return folder


def test_isotropic_volumes_are_trained_in_3d_and_ensembled_with_slices(
    isotropic, tmp_path, monkeypatch, warm_trainings
):
    """Fold 0 as the template chooses, fold 1 of a run with ``force_2d``."""
    monkeypatch.setenv("PATH", ENV["PATH"])
    work = tmp_path / "work"
    runner(isotropic, work, given={"modality": "ct", "force_2d": True}, train=False, ensemble=False).run()
    run = runner(isotropic, work, given={"modality": "ct"}, analyze=False, algo_gen=True)
    run.set_num_fold(1)
    quick = {**QUICK, "batch_size": 2, "steps_per_epoch": 2, "spatial_size": 32, "features": [4, 4, 8, 8, 8, 4]}
    run.set_training_params(quick)
    run.set_ensemble_method("AlgoEnsembleBestN", n_best=2)
    run.run()
    for fold, dims in ((0, 3), (1, 2)):
        folder = work / f"semsim_{fold}" / f"model_fold{fold}"
        settings = json.loads((folder / "training.json").read_text())
        assert settings["spatial_dims"] == dims and settings["unlabeled_images"] == 2
        assert settings["flip_tta"] == (dims == 2)
        assert settings["spacing"] == ([1.5] * 3 if dims == 3 else None)
        assert {row["case"] for row in csv.DictReader((folder / "scores.csv").open())} == {f"ct{fold}", f"ct{fold + 2}"}
        assert [e["epoch"] for e in yaml.safe_load((folder / "progress.yaml").read_text())] == [1, 2]

    # the ensemble is the mean of both, on the grid of an oblique file
    (output,) = (work / "ensemble_output").rglob("*.nii.gz")
    image = nib.load(isotropic / "images" / "ct6.nii.gz")
    found = np.asarray(nib.load(output).dataobj)
    np.testing.assert_allclose(nib.load(output).affine, image.affine, atol=1e-4)
    p = [inferer(work / f"semsim_{fold}").infer({"image": image.get_filename()}) for fold in (0, 1)]
    assert all(x.shape == (3, *image.shape) and np.allclose(x.affine, image.affine, atol=1e-4) for x in p)
    assert all(torch.allclose(x.sum(dim=0), torch.ones(image.shape), atol=1e-4) for x in p)
    assert (found == torch.stack([x.as_tensor() for x in p]).mean(dim=0).argmax(dim=0).numpy()).mean() > 0.999

    # stored mirrored and turned it is predicted alike, voxel by voxel
    axes = np.array([[1, -1], [2, 1], [0, -1]])
    nib.save(image.as_reoriented(axes), tmp_path / "other.nii.gz")
    other = inferer(work / "semsim_0").infer(str(tmp_path / "other.nii.gz")).numpy()
    turned = np.stack([nib.orientations.apply_orientation(x, axes) for x in p[0].numpy()])
    np.testing.assert_allclose(other, turned, rtol=0, atol=1e-5)
    assert turned.std(axis=(1, 2, 3)).min() > 1e-4, "otherwise it says nothing"

    # as a bundle it goes on where it stopped
    files = "['configs/train.yaml','configs/volumes.yaml','configs/hyper_parameters.yaml']"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files, "--bundle_root", "."]
    command += [part for key, value in {**quick, "epochs": 3}.items() for part in (f"--{key}", str(value))]
    result = warm.run(command, cwd=work / "semsim_0", env=ENV, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    log = list(csv.DictReader((work / "semsim_0" / "model_fold0" / "training_log.csv").open()))
    assert [row["epoch"] for row in log] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("given", "labels", "names"),
    [
        (["RV", "Myo", "LV"], [0, 1, 2, 3], ["background", "RV", "Myo", "LV"]),
        (["RV", "Myo", "LV"], [0, 1, 2], ["background", "RV", "Myo", "LV"]),  # no labelled scan shows the third
        (["RV", "Myo", "LV"], [0, 2, 3], ["background", "RV", "Myo", "LV"]),
        (["Background", "RV", "Myo"], [0, 1, 2], ["Background", "RV", "Myo"]),
        (None, [0, 1, 2], ["background", "class 1", "class 2"]),
    ],
)
def test_a_name_belongs_to_one_value(given, labels, names):
    """Whatever values the labelled scans happen to show."""
    algo_class()
    assert importlib.import_module("semsim.scripts.algo")._class_names(given, labels) == names


def test_data_that_moved_along_are_found(tmp_path, caplog):
    caplog.set_level("INFO")
    algo_class()
    moved_along = importlib.import_module("semsim.scripts.options").moved_along
    old, new = tmp_path / "old", tmp_path / "new" / "deeper"
    for place in (old, new):
        (place / "work" / "semsim_0").mkdir(parents=True)
        (place / "list.json").touch()
    (old / "only.json").touch()
    here, there = str(old / "work" / "semsim_0"), str(new / "work" / "semsim_0")
    assert moved_along(str(old / "list.json"), here, here) == str(old / "list.json")
    assert moved_along(str(old / "list.json"), here, there) == str(new / "list.json") and here in caplog.text
    assert moved_along(str(old / "only.json"), here, there) == str(old / "only.json"), "it did not move"
    assert moved_along(str(old / "list.json"), None, there) == str(old / "list.json")


def test_ct_names_and_input_keys(tmp_path, caplog):
    """A CT range, named label groups, and keys of the input that override what the data suggest."""
    algo = algo_class()(str(TEMPLATES))
    algo.name = "semsim"
    items = [{"image": f"{k}.nii.gz", "label": f"l{k}.nii.gz"} for k in range(4)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items, "testing": [{"image": "t.nii.gz"}]}))
    given = {"modality": "CT", "datalist": str(tmp_path / "list.json"), "dataroot": str(tmp_path),
             "class_names": [{"name": "liver", "index": [1]}, {"name": "lesion", "index": [2, 3]}],
             "learning_rate": 0.03, "num_epochs": 12, "auto_scale_allowed": True, "loss#lambda_u": 0.4,
             "roi_size": [96, 96, 32], "learnin_rate": 1, "output_dir": "elsewhere"}  # fmt: skip
    (tmp_path / "input.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "stats.yaml").write_text(yaml.safe_dump(stats((0.8, 0.8, 5), (512, 512, 60), (0, 1, 2, 3))))
    algo.set_data_source(str(tmp_path / "input.yaml"))
    algo.set_data_stats(str(tmp_path / "stats.yaml"))
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=1, gpu_customization=True, no_such_key=5)
    content = yaml.safe_load((tmp_path / "semsim_0" / "configs" / "hyper_parameters.yaml").read_text())
    assert content["class_names"] == ["background", "liver", "lesion 2", "lesion 3"]
    assert (content["intensity"]["a_min"], content["intensity"]["a_max"]) == (-120.0, 240.0)
    assert content["epochs"] == 12 and content["learning_rate"] == 0.03 and content["fold"] == 1
    assert content["working_resolution"] > 0.8 and not {"no_such_key", "learnin_rate", "auto_scale_allowed"} & set(
        content
    )
    assert "no key no_such_key" in caplog.text and "input.yaml: SemSim has no key auto_scale_allowed" in caplog.text
    assert "no key learnin_rate (is learning_rate meant?)" in caplog.text
    # keys within the configuration; a size of three dimensions is for other algorithms; results stay where they belong
    assert content["loss#lambda_u"] == 0.4
    assert content["spatial_size"] == [128, 128] and "roi_size [96, 96, 32]" in caplog.text
    assert content["output_dir"] == "$@bundle_root + '/model_fold' + str(@fold)" and "output_dir stays" in caplog.text
    parser = ConfigParser()
    parser.read_config([str(tmp_path / "semsim_0" / "configs" / f"{n}.yaml") for n in ("train", "hyper_parameters")])
    assert parser["loss"]["lambda_u"] == 0.4
    assert parser.get_parsed_content("val_interval") == 1
    parser["epochs"] = 60
    assert parser.get_parsed_content("val_interval") == 3, "20 validations, whatever epochs is set to"
    with pytest.raises(ValueError, match=r"spatial_size .* expected the pixels of a slice, one or two numbers"):
        algo.export_to_disk(str(tmp_path), "semsim_1", fold=1, spatial_size=[96, 96, 32])
    # minutes stand in for the epochs that the input gives, and for the validations that follow from them
    algo.export_to_disk(str(tmp_path), "semsim_2", fold=1, minutes=7)
    by_clock = yaml.safe_load((tmp_path / "semsim_2" / "configs" / "hyper_parameters.yaml").read_text())
    assert by_clock["minutes"] == 7 and by_clock["epochs"] is None
    parser.update({"minutes": 7, "epochs": None})
    assert parser.get_parsed_content("val_interval") is None
    algo.export_to_disk(str(tmp_path), "semsim_0", fold=1)
    # a search writes the same records elsewhere, with a value changed
    json.dumps(algo.state_dict())
    algo.export_to_disk(str(tmp_path), "semsim_0_lr", fill_with_datastats=False, learning_rate=0.1)
    again = yaml.safe_load((tmp_path / "semsim_0_lr" / "configs" / "hyper_parameters.yaml").read_text())
    changed = {k for k in again if again[k] != content[k]}
    assert changed == {"bundle_root", "generated_in", "learning_rate"} and again["learning_rate"] == 0.1
    assert (tmp_path / "semsim_0_lr" / "scripts" / "training" / "trainer.py").exists()


def test_a_moved_folder_trains_and_predicts_without_the_package(work, data, tmp_path):
    folder = generated(work, tmp_path / "elsewhere")
    block = tmp_path / "block"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'semsim_bundle':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    env = {**ENV, "PYTHONPATH": str(block)}
    absent = warm.run([sys.executable, "-c", "import semsim_bundle"], env=env)
    assert absent.returncode == 1 and "ModuleNotFoundError: semsim_bundle" in absent.stderr
    result = train(folder, "--epochs=1", "--no_such_key=3", "--num_warmup_epochs=2", env=env)
    assert all(f"no key {key}" in result.stderr for key in ("no_such_key", "num_warmup_epochs"))
    assert (folder / "model_fold0" / "model_best.pt").exists(), "in its new place"
    output = tmp_path / "seg.nii.gz"
    image = next(iter(sorted((data / "images").iterdir())))
    command = [sys.executable, str(folder / "scripts" / "infer.py"), str(image), str(output)]
    warm.run(command, env=env, check=True, cwd="/")
    assert nib.load(output).shape == nib.load(image).shape
    # more epochs go on where it stopped
    train(folder, "--epochs=2", env=env)
    assert [r["epoch"] for r in csv.DictReader((folder / "model_fold0" / "training_log.csv").open())] == ["1", "2"]
    entries = yaml.safe_load((folder / "model_fold0" / "progress.yaml").read_text())
    assert [e["epoch"] for e in entries] == [1, 2]


def test_the_generated_folder_is_a_bundle(work, tmp_path):
    folder = generated(work, tmp_path / "bundle", bundle_root=".")
    files = "['configs/train.yaml','configs/hyper_parameters.yaml']"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files, "--epochs", "1"]
    result = warm.run(command, cwd=folder, env=ENV, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / "model_fold0" / "model_last.pt").exists()


def test_unlabelled_images_are_read_and_change_the_parameters(work, data, tmp_path):
    """Runs that differ in the weight of an unlabelled term alone: same seed, batches and batch-norm statistics."""
    states = []
    for number, weight in enumerate((0.5, 0.1, 0.5)):
        folder = generated(work, tmp_path / str(number), epochs=1, **{"loss#threshold": 0.3})
        train(folder, f"--loss#lambda_u={weight}", "--loss#lambda_intra=0.0", "--loss#lambda_cross=0.0")
        states.append(torch.load(folder / "model_fold0" / "model_last.pt", weights_only=True))
        log = next(csv.DictReader((folder / "model_fold0" / "training_log.csv").open()))
        assert float(log["loss_u"]) > 0 and float(log["mask_u"]) > 0
    names = [n for n in states[0] if n.startswith("backbone") and n.endswith("weight")]
    assert all(torch.equal(states[0][n], states[2][n]) for n in names), "nothing else makes a difference"
    assert all(not torch.equal(states[0][n], states[1][n]) for n in names) and len(names) > 20
    # each one is opened: one that is missing is named
    folder = generated(work, tmp_path / "missing")
    listed = json.loads((data / "a3d.json").read_text())
    listed["unlabeled"].append({"image": "images/nowhere.nii.gz"})
    (tmp_path / "list.json").write_text(json.dumps(listed))
    result = train(folder, f"--data_list_file_path={tmp_path / 'list.json'}", check=False)
    assert result.returncode == 1 and "nowhere.nii.gz: no such image" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--data_list_file_path=/nowhere.json", "/nowhere.json: no such datalist"),
        ("--use_unlabeled=perhaps", "use_unlabeled: expected true or false, received 'perhaps'"),
        ("--spatial_size=32,32,8", "spatial_size [32, 32, 8]: expected the pixels of a slice"),
    ],
)
def test_bad_options_get_one_line(work, tmp_path, argument, message):
    folder = generated(work, tmp_path / "fold")
    result = train(folder, argument, check=False)
    assert result.returncode == 1 and f"ERROR: {message}" in result.stderr.replace("command line: ", "")
    assert "Traceback" not in result.stderr
    assert message.split(":")[0] in (folder / "model_fold0" / "training.log").read_text()


def test_strings_of_a_command_line():
    sys.path.append(str(TEMPLATES))
    options = importlib.import_module("semsim.scripts.options")
    converted = options.converted
    known = ConfigParser()
    known.read_config(str(ROOT / "bundle" / "configs" / "train.yaml"))
    given = {"class_names": "background,RV", "roi_size": "32,32", "fusion_checkpoint": "true"}
    expected = {"class_names": ["background", "RV"], "spatial_size": [32, 32], "fusion_checkpoint": True}
    assert options.understood(given, known, source="") == expected
    for value, like, expected in [
        ("16,16", 224, [16, 16]),
        ((16, 16), None, [16, 16]),
        ("background,RV", ["background"], ["background", "RV"]),
        ("[a, b]", ["c"], ["a", "b"]),
        ("False", True, False),
        ("true", False, True),
        ("a,b", "c", "a,b"),
        ("$max(1, 2)", 1, "$max(1, 2)"),
        (3, True, 3),
    ]:
        assert converted(value, like, "key") == expected, value


def test_an_interrupted_fold_counts_as_untrained_and_goes_on(work, data, tmp_path):
    """Killed after its first validation, it has a score and weights; AutoRunner has to train on, not ensemble it."""
    folder = generated(work, tmp_path / "work" / "semsim_0", epochs=6)
    meta = json.loads((folder / "algo_object.json").read_text())
    meta = json.loads(json.dumps(meta).replace(str(work / "semsim_0"), str(folder)))
    (folder / "algo_object.json").write_text(json.dumps({k: v for k, v in meta.items() if k != "best_metric"}))
    output = folder / "model_fold0"
    process = warm.Popen([sys.executable, str(folder / "scripts" / "train.py"), "run"], env=ENV)
    end = time.monotonic() + 120
    while not list(output.glob("resume_checkpoint_*.pt")) or not (output / "progress.yaml").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert import_bundle_algo_history(str(tmp_path / "work"), only_trained=True) == []
    train(folder)
    assert [r["epoch"] for r in csv.DictReader((output / "training_log.csv").open())] == list("123456")
    (found,) = import_bundle_algo_history(str(tmp_path / "work"), only_trained=True)
    assert found[AlgoKeys.SCORE] == yaml.safe_load((output / "progress.yaml").read_text())[-1]["best_avg_dice_score"]
    # a restart with other settings is refused and leaves everything as it was
    before = {p.name: p.read_bytes() for p in output.iterdir() if p.is_file() and p.name != "training.log"}
    result = train(folder, "--seed=5", check=False)
    assert result.returncode == 1 and "began with other settings (seed: expected 0, received 5)" in result.stderr
    assert before == {p.name: p.read_bytes() for p in output.iterdir() if p.is_file() and p.name != "training.log"}
    log = (output / "training.log").read_text()
    assert "epoch 6/6" in log and "validation after epoch 6" in log and "other settings" in log


def test_a_folder_with_blanks_in_its_name_is_trained_by_another(tmp_path, monkeypatch, caplog):
    """MONAI would cut the command there; and what has finished before says what goes on."""
    algo = algo_class()()
    algo.output_path = str(tmp_path / "my work" / "semsim_0")
    (Path(algo.output_path) / "model_fold0").mkdir(parents=True)
    trained = []

    def remembered(self, *_) -> None:
        trained.append((self.output_path, Path(self.output_path).resolve()))

    monkeypatch.setattr(BundleAlgo, "train", remembered)
    algo.train()
    ((link, place),) = trained
    assert " " not in link and place == Path(algo.output_path) and not Path(link).exists(), "the link goes with it"
    assert not caplog.records
    progress = [{"best_avg_dice_score": 0.5, "finished": True}]
    (place / "model_fold0" / "progress.yaml").write_text(yaml.safe_dump(progress))
    algo.train()
    (record,) = caplog.records
    assert "finished before, mean Dice 0.500" in record.message and "another work_dir" in record.message


def test_input_that_has_changed_is_named(work, data, tmp_path, caplog):
    """AutoRunner called again skips what is finished, whatever the input says; with the same one nothing is said."""
    again = tmp_path / "work"
    shutil.copytree(work, again, ignore=shutil.ignore_patterns("ensemble_output"))
    for file in again.glob("semsim_*/algo_object.json"):
        file.write_text(file.read_text().replace(str(work), str(again)))
    names = {"class_names": ["RV", "myocardium", "LV"]}
    runner(data, again, given=names, ensemble=False)
    assert len(import_bundle_algo_history(str(again), only_trained=True)) == 2
    assert not [r for r in caplog.records if "differs" in r.message]
    lists = json.loads((data / "a3d.json").read_text())
    lists["training"].pop()
    (tmp_path / "fewer.json").write_text(json.dumps(lists))
    given = {**names, "datalist": str(tmp_path / "fewer.json"), "epochs": 9}
    runner(data, again, given=given).run()
    (told,) = [r.message for r in caplog.records if "differs" in r.message]
    assert "(datalist: training, epochs)" in told and str(again) in told and "another work_dir" in told


@pytest.mark.parametrize("asked", [False, True])
def test_without_an_unlabelled_list(work, data, tmp_path, asked):
    """Test images serve only where that is asked for; a fold that nothing validates scores 0, not NaN."""
    listed = json.loads((data / "a3d.json").read_text())
    del listed["unlabeled"]
    for item in listed["training"]:
        item["fold"] = 1
    (tmp_path / "list.json").write_text(json.dumps(listed))
    folder = generated(work, tmp_path / "fold", use_testing_as_unlabeled=not asked, epochs=1, batch_size=2)
    result = train(folder, f"--data_list_file_path={tmp_path / 'list.json'}",
                   f"--use_testing_as_unlabeled={str(asked).lower()}")  # fmt: skip
    settings = json.loads((folder / "model_fold0" / "training.json").read_text())
    assert settings["unlabeled_images"] == (2 if asked else 0)
    said = "2 images of `testing` as unlabelled ones" if asked else "Supervised training: the datalist has no images"
    assert said in result.stderr and ("left out unless" in result.stderr) == (not asked)
    (entry,) = yaml.safe_load((folder / "model_fold0" / "progress.yaml").read_text())
    assert entry["best_avg_dice_score"] == 0.0 and entry["finished"]


def test_each_process_of_an_ensemble_takes_its_own_gpu(work, monkeypatch):
    own_device = load(work / "semsim_0" / "scripts" / "infer.py", "Infer").own_device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device() == "cuda:3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == "cpu"


def test_probabilities_on_the_grid_of_the_file(work, data):
    item = json.loads((data / "a3d.json").read_text())["testing"][0]  # oblique
    plain, flipped = (inferer(work / "semsim_0", flip_tta=t, rank=0, n_best=1, output_dir="x") for t in (False, True))
    assert list(plain.inferer.roi_size) == [32, 32], "the size of the training"
    p, q = (i.infer({"image": str(data / item["image"])}) for i in (plain, flipped))
    volume = nib.load(data / item["image"])
    assert p.shape == q.shape == (4, *volume.shape)
    np.testing.assert_allclose(np.asarray(p.affine), volume.affine, atol=1e-4)
    assert item["image"].split("/")[-1] in p.meta["filename_or_obj"]
    for x in (p, q):
        assert torch.allclose(x.sum(dim=0), torch.ones(x.shape[1:]), atol=1e-4) and x.min() >= -1e-5
    assert not torch.allclose(p.as_tensor(), q.as_tensor(), atol=1e-3), "flips change something"


@pytest.mark.parametrize(
    "axes", [[[0, -1], [1, 1], [2, 1]], [[1, 1], [0, -1], [2, 1]], [[2, 1], [1, -1], [0, 1]]], ids=str
)
def test_the_right_side_stays_the_right_side(work, data, tmp_path, axes):
    """The same anatomy stored mirrored, turned, or with the slices first is predicted alike, voxel by voxel."""
    item = json.loads((data / "a3d.json").read_text())["testing"][1]
    volume = nib.load(data / item["image"])
    other = volume.as_reoriented(np.array(axes))
    nib.save(other, tmp_path / "other.nii.gz")
    predict = knowing(work / "semsim_0")
    a = predict.infer(str(data / item["image"])).numpy()
    b = predict.infer(str(tmp_path / "other.nii.gz")).numpy()
    assert b.shape[1:] == other.shape
    turned = np.stack([nib.orientations.apply_orientation(x, axes) for x in a])
    assert np.abs(turned - b).max() < 0.02
    assert turned.shape != a.shape or np.abs(a - b).max() > 0.5, "otherwise it says nothing"


def test_an_oblique_volume_is_segmented_where_its_organs_are(work, data):
    item = json.loads((data / "a3d.json").read_text())["testing"][0]
    classes = knowing(work / "semsim_0").infer({"image": str(data / item["image"])}).argmax(dim=0).numpy()
    truth = np.asarray(nib.load(data / item["label"]).dataobj)
    dice = [2 * ((classes == c) & (truth == c)).sum() / ((classes == c).sum() + (truth == c).sum()) for c in (1, 2, 3)]
    assert np.mean(dice) > 0.4, dice


def test_folds_of_different_code_meet_in_one_process(work, data, tmp_path, monkeypatch):
    """Each uses its own modules, in either order, and a foreign package called scripts is left alone."""
    foreign = types.ModuleType("scripts")
    monkeypatch.setitem(sys.modules, "scripts", foreign)
    for name in [n for n in sys.modules if n.startswith("scripts.")]:
        monkeypatch.delitem(sys.modules, name)
    first, second = work / "semsim_0", tmp_path / "semsim_9"
    shutil.copytree(first, second)
    network = second / "scripts" / "method" / "network.py"
    source = network.read_text()
    changed = source.replace("return self.backbone(image)", "return self.backbone(image) * 0", 1)
    assert changed != source
    network.write_text(changed)
    image = str(data / json.loads((data / "a3d.json").read_text())["testing"][0]["image"])
    expected = inferer(first).infer(image)
    other = inferer(second).infer(image)
    assert torch.allclose(other[1:, 20:60, 20:60].as_tensor(), torch.tensor(0.25), atol=1e-3)
    assert torch.equal(inferer(first).infer(image).as_tensor(), expected.as_tensor())
    assert sys.modules["scripts"] is foreign and not any(n.startswith("scripts.") for n in sys.modules)


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
    log = next(csv.DictReader((found / "model_fold0" / "training_log.csv").open()))
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


def test_nni_dry_run(data, tmp_path):
    """AutoRunner prepares the search and says how to start it."""
    pytest.importorskip("nni")
    run = runner(data, tmp_path / "work", hpo=True, ensemble=False)
    run.set_num_fold(1)
    run.set_hpo_params({"nni_dry_run": True, "epochs": 1})
    run.set_nni_search_space({"learning_rate": {"_type": "choice", "_value": [0.01, 0.03]}})
    run.run()
    config = yaml.safe_load((tmp_path / "work" / "semsim_0_nni_config.yaml").read_text())
    assert config["search_space"]["learning_rate"]["_value"] == [0.01, 0.03]
    copied = tmp_path / "work" / "semsim_0_override" / "configs" / "hyper_parameters.yaml"
    assert yaml.safe_load(copied.read_text())["epochs"] == 1


def test_the_benchmark_of_the_template(data, tmp_path, monkeypatch, capsys, warm_trainings):
    """With and without the list, the same number of steps, scored on patients whose labels it never saw."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
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
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import auto3dseg

    page = (ROOT / "benchmarks" / "AUTO3DSEG.md").read_text()
    assert auto3dseg.fill(page) == page and page.count("| with unlabeled |") == 1
    record = json.loads((ROOT / "benchmarks" / "results" / "auto3dseg_acdc.json").read_text())
    difference = record["with_unlabeled"]["mean"]["dice"] - record["without"]["mean"]["dice"]
    assert f"{difference:.3f} mean Dice" in page


def test_several_processes(work, tmp_path):
    folder = generated(work, tmp_path / "fold", epochs=1, batch_size=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(folder / "scripts" / "train.py"), "run"]  # fmt: skip
    result = warm.run(command, env=ENV, timeout=250)
    assert result.returncode == 0, result.stderr[-3000:]
    (entry,) = yaml.safe_load((folder / "model_fold0" / "progress.yaml").read_text())
    assert 0 <= entry["best_avg_dice_score"] <= 1 and (folder / "model_fold0" / "scores.csv").exists()
