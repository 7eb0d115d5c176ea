"""Isotropic volumes in an AutoRunner: a fold in 3D, ensembled with one of slices."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import samples
import torch
import warm
import yaml
from conftest import ENVIRONMENT as ENV
from helpers import read_rows

from .folds import QUICK, inferer, runner


@pytest.fixture(scope="module")
def isotropic(tmp_path_factory) -> Path:
    """A CT of 1.5 mm: 4 labelled volumes in two folds, 2 unlabelled ones, and an oblique one of test."""
    folder = tmp_path_factory.mktemp("isotropic")
    places = [None] * 6 + [samples.oblique((1.5, 1.5, 1.5), (2, 0, 1), (-1, 1, 1))]
    items = [samples.write_ct(folder, f"ct{k}", (36, 34, 32 + k), place, seed=k) for k, place in enumerate(places)]
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
        assert settings["flips"] == [0.0] * dims and settings["flip_tta"] is False, "all lie alike"
        assert settings["spacing"] == ([1.5] * 3 if dims == 3 else None)
        assert {row["case"] for row in read_rows(folder / "scores.csv")} == {f"ct{fold}", f"ct{fold + 2}"}
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
    log = read_rows(work / "semsim_0" / "model_fold0" / "training_log.csv")
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
