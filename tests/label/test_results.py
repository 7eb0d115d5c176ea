"""Predictions of every kind of image lie on its pixels and say what the segments are."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import itk
import nibabel as nib
import numpy as np
import pytest
from fastapi import HTTPException
from label_server import assemble
from lib import endpoints, labels
from lib.infer import Batch, Segmentation
from monailabel.config import settings
from monailabel.interfaces import app as stock
from monailabel.utils.async_tasks import utils as tasks
from monailabel.utils.sessions import Sessions
from PIL import Image

CLASSES = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    assemble(folder / "app", spatial_size=64)
    return folder


@pytest.fixture(scope="module")
def ask(folder):
    """A prediction as ``(image of ITK, array)``, last axis first."""
    task = Segmentation(str(folder / "app" / "model" / "semsim"), {})

    def ask(image: Path, **options):
        file, _ = task({"image": str(image), "device": "cpu", "result_dtype": "uint8", **options})
        result = itk.imread(file)
        return Path(file), result, itk.array_from_image(result)

    return ask


def heart(shape: tuple[int, int] = (48, 80)) -> np.ndarray:
    """A ring around a bright disk."""
    y, x = np.indices(shape)
    r = np.hypot(y - 20, x - 50)
    return np.where(r < 6, 220, np.where(r < 10, 90, 150 * (r < 14))).astype(np.uint8)


def test_a_picture_is_predicted_as_it_lies(ask, folder):
    """In every format the same pixels, where ITK and so Slicer has the picture; a JPEG has no lossy label."""
    for name in ("heart.png", "heart.jpg", "heart.tif"):
        Image.fromarray(heart()).save(folder / name)
    file, result, plain = ask(folder / "heart.png")
    assert file.suffix == ".png" and plain.shape == (48, 80)
    for kind in (".nii.gz", ".nrrd"):
        _, result, found = ask(folder / "heart.png", result_extension=kind)
        assert np.array_equal(found, plain[None]) and set(np.unique(found)) <= {0, *CLASSES}
        assert np.array_equal(itk.array_from_matrix(result.GetDirection()), np.eye(3))
        assert list(result.GetOrigin()) == [0, 0, 0]
    assert ask(folder / "heart.jpg")[0].suffix == ".png"
    assert np.array_equal(ask(folder / "heart.tif")[2], plain)


def test_a_volume_comes_whole_and_with_names(ask, folder):
    volume = np.repeat(heart((48, 80)).T[..., None], 3, axis=2).astype(np.float32)
    nib.save(nib.Nifti1Image(volume, np.diag([-1.5, -1.5, 8, 1])), folder / "heart.nii.gz")
    with pytest.raises(HTTPException, match=r"result_extension.*3 slices"):
        ask(folder / "heart.nii.gz", result_extension=".png")
    file, result, found = ask(folder / "heart.nii.gz", result_extension=".seg.nrrd")
    assert found.shape == (3, 48, 80) and np.allclose(result.GetSpacing(), [1.5, 1.5, 8])
    assert labels._own_names(folder / "app" / "model" / "semsim", file) == [CLASSES]
    assert np.array_equal(ask(folder / "heart.nii.gz")[2], found)


def test_the_app_asks_where_a_request_is_in_doubt(folder, monkeypatch):
    """MONAI Label predicts a file that is called like the image, if the server was started in its folder."""
    import main

    (folder / "studies").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 3), np.float32), np.eye(4)), folder / "studies" / "case1.nii.gz")
    app = main.SemSimApp(str(folder / "app"), str(folder / "studies"), {"skip_scoring": "true"})
    (folder / "started" / "case1").mkdir(parents=True)
    monkeypatch.chdir(folder / "started")
    with pytest.raises(HTTPException, match="case1: the folder that the server was started in"):
        app.infer({"model": "semsim", "image": "case1"})

    # what the books keep of a label that comes without names: those of its values
    image, label = folder / "studies" / "case1.nii.gz", np.zeros((20, 20, 3), np.uint8)
    label[4:9] = 3
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "label.nii.gz")
    told = app.checked_label(str(image), folder / "label.nii.gz", {"client_id": "me"}, "final")
    assert told == {"client_id": "me", "label_info": [{"name": CLASSES[3], "idx": 3}]}
    app.studies = "https://archive.example.org"
    with pytest.raises(HTTPException, match="empty: no archive"):
        app.checked_label(str(image), folder / "label.nii.gz", {"empty": True}, "final")


def test_a_batch_predicts_every_image(monkeypatch, caplog):
    """One after the other, for MONAI Label's task shares its modules; the last line names what was not predicted."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)  # MONAI Label would take four threads
    names, alone, threads = [f"scan{number}" for number in range(6)], threading.Lock(), set()

    def infer(task: dict, _: object) -> dict:
        threads.add(threading.current_thread())
        assert alone.acquire(blocking=False), "two predictions at once"
        time.sleep(0.05)
        alone.release()
        if task["image"] == "scan3":
            raise HTTPException(422, "scan3.nii.gz: expected an image, could not read it (OSError).")
        return {"label": task["image"]}

    books = SimpleNamespace(list_images=lambda: names)
    for asked in ({}, {"max_workers": 4}):
        threads.clear()
        done = Batch()({"model": "semsim", "device": "cpu", "multi_gpu": False, **asked}, books, infer)
        assert [name for name in names if "error" in done[name]] == ["scan3"] and len(threads) == 1
        last = caplog.records[-1].message
        assert last.startswith("1 of 6 images not predicted: scan3; "), last


@pytest.mark.parametrize(
    ("conf", "told"),
    [
        ({"strategy": "uncertainty"}, "strategy uncertainty: expected one of random, entropy, disagreement; mend it"),
        ({"skip_scoring": "perhaps"}, "skip_scoring perhaps: expected true or false; mend it"),
    ],
)
def test_misspelt_options_of_the_server(folder, tmp_path, conf, told):
    import main

    with pytest.raises(ValueError, match=f"--conf {told} and start again"):
        main.SemSimApp(str(folder / "app"), str(tmp_path), conf)


def test_uploads_whose_time_is_over_go(folder, tmp_path):
    """Also one that broke off, at which MONAI Label's own would stop and keep all the others for good."""
    import main

    (tmp_path / "studies").mkdir()
    app = main.SemSimApp(str(folder / "app"), str(tmp_path / "studies"), {"skip_scoring": "true"})
    image = tmp_path / "image.nii.gz"
    image.touch()
    app._sessions = Sessions(str(tmp_path / "sessions"))
    app.cleanup_sessions()  # nothing is there yet
    Sessions(str(tmp_path / "sessions")).add_session(str(image), session_id="over")  # of an earlier server
    image.touch()
    app._sessions.add_session(str(image), session_id="new")
    for name, ago in (("broken", 9999), ("cut", 9999), ("begun", 0)):
        place = tmp_path / "sessions" / name
        place.mkdir()
        if name == "cut":
            (place / "meta.info").touch()
        os.utime(place, (time.time() - ago,) * 2)
    told = tmp_path / "sessions" / "over" / "meta.info"
    told.write_text(json.dumps({**json.loads(told.read_text()), "last_access_ts": int(time.time()) - 9999}))
    app.cleanup_sessions()
    assert sorted(path.name for path in (tmp_path / "sessions").iterdir()) == ["begun", "new"]


def test_the_tool_for_submitting_to_an_archive_may_be_missing(folder, tmp_path, monkeypatch, caplog):
    """MONAI Label fetches it from the internet, and a server without that would not start."""
    import main

    def nothing(**_: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(stock, "download_and_extract", nothing)
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    main.SemSimApp(str(folder / "app"), "https://archive.example.org", {"skip_scoring": "true"})
    assert "itkimage2segimage: could not be fetched (no network)" in caplog.text


def test_two_uploads_of_weights_at_once(folder, monkeypatch):
    """Neither is mixed with the other."""
    bundle = folder / "app" / "model" / "semsim"
    model = bundle / "models" / "model.pt"
    before = model.read_bytes()
    app = SimpleNamespace(known=lambda *_: None, bundles={"semsim": bundle}, model_info=lambda _: model.read_bytes())
    monkeypatch.setattr(endpoints, "app_instance", lambda: app)
    monkeypatch.setattr(endpoints.bundles, "loaded", lambda *_: None)
    monkeypatch.setattr(endpoints.bundles, "check_told", lambda *_: None)

    class Slow(io.BytesIO):
        """Of which half is sent before another upload, and half after."""

        def read(self, size: int = -1) -> bytes:
            if self.tell() == 4:
                with ThreadPoolExecutor() as pool:
                    other = SimpleNamespace(filename="b.pt", file=io.BytesIO(b"second"))
                    assert pool.submit(endpoints.update_model, None, "semsim", other).result() == b"second"
            return super().read(4)

    slow = SimpleNamespace(filename="a.pt", file=Slow(b"the first"))
    try:
        assert endpoints.update_model(None, "semsim", slow) == b"the first"
        assert not list(model.parent.glob("upload_*"))
    finally:
        model.write_bytes(before)


def test_a_training_that_fails_is_heard_to_the_end(monkeypatch):
    """Its last lines say why; it may have ended before they are read."""
    code = "import os, sys\nprint(*range(999), 'the reason', sep='\\n', flush=True)\nos._exit(1)"

    def process(command: list[str], **options: object) -> endpoints.Heard:
        made = endpoints.Heard([sys.executable, "-c", code], **options)
        made.wait()
        return made

    monkeypatch.setattr(tasks, "subprocess", SimpleNamespace(Popen=process, PIPE=-1, STDOUT=-2))
    monkeypatch.setitem(tasks.background_processes, "train", {})
    monkeypatch.setenv("PYTHONPATH", "")
    task = {"id": "1", "request": {}}
    tasks._task_func(task, "train")
    assert task["status"] == "ERROR" and list(task["details"])[-2:] == ["998", "the reason"]
