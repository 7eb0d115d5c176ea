"""Images and labels of a DICOM archive: which segmentation counts, what comes of it, what the server does with it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
import requests
from fastapi import FastAPI, HTTPException
from label_server import assemble
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from test_named_segments import LIVER, SHAPE, TUMOUR, read, truth, turned, write

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "label_app"))

import main
from lib import archive, endpoints, gate
from lib.active import KEYS, Scores
from lib.train import SemiSupervised
from monailabel.config import settings
from monailabel.datastore import dicom
from monailabel.datastore.utils import convert
from monailabel.interfaces import app


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return assemble(tmp_path_factory.mktemp("archive") / "app", class_names=["liver", "tumour"]) / "model" / "semsim"


def series(folder: Path) -> None:
    """A CT of the shape and grid of the other images."""
    folder.mkdir(parents=True)
    study, frame = generate_uid(), generate_uid()
    for number in range(SHAPE[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset(str(folder / f"{number}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        values = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Modality": "CT",
            "SeriesInstanceUID": folder.name, "StudyInstanceUID": study, "FrameOfReferenceUID": frame,
            "InstanceNumber": number + 1, "PatientID": "p", "PatientName": "p", "PatientBirthDate": "",
            "PatientSex": "", "StudyID": "1", "StudyDate": "", "StudyTime": "", "AccessionNumber": "",
            "ReferringPhysicianName": "", "SeriesNumber": 1, "Rows": SHAPE[1], "Columns": SHAPE[0],
            "PixelSpacing": [1, 1], "SliceThickness": 2, "ImagePositionPatient": [0, 0, 2 * number],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
            "SamplesPerPixel": 1, "PixelRepresentation": 1, "PhotometricInterpretation": "MONOCHROME2",
            "PixelData": np.random.default_rng(number).integers(0, 99, SHAPE[1::-1]).astype(np.int16).tobytes(),
        }  # fmt: skip
        for key, value in values.items():
            setattr(slice_, key, value)
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.save_as(folder / f"{number}.dcm", write_like_original=False)


class Archive:
    """A DICOMweb server with one CT and its segmentations."""

    base_url = "https://archive.example.org"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _first(self, uid: str) -> Dataset:
        return pydicom.dcmread(sorted((self.folder / uid).iterdir())[0])

    def search_for_series(self, search_filters: dict) -> list[dict]:
        found = [self._first(path.name) for path in sorted(self.folder.iterdir())]
        for key, value in search_filters.items():
            found = [ds for ds in found if ds[key].value == value]
        return [ds.to_json_dict() for ds in found]

    def retrieve_series_metadata(self, study: str, uid: str) -> list[dict]:
        return [self._first(uid).to_json_dict(bulk_data_threshold=10**9)]

    def retrieve_series(self, study: str, uid: str, media_types: object = None) -> list[Dataset]:
        return [pydicom.dcmread(path) for path in sorted((self.folder / uid).iterdir())]


def add_segmentation(pacs: Path, ct: str, array: np.ndarray, names: list[str], day: str) -> str:
    """Store a SEG of a CT, its segments numbered in the order of their names here; returns its series."""
    file = write(pacs.parent / "seg.nii.gz", array)
    info = [{"name": name} for name in names]
    made = pydicom.dcmread(convert.nifti_to_dicom_seg(str(pacs / ct), str(file), info, use_itk=False))
    made.ContentDate = day
    (pacs / made.SeriesInstanceUID).mkdir()
    made.save_as(pacs / made.SeriesInstanceUID / "seg.dcm")
    return made.SeriesInstanceUID


@pytest.fixture
def pacs(bundle, tmp_path, monkeypatch):
    """An archive's folder with two CTs, one of them with a segmentation of other organs."""
    monkeypatch.setattr(dicom, "dicom_to_nifti", dicom.dicom_to_nifti)  # restored afterwards
    monkeypatch.setattr(app, "DICOMWebDatastore", app.DICOMWebDatastore)
    monkeypatch.setattr(convert, "itk_image_to_dicom_seg", convert.itk_image_to_dicom_seg)
    monkeypatch.setattr(
        dicom.DICOMwebClientX, "_decode_multipart_message", dicom.DICOMwebClientX._decode_multipart_message
    )
    archive.install(bundle, server=True)
    for ct in ("1.2.1", "1.2.2"):
        series(tmp_path / "pacs" / ct)
        add_segmentation(tmp_path / "pacs", ct, turned(), ["lung", "rib"], "20300101")
    return tmp_path / "pacs"


def in_archive(pacs: Path, cache: str):
    return app.DICOMWebDatastore(Archive(pacs), {"Modality": "CT"}, str(pacs.parent / cache))


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
    task.copies = pacs
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


def test_a_download_that_breaks_off(pacs, monkeypatch):
    """What came of it is no image: the slices that are missing would be missing for good."""
    datastore, download, ct = in_archive(pacs, "cache"), dicom.dicom_web_download_series, "1.2.1"

    def broken(study: str | None, uid: str, folder: str, *others: object) -> None:
        download(study, uid, folder, *others)
        sorted(Path(folder).iterdir())[-1].unlink()
        raise ConnectionError("closed")

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(dicom, "dicom_web_download_series", broken)
        datastore.get_image_uri(ct)
    assert read(datastore.get_image_uri(ct)).shape == SHAPE
    assert {"name", "PatientID"} <= datastore.get_image_info(ct).keys()
    assert datastore.get_image_uri("1.2.9") == "" == datastore.get_label_uri("1.2.9", "final")

    monkeypatch.setattr(Archive, "search_for_series", counted(Archive.search_for_series, SHAPE[2] + 1))
    with pytest.raises(ValueError, match=r"1.2.2: expected the 5 files .* received 4"):
        datastore.get_image_uri("1.2.2")
    monkeypatch.setattr(Archive, "search_for_series", counted(Archive.search_for_series, SHAPE[2]))
    assert read(datastore.get_image_uri("1.2.2")).shape == SHAPE


def counted(search, number: int):
    """A search that says how many files a series has, as many archives do."""

    def call(self: Archive, search_filters: dict) -> list[dict]:
        return [{**ds, "00201209": {"vr": "IS", "Value": [number]}} for ds in search(self, search_filters)]

    return call


def alone(datastore):
    """A datastore whose watch has ended, which would look at the folder at times of its own."""
    datastore._observer.stop()
    datastore._observer.join()
    return datastore


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


def test_what_an_archive_does_not_do_is_refused(pacs):
    """An upload would take the place of an image of the archive here, and what is removed here would come again."""
    uid = add_segmentation(pacs, "1.2.1", turned(), ["tumour", "liver"], "20200101")
    datastore = in_archive(pacs, "cache")
    (item,), mine = datastore.datalist(), write(pacs.parent / "mine.nii.gz", np.ones(SHAPE, np.float32))
    before = Path(item["image"]).read_bytes()
    for change in (
        lambda: datastore.add_image("1.2.1", str(mine), {}),
        lambda: datastore.remove_image("1.2.1"),
        lambda: datastore.remove_label("1.2.1", "final"),
    ):
        with pytest.raises(HTTPException, match=r"1\.2\.1: the studies are an archive"):
            change()
    assert Path(item["image"]).read_bytes() == before and datastore.segmentations() == {"1.2.1": uid}


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


def test_parts_of_a_download_that_was_killed_go(pacs):
    """And not those of one that runs."""
    place = Path(alone(in_archive(pacs, "cache"))._datastore_path)
    for name, ago in ((".download_old", 2 * 24 * 3600), (".download_new", 60)):
        (place / name / "1.2.1").mkdir(parents=True)
        os.utime(place / name, (time.time() - ago,) * 2)
    alone(in_archive(pacs, "cache"))
    assert [path.name for path in place.glob(".download_*")] == [".download_new"]


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


def test_an_archive_that_gives_no_answer_is_told():
    """And not the disk of the server, whose errors are of the same kind in Python."""
    asked = requests.Request("GET", "https://archive.example.org/dicom-web/series").prepare()
    answer = requests.Response()
    answer.status_code = 401
    for error, word in (
        (requests.ConnectionError("refused", request=asked), "gives no answer (ConnectionError)"),
        (requests.HTTPError("401", request=asked, response=answer), "answers 401"),
    ):
        told = gate._no_answer(None, error)
        detail = json.loads(told.body)["detail"]
        assert told.status_code == 502 and detail.startswith(f"archive.example.org: {word}; see that it runs")
    application = FastAPI()
    gate.install(application)
    assert application.exception_handlers[requests.RequestException] is gate._no_answer


def test_a_series_that_is_not_whole_stops_no_scoring(pacs, tmp_path, monkeypatch):
    """The others get their scores, and who asks for that image is told in one line."""
    bundle = assemble(tmp_path / "app", spatial_size=32) / "model" / "semsim"
    archive.install(bundle, server=True)
    datastore, fetch = in_archive(pacs, "cache"), Archive.retrieve_series

    def short(self: Archive, study: str, uid: str, media_types: object = None) -> list[Dataset]:
        return fetch(self, study, uid)[: 2 if uid == "1.2.2" else None]

    monkeypatch.setattr(Archive, "retrieve_series", short)
    monkeypatch.setattr(Archive, "search_for_series", counted(Archive.search_for_series, SHAPE[2]))
    scores = Scores(bundle, "https://archive.example.org")
    result = scores({"device": "cpu"}, datastore)
    assert (result["executed"], result["failed"]) == (2, 1) and KEYS["entropy"] in scores.written()["1.2.1"]
    with pytest.raises(ValueError, match=r"1\.2\.2: expected the 4 files") as error:
        datastore.get_image_uri("1.2.2")
    told = gate._no_use(None, error.value)
    assert told.status_code == 422 and "1.2.2: expected the 4 files" in json.loads(told.body)["detail"]


@pytest.fixture
def web():
    """A DICOMweb server over HTTP: ``answers`` has by the end of a path status, headers and body.

    Like Orthanc's it says no length of what it sends and closes the connection at the end.
    """
    answers: dict[str, tuple[int, dict[str, str], bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = urlsplit(self.path).path
            status, headers, body = next(answer for end, answer in answers.items() if place.endswith(end))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web", answers
    server.shutdown()
    server.server_close()


def test_an_answer_that_breaks_off_within_its_last_file(pacs, web):
    """All files are there, and the last one would end in noise: such a server says no length that could differ."""
    url, answers = web
    files = [path.read_bytes() for path in sorted((pacs / "1.2.1").iterdir())]
    body = b"".join(b"--edge\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % file for file in files)
    listed = Archive(pacs).search_for_series({"SeriesInstanceUID": "1.2.1"})[0]
    listed = {key: listed[key] for key in ("0020000D", "0020000E", "00080060")}
    listed["00201209"] = {"vr": "IS", "Value": [len(files)]}
    answers["/dicom-web/series"] = 200, {"Content-Type": "application/dicom+json"}, json.dumps([listed]).encode()
    kind = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=edge'}
    datastore = app.DICOMWebDatastore(dicom.DICOMwebClientX(url), {"Modality": "CT"}, str(pacs.parent / "cache"))
    for sent in (body[:-100], body[:-2], body):
        answers["/series/1.2.1"] = 200, kind, sent
        with pytest.raises(requests.ConnectionError, match="breaks off") as error:
            datastore.get_image_uri("1.2.1")
        assert json.loads(gate._no_answer(None, error.value).body)["detail"].startswith(
            f"{urlsplit(url).netloc}: gives"
        )
    answers["/series/1.2.1"] = 200, kind, body + b"--edge--"
    assert read(datastore.get_image_uri("1.2.1")).shape == SHAPE


def test_an_archive_that_falls_silent_holds_nothing_up_for_ever(pacs, monkeypatch):
    """It takes the request, and never answers: a machine that lost its power, say."""
    monkeypatch.setattr(archive, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = dicom.DICOMwebClientX(f"http://127.0.0.1:{silent.getsockname()[1]}/dicom-web")
        client.set_http_retry_params(retry=False)
        datastore = app.DICOMWebDatastore(client, {"Modality": "CT"}, str(pacs.parent / "cache"))
        with pytest.raises(requests.Timeout):
            datastore.list_images()


def test_a_series_that_the_archive_cannot_decompress(pacs, monkeypatch):
    """Orthanc without a plugin for JPEG 2000 answers 500, unless it may send the files as they are."""
    datastore, fetch, asked = in_archive(pacs, "cache"), Archive.retrieve_series, []

    def packed(self: Archive, study: str, uid: str, media_types: object = None) -> list[Dataset]:
        asked.append(media_types)
        if media_types is None or uid == "1.2.2":
            answer = requests.Response()
            answer.status_code = 401 if uid == "1.2.2" and len(asked) > 4 else 500
            raise requests.HTTPError("Internal Server Error", response=answer)
        return fetch(self, study, uid)

    monkeypatch.setattr(Archive, "retrieve_series", packed)
    assert read(datastore.get_image_uri("1.2.1")).shape == SHAPE
    assert asked == [None, (("application/dicom", "*"),)]
    with pytest.raises(ValueError, match=r"1\.2\.2: the archive answers 500 where it is asked for this series"):
        datastore.get_image_uri("1.2.2")
    with pytest.raises(requests.HTTPError):  # it lets nobody in, whatever is asked for
        datastore.get_image_uri("1.2.2")
    assert len(asked) == 5


def test_images_that_come_and_go_are_soon_known(pacs, monkeypatch):
    """MONAI Label's settings keep the list for two hours, and would offer what has been removed."""
    monkeypatch.setattr(archive, "SECONDS", 0)
    datastore = in_archive(pacs, "cache")
    datastore.get_image_uri("1.2.2")
    assert sorted(datastore.get_unlabeled_images()) == ["1.2.1", "1.2.2"]
    series(pacs / "1.2.3")
    shutil.rmtree(pacs / "1.2.2")
    assert sorted(datastore.get_unlabeled_images()) == ["1.2.1", "1.2.3"] and datastore.status()["total"] == 2


def test_a_series_that_was_still_arriving_is_fetched_again(pacs, monkeypatch):
    """An archive offers what it has received so far; the slices that come later belong to the image, too."""
    monkeypatch.setattr(archive, "SECONDS", 0)
    whole, search = pacs / "1.2.1", Archive.search_for_series

    def sized(self: Archive, search_filters: dict) -> list[dict]:
        found = search(self, search_filters)
        sizes = [len(list((pacs / ds["0020000E"]["Value"][0]).iterdir())) for ds in found]
        return [{**ds, "00201209": {"vr": "IS", "Value": [size]}} for ds, size in zip(found, sizes)]

    monkeypatch.setattr(Archive, "search_for_series", sized)
    late = [(file, file.read_bytes()) for file in sorted(whole.iterdir())[2:]]
    for file, _ in late:
        file.unlink()
    for datastore in (in_archive(pacs, "cache"), in_archive(pacs, "another")):
        assert read(datastore.get_image_uri("1.2.1")).shape[2] == 2
    for file, content in late:
        file.write_bytes(content)
    assert read(datastore.get_image_uri("1.2.1")).shape == SHAPE
    add_segmentation(pacs, "1.2.1", turned(), ["tumour", "liver"], "20200101")
    (item,) = in_archive(pacs, "cache").datalist()
    assert read(item["image"]).shape == read(item["label"]).shape


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


def test_an_archive_without_such_images_is_told(pacs, caplog):
    """MONAI Label looks for CT unless it is told otherwise."""
    datastore = app.DICOMWebDatastore(Archive(pacs), {"Modality": "MR"}, str(pacs.parent / "cache"))
    assert datastore.list_images() == [] == datastore.get_unlabeled_images()
    (told,) = [r.message for r in caplog.records if "SEARCH_FILTER" in r.message]
    assert told.startswith('https://archive.example.org: no series of images with {"Modality": "MR"}')


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


def test_a_start_without_an_answer_is_told(bundle, pacs, web, monkeypatch):
    """The last line says what is wrong, and no password, say, was given."""
    url, answers = web
    answers["/dicom-web/series"] = 401, {}, b""
    monkeypatch.setattr(main.SemSimApp, "_download_dcmqi_tools", lambda self: None)
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(pacs.parent / "cache"))
    made = object.__new__(main.SemSimApp)
    made.studies, made.bundles, made.is_server = url, {"semsim": str(bundle)}, True
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+: answers 401; see that it runs and lets this server in"):
        made.init_datastore()
