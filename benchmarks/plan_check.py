"""How far `planning` is from the truth: it is run, then the training it speaks of, and both are written down.

python benchmarks/plan_check.py measure --output benchmarks/results/plan_cpu.json
python benchmarks/plan_check.py table benchmarks/results/plan_cpu.json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(BUNDLE), str(ROOT / "benchmarks")]

import torch
from scripts.dataio import phantom
from step import provenance

#: overlays of train.yaml and options
CONFIGURATIONS: dict[str, tuple[list[str], list[str]]] = {
    "demo": (["demo"], ["--epochs", "5"]),
    "unimatch 96": (["unimatch"], ["--spatial_size", "96", "--epochs", "3", "--val_interval", "3"]),
    "semsim 96, 4 + 4": ([], ["--spatial_size", "96", "--epochs", "1", "--val_interval", "1", "--batch_size", "4"]),
    "semsim_light 160": (["semsim_light"], ["--spatial_size", "160", "--epochs", "1", "--val_interval", "1"]),
}


def run(run_id: str, overlays: list[str], options: list[str], data: Path, output: Path) -> tuple[float, int]:
    """One command of the bundle: seconds from start to end, and the most bytes that it held in memory."""
    files = [f"configs/{name}.yaml" for name in ("train", *overlays)]
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    command += ["--dataset_dir", str(data), "--output_dir", str(output), *options]
    begin = time.perf_counter()
    with (output.parent / f"{run_id}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=BUNDLE, stdout=log, stderr=subprocess.STDOUT)
        peak = 0  # not that of wait4, which counts what the parent held when it forked
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, int(found[1]) * 1024 if found else 0)
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit((output.parent / f"{run_id}.log").read_text()[-3000:])
    return time.perf_counter() - begin, peak


def measure(output: str, configurations: tuple[str, ...] | str | None = None, data: str | None = None) -> None:
    """Measure and write a JSON.

    Args:
        output: file to write.
        configurations: some of ``CONFIGURATIONS``; default: all.
        data: folder of a phantom; default: the one that the configs train on.
    """
    names = (configurations,) if isinstance(configurations, str) else tuple(configurations or CONFIGURATIONS)
    result: dict[str, Any] = provenance("plan_check", "cpu", torch.get_num_threads(), 1)
    result |= {"cases": "phantom of train.yaml", "configurations": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = Path(data) if data else phantom.generate(folder / "phantom")
        for name in names:
            overlays, options = CONFIGURATIONS[name]
            plan_file = folder / "plan.json"
            run("planning", overlays, [*options, "--plan_file", str(plan_file)], source, folder / "nothing")
            plan = json.loads(plan_file.read_text())
            seconds, memory = run("training", overlays, options, source, folder / name.replace(" ", "_"))
            result["configurations"][name] = {
                "overlays": overlays,
                "options": options,
                "plan": plan,
                "truth": {"total_seconds": seconds, "peak_bytes": memory},
                "ratio": {
                    "total_seconds": plan["total_seconds"] / seconds,
                    "peak_bytes": plan["peak_bytes"] / memory,
                },
            }
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(json.dumps(result, indent=1) + "\n")
    table(output)


def table(path: str) -> None:
    """Print a result as Markdown."""
    result = json.loads(Path(path).read_text())
    columns = ("training", "planned s", "s", "ratio", "planned MiB", "MiB", "ratio", "waiting for data")
    print("\n| " + " | ".join(columns) + " |")
    print("|---" * 8 + "|")
    for name, entry in result["configurations"].items():
        plan, truth, ratio = (entry[key] for key in ("plan", "truth", "ratio"))
        cells = [f"{plan['total_seconds']:.0f} | {truth['total_seconds']:.0f} | {ratio['total_seconds']:.2f}"]
        cells += [f"{part['peak_bytes'] / 2**20:.0f}" for part in (plan, truth)]
        wait = plan["loading_seconds"] / plan["step_seconds"]
        print(f"| {name} | {' | '.join(cells)} | {ratio['peak_bytes']:.2f} | {wait:.1%} |")


if __name__ == "__main__":
    import fire

    fire.Fire({"measure": measure, "table": table})
