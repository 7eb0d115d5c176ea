"""Folders as people really have them: what may be of one patient, what is no label, what a list must not look at."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import samples
from scripts import command_line
from scripts.dataio.patients import group_cases, patients_line
from scripts.errors import InputError
from scripts.preparation.create import create, main
from scripts.preparation.merge import _masks
from scripts.preparation.split import as_names
from scripts.preparation.survey import survey

LABEL = np.zeros((12, 12, 4), np.int16)
LABEL[3:8, 3:8, 1:3] = 1


def image(path: Path, seed: int = 0, level: float = 50, ct: bool = True) -> None:
    noise = np.random.default_rng(seed).normal(0, 5, LABEL.shape)
    array = np.where(LABEL > 0, level, -1000 if ct else 0) + noise
    samples.write_nifti(path, array.astype(np.int16))


def label(path: Path, value: int = 1) -> None:
    samples.write_nifti(path, LABEL * value)


def made(root: Path, **options) -> dict:
    output = root / "datalist.json"
    output.unlink(missing_ok=True)
    if "data" not in options:
        options = {"images": str(root / "images"), "labels": str(root / "labels"), **options}
    create(output=str(output), **options)
    return json.loads(output.read_text())


def names(items: list[dict]) -> set[str]:
    return {Path(item["image"]).name.split(".")[0] for item in items}


def pairs(root: Path, *cases: str) -> None:
    for seed, case in enumerate(cases):
        image(root / "images" / f"{case}.nii.gz", seed)
        label(root / "labels" / f"{case}.nii.gz")


def test_the_window_is_of_what_is_trained_on(tmp_path, capsys):
    """Not of the labels of the test patient, of those left out, or of an image that is no CT."""
    pairs(tmp_path, "P1", "P2", "P3", "P4")
    first = made(tmp_path, labeled="P1", testing="P4")["window"]
    for seed, case in enumerate(("P2", "P4")):
        image(tmp_path / "images" / f"{case}.nii.gz", 8 + seed, level=1500)
    assert made(tmp_path, labeled="P1", testing="P4")["window"] == first and first[1] < 200
    assert made(tmp_path, labeled="P1,P2", testing="P4")["window"][1] > 1000
    image(tmp_path / "images" / "P2.nii.gz", 9, level=1500, ct=False)
    capsys.readouterr()
    assert made(tmp_path, labeled="P1,P2", testing="P4")["window"] == first
    assert "P2.nii.gz first, which the window will not suit: take them out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cases", "patients"),
    [
        (("T1/P1", "T1/P2", "T2/P1", "T2/P2"), 2),
        (("visit1/P1", "visit2/P1", "visit2/P2"), 2),
        (("visit1/P1/ct", "visit2/P1/ct", "visit2/P2/ct"), 2),
        (("ses-1/P1_flair", "ses-2/P2_flair"), 2),
        (("P1_20190101", "P1_20200101", "P2_20190101"), 2),
        (("P1_2019-01-01/ct", "P1_2020-01-01/ct", "P2_2019-01-01/ct"), 2),
        (("P1_baseline", "P1_followup", "P1_followup2", "P2_pre", "P2_post"), 2),
        (("Patient01_visit1", "patient01_visit2", "PATIENT02_visit1"), 2),
        (("P1/t1", "P1/t2", "P2/t1"), 2),
        (("smith_20190101", "jones_20190101"), 2),
        (("scan_20190101", "scan_20190102"), 2),  # of whom, nobody says
        (("ct_prefix1", "ct_postal2"), 2),
        (("s1_post_001", "s1_post_002", "heart_pre_003"), 3),
    ],
)
def test_images_that_may_be_of_one_patient(cases, patients):
    groups = group_cases(dict.fromkeys(cases, Path("x.nii.gz")), {}).groups
    assert len(groups) == patients, groups


def test_names_that_show_no_patient_are_said_beside_those_that_do():
    cases = group_cases(dict.fromkeys(("P1_visit1", "P1_visit2", "other"), Path("x.nii.gz")), {})
    assert "1 whose names show none count as one each" in patients_line(cases) and "--group_by" in patients_line(cases)


def test_a_folder_of_one_sequence_says_nothing_of_patients():
    cases = group_cases(dict.fromkeys(("CT/case_001", "CT/case_002"), Path("x.nii.gz")), {})
    assert len(cases.groups) == 2 and not cases.known and patients_line(cases).startswith("not known")


def test_an_image_that_is_its_label_is_refused(tmp_path):
    pairs(tmp_path, "P1", "P2", "P3")
    label(tmp_path / "images" / "P2.nii.gz")
    with pytest.raises(InputError, match=r"images/P2\.nii\.gz: expected an image, received the voxels of its label"):
        made(tmp_path)


def test_what_looks_wrong_is_said(tmp_path, capsys):
    pairs(tmp_path, "case_1", "case_2", "case_10")
    moved = np.roll(LABEL, 2, axis=0)
    samples.write_nifti(tmp_path / "labels" / "case_2.nii.gz", moved)
    samples.write_nifti(tmp_path / "images" / "blank.nii.gz", LABEL * 0)
    (tmp_path / "labels" / "case_3.mat").write_bytes(b"")
    made(tmp_path)
    said = capsys.readouterr().out
    assert "case_10.nii.gz: the same voxels as the label of case_1, though their images differ" in said
    assert "1 images show one value alone, blank.nii.gz first" in said
    assert "1 files among the labels that are not read: .mat 1" in said
    found = survey({"a": tmp_path / "images" / "case_1.nii.gz"}, {"a": tmp_path / "labels" / "case_1.nii.gz"})
    assert found.same_labels == []


@pytest.mark.parametrize("second", ["P1.seg.nrrd", "P1-seg.nii.gz"])
def test_two_labels_of_one_image_are_refused(tmp_path, second):
    for seed, case in enumerate(("P1", "P2")):
        image(tmp_path / "images" / f"{case}.nii.gz", seed)
        label(tmp_path / "labels" / f"{case}_seg.nii.gz")
    write = samples.write_itk if second.endswith("nrrd") else samples.write_nifti
    write(tmp_path / "labels" / second, LABEL)
    with pytest.raises(InputError, match=r"a second file of the case P1 beside .*; keep one of them"):
        made(tmp_path)


def test_an_empty_label_of_another_size_is_refused(tmp_path):
    pairs(tmp_path, "P1", "P2")
    samples.write_nifti(tmp_path / "labels" / "P2.nii.gz", np.zeros((20, 9, 4), np.int16))
    with pytest.raises(InputError, match=r"P2\.nii\.gz: label has shape \(20, 9, 4\), its image .* has \(12, 12, 4\)"):
        made(tmp_path)
    samples.write_nifti(tmp_path / "labels" / "P2.nii.gz", LABEL * 0)
    assert len(made(tmp_path)["training"]) == 2


def test_a_table_is_not_written_over(tmp_path):
    pairs(tmp_path, "P1", "P2")
    table = tmp_path / "my.csv"
    table.write_text("precious")
    with pytest.raises(InputError, match=r"my\.csv: exists already"):
        made(tmp_path, table=str(table), dry_run=True)
    assert table.read_text() == "precious"
    for _ in range(2):  # mended, and looked at again
        made(tmp_path, table=str(tmp_path / "table.csv"))
    assert (tmp_path / "table.csv").read_text().count("P1") >= 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [("7", 7), (7, 7), ("0", 0), ("1_2", ["1_2"]), ("1e1", ["1e1"]), ("1_3,1_4", ["1_3", "1_4"]), ("038", ["038"]),
     ("[038, '050']", ["038", "050"]), ("scan(1),scan(2)", ["scan(1)", "scan(2)"]),
     ("patient:6", ["6"]), ("-1", None), ("1.5", None), (True, None)],
)  # fmt: skip
def test_numbers_and_names_of_patients(given, expected):
    if expected is None:
        with pytest.raises(InputError, match="Expected a number of patients of 0 or more, or names, received"):
            as_names(given)
    else:
        assert as_names(given) == expected


def test_names_that_python_would_read_as_numbers(tmp_path, monkeypatch):
    """On the command line `1_2` is a name, and what a message suggests can be given."""
    for patient in (1, 2, 3):
        image(tmp_path / "images" / f"1_{patient}-ct.nii.gz", patient)
        label(tmp_path / "labels" / f"1_{patient}.nii.gz")
    line = ["create", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    line += ["--output", str(tmp_path / "list.json"), "--testing", "1_2"]
    monkeypatch.setattr(command_line, "one_line_errors", lambda: None)
    monkeypatch.setattr(sys, "argv", ["datalist", *line])
    with pytest.raises(InputError, match="say what such names end with by --image_suffix=-ct,"):
        main()
    monkeypatch.setattr(sys, "argv", ["datalist", *line, "--image_suffix=-ct"])
    main()
    lists = json.loads((tmp_path / "list.json").read_text())
    assert names(lists["testing"]) == {"1_2-ct"} and len(lists["training"]) == 2


def test_lists_and_channels_of_a_data_set(tmp_path, monkeypatch):
    """nnU-Net's `imagesVal` is for validation; and `MRI` is one modality, not three."""
    for folder, cases in (("Tr", ("a", "b")), ("Val", ("c",)), ("Ts", ("d",))):
        for case in cases:
            image(tmp_path / f"images{folder}" / f"{case}_0000.nii.gz", ord(case))
            label(tmp_path / f"labels{folder}" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    lists = made(tmp_path, data=str(tmp_path))
    assert {use: len(lists[use]) for use in ("training", "validation", "testing")} == {
        "training": 2, "validation": 1, "testing": 1}  # fmt: skip

    monkeypatch.setattr(command_line, "one_line_errors", lambda: None)
    for option, given in (("--testing", 1), ("--validation", 1)):  # 0, the default, leaves the lists of the data set
        line = ["create", "--data", str(tmp_path), "--output", str(tmp_path / f"list{option}.json"), option, "0"]
        monkeypatch.setattr(sys, "argv", ["datalist", *line])
        main()
        lists = json.loads((tmp_path / f"list{option}.json").read_text())
        assert len(lists["testing"]) == len(lists["validation"]) == given and len(lists["training"]) == 2
    assert len(made(tmp_path, data=str(tmp_path), folds=3)["training"]) == 3

    root = tmp_path / "decathlon"
    pairs(root, "a", "b")
    training = [{"image": f"images/{c}.nii.gz", "label": f"labels/{c}.nii.gz"} for c in "ab"]
    content = {"modality": "MRI", "labels": {"0": "background", "1": "organ"}, "training": training}
    (root / "dataset.json").write_text(json.dumps(content))
    assert len(made(root, data=str(root))["training"]) == 2


def test_what_a_folder_for_each_patient_leaves_out_is_said(tmp_path, caplog, capsys):
    """And a mask of the brain, which prepares an image, is not its label where another one is there."""
    for seed, patient in enumerate(("P1", "P2")):
        image(tmp_path / patient / f"{patient}_t1.nii.gz", seed)
        image(tmp_path / patient / f"{patient}_lesion.nii.gz", seed + 5)
        label(tmp_path / patient / f"{patient}_brain_mask.nii.gz")
        label(tmp_path / patient / f"{patient}_seg.nii.gz", 2)
    image(tmp_path / "P3.nii.gz", 9)
    lists = made(tmp_path, data=str(tmp_path), image_suffix="_t1")
    assert {Path(item["label"]).name for item in lists["training"]} == {"P1_seg.nii.gz", "P2_seg.nii.gz"}
    assert "2 files are left out, which neither end with _t1 nor are labels by their names" in caplog.text
    assert "1 files beside the folders of the patients are left out" in caplog.text and "P3.nii.gz first" in caplog.text
    said = capsys.readouterr().out
    assert "first pair" in said and "P1_t1.nii.gz with its label" in said


def test_copies_of_an_editor_are_no_masks(tmp_path):
    for folder in ("", ".ipynb_checkpoints"):
        label(tmp_path / folder / "liver.nii.gz")
    assert _masks(tmp_path, ["liver"]) == {"liver": [tmp_path / "liver.nii.gz"]}
    assert nib.load(tmp_path / "liver.nii.gz").shape == LABEL.shape


def at(path: Path, array: np.ndarray, affine: np.ndarray | None, kind: type = np.int16) -> None:
    """A NIfTI file that states this place in space, or none."""
    stored = nib.Nifti1Image(array.astype(kind), np.eye(4) if affine is None else affine)
    stored.set_data_dtype(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(stored, path)


@pytest.mark.parametrize("without", ["images", "labels"])
def test_labels_that_are_laid_by_a_guess_are_said(tmp_path, capsys, without):
    """Only one of image and label says how it lies: voxel by voxel may mirror the label."""
    pairs(tmp_path, "P1", "P2", "P3")
    made(tmp_path)
    assert "no place in space" not in capsys.readouterr().out
    for path in (tmp_path / without).iterdir():
        at(path, np.asarray(nib.load(path).dataobj), None)
    made(tmp_path)
    assert re.search(r"warning +3 labels state no place in space while .*/labels/P1\.nii\.gz first: laid on them voxel",
                     capsys.readouterr().out)  # fmt: skip
    for path in (tmp_path / "images").iterdir():
        at(path, np.asarray(nib.load(path).dataobj), None)
        at(tmp_path / "labels" / path.name, LABEL, None)
    made(tmp_path)
    assert "no place in space" not in capsys.readouterr().out, "all alike"


def test_a_volume_without_a_place_among_others_is_said(tmp_path, capsys):
    pairs(tmp_path, "P1", "P2", "P3")
    turned = np.moveaxis(np.asarray(nib.load(tmp_path / "images" / "P3.nii.gz").dataobj), 2, 0)
    at(tmp_path / "images" / "P3.nii.gz", turned, None)
    at(tmp_path / "labels" / "P3.nii.gz", np.moveaxis(LABEL, 2, 0), None)
    made(tmp_path)
    assert "1 images state no place in space, P3.nii.gz first, and others do: taken" in capsys.readouterr().out


def test_labels_that_are_nearly_whole_numbers_make_the_window(tmp_path, capsys):
    pairs(tmp_path, "P1", "P2")
    window = made(tmp_path)["window"]
    for path in (tmp_path / "labels").iterdir():
        at(path, LABEL * 0.9999, nib.load(path).affine, np.float32)
    assert made(tmp_path)["window"] == window and "usual for soft tissue" not in capsys.readouterr().out
    (tmp_path / "labels" / "P2.nii.gz").unlink()
    samples.write_nifti(tmp_path / "labels" / "P1.nii.gz", LABEL * 0)
    assert made(tmp_path, label_values="0,1")["window"] == [-150, 250]
    assert "become 0 and 1, as is usual for soft tissue, for no label" in capsys.readouterr().out


def test_voxels_of_labels_are_counted_on_the_grid_of_the_image(tmp_path, capsys):
    pairs(tmp_path, "P1", "P2")
    fine = nib.load(tmp_path / "labels" / "P1.nii.gz")
    coarse = np.zeros((6, 6, 4), np.int16)
    coarse[1:4, 1:4, 1:3] = 1
    affine = fine.affine @ np.diag([2, 2, 1, 1])
    affine[:3, 3] = (fine.affine @ [0.5, 0.5, 0, 1])[:3]
    at(tmp_path / "labels" / "P1.nii.gz", coarse, affine)
    (tmp_path / "labels" / "P2.nii.gz").unlink()
    made(tmp_path, trust="header")
    said = capsys.readouterr().out
    share = 36 * 2 / LABEL.size
    assert re.search(rf"label 1 +{share:.2%} of the voxels", said) and "another orientation or grid, or a part" in said


def test_ct_of_which_half_is_not_in_hounsfield_units_is_said(tmp_path, capsys):
    pairs(tmp_path, "P1", "P2", "P3", "P4")
    for case in ("P2", "P4"):
        path = tmp_path / "images" / f"{case}.nii.gz"
        at(path, np.asarray(nib.load(path).dataobj) + 1024, nib.load(path).affine)
    assert "window" not in made(tmp_path)
    assert re.search(r"warning +2 of 4 images look like CT in Hounsfield units, P1\.nii\.gz first, and others do not, "
                     r"P2\.nii\.gz first: store all alike", capsys.readouterr().out)  # fmt: skip


def test_names_with_blanks_show_their_patients():
    for names in (("US frame 1 of case 1", "US frame 1 of case 2"), ("CT phase 2 001", "CT phase 2 002")):
        assert len(group_cases({name: Path("x") for name in names}, {}).groups) == 2
    cases = group_cases({f"P{p} slice {s}": Path("x") for p in (1, 2) for s in (1, 2)}, {})
    assert [*cases.groups] == ["P1", "P2"]
    cases = group_cases({name: Path("x") for name in ("Patient 12 a", "Patient 12 b", "Patient 3 a")}, {})
    assert {*cases.groups} == {"Patient 12", "Patient 3"}


@pytest.mark.parametrize(
    ("names", "example"),
    [
        (["HD_000", "HD_001", "HD_002"], ""),  # each may be a patient
        (["x10012", "x10013", "x20011"], r"'^(x\d{3})'"),
        (["a_1", "a_2", "b_1"], "'^([^_]+)'"),
        (["a 1", "a 2", "b 1"], "'^([^ _-]+)'"),
        (["a1x", "a1y", "a2x"], r"'^(\D*\d+)'"),
    ],
)
def test_an_example_of_group_by_puts_some_together_and_not_all(names, example):
    line = patients_line(group_cases({name: Path("x") for name in names}, {}))
    assert line.startswith("not known") and line.endswith(f", for instance {example}" if example else "the patient")


def test_an_expression_that_puts_nothing_together_is_said():
    images = {name: Path("x") for name in ("a x", "a y", "b x")}
    assert "no two are of one patient by it" in patients_line(group_cases(images, {}, "^(.+)"))
    assert "no two" not in patients_line(group_cases(images, {}, "^(.)"))


def test_the_first_pair_of_several_channels_is_told_by_its_files(tmp_path, capsys):
    for seed, case in enumerate(("p1", "p2")):
        for channel in range(2):
            image(tmp_path / "imagesTr" / f"{case}_000{channel}.nii.gz", 2 * seed + channel)
        label(tmp_path / "labelsTr" / f"{case}.nii.gz")
    said = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "x": 1}, "numTraining": 2,
            "file_ending": ".nii.gz"}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    made(tmp_path, data=str(tmp_path))
    folder = tmp_path / "imagesTr"
    assert f"{folder}/p1_0000.nii.gz + {folder}/p1_0001.nii.gz with its label" in capsys.readouterr().out
