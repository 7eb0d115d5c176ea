"""Before there is anything: an app without weights and without labels; and a server that asks who is there."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
import nibabel as nib
import numpy as np
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from label_server import assemble, make_studies, running
from monailabel.client.client import MONAILabelClientException

#: the phantom's classes, in the annotator's own words
CLASSES = ["background", "Right", "Wall", "Left"]


def test_cold_start(tmp_path):
    """Own classes, so no weights, and no label: what it says, what it offers, and how the first label changes it."""
    app = assemble(tmp_path / "app", class_names=CLASSES, spatial_size=32)
    studies = make_studies(tmp_path / "studies", images=3, labels=0)
    with running(app, studies) as server:
        info = server.client.info()
        assert info["labels"] == ["right", "wall", "left"] and info["datastore"]["completed"] == 0
        assert info["trainers"]["semsim"]["config"]["spatial_size"][0] == "32"
        with pytest.raises(MONAILabelClientException, match=r"no weights yet.*Annotate a first image"):
            server.client.infer("semsim", "patient000", {})
        for strategy in info["strategies"]:
            assert server.client.next_sample(strategy, {})["id"].startswith("patient00"), strategy
        task = server.trained(max_epochs=1)
        assert task["status"] == "ERROR" and "No image has a label yet" in " ".join(task["details"])

        first = server.client.next_sample("entropy", {})["id"]
        server.client.save_label(first, tmp_path / "truth" / f"{first}.nii.gz", tag="final")
        task = server.trained(max_epochs=1, steps_per_epoch=3, multi_gpu=False)
        assert task["status"] == "DONE", task["details"]
        settings = json.loads((server.bundle / "models" / "training.json").read_text())
        assert settings["labeled_cases"] == [first] and settings["unlabeled_images"] == 2
        assert settings["class_names"] == CLASSES and settings["spatial_size"] == 32
        file, params = server.client.infer("semsim", "patient000", {})
        assert params["label_names"] == {"right": 1, "wall": 2, "left": 3}
        assert nib.load(file).shape == nib.load(studies / "patient000.nii.gz").shape

        # a file that nobody can read is named, and the others go on
        (studies / "broken.nii.gz").write_bytes(b"nothing")
        bad = np.full((20, 20, 4), np.nan, np.float32)
        nib.save(nib.Nifti1Image(bad, np.eye(4)), studies / "nan.nii.gz")
        deadline = time.monotonic() + 30
        while server.client.info()["datastore"]["total"] < 5 and time.monotonic() < deadline:
            time.sleep(0.5)
        with pytest.raises(MONAILabelClientException, match=r"422.*nan\.nii\.gz.*NaN"):
            server.client.infer("semsim", "nan", {})
        task = server.trained(max_epochs=1, steps_per_epoch=2, multi_gpu=False)
        assert task["status"] == "ERROR" and "broken.nii.gz" in " ".join(task["details"])


@pytest.fixture
def realm():
    """A realm as an identity provider serves it, and how it signs for a user with given roles."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    body = json.dumps({"public_key": base64.b64encode(public).decode()}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def token(*roles: str, signed_with=key) -> str:
        claims = {"preferred_username": "ann", "realm_access": {"roles": list(roles)}, "exp": time.time() + 600}
        return jwt.encode(claims, signed_with, algorithm="RS256")

    yield f"http://127.0.0.1:{server.server_port}", token
    server.shutdown()


def test_authentication(tmp_path, realm):
    """Switched on, nothing is given out or done without a valid token of the right role."""
    address, token = realm
    app, studies = assemble(tmp_path / "app"), make_studies(tmp_path / "studies", images=2, labels=1)
    settings = {"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": address}
    with running(app, studies, **settings) as server:
        asked = [
            ("GET", "/info/"), ("POST", "/infer/semsim?image=patient000"), ("POST", "/train/semsim"),
            ("POST", "/activelearning/entropy"), ("GET", "/datastore/?output=all"),
            ("GET", "/datastore/image?image=patient000"), ("PUT", "/datastore/label?image=patient000"),
            ("POST", "/scoring/semsim"), ("GET", "/logs/"),
        ]  # fmt: skip
        stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        for headers in ({}, {"Authorization": f"Bearer {token('monailabel-admin', signed_with=stranger)}"}):
            for method, path in asked:
                response = requests.request(method, server.url + path, headers=headers, timeout=30)
                assert response.status_code == 401, f"{method} {path} {response.status_code}"
        user = {"Authorization": f"Bearer {token('monailabel-user')}"}
        assert requests.get(f"{server.url}/info/", headers=user, timeout=30).json()["name"] == "SemSim"
        assert requests.post(f"{server.url}/train/semsim", headers=user, json={}, timeout=30).status_code == 403
        server.client.update_auth({"token_type": "Bearer", "access_token": token("monailabel-user")})
        file, _ = server.client.infer("semsim", "patient001", {})
        assert nib.load(file).shape == nib.load(studies / "patient001.nii.gz").shape
