"""Validation Dice of a training in two processes of half the batch beside that of one, over seeds.

    python benchmarks/processes.py measure --output benchmarks/results/two_processes.json
    python benchmarks/processes.py table benchmarks/results/two_processes.json

The demo's training on the generated phantom, each process on one CPU thread. Batch norm of its own batch and other
augmentation of the same slices let two processes take another course than one; seeds say how far apart is noise.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
sys.path[:0] = [str(BUNDLE), str(ROOT / "benchmarks")]

from step import provenance

#: files of the configuration, processes, slices of either stream in each
KINDS = {"one process, batch 8": (["demo"], 1, 8), "two processes, batch 4": (["demo", "multi_gpu_train"], 2, 4)}


def dice_of(kind: str, seed: int, output: Path) -> list[float]:
    """Train and return the mean validation Dice of every validation."""
    overlays, processes, batch = KINDS[kind]
    files = [f"configs/{name}.yaml" for name in ("train", *overlays)]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    command += ["--output_dir", str(output), "--seed", str(seed), "--batch_size", str(batch)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit((done.stdout + done.stderr)[-3000:])
    with (output / "validation_log.csv").open(newline="") as file:
        return [float(row["mean_dice"]) for row in csv.DictReader(file)]


def measure(output: str, seeds: int = 3) -> None:
    """Train every kind with every seed and write a JSON.

    Args:
        output: file to write.
        seeds: how many, from 0 on.
    """
    record = provenance("processes", "cpu", 1, seeds) | {"seed": list(range(seeds)), "cases": "generated phantom"}
    record["validation_mean_dice"] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for number, kind in enumerate(KINDS):
                dice = dice_of(kind, seed, Path(folder) / f"{number}_{seed}")
                record["validation_mean_dice"][kind].append([round(value, 4) for value in dice])
    Path(output).write_text(json.dumps(record, indent=1) + "\n")
    table(output)


def last(record: dict) -> dict[str, list[float]]:
    """Dice of the last iteration of every seed, for every kind."""
    return {kind: [curve[-1] for curve in curves] for kind, curves in record["validation_mean_dice"].items()}


def table(result: str) -> None:
    """Print a Markdown table."""
    print("| | each seed | mean | standard deviation |\n|---|---|---|---|")
    for kind, values in last(json.loads(Path(result).read_text())).items():
        each = ", ".join(f"{value:.3f}" for value in values)
        print(
            f"| {kind} | {each} | {mean(values):.3f} | {stdev(values):.3f} |"
            if len(values) > 1
            else f"| {kind} | {each} | | |"
        )


if __name__ == "__main__":
    import fire

    fire.Fire({"measure": measure, "table": table})
