"""Any folder: formats, what is reported of it, and bad input named file by file, all at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import samples
from helpers import read_rows, workflow
from scripts.dataio.datalist import read_datalist
from scripts.dataio.loaders import read_item
from scripts.errors import InputError, find_input_error
from scripts.preparation.create import create
from scripts.preparation.survey import look


@pytest.fixture
def mixed(tmp_path) -> Path:
    """One volume in every format, each of another size and spacing; labels for two of them."""
    for number, (name, write) in enumerate({
        "a.nii.gz": samples.write_nifti, "b.mha": samples.write_itk, "c.nrrd": samples.write_itk,
        "d.mhd": samples.write_mhd, "e": samples.write_dicom, "f": samples.write_dicom,
    }.items()):  # fmt: skip
        image, label = samples.blob((12 + number, 10, 3), seed=number)
        write(tmp_path / "images" / name, image, **({"ending": ""} if name == "f" else {}))
        # NIfTI counts to the left where the others count to the right
        spacing = {"a.nii.gz": (1.5, 1.5, 8.0), "e": (-0.9, -0.9, 6.0)}.get(name)
        if spacing:
            samples.write_nifti(tmp_path / "labels" / f"{name.split('.')[0]}.nii.gz", label, spacing)
    (tmp_path / "images" / "notes.txt").write_text("scanned on a Monday")
    return tmp_path


def make(folder: Path, **options) -> dict:
    output = folder / "datalist.json"
    create(str(folder / "images"), str(folder / "labels"), str(output), **options)
    return json.loads(output.read_text()) if output.exists() else {}


def test_every_format_is_found_and_reported(mixed, capsys):
    content = make(mixed, table=str(mixed / "table.csv"), class_names="background,heart", validation=1)
    shown = capsys.readouterr().out
    for part in (
        "6, 2 with a label", "DICOM series 2", ".mhd 1", "12x10x3 to 17x10x3 voxels", "0.6x0.6x3.6 to",
        "label 1 heart", "ignored", ".txt 1", "0.5 and 99.5 percentile", "monai.bundle run training",
    ):  # fmt: skip
        assert part in shown, shown
    assert {item["image"] for name in ("unlabeled", "training", "validation") for item in content[name]} == {
        "images/a.nii.gz", "images/b.mha", "images/c.nrrd", "images/d.mhd", "images/e", "images/f"
    }  # fmt: skip
    rows = {row["case"]: row for row in read_rows(mixed / "table.csv")}
    assert rows["d"]["spacing"] == "0.6x0.6x3.6" and rows["a"]["label_values"] == "0 1" and rows["b"]["label"] == ""
    items = read_datalist(mixed / "datalist.json", mixed, "unlabeled")
    assert all(read_item(lambda item: look(Path(item["image"])), item).shape[1:] == (10, 3) for item in items)


def test_mixed_formats_train_and_a_dicom_series_is_predicted(mixed):
    samples.write_nifti(mixed / "labels" / "c.nii.gz", samples.blob((14, 10, 3), seed=2)[1], (-0.8, -0.8, 5.0))
    make(mixed, labeled="a,e", validation="c")
    options = {"show_progress": False, "spatial_size": 32, "class_names": ["background", "heart"]}
    workflow("train", "train", "semsim_minus", dataset_dir=str(mixed), datalist=str(mixed / "datalist.json"),
             output_dir=str(mixed / "run"), epochs=1, batch_size=2, **options).run()  # fmt: skip
    assert (mixed / "run" / "model_best.pt").exists()
    workflow("infer", "inference", dataset_dir=str(mixed / "images" / "f"), output_dir=str(mixed / "p"),
             ckpt_path=str(mixed / "run" / "model_last.pt"), show_progress=False).run()  # fmt: skip
    predicted = nib.load(mixed / "p" / "f_seg.nii.gz")
    assert predicted.shape == (17, 10, 3)
    np.testing.assert_allclose(predicted.header.get_zooms(), (0.9, 0.9, 6.0), atol=1e-4)


def test_dry_run_writes_nothing(mixed, capsys):
    assert make(mixed, dry_run=True) == {} and "nothing written" in capsys.readouterr().out


def test_patients_are_the_outermost_folders(tmp_path):
    for seed, name in enumerate(("p1/a", "p1/b", "p2/x/a", "p3_frame01", "p3_frame02")):
        image, label = samples.blob((6, 6, 2), seed=seed)
        samples.write_nifti(tmp_path / "images" / f"{name}.nii.gz", image)
        samples.write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label)
    content = make(tmp_path, labeled="p1", validation="p2,p3")
    assert {item["image"] for item in content["training"]} == {"images/p1/a.nii.gz", "images/p1/b.nii.gz"}
    assert len(content["validation"]) == 3


def test_labels_named_otherwise_or_in_the_same_folder(tmp_path, capsys):
    image, label = samples.blob((6, 6, 2))
    for case, scan in {"a": image, "b": image[::-1]}.items():
        samples.write_nifti(tmp_path / "data" / f"{case}_0000.nii.gz", scan)
    samples.write_nifti(tmp_path / "data" / "a_seg.nii.gz", label * 255)
    options = {"output": str(tmp_path / "d.json"), "label_suffix": "_seg", "image_suffix": "_0000"}
    create(str(tmp_path / "data"), str(tmp_path / "data"), **options, class_names=["background", "organ"])
    content = json.loads((tmp_path / "d.json").read_text())
    assert content["training"] == [{"image": "a_0000.nii.gz", "label": "a_seg.nii.gz"}]
    assert content["unlabeled"] == [{"image": "b_0000.nii.gz"}]
    assert content["labels"] == {"0": "background", "255": "organ"}


@pytest.mark.parametrize(
    ("image", "label", "paired"),
    [
        ("img000{}", "label000{}", True),
        ("volume-{}", "segmentation-{}", True),
        ("P{0}/T2_00{0}", "P{0}/seg_00{0}", True),
        ("patient{}", "mask_patient{}", True),
        ("img{}", "scan{}", False),
        ("img{}", "label_b{}", False),
    ],
    ids=["BTCV", "LiTS", "folders", "images without a word of their own", "no word for labels", "another name"],
)
def test_labels_whose_names_begin_otherwise(tmp_path, caplog, image, label, paired):
    for number in range(4):
        scan, truth = samples.blob((6, 6, 2), seed=number)
        samples.write_nifti(tmp_path / "images" / f"{image.format(number)}.nii.gz", scan)
        if number:
            samples.write_nifti(tmp_path / "labels" / f"{label.format(number)}.nii.gz", truth)
    if not paired:
        with pytest.raises(InputError, match="without an image of that name"):
            make(tmp_path)
        return
    content = make(tmp_path, validation=1, testing=0)
    pairs = {item["image"]: item["label"] for item in content["training"] + content["validation"]}
    assert pairs == {f"images/{image.format(k)}.nii.gz": f"labels/{label.format(k)}.nii.gz" for k in (1, 2, 3)}
    assert content["unlabeled"] == [{"image": f"images/{image.format(0)}.nii.gz"}]
    assert f"taken for the label of {image.format(1)}" in caplog.text
    if "/" in image:
        return
    for path in (tmp_path / "labels").iterdir():  # the same in one folder
        path.rename(tmp_path / "images" / path.name)
    create(str(tmp_path / "images"), str(tmp_path / "images"), str(tmp_path / "one.json"), validation=1)
    content = json.loads((tmp_path / "one.json").read_text())
    assert {i["image"]: i["label"] for i in content["training"] + content["validation"]} == {
        k.replace("images/", ""): v.replace("labels/", "") for k, v in pairs.items()
    }
    assert content["unlabeled"] == [{"image": f"{image.format(0)}.nii.gz"}]


def test_every_bad_file_is_named_at_once_with_its_remedy(mixed):
    images, labels = mixed / "images", mixed / "labels"
    image, label = samples.blob((12, 10, 3))
    (images / "broken.nii.gz").write_bytes(b"not an image")
    (images / "cut.mha").write_bytes((images / "b.mha").read_bytes()[:300])
    samples.write_nifti(labels / "stray.nii.gz", label)
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 3, 20), np.int16), np.eye(4)), images / "cine.nii.gz")
    samples.write_picture(images / "colour.png", np.zeros((9, 9, 3), np.uint8))
    samples.write_nifti(images / "nan.nii.gz", np.full((8, 8, 3), np.nan, np.float32))
    samples.write_nifti(labels / "b.nii.gz", label[:-1])
    samples.write_nifti(labels / "c.nii.gz", image.astype(np.float32) / 7)
    samples.write_dicom(images / "e", image, series=2)
    with pytest.raises(InputError) as error:
        make(mixed)
    lines = str(error.value).splitlines()
    for name, remedy in {
        "broken.nii.gz": "replace the file", "cut.mha": "replace the file", "stray.nii.gz": "rename or remove",
        "cine.nii.gz": "4D image of 20 volumes; split", "colour.png": "convert", "nan.nii.gz": "nan_to_num",
        "labels/b.nii.gz": "resample the label", "labels/c.nii.gz": "whole numbers", "images/e": "into its own folder",
    }.items():  # fmt: skip
        (line,) = [text for text in lines if f"{name}:" in text]
        assert remedy in line and len(line) < 400, line
    assert len(lines) == 10 and lines[0].startswith("9 problems") and not (mixed / "datalist.json").exists()


@pytest.mark.parametrize(
    ("shape", "spacing", "suits"),
    [((36, 34, 40), 1.5, True), ((36, 34, 40), 6.0, False), ((40, 36, 12), 1.5, False)],
    ids=["isotropic", "thick slices", "few slices"],
)
def test_volumes_that_suit_a_3d_network_are_told(tmp_path, capsys, shape, spacing, suits):
    for kind, volume in zip(("images", "labels"), samples.blob(shape)):
        (tmp_path / kind).mkdir()
        nib.save(nib.Nifti1Image(volume, np.diag([1.5, 1.5, spacing, 1])), tmp_path / kind / "a.nii.gz")
    create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "d.json"), class_names="background,organ")
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("  python -m monai.bundle run training")]
    assert ["configs/volumes.yaml" in line for line in commands] == [False, True][: 1 + suits]
    assert lines[-1] == commands[-1] and any(line.startswith("3D ") for line in lines) == suits


def test_sizes_of_nifti_are_told_in_the_unit_of_its_header(tmp_path, capsys):
    """Micrometres were called millimetres, and nothing told them apart from others."""
    for seed, (name, unit, size) in enumerate((("a", "micron", 800), ("b", "micron", 800), ("c", "mm", 0.8))):
        image = nib.Nifti1Image(samples.blob((12, 10, 3), seed)[0], np.diag([size, size, 2 * size, 1]))
        image.header.set_xyzt_units(unit)
        (tmp_path / "images").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "images" / f"{name}.nii.gz")
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", samples.blob((12, 10, 3))[1], (800, 800, 1600))
    make(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("spacing")).endswith("800x800x1600 um or mm (2 different)")
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "1 images state their size in mm, c.nii.gz first, and most in um" in warning


def test_images_that_state_no_voxel_size_are_counted(tmp_path, capsys):
    """ITK takes 1 mm for it."""
    folder = tmp_path / "images"
    for seed, name in enumerate(f"{said}_{kind}" for said in ("stated", "unsaid") for kind in ("a.nrrd", "b.mha", "d")):
        path, image = folder / name, samples.blob((12, 10, 3), seed)[0]
        (samples.write_dicom if name.endswith("d_d") else samples.write_itk)(path, image, (1, 1, 1))
        for file in path.iterdir() if path.is_dir() else [path]:
            size = rb"(space directions|ElementSpacing)[^\n]*\n|\x28\0\x30\0\x04\0\0\0.{4}"
            content, number = re.subn(size, b"", file.read_bytes(), flags=re.DOTALL)
            assert number
            if name.startswith("unsaid"):
                file.write_bytes(content)
    samples.write_nifti(tmp_path / "labels" / "stated_a.nii.gz", samples.blob((12, 10, 3))[1], (-1, -1, 1))
    make(tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert re.search(
        r"3 images state no voxel size, unsaid_a\.nrrd first, and count as 1 mm: .*mend their headers", line
    )


def test_channels_along_the_last_axis_on_request(tmp_path):
    _, label = samples.blob((8, 8, 3))
    for seed, case in enumerate("ab"):
        four = np.random.default_rng(seed).normal(size=(8, 8, 3, 4)).astype(np.float32)
        (tmp_path / "images").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(four, np.eye(4)), tmp_path / "images" / f"{case}.nii.gz")
        samples.write_nifti(tmp_path / "labels" / f"{case}.nii.gz", label)
    with pytest.raises(InputError, match="--channels 4"):
        make(tmp_path)
    assert make(tmp_path, channels=4)["channels"] == 4


def test_an_axis_of_channels_in_front_is_named(tmp_path):
    """Arrays of torch, saved as they are: NIfTI has channels behind."""
    image, label = samples.blob((12, 10, 3))
    samples.write_nifti(tmp_path / "images" / "a.nii.gz", image[None])
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", label[None])
    with pytest.raises(InputError) as refused:
        make(tmp_path)
    assert (
        str(refused.value).count("if its first axis, of one voxel, is that of a channel, save the array without") == 2
    )


def test_without_any_label_nobody_is_told_to_lower_numbers(tmp_path):
    for number in range(2):
        image, label = samples.blob((12, 10, 3), seed=number)
        samples.write_nifti(tmp_path / f"imagesTr/P{number}_0000.nii.gz", image)
        samples.write_nifti(tmp_path / f"labelstr/P{number}.nii.gz", label)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}}')
    with pytest.raises(
        InputError, match=r"expected a label for one of the images .*found none .*--images and --labels"
    ):
        create(data=str(tmp_path), output=str(tmp_path / "d.json"))


def test_class_names_have_to_fit_the_values(tmp_path):
    image, label = samples.blob((8, 8, 3), classes=3)
    samples.write_nifti(tmp_path / "images" / "a.nii.gz", image)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", label * 100)
    with pytest.raises(InputError, match="one name for each value"):
        make(tmp_path, class_names="background,organ")
    assert not (tmp_path / "datalist.json").exists()
    found = make(tmp_path, class_names="background,organ,lesion")
    assert found["labels"] == {"0": "background", "100": "organ", "200": "lesion"}


@pytest.mark.parametrize("label_format", ["identity", "png"])
def test_a_label_without_a_grid_of_its_own_lies_on_its_image(tmp_path, label_format):
    """Readers make up an identity for it; by that the image would be mirrored and the label not."""
    image, label = samples.blob((20, 16, 4), seed=5)
    image[:4], label[:4] = 250, 1  # no mirror image of itself
    if label_format == "identity":
        nib.save(nib.Nifti1Image(image, np.diag([-1.5, -1.5, 8.0, 1.0])), tmp_path / "image.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
        item = {"image": str(tmp_path / "image.nii.gz"), "label": str(tmp_path / "label.nii.gz")}
    else:
        samples.write_itk(tmp_path / "image.tif", image[..., 0].clip(0, 255).astype(np.uint8), (0.5, 0.5))
        samples.write_picture(tmp_path / "label.png", label[..., 0])
        item = {"image": str(tmp_path / "image.tif"), "label": str(tmp_path / "label.png")}
    flow = workflow("train", "train", dataset_dir=str(tmp_path), output_dir=str(tmp_path), spatial_size=32,
                    class_names=["background", "organ"])  # fmt: skip
    result = flow.parser.get_parsed_content("train#preprocessing")(item)
    inside, outside = (result["image"][result["label"] == c].mean() for c in (1, 0))
    assert result["label"].sum() > 100 and inside > outside + 0.3


def test_labels_stored_otherwise_are_reported(tmp_path, capsys):
    image, label = samples.blob((16, 16, 3))
    turned = nib.Nifti1Image(label, np.diag([1.5, 1.5, 8.0, 1.0])).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    for noise, case in enumerate("ab"):
        samples.write_nifti(tmp_path / "images" / f"{case}.nii.gz", image + noise)
        samples.write_nifti(tmp_path / "labels" / f"{case}.nii.gz", label)
    nib.save(turned, tmp_path / "labels" / "b.nii.gz")
    make(tmp_path)
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("headers")]
    assert "1 labels are stored otherwise" in line and "labels/b.nii.gz" in line
    (tmp_path / "datalist.json").unlink()
    samples.write_nifti(tmp_path / "labels" / "b.nii.gz", label, (-1.5, -1.5, 8.0))
    with pytest.raises(InputError, match=r"labels/b\.nii\.gz: .* lies elsewhere by its header"):
        make(tmp_path)


def test_values_and_classes_of_a_training_have_to_fit(tmp_path):
    flow = workflow("train", "train", label_values=[0, 255], dataset_dir=str(tmp_path), output_dir=str(tmp_path))
    with pytest.raises(RuntimeError) as error:
        flow.parser.get_parsed_content("train#preprocessing")
    assert "one value for each of the 4 classes" in str(find_input_error(error.value))


def test_names_alone_without_a_check(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").touch()
    assert make(tmp_path, check=False)["training"]


def test_command_line_ends_in_one_line_and_an_exit_code(run_bundle, mixed):
    (mixed / "images" / "broken.nii.gz").write_bytes(b"")
    options = ["--images", str(mixed / "images"), "--labels", str(mixed / "labels"), "--output", str(mixed / "d.json")]
    result = run_bundle("datalist", "create", *options, module="scripts", check=False)
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    assert result.returncode == 1 and len(errors) == 1 and "broken.nii.gz" in errors[0]
    assert "Reading files" in result.stderr and "Traceback" not in result.stderr


def test_masks_along_a_fourth_axis_are_told_from_pictures(tmp_path):
    image, label = samples.blob((8, 8, 3))
    samples.write_nifti(tmp_path / "images" / "a.nii.gz", image)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", np.stack([label, 1 - label], -1))
    with pytest.raises(InputError, match=r"2 channels; expected one of class indices, split a time series .* join"):
        make(tmp_path)
