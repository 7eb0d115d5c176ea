"""A server to try out: 8 generated volumes, 3 of them with labels. ``make label-demo`` runs it; Ctrl-C ends it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "label_app"), str(ROOT / "bundle")]

from assemble import assemble  # noqa: E402

TELL = """
The server runs at {url} (this machine alone).
  3D Slicer: install the extension MONAILabel, open its module, type {url} as server and press the round arrow.
             Next Sample opens a volume, Auto Segmentation runs the model, Submit Label saves, Train trains
             (5 minutes, with a GPU 2; Options, section train).
  Browser:   {url} shows the interface of the server.
  Images:    {studies} (8 generated volumes, labels for 3)
Ctrl-C ends it.
"""


def make_studies(folder: Path, *, images: int = 8, labels: int = 3, seed: int = 11) -> Path:
    """A datastore of phantom volumes, the first ones with labels, as MONAI Label keeps it on disk.

    The labels of all of them lie in the folder ``truth`` beside it.
    """
    from scripts.dataio import phantom

    source = phantom.generate(folder.parent / "phantom", seed=seed, split={"training": images})
    (folder / "labels" / "final").mkdir(parents=True)
    for number, image in enumerate(sorted((source / "images").iterdir())):
        shutil.move(image, folder / image.name)
        if number < labels:
            shutil.copy(source / "labels" / image.name, folder / "labels" / "final" / image.name)
    shutil.move(source / "labels", folder.parent / "truth")
    shutil.rmtree(source)
    return folder


def server(
    app: Path, studies: Path | str, port: int, conf: dict[str, str] | None = None, **environment: str
) -> subprocess.Popen:
    """Start MONAI Label on this machine's loopback address.

    Args:
        app: folder made by ``assemble``.
        studies: folder of the datastore.
        port: to listen at.
        conf: of the app.
        environment: settings of MONAI Label.
    """
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += [part for key, value in (conf or {}).items() for part in ("--conf", key, value)]
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": ""}
    if not any(name in os.environ for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        settings["USER"] = f"user{os.getuid()}"  # which MONAI asks for; in a container it may have no entry
    # a session of its own: Ctrl-C reaches this program, which ends the server in order
    return subprocess.Popen(command, env={**os.environ, **settings, **environment}, start_new_session=True)


def stop(process: subprocess.Popen, seconds: float = 30) -> int:
    """End a server of :func:`server` and what it has running, by their process ids; returns its exit code."""
    import psutil

    if process.poll() is not None:
        return process.returncode
    for child in psutil.Process(process.pid).children(recursive=True):  # it would wait for a training to end
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wait_until_up(process: subprocess.Popen, url: str, seconds: float = 120) -> None:
    """Return as soon as the server answers; raise if it ends or takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(url + "/", timeout=5)
            return
        except urllib.error.HTTPError:  # it answers, and asks for a token
            return
        except OSError:
            time.sleep(0.5)
    stop(process)
    raise SystemExit(f"{url}: the server did not start; see the messages above.")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "label_demo", help="folder for app and images")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", options.port)) == 0:
            raise SystemExit(f"port {options.port}: somebody listens there already; give another --port.")
    folder = options.output.resolve()
    if not (folder / "app").exists():
        assemble(folder / "app")
    if not (folder / "studies").exists():
        make_studies(folder / "studies")
    url = f"http://127.0.0.1:{options.port}"
    process = server(folder / "app", folder / "studies", options.port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        wait_until_up(process, url)
        print(TELL.format(url=url, studies=folder / "studies"), flush=True)
        process.wait()
    except KeyboardInterrupt:
        stop(process)
        print("The server has ended.")


if __name__ == "__main__":
    main()
