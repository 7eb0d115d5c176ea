"""Validation Dice of a training in two processes of half the batch beside that of one, over seeds.

    python benchmarks/processes.py measure --output benchmarks/results/two_processes.json
    python benchmarks/processes.py table benchmarks/results/two_processes.json

The demo's training on the generated phantom, each process on one CPU thread. Batch norm of its own batch and other
augmentation of the same slices let two processes take another course than one; seeds say how far apart is noise.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean, stdev

from common import command, markdown, provenance, read_rows, run, write_json

#: files of the configuration, processes, slices of either stream in each
KINDS = {"one process, batch 8": (["demo"], 1, 8), "two processes, batch 4": (["demo", "multi_gpu_train"], 2, 4)}


def dice_of(kind: str, seed: int, output: Path) -> list[float]:
    """Train and return the mean validation Dice of every validation."""
    overlays, processes, batch = KINDS[kind]
    line = command("training", ["train", *overlays], output_dir=output, seed=seed, batch_size=batch)
    if processes > 1:
        line[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    run(line, output.with_suffix(".log"))
    return [float(row["mean_dice"]) for row in read_rows(output / "validation_log.csv")]


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
    write_json(output, record)
    table(output)


def last(record: dict) -> dict[str, list[float]]:
    """Dice of the last iteration of every seed, for every kind."""
    return {kind: [curve[-1] for curve in curves] for kind, curves in record["validation_mean_dice"].items()}


def table(result: str) -> None:
    """Print a Markdown table."""
    rows = []
    for kind, values in last(json.loads(Path(result).read_text())).items():
        spread = [f"{mean(values):.3f}", f"{stdev(values):.3f}"] if len(values) > 1 else ["", ""]
        rows.append([kind, ", ".join(f"{value:.3f}" for value in values), *spread])
    print("\n".join(markdown(["", "each seed", "mean", "standard deviation"], rows)))


if __name__ == "__main__":
    import fire

    fire.Fire({"measure": measure, "table": table})
