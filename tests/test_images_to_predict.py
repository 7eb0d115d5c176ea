"""Which files of a folder are predicted: no labels, no predictions of before, channels of one image together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import samples
from helpers import workflow
from scripts.dataio.datalist import read_images
from scripts.dataio.files import image_files
from scripts.dataio.folders import find_images, join_channels, without_labels
from scripts.errors import InputError

IMAGE, LABEL = samples.blob((12, 10, 3), seed=1)


def names(items: list[dict], folder: Path) -> list:
    """Files of items below a folder; a list for those of several channels."""
    shown = ([Path(file).relative_to(folder).as_posix() for file in image_files(item)] for item in items)
    return [files[0] if len(files) == 1 else files for files in shown]


def test_labels_are_not_predicted(tmp_path, caplog):
    for name in ("imagesTr/a", "imagesTs/b", "labelsTr/a", "P1/mr", "P1/mr_seg", "P1/masked"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nii.gz").touch()
    found = read_images(tmp_path)
    assert names(found, tmp_path) == [f"{name}.nii.gz" for name in ("P1/masked", "P1/mr", "imagesTr/a", "imagesTs/b")]
    assert "2 files are labels by their names" in caplog.text
    assert names(read_images(tmp_path / "labelsTr"), tmp_path) == ["labelsTr/a.nii.gz"], "asked for, so predicted"
    assert list(without_labels(find_images(tmp_path / "P1"))) == ["masked", "mr"]


def test_scans_beside_a_folder_of_images_are_said_not_to_be_predicted(tmp_path, caplog):
    """And labels of images there are none, nor predictions of before."""
    for name in ("P3_seg", "images/P3"):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", IMAGE)
    assert len(read_images(tmp_path)) == 1 and not caplog.text
    for name in ("P1", "P2"):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", IMAGE)
    assert names(read_images(tmp_path), tmp_path) == ["images/P3.nii.gz"]
    assert "2 images are not predicted, " in caplog.text and "P1.nii.gz first: where there is a folder" in caplog.text


def test_predictions_below_the_images_are_not_predicted_again(tmp_path, caplog):
    for name in ("new/a.nii.gz", "predictions/b_seg.nii.gz", "predictions/c.nii.gz"):
        samples.write_nifti(tmp_path / name, IMAGE)
    options = {"output_dir": tmp_path / "predictions", "output_postfix": "seg", "output_ext": ".nii.gz"}
    found = read_images(tmp_path, **options)
    assert names(found, tmp_path) == ["new/a.nii.gz", "predictions/c.nii.gz"]
    assert "1 files are predictions by their names and not predicted again" in caplog.text
    assert len(read_images(tmp_path / "predictions", **options)) == 2, "asked for, so predicted"
    flow = workflow("infer", "inference", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "predictions"))
    assert flow.parser.get_parsed_content("images") == found


def test_predictions_in_a_folder_of_their_own_are_not_predicted_again(tmp_path):
    for name, array in (("P1", IMAGE), ("later/P2_seg", IMAGE), ("predictions/P1_seg", LABEL)):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", array)
    options = {"output_postfix": "seg", "output_ext": ".nii.gz"}
    found = read_images(tmp_path, output_dir=tmp_path / "others", **options)
    assert names(found, tmp_path) == ["P1.nii.gz", "later/P2_seg.nii.gz"], "whose own image is not here"


def test_predictions_of_another_name_below_the_images_are_no_patients(tmp_path, caplog):
    """Those that are called labels are left out, others are warned of; sequences of a patient are images."""
    for name in ("x", "P1/y", "T1/P2", "T2/P2_t2"):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", IMAGE)
    for name in ("first/x_seg", "first/P1/y_seg", "second/x_v2", "second/P1/y_v2"):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", IMAGE.astype(np.uint8))
    for options in (
        {"output_postfix": "seg", "output_ext": ".nrrd"},
        {"output_postfix": "v3", "output_ext": ".nii.gz"},
    ):
        caplog.clear()
        found = read_images(tmp_path, output_dir=tmp_path / "third", **options)
        expected = ["P1/y", "T1/P2", "T2/P2_t2", "second/P1/y_v2", "second/x_v2", "x"]
        assert sorted(names(found, tmp_path)) == [f"{name}.nii.gz" for name in expected]
        assert "2 files are labels by their names and not taken for images, " in caplog.text
        line = f"2 images are called as others with more behind and stored as labels are, {tmp_path}/second/"
        assert line in caplog.text and "keep them outside of --dataset_dir" in caplog.text


def test_predictions_beside_their_images_are_not_predicted_again(tmp_path, caplog):
    """Whatever ending they are given; nor is an image whose name happens to have it left out."""
    for name in ("a", "b", "b_new", "c_new"):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", IMAGE)
    found = read_images(tmp_path, output_dir=tmp_path, output_postfix="new", output_ext=".nii.gz")
    assert names(found, tmp_path) == ["a.nii.gz", "b.nii.gz", "c_new.nii.gz"]
    assert "1 files are predictions by their names and not predicted again, " in caplog.text
    assert f"{tmp_path / 'b_new.nii.gz'} first" in caplog.text


def test_channels_of_nnunet_are_one_image(tmp_path):
    for name in ("A_0000", "A_0001", "B_0000", "B_0001", "C"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert names(read_images(tmp_path, in_channels=2), tmp_path) == [
        ["A_0000.nii.gz", "A_0001.nii.gz"], ["B_0000.nii.gz", "B_0001.nii.gz"], "C.nii.gz"
    ]  # fmt: skip
    assert len(read_images(tmp_path)) == 5, "to a network of one channel these are five images"
    (tmp_path / "B_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"B_0000\.nii\.gz: the channels 0001 of B are missing"):
        read_images(tmp_path, in_channels=2)
    assert set(join_channels({"x_0000": Path("x"), "y_0002": Path("y")})) == {"x_0000", "y_0002"}


def test_frames_of_a_video_are_no_channels(tmp_path):
    for k in range(5):
        samples.write_picture(tmp_path / f"video1_000{k}.png", np.zeros((9, 9, 3), np.uint8))
    assert len(read_images(tmp_path, in_channels=3)) == 5
    for path in [*tmp_path.iterdir()][2:]:
        path.unlink()
    for name in ("a_0000", "a_0001"):
        samples.write_nifti(tmp_path / "mr" / f"{name}.nii.gz", IMAGE)
    assert len(read_images(tmp_path / "mr", in_channels=2)) == 1
