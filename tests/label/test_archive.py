"""Images and labels of a DICOM archive: which segmentation counts, what comes of it, what the server does with it."""

from __future__ import annotations

import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from archives import Archive, add_segmentation, alone, in_archive
from fastapi import HTTPException
from label_server import assemble
from lib import archive, endpoints
from lib.active import KEYS, Scores
from lib.train import SemiSupervised
from monailabel.datastore import dicom
from monailabel.datastore.utils import convert
from segments import LIVER, SHAPE, TUMOUR, read, truth, turned, write

pytest_plugins = ["archives"]  # its fixtures


def test_segmentations_of_an_archive(bundle, pacs, caplog):
    """OHIF numbers its segments by the alphabet; a segmentation of other organs is no label."""
    ct = "1.2.1"
    add_segmentation(pacs, ct, turned(), ["tumour", "liver"], "20200101")
    datastore = in_archive(pacs, "cache")
    assert datastore.get_unlabeled_images() == ["1.2.2"]
    (item,) = datastore.datalist()
    assert ct in item["image"] and np.array_equal(read(item["label"]), truth())
    assert "lung" in caplog.text and "Left out" in caplog.text
    task = SemiSupervised(str(bundle), {})
    task.copies = pacs.parent
    assert len(task._fetch_datalist({"model": "semsim"}, datastore)) == 1

    # a score counts once the books have the image, which another process may have fetched
    datastore._observer.stop()
    datastore._observer.join()
    scores, known = Scores(bundle, "https://archive.example.org"), datastore._datastore.objects
    scores._write({ct: {KEYS["entropy"]: 0.5}})
    gone = known.pop(ct)
    scores.enter(datastore)
    known[ct] = gone
    scores.enter(datastore)
    assert datastore.get_image_info(ct)[KEYS["entropy"]] == 0.5


def test_the_newest_segmentation_counts(pacs, monkeypatch):
    """A correction in OHIF of what was submitted in Slicer; and a submitted label is known at once."""
    datastore, ct = in_archive(pacs, "cache"), "1.2.1"
    assert datastore.datalist() == [] and sorted(datastore.get_unlabeled_images()) == [ct, "1.2.2"]

    def store(folder: str, label: str, info: list[dict]) -> str:
        uid = add_segmentation(pacs, ct, read(label), [entry["name"] for entry in info], "20200101")
        monkeypatch.setattr(dicom, "dicom_web_upload_dcm", lambda file, client: uid)
        (pacs.parent / "made.dcm").touch()
        return str(pacs.parent / "made.dcm")

    monkeypatch.setattr(dicom, "nifti_to_dicom_seg", store)
    file = write(pacs.parent / "mine.nii.gz", np.where(truth() == LIVER, LIVER, 0).astype(np.uint8))
    datastore.save_label(ct, str(file), "final", {"label_info": [{"name": "liver", "idx": 1}]})
    assert datastore.get_unlabeled_images() == ["1.2.2"]
    (item,) = datastore.datalist()
    assert set(np.unique(read(item["label"]))) == {0, LIVER}
    add_segmentation(pacs, ct, turned(), ["tumour", "liver"], "20210101")
    add_segmentation(pacs, ct, np.flip(turned()), ["tumour", "liver"], "20190101")
    for other in (in_archive(pacs, "cache"), in_archive(pacs, "another")):
        for _ in range(2):
            (item,) = other.datalist()
            assert np.array_equal(read(item["label"]), truth())
            with other.mutex:
                other._datastore.objects.clear()  # as the watch over the folder does before it fills the books anew


def test_a_label_of_ohif_that_comes_during_a_prediction_stays(pacs):
    """The archive is asked when the prediction is saved, whatever was known before."""
    datastore, ct = in_archive(pacs, "cache"), "1.2.1"
    assert datastore.get_labeled_images() == []
    add_segmentation(pacs, ct, truth(), ["liver", "tumour"], "20200101")
    file = write(pacs.parent / "predicted.nii.gz", turned())
    with pytest.raises(HTTPException, match=r"1\.2\.1: has a label, and no prediction takes its place"):
        datastore.save_label(ct, str(file), "final", {"model": "semsim", "params": {}})
    assert datastore.get_labeled_images() == [ct]


def test_the_data_set_to_take_away(pacs):
    """A label is called like its image; series of segmentations and of images have nothing in common."""
    add_segmentation(pacs, "1.2.1", turned(), ["tumour", "liver"], "20200101")
    add_segmentation(pacs, "1.2.2", truth(), ["liver", "tumour"], "20400101")
    datastore = in_archive(pacs, "cache")
    made = Path(datastore.get_dataset_archive(None))
    with zipfile.ZipFile(made) as file:
        names = {Path(name).name: Path(name).parent.name for name in file.namelist()}
    made.unlink()
    pairs = {f"{ct}{end}" for ct in ("1.2.1", "1.2.2") for end in (".nii.gz", ".nrrd")}
    assert set(names) == pairs | {"metadata.json"} and names["1.2.1.nrrd"] == "label"
    assert datastore.get_label_uri("1.2.1", "final").endswith("/1.2.1.nrrd")


def test_apps_with_other_classes_share_a_copy(bundle, pacs, tmp_path):
    """The numbers that a label has for one of them mean something else to the other."""
    add_segmentation(pacs, "1.2.1", turned(), ["tumour", "liver"], "20200101")
    other = assemble(tmp_path / "app", class_names=["kidney", "liver", "tumour"]) / "model" / "semsim"
    for folder, numbers in ((bundle, [0, 1, 2]), (other, [0, 2, 3]), (bundle, [0, 1, 2])):
        archive.install(folder, server=True)
        (item,) = in_archive(pacs, "cache").datalist()
        assert np.array_equal(read(item["label"]), np.choose(truth(), numbers))


def test_a_segmentation_of_another_program_is_soon_known(pacs, monkeypatch):
    """MONAI Label's settings keep what it has found for two hours; each segmentation is asked for once."""
    asked, search = [], Archive.retrieve_series_metadata
    monkeypatch.setattr(Archive, "retrieve_series_metadata", lambda *a: asked.append(a[2]) or search(*a))
    assert archive.SECONDS <= 60
    monkeypatch.setattr(archive, "SECONDS", 0)
    datastore = in_archive(pacs, "cache")
    assert sorted(datastore.get_unlabeled_images()) == ["1.2.1", "1.2.2"]
    add_segmentation(pacs, "1.2.1", turned(), ["tumour", "liver"], "20400101")
    assert datastore.get_unlabeled_images() == ["1.2.2"] and datastore.status()["completed"] == 1
    assert len(asked) == len(set(asked)) == 3


def test_a_prediction_that_becomes_a_label_has_names(pacs, monkeypatch):
    """Without them its segments are of no class."""
    made: list[list[dict]] = []

    def tool(folder: str, label: str, info: list[dict]) -> str:
        made.append(info)
        return str(pacs.parent / "none.dcm")

    monkeypatch.setattr(dicom, "nifti_to_dicom_seg", tool)
    file = write(pacs.parent / "mine.nii.gz", np.where(truth() == TUMOUR, TUMOUR, 0).astype(np.uint8))
    with pytest.raises(HTTPException, match=r"1\.2\.1: itkimage2segimage has made no DICOM segmentation"):
        in_archive(pacs, "cache").save_label("1.2.1", str(file), "final", {"model": "semsim", "params": {}})
    assert made == [[{"name": "tumour", "idx": TUMOUR}]]


def test_the_server_alone_keeps_the_books(bundle, pacs):
    """A training that starts beside it finds what is new in the folder, and would write what it has read before."""
    server = alone(in_archive(pacs, "cache"))
    server.get_image_uri("1.2.1")
    books, copy = Path(server._datastore_config_path), Path(server._datastore_path)
    (copy / "1.2.2.nii.gz").write_bytes((copy / "1.2.1.nii.gz").read_bytes())
    before = books.read_bytes()
    archive.install(bundle, server=False)
    assert set(alone(in_archive(pacs, "cache")).json()["objects"]) == {"1.2.1", "1.2.2"}
    assert books.read_bytes() == before
    books.write_text('{"objects": {')
    with pytest.raises(ValueError, match=r"datastore_v2\.json: expected .*, received a damaged file; move it away"):
        in_archive(pacs, "cache")


def test_a_prediction_without_one_of_the_classes(bundle, tmp_path, monkeypatch):
    """As DICOM it has the names of the classes that it has, also where the client lists others first."""
    templates = []

    def tool(label: str, folder: str, template: dict) -> str:
        templates.append(template)
        return label

    monkeypatch.setattr(convert, "itk_image_to_dicom_seg", tool)
    monkeypatch.setattr(endpoints, "app_instance", lambda: SimpleNamespace(
        bundles={"semsim": str(bundle)}, checked=lambda _, given: {k: v for k, v in given.items() if k == "model"},
        datastore=lambda: SimpleNamespace(get_image_uri=lambda _: str(tmp_path)),
    ))  # fmt: skip
    file = write(tmp_path / "label.nii.gz", np.where(truth() == TUMOUR, TUMOUR, 0).astype(np.uint8))
    made = endpoints._named_by_value(convert.nifti_to_dicom_seg)

    def stock(tasks, model, image, session, params, *others) -> None:
        made(str(tmp_path), str(file), json.loads(params)["label_info"], use_itk=True)

    told = [{"name": "Tumour", "color": [1, 2, 3]}, {"name": "liver"}]
    endpoints._checked_inference(stock)(None, "semsim", "1.2.1", params=json.dumps({"label_info": told}))
    (segment,) = templates[0]["segmentAttributes"][0]
    assert (segment["SegmentLabel"], segment["labelID"]) == ("tumour", TUMOUR)
    assert segment["recommendedDisplayRGBValue"] == [1, 2, 3]


def test_a_prediction_that_cannot_become_dicom_is_told(tmp_path, monkeypatch):
    """One without any class, and a server without the tool, which MONAI Label fetches when it starts."""
    made, told = endpoints._named_by_value(convert.nifti_to_dicom_seg), [{"name": "liver"}, {"name": "tumour"}]
    file, empty = write(tmp_path / "a.nii.gz", truth()), write(tmp_path / "b.nii.gz", np.zeros(SHAPE, np.uint8))
    monkeypatch.setenv("PATH", str(tmp_path))
    for label, status, text in (
        (empty, 422, "nothing is predicted in it"),
        (file, 500, "itkimage2segimage has made no"),
    ):
        with pytest.raises(HTTPException) as error:
            made(str(tmp_path / "1.2.1"), str(label), told, use_itk=True)
        assert error.value.status_code == status and error.value.detail.startswith(f"1.2.1: {text}")


def test_nobody_sees_the_books_while_they_are_filled_anew(pacs):
    datastore = alone(in_archive(pacs, "cache"))
    datastore.get_image_uri("1.2.1")
    with ThreadPoolExecutor() as pool:
        with datastore.mutex:
            known = dict(datastore._datastore.objects)
            datastore._datastore.objects.clear()  # as a look at the folder does
            asked = pool.submit(datastore.json)
            wait([asked], timeout=0.3)
            datastore._datastore.objects.update(known)
        assert set(asked.result()["objects"]) == {"1.2.1"}


def test_a_submitted_label_says_when_it_was_written_as_ohif_does(pacs, monkeypatch):
    """In UTC: with the local time of the tool, a correction in OHIF would be older than what it corrects."""
    made = pacs.parent / "made.dcm"

    def tool(label: str, folder: str, template: dict) -> str:
        seg = Archive(pacs)._first("1.2.1")
        seg.ContentDate, seg.ContentTime = "20400101", "120000"
        seg.save_as(made)
        return str(made)

    monkeypatch.setattr(convert, "itk_image_to_dicom_seg", tool)
    archive.install(archive.app.DICOMWebDatastore.bundle, server=True)
    file = write(pacs.parent / "mine.nii.gz", truth())
    before = datetime.now(UTC)
    convert.nifti_to_dicom_seg(str(pacs / "1.2.1"), str(file), [{"name": "liver"}, {"name": "tumour"}])
    written = archive._written(pydicom.dcmread(made))
    assert f"{before:%Y%m%d%H%M%S.%f}" <= written <= f"{datetime.now(UTC):%Y%m%d%H%M%S.%f}"


def test_what_a_scoring_has_fetched_is_soon_in_the_books(pacs):
    """It renames files into place beside the server, which offers no image by its score before it knows the file."""
    datastore = in_archive(pacs, "cache")
    place = Path(datastore._datastore_path)
    write(place / "part.nii", np.zeros(SHAPE, np.uint8)).rename(place / "part.tmp")
    time.sleep(0.5)  # the watch has seen the file come
    (place / "part.tmp").rename(place / "1.2.1.nii")
    end = time.monotonic() + 10
    while "1.2.1" not in datastore.json()["objects"] and time.monotonic() < end:
        time.sleep(0.1)
    assert "1.2.1" in datastore.json()["objects"]
