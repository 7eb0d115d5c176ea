"""Predictions on the disk: whole files or none, in the place of their image for every program."""

from __future__ import annotations

import os
import resource

import itk
import nibabel as nib
import numpy as np
import pytest
import samples
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import LoadImage, SaveImage
from scripts.dataio.readers import image_loader
from scripts.errors import explain
from scripts.evaluation.stored_header import writer_of

IMAGE, LABEL = samples.blob((16, 14, 4), seed=1)


def saved(folder, meta=None, output_ext=".nii.gz", label=LABEL):
    """A prediction as `inference.yaml` saves it."""
    saver = SaveImage(folder, "seg", output_ext, output_dtype=np.uint8, resample=False, separate_folder=False,
                      print_log=False, writer=writer_of(output_ext))  # fmt: skip
    saver(MetaTensor(label[None].astype(np.uint8), meta=meta or {"filename_or_obj": "a.nii.gz"}))
    return folder / f"a_seg{output_ext}"


def test_both_places_of_a_registered_volume_are_kept(tmp_path):
    """ITK goes by the one, nibabel by the other: a prediction lies on its image in both."""
    turn = np.radians(17)
    scanner = np.diag([1.5, 1.5, 4, 1.0])
    scanner[:3, 3] = -10, -12, -8
    moved = np.eye(4)
    moved[:3] = [[np.cos(turn), -np.sin(turn), 0, 7], [np.sin(turn), np.cos(turn), 0, -3], [0, 0, 1, 20]]
    image = nib.Nifti1Image(IMAGE, moved @ scanner)
    image.set_qform(scanner, code=1)
    image.set_sform(moved @ scanner, code=4)
    nib.save(image, tmp_path / "a.nii.gz")
    read = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    written = saved(tmp_path, {**read.meta, "filename_or_obj": "a.nii.gz"})
    ours = nib.load(written)
    np.testing.assert_allclose(ours.affine, moved @ scanner, atol=1e-4)
    np.testing.assert_allclose(ours.get_qform(), scanner, atol=1e-4)
    assert (int(ours.header["qform_code"]), int(ours.header["sform_code"])) == (1, 4)
    places = [itk.imread(str(path)) for path in (tmp_path / "a.nii.gz", written)]
    np.testing.assert_allclose(*(np.array(place.GetOrigin()) for place in places), atol=1e-4)
    np.testing.assert_allclose(*(itk.array_from_matrix(place.GetDirection()) for place in places), atol=1e-4)
    np.testing.assert_array_equal(ours.get_fdata(), LABEL)


def test_a_quaternion_that_is_no_rotation_stops_no_prediction(tmp_path):
    """Other programs read such a file by its other place, as here."""
    image = nib.Nifti1Image(IMAGE, np.diag([1.5, 1.5, 4, 1.0]))
    image.set_qform(image.affine, code=1)
    for name, value in zip(("quatern_b", "quatern_c", "quatern_d"), (0.8, 0.6, 0.1)):
        image.header[name] = value
    nib.save(image, tmp_path / "a.nii.gz")
    written = nib.load(saved(tmp_path, image_loader()(tmp_path / "a.nii.gz").meta))
    np.testing.assert_allclose(written.affine, image.affine)
    np.testing.assert_array_equal(written.get_fdata(), LABEL)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_a_single_slice_keeps_its_place_in_space(tmp_path, ending):
    """MONAI wrote it as a plane: of one from front to back, the position and two directions were gone."""
    affine = np.array([[0, 0, 5.0, 40], [1.2, 0, 0, -30], [0, 1.4, 0, 25], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(IMAGE[..., :1], affine), tmp_path / "a.nii.gz")
    read = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    written = itk.imread(str(saved(tmp_path, {**read.meta, "affine": read.affine}, ending, LABEL[..., :1])))
    image = itk.imread(str(tmp_path / "a.nii.gz"))
    assert list(itk.size(written)) == list(itk.size(image)) == [*IMAGE.shape[:2], 1]
    np.testing.assert_allclose(*(np.array(i.GetOrigin()) for i in (image, written)), atol=1e-4)
    np.testing.assert_allclose(*(itk.array_from_matrix(i.GetDirection()) for i in (image, written)), atol=1e-4)
    np.testing.assert_array_equal(itk.array_from_image(written).T, LABEL[..., :1])


def test_a_plane_from_front_to_back_is_written(tmp_path):
    """Two of the three axes that MONAI looked at did not tell where it lies: a singular matrix."""
    affine = np.array([[0, 0, 5.0, 40], [1.2, 0, 0, -30], [0, 1.4, 0, 25], [0, 0, 0, 1]])
    meta = {"filename_or_obj": "a.nii.gz", "affine": affine, "spatial_shape": IMAGE.shape[:2]}
    written = nib.load(saved(tmp_path, meta, label=LABEL[..., 0]))
    assert written.shape == IMAGE.shape[:2]
    np.testing.assert_allclose(written.affine, affine, atol=1e-4)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("turn", [[(0, 0, 1), (1, 0, 0), (0, 1, 0)], [(1, 0, 0), (0, 0.8, 0.6), (0, -0.6, 0.8)]])
def test_a_plane_in_space_becomes_a_volume_of_one_slice_where_two_axes_cannot_say_its_place(tmp_path, ending, turn):
    """ITK's files of two axes: one from front to back was not written, an oblique one had pixels of another size."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.array(turn) * (1.2, 1.4, 5), (40, -30, 25)
    nib.save(nib.Nifti1Image(IMAGE[..., 0], affine), tmp_path / "a.nii.gz")
    read = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "a.nii.gz")
    written = saved(tmp_path, {**read.meta, "affine": read.affine}, ending, LABEL[..., 0])
    found = LoadImage(image_only=True, ensure_channel_first=True)(written)
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(found[0, ..., 0], LABEL[..., 0])


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_a_plane_of_two_axes_stays_one(tmp_path, ending):
    image = itk.image_from_array(np.ascontiguousarray(IMAGE[..., 0].T))
    image.SetSpacing([0.3, 0.4])
    image.SetOrigin([4.0, -5.0])
    itk.imwrite(image, str(tmp_path / f"a{ending}"))
    read = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / f"a{ending}")
    meta = {**read.meta, "affine": to_affine_nd(3, read.affine)}
    written = itk.imread(str(saved(tmp_path, meta, ending, LABEL[..., 0])))
    assert list(itk.size(written)) == list(IMAGE.shape[:2])
    np.testing.assert_allclose(np.array(written.GetOrigin()), [4, -5])
    np.testing.assert_allclose(np.array(written.GetSpacing()), [0.3, 0.4])


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png"])
def test_a_full_disk_leaves_no_part_of_a_prediction_and_says_so_in_a_line(tmp_path, ending):
    label = np.random.default_rng(0).integers(0, 255, (160, 140, 1 if ending == ".png" else 4))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        with pytest.raises(RuntimeError) as error:
            saved(tmp_path, output_ext=ending, label=label)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert os.listdir(tmp_path) == []
    line = explain(error.value, "prediction")
    assert line is not None and "\n" not in line and line.startswith(str(tmp_path))
    if ending not in (".nrrd", ".mha", ".mhd"):  # ITK does not say why
        assert "no space left to write" in line and "--existing skip" in line


def test_what_cannot_be_written_for_another_reason_is_said_in_a_line(tmp_path):
    saver = SaveImage(tmp_path / "file", "seg", ".nii.gz", writer=writer_of(".nii.gz"), print_log=False)
    (tmp_path / "file" / "a").mkdir(parents=True)
    (tmp_path / "file" / "a" / "a_seg.nii.gz").mkdir()
    with pytest.raises(RuntimeError) as error:
        saver(MetaTensor(LABEL[None], meta={"filename_or_obj": "a.nii.gz"}))
    line = explain(error.value, "prediction")
    assert line is not None and "could not be written (IsADirectoryError" in line and "\n" not in line
