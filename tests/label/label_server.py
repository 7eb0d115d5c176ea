"""A real MONAI Label server for tests, and its client. Both need MONAI Label's environment: ``make test-label``."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "label_app"))

import demo  # noqa: E402
import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import requests  # noqa: E402
from assemble import assemble  # noqa: E402, F401
from demo import make_studies  # noqa: E402, F401
from monailabel.client import MONAILabelClient  # noqa: E402


def free_port() -> int:
    """A port of the loopback address that nobody listens at, and that no outgoing connection gets meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


class Server:
    """A running server and a client of it."""

    def __init__(
        self, app: Path, studies: Path, conf: dict[str, str] | None = None, patience: float = 300, **environment: str
    ) -> None:
        stock = not (app / "lib" / "active.py").exists()
        conf = conf or {"models": "semsim", "zoo_source": "local", "sam2": "false"} if stock else conf
        self.app, self.studies, self.port = app, studies, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {"OMP_NUM_THREADS": "1", **environment}
        self.process = demo.server(app, studies, self.port, conf, **environment)
        demo.wait_until_up(self.process, self.url, patience)
        # a folder of its own: the client saves results under the names of the server's temporary files
        self.client = MONAILabelClient(self.url, tmpdir=tempfile.mkdtemp(dir=studies.parent))
        self.bundle = app / "model" / "semsim"

    def post(self, path: str, **params):
        """POST to an endpoint that the client has no method for."""
        import requests

        response = requests.post(f"{self.url}{path}", json=params, timeout=120)
        assert response.status_code == 200, response.text
        return response.json()

    def trained(self, **params) -> dict:
        """Train, wait and return the task."""
        self.client.train_start("semsim", params)
        return self.wait()

    def wait(self, kind: str = "train", seconds: float = 240) -> dict:
        """Wait for a task of the server, ``train`` or ``scoring``, to end."""
        import requests

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            task = requests.get(f"{self.url}/{kind}/", timeout=120).json()
            if task["status"] not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(0.5)
        raise AssertionError(f"{kind} still runs after {seconds} s: {task}")

    def stop(self) -> int:
        """End this very process, and what it has running; returns its exit code."""
        return demo.stop(self.process)


@contextmanager
def running(app: Path, studies: Path, conf: dict[str, str] | None = None, **environment: str) -> Iterator[Server]:
    """A server for a ``with`` block."""
    server = Server(app, studies, conf, **environment)
    try:
        yield server
    finally:
        server.stop()


def call(server, method: str, path: str, **options) -> requests.Response:
    return requests.request(method, server.url + path, timeout=120, **options)


def submit(server, image: str, file: Path, name: str = "", **params) -> requests.Response:
    with file.open("rb") as stream:
        files = {"label": (name or file.name, stream)}
        data = {"params": json.dumps(params)}
        return call(server, "PUT", f"/datastore/label?image={image}&tag=final", files=files, data=data)


def truth(server, image: str) -> Path:
    return server.folder / "truth" / f"{image}.nii.gz"


def stored_otherwise(source: Path, target: Path) -> None:
    """The same scan, stored with its slices along the first axis, one axis mirrored and another affine."""
    image = nib.load(source)
    array = np.asarray(image.dataobj).transpose(2, 0, 1)[:, ::-1]
    matrix = np.zeros((4, 4))  # voxels of the new array -> voxels of the old one
    matrix[2, 0], matrix[0, 1], matrix[1, 2], matrix[3, 3] = 1, -1, 1, 1
    matrix[0, 3] = image.shape[0] - 1
    nib.save(nib.Nifti1Image(array.copy(), image.affine @ matrix), target)
