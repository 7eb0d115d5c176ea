"""An annotator's afternoon over HTTP, with MONAI Label's own app and with ours; the tests of a class go in order."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import torch
from conftest import ROOT
from label_server import assemble, make_studies, running, stored_otherwise
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

STOCK = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
#: settings of the weights in the bundle
SHIPPED = json.loads((ROOT / "bundle" / "models" / "training.json").read_text())
#: an epoch of the unlabelled phantoms is 5 steps
QUICK = {"max_epochs": 2, "val_split": 0.2, "multi_gpu": False, "steps_per_epoch": 0}


class Opened(FileSystemEventHandler):
    """Names of the files of a folder that anybody opens meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, set()

    def on_opened(self, event) -> None:
        self.names.add(Path(event.src_path).name)

    def __enter__(self) -> set[str]:
        self.observer = Observer()
        self.observer.schedule(self, str(self.folder))
        self.observer.start()
        return self.names

    def __exit__(self, *_) -> None:
        self.observer.stop()
        self.observer.join()


def told(folder: Path, opened: set[str], seconds: float = 60) -> set[str]:
    """All that was opened until now, of which one is told a little later, in order."""
    (folder / "now.txt").touch()
    (folder / "now.txt").read_bytes()
    end = time.monotonic() + seconds
    while "now.txt" not in opened and time.monotonic() < end:
        time.sleep(0.05)
    return set(opened)


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    return torch.load(bundle / "models" / "model.pt", weights_only=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def newest_log(bundle: Path) -> list[dict[str, str]]:
    import csv

    folder = max((bundle / "output").glob("label_*"), key=lambda p: p.stat().st_mtime_ns)
    return list(csv.DictReader((folder / "training_log.csv").open()))


@pytest.fixture(scope="class", params=["stock", "own"])
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    app = assemble(folder / "app", app=STOCK if request.param == "stock" else None)
    studies = make_studies(folder / "studies")
    stored_otherwise(studies / "patient006.nii.gz", studies / "turned006.nii.gz")
    with running(app, studies) as server:
        server.stock = request.param == "stock"
        yield server
        assert server.stop() in (0, -2, 130) and server.process.poll() is not None, "Ctrl-C to its process ends it"
        with pytest.raises(requests.ConnectionError):
            requests.get(server.url, timeout=5)
    assert digest(ROOT / "bundle" / "models" / "model.pt") == digest(server.original), "the repository's own is not"


class TestAfternoon:
    def test_it_listens_at_the_loopback_address_alone(self, server):
        listening = [c for c in psutil.Process(server.process.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", server.port)]

    def test_info(self, server):
        server.original = server.bundle.parents[2] / "original.pt"
        server.original.write_bytes((server.bundle / "models" / "model.pt").read_bytes())
        info = server.client.info()
        expected = {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}
        assert info["models"]["semsim"]["labels"] == expected
        assert info["labels"] == list(expected) and info["datastore"]["total"] == 9
        assert info["datastore"]["completed"] == 3 and "semsim" in info["trainers"]
        strategies = set(info["strategies"])
        assert strategies == ({"random", "first"} if server.stock else {"random", "entropy", "disagreement"})
        if not server.stock:
            panel = info["trainers"]["semsim"]["config"]
            assert panel["use_unlabeled"] is True and panel["minutes"] == (2 if torch.cuda.is_available() else 5)
            assert not {"max_epochs", "steps_per_epoch"} & set(panel), "one way to say how long"
            assert panel["spatial_size"][0] == str(SHIPPED["spatial_size"])

    def predict(self, server, name):
        file, params = server.client.infer("semsim", name, {})
        assert params["label_names"]["myocardium"] == 2
        label, image = nib.load(file), nib.load(server.studies / f"{name}.nii.gz")
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
        array = np.asarray(label.dataobj)
        assert set(np.unique(array)) == {0, 1, 2, 3}
        return array

    def test_infer_on_the_grid_of_the_file(self, server):
        """Shape, affine and values; and the same heart wherever the file puts its axes."""
        server.before = self.predict(server, "patient006")
        other = self.predict(server, "turned006")[:, ::-1].transpose(1, 2, 0)
        both = (server.before > 0) | (other > 0)
        assert (server.before == other)[both].mean() > 0.95

    def test_next_sample_by_every_strategy(self, server):
        unlabelled = {f"patient{n:03d}" for n in range(3, 8)} | {"turned006"}
        for strategy in server.client.info()["strategies"]:
            for _ in range(12 if strategy == "random" else 2):  # all are served within a second
                if server.stock and strategy == "random" and _ > 4:
                    break  # its own strategy fails then
                assert server.client.next_sample(strategy, {})["id"] in unlabelled, strategy

    def test_score(self, server):
        if server.stock:
            pytest.skip("MONAI Label's app for bundles has no scores without dropout")
        server.wait("scoring")  # which a start begins by itself
        result = server.post("/scoring/semsim?run_sync=true")
        assert result["executed"] == result["failed"] == 0, "nothing was left to do"
        objects = server.client.datastore()["objects"]
        scores = {k: v["image"]["info"] for k, v in objects.items() if "final" not in v["labels"]}
        assert len(scores) == 6
        for key in ("semsim_entropy", "semsim_disagreement"):
            values = [info[key] for info in scores.values()]
            assert all(0 < v < np.log(4) for v in values) and len(set(values)) >= 5, values
            assert scores["patient006"][key] == pytest.approx(scores["turned006"][key], rel=0.01)
        fresh = [i for i in scores if "entropy" not in scores[i].get("strategy", {})]
        offered = server.client.next_sample("entropy", {})["id"]
        assert offered == max(fresh, key=lambda i: scores[i]["semsim_entropy"])

    def test_save_a_label(self, server, tmp_path):
        source = server.studies / "patient003.nii.gz"
        label = nib.load(server.studies.parent / "truth" / "patient003.nii.gz")
        nib.save(label, tmp_path / "label.nii.gz")
        server.client.save_label("patient003", tmp_path / "label.nii.gz", tag="final")
        assert server.client.info()["datastore"]["completed"] == 4
        saved = nib.load(server.studies / "labels" / "final" / "patient003.nii.gz")
        assert np.array_equal(saved.dataobj, label.dataobj) and saved.shape == nib.load(source).shape

    def test_train_on_all_images(self, server):
        """Two epochs: every file without a label is opened, its loss counts, the new weights are published."""
        old = weights(server.bundle)
        with Opened(server.studies) as opened:
            server.client.train_start("semsim", QUICK)
            end = time.monotonic() + 120
            while not list(server.bundle.glob("output/label_*/training_log.csv")) and time.monotonic() < end:
                time.sleep(0.05)
            by_training = told(server.studies, opened)  # in the first epoch: scores are computed after the last one
        task = server.wait()
        assert task["status"] == "DONE", task["details"]
        assert {f"patient{n:03d}.nii.gz" for n in range(8)} | {"turned006.nii.gz"} <= by_training
        assert not same(old, weights(server.bundle))
        kept = list((server.bundle / "models_before").glob("*/model.pt"))
        assert len(kept) == 1 and digest(kept[0]) == digest(server.original)
        assert {p.name for p in (server.bundle / "models").iterdir()} == {"model.pt", "training.json"}
        settings = json.loads((server.bundle / "models" / "training.json").read_text())
        assert settings["unlabeled_images"] == 5 and all(settings[k] == SHIPPED[k] for k in ("spatial_size", "fusion"))
        assert len(settings["labeled_cases"]) == 3, "one of four validates"
        log = newest_log(server.bundle)
        assert len(log) == 2 and float(log[-1]["mask_u"]) > 0 and float(log[-1]["loss_u"]) > 0
        assert not (server.bundle / "data").exists(), "no phantom is generated here"

    def test_new_weights_are_used(self, server):
        after = self.predict(server, "patient006")
        assert (after != server.before).any()

    def test_infer_while_training(self, server):
        """20 requests at once during a training: all answered, and alike; the training ends well."""
        server.client.train_start("semsim", {**QUICK, "max_epochs": 8})
        names = [f"patient{n:03d}" for n in range(4, 8)] * 5
        with ThreadPoolExecutor(20) as pool:
            results = list(pool.map(lambda name: (name, self.predict(server, name)), names))
        assert server.client.train_status()["status"] in ("SUBMITTED", "RUNNING"), "all the while"
        for name in set(names):
            found = [array for n, array in results if n == name]
            assert len(found) == 5 and all(np.array_equal(found[0], array) for array in found)
        assert server.wait()["status"] == "DONE"

    def test_train_from_scratch(self, server):
        """With MONAI Label's app by naming a file that is not there: its `pretrained` cannot be false."""
        scratch = {"model_filename": "none"} if server.stock else {"pretrained": False}
        states = []
        for extra in ({},) if server.stock else ({}, {"use_unlabeled": False}):
            task = server.trained(**{**QUICK, "max_epochs": 1, "steps_per_epoch": 4}, **scratch, **extra)
            assert task["status"] == "DONE", task["details"]
            states.append(weights(server.bundle))
        log = newest_log(server.bundle)
        assert float(log[0]["loss_s"]) > 0.7, "nothing was known at the start"
        if not server.stock:
            assert "loss_u" not in log[0] and not same(*states), "the same steps and labelled batches: the others count"
            assert json.loads((server.bundle / "models" / "training.json").read_text())["unlabeled_images"] == 0

    def test_train_by_the_clock(self, server):
        if server.stock:
            pytest.skip("MONAI Label's app for bundles has no minutes")
        beside = 100_000  # which no machine does in a minute
        task = server.trained(minutes=1, max_epochs=beside, pretrained=False, spatial_size=64, multi_gpu=False)
        assert task["status"] == "DONE", task["details"]
        settings = json.loads((server.bundle / "models" / "training.json").read_text())
        assert settings["minutes"] == 1, "and not the epochs beside them"
        log = newest_log(server.bundle)
        assert len(log) == settings["epochs"] != beside and float(log[-1]["learning_rate"]) == 0

    def test_another_resolution(self, server):
        if server.stock:
            pytest.skip("its panel has no resolution: that of the weights is kept")
        task = server.trained(**{**QUICK, "max_epochs": 1}, pretrained=False, spatial_size=96)
        assert task["status"] == "DONE", task["details"]
        assert json.loads((server.bundle / "models" / "training.json").read_text())["spatial_size"] == 96
        file, _ = server.client.infer("semsim", "patient006", {})
        assert nib.load(file).shape == nib.load(server.studies / "patient006.nii.gz").shape
        assert server.client.info()["trainers"]["semsim"]["config"]["spatial_size"][0] == "96"
