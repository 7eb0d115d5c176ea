"""Masks, a file for each class, become labels that `datalist create` takes."""

from __future__ import annotations

import json
import shlex
import shutil

import nibabel as nib
import numpy as np
import pytest
import samples
from scripts.errors import InputError
from scripts.preparation.create import create
from scripts.preparation.merge import merge

ORGANS = ("liver", "kidney_left")


def truth(seed: int) -> np.ndarray:
    return samples.blob((20, 24, 6), seed=seed, classes=3)[1]


def mask(root, case: str, name: str):
    return root / case / "segmentations" / f"{name}.nii.gz"


def change(file, array=None, affine=None) -> None:
    image = nib.load(file)
    array = np.asarray(image.dataobj) if array is None else array
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), file)


@pytest.fixture
def organs(tmp_path):
    root = samples.make_organs(tmp_path / "organs", {"s1": ORGANS, "s2": ORGANS, "s3": ()})
    samples.write_nifti(mask(root, "s1", "heart"), np.ones((20, 24, 6), np.uint8))  # which nobody asks for
    return root


def made(tmp_path, printed: str) -> dict:
    """The datalist of the command that was printed."""
    words = shlex.split(printed[printed.index("--images") :].replace("LIST.json", str(tmp_path / "list.json")))
    create(**{name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2])})
    return json.loads((tmp_path / "list.json").read_text())


def test_masks_become_labels(organs, tmp_path, capsys):
    image = nib.load(organs / "s1" / "ct.nii.gz")
    merge(str(organs), ["Liver", "kidney left"], str(tmp_path / "labels"))
    printed = capsys.readouterr().out
    assert "wrote 2 labels" in printed and "1 cases have no masks" in printed
    for seed, case in enumerate(("s1", "s2")):
        label = nib.load(tmp_path / "labels" / f"{case}.nii.gz")
        assert np.array_equal(label.dataobj, truth(seed)) and label.get_data_dtype() == np.uint8
        assert np.array_equal(label.affine, image.affine)
    lists = made(tmp_path, printed)
    assert [item["image"] for item in lists["training"]] == ["organs/s1/ct.nii.gz", "organs/s2/ct.nii.gz"]
    assert [item["label"] for item in lists["training"]] == ["labels/s1.nii.gz", "labels/s2.nii.gz"]
    assert [item["image"] for item in lists["unlabeled"]] == ["organs/s3/ct.nii.gz"]
    assert lists["labels"] == {"0": "background", "1": "Liver", "2": "kidney left"}


def test_names_with_the_case_and_the_word_mask(tmp_path, capsys):
    """As converted contours are called, beside the image; a class whose name ends another's is not taken for it."""
    root = tmp_path / "data"
    for seed, case in enumerate(("P1", "P2")):
        image, label = samples.blob((20, 24, 6), seed=seed, classes=3)
        samples.write_nifti(root / case / f"{case}_ct.nii.gz", image)
        for value, name in ((1, "mask_Lung.nii.gz"), (2, f"{case}_mask_tumour-lung.nii.gz")):
            samples.write_nifti(root / case / name, (label == value).astype(np.uint8) * 255)
    merge(str(root), "lung,tumour_lung", str(tmp_path / "labels"))
    lists = made(tmp_path, capsys.readouterr().out)
    assert [item["image"] for item in lists["training"]] == ["data/P1/P1_ct.nii.gz", "data/P2/P2_ct.nii.gz"]
    assert np.array_equal(nib.load(tmp_path / lists["training"][1]["label"]).dataobj, truth(1))


def test_overlap(organs, tmp_path):
    """A tumour in the liver: what counts is asked, not guessed."""
    both = (truth(0) > 0).astype(np.uint8)
    change(mask(organs, "s1", "liver"), both)
    number = int((truth(0) == 2).sum())
    with pytest.raises(InputError, match=f"s1.*kidney_left.*{number} voxels .* liver, as well.*--overlap last"):
        merge(str(organs), ORGANS, str(tmp_path / "labels"))
    assert not (tmp_path / "labels").exists()
    merge(str(organs), ORGANS, str(tmp_path / "labels"), overlap="last")
    assert np.array_equal(nib.load(tmp_path / "labels" / "s1.nii.gz").dataobj, truth(0))


def shifted(root):
    change(mask(root, "s2", "kidney_left"), affine=np.diag([1.5, 1.5, 5, 1]))


def probabilities(root):
    change(mask(root, "s2", "liver"), np.random.default_rng(0).random((20, 24, 6)).astype(np.float32))


def twice(root):
    shutil.copy(mask(root, "s2", "liver"), root / "s2" / "liver_mask.nii.gz")


def second_image(root):
    shutil.copy(root / "s2" / "ct.nii.gz", root / "s2" / "mr.nii.gz")


@pytest.mark.parametrize(
    "damage, message",
    [
        (shifted, r"s2.segmentations.kidney_left.nii.gz: expected the grid of liver.nii.gz.*resample"),
        (probabilities, r"s2.segmentations.liver.nii.gz: expected a mask, 0 and one other value, received 0\."),
        (lambda root: mask(root, "s2", "liver").unlink(), r"s2: no mask of liver; add an empty one"),
        (twice, r"s2.*: a second mask of liver beside .*keep one"),
        (second_image, r"s2: 2 files beside the masks \(ct, mr\).*--image_suffix"),
        (lambda root: (root / "s2" / "ct.nii.gz").unlink(), r"s2: 0 files beside the masks .*take the case out"),
    ],
)
def test_what_is_refused(organs, tmp_path, damage, message):
    """In a line with the file, and nothing is written."""
    damage(organs)
    with pytest.raises(InputError, match=message):
        merge(str(organs), ORGANS, str(tmp_path / "labels"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["organs"]


def test_names_that_no_mask_has_and_a_folder_that_exists(organs, tmp_path):
    with pytest.raises(InputError, match="expected folders with masks that are named spine, found none"):
        merge(str(organs), "spine", str(tmp_path / "labels"))
    with pytest.raises(InputError, match="different names"):
        merge(str(organs), "liver,Liver", str(tmp_path / "labels"))
    with pytest.raises(InputError, match="exists already"):
        merge(str(organs), ORGANS, str(organs))
