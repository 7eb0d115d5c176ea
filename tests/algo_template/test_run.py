"""The Auto3DSeg template: an AutoRunner run from two folders of images to an ensemble, and what follows from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers import read_rows
from monai.apps.auto3dseg import BundleAlgo, import_bundle_algo_history
from monai.apps.auto3dseg.utils import AlgoKeys

from .folds import algo_class, runner


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
        rows = read_rows(folder / "scores.csv")
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
