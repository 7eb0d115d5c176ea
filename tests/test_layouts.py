"""Data sets as people own them: the layout is recognised and said, and training follows from one command."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import samples
from helpers import workflow
from scripts.dataio.folders import find_images
from scripts.errors import InputError
from scripts.preparation.create import create
from scripts.preparation.layouts import recognise

SHAPE = (20, 16, 3)


def scan(path: Path, seed: int, scale: int = 1) -> None:
    samples.write_nifti(path, samples.blob(SHAPE, seed=seed)[0] * scale)


def truth(path: Path, seed: int, value: int = 1) -> None:
    samples.write_nifti(path, samples.blob(SHAPE, seed=seed)[1] * value)


def nnunet(root: Path) -> None:
    for n in range(5):
        folder = "imagesTr" if n < 3 else "imagesUnlabelled"
        for channel in (0, 1):
            scan(root / folder / f"BRAIN_{n:03d}_{channel:04d}.nii.gz", n, 1 + channel)
        if n < 3:
            truth(root / "labelsTr" / f"BRAIN_{n:03d}.nii.gz", n)
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1, "ignore": 2},
               "numTraining": 3, "file_ending": ".nii.gz"}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))


def decathlon(root: Path) -> None:
    for n in range(5):
        scan(root / ("imagesTr" if n < 3 else "imagesTs") / f"la_{n:03d}.nii.gz", n)
        if n < 3:
            truth(root / "labelsTr" / f"la_{n:03d}.nii.gz", n)
    (root / "imagesTr" / "._la_000.nii.gz").write_bytes(b"of macOS")
    pairs = [{"image": f"./imagesTr/la_{n:03d}.nii.gz", "label": f"./labelsTr/la_{n:03d}.nii.gz"} for n in range(3)]
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "tumour"}, "training": pairs,
               "test": [f"./imagesTs/la_{n:03d}.nii.gz" for n in (3, 4)]}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))


def bids(root: Path) -> None:
    (root / "dataset_description.json").parent.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text("{}")
    for n in range(5):
        for session in (1, 2):
            name = f"sub-{n:02d}_ses-{session}"
            scan(root / f"sub-{n:02d}/ses-{session}/anat/{name}_T1w.nii.gz", n)
            if n < 3:
                where = root / f"derivatives/manual/sub-{n:02d}/ses-{session}/anat"
                truth(where / f"{name}_label-tumour_mask.nii.gz", n)


def patients(root: Path) -> None:
    for n in range(5):
        scan(root / f"P{n}/imaging.nii.gz", n)
        if n < 3:
            truth(root / f"P{n}/segmentation.nii.gz", n)


def slicer(root: Path) -> None:
    for n in range(5):
        image, label = samples.blob(SHAPE, seed=n)
        samples.write_itk(root / f"scan{n}.nrrd", image)
        if n < 3:
            segmentation(root / f"scan{n}.seg.nrrd", label)


def segmentation(path: Path, label: np.ndarray, *, name: str = "tumour", layer: int = 0) -> None:
    """A file as 3D Slicer saves it: NRRD with the segments in its header."""
    samples.write_itk(path.with_name("plain.nrrd"), label)
    header, voxels = path.with_name("plain.nrrd").read_bytes().split(b"\n\n", 1)
    told = f"\nSegment0_Name:={name}\nSegment0_LabelValue:=1\nSegment0_Layer:={layer}\nSegment0_ID:=s1"
    path.write_bytes(header + told.encode() + b"\n\n" + voxels)
    path.with_name("plain.nrrd").unlink()


LAYOUTS = {
    "nnU-Net": (nnunet, {}, {"in_channels": 2, "ignore_label": 2}),
    "Medical Segmentation Decathlon": (decathlon, {}, {}),
    "BIDS": (bids, {"class_names": "background,tumour"}, {}),
    "a folder for each patient": (patients, {"class_names": "background,tumour"}, {}),
    "3D Slicer segmentations": (slicer, {}, {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_a_data_set_as_it_comes_to_a_scored_prediction(tmp_path, capsys, layout):
    write, options, expected = LAYOUTS[layout]
    write(tmp_path / "data")
    create(data=str(tmp_path / "data"), output=str(tmp_path / "data" / "list.json"), labeled=1, validation=1, testing=1,
           **options)  # fmt: skip
    shown = capsys.readouterr().out
    assert f"layout      {layout}\n" in shown and "label 1 tumour" in shown
    each = 2 if layout == "BIDS" else 1
    lists = json.loads((tmp_path / "data" / "list.json").read_text())
    assert [len(lists[k]) for k in ("training", "validation", "testing", "unlabeled")] == [each, each, each, 2 * each]
    command = shlex.split(shown.splitlines()[-1])
    given = dict(zip(command[5::2], command[6::2]))
    settings = {name: given[f"--{name}"] for name in ("dataset_dir", "datalist")}
    settings |= {"output_dir": str(tmp_path / "run"), "show_progress": False}
    small = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 2, "spatial_size": 32, "val_interval": 1}
    for names, more in ((["train", "semsim_minus"], small), (["train", "evaluate"], {})):
        workflow("train", *names, **settings, **more).run()
    found = json.loads((tmp_path / "run" / "training.json").read_text())
    expected = {"in_channels": 1, "ignore_label": None, "class_names": ["background", "tumour"], **expected}
    assert {name: found[name] for name in expected} == expected
    scores = pd.read_csv(tmp_path / "run" / "scores.csv")
    assert len(scores) == each and list(scores["class"].unique()) == ["tumour"]
    workflow("infer", "inference", dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "out"),
             ckpt_path=str(tmp_path / "run"), show_progress=False).run()  # fmt: skip
    assert len(list((tmp_path / "out").rglob("*_seg.nii.gz"))) == 5 * each, "every image, no label"


@pytest.mark.parametrize("ending", [".dcm", ".IMA", "", ".1000"])
def test_no_patient_of_dicom_slices_is_lost(tmp_path, ending):
    for n in range(4):
        image, label = samples.blob(SHAPE, seed=n)
        samples.write_dicom(tmp_path / f"data/P{n}/CT", image, ending=ending)
        if n < 2:
            samples.write_nifti(tmp_path / f"data/P{n}/segmentation.nii.gz", label)
    found = recognise(tmp_path / "data")
    assert sorted(found.images) == ["P0", "P1", "P2", "P3"] and sorted(found.labels) == ["P0", "P1"]
    assert sorted(find_images(tmp_path / "data", recursive=True)) == [
        "P0/CT", "P0/segmentation", "P1/CT", "P1/segmentation", "P2/CT", "P3/CT",
    ]  # fmt: skip


def test_no_image_of_a_dataset_json_is_lost(tmp_path):
    """Files of one name in the folders of several patients, and lists besides Decathlon's."""
    lists = {"training": [0, 1], "validation": [2], "testing": [3], "unlabeled": [4]}
    for n in range(5):
        scan(tmp_path / f"P{n}/image.nii.gz", n)
        truth(tmp_path / f"P{n}/label.nii.gz", n)
    item = {"image": "P{}/image.nii.gz", "label": "P{}/label.nii.gz"}
    content = {key: [{k: v.format(n) for k, v in item.items() if n != 4 or k == "image"} for n in members]
               for key, members in lists.items()}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"labels": {"0": "b", "1": "t"}}))
    create(data=str(tmp_path), output=str(tmp_path / "l.json"))
    made = json.loads((tmp_path / "l.json").read_text())
    assert made["testing"] == [{k: v.format(3) for k, v in item.items()}]
    assert made["training"] == [{k: v.format(n) for k, v in item.items()} for n in range(2)]
    assert made["validation"] == [{k: v.format(2) for k, v in item.items()}]
    assert made["unlabeled"] == [{"image": "P4/image.nii.gz"}]
    content["training"][0]["label"] = 3
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="an item of `training` should name a file"):
        create(data=str(tmp_path), output=str(tmp_path / "m.json"))


def test_nnunet_of_old_names_images_without_their_channel(tmp_path):
    nnunet(tmp_path)
    pairs = [{"image": f"./imagesTr/BRAIN_{n:03d}.nii.gz", "label": f"./labelsTr/BRAIN_{n:03d}.nii.gz"} for n in (0, 1)]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": pairs, "labels": {"0": "background", "1": "t"}}))
    create(data=str(tmp_path), output=str(tmp_path / "l.json"), class_names="b,t")
    made = json.loads((tmp_path / "l.json").read_text())
    assert made["training"][0]["image"] == [f"imagesTr/BRAIN_000_000{c}.nii.gz" for c in (0, 1)]
    assert len(made["training"]) == 3 and len(made["unlabeled"]) == 2


def test_visits_of_a_patient_are_paired_with_their_own_labels(tmp_path):
    for n in range(2):
        for visit in ("v1", "v2"):
            scan(tmp_path / f"P{n}/{visit}/imaging.nii.gz", n)
        truth(tmp_path / f"P{n}/v1/segmentation.nii.gz", n)
    truth(tmp_path / "P0/v2/segmentation.nii.gz", 0)
    folder = str(tmp_path)
    create(folder, folder, str(tmp_path / "l.json"), image_suffix="imaging", label_suffix="segmentation")
    made = json.loads((tmp_path / "l.json").read_text())
    pairs = [{"image": f"P0/{v}/imaging.nii.gz", "label": f"P0/{v}/segmentation.nii.gz"} for v in ("v1", "v2")]
    assert made["training"] == pairs and len(made["unlabeled"]) == 2, "a patient is labelled wholly or not at all"


def test_two_folders_of_nnunet_leak_no_channel_into_the_unlabelled(tmp_path):
    nnunet(tmp_path)
    create(str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"), str(tmp_path / "l.json"), class_names="b,t")
    lists = json.loads((tmp_path / "l.json").read_text())
    assert len(lists["training"]) == 3 and not lists["unlabeled"]
    assert lists["training"][0]["image"] == [f"imagesTr/BRAIN_000_000{c}.nii.gz" for c in (0, 1)]
    for path in (tmp_path / "imagesTr").glob("*_0001.nii.gz"):
        path.unlink()
    (tmp_path / "l.json").unlink()
    create(str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"), str(tmp_path / "l.json"), class_names="b,t")
    assert json.loads((tmp_path / "l.json").read_text())["training"][0]["image"] == "imagesTr/BRAIN_000_0000.nii.gz"


def test_numbers_that_labels_have_too_are_no_channels(tmp_path):
    for seed, name in enumerate(("genius_0000", "genius_0001", "genius_0100", "genius_0101")):
        scan(tmp_path / "images" / f"{name}.nii.gz", seed)
        truth(tmp_path / "labels" / f"{name}.nii.gz", 0)
    create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "l.json"), class_names="b,t")
    assert len(json.loads((tmp_path / "l.json").read_text())["training"]) == 4


def spoil_bids(root: Path) -> None:
    bids(root)
    scan(root / "sub-00/ses-1/anat/sub-00_ses-1_FLAIR.nii.gz", 0)


def spoil_bids_label(root: Path) -> None:
    bids(root)
    truth(root / "derivatives/manual/sub-00/ses-1/anat/sub-00_ses-1_label-brain_mask.nii.gz", 0)


def spoil_bids_twice(root: Path) -> None:
    bids(root)
    scan(root / "work/sub-00/ses-1/anat/sub-00_ses-1_T1w.nii.gz", 1)


def spoil_nnunet_twice(root: Path) -> None:
    nnunet(root)
    scan(root / "imagesTr/BRAIN_001.nii.gz", 1)


def spoil_nnunet_twice_in_one_channel(root: Path) -> None:
    spoil_nnunet_twice(root)
    for path in root.rglob("*_0001.nii.gz"):
        path.unlink()


def spoil_patients(root: Path) -> None:
    patients(root)
    scan(root / "P1/other.nii.gz", 1)


def spoil_patients_visits(root: Path) -> None:
    patients(root)
    scan(root / "P1/later/imaging.nii.gz", 1)


def spoil_nnunet(root: Path) -> None:
    nnunet(root)
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"labels": {"background": 0, "whole": [1, 2]}}))


def spoil_slicer(root: Path) -> None:
    slicer(root)
    segmentation(root / "scan1.seg.nrrd", samples.blob(SHAPE, seed=1)[1], name="liver")


def spoil_slicer_layers(root: Path) -> None:
    slicer(root)
    segmentation(root / "scan1.seg.nrrd", samples.blob(SHAPE, seed=1)[1], layer=1)


def spoil_patients_twice(root: Path) -> None:
    patients(root)
    scan(root / "P1/P1_imaging.nii.gz", 1)


def spoil_patients_labels(root: Path) -> None:
    patients(root)
    truth(root / "P1/P1_segmentation.nii.gz", 1)


def flat(root: Path) -> None:
    scan(root / "a.nii.gz", 0)


def two_folders(root: Path) -> None:
    scan(root / "images/a.nii.gz", 0)
    truth(root / "labels/a.nii.gz", 0)


def two_folders_in_each_part(root: Path) -> None:
    for n, part in enumerate(("test", "train", "train")):
        scan(root / f"{part}/images/a{n}.nii.gz", n)
        truth(root / f"{part}/labels/a{n}.nii.gz", n)


@pytest.mark.parametrize(
    "write, asked",
    [
        (spoil_bids, r"images of several kinds, T1w \(10\), FLAIR \(1\); say which by --image_suffix _T1w"),
        (spoil_bids_label, "a second label of sub-00_ses-1 .*--label_suffix"),
        (spoil_bids_twice, r"work/.*_T1w\.nii\.gz: a second file of that name beside .*sub-00_ses-1_T1w.*keep one"),
        (spoil_nnunet_twice, r"BRAIN_001\.nii\.gz: the image of BRAIN_001 once more, beside its channels; keep one"),
        (spoil_nnunet_twice_in_one_channel, r"BRAIN_001\.nii\.gz: the image of .* beside .*_0000\.nii\.gz; keep one"),
        (spoil_patients, r"P1: 2 images .*--image_suffix"),
        (spoil_patients_visits, r"P1: 2 images \(.*later/imaging.*patients or visits .*--images and as --labels"),
        (spoil_patients_twice, r"P1: 2 images .*--image_suffix"),
        (spoil_patients_labels, r"P1: 2 labels \(P1_segmentation\.nii\.gz, segmentation\.nii\.gz\).*keep one"),
        (spoil_nnunet, "regions of several values, which overlap"),
        (spoil_slicer, r"scan1\.seg\.nrrd: the value 1 is 'liver', in .*scan0.* 'tumour'"),
        (spoil_slicer_layers, r"scan1\.seg\.nrrd: its segments lie in several layers"),
        (flat, "expected one of the layouts nnU-Net"),
        (two_folders, "instead of --data give --images .*images --labels .*labels"),
        (two_folders_in_each_part, "labels in each of test, train; move or link them to images/test, labels/test and"),
    ],
)
def test_what_a_layout_leaves_open_is_asked_for(tmp_path, write, asked):
    write(tmp_path)
    with pytest.raises(InputError, match=asked):
        create(data=str(tmp_path), output=str(tmp_path / "l.json"))


@pytest.mark.parametrize(
    "images, labels, unlabeled, data",
    [
        ("scans/labelled", "truth", "scans/unlabelled", False),
        ("images", "labels", "unlabelled", True),
        ("labelled/images", "labelled/labels", "unlabelled", True),
        ("labelled/images", "labelled/labels", "unlabelled/images", True),
        ("imagesTr", "labelsTr", "imagesUn", True),
    ],
)
def test_labelled_and_unlabelled_scans_may_lie_in_folders_of_their_own(
    tmp_path, capsys, caplog, images, labels, unlabeled, data
):
    """The message about --data names two folders, which find all."""
    for n in range(6):
        scan(tmp_path / (images if n < 3 else unlabeled) / f"A{n}.nii.gz", n)
        if n < 3:
            truth(tmp_path / labels / f"A{n}.nii.gz", n)
    given = {"images": str(tmp_path / "scans"), "labels": str(tmp_path / labels)}
    if data:
        with pytest.raises(InputError, match="instead of --data give") as caught:
            create(data=str(tmp_path), output=str(tmp_path / "l.json"))
        words = shlex.split(str(caught.value).split("give ")[1].rstrip("."))
        given = {"images": words[1], "labels": words[3]}
    create(**given, output=str(tmp_path / "l.json"), labeled=2, validation=1)
    lists = json.loads((tmp_path / "l.json").read_text())
    assert [len(lists[name]) for name in ("training", "validation", "unlabeled")] == [2, 1, 3]
    assert "taken for the label of" in caplog.text and "patients    not known" in capsys.readouterr().out


def test_parts_with_images_and_labels_of_their_own_are_lists_once_they_are_linked_as_asked(tmp_path):
    two_folders_in_each_part(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for part in ("test", "train"):
            (tmp_path / kind / part).symlink_to(tmp_path / part / kind)
    create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "l.json"))
    lists = json.loads((tmp_path / "l.json").read_text())
    assert [len(lists[name]) for name in ("training", "testing")] == [2, 1]


def test_folders_of_images_and_labels_of_a_patient_are_no_data_set_of_their_own(tmp_path):
    for n in range(3):
        scan(tmp_path / f"P{n}/images/ct.nii.gz", n)
    (tmp_path / "P0/masks").mkdir()  # not drawn yet
    for patient, mask in ((1, "liver"), (1, "spleen"), (2, "liver")):
        truth(tmp_path / f"P{patient}/masks/{mask}.nii.gz", patient)
    found = recognise(tmp_path, label_suffix="liver")
    assert found.name == "a folder for each patient" and [*found.labels] == ["P1", "P2"]
    with pytest.raises(InputError, match="say which by --label_suffix"):
        recognise(tmp_path)


@pytest.mark.parametrize("below", ["", "scans/"])
def test_a_list_may_be_a_folder_below_that_of_all_images(tmp_path, below):
    for n, part in enumerate(("train", "train", "train", "test", "unlabelled")):
        scan(tmp_path / f"all/{below}{part}/A{n}.nii.gz", n)
        if part != "unlabelled":
            truth(tmp_path / f"labels/A{n}.nii.gz", n)
    create(str(tmp_path / "all"), str(tmp_path / "labels"), str(tmp_path / "l.json"), labeled=2, validation=1)
    lists = json.loads((tmp_path / "l.json").read_text())
    assert [Path(item["image"]).name for item in lists["testing"]] == ["A3.nii.gz"]
    assert [Path(item["image"]).name for item in lists["unlabeled"]] == ["A4.nii.gz"]


def test_a_label_whose_image_is_one_of_several_of_its_name_is_not_guessed(tmp_path):
    for n, place in enumerate(("one/A0", "two/A0", "two/A1", "P1/mr")):
        scan(tmp_path / f"scans/{place}.nii.gz", n)
    for n, name in ((0, "A0"), (2, "A1"), (3, "P2/mr")):
        truth(tmp_path / f"truth/{name}.nii.gz", n)
    with pytest.raises(InputError, match=r"A0\.nii\.gz: a label without an image of that name") as caught:
        create(str(tmp_path / "scans"), str(tmp_path / "truth"), str(tmp_path / "l.json"))
    assert "A1" not in str(caught.value) and "P2/mr.nii.gz: a label without an image" in str(caught.value)


def test_what_files_of_bids_were_made_from_is_no_second_file(tmp_path):
    bids(tmp_path)
    before = recognise(tmp_path)
    for kind in ("T1w", "T2w"):
        scan(tmp_path / f"sourcedata/sub-00/ses-1/anat/sub-00_ses-1_{kind}.nii.gz", 1)
    assert recognise(tmp_path) == before


def test_files_of_datalad_that_were_not_fetched_are_said_to_be_missing(tmp_path, caplog, capsys):
    bids(tmp_path)
    for patient, session in (("sub-00", 1), ("sub-04", 1), ("sub-04", 2)):  # a label of the first is there
        scan = tmp_path / f"{patient}/ses-{session}/anat/{patient}_ses-{session}_T1w.nii.gz"
        scan.unlink()
        scan.symlink_to("../../../.git/annex/objects/4k/2j/MD5E-s1234.nii.gz")
    create(data=str(tmp_path), output=str(tmp_path / "l.json"), class_names="b,t")
    assert "3 files are links to what is not there and are left out" in caplog.text and "datalad get" in caplog.text
    assert "7 of 4 patients" in capsys.readouterr().out, "and the others are used"
    for n in range(4):
        for path in (tmp_path / f"sub-{n:02d}").rglob("*_T1w.nii.gz"):
            path.unlink()
    with pytest.raises(InputError, match=r"expected images such as .* the kinds none; .*fetch the files"):
        create(data=str(tmp_path), output=str(tmp_path / "m.json"))


def test_what_was_asked_for_can_be_said(tmp_path):
    options = {"data": str(tmp_path), "output": str(tmp_path / "l.json"), "class_names": "b,t", "dry_run": True}
    spoil_bids(tmp_path)
    create(**options, image_suffix="_T1w", label_suffix="_label-tumour_mask")
    with pytest.raises(InputError, match="no FLAIR beside it"):
        create(**options, image_suffix="_T1w,_FLAIR")
    for options in ({"images": "a"}, {"data": "a", "images": "b", "labels": "c"}, {}):
        with pytest.raises(InputError, match="--images and --labels, or --data"):
            create(**options, output="x.json")


def test_a_folder_for_each_patient_says_who_is_who(tmp_path, capsys):
    patients(tmp_path)
    create(data=str(tmp_path), dry_run=True, output=str(tmp_path / "l.json"))
    assert "patients    5 of 5 images, by their folder" in capsys.readouterr().out


def test_no_other_sequence_stands_in_for_one_that_a_patient_lacks(tmp_path):
    for n in range(3):
        for sequence in ("t1", "flair"):
            scan(tmp_path / f"P{n}/P{n}_{sequence}.nii.gz", n)
        truth(tmp_path / f"P{n}/P{n}_seg.nii.gz", n)
    (tmp_path / "P1/P1_t1.nii.gz").unlink()
    for _ in range(2):  # flair alone, and two files that end with it
        for suffix in ("_t1", "_t1,_flair"):
            with pytest.raises(InputError, match=r"P1: expected an image for each .*received .*flair and none .* t1;"):
                recognise(tmp_path, suffix)
        scan(tmp_path / "P1/P1_t1_flair.nii.gz", 1)
    scan(tmp_path / "P1/P1_t1.nii.gz", 1)
    assert recognise(tmp_path, "_t1").images["P1"] == tmp_path / "P1/P1_t1.nii.gz"


def test_the_share_of_a_class_is_that_of_the_image_where_the_label_is_a_part_of_it(tmp_path, capsys):
    """As 3D Slicer saves segmentations: the box around the segments alone."""
    samples.write_itk(tmp_path / "a.nrrd", samples.blob(SHAPE, seed=0)[0])
    segmentation(tmp_path / "a.seg.nrrd", np.ones(tuple(n // 2 for n in SHAPE), np.uint8))
    create(data=str(tmp_path), dry_run=True, output=str(tmp_path / "l.json"))
    shown = capsys.readouterr().out
    assert "label 1 tumour      8.33% of the voxels" in shown and "label 0 background  91.67%" in shown
    assert "cannot be learnt" not in shown, "the rest of the image is background"


def test_labels_called_msk_and_what_macos_leaves_behind(tmp_path, capsys):
    """As in ISLES 2022 and VerSe; a folder of hidden files alone is no patient."""
    for n in range(2):
        subject = f"sub-strokecase{n:04d}"
        scan(tmp_path / "bids" / subject / f"ses-0001/dwi/{subject}_ses-0001_dwi.nii.gz", n)
        truth(tmp_path / "bids/derivatives" / subject / f"ses-0001/{subject}_ses-0001_msk.nii.gz", n)
    patients(tmp_path / "patients")
    (tmp_path / "patients/__MACOSX/P0").mkdir(parents=True)
    (tmp_path / "patients/__MACOSX/P0/._imaging.nii.gz").write_bytes(b"Mac OS X")
    nnunet(tmp_path / "nnunet")
    (tmp_path / "nnunet/labelsUnlabelled").mkdir()
    (tmp_path / "nnunet/labelsUnlabelled/.DS_Store").touch()
    for name, number in (("bids", 2), ("patients", 3), ("nnunet", 3)):
        create(data=str(tmp_path / name), output=str(tmp_path / f"{name}.json"))
        assert f"{number} with a label" in capsys.readouterr().out
