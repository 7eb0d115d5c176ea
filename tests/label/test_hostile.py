"""What no request does: run code, write or read outside the studies, lose a label, predict with any weights."""

from __future__ import annotations

import json
import resource
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from label_server import assemble, call, make_studies, running, submit, truth

CLASSES = ["background", "right ventricle", "myocardium", "left ventricle"]
TRAIN = {"max_epochs": 1, "steps_per_epoch": 2, "val_split": 0.0, "multi_gpu": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    app, studies = assemble(folder / "app", spatial_size=64), make_studies(folder / "studies", images=6, labels=1)
    studies = studies.rename(folder / "studies #1")
    with running(app, studies) as server:
        server.wait("scoring")
        server.folder = folder
        server.books = lambda: json.loads((studies / "datastore_v2.json").read_text())["objects"]
        yield server


def refused(response: requests.Response, *words: str, status: int = 400) -> None:
    assert response.status_code == status, response.text[:300]
    detail = response.json()["detail"]
    assert "\n" not in detail and all(word in detail for word in words), detail


CODE = "$__import__('pathlib').Path('{mark}').touch() or {value}"


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("/train/semsim", "device", "'cpu'"), ("/train/semsim", "max_epochs", "1"),
        ("/train/semsim", "run_id", "'run'"),
        ("/train/semsim", "spatial_size", "64"), ("/train/semsim", "model_filename", "'model.pt'"),
        ("/train/semsim", "tracking_uri", "''"), ("/train/semsim", "anything", "1"), ("/train/semsim", "gpus", "'all'"),
        ("/train/semsim", "bundle_path", "'.'"), ("/scoring/semsim", "device", "'cpu'"),
        ("/scoring/semsim", "bundle_path", "'.'"), ("/batch/infer/semsim", "device", "'cpu'"),
        ("/batch/infer/semsim", "label_tag", "'final'"),
    ],
)  # fmt: skip
def test_no_value_of_a_request_is_code(server, path, key, value):
    mark = server.folder / "marked"
    refused(call(server, "POST", path, json={key: CODE.format(mark=mark, value=value)}), key)
    assert not mark.exists()


def test_a_prediction_takes_no_code_either(server):
    mark = server.folder / "marked"
    for key in ("device", "model_filename", "result_extension", "logging"):
        data = {"params": json.dumps({key: CODE.format(mark=mark, value="'cpu'")})}
        refused(call(server, "POST", "/infer/semsim?image=patient001&output=json", data=data), key)
    for text in ("{", "[1]"):
        assert call(server, "POST", "/infer/semsim?image=patient001", data={"params": text}).status_code == 400
    assert not mark.exists()


def test_pages_of_other_sites_are_refused(server):
    own = server.url
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        for method, path in (("POST", "/train/semsim"), ("GET", "/info/"), ("OPTIONS", "/train/semsim")):
            refused(call(server, method, path, headers={"Origin": origin}, json={}), "Origin", status=403)
    refused(call(server, "GET", "/info/", headers={"Host": "evil.example"}), "Host", status=403)
    assert call(server, "GET", "/info/", headers={"Origin": own}).status_code == 200, "its own pages"
    assert call(server, "GET", "/info/", headers={"Host": "localhost"}).status_code == 200


OUT = ["../app/main", "..", "../../x", "/etc/hostname", "a/../../b", "..\\x", ".hidden", "a%00b", "x" * 300]


@pytest.mark.parametrize("name", OUT)
def test_names_stay_inside_the_studies(server, name):
    before = {p: p.stat().st_mtime_ns for p in server.folder.rglob("*.py")}
    upload = {"file": ("x.nii.gz", b"x")}
    for method, key, path in (
        ("PUT", "image", "/datastore/image"), ("GET", "image", "/datastore/image"),
        ("DELETE", "id", "/datastore/image"),
        ("PUT", "image", "/datastore/label"), ("POST", "image", "/infer/semsim"),
    ):  # fmt: skip
        files = {"label": upload["file"]} if path.endswith("label") else upload if method == "PUT" else None
        response = requests.request(method, f"{server.url}{path}?{key}={name}", files=files, timeout=60)
        refused(response, key)
    for method in ("PUT", "GET", "DELETE"):
        key = "image" if method == "PUT" else "label" if method == "GET" else "id"
        files = {"label": ("x.nii.gz", b"x")} if method == "PUT" else None
        path = f"{server.url}/datastore/label?{key}=patient001&tag={name}"
        refused(requests.request(method, path, files=files, timeout=60), "tag")
    assert {p: p.stat().st_mtime_ns for p in server.folder.rglob("*.py")} == before


def test_files_of_the_server_are_not_read_or_written(server):
    secret = server.folder / "secret.nii.gz"
    secret.write_bytes(truth(server, "patient001").read_bytes())
    data = {"params": json.dumps({"image": str(secret)})}
    refused(call(server, "POST", "/infer/semsim?image=patient001", data=data), "image")
    for name in ("x.py", "x", "x.sh.txt"):
        refused(call(server, "PUT", "/datastore/image?image=new", files={"file": (name, b"x")}), "ends with")
        refused(call(server, "PUT", "/datastore/label?image=patient001", files={"label": (name, b"x")}), "ends with")
    archive = {"files": ("x.tar", b"x")}
    refused(call(server, "PUT", "/session/?uncompress=true", files=archive), "uncompress")
    refused(call(server, "POST", "/reload"), "/reload", status=404)
    refused(call(server, "GET", "/proxy/dicom/x"), "/proxy", status=404)
    refused(call(server, "POST", "/infer/wsi/semsim", json={}, params={"image": "patient001"}), "whole", status=404)
    existing = {"file": ("x.nii.gz", secret.read_bytes())}
    refused(call(server, "PUT", "/datastore/image?image=patient001", files=existing), "exists already", status=409)


def detached(target: Path, line: str) -> bytes:
    """A header that names another file for its voxels."""
    header = ["NRRD0004", "type: uint8", "dimension: 3", "sizes: 16 16 4", "encoding: raw", f"{line}: {target}"]
    return "\n".join([*header, "", ""]).encode()


def test_an_upload_is_of_the_kind_that_it_says_and_names_no_other_file(server):
    """A header whose voxels lie in another file of the server would show that file in a prediction."""
    secret = Path("/etc/hostname")
    meta = f"ObjectType = Image\nNDims = 3\nDimSize = 16 16 4\nElementType = MET_UCHAR\nElementDataFile = {secret}\n"
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n"
    for name, content, word in (
        ("x.nrrd", detached(secret, "data file"), "one file"), ("x.nrrd", detached(secret, "DATAFILE"), "one file"),
        ("x.nrrd", detached(secret, "data file").replace(b"\n", b"\r") + b"\n\n", "one file"),
        ("x.nrrd", b"NRRD0004\ntype: uint8\n", "one file"), ("x.png", script, ".png"), ("x.tif", script, ".tif"),
        ("x.nii.gz", b"NRRD0004\n\n", ".nii.gz"), ("x.svs", b"II*\0", "ends with"),
        ("x.mhd", meta.encode(), "ends with"), ("x\0.nii.gz", truth(server, "patient001").read_bytes(), "plain"),
    ):  # fmt: skip
        file = (name, content)
        for method, path, key in (
            ("PUT", "/datastore/image?image=new", "file"), ("PUT", "/datastore/label?image=patient001", "label"),
            ("POST", "/infer/semsim?image=patient001", "file"), ("PUT", "/session/", "files"),
        ):  # fmt: skip
            refused(call(server, method, path, files={key: file}), word)
    header = detached(secret, "data file").rstrip(b"\n") + b"\n#"
    both = header + b" " * (128 - len(header)) + b"DICM\n\n"
    assert both[128:132] == b"DICM"
    refused(call(server, "PUT", "/session/", files={"files": ("x.nrrd", both)}), "one file")
    refused(call(server, "PUT", "/session/", files={"files": ("x.mhd", both)}), "ends with")
    for name in ("IM0001", "1.2.840.113619", "a.dcm"):
        assert call(server, "PUT", "/session/", files={"files": (name, both)}).status_code == 200, "DICOM, by its start"


def test_the_books_take_what_every_program_reads(server):
    """A half character or ``NaN`` there would end every later request for them; so would a score in words."""
    for text in ('"x"', "[]", "1", '{"a": NaN}', '{"a": 1e999}', '{"\\ud800": 1}', "[" * 5000,
                 '{"semsim_entropy": "high"}',
                 '{"strategy": {"random": {"ts": "x"}}}', '{"strategy": {"random": 1}}'):  # fmt: skip
        for path in ("/datastore/image/info?image=patient001", "/datastore/image?image=new"):
            data = {"info": text} if "info" in path else {"params": text}
            files = {"file": ("x.nii.gz", truth(server, "patient001").read_bytes())}
            assert call(server, "PUT", path, data=data, files=files).status_code == 400, (text[:40], path)
    info = "/datastore/label/info?label=patient000&tag=final"
    assert call(server, "PUT", info, data={"info": "1"}).status_code == 400
    odd = {"client_id": "../x"}
    assert call(server, "POST", "/activelearning/random", json=odd).status_code == 400
    assert call(server, "POST", "/activelearning/entropy", json={"labels": 1, "label_tag": [2]}).status_code == 200
    assert call(server, "GET", "/datastore/?output=all").status_code == 200
    archive = call(server, "GET", "/datastore/dataset")
    assert archive.status_code == 200 and archive.content.startswith(b"PK")


def test_odd_requests_are_answered(server):
    """What is no host, no text, no JSON: a 4xx in one line, also where FastAPI or a handler of MONAI Label stumbles."""
    refused(call(server, "GET", "/info/", headers={"Host": "[evil]"}), "Host", status=403)
    refused(call(server, "GET", "/info/", headers={"Origin": "http://[evil]"}), "Origin", status=403)
    image = truth(server, "patient001").read_bytes()
    form = {"files": {"file": ("x.nii.gz", image)}}
    refused(call(server, "POST", "/activelearning/random", **form), "body", status=422)
    plain = {"data": "[" * 100_000, "headers": {"Content-Type": "application/json"}}
    assert 400 <= call(server, "POST", "/train/semsim", **plain).status_code < 500
    if not torch.cuda.is_available():
        refused(call(server, "GET", "/logs/gpu"), "nvidia-smi", status=404)
    for text, status in (("x:1", 400), ("SHA256:00", 404), ("", 200)):
        assert call(server, "HEAD", f"/datastore/image?image=patient001&check_sum={text}").status_code == status
    log = call(server, "GET", "/logs/?lines=-1")
    assert "content-length" in log.headers and log.text.count("\n") > 20, "all of it, which grows meanwhile"
    scribbles = {"label": ("x.py", b"\x80\x04")}
    answer = call(server, "POST", "/infer/semsim?image=patient001&output=json", data={"params": "{}"}, files=scribbles)
    assert answer.status_code == 200, "which this model has no use for"
    broken = {"label": ("x.nii.gz", image[: len(image) // 2])}
    named = {"params": json.dumps({"label_info": [{"name": "myocardium", "idx": 1}]})}
    refused(call(server, "PUT", "/datastore/label?image=patient001&tag=v1", data=named, files=broken), "could not read")


def test_what_is_not_there_is_a_404(server):
    for path in ("/infer/semsim?image=gone", "/infer/other?image=patient001"):
        assert call(server, "POST", path, data={"params": "{}"}).status_code == 404
    for name in (["semsim"], {"a": 1}):
        assert call(server, "POST", "/train/semsim", json={"model": name}).status_code in (400, 404)
    odd = {"info": json.dumps({"strategy": "x"})}
    assert call(server, "PUT", "/datastore/image/info?image=patient001", data=odd).status_code == 400
    for path in ("/train/other", "/scoring/other", "/batch/infer/other", "/activelearning/other"):
        assert call(server, "POST", path, json={}).status_code == 404, path
    refused(submit(server, "gone", truth(server, "patient001")), "no such image", status=404)


def test_weights_of_another_network_are_refused(server):
    """And those that other programs wrap are unwrapped; the ones before are kept."""
    model = server.bundle / "models" / "model.pt"
    before, state = model.read_bytes(), torch.load(model, weights_only=True)
    half = dict(list(state.items())[: len(state) // 2])
    file = server.folder / "w.pt"

    def upload() -> requests.Response:
        with file.open("rb") as stream:
            return call(server, "PUT", "/model/semsim", files={"file": ("w.pt", stream)})

    def predicted() -> np.ndarray:
        path, _ = server.client.infer("semsim", "patient005", {})
        return np.asarray(nib.load(path).dataobj)

    expected = predicted()
    for content in ({"a": torch.zeros(3)}, half, {"state_dict": half}, [1]):
        torch.save(content, file)
        refused(upload(), "w.pt")
        assert model.read_bytes() == before
        file.replace(model)  # beside the server's back
        response = call(server, "POST", "/infer/semsim?image=patient005", data={"params": "{}"})
        refused(response, "model.pt", status=422)
        model.write_bytes(before)
    for content in (
        {"state_dict": state},
        {f"module.{k}": v for k, v in state.items()},
        {"network": state, "epoch": 1},
    ):
        torch.save(content, file)
        assert upload().status_code == 200
        assert np.array_equal(predicted(), expected)
    # weights of the same shape mean something else after another training
    other = {"settings": {"spatial_size": 96}, "message": "spatial_size: expected 64, received 96"}
    unknown = {"settings": {}, "message": "expected weights that say what they were trained with"}
    odd = {"settings": [torch.zeros(1)], "message": "expected weights that say"}
    published = model.read_bytes()
    for case in (other, unknown, odd):
        changed = OrderedDict((name, value + 1) for name, value in state.items())
        changed.settings = case["settings"]
        torch.save(changed, file)
        refused(upload(), "w.pt", case["message"])
        assert model.read_bytes() == published
    changed.settings = other["settings"]
    torch.save(changed, model)  # beside the server's back
    response = call(server, "POST", "/infer/semsim?image=patient005", data={"params": "{}"})
    refused(response, "model.pt", other["message"], status=422)
    changed.settings = {"spatial_size": 64}
    torch.save(changed, file)
    assert upload().status_code == 200 and model.read_bytes() == file.read_bytes()
    torch.save(half, model)
    task = server.trained(**TRAIN)
    model.write_bytes(before)
    assert task["status"] == "ERROR" and "of another network" in " ".join(task["details"])


def test_segments_are_numbered_by_name(server, tmp_path):
    """In whatever order an annotator has drawn them; what is no class is refused and nothing is written."""
    source = nib.load(truth(server, "patient001"))
    label = np.asarray(source.dataobj)
    turned = tmp_path / "turned.nii.gz"
    nib.save(nib.Nifti1Image(np.choose(label, [0, 3, 1, 2]).astype(np.uint8), source.affine), turned)
    order = [
        {"name": "Myocardium", "idx": 1},
        {"name": "left ventricle", "idx": 2},
        {"name": "right ventricle", "idx": 3},
    ]
    saved = server.studies / "labels" / "final" / "patient001.nii.gz"
    odd = [*order[:2], {"name": "cyst", "idx": 3}]
    refused(submit(server, "patient001", turned, label_info=odd), "cyst", "myocardium")
    refused(submit(server, "patient001", turned, label_info=order[:2]), "label_info")
    refused(submit(server, "patient001", turned, label_info="x"), "label_info")
    assert not saved.exists()
    server.client.save_label("patient001", turned, params={"label_info": order})
    assert np.array_equal(np.asarray(nib.load(saved).dataobj), label)
    named = server.books()["patient001"]["labels"]["final"]["info"]["label_info"]
    assert [entry["name"] for entry in named] == CLASSES[1:] and [entry["idx"] for entry in named] == [1, 2, 3]


def test_bad_labels_are_told_at_submit(server, tmp_path):
    source = nib.load(truth(server, "patient002"))
    label, file = np.asarray(source.dataobj), tmp_path / "l.nii.gz"
    away = source.affine.copy()
    away[:3, 3] += 5000
    for array, affine, word in (
        (label[:-2], source.affine, "shape"), (label, away, "elsewhere"), (label * 0.5, source.affine, "label values"),
        (label + np.uint8(1), source.affine, "label values"), (label * 0, source.affine, "empty"),
    ):  # fmt: skip
        nib.save(nib.Nifti1Image(array, affine), file)
        refused(submit(server, "patient002", file), word)
    file.write_bytes(b"nothing")
    refused(submit(server, "patient002", file), "could not read")
    assert "final" not in server.books()["patient002"]["labels"]
    nib.save(nib.Nifti1Image(label * 0, source.affine), file)
    assert submit(server, "patient002", file, empty=True).status_code == 200, "where the annotator says so"


def test_a_full_disk_is_told(server):
    """In one line, and what was there stays."""
    label = server.studies / "labels" / "final" / "patient001.nii.gz"
    before, limits = label.read_bytes(), resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        refused(submit(server, "patient001", truth(server, "patient001")), "free some space", status=507)
        with label.open("rb") as stream:
            response = call(server, "PUT", "/datastore/?image=new", files={"file": ("new.nii.gz", stream)})
        refused(response, "free some space", status=507)
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    assert label.read_bytes() == before and not (server.studies / "new.nii.gz").exists()
    assert submit(server, "patient001", truth(server, "patient001")).status_code == 200


def test_one_bad_label_stops_no_training(server):
    """In a folder whose name has a ``#``; the bad one is named."""
    bad = server.studies / "labels" / "final" / "patient003.nii.gz"
    source = nib.load(truth(server, "patient003"))
    nib.save(nib.Nifti1Image(np.asarray(source.dataobj) + np.uint8(7), source.affine), bad)
    deadline = time.monotonic() + 30
    while "final" not in server.books()["patient003"]["labels"] and time.monotonic() < deadline:
        time.sleep(0.3)
    task = server.trained(**TRAIN)
    assert task["status"] == "DONE", "\n".join(task["details"])[-1500:]
    assert any("Left out" in line and "patient003" in line for line in task["details"])
    newest = max((server.bundle / "output").glob("label_*"), key=lambda path: path.stat().st_mtime_ns)
    assert list(newest.glob("tensorboard/events*")), "what is no path stays an expression"
    cases = json.loads((server.bundle / "models" / "training.json").read_text())["labeled_cases"]
    assert "patient003" not in cases and "patient001" in cases
    assert call(server, "DELETE", "/datastore/label?id=patient003&tag=final").status_code == 200
    assert list((server.studies / "labels_before" / "final").glob("patient003_*.nii.gz")), "nothing is lost"


def test_batch_inference_without_a_gpu(server):
    """One image that cannot be predicted stops none; labels of annotators stay."""
    (server.studies / "broken.nii.gz").write_bytes(b"nothing")
    deadline = time.monotonic() + 30
    while "broken" not in server.books() and time.monotonic() < deadline:
        time.sleep(0.3)
    kept = (server.studies / "labels" / "final" / "patient001.nii.gz").read_bytes()
    response = call(server, "POST", "/infer/semsim?image=broken", data={"params": "{}"})
    refused(response, "broken.nii.gz", "could not read", status=422)
    for params in ({}, {"label_tag": "final", "device": "cuda"}):
        assert call(server, "POST", "/batch/infer/semsim", json=params).status_code == 200
        task = server.wait("batch/infer")
        assert task["status"] == "DONE", task["details"]
    drafts = {p.name for p in (server.studies / "labels" / "original").iterdir()}
    assert {"patient000.nii.gz", "patient004.nii.gz"} <= drafts
    assert (server.studies / "labels" / "final" / "patient001.nii.gz").read_bytes() == kept
    (server.studies / "broken.nii.gz").unlink()


def test_no_label_is_lost(server, tmp_path):
    """Corrections while the server scores and predicts; it goes on answering, and the newest file counts ever after."""
    names = sorted(name for name in server.books() if name.startswith("patient"))
    call(server, "POST", "/scoring/semsim", json={})
    slowest = 0.0

    def ask(_: int) -> float:
        start = time.monotonic()
        assert call(server, "GET", "/info/").status_code == 200
        return time.monotonic() - start

    def predict(name: str) -> int:
        return call(server, "POST", f"/infer/semsim?image={name}&output=image", data={"params": "{}"}).status_code

    def correct(name: str) -> int:
        file = tmp_path / f"{name}.nii"
        nib.save(nib.load(truth(server, name)), file)
        return submit(server, name, file, corrected=name).status_code

    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        predictions = [pool.submit(predict, name) for name in names]
        corrections = [pool.submit(correct, name) for name in names * 3]
        for _ in range(5):
            slowest = max(slowest, ask(0))
        assert {f.result() for f in predictions} == {200} and {f.result() for f in corrections} == {200}
    took = time.monotonic() - begun
    server.wait("scoring")
    call(server, "GET", "/datastore/?output=all")
    books = server.books()
    for name in names:
        entry = books[name]["labels"]["final"]
        assert entry["ext"] == ".nii" and entry["info"]["corrected"] == name
    pairs = call(server, "GET", "/datastore/?output=train").json()
    assert {Path(pair["label"]).suffix for pair in pairs} == {".nii"} and len(pairs) == len(names)
    final = sorted(p.name for p in (server.studies / "labels" / "final").iterdir())
    assert final == [f"{name}.nii" for name in names], "one file a label, also for who makes the books anew"
    assert slowest < max(20, took / 2), "none waits for the work of others"


def test_a_shared_secret(tmp_path):
    """By option; MONAI Label's client signs in with it as the password, as Slicer's dialogue does."""
    app, studies = assemble(tmp_path / "app"), make_studies(tmp_path / "studies", images=1, labels=0)
    (tmp_path / "token").write_text("a secret of more than sixteen characters\n")
    conf = {"token_file": str(tmp_path / "token"), "origins": "https://viewer.example.org", "skip_scoring": "true"}
    with running(app, studies, conf=conf) as server:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Bearer "}):
            for method, path in (("GET", "/info/"), ("POST", "/train/semsim"), ("GET", "/logs/"), ("GET", "/")):
                assert call(server, method, path, headers=headers, json={}).status_code == 401, path
        assert server.client.auth_enabled()
        with pytest.raises(Exception, match="401"):
            server.client.auth_token("ann", "wrong")
        server.client.update_auth(server.client.auth_token("ann", "a secret of more than sixteen characters"))
        assert server.client.info()["name"] == "SemSim" and server.client.auth_valid_token()
        there = {"Origin": "https://viewer.example.org"}
        assert call(server, "GET", "/info/", headers=there).status_code == 401
        assert "a secret" not in (app / "logs" / "app.log").read_text()
