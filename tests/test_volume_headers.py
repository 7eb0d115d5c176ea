"""Voxel sizes in 3D: missing, broken, or in another unit; and classes that coarse voxels lose."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.dataio.loaders import read_item
from scripts.dataio.readers import LoadFilesd, image_loader, read_grid
from scripts.dataio.slice_axis import direction_of
from scripts.dataio.transforms import SliceGridd
from scripts.dataio.volume_grid import VolumeGridd, spacings_of
from scripts.errors import InputError
from scripts.preparation.survey import look

SHAPE = (12, 13, 14)


def write(folder: Path, name: str, affine: np.ndarray | None = None, **header) -> dict[str, str]:
    """An uncompressed volume of 0.8 x 0.8 x 2 mm unless said otherwise, with fields of its header set by hand."""
    path = folder / f"{name}.nii"
    affine = np.diag([0.8, 0.8, 2.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine), path)
    content = bytearray(path.read_bytes())
    fields = nib.Nifti1Header(bytes(content[:348]))
    for field, value in header.items():
        fields[field] = value
    content[:348] = fields.binaryblock
    path.write_bytes(content)
    return {"image": str(path)}


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [0, 0, 0.001, 0], [0, 0, np.nan, 0]])
def test_a_broken_place_in_a_header_is_mended_alike_where_the_voxel_size_is_chosen(tmp_path, row):
    """MONAI's reader then takes the other of NIfTI's two places; so does what looks at headers alone."""
    item = write(tmp_path, "broken", srow_z=row)
    loaded = image_loader()(item["image"]).affine.numpy()
    np.testing.assert_allclose(read_grid(item["image"])[0], loaded, atol=1e-6)
    assert spacings_of([item]) == [pytest.approx([0.8, 0.8, 2.0])]
    assert direction_of([item]) == "S"


@pytest.mark.parametrize("size, kept", [(0.8, True), (0.803, True), (1.0, False)])
def test_a_volume_stays_turned_where_its_header_rounds_the_voxel_size(tmp_path, caplog, size, kept):
    """MONAI's reader drops the only place that a header states for a difference of 0.001 %: front became right."""
    affine = np.array([[0, 0, 2.0, 40], [-0.8, 0, 0, 30], [0, -0.8, 0, 20], [0, 0, 0, 1]])
    item = write(tmp_path, f"sized{size}", affine, qform_code=0, quatern_b=0, quatern_c=0, quatern_d=0,
                 pixdim=[1, size, size, 2, 0, 0, 0, 0])  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="semsim"):
        loaded = image_loader()(item["image"]).affine.numpy()
        np.testing.assert_allclose(read_grid(item["image"])[0], loaded, atol=1e-6)
    assert np.allclose(loaded, affine, atol=1e-4) == kept
    assert (direction_of([item]) == "R") == kept
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == (0 if kept else 1), "once"
    assert kept or "sized1.0.nii: its header states voxels of 1 x 1 x 2 mm, and a place in space with" in told[0]


@pytest.mark.parametrize(("other", "codes", "told"), [
    ((-0.8, 0.8, 2.0), (4, 1), "one mirrors the other"), ((-0.8, -0.8, 2.0), (1, 1), "lie 32.6 voxels apart"),
    ((-0.8, -0.8, 2.0), (4, 1), ""), ((0.8, 0.8, 2.0), (1, 1), ""),
])  # fmt: skip
def test_two_places_that_contradict_each_other_are_said(tmp_path, caplog, other, codes, told):
    """Of an atlas and of the scanner they may differ, but not in what is left; the sform is used."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    image.set_sform(np.diag([0.8, 0.8, 2.0, 1.0]), codes[0])
    image.set_qform(np.diag([*other, 1.0]), codes[1], update_affine=False)
    nib.save(image, tmp_path / "a.nii")
    with caplog.at_level(logging.WARNING, logger="semsim"):
        for _ in range(2):
            np.testing.assert_allclose(image_loader()(tmp_path / "a.nii").affine, np.diag([0.8, 0.8, 2.0, 1.0]))
    assert len(caplog.records) == bool(told), "once"
    assert not told or re.search(rf"a\.nii: its header states two places in space, of which .*{told}", caplog.text)


@pytest.mark.parametrize(("slope", "inter", "factor", "added"), [
    (0, 5, 1, 0), (np.nan, np.nan, 1, 0), (np.inf, 0, 1, 0), (2.5, 3, 2.5, 3),
])  # fmt: skip
def test_a_slope_of_nothing_scales_nothing(tmp_path, slope, inter, factor, added):
    item = write(tmp_path, "scaled", scl_slope=slope, scl_inter=inter)
    stored = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    np.testing.assert_allclose(image_loader()(item["image"])[0], stored * factor + added)


def test_an_affine_of_nan_does_not_stop_the_choice_of_voxels_and_slices(tmp_path):
    lost = write(tmp_path, "nan", srow_z=[0, 0, np.nan, 0], pixdim=[1, 0.8, 0.8, np.nan, 0, 0, 0, 0])
    items = [lost, write(tmp_path, "good")]
    assert spacings_of(items) == [pytest.approx([0.8, 0.8, 2.0])]
    assert direction_of(items) == "S"


@pytest.mark.parametrize(
    "header",
    [{"srow_z": [0] * 4}, {"srow_x": [1, 0, 1, 0], "srow_z": [0] * 4}, {"pixdim": [1, *[np.nan] * 3, *[0] * 4]}],
)
def test_a_volume_without_any_place_is_named_with_the_remedy(tmp_path, header):
    """`create` took it, and the training called the file unreadable; MONAI mends all but voxels of 1 mm."""
    lost = write(tmp_path, "lost", np.eye(4), **header, qform_code=0, sform_code=int("srow_z" in header))
    for read in (look, read_grid, lambda path: read_item(LoadFilesd("image"), {"image": path})):
        with pytest.raises(InputError, match=r"lost\.nii: expected a place of its voxels in mm, .*mend the header"):
            read(lost["image"])


def test_volumes_that_state_no_voxel_size_have_no_say_in_it_and_are_warned_of(tmp_path, caplog):
    unit = np.array([[1, 0, 0, -90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1.0]])
    silent = [write(tmp_path, "identity", np.eye(4)),
              write(tmp_path, "codes", np.eye(4), qform_code=0, sform_code=0)]  # fmt: skip
    stated = [write(tmp_path, "sized", qform_code=0, sform_code=0), write(tmp_path, "mni", unit)]
    assert spacings_of([*silent, *stated]) == [pytest.approx([0.8, 0.8, 2.0]), [1.0, 1.0, 1.0]]
    assert spacings_of(silent) == [[1.0, 1.0, 1.0]] * 2
    load = image_loader()

    def told(spacing) -> list[str]:
        caplog.clear()
        grid = VolumeGridd("image", spacing)
        for item in [*silent, *stated, *silent]:
            grid({"image": load(item["image"])})
        return [r.getMessage() for r in caplog.records]

    with caplog.at_level(logging.WARNING, logger="semsim"):
        warnings = told((0.8, 0.8, 2.0))
        assert [w.split(".nii: ")[0].split("/")[-1] for w in warnings] == ["identity", "codes"], "each once"
        assert "states no size of its voxels" in warnings[0] and "0.8 x 0.8 x 2 mm" in warnings[0]
        assert not told((1.0, 1.0, 1.0)), "nothing is resampled"


@pytest.mark.parametrize("size, seen", [(800.0, "12000 x 13000 x 14000"), (0.0008, "1 x 1 x 1")])
def test_a_size_in_another_unit_is_refused_before_memory_or_the_image_are_gone(tmp_path, size, seen):
    """Micrometres, and metres."""
    item = write(tmp_path, "unit", np.diag([size, size, size, 1.0]))
    with pytest.raises(InputError, match=rf"unit\.nii: by its header.*{size:g} mm.*{seen} voxels of 0\.8 x 0\.8"):
        VolumeGridd("image", (0.8, 0.8, 0.8))({"image": image_loader()(item["image"])})
    thin = VolumeGridd("image", (3.0, 1.0, 1.0))({"image": MetaTensor(torch.rand(1, 2, 20, 20))})
    assert thin["image"].shape == (1, 1, 20, 20)


NAMES = ("background", "liver", "tumour")


def labelled(dims: int) -> dict[str, MetaTensor]:
    """A label with a large class, a class of one voxel, and voxels that nobody judged."""
    label = torch.zeros(1, 16, 16, 16 if dims == 3 else 1)
    label[:, 2:10, 2:10] = 1
    label[:, 12, 12, 0] = 2
    label[:, 14, 14, 0] = -1
    meta = {"filename_or_obj": "liver.nii.gz"}
    return {"image": MetaTensor(torch.rand(label.shape)), "label": MetaTensor(label, meta=meta)}


def test_a_class_that_coarser_voxels_leave_nothing_of_is_said(caplog):
    item = labelled(3)
    with caplog.at_level(logging.WARNING, logger="semsim"):
        grid = VolumeGridd(["image", "label"], (3.0, 3.0, 3.0), mode=["trilinear", "nearest-exact"], class_names=NAMES)
        seen = torch.cat([grid(item)["label"] for _ in range(2)])
        assert set(seen.unique().tolist()) == {0, 1}
        (said,) = [r.getMessage() for r in caplog.records if "nothing is left" in r.getMessage()]
        assert said.startswith("liver.nii.gz: nothing is left of 'tumour' in voxels of") and "3 x 3 x 3 mm" in said
        caplog.clear()
        VolumeGridd(["image", "label"], (1.0, 1.0, 1.0), mode=["trilinear", "nearest-exact"])(item)
        assert not caplog.records


def test_a_class_that_smaller_slices_leave_nothing_of_is_said(caplog):
    with caplog.at_level(logging.WARNING, logger="semsim"):
        SliceGridd(["image", "label"], 5, slice_axis=2, mode=["bilinear", "nearest"])(labelled(2))
        (said,) = [r.getMessage() for r in caplog.records]
        assert said.startswith("liver.nii.gz: nothing is left of class 2") and "5 x 5 pixels" in said
        caplog.clear()
        SliceGridd(["image", "label"], 16, slice_axis=2, mode=["bilinear", "nearest"])(labelled(2))
        assert not caplog.records
