"""Which way volumes are cut: decided once for a data set, kept with the weights, followed, exceptions named."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import samples
from helpers import workflow
from monai.transforms import Compose, EnsureChannelFirstd
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.slice_axis import common_direction, find_slice_axis, stored_axis
from scripts.dataio.stated import stated
from scripts.dataio.transforms import AsVolumed, SliceGridd
from scripts.errors import InputError
from scripts.preparation.create import create

THICK, THIN = (0.9, 0.9, 5.0), (0.9, 0.9, 0.6)


def volume(spacing, shape=(20, 20, 8)):
    return np.diag([*spacing, 1.0]), shape, False


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three thick volumes, one of them stored with the slices first, and a thin one that is coarser in plane."""
    folder = tmp_path_factory.mktemp("mixed")
    for number, name in enumerate(("thick0", "thick1", "thick2", "thin")):
        image, label = samples.blob((20, 20, 24 if name == "thin" else 6), seed=number)
        for where, array in (("images", image), ("labels", label)):
            nifti = nib.Nifti1Image(array, np.diag([*(THIN if name == "thin" else THICK), 1.0]))
            if name == "thick1":
                nifti = nifti.as_reoriented(np.array([[1, 1], [2, -1], [0, 1]]))
            (folder / where).mkdir(exist_ok=True)
            nib.save(nifti, folder / where / f"{name}.nii.gz")
    return folder


def listed(folder, output, **options):
    create(str(folder / "images"), str(folder / "labels"), str(output), testing="thin", class_names="background,organ",
           **options)  # fmt: skip
    return output


@pytest.mark.parametrize(
    "volumes, expected",
    [
        ([volume(THICK), volume(THICK), volume(THIN)], "S"),
        ([volume(THIN)], "S"),  # square pixels: slices that are thinner than those are wide
        ([volume((5.0, 0.9, 0.9), (8, 20, 20))], "R"),
        ([volume((1, 1, 1), (9, 30, 30)), volume((1, 1, 1), (9, 30, 30)), volume(THICK)], "S"),
        ([(np.eye(4)[[2, 0, 1, 3]] @ np.diag([5.0, 1, 1, 1]), (6, 20, 20), False)], "A"),
        ([(np.eye(4), (20, 20), True)], None),
        ([(np.eye(4), (64, 80, 200), True)], None),
    ],
    ids=["most", "thin", "sagittal", "only those that tell", "axes in another order", "planes", "pages"],
)
def test_the_direction_that_most_volumes_were_acquired_along(volumes, expected):
    assert common_direction(volumes) == expected


def oblique(normal, in_plane=(0.0, 0.0, 1.0)):
    """A volume of thick slices across ``normal``, stored last."""
    normal = np.array(normal) / np.linalg.norm(normal)
    right = np.cross(in_plane, normal)
    right /= np.linalg.norm(right)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([right, np.cross(normal, right), normal], 1) @ np.diag([1.5, 1.5, 8.0])
    return affine, (20, 20, 8), False


def test_oblique_slices_as_of_the_heart_stay_whole():
    """Short axes of patients differ by some degrees, so that the nearest direction of the body does, too."""
    patients = [oblique((0.6, 0.65, 0.47)), oblique((0.65, 0.6, 0.47)), oblique((0.6, 0.66, 0.45))]
    assert common_direction(patients) == 2
    assert common_direction(patients[:1]) == "A"
    assert all(stored_axis(*patient[:2], "A") == 2 for patient in patients)
    sagittal = volume((5.0, 0.9, 0.9), (8, 20, 20))
    assert common_direction([volume(THICK), volume(THICK), sagittal]) == "S"
    assert stored_axis(*sagittal[:2], "S") == 2


def test_an_image_of_one_slice_is_that_slice():
    affine = np.diag([1.5, 1.5, 1.0, 1.0])
    assert find_slice_axis((1.5, 1.5, 1.0), (64, 80, 1)) == 2
    for direction in ("R", "A", "S", None):
        assert stored_axis(affine, (64, 80, 1), direction) == 2
    assert stored_axis(affine, (64, 80, 1), 0) == 0, "a stored axis is taken at its word"
    with pytest.raises(InputError, match="R, A, S"):
        stored_axis(affine, (64, 80, 2), "axial")


def test_files_stored_differently_are_cut_alike(mixed):
    keys = ["image"]
    steps = [LoadFilesd(keys), EnsureChannelFirstd(keys), AsVolumed(keys)]
    cut = Compose([*steps, SliceGridd(keys, 16, slice_axis="S")])
    shapes = {name: cut({"image": str(mixed / f"images/{name}.nii.gz")})["image"].shape[1:]
              for name in ("thick0", "thick1", "thin")}  # fmt: skip
    assert shapes == {"thick0": (16, 16, 6), "thick1": (16, 16, 6), "thin": (16, 16, 24)}


def test_a_volume_that_states_no_place_is_said_where_the_axis_is_one_of_the_body(tmp_path, caplog):
    """Weights of volumes that state one would see it from another side."""
    for name, affine in (("placed", np.diag([1.5, 1.5, 8, 1])), ("lost", np.eye(4)), ("also_lost", np.eye(4))):
        nib.save(nib.Nifti1Image(np.ones((16, 16, 6), np.float32), affine), tmp_path / f"{name}.nii.gz")
    keys = ["image"]
    read = [LoadFilesd(keys), EnsureChannelFirstd(keys), AsVolumed(keys)]
    for axis, expected in (("S", 1), (2, 0), (None, 0)):
        caplog.clear()
        cut = Compose([*read, SliceGridd(keys, 16, slice_axis=axis)])
        for name in ("placed", "lost", "also_lost"):
            cut({"image": str(tmp_path / f"{name}.nii.gz")})
        said = [line for line in caplog.messages if "states no place in space" in line]
        assert len(said) == expected and all("/lost.nii.gz: states" in line and "axis 2" in line for line in said)


def test_create_shows_keeps_and_names_exceptions(mixed, tmp_path, capsys):
    datalist = listed(mixed, tmp_path / "d.json")
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("slices")]
    assert "6 to 24 an image, 42 in all, along S (feet to head)" in row and "thin.nii.gz" in row and "thick" not in row
    assert stated(datalist, "slice_axis") == "S"
    assert stated(listed(mixed, tmp_path / "e.json", slice_axis="A"), "slice_axis") == "A"


@pytest.mark.parametrize("said", [True, False], ids=["in the datalist", "by its images"])
def test_training_prediction_and_evaluation_follow(mixed, tmp_path, caplog, said):
    datalist = listed(mixed, tmp_path / "d.json")
    if not said:
        content = json.loads(datalist.read_text())
        del content["slice_axis"]
        datalist.write_text(json.dumps(content))
    options = {"dataset_dir": str(mixed), "datalist": str(datalist), "output_dir": str(tmp_path / "run")}
    flow = workflow("train", "train", "labeled_only", **options, spatial_size=32, epochs=1, steps_per_epoch=1,
                    batch_size=2, class_names=["background", "organ"], show_progress=False)  # fmt: skip
    assert len(flow.parser.get_parsed_content("train#dataset")) == 3 * 6
    flow.run()
    assert json.loads((tmp_path / "run/training.json").read_text())["slice_axis"] == "S"
    assert "thick" not in " ".join(r.message for r in caplog.records if "larger along" in r.message)
    item = {key: str(mixed / f"{key}s/thin.nii.gz") for key in ("image", "label")}
    for kind, name, files, more in (
        ("train", "validate#preprocessing", ("train", "evaluate"), options),
        ("infer", "preprocessing", ("inference",), {"ckpt_path": str(tmp_path / "run/model_last.pt")}),
    ):
        flow = workflow(kind, *files, **more)
        given = item if kind == "train" else {"image": item["image"]}
        caplog.clear()
        cut = flow.parser.get_parsed_content(name)
        assert cut(given)["image"].shape == (1, 32, 32, 24) and cut(given)
        told = [r.message for r in caplog.records if "larger along another axis" in r.message]
        assert len(told) == 1 and "thin.nii.gz" in told[0]


def test_weights_from_before_are_followed_as_they_were(mixed, tmp_path):
    """Their ``slice_axis: null`` means the coarsest axis of each image."""
    (tmp_path / "training.json").write_text(json.dumps({"slice_axis": None, "spatial_size": 32}))
    flow = workflow("infer", "inference", ckpt_path=str(tmp_path / "model.pt"))
    cut = flow.parser.get_parsed_content("preprocessing")
    assert cut({"image": str(mixed / "images/thin.nii.gz")})["image"].shape[-1] == 20
