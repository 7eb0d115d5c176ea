"""Datalists: made from folders by patient, and checked before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import samples
from scripts.dataio.datalist import check_scored, evaluation_key, read_datalist, read_images
from scripts.dataio.files import case_name
from scripts.errors import InputError
from scripts.preparation.create import create


@pytest.fixture
def folders(tmp_path) -> Path:
    """Six patients of two frames, the last two patients without labels; MHA among the NIfTI."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for patient in range(6):
        for frame in (1, 2):
            stem = f"p{patient}_frame{frame:02d}"
            image, label = samples.blob((6, 5, 2), seed=patient)
            write = samples.write_itk if patient == 1 else samples.write_nifti
            write(tmp_path / "images" / f"{stem}{'.mha' if patient == 1 else '.nii.gz'}", image)
            if patient < 4:
                spacing = (-0.8, -0.8, 5.0) if patient == 1 else (1.5, 1.5, 8.0)  # that of its image
                samples.write_nifti(tmp_path / "labels" / f"{stem}.nii.gz", label, spacing)
    return tmp_path


def make(folders: Path, **kwargs) -> dict:
    output = folders / "datalist.json"
    create(str(folders / "images"), str(folders / "labels"), str(output), **kwargs)
    return json.loads(output.read_text())


def patients(items: list[dict]) -> set[str]:
    return {case_name(item["image"]).split("_")[0] for item in items}


def test_numbers_are_drawn_by_patient_and_seed(folders, capsys):
    datalist = make(folders, labeled=2, validation=1, testing=1, seed=3, class_names="background,heart")
    names = ("training", "unlabeled", "validation", "testing")
    groups = [patients(datalist[name]) for name in names]
    assert [len(datalist[name]) for name in names] == [4, 4, 2, 2]
    assert sum(len(g) for g in groups) == len(set().union(*groups)) == 6, "no patient on both sides"
    assert all("label" not in item for item in datalist["unlabeled"])
    assert datalist["labels"] == {"0": "background", "1": "heart"}
    for item in datalist["training"]:
        assert (folders / item["image"]).exists() and (folders / item["label"]).exists()
    printed = capsys.readouterr().out
    assert all(patient in printed for patient in ("p0", "p5")) and "2 patients" in printed
    (folders / "datalist.json").unlink()
    assert make(folders, labeled=2, validation=1, testing=1, seed=3, class_names="background,heart") == datalist


def test_folds_keep_the_images_of_a_patient_together(folders, capsys):
    datalist = make(folders, folds=3, testing=1, seed=1)
    command = capsys.readouterr().out.splitlines()[-1]
    assert "--fold 0 --output_dir RUN0" in command
    assert len(datalist["training"]) == 6 and not datalist["validation"]
    path, tested = folders / "datalist.json", patients(datalist["testing"])
    validating = [patients(read_datalist(path, folders, "validation", fold=fold)) for fold in range(3)]
    assert all(len(p) == 1 for p in validating) and set().union(*validating) == {"p0", "p1", "p2", "p3"} - tested
    for fold, apart in enumerate(validating):
        trained = patients(read_datalist(path, folders, "training", fold=fold))
        assert trained == {"p0", "p1", "p2", "p3"} - tested - apart
        assert patients(read_datalist(path, folders, "unlabeled", fold=fold)) == {"p4", "p5"}


def test_names_of_patients_or_cases_are_followed(folders, capsys):
    datalist = make(folders, labeled="p0", validation=["p2_frame01"], testing="p3")
    assert patients(datalist["training"]) == {"p0"} and patients(datalist["testing"]) == {"p3"}
    assert len(datalist["validation"]) == 2, "a named case brings its patient along"
    assert patients(datalist["unlabeled"]) == {"p1", "p4", "p5"}
    assert "\nnot used    labels of 1 patients, p1 first" in capsys.readouterr().out
    (folders / "datalist.json").unlink()
    make(folders, validation=1)
    assert "not used" not in capsys.readouterr().out


def test_a_folder_to_score_alone_needs_nobody_to_train_on(folders, capsys):
    datalist = make(folders, labeled=0, testing=4)
    assert patients(datalist["testing"]) == {"p0", "p1", "p2", "p3"} and not datalist["training"]
    command = capsys.readouterr().out.splitlines()[-1]
    assert "'configs/evaluate.yaml'" in command and "--ckpt_path RUN --output_dir SCORES" in command
    assert evaluation_key(folders / "datalist.json") == "testing"


def in_parts(folder: Path, *cases: str) -> Path:
    """Images of these names, all but those below `unlabelled` with labels."""
    for seed, case in enumerate(cases):
        image, label = samples.blob((6, 5, 2), seed=seed)
        for kind, array in (("images", image), ("labels", label)):
            if kind == "images" or not case.startswith("unlabelled"):
                path = folder / kind / f"{case}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                samples.write_nifti(path, array)
    return folder


def test_folders_for_validation_and_testing_are_those_lists(tmp_path, capsys):
    parts = [*(f"train/p{n}" for n in range(3)), "val/p3", "Test/p4", "Test/p5", "unlabelled/p6", "unlabelled/p7"]
    datalist = make(in_parts(tmp_path, *parts))
    groups = [patients(datalist[name]) for name in ("training", "validation", "testing", "unlabeled")]
    assert groups == [{"p0", "p1", "p2"}, {"p3"}, {"p4", "p5"}, {"p6", "p7"}]
    assert "\nown lists   1 images for validation, 2 images for testing, by their folders" in capsys.readouterr().out
    (tmp_path / "datalist.json").unlink()
    datalist = make(tmp_path, validation=2)
    assert len(datalist["validation"]) == 2 and patients(datalist["testing"]) == {"p4", "p5"}


def test_folders_of_labelled_and_unlabelled_images_are_no_patients(tmp_path):
    datalist = make(in_parts(tmp_path, "labeled/a1", "labeled/b2", "labeled/c3", "unlabelled/d4"), validation=1)
    assert len(datalist["training"]) == 2 and len(datalist["validation"]) == len(datalist["unlabeled"]) == 1


@pytest.mark.parametrize(
    "names", [("P1_slice_0", "P1_slice_1", "P2_slice_0", "P2_slice_1"), ("001/a", "001/b", "2/a", "2/b")]
)
def test_unlabelled_images_of_a_labelled_patient_take_no_labels_away(tmp_path, names, capsys):
    in_parts(tmp_path, f"labeled/{names[0]}", f"unlabelled/{names[1]}", f"labeled/{names[2]}", f"unlabelled/{names[3]}")
    datalist = make(tmp_path)
    assert len(datalist["training"]) == len(datalist["unlabeled"]) == 2
    (tmp_path / "datalist.json").unlink()
    datalist = make(tmp_path, validation=1)
    assert [len(datalist[name]) for name in ("training", "validation", "unlabeled")] == [1, 1, 1]
    assert "left out    1 images below `unlabeled` of patients for validation" in capsys.readouterr().out


def test_what_is_asked_for_goes_before_the_names_of_folders(tmp_path):
    in_parts(tmp_path, "train/a0", "train/a1", "test/b0", "test/b1")
    assert patients(make(tmp_path, labeled="train/a0,test/b0")["training"]) == {"a0", "b0"}
    (tmp_path / "datalist.json").unlink()
    assert patients(make(tmp_path, validation="test/b0")["training"]) == {"a0", "a1", "b1"}
    (tmp_path / "datalist.json").unlink()
    assert len(make(tmp_path, testing=0)["training"]) == 4


def test_a_single_folder_called_test_is_trained_on(tmp_path):
    assert len(make(in_parts(tmp_path, "test/b0", "test/b1"))["training"]) == 2


def test_a_patient_in_two_folders_of_flat_files_is_told_apart_as_said(tmp_path):
    in_parts(tmp_path, "train/P1_slice_0", "train/P2_slice_0", "test/P1_slice_1")
    with pytest.raises(InputError, match="if these are of two patients give --group_by") as caught:
        make(tmp_path)
    expression = re.search(r"--group_by '([^']+)'", str(caught.value))[1]
    assert len(make(tmp_path, group_by=expression)["testing"]) == 1


def test_a_patient_below_the_folders_of_two_lists_is_asked_about(tmp_path):
    """It may be one patient in two lists, or two whose numbers begin anew in each folder."""
    in_parts(tmp_path, "train/patient01/a", "train/patient02/a", "test/patient01/b")
    with pytest.raises(InputError, match=r"^patient01: .* received test/patient01/b and train/patient01/a; if these"):
        make(tmp_path)
    datalist = make(tmp_path, group_by="^(.+?/.+?)/")
    assert len(datalist["training"]) == 2 and len(datalist["testing"]) == 1
    (tmp_path / "datalist.json").unlink()
    assert len(make(tmp_path, testing="patient01")["testing"]) == 2, "both images of one patient"


def test_partly_labelled_patients_are_named_and_used_unlabelled(folders, capsys):
    (folders / "labels" / "p3_frame02.nii.gz").unlink()
    datalist = make(folders)
    assert "p3" in patients(datalist["unlabeled"]) and len(datalist["training"]) == 6
    assert "partly labelled, used without their labels: p3" in capsys.readouterr().out


def test_one_folder_for_both_is_refused(folders):
    with pytest.raises(InputError, match="two folders"):
        create(str(folders / "images"), str(folders / "images"), str(folders / "d.json"))


def test_default_trains_on_every_label_left(folders):
    assert patients(make(folders, validation=1)["training"]) < {"p0", "p1", "p2", "p3"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labeled": "p0", "validation": "p0"}, "one list only"),
        ({"labeled": "p9"}, "no such patient or case[.]"),
        ({"labeled": "lists/labeled.txt"}, "no such patient or case, nor such a file of names[.]"),
        ({"labeled": "p5"}, "has no label of that name"),
        ({"labeled": 3, "validation": 2}, "only"),
        ({"labeled": 0}, "no case is left to train on"),
        ({"group_by": r"case(\d+)"}, "finds no patient"),
        ({"group_by": "^(p"}, "no regular expression"),
        ({"labeled": -1}, "0 or more"),
        ({"labeled": 1.5}, "0 or more"),
        ({"folds": 5}, "from 2 to that of the patients to train on with labels, 4, received 5"),
        ({"folds": 1}, "received 1"),
        ({"folds": 2, "validation": "p1"}, "expected no list `validation`.* received p1; leave out --validation"),
    ],
)
def test_refused(folders, options, message):
    with pytest.raises(InputError, match=message):
        make(folders, **options)
    assert not (folders / "datalist.json").exists()


def test_label_without_image_and_existing_file_are_refused(folders):
    shutil.copy(folders / "labels" / "p0_frame01.nii.gz", folders / "labels" / "stray.nii.gz")
    with pytest.raises(InputError, match=r"stray\.nii\.gz: a label without an image"):
        make(folders)
    (folders / "labels" / "stray.nii.gz").unlink()
    make(folders)
    before = (folders / "datalist.json").read_text()
    with pytest.raises(InputError, match="exists already"):
        make(folders, labeled=1)
    assert (folders / "datalist.json").read_text() == before


def write(path: Path, content) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_read_resolves_paths_and_keeps_unlabelled_free_of_labels(folders):
    file = write(folders / "d.json", {
        "training": [{"image": "images/p0_frame01.nii.gz", "label": "labels/p0_frame01.nii.gz"},
                     {"image": "images/p2_frame01.nii.gz", "label": "labels/p2_frame01.nii.gz", "labeled_slices": [1]}],
        "unlabeled": ["images/p4_frame01.nii.gz"],
    })  # fmt: skip
    training = read_datalist(file, folders, "training")
    assert training[0]["label"] == str(folders / "labels/p0_frame01.nii.gz")
    unlabeled = read_datalist(file, folders, "unlabeled")
    assert [case_name(i["image"]) for i in unlabeled] == ["p4_frame01", "p2_frame01"]
    assert all("label" not in item for item in unlabeled) and unlabeled[1]["labeled_slices"] == [1]
    assert read_datalist(file, folders, "validation") == []


def test_every_problem_is_listed_at_once(folders):
    file = write(folders / "d.json", {
        "training": [{"image": "images/none.nii.gz", "label": "labels/none.nii.gz"},
                     {"image": "images/p0_frame01.nii.gz"}, {"label": "x"}],
        "validation": [{"image": "images/p0_frame01.nii.gz", "label": "labels/p0_frame01.nii.gz"}],
    })  # fmt: skip
    with pytest.raises(InputError) as error:
        read_datalist(file, folders, "training")
    text = str(error.value)
    for part in ("none.nii.gz: no such image", "none.nii.gz: no such label", "without a label", "stands in `training`"):
        assert part in text, text
    assert text.startswith("5 problems")


@pytest.mark.parametrize("content", ["{", "[]", '{"train": []}', '{"training": "images"}', '{"training": 3}'])
def test_unreadable_datalists(folders, content):
    with pytest.raises(InputError, match=r"d\.json"):
        read_datalist(write(folders / "d.json", content), folders, "training")


def test_missing_folder_is_one_line(folders):
    file = write(folders / "d.json", {"training": [{"image": "a", "label": "b"}] * 2})
    with pytest.raises(InputError, match=r"^[^\n]*nowhere: no such folder[^\n]*$"):
        read_datalist(file, folders / "nowhere", "training")


def test_missing_datalist_names_the_remedy(tmp_path):
    with pytest.raises(InputError, match="datalist create"):
        read_datalist(tmp_path / "none.json", tmp_path, "training")


def test_images_to_predict(folders):
    assert len(read_images(folders)) == 12, "the images folder, not the labels beside it"
    one = folders / "images" / "p0_frame01.nii.gz"
    assert read_images(one) == [{"image": str(one)}]
    for visit in ("visit1", "visit2"):
        (folders / "scans" / visit).mkdir(parents=True)
        (folders / "scans" / visit / "mr.nii.gz").touch()
    assert len(read_images(folders / "scans")) == 2, "one name in two folders is two cases"
    (folders / "scans" / "visit2" / "mr.mha").touch()
    with pytest.raises(InputError, match="a second file of the case"):
        read_images(folders / "scans")
    write(folders / "datalist.json", {"validation": [{"image": "images/p4_frame01.nii.gz"}]})
    assert len(read_images(folders)) == 12, "a datalist lying there chooses nothing unasked"
    with pytest.raises(InputError, match="expected images in `testing`"):
        read_images(folders, folders / "datalist.json")
    file = write(folders / "d.json", {"testing": [{"image": "images/p4_frame01.nii.gz"}]})
    assert [case_name(i["image"]) for i in read_images(folders, file)] == ["p4_frame01"]
    (folders / "empty").mkdir()
    with pytest.raises(InputError, match="found none"):
        read_images(folders / "empty")
    with pytest.raises(InputError, match="no such folder"):
        read_images(folders / "nowhere")


def test_a_patient_on_both_sides_is_told(folders, caplog):
    """In lists that others made, or folds that AutoRunner drew, for which two images are two cases."""
    content = make(folders)
    path = folders / "drawn.json"
    items = [{**item, "fold": n % 2} for n, item in enumerate(content["training"])]
    path.write_text(json.dumps({**content, "training": items}))
    read_datalist(path, folders, "training", fold=0)
    assert not caplog.text
    read_datalist(path, folders, "validation", fold=0)
    assert "p0_frame02, which is trained on, and p0_frame01, which is scored, are of one patient" in caplog.text
    assert "and so are images of 3 more: such scores are too good" in caplog.text
    caplog.clear()
    read_datalist(folders / "datalist.json", folders, "validation")
    for names in (("a/p1", "b/p1"), ("p_1", "p_2"), ("site1/scan", "site1/other")):
        items = [{"image": f"{name}.nii.gz", "label": f"{name}_seg.nii.gz"} for name in names]
        for name in names:
            (folders / name).parent.mkdir(exist_ok=True)
            (folders / f"{name}.nii.gz").touch()
            (folders / f"{name}_seg.nii.gz").touch()
        path.write_text(json.dumps({"training": items[:1], "testing": items[1:]}))
        read_datalist(path, folders, "testing")
    assert not caplog.text


def test_evaluation_prefers_labelled_test_cases(folders):
    content = {"testing": [{"image": "a"}], "validation": [{"image": "a", "label": "b"}]}
    assert evaluation_key(write(folders / "d.json", content)) == "validation"
    assert evaluation_key(write(folders / "d.json", {"testing": [{"image": "a"}], "validation": []})) == "validation"
    with pytest.raises(InputError, match="expected labelled cases"):
        check_scored(folders / "d.json", [])
    with pytest.raises(
        InputError, match=r"a list with labels to score \(training, validation, testing\), received 'unl"
    ):
        read_datalist(folders / "d.json", folders, "unlabeled", require_label=True)
    assert evaluation_key(write(folders / "d.json", {"testing": [{"image": "a", "label": "b"}]})) == "testing"


def test_a_volume_labelled_in_part_is_trained_on_and_not_scored(folders):
    """Whatever the list is called, its slices without a label would count as background."""
    make(folders)
    content = json.loads((folders / "datalist.json").read_text())
    content["training"][0]["labeled_slices"] = [0]
    path = write(folders / "d.json", content)
    assert len(read_datalist(path, folders, "training")) == len(content["training"])
    with pytest.raises(InputError, match=r"stands in `training` with labeled_slices; .*score another list"):
        read_datalist(path, folders, "training", require_label=True)


def test_folds_of_an_auto3dseg_datalist(folders, caplog):
    """Items of the fold validate, the others train; test images serve as unlabelled ones on request."""
    content = make(folders)["training"]
    items = [{**item, "fold": int(case_name(item["image"])[1]) % 2} for item in content]
    testing = [{"image": f"images/p{p}_frame01.nii.gz", "label": "nowhere.nii.gz"} for p in (4, 5)]
    path = folders / "a3d.json"
    path.write_text(json.dumps({"training": items, "testing": testing}))

    def read(key, **kwargs):
        return read_datalist(path, folders, key, **kwargs)

    assert patients(read("training", fold=0)) == {"p1", "p3"} and patients(read("validation", fold=0)) == {"p0", "p2"}
    assert patients(read("training", fold=1)) == {"p0", "p2"} and len(read("training")) == 8
    assert read("validation") == [] == read("unlabeled", fold=0)
    assert "none validates" not in caplog.text
    for key in ("training", "unlabeled", "validation"):
        with pytest.raises(InputError, match="expected one of its folds 0, 1, received fold 2; give another --fold"):
            read(key, fold=2)
    unlabeled = read("unlabeled", fold=0, unlabeled_key="testing")
    assert patients(unlabeled) == {"p4", "p5"} and all("label" not in item for item in unlabeled)
    testing[0]["image"] = items[0]["image"]
    path.write_text(json.dumps({"training": items, "testing": [], "extra": testing}))
    with pytest.raises(InputError, match="stands in `training` and again in `unlabeled`"):
        read("unlabeled", unlabeled_key="extra")
    path.write_text(json.dumps({"training": items, "testing": [{"image": "images/p4_frame01.nii.gz"}]}))
    assert evaluation_key(path) == "validation"
    path.write_text(json.dumps({"training": content}))
    with pytest.raises(InputError, match="fold 0: expected a list `training` with folds, received one without; make"):
        read("training", fold=0)
    for fold in ("0", 0.0):
        path.write_text(json.dumps({"training": [{**i, "fold": fold} for i in items]}))
        assert len(read("validation", fold=0)) == len(items) and read("training", fold=0) == []
    path.write_text(json.dumps({"training": [{**i, "fold": "0", "labeled_slices": [0]} for i in items]}))
    assert read("validation", fold=0) == [] and "has the fold 0, so none validates" in caplog.text


@pytest.mark.parametrize("path", ["../elsewhere/a.nii.gz", "ABSOLUTE"])
def test_a_datalist_stays_in_its_folder_unless_told_so(tmp_path, path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    outside = tmp_path / "elsewhere" / "a.nii.gz"
    outside.touch()
    named = path.replace("ABSOLUTE", str(outside))
    listed = tmp_path / "data" / "list.json"
    listed.write_text(json.dumps({"unlabeled": [{"image": named}]}))
    with pytest.raises(InputError, match=r"a\.nii\.gz: named in .* but not in dataset_dir .*--allow_outside"):
        read_datalist(listed, tmp_path / "data", "unlabeled")
    assert read_datalist(listed, tmp_path / "data", "unlabeled", allow_outside=True)[0]["image"] == str(outside)
    (tmp_path / "data" / "linked.nii.gz").symlink_to(outside)
    listed.write_text(json.dumps({"unlabeled": ["linked.nii.gz"]}))
    assert len(read_datalist(listed, tmp_path / "data", "unlabeled")) == 1


def test_a_partly_labelled_case_is_never_scored(tmp_path):
    """In a fold it is trained on, whatever its number; in a list that is scored it is refused."""
    for name in "abcd":
        (tmp_path / f"{name}.nii.gz").touch()
    item = {"image": "a.nii.gz", "label": "b.nii.gz", "fold": 0, "labeled_slices": [1]}
    other = {"image": "c.nii.gz", "label": "d.nii.gz", "fold": 0}
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"training": [item, other]}))
    names = {key: [case_name(i["image"]) for i in read_datalist(listed, tmp_path, key, fold=0)]
             for key in ("training", "unlabeled", "validation")}  # fmt: skip
    assert names == {"training": ["a"], "unlabeled": ["a"], "validation": ["c"]}
    listed.write_text(json.dumps({"validation": [item]}))
    with pytest.raises(InputError, match="needs the label of every slice"):
        read_datalist(listed, tmp_path, "validation")


@pytest.mark.parametrize("other", ["training", "validation"])
def test_a_label_of_two_images_is_told_and_refused_across_lists(folders, caplog, other):
    first = {"image": "images/p0_frame01.nii.gz", "label": "labels/p0_frame01.nii.gz"}
    slip = {"image": "images/p2_frame01.nii.gz", "label": "labels/../labels/p0_frame01.nii.gz"}
    lists = {"training": [first], "validation": []}
    lists[other].append(slip)
    (folders / "hand.json").write_text(json.dumps(lists))
    said = (
        r"p0_frame01.nii.gz is the label of images/p0_frame01\S+ in `training` and of images/p2_frame01\S+ in `" + other
    )
    if other == "validation":
        with pytest.raises(InputError, match=said):
            read_datalist(folders / "hand.json", folders, "training")
        return
    assert len(read_datalist(folders / "hand.json", folders, "training")) == 2
    read_datalist(folders / "hand.json", folders, "unlabeled")
    assert len(re.findall(said, caplog.text)) == 1, "said once"
