"""The phantom: the same everywhere, different between patients, and no more labels than it says."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from scripts.dataio import phantom


def test_deterministic_and_as_fixed():
    image, label, affine = phantom.draw_patient(0, 3)
    again = phantom.draw_patient(0, 3)
    assert all(np.array_equal(a, b) for a, b in zip((image, label, affine), again))
    # the anatomy that every published phantom figure was made with
    assert hashlib.sha256(np.ascontiguousarray(label)).hexdigest()[:16] == "91f435a5a908a463"
    assert image.dtype == np.int16 and label.dtype == np.uint8


def test_patients_differ_and_show_every_class():
    volumes = [np.bincount(phantom.draw_patient(0, i)[1].ravel(), minlength=4)[1:] for i in range(12)]
    assert np.min(volumes) > 100
    share = np.array([v[2] for v in volumes], float)
    assert share.std() / share.mean() > 0.15, "left ventricles vary in size"


def test_folder(phantom_dir):
    datalist = json.loads((phantom_dir / "datalist.json").read_text())
    assert [len(datalist[k]) for k in ("training", "unlabeled", "validation", "testing")] == [1, 3, 1, 2]
    assert len(list((phantom_dir / "images").iterdir())) == 7
    assert len(list((phantom_dir / "labels").iterdir())) == 4, "unlabelled patients have no label file at all"


def test_default_is_made_once_and_leaves_nothing_half_made(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "DEFAULT_SPLIT", {"training": 1})
    where = phantom.ensure(tmp_path / "data" / "phantom")
    stamp = (tmp_path / "data/phantom/datalist.json").stat().st_mtime_ns
    assert phantom.ensure(where) == where
    assert (tmp_path / "data/phantom/datalist.json").stat().st_mtime_ns == stamp

    def fail(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(phantom, "draw_patient", fail)
    with pytest.raises(RuntimeError, match="killed"):
        phantom.ensure(tmp_path / "other" / "phantom")
    assert list((tmp_path / "other").iterdir()) == []
