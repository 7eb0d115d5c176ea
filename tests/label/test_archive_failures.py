"""A DICOM archive that breaks off, does not answer, changes, or lacks what is asked for."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import main
import numpy as np
import pytest
import requests
from archives import Archive, add_segmentation, alone, counted, in_archive, series
from fastapi import FastAPI, HTTPException
from label_server import assemble
from lib import archive, gate
from lib.active import KEYS, Scores
from monailabel.config import settings
from monailabel.datastore import dicom
from monailabel.interfaces import app
from pydicom.dataset import Dataset
from segments import SHAPE, read, turned, write

pytest_plugins = ["archives"]  # its fixtures


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


def test_parts_of_a_download_that_was_killed_go(pacs):
    """And not those of one that runs."""
    place = Path(alone(in_archive(pacs, "cache"))._datastore_path)
    for name, ago in ((".download_old", 2 * 24 * 3600), (".download_new", 60)):
        (place / name / "1.2.1").mkdir(parents=True)
        os.utime(place / name, (time.time() - ago,) * 2)
    alone(in_archive(pacs, "cache"))
    assert [path.name for path in place.glob(".download_*")] == [".download_new"]


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


def test_an_archive_without_such_images_is_told(pacs, caplog):
    """MONAI Label looks for CT unless it is told otherwise."""
    datastore = app.DICOMWebDatastore(Archive(pacs), {"Modality": "MR"}, str(pacs.parent / "cache"))
    assert datastore.list_images() == [] == datastore.get_unlabeled_images()
    (told,) = [r.message for r in caplog.records if "SEARCH_FILTER" in r.message]
    assert told.startswith('https://archive.example.org: no series of images with {"Modality": "MR"}')


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
