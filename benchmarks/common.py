"""What the benchmarks share: where things lie, where a result comes from, commands as a user starts them, pages."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = ROOT / "benchmarks" / "configs"
RESULTS = ROOT / "benchmarks" / "results"
RUN = [sys.executable, "-m", "monai.bundle", "run"]
sys.path[:0] = [str(BUNDLE), str(ROOT / "benchmarks")]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: see the Makefile


# Where a result comes from


def git(*args: str) -> str:
    """Output of a git command on this repository."""
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def versions(*more: str) -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {name: version(name) for name in ("monai", "torch", "numpy", *more)}


def machine() -> str:
    """GPU if any, processor, the vector instructions torch uses on it, and Python: what rounding depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = (line.partition(":") for line in cpuinfo.read_text().splitlines()) if cpuinfo.exists() else ()
    told = {key.strip(): value.strip() for key, _, value in lines}
    processor = platform.processor() or platform.machine()
    if "model name" in told:
        processor = f"{told['model name']} (family {told.get('cpu family')}, model {told.get('model')})"
    import torch  # not needed for tables and plots, and slow to load

    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{processor}, {torch.backends.cpu.get_cpu_capability()}, python {platform.python_version()}"


def provenance(script: str, device: str, threads: int, repeats: int) -> dict[str, Any]:
    """What a result says of where it comes from. A ``+`` after the commit: with changes not committed."""
    import torch
    from scripts.precision import precision

    return {
        "command": f"python benchmarks/{script}.py " + " ".join(sys.argv[1:]),
        "seed": 0,
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "precision": str(precision("auto", device)),
        "threads": threads,
        "repeats": repeats,
        "commit": git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", "bundle/scripts") else ""),
        "versions": versions(),
        "machine": machine(),
    }


def note_start(folder: Path) -> None:
    """Remember which commit each part of a training ran on, and on which machine."""
    path = folder / "starts.json"
    starts = json.loads(path.read_text()) if path.exists() else []
    dirty = bool(git("status", "--porcelain", "--untracked-files=no", "--", "bundle", "benchmarks/configs"))
    starts.append({"commit": git("rev-parse", "HEAD"), "changed": dirty, "machine": machine()})
    path.write_text(json.dumps(starts))


# Patients


def patient_of(case: str) -> str:
    """``images/patient001_frame01.nii.gz`` -> ``patient001``."""
    return Path(case).name.split(".")[0].split("_")[0]


def read_splits(file: str | os.PathLike = "", dataset: str = "acdc") -> dict[str, Any]:
    """Which patients are for training, for validation, and labelled; default ``configs/acdc_splits.json``, or of LA."""
    return json.loads(Path(file or CONFIGS / f"{dataset}_splits.json").read_text())


def protocol_lists(
    data: str | os.PathLike, splits: Mapping[str, Any], labelled: Iterable[str]
) -> dict[str, list[dict[str, Any]]]:
    """Lists of a datalist: labelled patients, the other training patients unlabelled, validation; nobody else."""
    use = {p: "validation" for p in splits["validation"]} | {p: "unlabeled" for p in splits["training"]}
    use |= {p: "training" for p in labelled}
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in ("training", "unlabeled", "validation")}
    missing = set(use)
    for image in sorted((Path(data) / "images").glob("*.nii.gz")):
        if name := use.get(patient := patient_of(image.name)):
            missing.discard(patient)
            label = {} if name == "unlabeled" else {"label": f"labels/{image.name}"}
            lists[name].append({"image": f"images/{image.name}", **label})
    if missing:
        raise SystemExit(
            f"{data}: expected files of {len(use)} patients in images, named as patient001_frame01.nii.gz of ACDC or "
            f"train001.nii.gz of LA; {len(missing)} are missing ({min(missing)} for one). "
            "`accuracy.py arrange` lays ACDC out so, as it is released."
        )
    return lists


# Commands as a user starts them


def command(run_id: str, files: Sequence[str], **options: Any) -> list[str]:
    """``monai.bundle run`` on files of ``configs/`` (by name, or by path); empty ``run_id``: ``run``."""
    names = [file if file.endswith(".yaml") else f"configs/{file}.yaml" for file in files]
    line = [*RUN, *([run_id] if run_id else []), "--config_file", str(names)]
    return line + [part for key, value in options.items() for part in (f"--{key}", str(value))]


def environment(threads: int) -> dict[str, str]:
    """This process's, with so many CPU threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def run(line: Sequence[str], log: Path, threads: int = 1) -> None:
    """Run a command in the bundle's folder, its words into a file.

    Raises:
        SystemExit: it failed; with its last lines.
    """
    with log.open("a") as file:
        done = subprocess.run(line, cwd=BUNDLE, env=environment(threads), stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{log}: failed with exit code {done.returncode}:\n{tail}")


def child(script: str, *args: Any) -> float:
    """The number that a command of a script prints last, in a process of its own."""
    line = [sys.executable, str(Path(script).resolve()), *map(str, args)]
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()[-1])


#: A small process that starts a command: the peak of a process begins with that of the one it was made from.
STARTER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def resources(line: Sequence[str], threads: int) -> dict[str, float]:
    """Run a command in the bundle's folder: its wall and processor seconds and the most memory that it held."""
    begin = time.perf_counter()
    starter = [sys.executable, "-S", "-c", STARTER, *line]
    done = subprocess.run(starter, cwd=BUNDLE, env=environment(threads), capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    cpu, peak = done.stdout.split()
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": float(cpu), "peak_bytes": int(peak) * 1024}


# Results and pages


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_json(path: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Write a result, whole or not at all, lists of numbers on one line; its folder is made where there is none."""
    text = json.dumps(record, indent=1)
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]) + "]", text)
    part = Path(f"{path}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(text + "\n")
    part.replace(path)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def interval(differences: Any) -> dict[str, Any]:
    """Mean of paired differences, its 95 % interval by Student's t, and ``ahead``, ``behind`` or ``tie``.

    Where there is no interval, as of a single patient, it is a tie.
    """
    from scipy.stats import ttest_1samp

    found = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    low, high = float(found.low), float(found.high)
    verdict = "ahead" if low > 0 else "behind" if high < 0 else "tie"
    return {"mean": float(differences.mean()), "low": low, "high": high, "verdict": verdict}


def shown(d: Mapping[str, Any]) -> str:
    """An :func:`interval` in a table."""
    return f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f}) {d['verdict']}"


#: Parts of a page that are made from results.
KINDS = "table|methods|cells|cells_post_processed|quality|classes|curves?|patients|differences|similarities|gradients"
MARKED = re.compile(
    rf"(<!-- ({KINDS})(?: (\S+?))?(?: against (.+?))? -->\n)"
    r".*?(<!-- end -->)",
    re.S,
)


def fill(text: str, part: Callable[[str, str, str], str]) -> str:
    """A page with what stands between ``<!-- KIND NAME against LABEL -->`` and ``<!-- end -->`` made anew.

    Args:
        text: of the page.
        part: makes it from kind, name and label; the latter two may be empty.
    """
    marks = re.findall(r"^<!-- (?!end )(\w+) .*-->$", text, re.MULTILINE)
    if unknown := [mark for mark in marks if not re.fullmatch(KINDS, mark)]:
        raise SystemExit(f"Marks of an unknown kind, whose parts would never be made anew: {', '.join(unknown)}.")
    return MARKED.sub(lambda m: f"{m[1]}{part(m[2], m[3] or '', m[4] or '')}\n{m[5]}", text)
