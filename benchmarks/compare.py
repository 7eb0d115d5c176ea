"""Train, evaluate and record one method: the command behind every published figure.

    python benchmarks/compare.py train --method semsim_minus --seed 0 --overlay bundle/configs/demo.yaml \
        --output_dir /tmp/run --result benchmarks/results/phantom_semsim_minus_seed0.json
    python benchmarks/compare.py table benchmarks/results/phantom_*.json

A result holds the Dice, 95HD and ASSD of every class and case for the last iteration and for the best on validation,
the labelled cases, the command, the commit, the versions, the wall time and the validation curve. ``train`` goes on
where an interrupted run of the same ``output_dir`` stopped.
"""

from __future__ import annotations

import csv
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
#: Overlay of train.yaml for each method; SemSim is train.yaml itself.
METHODS = {
    "labeled_only": ["labeled_only"],
    "fixmatch": ["fixmatch"],
    "unimatch": ["unimatch"],
    "semsim_minus": ["semsim_minus"],
    "semsim_light": ["semsim_light"],
    "semsim": [],
}


def _bundle(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "monai.bundle", "run", *args], cwd=BUNDLE, check=True)


def _data(dataset_dir: str | None, datalist: str | None) -> list[str]:
    given = {"--dataset_dir": dataset_dir, "--datalist": datalist}
    return [part for key, value in given.items() if value for part in (key, str(Path(value).resolve()))]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(
    method: str,
    output_dir: str,
    result: str,
    overlay: str | None = None,
    seed: int = 0,
    epochs: int | None = None,
    val_interval: int | None = None,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    evaluate_list: str | None = None,
) -> None:
    """Train one method and record it.

    Args:
        method: ``labeled_only``, ``fixmatch``, ``semsim_minus`` or ``semsim``.
        output_dir: folder of the training.
        result: JSON file to write.
        overlay: a further YAML with size, epochs and so on, below the method's own.
        seed: seed of the training.
        epochs: in place of the overlay's.
        val_interval: in place of the overlay's.
        dataset_dir: data; default: the phantom.
        datalist: datalist; default: that of ``dataset_dir``.
        evaluate_list: list to score; default: ``testing`` if labelled, else ``validation``.
    """
    files = ["configs/train.yaml", *([str(Path(overlay).resolve())] if overlay else [])]
    files += [f"configs/{name}.yaml" for name in METHODS[method]]
    args = [
        "training",
        "--config_file",
        str(files),
        "--output_dir",
        str(Path(output_dir).resolve()),
        "--seed",
        str(seed),
    ]
    args += _data(dataset_dir, datalist) + ["--resume", "auto"]
    args += [p for key, v in (("--epochs", epochs), ("--val_interval", val_interval)) if v for p in (key, str(v))]
    _bundle(*args)
    collect(output_dir, result, method, overlay, dataset_dir, datalist, evaluate_list)


def collect(
    output_dir: str,
    result: str,
    method: str,
    overlay: str | None = None,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    evaluate_list: str | None = None,
    commit: str | None = None,
) -> None:
    """Evaluate a finished training and write its JSON.

    Arguments as in ``train``; ``commit`` where the training ran on another one than is checked out.
    """
    if commit is not None and not isinstance(commit, str):
        raise SystemExit(f"commit was read as the number {commit}; quote it: --commit \"'725e994'\"")
    folder = Path(output_dir).resolve()
    settings = json.loads((folder / "training.json").read_text())
    files = "['configs/train.yaml','configs/evaluate.yaml']"
    scores = {}
    for which in ("last", "best"):
        if not (folder / f"model_{which}.pt").exists():
            continue
        out = folder / f"scores_{which}"
        chosen = ["--evaluate_list", evaluate_list] if evaluate_list else []
        _bundle("--config_file", files, *_data(dataset_dir, datalist), "--output_dir", str(out), *chosen,
                "--ckpt_path", str(folder / f"model_{which}.pt"))  # fmt: skip
        summary = json.loads((out / "scores.json").read_text())
        kept = {k: summary[k] for k in ("list", "cases", "distance_unit", "mean", "classes")}
        scores[which] = kept | {"per_case": _rows(out / "scores.csv")}
    log = _rows(folder / "training_log.csv")
    curve = _rows(folder / "validation_log.csv") if (folder / "validation_log.csv").exists() else []
    record: dict[str, Any] = {
        "method": method,
        "command": f"python benchmarks/compare.py train --method {method} --seed {settings['seed']}"
        f" --epochs {settings['epochs']}"
        + (f" --overlay {overlay}" if overlay else "")
        + (" --dataset_dir DIR --datalist FILE" if dataset_dir else ""),
        "settings": settings,
        "iterations": int(log[-1]["iteration"]),
        "training_seconds": round(sum(float(row["seconds"]) for row in log), 1),
        "last": scores["last"],
        "best_on_validation": scores.get("best"),
        "validation_curve": curve,
        "commit": commit or _git("rev-parse", "HEAD"),
        "versions": {name: version(name) for name in ("monai", "torch", "numpy", "pytorch-ignite")},
        "machine": f"{platform.machine()}, {settings.get('device', 'cpu')}, python {platform.python_version()}",
    }
    Path(result).parent.mkdir(parents=True, exist_ok=True)
    Path(result).write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {result}")


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def table(*results: str) -> None:
    """Print a Markdown table of results, a row each, and the mean over seeds of each method."""
    records = [json.loads(Path(path).read_text()) for path in results]
    names = list(records[0]["last"]["classes"])
    print(
        "| method | seed | iterations | minutes | " + " | ".join(names) + " | mean, last | mean, best on validation |"
    )
    print("|---" * (6 + len(names)) + "|")
    for r in sorted(records, key=lambda r: (r["method"], r["iterations"], r["settings"]["seed"])):
        last, best = r["last"], r["best_on_validation"]
        cells = [f"{last['classes'][name]['dice']:.3f}" for name in names] + [f"{last['mean']['dice']:.3f}"]
        cells.append(f"{best['mean']['dice']:.3f}" if best else "")
        minutes = f"{r['training_seconds'] / 60:.0f}"
        print(
            f"| {r['method']} | {r['settings']['seed']} | {r['iterations']} | {minutes} | " + " | ".join(cells) + " |"
        )
    groups: dict[tuple[str, int], list[float]] = {}
    for r in records:
        groups.setdefault((r["method"], r["iterations"]), []).append(r["last"]["mean"]["dice"])
    print()
    for (method, iterations), values in sorted(groups.items()):
        print(f"{method}, {iterations} iterations: mean Dice {np.mean(values):.3f} over {len(values)} seed(s), "
              f"{min(values):.3f} to {max(values):.3f}, last iteration")  # fmt: skip


if __name__ == "__main__":
    import fire

    fire.Fire({"train": train, "collect": collect, "table": table})
