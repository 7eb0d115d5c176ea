"""Put the weights of a training of accuracy.py into the bundle, with what they scored.

    python benchmarks/weights.py publish --result benchmarks/results/accuracy/NAME.json --run benchmarks/runs/NAME
    python benchmarks/weights.py score --data DIR

``model_last.pt`` of the training, its last iteration, becomes ``bundle/models/model.pt``, with ``training.json`` beside
it. Its scores on the validation patients go into ``eval_metrics`` of ``bundle/configs/metadata.json``, and
``benchmarks/results/weights.json`` names the result and the file's SHA-256. ``score`` evaluates the shipped weights on
the validation patients, as they predict and with the largest piece of each class kept, into
``benchmarks/results/weights_keep_largest.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fire
from accuracy import git, make_datalist

ROOT = Path(__file__).resolve().parents[1]


def metrics(record: dict[str, Any]) -> dict[str, float]:
    """Scores of the last iteration by name, as they stand in the metadata; distances carry their unit in the name."""
    last, unit = record["last"], record["last"]["distance_unit"]
    named = {"mean": last["mean"], **last["classes"]}
    return {
        f"validation_{name.replace(' ', '_')}_{metric}" + ("" if metric == "dice" else f"_{unit}"): round(value, 4)
        for name, scores in named.items()
        for metric, value in scores.items()
    }


def publish(result: str, run: str, bundle: str = str(ROOT / "bundle"), output: str = "") -> None:
    """Copy weights and settings, and write their scores down.

    Args:
        result: JSON of ``accuracy.py train``.
        run: folder of that training.
        bundle: where to.
        output: default ``benchmarks/results/weights.json``.
    """
    record, folder, target = json.loads(Path(result).read_text()), Path(run), Path(bundle)
    if folder.name != record["name"]:
        raise SystemExit(f"{folder}: expected the training of {record['name']}; give --run the folder of that name.")
    models = target / "models"
    for source, name in (("model_last.pt", "model.pt"), ("training.json", "training.json")):
        part = models / f"{name}.part"
        shutil.copyfile(folder / source, part)
        part.replace(models / name)
    path = target / "configs" / "metadata.json"
    text, values = path.read_text(), json.dumps(metrics(record), indent=8).replace("}", "    }")
    path.write_text(re.sub(r'"eval_metrics": \{.*?\}', lambda _: f'"eval_metrics": {values}', text, flags=re.S))
    facts = {
        "result": Path(result).name,
        "which": "last iteration",
        "sha256": hashlib.sha256((models / "model.pt").read_bytes()).hexdigest(),
    }
    (Path(output) if output else ROOT / "benchmarks" / "results" / "weights.json").write_text(
        json.dumps(facts, indent=1) + "\n"
    )


def score(data: str, cases: int = 7, splits: str = "", output: str = "") -> None:
    """Evaluate the shipped weights on the validation patients, with and without ``keep_largest``.

    Args:
        data: folder with ``images`` and ``labels``, as for ``accuracy.py train``.
        cases: labelled patients of the protocol; the validation patients are the same for all.
        splits: JSON of patients; default ``configs/acdc_splits.json``.
        output: default ``benchmarks/results/weights_keep_largest.json``.
    """
    bundle = ROOT / "bundle"
    record: dict[str, Any] = {
        "command": "python benchmarks/weights.py score --data DIR",
        "commit": git("rev-parse", "HEAD"),
        "weights_sha256": hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in ("monai", "torch", "numpy")},
    }
    with tempfile.TemporaryDirectory() as folder:
        make_datalist(data, cases, f"{folder}/datalist.json", splits)
        for keep in (False, True):
            args = ["run", "--config_file", "['configs/train.yaml','configs/evaluate.yaml']"]
            args += ["--dataset_dir", str(Path(data).resolve()), "--datalist", f"{folder}/datalist.json"]
            args += ["--output_dir", folder, "--ckpt_path", "models/model.pt", "--keep_largest", str(keep)]
            subprocess.run([sys.executable, "-m", "monai.bundle", *args], cwd=bundle, check=True)
            scores = json.loads(Path(folder, "scores.json").read_text())
            kept = ("cases", "list", "mean", "classes", "distance_unit", "empty_rule")
            record[f"keep_largest_{str(keep).lower()}"] = {key: scores[key] for key in kept}
    target = Path(output) if output else ROOT / "benchmarks" / "results" / "weights_keep_largest.json"
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire({"publish": publish, "score": score})
