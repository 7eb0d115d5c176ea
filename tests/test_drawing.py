"""Slices as one looks at them: orientation, contours, colours."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from scripts.errors import InputError
from scripts.report.drawing import class_color, paint
from scripts.report.overlay import overlay
from scripts.report.planes import as_axes, as_planes, choose_slices, foreground_window


def test_overlay_shows_prediction_and_truth(tmp_path):
    affine = np.diag([1.5, 1.5, 8, 1])
    label = np.zeros((40, 40, 6), np.uint8)
    label[10:20, 10:25, 1:5] = 1
    label[22:30, 10:25, 1:5] = 2
    for name, volume in (("image", np.random.rand(40, 40, 6).astype(np.float32)), ("label", label)):
        nib.save(nib.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    paths = [str(tmp_path / n) for n in ("image.nii.gz", "label.nii.gz")]
    plain = overlay(*paths, str(tmp_path / "new" / "a.png"))
    both = overlay(*paths, str(tmp_path / "b.png"), truth=paths[1], slices=2)
    colored = [np.asarray(Image.open(p).convert("RGB")).astype(int) for p in (plain, both)]
    for picture in colored:
        assert (np.ptp(picture, axis=-1) > 60).sum() > 100, "contours are drawn in colour"
    assert colored[0].shape[1] > 1.5 * colored[1].shape[1], "four slices against two"

    def drawn(**options):
        return np.asarray(Image.open(overlay(*paths, str(tmp_path / "c.png"), **options)).convert("RGB")).astype(int)

    named = drawn(class_names="background,liver,tumour")
    assert np.array_equal(named, drawn(class_names=["background", "liver", "tumour"])), "as a command line gives them"
    nib.save(nib.Nifti1Image(np.where(label > 1, 60000, label).astype(np.int32), affine), tmp_path / "label.nii.gz")
    coded = drawn(class_names="background,liver")
    colours = [{*map(tuple, picture[np.ptp(picture, axis=-1) > 60])} for picture in (named, coded)]
    assert colours[0] != colours[1] and all((np.ptp(p, axis=-1) > 60).sum() > 100 for p in (named, coded))
    small = label * (np.indices(label.shape)[0] < 14)
    nib.save(nib.Nifti1Image(small, affine), tmp_path / "label.nii.gz")
    coloured = [(np.ptp(drawn(zoom=zoom), axis=-1) > 60).sum() for zoom in (False, True)]
    assert coloured[1] > coloured[0] + 200, "closer, so longer contours"


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [("a.png", {}, "would replace this file"), ("./../{}/b.png", {}, "would replace this file"),
     ("c.nii.gz", {}, "expected a file that ends with .png"), ("c", {}, "expected a file that ends with .png"),
     ("c.png", {"slices": 0}, "--slices: expected a whole number of 1 or more, received 0"),
     ("c.png", {"slices": "two"}, "--slices: expected a whole number of 1 or more, received 'two'")],
)  # fmt: skip
def test_overlay_draws_over_no_image(tmp_path, output, options, said):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path in paths:
        Image.fromarray(np.eye(20, dtype=np.uint8)).save(path)
    before = [Path(path).read_bytes() for path in paths]
    with pytest.raises(InputError, match=said):
        overlay(*paths, str(tmp_path / output.format(tmp_path.name)), **options)
    assert [Path(path).read_bytes() for path in paths] == before and len(list(tmp_path.iterdir())) == 2


def test_overlay_names_and_draws_values_as_they_are_coded(tmp_path, monkeypatch):
    """Those of 0, 2, 3 are not the names of 0, 1, 2; the background need not be 0, nor a class above it."""
    legends = []
    monkeypatch.setattr("scripts.report.overlay.class_legend", lambda figure, names, styles: legends.append(names))
    nib.save(nib.Nifti1Image(np.random.rand(20, 20, 3).astype(np.float32), np.eye(4)), tmp_path / "image.nii.gz")
    drawn = []
    for values, names in (
        ([0, 1, 2], "background,liver,tumour"),
        ([0, 2, 3], {0: "background", 2: "liver", 3: "tumour"}),
        ([7, 0, -1], {"7": "background", "0": "liver", "-1": "tumour"}),
        ([0, -1, 5], ""),
    ):
        label = np.full((20, 20, 3), values[0], np.int16)
        label[2:8, 2:8], label[10:16, 10:16] = values[1:]
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
        paths = [str(tmp_path / n) for n in ("image.nii.gz", "label.nii.gz", "a.png")]
        picture = np.asarray(Image.open(overlay(*paths, class_names=names)).convert("RGB")).astype(int)
        drawn.append((np.ptp(picture, axis=-1) > 60).sum())
    assert [sorted(names.values()) for names in legends] == [["liver", "tumour"]] * 3 + [["value -1", "value 5"]]
    assert all(0 not in names for names in legends) and min(drawn) > 0.8 * max(drawn)
    with pytest.raises(InputError, match=r"class_names: expected names by whole numbers, .*liver"):
        overlay(*paths, class_names={"liver": 1})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_blanks_no_slice(value):
    image = torch.rand(1, 20, 20, 3)
    expected = as_planes(MetaTensor(image.clone()), {}, slice_axis=2).image
    image[0, 0, 0, 0] = value
    found = as_planes(MetaTensor(image), {}, slice_axis=2).image
    assert np.isfinite(found).all() and np.abs(found - expected)[..., 1:].max() < 0.02
    assert np.isfinite(as_planes(MetaTensor(torch.full((1, 4, 4, 2), value)), {}).image).all()


def test_overlay_trusts_what_it_is_told_to(tmp_path):
    """Where headers contradict each other: the error names the option that settles it."""
    label = np.zeros((20, 20, 4), np.uint8)
    label[5:15, 5:15] = 1
    moved = np.diag([1.0, 1, 3, 1])
    moved[0, 3] = 4
    nib.save(nib.Nifti1Image(np.random.rand(20, 20, 4).astype(np.float32), np.diag([1.0, 1, 3, 1])), tmp_path / "i.nii")
    nib.save(nib.Nifti1Image(label, moved), tmp_path / "l.nii")
    paths = [str(tmp_path / name) for name in ("i.nii", "l.nii", "a.png")]
    with pytest.raises(InputError, match="--trust header, or --trust voxels"):
        overlay(*paths)
    drawn = [np.asarray(Image.open(overlay(*paths, trust=trust)).convert("RGB")) for trust in ("header", "voxels")]
    assert (drawn[0] != drawn[1]).any()
    with pytest.raises(InputError, match="trust: expected header, voxels or None, received 'me'"):
        overlay(*paths, trust="me")


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASR", "SPL"])
def test_however_stored_the_front_is_on_top_and_the_right_on_the_left(codes):
    """A mark in the patient's right front lands top left, with the number of its stored slice."""
    volume = np.zeros((8, 10, 4), np.float32)
    volume[6, 8, 3] = 1  # right, front, head
    stored = nib.Nifti1Image(volume, np.diag([1.0, 2.0, 5.0, 1.0]))
    stored = stored.as_reoriented(nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    ))  # fmt: skip
    array = np.asarray(stored.dataobj)
    image = MetaTensor(torch.tensor(array.copy())[None], affine=torch.tensor(stored.affine))
    planes = as_planes(image, {"truth": (torch.tensor(array.copy()) > 0)[None].long()})
    assert planes.image.shape == (10, 8, 4) and planes.aspect == pytest.approx(2.0)
    ((row, column, position),) = np.argwhere(planes.labels["truth"])
    assert (row, column) == (1, 1)
    axis = int(nib.io_orientation(stored.affine)[:, 0].tolist().index(2))
    assert planes.numbers[position] == np.argwhere(array > 0.5)[0][axis]


def test_pictures_keep_their_rows_and_colours():
    image = torch.zeros(3, 20, 12)  # as read: X, Y
    image[0, 2, 1] = 1
    planes = as_planes(MetaTensor(image), {"truth": (image[:1] > 0).long()}, picture=True)
    assert planes.image.shape == (12, 20, 1, 3) and planes.labels["truth"][1, 2, 0] == 1


def test_a_stack_of_pictures_is_cut_along_all_its_axes_not_thrice_into_its_pages():
    label = torch.zeros(1, 12, 20, 6)
    label[0, 3, 5, 1] = 1
    rows = [as_planes(MetaTensor(label), {"truth": label.long()}, picture=True, slice_axis=a)
            for a in as_axes("S,A,R", picture=True)]  # fmt: skip
    assert [planes.labels["truth"].shape for planes in rows] == [(20, 12, 6), (6, 12, 20), (6, 20, 12)]
    assert [np.argwhere(planes.labels["truth"]).tolist() for planes in rows] == [[[5, 3, 1]], [[1, 3, 5]], [[1, 5, 3]]]
    assert not any(planes.plane for planes in rows), "no direction of the body is claimed"
    (axis,) = as_axes("A", picture=True)
    alone = as_planes(MetaTensor(label), {"truth": label.long()}, picture=True, slice_axis=axis)
    assert alone.image.shape == (20, 12, 6), "on slices a stack is its pages, whatever the others are cut along"


def test_slices_and_window_follow_the_labels():
    label = np.zeros((30, 40, 9), int)
    label[10:20, 8:12, 2:7] = 1
    image = MetaTensor(torch.zeros(1, 40, 30, 9))
    planes = as_planes(image, {"truth": torch.tensor(label[::-1].copy().swapaxes(0, 1))[None]}, slice_axis=2)
    assert choose_slices(planes, 3).tolist() == [2, 4, 6] and len(choose_slices(planes, 99)) == 5
    rows, columns = foreground_window(planes)
    assert rows == (4.5, 24.5) and columns == (3.5, 15.5)


def test_a_volume_is_shown_in_three_planes(tmp_path):
    """A row each, cut across the axes of the body."""
    label = np.zeros((40, 36, 32), np.uint8)
    label[10:20, 10:14, 4:28] = 1
    for name, volume in (("image", np.random.rand(*label.shape).astype(np.float32)), ("label", label)):
        nib.save(nib.Nifti1Image(volume, np.diag([1.5, 1.5, 1.5, 1])), tmp_path / f"{name}.nii.gz")
    paths = [str(tmp_path / n) for n in ("image.nii.gz", "label.nii.gz")]
    one, three = (
        np.asarray(Image.open(overlay(*paths, str(tmp_path / "a.png"), slices=3, slice_axis=axes)).convert("RGB"))
        for axes in ("S", ("S", "A", "R"))
    )
    assert three.shape[0] > 2 * one.shape[0] and three.shape[1] == one.shape[1]
    rows = np.array_split((np.ptp(three.astype(int), axis=-1) > 60).sum(axis=1), 3)
    assert all(row.sum() > 100 for row in rows), "contours in every row"
    image = MetaTensor(torch.zeros(1, *label.shape), affine=torch.diag(torch.tensor([1.5, 1.5, 1.5, 1])))
    planes = [as_planes(image, {"truth": torch.tensor(label)[None].long()}, slice_axis=a) for a in as_axes("S,A,R")]
    assert [p.plane for p in planes] == ["axial", "coronal", "sagittal"]
    assert [p.image.shape for p in planes] == [(36, 40, 32), (32, 40, 36), (32, 36, 40)]


def test_paint_gives_every_class_its_colour():
    painted = paint(torch.tensor([[0, 1], [2, 2]]), 3)
    assert painted.shape == (3, 2, 2) and painted[:, 0, 0].sum() == 0
    torch.testing.assert_close(painted[:, 1, 0], torch.tensor(class_color(2)))
    colors = np.array([class_color(c) for c in range(1, 17)])  # the organs of an abdomen
    apart = np.abs(colors[:, None] - colors[None]).max(axis=-1) + np.eye(16)
    assert apart.min() > 0.1 and colors.min() >= 0 and colors.max() <= 1
    assert colors.max(axis=1).min() > 0.3, "none as dark as the background"
