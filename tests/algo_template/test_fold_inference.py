"""The prediction of generated folders: on the grid of the file, however it is stored, several in one process."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from monai.data import MetaTensor

from .folds import inferer, load


def knowing(folder: Path):
    """Prediction with the shipped weights: what a generated folder needs to predict at all, phantom or not."""
    content = yaml.safe_load((ROOT / "bundle" / "configs" / "inference.yaml").read_text())
    size = json.loads((ROOT / "bundle" / "models" / "training.json").read_text())["spatial_size"]
    return inferer(folder, ckpt_name=str(ROOT / "bundle" / "models" / "model.pt"), spatial_size=[size, size],
                   intensity=content["intensity"])  # fmt: skip


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


def test_a_file_keeps_the_largest_components_where_the_scores_do(work, data, tmp_path, monkeypatch):
    """As `keep_largest` beside the weights says, which evaluation and the bundle's prediction follow."""
    folder = tmp_path / "semsim_0"
    shutil.copytree(work / "semsim_0", folder)
    image = data / json.loads((data / "a3d.json").read_text())["testing"][1]["image"]
    saved, module = folder / "model_fold0" / "training.json", load(folder / "scripts" / "infer.py", "Infer")
    probabilities = torch.zeros(4, *nib.load(image).shape)
    probabilities[0], probabilities[2, 10:20, 10:20, 2:6], probabilities[2, 40:45, 40:45, 3] = 0.5, 1, 1
    found = MetaTensor(probabilities, affine=torch.as_tensor(nib.load(image).affine))
    monkeypatch.setattr(module.InferClass, "probabilities", lambda self, data: found)
    for keep, voxels in ((False, 425), (True, 400)):
        saved.write_text(json.dumps({**json.loads(saved.read_text()), "keep_largest": keep}))
        output = tmp_path / "a new folder" / f"{keep}.nii.gz"
        module.predict(str(image), str(output))
        written = np.asarray(nib.load(output).dataobj)
        assert (written == 2).sum() == (written > 0).sum() == voxels


def test_an_image_that_cannot_be_read_is_named(work, tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    fold = inferer(work / "semsim_0")
    for name in ("broken.nii.gz", "absent.nii.gz"):
        with pytest.raises(ValueError, match=f"{name}: could not be read as an image") as error:
            fold.infer({"image": str(tmp_path / name)})
        assert error.type.__name__ == "InputError" and "\n" not in str(error.value)


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
