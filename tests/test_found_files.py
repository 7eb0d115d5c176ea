"""What lies in people's folders besides images and labels: no label is taken for an image, and nothing is hidden."""

from __future__ import annotations

import json

import numpy as np
import pytest
import samples
from scripts.dataio.create import create
from scripts.dataio.datalist import read_images
from scripts.errors import InputError

IMAGE, LABEL = samples.blob((12, 10, 3), seed=1)


def made(folder, **options) -> dict[str, list[str]]:
    """Images of each list that has some."""
    create(output=str(folder / "l.json"), **{key: str(value) for key, value in options.items()})
    lists = json.loads((folder / "l.json").read_text())
    return {key: [item["image"] for item in lists[key]] for key in ("training", "unlabeled") if lists[key]}


def test_labels_below_the_images_and_beside_them_are_no_unlabelled_images(tmp_path, caplog):
    for name in ("a", "b", "c"):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", LABEL)
    samples.write_nifti(tmp_path / "b_seg.nii.gz", LABEL)
    expected = {"training": ["a.nii.gz"], "unlabeled": ["b.nii.gz", "c.nii.gz"]}
    assert made(tmp_path, images=tmp_path, labels=tmp_path / "labels") == expected
    assert "1 files are labels by their names" in caplog.text and "b_seg.nii.gz first" in caplog.text
    for path in tmp_path.glob("*.nii.gz"):
        path.unlink()
    with pytest.raises(InputError, match="expected images beside the labels"):
        create(str(tmp_path), str(tmp_path / "labels"), str(tmp_path / "m.json"))


def test_labelmaps_beside_slicers_segmentations_are_no_images(tmp_path):
    for name in ("a", "b"):
        samples.write_itk(tmp_path / f"{name}.nrrd", IMAGE)
    for name in ("a.seg.nrrd", "b-label.nrrd"):
        samples.write_itk(tmp_path / name, LABEL)
    assert made(tmp_path, data=tmp_path) == {"training": ["a.nrrd"], "unlabeled": ["b.nrrd"]}


@pytest.mark.parametrize("hidden", ["seg.nii.gz", "later/s1_001.dcm"])
def test_what_lies_among_the_slices_of_a_series_is_named(tmp_path, caplog, hidden):
    samples.write_dicom(tmp_path / "images" / "p", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "p.nii.gz", LABEL, (-0.9, -0.9, 6.0))
    samples.write_picture(tmp_path / "images" / "p" / "preview.png", np.zeros((9, 9), np.uint8))
    assert made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels") == {"training": ["images/p"]}
    if hidden.endswith(".dcm"):
        samples.write_dicom(tmp_path / "images" / "p" / "later", IMAGE)
    else:
        samples.write_nifti(tmp_path / "images" / "p" / hidden, LABEL)
    with pytest.raises(InputError, match=rf"images/p/{hidden}: lies in the folder of a DICOM series .*nothing reads"):
        create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "m.json"))
    assert [item["image"] for item in read_images(tmp_path / "images")] == [str(tmp_path / "images" / "p")]
    assert f"{hidden}: lies in the folder" in caplog.text
