"""What a machine runs out of ends a training with one line, an exit code, and files that can be gone on with."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import samples
import torch
import warm
from conftest import BUNDLE, ENVIRONMENT
from helpers import read_rows
from scripts.errors import InputError, explain
from scripts.training.checkpoints import resume_checkpoints

FILES = "['configs/train.yaml','configs/semsim_minus.yaml']"
#: before the training: a limit on the process itself
LIMITED = (
    "import resource, runpy; resource.setrlimit(resource.{0}, ({1}, {1})); "
    "runpy.run_module('monai.bundle', run_name='__main__')"
)

#: a training that is killed while it writes the checkpoint of its third epoch
DYING = """
import os, runpy, signal, torch
save = torch.save
def half(content, file, *args, **kwargs):
    save(content, file, *args, **kwargs)
    name = getattr(file, "name", file)
    if "resume_checkpoint_3" in str(name):
        os.truncate(name, os.path.getsize(name) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
runpy.run_module("monai.bundle", run_name="__main__")
"""
#: without root's licence to write anywhere
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()

STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_process_stays():
    """Whatever a test says, nothing that it started goes on."""
    yield
    while STARTED:
        STARTED.pop().kill()


def start(phantom, output, *args, code="", before=(), fresh=False, files=FILES):
    begin = ["-c", code] if code else ["-m", "monai.bundle"]
    options = {"dataset_dir": phantom, "datalist": phantom / "datalist.json", "output_dir": output, "spatial_size": 32,
               "batch_size": 4, "val_interval": 1}  # fmt: skip
    command = [*before, sys.executable, *begin, "run", "training", "--config_file", files]
    command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    given = {"cwd": BUNDLE, "env": ENVIRONMENT, "text": True}
    if before or fresh:
        process = subprocess.Popen(
            [*command, *args], **given, encoding="utf-8", stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
            # a shell lets what it starts in the background ignore Ctrl-C, and processes inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    else:
        process = warm.Popen([*command, *args], **given)
    STARTED.append(process)
    return process


def ended(process, timeout=120):
    """The error line of a training that ended by itself, and its exit code."""
    _, err = process.communicate(timeout=timeout)
    lines = [line for line in err.splitlines() if line.startswith("ERROR: ")]
    assert len(lines) == 1 and "Traceback" not in err, err[-3000:]
    assert process.returncode != 0
    return lines[0]


def wait_for(process, condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(process.communicate()[1][-3000:])
        time.sleep(0.05)


def test_ctrl_c_and_going_on(phantom_dir, tmp_path):
    process = start(phantom_dir, tmp_path, "--epochs", "100", fresh=True)
    wait_for(process, lambda: resume_checkpoints(tmp_path))
    process.send_signal(signal.SIGINT)
    assert "Stopped by hand" in ended(process) and process.returncode in (130, -signal.SIGINT)
    log = read_rows(tmp_path / "training_log.csv")
    epochs = str(int(log[-1]["epoch"]) + 2)
    process = start(phantom_dir, tmp_path, "--epochs", epochs, "--resume", "auto")
    assert process.communicate(timeout=120) and process.returncode == 0
    rows = [int(r["iteration"]) for r in read_rows(tmp_path / "training_log.csv")]
    assert rows == sorted(set(rows)) and (tmp_path / "model_last.pt").exists()


def test_a_full_disk(phantom_dir, tmp_path):
    """No file may grow beyond what weights take, so the checkpoint does not fit: the weights stay whole."""
    limit = (BUNDLE / "models" / "model.pt").stat().st_size + 1_000_000
    process = start(phantom_dir, tmp_path, "--epochs", "3", code=LIMITED.format("RLIMIT_FSIZE", limit))
    assert f"{tmp_path / 'resume_checkpoint_1.pt'}: no space left to write" in ended(process)
    assert resume_checkpoints(tmp_path) == [] and not list(tmp_path.glob("*.part"))
    torch.load(tmp_path / "model_best.pt", weights_only=True)


def test_a_batch_too_large(phantom_dir, tmp_path):
    limit = 4 * 2**30
    process = start(
        phantom_dir, tmp_path, "--epochs", "1", "--spatial_size", "1024", code=LIMITED.format("RLIMIT_AS", limit)
    )
    assert "Out of memory. Lower --batch_size" in ended(process)


def killed_at_a_checkpoint(data, tmp_path, *args, files=FILES):
    """The half file is never taken for a checkpoint: it goes on from the one before and ends as if nothing was."""
    process = start(data, tmp_path / "parts", "--epochs", "4", *args, code=DYING, files=files)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    half = [p.name for p in (tmp_path / "parts").iterdir() if "resume_checkpoint_3" in p.name]
    assert len(half) == 1 and half[0] != "resume_checkpoint_3.pt", "cut off beside its final place"
    for folder in ("parts", "whole"):
        process = start(data, tmp_path / folder, "--epochs", "4", "--resume", "auto", *args, files=files)
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 0 and "could not read" not in err
    states = [torch.load(tmp_path / folder / "model_last.pt", weights_only=True) for folder in ("parts", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    names = [sorted(p.name for p in (tmp_path / folder).glob("*.pt*")) for folder in ("parts", "whole")]
    assert names[0] == names[1] and not list((tmp_path / "parts").glob("*.part")), "no half file stays"


def test_killed_while_a_checkpoint_is_written(phantom_dir, tmp_path):
    killed_at_a_checkpoint(phantom_dir, tmp_path)


def test_killed_in_3d(tmp_path):
    options = {"class_names": "['background','liver','gallbladder']", "window": "[-150,250]", "spatial_size": 16,
               "features": "[4,4,8,8,16,4]", "batch_size": 2, "patches": 2}  # fmt: skip
    args = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    files = str([f"configs/{name}.yaml" for name in ("train", "volumes")])
    killed_at_a_checkpoint(samples.make_isotropic_ct(tmp_path / "data"), tmp_path, *args, files=files)


@pytest.mark.skipif(bool(UNPRIVILEGED) and not shutil.which("setpriv"), reason="root may write anywhere")
def test_a_read_only_output_folder(phantom_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o555)
    process = start(phantom_dir, tmp_path / "out", "--epochs", "1", before=UNPRIVILEGED)
    line = ended(process)
    assert str(tmp_path / "out") in line and "not permitted" in line and "--output_dir that may be written" in line
    assert not list((tmp_path / "out").iterdir())


def test_a_loading_process_killed_in_a_training(phantom_dir, tmp_path):
    process = start(phantom_dir, tmp_path, "--epochs", "1000", "--num_workers", "1")
    wait_for(process, lambda: resume_checkpoints(tmp_path))
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:  # one that has just done its work is not missed
        with contextlib.suppress(psutil.NoSuchProcess):
            for loader in psutil.Process(process.pid).children():
                loader.kill()
        time.sleep(0.2)
    err = process.communicate(timeout=60)[1]  # PyTorch may add what it ignored
    said = [line for line in err.splitlines() if line.startswith("ERROR: ")]
    assert process.returncode == 1 and said, err[-3000:]
    assert all("A loading process was killed" in line for line in said)
    assert resume_checkpoints(tmp_path)


def test_an_image_that_becomes_unreadable(phantom_dir, tmp_path):
    shutil.copytree(phantom_dir, tmp_path / "data")
    process = start(tmp_path / "data", tmp_path / "out", "--epochs", "1000", "--cache_rate", "0")
    wait_for(process, lambda: resume_checkpoints(tmp_path / "out"))
    for image in (tmp_path / "data" / "images").glob("*.nii.gz"):
        image.write_bytes(image.read_bytes()[:2000])
    line = ended(process)
    assert str(tmp_path / "data" / "images") in line
    # found before it is read; or by nibabel, where it was cut off in between
    assert "cut off or broken; copy it anew" in line or ("Compressed file ended" in line and "replace the file" in line)
    assert resume_checkpoints(tmp_path / "out")


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(phantom_dir, tmp_path):
    """Each time it goes on from a whole checkpoint, loses an epoch at most, and ends with the very same weights."""
    args = ("--epochs", "150", "--val_interval", "5", "--resume", "auto")
    rng, output, reached = random.Random(0), tmp_path / "parts", [0]
    for _ in range(20):
        process = start(phantom_dir, output, *args, fresh=True)
        time.sleep(rng.uniform(4.0, 12.0))
        assert process.poll() is None, "the training should be longer"
        process.kill()
        err = process.communicate()[1]
        assert "Traceback" not in err and "could not read" not in err, err[-2000:]
        found = resume_checkpoints(output)
        reached.append(int(found[-1].stem.rsplit("_", 1)[-1]) if found else 0)
        rows = read_rows(output / "training_log.csv") if found else []
        assert not rows or int(rows[-1]["epoch"]) - reached[-1] <= 1, "an epoch is lost at most"
    assert reached == sorted(reached) and len(set(reached)) > 10, reached
    process = start(phantom_dir, output, *args)
    assert process.communicate(timeout=600) and process.returncode == 0
    whole = start(phantom_dir, tmp_path / "whole", *args)
    assert whole.communicate(timeout=600) and whole.returncode == 0
    states = [torch.load(folder / "model_last.pt", weights_only=True) for folder in (tmp_path / "whole", output)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    epochs = [int(r["epoch"]) for r in read_rows(output / "training_log.csv")]
    assert epochs == list(range(1, 151))


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/x.pt"), "run/x.pt: no space left"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "run"), "run: not permitted (Read-only file system); give"),
        (OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "a/b"), "a/b: cannot be written or read there (Not a dir"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE), "run/x.pt"), "run/x.pt: the storage is out of reach (Stale"),
        (torch.OutOfMemoryError("CUDA out of memory."), "Out of memory. Lower"),
        # where other programs have the GPU, or its libraries ask for memory; Apple's GPUs
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "Out of memory. Lower"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "Out of memory. Lower"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB, other"), "Out of memory. Lower"),
        (InputError("a.nii.gz: broken; replace it."), "a.nii.gz: broken; replace it."),
        (
            ValueError("MLflow no longer supports a folder.\nMore"),
            "mlflow_tracking_uri: MLflow no longer supports a fol",
        ),
        (
            KeyError("Key `label` of transform `RandFlipd` was missing in the data"),
            "RandFlipd: expected keys of what it",
        ),
        (RuntimeError("something else"), None),
    ],
)
def test_one_line_says_what_and_what_to_do(error, expected):
    outer = RuntimeError("engine")
    outer.__cause__ = error
    for raised in (error, outer):
        said = explain(raised)
        assert (said is None) if expected is None else said.startswith(expected)


def test_prediction_has_remedies_of_its_own():
    full, stopped = (explain(e, "prediction") for e in (torch.OutOfMemoryError("CUDA"), KeyboardInterrupt()))
    assert "Lower --slice_batch" in full and "--batch_size" not in full
    assert all(said.endswith("go on with --existing skip.") for said in (full, stopped))


class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, _):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loading_process():
    with pytest.raises(RuntimeError) as caught:
        next(iter(torch.utils.data.DataLoader(Killed(), num_workers=1)))
    assert explain(caught.value).startswith("A loading process was killed")


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, _):
        raise InputError("images/a.nii.gz: could not be read; replace it.")


def test_an_error_in_a_loading_process_is_one_line():
    with pytest.raises(InputError) as caught:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert "Traceback" in str(caught.value)
    assert explain(caught.value) == "images/a.nii.gz: could not be read; replace it."
