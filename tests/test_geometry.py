"""Labels on the grid of their images: the right voxels, or refused with both numbers and the switch that decides."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import samples
import torch
from helpers import workflow
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from scripts.dataio.datalist import read_datalist
from scripts.dataio.geometry import on_image_grid
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.stated import stated
from scripts.dataio.transforms import CheckVolumed
from scripts.errors import InputError, find_input_error
from scripts.preparation.create import create

IMAGE, LABEL = samples.blob((24, 20, 6), seed=1)
IMAGE[:4], LABEL[:4] = 300, 1  # no mirror image of itself
AFFINE = np.diag([1.5, 1.5, 5.0, 1.0])
AFFINE[:3, 3] = (-60, -70, -40)


def moved(*origin):
    affine = AFFINE.copy()
    affine[:3, 3] = origin
    return affine


def spaced(*spacing):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = AFFINE[:3, 3]
    return affine


def placed(folder, label, affine, trust=None, image=IMAGE, image_affine=AFFINE):
    """The label as it is trained on, and its values in the file."""
    for name, array, where in (("image", image, image_affine), ("label", label, affine)):
        nib.save(nib.Nifti1Image(array, where), folder / f"{name}.nii.gz")
    keys = ["image", "label"]
    check = CheckVolumed(in_channels=1, num_classes=2, trust=trust)
    steps = Compose([LoadFilesd(keys), EnsureChannelFirstd(keys), check])
    try:
        result = steps({key: str(folder / f"{key}.nii.gz") for key in keys})
    except RuntimeError as error:
        raise find_input_error(error) or error from None
    np.testing.assert_allclose(result["label"].affine, result["image"].affine)
    return result["label"][0].numpy()


@pytest.mark.parametrize(
    "affine, numbers",
    [
        (np.diag([1.5, 1.5, 5.0, 1.0]), r"from \(0, 0, 0\) against .*from \(-60, -70, -40\)"),
        (moved(-45, -45, -40), r"from \(-45, -45, -40\) against .*from \(-60"),
        (spaced(0.7, 0.7, 5.0), r"0\.7 x 0\.7 x 5 mm .* against 1\.5 x 1\.5 x 5 mm"),
        (AFFINE @ np.diag([-1.0, 1, 1, 1]), r"from \(-94\.5, -70, -40\) against"),
    ],
    ids=["origin lost", "moved", "stale spacing", "mirrored"],
)
def test_the_same_voxels_elsewhere_are_refused_until_said_what_counts(tmp_path, affine, numbers):
    total = int(LABEL.sum())
    with pytest.raises(InputError, match=rf"label\.nii\.gz: .*{numbers}.* of its {total} foreground.*--trust voxels"):
        placed(tmp_path, LABEL, affine)
    np.testing.assert_array_equal(placed(tmp_path, LABEL, affine, "voxels"), LABEL)


def test_following_the_header_loses_no_foreground(tmp_path):
    with pytest.raises(InputError, match=r"lie outside of its image .*give --trust voxels"):
        placed(tmp_path, LABEL, moved(0, 0, 0), "header")
    small = np.zeros_like(LABEL)
    small[10:14, 8:12, 2:4] = 1
    shifted = placed(tmp_path, small, moved(-57, -70, -35), "header")
    np.testing.assert_array_equal(shifted, np.roll(small, (2, 0, 1), (0, 1, 2)))
    finer, one = spaced(0.5, 0.5, 5.0), np.zeros((72, 60, 6), np.uint8)
    one[30, 30, 3] = 1  # smaller than a voxel of the image, between two of them
    with pytest.raises(InputError, match="nothing is left"):
        placed(tmp_path, np.roll(one, 1, 0), finer, "header")


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR", "PIR"])
def test_another_orientation_is_turned_even_with_axes_in_another_order(tmp_path, codes):
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    stored = nib.Nifti1Image(LABEL, AFFINE).as_reoriented(turn)
    np.testing.assert_array_equal(placed(tmp_path, np.asarray(stored.dataobj), stored.affine), LABEL)


def test_a_label_of_a_part_of_the_image_is_filled_up(tmp_path):
    label = np.zeros_like(LABEL)
    label[10:14, 8:12, 2:4] = 1
    affine = AFFINE.copy()
    affine[:3, 3] = AFFINE[:3, :3] @ (9, 7, 1) + AFFINE[:3, 3]
    np.testing.assert_array_equal(placed(tmp_path, label[9:16, 7:14, 1:5], affine), label)
    with pytest.raises(InputError, match="label has shape"):  # cut by hand, the header left as it was
        placed(tmp_path, label[9:16, 7:14, 1:5], AFFINE)
    affine[0, 3] -= 1.5 * 12
    with pytest.raises(InputError, match="lie outside of its image"):
        placed(tmp_path, label[9:16, 7:14, 1:5], affine)


def test_a_segmentation_object_of_the_first_slices_is_filled_up_whatever_its_file_is_called(tmp_path):
    """Archives name DICOM files without an ending; slices that no segment shows are left out of the object."""
    samples.write_dicom(tmp_path, IMAGE[..., :1], ending="", storage="1.2.840.10008.5.1.4.1.1.66.4")
    (file,) = tmp_path.iterdir()
    affine = torch.as_tensor(AFFINE)
    image, part = (MetaTensor(torch.as_tensor(array)[None], affine=affine) for array in (IMAGE, LABEL[..., :3]))
    part.meta["filename_or_obj"] = str(file)
    expected = np.where(np.arange(6) < 3, LABEL, 0)
    np.testing.assert_array_equal(on_image_grid(part, image)[0], expected)
    part.meta["filename_or_obj"] = "cut_by_hand.nii.gz"
    with pytest.raises(InputError, match="label has shape"):
        on_image_grid(part, image)


def test_a_label_on_another_grid_is_resampled_only_on_request(tmp_path):
    finer = LABEL.repeat(2, 0).repeat(2, 1)
    affine = spaced(0.75, 0.75, 5.0)
    affine[:2, 3] -= 0.375
    with pytest.raises(InputError, match=r"label has shape \(48, 40, 6\).* --trust header"):
        placed(tmp_path, finer, affine)
    assert (placed(tmp_path, finer, affine, "header") == LABEL).mean() > 0.97


def test_planes_and_volumes_of_one_slice_are_no_exception(tmp_path):
    """A 2D NIfTI whose label is stored mirrored, with a header that says so; a plane as the label of a single slice."""
    image, label = IMAGE[..., 0], LABEL[..., 0]
    mirrored = AFFINE.copy()
    mirrored[0, 0], mirrored[0, 3] = -1.5, AFFINE[0, 3] + 1.5 * 23
    np.testing.assert_array_equal(placed(tmp_path, label[::-1], mirrored, image=image), label)
    whole = placed(tmp_path, label[::-1], mirrored, image=image[..., None])
    np.testing.assert_array_equal(whole, label[..., None])
    np.testing.assert_array_equal(placed(tmp_path, label[..., None], AFFINE, image=image), label)


def test_pictures_of_other_print_resolutions_lie_on_each_other(tmp_path):
    samples.write_tiff(tmp_path / "image.tif", IMAGE.astype(np.uint16), dpi=300)
    samples.write_tiff(tmp_path / "label.tif", LABEL, dpi=72)
    keys = ["image", "label"]
    steps = Compose([LoadFilesd(keys), EnsureChannelFirstd(keys), CheckVolumed(in_channels=1, num_classes=2)])
    result = steps({key: str(tmp_path / f"{key}.tif") for key in keys})
    np.testing.assert_array_equal(result["image"][0], IMAGE)
    np.testing.assert_array_equal(result["label"][0], LABEL)
    np.testing.assert_allclose(np.abs(np.diag(result["image"].affine)), 1)


def test_create_keeps_what_counts_for_the_training(tmp_path, capsys):
    for name, image, affine in (("a", IMAGE, AFFINE), ("b", IMAGE + 1, np.diag([1.5, 1.5, 5.0, 1.0]))):
        for folder, array, where in (("images", image, AFFINE), ("labels", LABEL, affine)):
            (tmp_path / folder).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, where), tmp_path / folder / f"{name}.nii.gz")
    options = {
        "images": str(tmp_path / "images"),
        "labels": str(tmp_path / "labels"),
        "output": str(tmp_path / "d.json"),
    }
    with pytest.raises(InputError, match=r"labels/b\.nii\.gz: .* elsewhere by its header.* --trust header"):
        create(**options)
    create(**options, trust="voxels", class_names="background,organ")
    assert "1 labels are stored otherwise" in capsys.readouterr().out
    assert stated(tmp_path / "d.json", "trust") == "voxels"
    assert len(read_datalist(tmp_path / "d.json", tmp_path, "training")) == 2
    flow = workflow("train", "train", dataset_dir=str(tmp_path), datalist=str(tmp_path / "d.json"),
                    output_dir=str(tmp_path), class_names=["background", "organ"], spatial_size=32)  # fmt: skip
    read = flow.parser.get_parsed_content("train#preprocessing")
    item = {key: str(tmp_path / f"{key}s" / "b.nii.gz") for key in ("image", "label")}
    assert int(read(item)["label"].sum()) > 0
