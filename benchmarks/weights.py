"""Put the weights of a training of accuracy.py into the bundle, with what they scored.

    python benchmarks/weights.py publish --result benchmarks/results/accuracy/NAME.json --run benchmarks/runs/NAME

``model_last.pt`` of the training, its last iteration, becomes ``bundle/models/model.pt``, with ``training.json`` beside
it. Its scores on the validation patients go into ``eval_metrics`` of ``bundle/configs/metadata.json``, and
``benchmarks/results/weights.json`` names the result and the file's SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import fire

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


if __name__ == "__main__":
    fire.Fire({"publish": publish})
