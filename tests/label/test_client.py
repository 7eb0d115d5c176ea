"""MONAI Label's own client and the requests of its Slicer module through a whole round, segments in another order.

What Slicer sends was read from ``plugins/slicer/MONAILabel`` of MONAI Label (``onSaveLabel``, ``getParamsFromConfig``,
``invalidateConfigTable``, ``onUploadImage``).
"""

from __future__ import annotations

import time
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from label_server import assemble, running

pytestmark = pytest.mark.timeout(900)  # a minute on a machine of its own

BRIGHT, DARK = 1, 2
GRID = np.diag([1.5, 1.5, 8.0, 1.0])


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright and a dark disk, and their label."""
    rng = np.random.default_rng(seed)
    x, y, _ = np.meshgrid(*map(np.arange, (64, 64, 4)), indexing="ij")
    image, label = rng.normal(100, 10, x.shape), np.zeros(x.shape, np.uint8)
    for value, level in ((BRIGHT, 250), (DARK, 0)):
        disk = (x - 18 * value - rng.integers(0, 6)) ** 2 + (y - 30 - rng.integers(0, 6)) ** 2 < 64
        image[disk], label[disk] = rng.normal(level, 10, int(disk.sum())), value
    return image.astype(np.float32), label


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    app = assemble(folder / "app", class_names=["bright", "dark"], spatial_size=32, fusion="conv")
    (folder / "studies").mkdir()
    for number in range(4):
        nib.save(nib.Nifti1Image(scan(number)[0], GRID), folder / "studies" / f"scan{number}.nii.gz")
    with running(app, folder / "studies") as server:
        server.folder = folder
        yield server


def submit(server, name: str, extra: list[dict] | None = None) -> None:
    """As Slicer does: dark before bright, numbered in that order; ``idx`` counts segments that it leaves out, too."""
    label = np.choose(scan(int(name[-1]))[1], [0, 2, 1]).astype(np.uint8)
    file = server.folder / "tmpab12.nii.gz"
    nib.save(nib.Nifti1Image(label, GRID), file)
    info = extra or [{"name": "dark", "idx": 1}, {"name": "bright", "idx": 2}]
    server.client.save_label(name, file, params={"label_info": info, "model": "semsim"})


def panel(server, section: str, name: str) -> dict:
    """What Slicer sends of a panel that nobody touched: of a list the first, which has to be text to stand there."""
    options = server.client.info()[section][name].get("config", {})
    for key, value in options.items():
        choices = value if isinstance(value, list) else []
        assert all(isinstance(choice, str) for choice in choices), (
            f"{key}: Slicer finds no number that it shows as text"
        )
    return {key: value[0] if isinstance(value, list) else value for key, value in options.items()}


def predicted(server, name: str, **options) -> np.ndarray:
    """A prediction as Slicer asks for it, on the grid of the scan."""
    params = {**panel(server, "models", "semsim"), "result_extension": ".nrrd", "result_dtype": "uint8"}
    file, answer = server.client.infer("semsim", name, params, **options)
    assert Path(file).suffix == ".nrrd" and answer["label_names"] == {"bright": BRIGHT, "dark": DARK}
    return itk.array_from_image(itk.imread(file)).transpose(2, 1, 0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_a_round_with_segments_in_another_order(server):
    """Next sample, label, training, prediction: bright is called bright, though every label had it second."""
    client = server.client
    for strategy in client.info()["strategies"]:
        name = client.next_sample(strategy, panel(server, "strategies", strategy))["id"]
        assert name.startswith("scan")
    submit(server, "scan0")
    submit(server, "scan1", [{"name": "dark", "idx": 2}, {"name": "bright", "idx": 3}])  # "background" stood before
    for name in ("scan0", "scan1"):
        stored = np.asarray(nib.load(client.download_label(name, "final")).dataobj)
        assert np.array_equal(stored, scan(int(name[-1]))[1])
    books = client.datastore()["objects"]["scan0"]["labels"]["final"]["info"]
    assert books["model"] == "semsim" and [entry["idx"] for entry in books["label_info"]] == [BRIGHT, DARK]

    asked = {k: v for k, v in panel(server, "trainers", "semsim").items() if k != "minutes"}
    client.train_start("semsim", {**asked, "max_epochs": 4, "steps_per_epoch": 75, "val_split": 0.0})
    task = server.wait(seconds=600)
    assert task["status"] == "DONE", task["details"]
    label, found = scan(3)[1], predicted(server, "scan3")
    for value, other in ((BRIGHT, DARK), (DARK, BRIGHT)):
        assert dice(found == value, label == value) > 0.7 and dice(found == value, label == other) < 0.1, value


def test_an_image_of_the_client(server):
    """Uploaded into the studies, and as a session that leaves nothing there."""
    image, label = scan(9)
    file = server.folder / "mine.nii.gz"
    nib.save(nib.Nifti1Image(image, GRID), file)
    session = server.client.create_session(str(file))["session_id"]
    assert server.client.get_session(session)["image"].endswith("mine.nii.gz")
    found = predicted(server, "mine", session_id=session)
    assert dice(found == BRIGHT, label == BRIGHT) > 0.6
    server.client.remove_session(session)
    assert "mine" not in server.client.datastore()["objects"]
    assert server.client.upload_image(str(file), "mine")["image"] == "mine"
    assert np.array_equal(predicted(server, "mine"), found)


def test_a_training_that_is_stopped(server):
    submit(server, "scan0")
    published = {file: file.read_bytes() for file in (server.bundle / "models").iterdir()}
    options = panel(server, "trainers", "semsim")
    assert options["minutes"] and options["spatial_size"] == "32"
    server.client.train_start("semsim", {**options, "spatial_size": "64"})
    begun, end = set(server.bundle.glob("output/label_*")), time.monotonic() + 120
    while set(server.bundle.glob("output/label_*")) == begun and time.monotonic() < end:
        time.sleep(0.1)  # MONAI Label has nothing to stop before the training's process is there
    server.client.train_stop()
    server.wait()
    assert not server.client.train_status(check_if_running=True)
    assert {file: file.read_bytes() for file in (server.bundle / "models").iterdir()} == published
