"""How far `planning` is from the truth: it is run, then the training it speaks of, and both are written down.

python benchmarks/plan_check.py measure --output benchmarks/results/plan_cpu.json
python benchmarks/plan_check.py table benchmarks/results/plan_cpu.json
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import command, markdown, provenance, resources, write_json
from scripts.dataio import phantom

#: overlays of train.yaml and options
CONFIGURATIONS: dict[str, tuple[list[str], dict[str, int]]] = {
    "demo": (["demo"], {"epochs": 5}),
    "unimatch 96": (["unimatch"], {"spatial_size": 96, "epochs": 3, "val_interval": 3}),
    "semsim 96, 4 + 4": ([], {"spatial_size": 96, "epochs": 1, "val_interval": 1, "batch_size": 4}),
    "semsim_minus 160": (["semsim_minus"], {"spatial_size": 160, "epochs": 1, "val_interval": 1}),
    "volumes 64 x 64 x 32": (["volumes"], {"epochs": 2, "val_interval": 2}),
    "volumes 32 x 32 x 32, unimatch": (["volumes", "unimatch"], {"spatial_size": 32, "epochs": 4, "val_interval": 4}),
}


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
            files, threads = ["train", *overlays], torch.get_num_threads()
            given = {**options, "dataset_dir": source, "output_dir": folder / name.replace(" ", "_")}
            resources(command("planning", files, **given, plan_file=plan_file), threads)
            plan = json.loads(plan_file.read_text())
            used = resources(command("training", files, **given), threads)
            seconds, memory = used["seconds"], used["peak_bytes"]
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
    write_json(output, result)
    table(output)


def table(path: str) -> None:
    """Print a result as Markdown."""
    result = json.loads(Path(path).read_text())
    rows = []
    for name, entry in result["configurations"].items():
        plan, truth, ratio = (entry[key] for key in ("plan", "truth", "ratio"))
        cells = [name, f"{plan['total_seconds']:.0f}", f"{truth['total_seconds']:.0f}", f"{ratio['total_seconds']:.2f}"]
        cells += [f"{part['peak_bytes'] / 2**20:.0f}" for part in (plan, truth)]
        wait = plan["loading_seconds"] / plan["step_seconds"]
        rows.append([*cells, f"{ratio['peak_bytes']:.2f}", f"{wait:.1%}"])
    head = ["training", "planned s", "s", "ratio", "planned MiB", "MiB", "ratio", "waiting for data"]
    print("\n".join(markdown(head, rows)))


if __name__ == "__main__":
    import fire

    fire.Fire({"measure": measure, "table": table})
