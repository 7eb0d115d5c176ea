"""Several processes: the losses of one, shared evaluation, several machines, and an end when one of them dies."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import sys
import time
from statistics import mean

import processes
import psutil
import pytest
import torch
import warm
from conftest import BUNDLE, ENVIRONMENT, ROOT, config_args
from helpers import read_rows

pytestmark = pytest.mark.timeout(900)
ONE_THREAD = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BUNDLE)}
STANDALONE = ("--standalone",)


def torchrun(processes, *args, where=STANDALONE) -> warm.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc_per_node={processes}", *args]
    return warm.Popen(command, cwd=BUNDLE, env=ONE_THREAD, stderr=warm.STDOUT)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(count, *args) -> str:
    """Run the processes of one node without a launcher, which would start each in a new interpreter; the first's words.

    What several processes compute is the same; how they are started is for the tests that take `torchrun`.
    """
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    try:
        for rank in map(str, range(count)):
            env = {**ONE_THREAD, **group, "RANK": rank, "LOCAL_RANK": rank}
            started.append(warm.Popen([sys.executable, *args], cwd=BUNDLE, env=env, stderr=warm.STDOUT))
        first, *_ = [succeeded(process) for process in started]
        return first
    finally:
        for process in started:
            end(process)


def succeeded(process, timeout=240) -> str:
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        end(process)
    assert process.returncode == 0, output[-4000:]
    return output


def end(process) -> None:
    """The process and what it started, whatever a test says."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()


@pytest.fixture(scope="module")
def shared(phantom_dir, tmp_path_factory):
    """The phantom with three validation patients, one more than there are processes."""
    folder = tmp_path_factory.mktemp("shared") / "data"
    shutil.copytree(phantom_dir, folder)
    lists = json.loads((folder / "datalist.json").read_text())
    lists["validation"] = [*lists["validation"], *lists.pop("testing")]
    assert len(lists["validation"]) == 3
    (folder / "datalist.json").write_text(json.dumps(lists))
    return folder


def train_args(data, output, *args, epochs=2) -> list[str]:
    given = {"dataset_dir": data, "datalist": data / "datalist.json", "output_dir": output, "epochs": epochs,
             "spatial_size": 32, "batch_size": 4, "val_interval": 1}  # fmt: skip
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    files = config_args("train", "semsim_minus", "multi_gpu_train")
    return ["-m", "monai.bundle", "run", "training", *files, *options, *args]


@pytest.fixture(scope="module")
def trained(shared, tmp_path_factory):
    """Output folder of a training in two processes."""
    output = tmp_path_factory.mktemp("trained")
    said = succeeded(torchrun(2, *train_args(shared, output)))
    assert "[2/2]" in said and "[3/3]" not in said, "the first process validates two of three cases"
    return output


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Losses and weights of the same global batches in 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("steps")
    script = str(ROOT / "tests" / "distributed_steps.py")
    for count in (1, 2, 4):
        together(count, script, str(folder / f"{count}.pt"))
    return {n: torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2, 4)}


@pytest.mark.parametrize("kind", ["slices", "volumes"])
@pytest.mark.parametrize("processes", [2, 4])
def test_losses_and_steps_of_one_process(steps, processes, kind):
    """Dice by image, prototypes of all: every term and every weight is that of one process with the whole batch."""
    one, many = steps[1][kind], steps[processes][kind]
    assert len(one["losses"]) == 2 and 0.05 < one["losses"][0]["mask_u"] < 0.95
    for expected, found in zip(one["losses"], many["losses"]):
        assert found == pytest.approx(expected, rel=1e-9)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(many["weights"][name], weight, rtol=1e-8, atol=1e-10)
    by_default = [steps[n]["own"]["losses"][0] for n in (1, processes)]
    for term in ("loss_s", "loss_u", "loss_cross"):
        assert by_default[1][term] != pytest.approx(by_default[0][term], rel=1e-6), "each process its own batch"


def test_validation_is_shared_and_counts_every_case_once(run_bundle, shared, trained, tmp_path):
    logged = read_rows(trained / "validation_log.csv")
    assert [row["epoch"] for row in logged] == ["1", "2"]
    data = ("--dataset_dir", str(shared), "--datalist", str(shared / "datalist.json"), "--output_dir", str(tmp_path))
    weights = ("--ckpt_path", str(trained / "model_last.pt"))
    run_bundle("run", *config_args("train", "evaluate"), *data, *weights)
    alone = (tmp_path / "scores.csv").read_text()
    summary = json.loads((tmp_path / "scores.json").read_text())
    assert summary["cases"] == 3
    for name, scores in summary["classes"].items():
        assert float(logged[-1][name]) == pytest.approx(scores["dice"], abs=2e-4), name
    (tmp_path / "scores.csv").unlink()
    evaluate = config_args("train", "evaluate", "multi_gpu_evaluate")
    said = together(2, "-m", "monai.bundle", "run", *evaluate, *data, *weights)
    assert "[2/2]" in said and "[3/3]" not in said
    assert (tmp_path / "scores.csv").read_text() == alone, "the same table, in the same order"


def test_fewer_cases_than_processes(shared, trained, tmp_path):
    lists = json.loads((shared / "datalist.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps({**lists, "validation": lists["validation"][:1]}))
    evaluate = config_args("train", "evaluate", "multi_gpu_evaluate")
    data = ("--dataset_dir", str(shared), "--datalist", str(tmp_path / "one.json"), "--output_dir", str(tmp_path))
    weights = ("--ckpt_path", str(trained / "model_last.pt"))
    together(2, "-m", "monai.bundle", "run", *evaluate, *data, *weights)
    assert len(read_rows(tmp_path / "scores.csv")) == 3, "one row a class"


def test_two_machines(shared, trained, tmp_path):
    """The same line on two nodes gives the weights of two processes of one."""
    port = free_port()
    nodes = []
    try:
        for rank in range(2):
            where = ("--nnodes=2", f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}")
            nodes.append(torchrun(1, *train_args(shared, tmp_path), where=where))
        for node in nodes:
            succeeded(node)
    finally:
        for node in nodes:
            end(node)
    states = [torch.load(folder / "model_last.pt", weights_only=True) for folder in (trained, tmp_path)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert read_rows(tmp_path / "validation_log.csv") == read_rows(trained / "validation_log.csv")


def wait_for(process, condition, timeout=180):
    limit = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            end(process)
            raise AssertionError(process.communicate()[0][-4000:])
        time.sleep(0.1)


def ended(process, timeout=60) -> str:
    """What a run printed that ended by itself, with an exit code, within a minute, and left no process."""
    started = psutil.Process(process.pid).children(recursive=True)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode not in (0, None)
    _, alive = psutil.wait_procs(started, timeout=5)
    assert not alive
    return output


def test_a_process_that_dies_ends_all(shared, tmp_path):
    process = torchrun(2, *train_args(shared, tmp_path, epochs=1000))
    try:
        wait_for(process, lambda: list(tmp_path.glob("resume_checkpoint_*.pt")))
        [victim] = [c for c in psutil.Process(process.pid).children() if c.environ().get("RANK") == "1"]
        victim.send_signal(signal.SIGKILL)
        output = ended(process)
    finally:
        end(process)
    assert "SIGKILL" in output and f"pid: {victim.pid}" in output, output[-4000:]
    done = int(read_rows(tmp_path / "training_log.csv")[-1]["epoch"])
    together(2, *train_args(shared, tmp_path, "--resume", "auto", epochs=done + 2))
    assert [int(r["epoch"]) for r in read_rows(tmp_path / "training_log.csv")] == list(range(1, done + 3))


def test_an_error_of_a_process_is_shown_and_ends_all(shared, tmp_path):
    """One of two alone meets it, while the other waits for its gradients."""
    rate = "$0.01 if @rank == 0 else float('inf')"
    process = torchrun(2, *train_args(shared, tmp_path / "run", "--learning_rate", rate, epochs=1000))
    try:
        output = ended(process, timeout=120)
    finally:
        end(process)
    said = [line for line in output.splitlines() if "ERROR: " in line]
    assert any("The loss is not finite at iteration 2" in line for line in said), output[-4000:]
    before, _, _ = output.partition("torch/distributed/elastic")  # whose own report is a traceback
    assert "Traceback" not in before, before[-6000:]


def test_machines_that_do_not_share_their_output(shared, trained, tmp_path):
    """A process that finds no checkpoint where the other goes on from one is no training."""
    folder = f"$'{trained}' if @rank == 0 else '{tmp_path}'"
    args = train_args(shared, folder, "--resume", "auto", epochs=3)
    output = ended(torchrun(2, *args), timeout=120)
    assert "the processes found different checkpoints" in output, output[-4000:]


@pytest.mark.slow
def test_dice_within_noise(tmp_path):
    """Over three seeds the demo's training in two processes of half the batch ends where one process ends."""
    processes.measure(str(tmp_path / "result.json"))
    one, two = processes.last(json.loads((tmp_path / "result.json").read_text())).values()
    assert len(one) == len(two) == 3 and min(*one, *two) > 0.4
    assert abs(mean(one) - mean(two)) < 0.05
