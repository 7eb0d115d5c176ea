"""The training of one generated folder: moved, interrupted, with and without unlabelled images."""

from __future__ import annotations

import json
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch
import warm
import yaml
from conftest import ENVIRONMENT as ENV
from helpers import read_rows
from monai.apps.auto3dseg import import_bundle_algo_history
from monai.apps.auto3dseg.utils import AlgoKeys

from .folds import generated, inferer, train


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
    output = tmp_path / "seg.v1.nii.gz"
    image = next(iter(sorted((data / "images").iterdir())))
    command = [sys.executable, str(folder / "scripts" / "infer.py"), str(image), str(output)]
    warm.run(command, env=env, check=True, cwd="/")
    assert nib.load(output).shape == nib.load(image).shape
    whole, one = nib.load(image), tmp_path / "one.nii.gz"
    nib.save(whole.slicer[..., 2:3], one)
    warm.run([*command[:2], str(one), str(tmp_path / "one_seg.nii.gz")], env=env, check=True, cwd="/")
    written = nib.load(tmp_path / "one_seg.nii.gz")
    assert written.shape == (*whole.shape[:2], 1), "its third axis and place are kept"
    assert np.allclose(written.affine, nib.load(one).affine, atol=1e-4)
    refusals = {
        "--flip_tts=False": "Unknown option --flip_tts; see --help.",
        str(output): f"{output}: exists already; give another name.",
        str(tmp_path / "seg.png"): "expected an image of one slice for predictions in .png",
    }
    for last, said in refusals.items():  # one line each
        refused = warm.run([*command[:3], last], env=env, cwd="/", capture_output=True, text=True)
        assert refused.returncode == 1 and said in refused.stderr.splitlines()[-1], refused.stderr
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "seg.png").exists()
    # more epochs go on where it stopped
    train(folder, "--epochs=2", env=env)
    assert [r["epoch"] for r in read_rows(folder / "model_fold0" / "training_log.csv")] == ["1", "2"]
    entries = yaml.safe_load((folder / "model_fold0" / "progress.yaml").read_text())
    assert [e["epoch"] for e in entries] == [1, 2]


def test_the_generated_folder_is_a_bundle(work, tmp_path):
    folder = generated(work, tmp_path / "bundle", bundle_root=".")
    files = "['configs/train.yaml','configs/hyper_parameters.yaml']"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files, "--epochs", "1"]
    result = warm.run(command, cwd=folder, env=ENV, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (folder / "model_fold0" / "model_last.pt").exists()


def test_a_window_is_repeated_by_the_prediction(work, data, tmp_path):
    folder = generated(work, tmp_path / "fold")
    train(folder, "--epochs=1", "--window=-1000000,1000000")
    image = next(iter(sorted((data / "images").iterdir())))
    seen = inferer(folder).preprocessing({"image": str(image)})["image"]
    assert float(seen.median()) == pytest.approx(0.5, abs=0.01), "far from both ends"


def test_unlabelled_images_are_read_and_change_the_parameters(work, data, tmp_path):
    """Runs that differ in the weight of an unlabelled term alone: same seed, batches and batch-norm statistics."""
    states = []
    for number, weight in enumerate((0.5, 0.1, 0.5)):
        folder = generated(work, tmp_path / str(number), epochs=1, **{"loss#threshold": 0.3})
        train(folder, f"--loss#lambda_u={weight}", "--loss#lambda_intra=0.0", "--loss#lambda_cross=0.0")
        states.append(torch.load(folder / "model_fold0" / "model_last.pt", weights_only=True))
        log = read_rows(folder / "model_fold0" / "training_log.csv")[0]
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
        ("--learning_rate=1e-3s", "learning_rate: expected a number of 0 or more, received '1e-3s'"),
        ("--loss={'lambda_u': 0.3}", "loss: expected a component with its _target_, received lambda_u alone"),
    ],
)
def test_bad_options_get_one_line(work, tmp_path, argument, message):
    folder = generated(work, tmp_path / "fold")
    result = train(folder, argument, check=False)
    assert result.returncode == 1 and f"ERROR: {message}" in result.stderr.replace("command line: ", "")
    assert "Traceback" not in result.stderr
    assert message.split(":")[0] in (folder / "model_fold0" / "training.log").read_text()


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
    assert [r["epoch"] for r in read_rows(output / "training_log.csv")] == list("123456")
    (found,) = import_bundle_algo_history(str(tmp_path / "work"), only_trained=True)
    assert found[AlgoKeys.SCORE] == yaml.safe_load((output / "progress.yaml").read_text())[-1]["best_avg_dice_score"]
    # a restart with other settings is refused and leaves everything as it was
    before = {p.name: p.read_bytes() for p in output.iterdir() if p.is_file() and p.name != "training.log"}
    result = train(folder, "--seed=5", check=False)
    assert result.returncode == 1 and "began with other settings (seed: expected 0, received 5)" in result.stderr
    assert before == {p.name: p.read_bytes() for p in output.iterdir() if p.is_file() and p.name != "training.log"}
    log = (output / "training.log").read_text()
    assert "epoch 6/6" in log and "validation after epoch 6" in log and "other settings" in log


@pytest.mark.parametrize("asked", [False, True])
def test_without_an_unlabelled_list(work, data, tmp_path, asked):
    """Test images serve only where that is asked for."""
    listed = json.loads((data / "a3d.json").read_text())
    del listed["unlabeled"]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    folder = generated(work, tmp_path / "fold", use_testing_as_unlabeled=not asked, epochs=1, batch_size=2)
    result = train(folder, f"--data_list_file_path={tmp_path / 'list.json'}",
                   f"--use_testing_as_unlabeled={str(asked).lower()}")  # fmt: skip
    settings = json.loads((folder / "model_fold0" / "training.json").read_text())
    assert settings["unlabeled_images"] == (2 if asked else 0)
    said = "2 images of `testing` as unlabelled ones" if asked else "Supervised training: the datalist has no images"
    assert said in result.stderr and ("left out unless" in result.stderr) == (not asked)


def test_a_fold_that_nothing_validates(work, data, tmp_path):
    """Its scans are labelled in part, so it scores 0, not NaN; a fold that is not in the list is refused."""
    listed = json.loads((data / "a3d.json").read_text())
    for item in listed["training"]:
        item |= {"fold": 0, "labeled_slices": [1]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    folder = generated(work, tmp_path / "fold", epochs=1, batch_size=2)
    train(folder, f"--data_list_file_path={tmp_path / 'list.json'}")
    (entry,) = yaml.safe_load((folder / "model_fold0" / "progress.yaml").read_text())
    assert entry["best_avg_dice_score"] == 0.0 and entry["finished"]
    (tmp_path / "list.json").write_text(json.dumps(listed).replace('"fold": 0', '"fold": 1'))
    folder = generated(work, tmp_path / "other", epochs=1)
    result = train(folder, f"--data_list_file_path={tmp_path / 'list.json'}", check=False)
    assert result.returncode == 1 and "expected one of its folds 1, received fold 0" in result.stderr


def test_several_processes(work, tmp_path):
    folder = generated(work, tmp_path / "fold", epochs=1, batch_size=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(folder / "scripts" / "train.py"), "run"]  # fmt: skip
    result = warm.run(command, env=ENV, timeout=250)
    assert result.returncode == 0, result.stderr[-3000:]
    (entry,) = yaml.safe_load((folder / "model_fold0" / "progress.yaml").read_text())
    assert 0 <= entry["best_avg_dice_score"] <= 1 and (folder / "model_fold0" / "scores.csv").exists()
