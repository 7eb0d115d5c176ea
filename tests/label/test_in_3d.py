"""CT in 3D over HTTP: nothing, some labels, a training, a prediction, scores, and a training that goes on."""

from __future__ import annotations

import json
import time

import nibabel as nib
import numpy as np
import pytest
from label_server import assemble, running, stored_otherwise
from monailabel.client.client import MONAILabelClientException

pytestmark = pytest.mark.timeout(900)  # a minute on a machine of its own

LIVER, STONE = 1, 2
GRID = np.diag([1.5, 1.5, 1.5, 1.0])
#: enough to learn what is brighter
QUICK = {"max_epochs": 2, "steps_per_epoch": 120, "val_split": 0, "multi_gpu": False}


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A large bright ball with a small brighter one in it, in HU, and their label."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*map(np.arange, (30, 26, 22)), indexing="ij"), axis=-1)
    middle = np.array([14, 12, 11]) + rng.uniform(-1, 1, 3)
    label = np.zeros(place.shape[:3], np.uint8)
    label[np.linalg.norm(place - middle, axis=-1) < 9] = LIVER
    label[np.linalg.norm(place - middle - 2, axis=-1) < 4] = STONE
    image = np.choose(label, [-80, 60, 250]) + rng.normal(0, 10, label.shape)
    return image.astype(np.int16), label


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_3d")
    app = assemble(folder / "app", class_names=["liver", "stone"], spatial_size=16, volumes=True)
    saved = app / "model" / "semsim" / "models" / "training.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "features": [8, 8, 16, 16, 32, 8]}))
    studies = folder / "studies"
    for kind in (studies, folder / "truth"):
        kind.mkdir()
    for number in range(4):
        for kind, array in zip((studies, folder / "truth"), scan(number)):
            nib.save(nib.Nifti1Image(array, GRID), kind / f"ct{number}.nii.gz")
    stored_otherwise(studies / "ct3.nii.gz", studies / "turned3.nii.gz")
    with running(app, studies) as server:
        server.folder = folder
        yield server


def settings(server) -> dict:
    return json.loads((server.bundle / "models" / "training.json").read_text())


def predicted(server, image: str) -> np.ndarray:
    """The classes of a prediction, which lies on the grid of its image."""
    file, params = server.client.infer("semsim", image, {})
    assert params["label_names"] == {"liver": LIVER, "stone": STONE}
    found, source = nib.load(file), nib.load(server.studies / f"{image}.nii.gz")
    assert found.shape == source.shape
    np.testing.assert_allclose(found.affine, source.affine, atol=1e-4)
    return np.asarray(found.dataobj)


def dice(server, image: str, found: np.ndarray) -> list[float]:
    """Of both organs against the truth."""
    truth = np.asarray(nib.load(server.folder / "truth" / f"{image}.nii.gz").dataobj)
    return [2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum()) for c in (LIVER, STONE)]


class TestVolumes:
    def test_an_app_without_weights_offers_patches(self, server):
        info = server.client.info()
        assert info["labels"] == ["liver", "stone"]
        assert info["trainers"]["semsim"]["config"]["spatial_size"][:2] == ["16", "32x32x32"]
        with pytest.raises(MONAILabelClientException, match=r"no weights yet.*Annotate a first image"):
            server.client.infer("semsim", "ct0", {})

    def test_labels_train_a_network_for_volumes(self, server):
        for number in range(2):
            server.client.save_label(f"ct{number}", server.folder / "truth" / f"ct{number}.nii.gz", tag="final")
        task = server.trained(**QUICK)
        assert task["status"] == "DONE", task["details"]
        saved = settings(server)
        assert saved["spatial_dims"] == 3 and saved["spacing"] == [1.5, 1.5, 1.5] and saved["spatial_size"] == 16
        assert len(saved["labeled_cases"]) == 2 and saved["unlabeled_images"] == 3

    def test_prediction_finds_the_organs_however_they_are_stored(self, server):
        server.before = predicted(server, "ct3")
        assert min(dice(server, "ct3", server.before)) > 0.5
        other = predicted(server, "turned3")[:, ::-1].transpose(1, 2, 0)
        assert (server.before == other).mean() > 0.98

    def test_next_sample_by_scores_of_volumes(self, server):
        server.wait("scoring")  # which the prediction began
        server.post("/scoring/semsim?run_sync=true")
        objects = server.client.datastore()["objects"]
        scores = {name: objects[name]["image"]["info"] for name in ("ct2", "ct3", "turned3")}
        for key in ("semsim_entropy", "semsim_disagreement"):
            assert all(0 < info[key] < np.log(3) for info in scores.values()), scores
            assert scores["ct3"][key] == pytest.approx(scores["turned3"][key], rel=0.01)
        offered = server.client.next_sample("disagreement", {})["id"]  # two tie: they are one scan
        assert scores[offered][key] == max(info[key] for info in scores.values())

    def test_training_goes_on_from_the_weights_with_another_patch(self, server):
        task = server.trained(**{**QUICK, "max_epochs": 1, "steps_per_epoch": 40}, spatial_size="32x32x32")
        assert task["status"] == "DONE", task["details"]
        assert settings(server)["spatial_size"] == [32, 32, 32] and settings(server)["spacing"] == [1.5, 1.5, 1.5]
        assert server.client.info()["trainers"]["semsim"]["config"]["spatial_size"][0] == "32x32x32"
        assert settings(server)["initial"] == str(server.bundle / "models" / "model.pt")
        after = predicted(server, "ct3")
        # a patch larger than the volume shows it whole, and its filling: batch norm has to learn that anew
        assert (after != server.before).any() and min(dice(server, "ct3", after)) > 0.3

    def test_a_picture_is_named(self, server):
        """To who asks for its prediction, and to who trains."""
        flat = server.studies / "flat.nii.gz"
        nib.save(nib.Nifti1Image(scan(0)[0][..., :1], GRID), flat)
        deadline = time.monotonic() + 30
        while server.client.info()["datastore"]["total"] < 6 and time.monotonic() < deadline:
            time.sleep(0.5)
        with pytest.raises(MONAILabelClientException, match=r"422.*flat\.nii\.gz: expected a volume of several slices"):
            server.client.infer("semsim", "flat", {})
        task = server.trained(**QUICK)
        assert task["status"] == "ERROR"
        assert "flat.nii.gz: expected a volume of several slices" in " ".join(task["details"])
