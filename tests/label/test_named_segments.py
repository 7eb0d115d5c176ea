"""A label means what its segments are called, wherever it comes from: Slicer's files, other apps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException
from label_server import assemble
from lib import labels, names, usable
from lib.studies import Studies
from lib.train import SemiSupervised
from monailabel.config import settings
from monailabel.datastore.utils import convert
from PIL import Image
from segments import LIVER, SHAPE, TUMOUR, read, truth, turned, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return assemble(tmp_path_factory.mktemp("names") / "app", class_names=["liver", "tumour"]) / "model" / "semsim"


@pytest.fixture
def studies(tmp_path):
    final = tmp_path / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    for name in "abc":
        write(tmp_path / "studies" / f"{name}.nii.gz", np.random.default_rng(0).random(SHAPE).astype(np.float32))
    return final


def opened(final: Path) -> Studies:
    options = {"extensions": settings.MONAI_LABEL_DATASTORE_FILE_EXT, "read_only": False}
    return Studies(str(final.parents[1]), server=True, auto_reload=False, **options)


def fetched(bundle: Path, datastore: Studies, copies: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """What a training learns from, by image, and what it leaves out."""
    task = SemiSupervised(str(bundle), {})
    task.copies = copies
    items = task._fetch_datalist({"model": "semsim"}, datastore)
    return {Path(item["image"]).name.split(".")[0]: read(item["label"]) for item in items}, sorted(task.left_out)


def test_segmentations_of_slicer_among_the_final_labels(bundle, studies, tmp_path):
    """Under either ending, and none of them is changed; one beside the images is no image."""
    order = {1: "Tumour", 2: "Liver"}
    files = [write(studies / name, turned(), order) for name in ("a.nrrd", "b.seg.nrrd")]
    write(studies.parents[1] / "c.seg.nrrd", turned(), order)
    before = [file.read_bytes() for file in files]
    datastore = opened(studies)
    assert sorted(datastore.list_images()) == ["a", "b", "c"] and datastore.get_unlabeled_images() == ["c"]
    learnt, left_out = fetched(bundle, datastore, tmp_path)
    assert sorted(learnt) == ["a", "b"] and left_out == []
    assert all(np.array_equal(label, truth()) for label in learnt.values())
    assert [file.read_bytes() for file in files] == before
    datastore.save_label("b", str(write(tmp_path / "b.nii.gz", truth())), "final", {})
    assert not files[1].exists() and list((studies.parents[1] / "labels_before" / "final").glob("b_*.seg.nrrd"))


def test_labels_of_an_app_with_other_classes(bundle, studies, tmp_path):
    """What the books say of a label counts, unless the file has changed since."""
    for name in "abc":
        write(studies / f"{name}.nii.gz", turned())
    datastore = opened(studies)
    told = [{"name": "tumour", "idx": 1}, {"name": "liver", "idx": 2}]
    datastore.update_label_info("a", "final", {"label_info": told})
    datastore.update_label_info("b", "final", {"label_info": [told[0], {"name": "cyst", "idx": 2}]})
    datastore.update_label_info("c", "final", {"label_info": told, "ts": 1_000_000})
    learnt, left_out = fetched(bundle, datastore, tmp_path)
    assert list(learnt) == ["a"] and np.array_equal(learnt["a"], truth())
    assert len(left_out) == 2 and "b.nii.gz" in left_out[0] and "cyst" in left_out[0]
    assert "c.nii.gz" in left_out[1] and "1 tumour, 2 liver" in left_out[1]


def only(value: int) -> np.ndarray:
    return np.where(truth() == value, value, 0).astype(np.uint8)


def test_a_file_in_the_place_of_a_submitted_label(bundle, studies, tmp_path):
    """Its numbers count, whatever its time is: what the books say is of the file before."""
    datastore = opened(studies)
    replaced = {"a": only(LIVER), "b": truth(), "c": only(TUMOUR)}
    for name, label in replaced.items():
        sent = write(tmp_path / f"{name}.nii.gz", only(TUMOUR))
        datastore.save_label(name, str(sent), "final", {"label_info": labels.present(bundle, sent)})
        if name != "c":
            before = (studies / f"{name}.nii.gz").stat().st_mtime
            write(studies / f"{name}.nii.gz", label)
            os.utime(studies / f"{name}.nii.gz", (before - 1000, before - 1000))
    (tmp_path / "copies").mkdir()
    learnt, left_out = fetched(bundle, datastore, tmp_path / "copies")
    assert left_out == [] and all(np.array_equal(learnt[name], label) for name, label in replaced.items())

    # with classes in another order the names help where they are of this file alone
    other = assemble(tmp_path / "app", class_names=["tumour", "liver"]) / "model" / "semsim"
    learnt, left_out = fetched(other, datastore, tmp_path / "copies")
    assert list(learnt) == ["c"] and np.array_equal(learnt["c"], only(TUMOUR) // TUMOUR)
    assert [line.split(": ")[1] for line in left_out] == ["a.nii.gz", "b.nii.gz"]
    assert all("replaced after it was submitted" in line and "submit it again" in line for line in left_out)


def test_values_that_our_own_books_state_are_not_taken_by_order(bundle, tmp_path):
    """Slicer counts segments in `idx` that it leaves out of the file; the books of this app say the value itself."""
    file = write(tmp_path / "a.nii.gz", only(LIVER))
    with pytest.raises(ValueError, match=r"expected a name for each of the values \[1\]"):
        labels.by_name(bundle, file, [{"name": "tumour", "idx": TUMOUR}], by_order=False)
    assert np.array_equal(read(str(file)), only(LIVER))
    about = file.stat()
    told = {"label_info": [{"name": "tumour", "idx": TUMOUR}], "stored": [about.st_size, about.st_mtime_ns]}
    with pytest.raises(ValueError, match=r"a\.nii\.gz: label_info: expected a name for each"):
        labels.numbered(bundle, file, told)


def test_a_label_that_is_replaced_while_a_training_starts(bundle, studies, tmp_path):
    """The training learns what it has checked; one that has gone before is named."""
    for name in "ab":
        write(studies / f"{name}.nii.gz", truth())
    datastore = opened(studies)
    listed, copies = datastore.datalist(), tmp_path / "copies"
    copies.mkdir()
    (studies / "b.nii.gz").unlink()
    items, left_out = usable.numbered(bundle, datastore, listed, copies, check=True)
    datastore.save_label("a", str(write(tmp_path / "a.nrrd", only(LIVER))), "final", {})
    assert [Path(item["image"]).name for item in items] == ["a.nii.gz"]
    assert np.array_equal(read(items[0]["label"]), truth()) and read(datastore.get_label_uri("a", "final")).max() == 1
    assert len(left_out) == 1 and "b.nii.gz: has just gone; submit it again" in left_out[0]


def test_files_that_would_be_passed_over(bundle, studies, tmp_path):
    """A label of no image is named; the newest file of a label counts; an ending may occur within a name."""
    write(studies / "a.nii.gz", turned())
    write(studies / "a_seg.nii.gz", truth())
    write(studies.parents[1] / "d.nii.gz.nii.gz", np.ones(SHAPE, np.float32))
    (studies.parents[1] / "notes.xml").write_text("<a/>")  # MONAI Label takes it for an image of a whole slide
    datastore = opened(studies)
    assert sorted(datastore.list_images()) == ["a", "b", "c", "d.nii.gz"]
    assert Path(datastore.get_image_uri("d.nii.gz")).is_file()
    newer = write(studies / "a.nrrd", truth())
    os.utime(newer, ns=(1, (studies / "a.nii.gz").stat().st_mtime_ns + 1))
    datastore.refresh()
    learnt, left_out = fetched(bundle, datastore, tmp_path)
    assert np.array_equal(learnt["a"], truth())
    assert len(left_out) == 1 and "a_seg.nii.gz" in left_out[0]


def test_names_of_a_label_without_one_of_the_classes(bundle, tmp_path, monkeypatch):
    """MONAI Label gives the segments of a SEG the first names of the list, whatever values there are."""
    templates = []
    monkeypatch.setattr(convert, "itk_image_to_dicom_seg", lambda label, folder, template: templates.append(template))
    file = write(tmp_path / "label.nii.gz", np.where(truth() == TUMOUR, TUMOUR, 0).astype(np.uint8))
    told = labels.present(bundle, file)
    assert told == [{"name": "tumour", "idx": TUMOUR}]
    convert.nifti_to_dicom_seg("", str(file), told)
    (segment,) = templates[0]["segmentAttributes"][0]
    assert segment["SegmentLabel"] == "tumour" and segment["labelID"] == TUMOUR, json.dumps(segment)


def test_a_validation_without_any_class_stops_no_client(bundle):
    """Its score is no number, which no JSON can say: with it, nobody could connect any more."""
    folder = bundle / "output" / "label_1"
    folder.mkdir(parents=True)
    (folder / "training_log.csv").write_text("epoch\n2\n")
    (folder / "training.json").write_text('{"epochs": 4, "unlabeled_images": 2}')
    for rows, best in (("1,nan\n2,\n", 0.0), ("1,nan\n2,0.5\n", 0.5)):
        (folder / "validation_log.csv").write_text("epoch,mean_dice\n" + rows)
        told = SemiSupervised(str(bundle), {}).stats()
        assert json.loads(json.dumps(told, allow_nan=False))["best_metric"] == best


def test_values_that_miss_a_whole_number_by_a_hair(bundle, tmp_path):
    """They are rounded, not cut off: 1.9999999 is 2. Halves are no label."""
    file = write(tmp_path / "a.nii.gz", turned().astype(np.float32) * np.float32(0.9999999))
    order = [{"name": "tumour", "idx": 1}, {"name": "liver", "idx": 2}]
    assert labels.by_name(bundle, file, order)
    assert np.array_equal(read(str(file)), truth())
    write(file, turned().astype(np.float32) * 0.5)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: expected whole numbers"):
        labels.by_name(bundle, file, order)


@pytest.mark.parametrize("odd", [-1, 70_000])
def test_values_that_are_no_number_of_a_segment(bundle, tmp_path, odd):
    """Names or not: a table of the values ends at both of its ends."""
    array = turned().astype(np.int32)
    array[0, 0] = odd
    file = write(tmp_path / "a.nii.gz", array)
    before = file.read_bytes()
    told = [{"name": name, "idx": value} for name, value in (("tumour", 1), ("liver", 2), ("liver", odd))]
    with pytest.raises(ValueError, match=rf"a\.nii\.gz: expected label values 0 to 65535, received {odd}; save it"):
        labels.by_name(bundle, file, told)
    assert file.read_bytes() == before


def test_a_label_with_a_palette(bundle, tmp_path):
    """The numbers of the palette are its values, whatever their colours."""
    picture = Image.fromarray(truth()[..., 0])
    picture.putpalette([0, 0, 0, 0, 200, 0, 250, 0, 0])
    picture.save(tmp_path / "a.png")
    told = labels.present(bundle, tmp_path / "a.png")
    assert [(entry["name"], entry["idx"]) for entry in told] == [("liver", LIVER), ("tumour", TUMOUR)]


def test_values_that_are_no_class_are_told_with_the_classes(bundle, studies):
    """The app has none of the options that a training of the bundle has for them."""
    file = write(studies / "a.nii.gz", truth() * np.uint8(100))
    with pytest.raises(
        ValueError, match=r"0 to 2 \(0 background, 1 liver, 2 tumour\), received 100, 200; save"
    ) as told:
        labels.check(bundle, str(studies.parents[1] / "a.nii.gz"), file)
    assert "--label_values" not in str(told.value)


def test_two_images_of_one_name_are_told(bundle, studies, caplog):
    """The books have room for one of them."""
    write(studies.parents[1] / "a.nrrd", truth())
    datastore = opened(studies)
    datastore.refresh()
    (told,) = [r.message for r in caplog.records if "has the same name" in r.message]
    assert told.startswith(("a.nrrd: left out, for a.nii.gz", "a.nii.gz: left out, for a.nrrd"))
    assert sorted(datastore.list_images()) == ["a", "b", "c"]


def test_images_that_are_not_taken_for_any_are_told(bundle, studies, caplog):
    """MONAI Label goes by some endings, as they are written; a folder of others would look empty."""
    for name in ("SCAN.NII.GZ", "scan.mha", "a.seg.nrrd", "notes.txt"):
        (studies.parents[1] / name).write_bytes(b"")
    datastore = opened(studies)
    datastore.refresh()
    (told,) = [r.message for r in caplog.records if "in small letters" in r.message]
    assert told.startswith("SCAN.NII.GZ and 1 more: left out; expected the endings .nii.gz")
    assert sorted(datastore.list_images()) == ["a", "b", "c"]


def test_lengths_that_train_nothing_are_refused(bundle, studies, tmp_path):
    """At once, and not by a training that has started."""
    task = SemiSupervised(str(bundle), {})
    for key in ("max_epochs", "minutes"):
        with pytest.raises(HTTPException) as error:
            names.checked({key: 0}, {"max_epochs": 20, "minutes": 5})
        assert error.value.status_code == 400 and f"{key}: expected a number like" in error.value.detail
    with pytest.raises(ValueError, match=r"val_split 0\.9: leaves none of the 1 labelled images for training"):
        task._partition_datalist([{"image": "a", "label": "a"}], {"val_split": 0.9})
    assert len(task._partition_datalist([{"image": "a", "label": "a"}], {})[0]) == 1


def test_validation_sees_no_patient_of_the_training(bundle, caplog):
    task = SemiSupervised(str(bundle), {})

    def held_back(*images, share=0.2):
        items = [{"image": f"/studies/{name}.nii.gz", "label": "x"} for name in images]
        training, validation = task._partition_datalist(items, {"val_split": share})
        assert sorted(item["image"] for item in (*training, *validation)) == sorted(item["image"] for item in items)
        return [Path(item["image"]).name.split(".")[0] for item in validation]

    assert held_back("a", "b", "c", "d", "e") == ["e"], "names that show no patient"
    visits = [f"patient{n}_t{t}" for n in (1, 2, 3) for t in (0, 1, 2)]
    assert held_back(*visits) == ["patient3_t0", "patient3_t1", "patient3_t2"]
    assert held_back(*visits, share=0.9) == visits[3:], "one patient at least is trained on"
    assert held_back(*visits[:3]) == [] and "all 3 labelled images are of one patient" in caplog.text
