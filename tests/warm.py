"""Stands in for :mod:`subprocess`: Python commands in new processes that have MONAI loaded already.

A command as a user types it takes seconds to import MONAI, and the tests start more than a hundred. Here a server of
the standard library imports it once and forks itself for each command. What a command is given, does and leaves behind
stays that of ``python -m MODULE``, ``python -c CODE`` or ``python FILE``: folder, environment, import path, output,
exit code.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import STDOUT, CalledProcessError, CompletedProcess, TimeoutExpired
from typing import IO, Any

__all__ = ["STDOUT", "CalledProcessError", "CompletedProcess", "Popen", "TimeoutExpired", "run"]

ROOT = Path(__file__).resolve().parents[1]
#: where a new interpreter looks for modules: not in the folders of these tests
INSTALLED = [p for p in sys.path if p.startswith(sys.prefix) or (p and ROOT not in Path(p).parents)]
PYTHON = (sys.executable, "python")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["monai.bundle"])


def _become(arguments: Sequence[str], cwd: str, env: Mapping[str, str], streams: Sequence[str]) -> None:
    """Run ``-m MODULE``, ``-c CODE`` or a file as the main program of this process."""
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind, *rest = arguments
    sys.argv[:] = rest if kind == "-m" else [kind, *(rest[1:] if kind == "-c" else rest)]
    first = cwd if kind in ("-m", "-c") else str(Path(kind).resolve().parent)
    sys.path[:] = [first, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *INSTALLED]
    site.execsitecustomize()
    multiprocessing.set_start_method(None, force=True)  # the default again, for processes that load data
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if kind == "-m":
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(kind, run_name="__main__")
    except Exception:  # as an interpreter ends
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()


class Popen:
    """What tests use of the class of that name; output is text in UTF-8."""

    def __init__(self, command: Sequence[str], *, cwd=None, env=None, stdout=None, stderr=None, text=True) -> None:
        assert command[0] in PYTHON, command
        self.args = command
        self._folder = tempfile.TemporaryDirectory(prefix="command_")
        out = self._path(stdout, "out")
        self._streams = (out, out if stderr == STDOUT else self._path(stderr, "err"))
        env = dict(os.environ if env is None else env)
        target = (list(command[1:]), str(Path(cwd or ".").resolve()), env, self._streams)
        self._process = SERVER.Process(target=_become, args=target)
        self._process.start()
        self.pid = self._process.pid

    def _path(self, given: int | IO | None, name: str) -> str:
        path = Path(self._folder.name) / name if given is None or isinstance(given, int) else Path(given.name)
        path.touch()
        return str(path.resolve())

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Standard output and error, both held whether asked for or not."""
        self.wait(timeout)
        out, err = (Path(path).read_text("utf-8", "replace") for path in self._streams)
        return out, err


def run(command: Sequence[str], *, timeout=None, check=False, **options: Any) -> CompletedProcess:
    """As the function of that name, output always captured; other programs are left to it."""
    if command[0] not in PYTHON:
        return subprocess.run(command, timeout=timeout, check=check, **options)
    process = Popen(command, **{k: v for k, v in options.items() if k not in ("capture_output", "encoding")})
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    done = CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
