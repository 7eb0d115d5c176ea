"""Who is who: cases of one file name, patients of several images, cases that stand twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import samples
import torch
from helpers import engine_with, workflow
from scripts.dataio.datalist import evaluation_key, read_datalist
from scripts.dataio.files import case_names
from scripts.dataio.patients import group_cases, patients_line
from scripts.errors import InputError
from scripts.evaluation.predict import prepared_output
from scripts.method.network import SegmentationNet
from scripts.preparation.create import create
from scripts.report.build import Report
from scripts.training.inputs import compare_inputs, inputs
from scripts.training.settings import SaveSettings


@pytest.fixture
def same_names(tmp_path) -> Path:
    """Four patients with a folder each, in which the files are called alike; the truth of one is empty."""
    items = []
    for patient in range(4):
        image, label = samples.blob((24, 20, 3), seed=patient)
        samples.write_nifti(tmp_path / f"images/P{patient}/mr.nii.gz", image)
        samples.write_nifti(tmp_path / f"labels/P{patient}/mr.nii.gz", label * (patient != 2))
        items.append({"image": f"images/P{patient}/mr.nii.gz", "label": f"labels/P{patient}/mr.nii.gz"})
    (tmp_path / "list.json").write_text(json.dumps({"training": items[:1], "testing": items[1:]}))
    return tmp_path


@pytest.mark.parametrize(
    "files, expected",
    [
        (["images/a.nii.gz", "images/b.nii.gz"], ["a", "b"]),
        (["images/P01/mr.nii.gz", "images/P02/mr.nii.gz", "images/P03/ct.mha"], ["P01/mr", "P02/mr", "P03/ct"]),
        (["x/a.nii.gz", "x/a.mha", "x/b.mha"], ["a.nii.gz", "a.mha", "b"]),
        (["x/a.nii.gz", "x/a.nii.gz"], ["a", "a"]),
        (["x/p1/dicom", "x/p2/dicom"], ["p1/dicom", "p2/dicom"]),
    ],
)
def test_a_name_is_short_where_it_tells_a_case_apart(files, expected):
    assert case_names(files) == expected
    assert case_names([f"/data/{file}" for file in files]) == expected


def test_patients_with_files_of_one_name_are_scored_and_reported_apart(same_names):
    network = SegmentationNet(out_channels=2)
    torch.save(network.state_dict(), same_names / "model_last.pt")
    common = {"dataset_dir": str(same_names), "datalist": str(same_names / "list.json"), "spatial_size": 32,
              "output_dir": str(same_names), "class_names": ["background", "organ"]}  # fmt: skip
    workflow("train", "train", "evaluate", **common).run()
    scores = pd.read_csv(same_names / "scores.csv")
    assert list(scores["case"]) == ["P1/mr", "P2/mr", "P3/mr"]
    assert json.loads((same_names / "scores.json").read_text())["cases"] == 3
    page = Report(same_names, class_names=["background", "organ"]).run().read_text(encoding="utf-8")
    assert all(f"P{k}/mr" in page for k in (1, 2, 3))
    assert [i["case"] for i in read_datalist(same_names / "list.json", same_names, "training")] == ["P0/mr"]
    items = read_datalist(same_names / "list.json", same_names, "testing")
    kept = prepared_output(items, same_names / "out")
    assert len(kept) == 3, "predictions keep the patients' folders"


def test_one_case_relative_absolute_and_by_a_link_in_two_lists_is_refused(same_names):
    os.symlink(same_names / "images/P0", same_names / "images/again")
    for other in (str(same_names / "images/P0/mr.nii.gz"), "images/again/mr.nii.gz", "images/../images/P0/mr.nii.gz"):
        lists = {"training": [{"image": "images/P0/mr.nii.gz", "label": "labels/P0/mr.nii.gz"}],
                 "unlabeled": [{"image": other}]}  # fmt: skip
        (same_names / "two.json").write_text(json.dumps(lists))
        with pytest.raises(InputError, match=r"stands in `training`.* and again in `unlabeled`"):
            read_datalist(same_names / "two.json", same_names, "training")


def test_a_resume_with_other_patients_of_the_same_names_is_refused(tmp_path):
    def start(labeled, unlabeled, folder="data"):
        engine = engine_with([{"loss": 1.0}])
        items = [[{"image": str(tmp_path / folder / f"{p}/mr.nii.gz")} for p in part] for part in (labeled, unlabeled)]
        SaveSettings(tmp_path / "run", {}, items[0], unlabeled=items[1], dataset_dir=tmp_path / folder).attach(engine)
        engine.run([0], max_epochs=1)

    start(["P0"], ["P1", "P2"])
    (tmp_path / "run" / "resume_checkpoint_1.pt").touch()
    start(["P0"], ["P1", "P2"], folder="moved")
    with pytest.raises(InputError, match=r"other labelled images \(1 new, P5/mr\.nii\.gz first; 1 gone, P0/mr"):
        start(["P5"], ["P1", "P2"])
    with pytest.raises(InputError, match=r"other unlabelled images \(1 new, P3/mr"):
        start(["P0"], ["P1", "P3"])
    with pytest.raises(InputError, match="another order"):
        start(["P0"], ["P2", "P1"])


def test_a_resume_with_files_that_have_changed_is_refused(tmp_path):
    """Labels are corrected and images replaced under their names; the best of other validation cases means nothing."""
    data, run = tmp_path / "data", tmp_path / "run"

    def start(validation="c"):
        engine = engine_with([{"loss": 1.0}])
        items = {name: {"image": str(data / f"{name}.nii"), "label": str(data / f"{name}_label.nii")} for name in "abc"}
        del items["b"]["label"]
        SaveSettings(run, {}, [items["a"]], unlabeled=[items["b"]], validation=[items[v] for v in validation],
                     dataset_dir=data).attach(engine)  # fmt: skip
        engine.run([0], max_epochs=1)

    data.mkdir()
    for name in ("a", "a_label", "b", "c", "c_label"):
        (data / f"{name}.nii").write_bytes(b"0123")
    start()
    (run / "resume_checkpoint_1.pt").touch()
    start()
    for name, content in (("a_label", b"0133"), ("c_label", b"0133"), ("b", b"01234")):
        (data / f"{name}.nii").write_bytes(content)
        with pytest.raises(InputError, match=rf"training_lists\.json: .* received 1 that have changed .*, {name}\.nii"):
            start()
        (data / f"{name}.nii").write_bytes(b"0123")
    with pytest.raises(InputError, match=r"other validation images \(1 gone, c\.nii with c_label\.nii first\)"):
        start(validation="")
    lists = json.loads((run / "training_lists.json").read_text())
    assert lists.pop("contents").keys() == {path.name for path in data.iterdir()} and lists.pop("validation")
    (run / "training_lists.json").write_text(json.dumps(lists))
    (data / "b.nii").write_bytes(b"01234")
    start(validation="")  # as written before they were compared


def test_a_resume_with_voxels_that_have_changed_beside_their_header_is_refused(tmp_path):
    image, label = samples.blob((6, 6, 2))
    item = {name: str(tmp_path / f"{name}.mhd") for name in ("image", "label")}
    samples.write_mhd(tmp_path / "image.mhd", image)
    samples.write_mhd(tmp_path / "label.mhd", label)
    began = tmp_path / "training_lists.json"
    began.write_text(json.dumps(inputs({"labelled": [item]}, tmp_path)))
    compare_inputs(began, inputs({"labelled": [item]}, tmp_path))
    samples.write_mhd(tmp_path / "label.mhd", 1 - label)
    with pytest.raises(InputError, match=r"received 1 that have changed since, label\.raw first"):
        compare_inputs(began, inputs({"labelled": [item]}, tmp_path))


def cases_of(*names: str, **options):
    files = {name: Path(f"{name}.nii.gz") for name in names}
    return group_cases(files, {}, **options)


@pytest.mark.parametrize(
    "names, patients",
    [
        (["sub-01_ses-01_T1w", "sub-01_ses-02_T1w", "sub-02_ses-01_T1w"], ["sub-01", "sub-02"]),
        (["ses-1/sub-A1/anat/sub-A1_T1w", "ses-2/sub-A1/anat/sub-A1_T1w"], ["sub-A1"]),
        (["patient001_slice_03", "patient001_slice_04", "patient002_slice_03"], ["patient001", "patient002"]),
        (["siteA/patient001/mr", "siteA/patient002/mr"], ["patient001", "patient002"]),
        (["A0S9_visit2_T1", "A0S9_visit10_T1", "B1_visit2_T1"], ["A0S9", "B1"]),
        (["P01/pre", "P01/post", "P02/pre"], ["P01", "P02"]),
        (["P01_visit1/t1", "P01_visit2/t1", "P02-ses-1-mr/t1", "P02-ses-2-mr/t1"], ["P01", "P02"]),
        (["day_1/t1", "day_2/t1"], ["day_1", "day_2"]),
        (["train/P1_visit1", "val/P1_visit3", "test/P2_visit1"], ["P1", "P2"]),
        (["training/P1/mr", "testing/P2/mr"], ["P1", "P2"]),
        (["train/case_1", "val/case_2"], ["train/case_1", "val/case_2"]),
        (["BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-MEN-00005-000"], ["BraTS-GLI-00005", "BraTS-MEN-00005"]),
        (["BraTS-GLI-00005-000/BraTS-GLI-00005-000-t1n", "BraTS-GLI-00005-001/seg"], ["BraTS-GLI-00005"]),
        (["case_001", "case_002"], ["case_001", "case_002"]),
        (["slice_001", "image_002"], ["slice_001", "image_002"]),
    ],
)
def test_names_that_show_patients_are_grouped(names, patients):
    assert list(cases_of(*names).groups) == patients


def test_what_is_not_known_of_patients_is_said(tmp_path, capsys):
    for seed, name in enumerate(("genius_0800", "genius_0801", "genius_0900", "genius_1000")):
        image, label = samples.blob((6, 6, 2), seed=seed)
        samples.write_nifti(tmp_path / "images" / f"{name}.nii.gz", image)
        samples.write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label)
    folders = [str(tmp_path / "images"), str(tmp_path / "labels")]
    create(*folders, str(tmp_path / "d.json"), dry_run=True, class_names="background,organ")
    shown = capsys.readouterr().out
    assert "not known: no name shows" in shown and r"the patient, for instance '^(genius_\d{2})'" in shown
    assert " 4 cases" in shown and "of 4 patients" not in shown and "4 patients" not in shown
    group = r"^(genius_\d{2})"
    create(*folders, str(tmp_path / "d.json"), dry_run=True, class_names="background,organ", group_by=group)
    shown = capsys.readouterr().out
    assert "patients    3 of 4 images, by --group_by" in shown and "4 of 3 patients" in shown
    assert "their outermost folder (2)" in patients_line(cases_of("a/x", "b/x", "sub-01_T1w"))
    assert "if they are of several" in patients_line(cases_of("skin/1", "skin/2"))


@pytest.mark.parametrize(
    "name, meant",
    [("val", "validation"), ("test", "testing"), ("unlabelled", "unlabeled"), ("train", "training"),
     ("Testing", "testing"), ("validaton", "validation")],
)  # fmt: skip
def test_lists_that_nothing_reads_are_refused_with_the_name_that_is_meant(same_names, name, meant):
    items = {"training": [{"image": "images/P0/mr.nii.gz", "label": "labels/P0/mr.nii.gz"}]}
    for value in (["images/P1/mr.nii.gz"], [{"image": "images/P1/mr.nii.gz"}]):
        (same_names / "l.json").write_text(json.dumps({**items, name: value, "modality": ["MR"]}))
        with pytest.raises(InputError, match=f"nothing reads the list `{name}`; if `{meant}` is meant"):
            read_datalist(same_names / "l.json", same_names, "training")
    if meant == "testing":
        with pytest.raises(InputError, match="nothing reads"):
            evaluation_key(same_names / "l.json")


def test_a_list_of_another_name_is_read_when_named_and_others_are_told_of(same_names, caplog):
    content = {"training": ["images/P0/mr.nii.gz"], "unlabelled": ["images/P1/mr.nii.gz"],
               "phantoms": ["images/P2/mr.nii.gz"], "names": ["Jane"]}  # fmt: skip
    (same_names / "l.json").write_text(json.dumps(content))
    for key in ("training", "unlabeled"):
        read_datalist(same_names / "l.json", same_names, key, unlabeled_key="unlabelled", require_label=False)
    assert "nothing reads the list `phantoms`" in caplog.text and "names" not in caplog.text
    assert read_datalist(same_names / "l.json", same_names, "testing") == [], "a prediction of `testing` goes on"
    with pytest.raises(InputError, match="unlabeled_key unlabled: no such list; expected one of training, unlabelled"):
        read_datalist(same_names / "l.json", same_names, "unlabeled", unlabeled_key="unlabled")


def test_names_as_windows_and_macos_write_them(tmp_path):
    composed, apart = "M\u00fcller", "Mu\u0308ller"
    samples.write_nifti(tmp_path / "images" / f"{apart}.nii.gz", samples.blob((6, 6, 2))[0])
    samples.write_nifti(tmp_path / "labels" / f"{apart}.nii.gz", samples.blob((6, 6, 2))[1])
    files = [str(tmp_path / name) for name in ("images", "labels", "d.json")]
    names = tmp_path / "names.csv"
    names.write_bytes(f"\ufeff{apart}\r\n".encode())
    for number, named in enumerate((composed, apart, str(names))):
        create(*files[:2], str(tmp_path / f"{number}.json"), labeled=named, check=False)
    for coding in ("utf-16", "latin-1"):
        names.write_text(f"{composed}\n", encoding=coding)
        with pytest.raises(InputError, match=r"names\.csv: expected names in UTF-8, .*; save it so"):
            create(*files, labeled=str(names), check=False)
    (tmp_path / "0.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "0.json").read_bytes())
    assert len(read_datalist(tmp_path / "0.json", tmp_path, "training")) == 1


def test_patients_of_any_name_can_be_named(tmp_path, capsys):
    for name in ("Jane Doe", "Roe, John", "6", "12", "p7"):
        image, label = samples.blob((6, 6, 2))
        samples.write_nifti(tmp_path / "images" / name / "mr.nii.gz", image)
        samples.write_nifti(tmp_path / "labels" / name / "mr.nii.gz", label)
    (tmp_path / "names.txt").write_text("Jane Doe\nRoe, John\n\n")

    def made(**options) -> dict[str, set[str]]:
        (tmp_path / "d.json").unlink(missing_ok=True)
        create(*(str(tmp_path / name) for name in ("images", "labels", "d.json")), check=False, **options)
        lists = json.loads((tmp_path / "d.json").read_text())
        return {key: {Path(i["image"]).parts[1] for i in items} for key, items in lists.items() if items}

    assert made(labeled=str(tmp_path / "names.txt"))["training"] == {"Jane Doe", "Roe, John"}
    assert made(labeled="Jane Doe,p7")["training"] == {"Jane Doe", "p7"}
    assert made(labeled="p7 12")["training"] == {"p7", "12"} == made(labeled=("p7", 12))["training"]
    assert made(labeled="patient:6", validation="patient:12,p7")["training"] == {"6"}
    assert "would be patient" not in capsys.readouterr().out
    (tmp_path / "images" / "6").rename(tmp_path / "images" / "2")
    (tmp_path / "labels" / "6").rename(tmp_path / "labels" / "2")
    assert len(made(labeled=2)["training"]) == 2
    assert "training: 2 patients are drawn; the patient of that name would be patient:2" in capsys.readouterr().out
