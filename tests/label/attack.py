"""Attack the running MONAI Label app for some minutes, and say what came of it: ``make attack MINUTES=120``.

A server with default settings and no authentication is sent the requests of ``hostile_requests.py``. Beside its images
lie files that nobody may read or change, and a folder that code would leave a file in. The exit code is 1 if code ran,
a file outside the studies was read or changed, a page of another site was served, a request ended in a 500, or the
server ended.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import itertools
import json
import random
import socket
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from hostile_requests import MODEL, Attacker, Hostile, volume
from label_server import Server, assemble
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

#: Stands in every file that nobody may read.
SECRET = "a7c1f0d2-nobody-reads-this"
#: Where the server may write: the studies, its log, its weights, uploads of sessions, temporary files.
WRITABLE = (
    "studies", "app/logs", "home/.cache", "home/.config", "tmp", "truth", "client",
    *(f"app/model/{MODEL}/{name}" for name in ("models", "models_before", "output", "scores")),
)  # fmt: skip
#: Endpoints that the schema does not name.
UNNAMED = [
    ("POST", "/reload", []), ("GET", "/ohif/{path}", []), ("GET", "/proxy/dicom/{path}", []), ("GET", "/docs", []),
    ("POST", "/proxy/dicom/wado/{path}", []), ("PUT", "/datastore/", ["image"]), ("DELETE", "/datastore/", ["id"]),
    ("PUT", "/datastore/updatelabelinfo", ["label", "tag"]), ("POST", "/infer/wsi/{model}", ["image"]),
    ("POST", "/scoring/", []), ("POST", "/train/", ["model", "run_sync"]), ("GET", "/static/{path}", []),
    ("POST", "/auth/token", []),
]  # fmt: skip
SECONDS = 300


class Canaries:
    """Files outside the studies, and who touches them."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of studies, app and everything else.
        """
        self.folder, self.outside, self.marks = folder, folder / "outside", folder / "marks"
        self.outside.mkdir(parents=True)
        self.marks.mkdir()
        text = (SECRET + "\n") * 64
        for ending in ("secret", "secret.txt", "secret.raw", "secret.json", "secret0.raw", "secret1.raw"):
            (self.outside / ending).write_text(text)
        (self.outside / "secret.yaml").write_text(f"code: $open('{self.marks}/macro','w')\nx: {SECRET}\n")
        image = nib.Nifti1Image(np.zeros((37, 41, 3), np.uint8), np.eye(4))
        image.header["descrip"] = SECRET.encode()
        for ending in ("secret.nii.gz", "secret.nii"):
            nib.save(image, self.outside / ending)
        self.opened: set[str] = set()

    def watch(self) -> None:
        """From now on, note who opens a file outside, and keep what is everywhere."""
        self.before, self.above = self.tree(), self.planted_above()
        handler, self.observer = FileSystemEventHandler(), Observer()
        handler.on_any_event = self._event
        self.observer.schedule(handler, str(self.outside), recursive=True)
        self.observer.start()

    def _event(self, event: FileSystemEvent) -> None:
        if not event.is_directory:
            self.opened.add(f"{event.event_type} {Path(str(event.src_path)).name}")

    def tree(self) -> dict[str, str]:
        """Digest of every file that the server may not write."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name.startswith(WRITABLE) or "__pycache__" in name or path.is_dir():
                continue
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        return found

    def planted_above(self) -> set[str]:
        """Files in the folders above that bear the names of those that requests try to plant."""
        folders = [*self.folder.parents, Path("/etc"), Path.home()]
        return {str(p) for f in folders for word in ("planted", "outside", "secret") for p in f.glob(f"*{word}*")}

    def broken(self) -> list[str]:
        """What was touched since :meth:`watch`, in words; ends the watch."""
        time.sleep(1)
        self.observer.stop()
        self.observer.join()
        after = self.tree()
        changed = {name for name in after.keys() | self.before.keys() if after.get(name) != self.before.get(name)}
        lines = [f"code ran: {path.name}" for path in self.marks.iterdir()]
        lines += [f"outside: {what}" for what in sorted(self.opened)]
        lines += [f"changed: {name}" for name in sorted(changed) if not name.startswith("marks")]
        lines += [f"planted: {name}" for name in sorted(self.planted_above() - self.above)]
        lines += [f"a link: {p}" for p in (self.folder / "studies").rglob("*") if p.is_symlink()]
        return lines


def tells(content: bytes) -> bool:
    """Whether an answer holds what nobody may read, packed or not."""
    parts = [content]
    try:
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                parts += [archive.read(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError):
        pass
    for part in list(parts):
        for start in itertools.islice(_find(part, b"\x1f\x8b\x08"), 3):
            try:
                parts.append(zlib.decompressobj(31).decompress(part[start:], 1 << 22))
            except zlib.error:
                continue
    return any(SECRET.encode() in part or b"root:x:0:0:" in part for part in parts)


def _find(text: bytes, word: bytes) -> Any:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + 1)


def send(port: int, request: Hostile, seconds: float = SECONDS) -> tuple[int, bytes]:
    """Status and content of the answer to a request, sent as it stands."""
    headers = {
        "Host": f"127.0.0.1:{port}",
        "Connection": "close",
        "Content-Length": str(len(request.body)),
        **request.headers,
    }
    head = (
        f"{request.method} {request.target} HTTP/1.1\r\n"
        + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        + "\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.sendall(head.encode("utf-8", "replace") + request.body)
        response = HTTPResponse(connection, method=request.method)
        response.begin()
        return response.status, response.read()


class Attack:
    """Sends requests from several threads and counts what comes back."""

    def __init__(self, server: Server, canaries: Canaries, *, minutes: float, seed: int, threads: int = 12) -> None:
        """
        Args:
            server: the victim.
            canaries: watched already.
            minutes: how long.
            seed: of the requests.
            threads: that send.
        """
        self.server, self.canaries, self.threads = server, canaries, threads
        self.start, self.end, self.seed = time.monotonic(), time.monotonic() + 60 * minutes, seed
        self.counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.findings: list[str] = []
        self.waits: list[float] = []
        self.lock = threading.Lock()
        self.weights = canaries.folder / "client" / "model.pt"
        schema = requests.get(f"{server.url}/openapi.json", timeout=60).json()["paths"]
        self.routes = UNNAMED + [
            (method.upper(), path, [p["name"] for p in what.get("parameters", []) if p["in"] == "query"])
            for path, methods in schema.items()
            for method, what in methods.items()
        ]

    def run(self) -> dict[str, Any]:
        """Attack until the time is over; returns the report."""
        senders = [threading.Thread(target=self._send_all, args=(n,), daemon=True) for n in range(self.threads)]
        helpers = [threading.Thread(target=job, daemon=True) for job in (self._ask, self._tidy)]
        for thread in (*senders, *helpers):
            thread.start()
        while self.goes_on():
            time.sleep(1)
        for thread in (*senders, *helpers):
            thread.join(SECONDS + 10)
        if self.server.process.poll() is not None:
            self.findings.append(f"the server ended with {self.server.process.returncode}")
        self.findings += self.canaries.broken()
        return self.report()

    def goes_on(self) -> bool:
        """Whether there is time left, and a server."""
        return time.monotonic() < self.end and self.server.process.poll() is None

    def _send_all(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        attacker = Attacker(rng, self.canaries.marks, self.canaries.outside, self.weights, self.routes)
        while self.goes_on():
            self._send(attacker.draw())

    def _send(self, request: Hostile) -> None:
        try:
            status, content = send(self.server.port, request)
        except (OSError, HTTPException) as error:
            status, content = type(error).__name__, b""
        finding = None
        if tells(content):
            finding = "told"
        elif request.status and status not in (*request.status, 400, 404, 405, 422):
            finding = "served"
        elif isinstance(status, int) and status >= 500:
            finding = "error"
        with self.lock:
            self.counts[request.kind][str(status)] += 1
            if finding:
                what = f"{request.method} {request.target[:300]} {request.headers} {request.body[:600]!r}"
                self.findings.append(f"{finding} {status}: {what} -> {content[:300]!r}")

    def _ask(self) -> None:
        """How long an annotator would wait."""
        while self.goes_on():
            start = time.monotonic()
            try:
                requests.get(f"{self.server.url}/info/", timeout=SECONDS)
                self.waits.append(time.monotonic() - start)
            except requests.RequestException as error:
                self.counts["info"][type(error).__name__] += 1
            time.sleep(2)

    def _tidy(self) -> None:
        """Room for more: end what runs, remove most of what was sent, put the weights back."""
        weights = self.weights.read_bytes()
        while self.goes_on():
            time.sleep(min(45, max(0.0, self.end - time.monotonic())))
            try:
                for task in ("train", "scoring", "batch/infer"):
                    requests.delete(f"{self.server.url}/{task}/", timeout=60)
                images = requests.get(f"{self.server.url}/datastore/?output=all", timeout=60).json()["objects"]
                for image in [i for i in images if not i.startswith("patient")][20:]:
                    requests.delete(f"{self.server.url}/datastore/image", params={"id": image}, timeout=60)
                if requests.get(f"{self.server.url}/model/info/{MODEL}", timeout=60).status_code == 404:
                    requests.put(f"{self.server.url}/model/{MODEL}", files={"file": ("model.pt", weights)}, timeout=60)
            except (requests.RequestException, ValueError, KeyError) as error:
                self.counts["tidying"][type(error).__name__] += 1

    def report(self) -> dict[str, Any]:
        """Minutes, requests by kind and answer, what an annotator waited for, and what was found."""
        total = sum(sum(kinds.values()) for kinds in self.counts.values())
        return {
            "minutes": round((time.monotonic() - self.start) / 60, 1), "seed": self.seed, "requests": total,
            "answers": {kind: dict(sorted(found.items())) for kind, found in sorted(self.counts.items())},
            "info_seconds": {"requests": len(self.waits), "median": round(float(np.median(self.waits or [0])), 2),
                             "slowest": round(max(self.waits, default=0), 2)},
            "findings": self.findings,
        }  # fmt: skip


def small_studies(folder: Path) -> Path:
    """Six images of noise, two with a label: small, so that predictions are quick."""
    (folder / "labels" / "final").mkdir(parents=True)
    for number in range(6):
        name = f"patient{number:03d}.nii.gz"
        (folder / name).write_bytes(volume(seed=number))
        if number < 2:
            (folder / "labels" / "final" / name).write_bytes(volume(values=4, seed=number))
    return folder


def attack(folder: Path, *, minutes: float, seed: int = 0) -> dict[str, Any]:
    """Start a server in ``folder``, attack it and return :meth:`Attack.report`."""
    canaries = Canaries(folder)
    app, studies = assemble(folder / "app", spatial_size=64), small_studies(folder / "studies")
    with (app / "main.py").open("a") as file:
        file.write(f"# {SECRET}\n")
    weights = (app / "model" / MODEL / "models" / "model.pt").read_bytes()
    for place in (folder / "client" / "model.pt", canaries.outside / "secret.pt"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(weights)
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    tempfile.tempdir = str(folder / "client")
    server = Server(app, studies, patience=600, HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"))
    try:
        canaries.watch()
        return Attack(server, canaries, minutes=minutes, seed=seed).run()
    finally:
        server.stop()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="to make for server and images; default: a temporary one that is removed"
    )
    parser.add_argument("--output", type=Path, help="JSON file of the report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        report = attack(options.folder or Path(place) / "attack", minutes=options.minutes, seed=options.seed)
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.write_text(text)
    print(text)
    sys.exit(1 if report["findings"] else 0)


if __name__ == "__main__":
    main()
