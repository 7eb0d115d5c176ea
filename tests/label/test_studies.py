"""The folder of images: thousands of files, files that come and go, folders of their own, a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import HTTPException
from lib.active import KEYS, strategies
from lib.studies import Studies
from monailabel.config import settings


def opened(folder: Path, auto_reload: bool = False, server: bool = True) -> Studies:
    options = {"extensions": settings.MONAI_LABEL_DATASTORE_FILE_EXT, "read_only": False}
    return Studies(str(folder), server=server, auto_reload=auto_reload, **options)


def fill(folder: Path, number: int) -> list[str]:
    """Files that are no images, which the books do not open."""
    folder.mkdir(exist_ok=True)
    names = [f"scan{k:04d}" for k in range(number)]
    for name in names:
        (folder / f"{name}.nii.gz").touch()
    return names


@pytest.mark.parametrize("strategy", ["disagreement", "entropy"])
def test_the_next_of_five_thousand_images(tmp_path, strategy):
    """The highest score first, then the next one, whatever was offered before."""
    names = fill(tmp_path, 5000)
    datastore, ask = opened(tmp_path), {"strategy": strategy}
    datastore.update_images({name: {KEYS[strategy]: score} for name, score in zip(names[7:9], (0.2, 0.7))})
    choose = strategies("random")[strategy]
    assert choose(ask, datastore)["id"] == names[8]
    datastore.update_image_info(names[8], {"strategy": {strategy: {"ts": int(time.time())}}})
    assert choose(ask, datastore)["id"] == names[7]
    assert choose(ask, opened(tmp_path / "none")) is None


@pytest.mark.parametrize("content", ["", '{"objects": {', "[]"])
def test_damaged_books(tmp_path, content):
    """Named in one line, and left as they are; without them images and labels are found again."""
    fill(tmp_path, 3)
    fill(tmp_path / "labels", 0)
    fill(tmp_path / "labels" / "final", 2)
    books = tmp_path / "datastore_v2.json"
    books.write_text(content)
    with pytest.raises(ValueError, match=r"datastore_v2\.json: expected .*, received a damaged file; move it away"):
        opened(tmp_path)
    assert books.read_text() == content
    books.unlink()
    assert sorted(opened(tmp_path).get_labeled_images()) == ["scan0000", "scan0001"]


def test_many_files_are_copied_in_while_the_server_runs(tmp_path, monkeypatch):
    """The folder is looked at now and then, not once a file; and what goes while it is listed does not stop that."""
    looks: list[float] = []
    reconcile = Studies._reconcile_datastore

    def counted(self: Studies) -> None:
        looks.append(time.monotonic())
        reconcile(self)

    datastore = opened(tmp_path, auto_reload=True)
    monkeypatch.setattr(Studies, "_reconcile_datastore", counted)
    names = fill(tmp_path, 600)
    end = time.monotonic() + 60
    while len(datastore.list_images()) < 600 and time.monotonic() < end:
        time.sleep(0.1)
    assert sorted(datastore.list_images()) == names and len(looks) < 60

    listed = os.listdir
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: [*listed(path), "gone.nii.gz"])
        datastore.refresh()
    (tmp_path / "late.nii.gz").touch()
    while "late" not in datastore.list_images() and time.monotonic() < end:
        time.sleep(0.1)
    assert sorted(datastore.list_images()) == ["late", *names]


def test_images_in_folders_of_their_own_are_told(tmp_path, caplog):
    """Otherwise a folder of patients looks empty; the labels are no images."""
    for folder in ("patient 1", "labels/final", "labels_before/final", "notes"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("patient 1/T1.NII", "labels/final/a.nii.gz", "labels_before/final/a.nii.gz", "notes/a.txt"):
        (tmp_path / file).touch()
    datastore = opened(tmp_path)
    datastore.refresh()
    (told,) = [r.message for r in caplog.records if "one folder" in r.message]
    assert told.startswith("patient 1/: left out with T1.NII") and datastore.list_images() == []


def test_what_does_not_fit_on_the_disk_leaves_nothing(tmp_path, monkeypatch):
    """Neither a part of an image, which would be taken for one, nor of a label; the label before stays."""
    fill(tmp_path, 1)
    (tmp_path / "labels" / "final").mkdir(parents=True)
    label = tmp_path / "labels" / "final" / "scan0000.nii.gz"
    label.write_bytes(b"before")
    datastore, source = opened(tmp_path), tmp_path / "notes.txt"
    source.write_bytes(b"what is sent")
    before = sorted(tmp_path.rglob("*"))

    def full(_: str, target: str) -> None:
        Path(target).write_bytes(b"what")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copy", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    for save in (
        lambda: datastore.add_image("new", str(source), {}),
        lambda: datastore.save_label("scan0000", str(source.with_name("x.nii.gz")), "final", {}),
    ):
        with pytest.raises(OSError, match="No space"):
            save()
    assert sorted(tmp_path.rglob("*")) == before and label.read_bytes() == b"before"


@pytest.mark.parametrize("by_server", [True, False])
def test_a_label_that_is_submitted_during_a_prediction_stays(tmp_path, by_server):
    """Many images are predicted in a process of its own, which does not know what the server has stored meanwhile."""
    fill(tmp_path, 2)
    server = opened(tmp_path)
    predicting = server if by_server else opened(tmp_path, server=False)
    for name in ("mine.nrrd", "predicted.nii.gz"):
        (tmp_path.parent / name).write_text(name)
    answer = {"model": "semsim", "params": {"label_names": {}}}

    def predict(image: str, tag: str) -> str:
        return predicting.save_label(image, str(tmp_path.parent / "predicted.nii.gz"), tag, dict(answer))

    server.save_label("scan0000", str(tmp_path.parent / "mine.nrrd"), "final", {**answer, "label_info": []})
    with pytest.raises(HTTPException, match="scan0000: has a label, and no prediction takes its place") as refused:
        predict("scan0000", "final")
    assert refused.value.status_code == 409
    assert predict("scan0000", "original") == "scan0000" and predict("scan0001", "final") == "scan0001"
    found = {file.name: file.read_text() for file in (tmp_path / "labels" / "final").iterdir()}
    assert found == {"scan0000.nrrd": "mine.nrrd", "scan0001.nii.gz": "predicted.nii.gz"}
    assert not (tmp_path / "labels_before").exists()


def test_a_data_set_to_take_away_holds_nobody_up(tmp_path, monkeypatch):
    """However long it takes; and where it fails, no part of it stays on the disk."""
    fill(tmp_path, 2)
    fill(tmp_path / "labels", 0)
    fill(tmp_path / "labels" / "final", 2)
    datastore, made = opened(tmp_path), tmp_path.with_name(f"{tmp_path.name}_made")
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    with ThreadPoolExecutor() as pool, monkeypatch.context() as patch:
        asked = []

        def full(*_: object, **__: object) -> None:
            asked.append(pool.submit(datastore.list_images).result(30))
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(zipfile.ZipFile, "write", full)
        with pytest.raises(OSError, match="No space"):
            datastore.get_dataset_archive(None)
    assert [sorted(names) for names in asked] == [["scan0000", "scan0001"]] and not list(made.iterdir())
    for limit, number in ((None, 2), (1, 1), (-1, 2), (5, 2)):
        with zipfile.ZipFile(datastore.get_dataset_archive(limit)) as file:
            assert len(file.namelist()) == 2 * number + 1
