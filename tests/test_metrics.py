"""Scores by hand, the rule for empty masks, and units."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from scripts.evaluation.metrics import ScoreCases, score_case, summarize


def cube(start, stop, size=20):
    volume = torch.zeros(size, size, size, dtype=torch.long)
    volume[start:stop, start:stop, start:stop] = 1
    return volume


def test_identical_masks_and_a_shift_by_hand():
    truth = cube(5, 15)
    same = score_case(truth, truth, num_classes=2, spacing=(1.0, 1.0, 1.0))
    assert same["dice"] == [1.0] and same["hd95"] == [0.0] and same["assd"] == [0.0]
    shifted = score_case(truth.roll(2, dims=2), truth, num_classes=2, spacing=(1.0, 1.0, 3.0))
    assert shifted["dice"][0] == pytest.approx(0.8)
    assert shifted["hd95"][0] == pytest.approx(6.0), "two voxels of 3 mm"


def test_empty_rule():
    empty, full = torch.zeros(10, 10, 4, dtype=torch.long), torch.zeros(10, 10, 4, dtype=torch.long)
    full[2:5, 2:5] = 1
    diagonal = math.hypot(10 * 1.5, 10 * 1.5, 4 * 8)
    for prediction, truth in ((empty, full), (full, empty)):
        scores = score_case(prediction, truth, num_classes=2, spacing=(1.5, 1.5, 8.0))
        assert scores["dice"] == [0.0] and scores["hd95"][0] == scores["assd"][0] == pytest.approx(diagonal)
    neither = score_case(empty, empty, num_classes=2, spacing=(1.0, 1.0, 1.0))
    assert all(math.isnan(neither[m][0]) for m in neither)


def test_pictures_and_volumes_of_one_slice():
    truth = torch.zeros(20, 20, 1, dtype=torch.long)
    truth[5:10, 5:10] = 1
    volume = score_case(truth.roll(1, 0), truth, num_classes=2, spacing=(2.0, 2.0, 9.0))
    flat = score_case(truth.roll(1, 0)[..., 0], truth[..., 0], num_classes=2, spacing=(2.0, 2.0))
    assert volume == flat and flat["hd95"] == [2.0]
    sagittal = score_case(truth.roll(1, 0).movedim(-1, 0), truth.movedim(-1, 0), num_classes=2, spacing=(9.0, 2.0, 2.0))
    assert sagittal == flat, "of one slice along any axis"


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="agree in shape"):
        score_case(torch.zeros(2, 2), torch.zeros(2, 3), num_classes=2, spacing=(1, 1))


def test_summary_counts_what_is_counted():
    rows = [
        {"case": "a", "class": "x", "dice": 0.8, "hd95": 1.0, "assd": 1.0, "unit": "mm"},
        {"case": "b", "class": "x", "dice": 0.6, "hd95": 3.0, "assd": 2.0, "unit": "mm"},
        {"case": "a", "class": "y", "dice": 0.4, "hd95": 5.0, "assd": 3.0, "unit": "mm"},
        {"case": "b", "class": "y", "dice": float("nan"), "hd95": float("nan"), "assd": float("nan"), "unit": "mm"},
    ]
    summary = summarize(pd.DataFrame(rows))
    assert summary["cases"] == 2 and summary["distance_unit"] == "mm"
    assert summary["classes"]["y"]["counted"] == 1
    assert summary["mean"]["dice"] == pytest.approx((0.7 + 0.4) / 2)
    rows[0]["unit"] = "voxel"
    assert "voxels for files without" in summarize(pd.DataFrame(rows))["distance_unit"]


@pytest.mark.parametrize(
    "affine, meta, unit",
    [
        (np.diag([-1.0, -1.0, 1.0, 1.0]), {}, "mm"),  # as of BraTS
        (np.diag([2.0, 2.0, 2.0, 1.0]), {"qform_code": 0, "sform_code": 0}, "mm"),
        (np.diag([-1.0, -1.0, 1.0, 1.0]), {"qform_code": 0, "sform_code": 0}, "voxel"),
        (np.eye(4), {}, "voxel"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), {"xyzt_units": np.uint8(10)}, "mm"),  # and seconds
        (np.diag([2.0, 2.0, 2.0, 1.0]), {"xyzt_units": np.uint8(11)}, "um"),
        (np.diag([2e-3, 2e-3, 2e-3, 1.0]), {"xyzt_units": np.uint8(1)}, "m"),
    ],
)
def test_distances_have_the_unit_of_the_file(affine, meta, unit, tmp_path):
    label = MetaTensor(cube(5, 15)[None], affine=torch.as_tensor(affine))
    image = MetaTensor(torch.zeros(1, *label.shape[1:]), meta={"filename_or_obj": "a.nii.gz", **meta})
    scores = ScoreCases(str(tmp_path), ["background", "x"])
    scores._add(SimpleNamespace(state=SimpleNamespace(batch=[{}], output=[dict(image=image, label=label, pred=label)])))
    assert [row["unit"] for row in scores.rows["a.nii.gz"]] == [unit]


def test_chosen_metrics_alone():
    truth = cube(5, 15)
    assert score_case(truth, truth, num_classes=2, spacing=(1, 1, 1), metrics=("assd",)) == {"assd": [0.0]}
    rows = [{"case": c, "class": "x", "assd": v, "unit": "mm"} for c, v in (("a", 1.0), ("b", 3.0))]
    assert summarize(pd.DataFrame(rows))["mean"] == {"assd": 2.0}
    with pytest.raises(ValueError, match="metrics: expected a list of some of dice, hd95, assd"):
        ScoreCases("out", ["background", "x"], metrics=["dcie"])


def test_no_cell_is_a_formula():
    """A spreadsheet that opens the table runs nothing that an image is called."""
    from scripts.dataio.storage import cell

    for name in ("=cmd|' /C calc'!A1", "+1", "-1", "@x", "\t=1"):
        assert cell(name) == "'" + name
    assert cell("patient=1") == "patient=1" and cell("") == ""
