"""Flips in training: of volumes none where they lie alike in the body, so that left is never taken for right."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import samples
from helpers import workflow
from monai.transforms import RandFlipd, RandRotate90d
from scripts.dataio.orientation import common_flips, flip_probability
from scripts.errors import InputError
from scripts.evaluation.predict import warn_of_flips


def turned(degrees: float) -> np.ndarray:
    """An affine turned about the axis from feet to head."""
    a, affine = np.deg2rad(degrees), np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:2, :2] = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ affine[:2, :2]
    return affine


@pytest.mark.parametrize(
    "affine, expected",
    [(np.eye(4), 0.5), (np.diag([-1.0, -1, 2, 1]), 0.0), (samples.oblique((1, 1, 2), (2, 0, 1), (-1, 1, 1)), 0.0),
     (turned(30), 0.0), (turned(45), 0.5), (turned(130), 0.5)],
)  # fmt: skip
def test_volumes_between_the_axes_of_the_body_may_come_out_turned(affine, expected):
    assert common_flips([affine] * 3) == expected


def test_one_odd_volume_among_many_changes_nothing_and_pictures_say_nothing():
    straight = [np.diag([-1.0, -1, 2, 1])] * 40
    assert common_flips([*straight, turned(45)]) == 0.0
    assert common_flips([*straight, *[turned(45)] * 5]) == 0.5
    assert common_flips([None] * 3) == 0.5
    assert common_flips([]) == 0.0


@pytest.mark.parametrize("names, turn, given, expected, flip_tta", [
    (["train", "volumes"], 0, {}, [0.0] * 3, False), (["train", "volumes"], 45, {}, [0.5] * 3, False),
    (["train", "volumes"], 0, {"flips": [0, 0.3, 0]}, [0.0, 0.3, 0.0], False),
    (["train"], 0, {}, [0.0] * 3, False), (["train"], 45, {}, [0.5] * 3, True),
    (["train"], 0, {"flips": 0.5}, [0.5] * 3, True),
    (["train"], 0, {"flips": 0}, [0.0] * 3, False), (["train"], 0, {"flips": [0, 0.5]}, [0.0, 0.5, 0.0], [1]),
])  # fmt: skip
def test_both_streams_flip_as_the_option_says(tmp_path, names, turn, given, expected, flip_tta):
    """Probabilities of flips, and in 2D of a turn by 90 degrees, which swaps the axes."""
    item, *others = (samples.write_ct(tmp_path, f"ct{k}", affine=turned(turn)) for k in range(3))
    datalist = {"training": [item], "unlabeled": [{"image": other["image"]} for other in others]}
    (tmp_path / "datalist.json").write_text(json.dumps({**datalist, "labels": ["background", "organ", "tumour"]}))
    flow = workflow("train", *names, dataset_dir=str(tmp_path), output_dir=str(tmp_path / "run"), **given)
    parser = flow.parser
    for stream in ("labeled", "unlabeled"):
        found = parser.get_parsed_content(f"train#{stream}_augmentation").flatten().transforms
        assert [t.prob for t in found if isinstance(t, RandFlipd | RandRotate90d)] == expected, stream
    settings = parser.get_parsed_content("settings")
    assert settings["flips"] == (expected if "volumes" in names else expected[:2])
    assert settings["flip_tta"] == flip_tta, "slices are predicted over the flips that the network knows"


def test_a_file_with_voxel_sizes_alone_states_no_place(tmp_path):
    """Both codes of NIfTI are zero, and readers make up an affine; a picture of known resolution says no more."""
    item = samples.write_ct(tmp_path, "ct0")
    bare = nib.Nifti1Image(np.asanyarray(nib.load(item["image"]).dataobj), None)
    bare.header.set_zooms((1.5, 1.5, 1.5))
    nib.save(bare, tmp_path / "bare.nii.gz")
    samples.write_picture(tmp_path / "a.png", np.zeros((8, 6), np.uint8))
    for path, expected in ((item["image"], 0.0), (str(tmp_path / "bare.nii.gz"), 0.5), (str(tmp_path / "a.png"), 0.5),
                           (str(shutil.copy(tmp_path / "bare.nii.gz", tmp_path / "LOUD.NII.GZ")), 0.5)):  # fmt: skip
        (tmp_path / "d.json").write_text(json.dumps({"training": [], "unlabeled": [{"image": path}]}))
        assert flip_probability("auto", 3, tmp_path / "d.json", tmp_path) == [expected] * 3, path


@pytest.mark.parametrize("given", ["half", 2, -0.1, True, None, [0.5], [0, 0.5, 0], ["a", 0]])
def test_other_flips_are_refused(given):
    with pytest.raises(InputError, match="expected a probability from 0 to 1, or one for each of 2 axes, or auto"):
        flip_probability(given, 2, "", "")


@pytest.mark.parametrize("flips, flip_tta, axes", [
    ([0.0, 0.5], True, "axis 0 in"), ([0.0, 0.0, 0.0], True, "axis 0, 1, 2 in"), ([0.5, 0.0], [0, 1], "axis 1 in"),
    ([0.0, 0.5], [1], ""), ([0.0, 0.0], False, ""), ([0.5, 0.5], True, ""), (None, True, ""),
])  # fmt: skip
def test_flips_that_the_network_has_not_learnt_are_told(tmp_path, caplog, flips, flip_tta, axes):
    """Older weights do not say what they have seen."""
    (tmp_path / "training.json").write_text(json.dumps({"flips": flips} if flips else {}))
    warn_of_flips(tmp_path / "model_last.pt", flip_tta)
    assert (f"{tmp_path / 'training.json'}: images were not flipped along {axes}" in caplog.text) == bool(axes)
    assert bool(caplog.text) == bool(axes)
