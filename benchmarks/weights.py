"""Put the weights of a training of accuracy.py into the bundle, with what they scored.

    python benchmarks/weights.py publish --result benchmarks/results/accuracy/NAME.json --run benchmarks/runs/NAME \
        --keep_largest True
    python benchmarks/weights.py score --data DIR

``model_last.pt`` of the training, its last iteration, becomes ``bundle/models/model.pt``, with ``training.json`` beside
it, and ``benchmarks/results/weights.json`` names the result and the file's SHA-256. ``score`` evaluates the shipped
weights on the validation patients into ``benchmarks/results/weights_scores.json``: as the network predicts a slice, as
the mean over its flips, and with all but the largest component of each class dropped besides. The way that they predict
by default goes into ``eval_metrics`` of ``bundle/configs/metadata.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fire
from accuracy import make_datalist
from common import BUNDLE, RESULTS, git, versions, write_json
from scoring import METRICS, evaluate, ways

#: Ways of predicting: a slice as it is, over its flips, and the largest component of each class alone besides.
WAYS = {"plain": {"flip_tta": False, "keep_largest": False}, **ways(flip_tta=True)}


def metrics(scores: dict[str, Any]) -> dict[str, float]:
    """Scores of an evaluation by name, as they stand in the metadata; distances carry their unit in the name."""
    named, unit = {"mean": scores["mean"], **scores["classes"]}, scores["distance_unit"]
    units = {metric: "" if metric == "dice" else f"_{unit}" for metric in METRICS}
    return {
        f"validation_{name.replace(' ', '_')}_{metric}{units[metric]}": round(values[metric], 4)
        for name, values in named.items()
        for metric in METRICS
    }


def publish(result: str, run: str, bundle: str = str(BUNDLE), output: str = "", keep_largest: bool = False) -> None:
    """Copy weights and settings.

    Args:
        result: JSON of ``accuracy.py train``.
        run: folder of that training.
        bundle: where to.
        output: default ``benchmarks/results/weights.json``.
        keep_largest: whether prediction keeps the largest piece of each class alone where nobody says otherwise.
    """
    record, folder, target = json.loads(Path(result).read_text()), Path(run), Path(bundle)
    if folder.name != record["name"]:
        raise SystemExit(f"{folder}: expected the training of {record['name']}; give --run the folder of that name.")
    models = target / "models"
    part = models / "model.pt.part"
    shutil.copyfile(folder / "model_last.pt", part)
    part.replace(models / "model.pt")
    settings = json.loads((folder / "training.json").read_text()) | {"keep_largest": keep_largest}
    settings.pop("recipe", None)  # of a resume
    (models / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
    facts = {
        "result": Path(result).name,
        "which": "last iteration",
        "sha256": hashlib.sha256((models / "model.pt").read_bytes()).hexdigest(),
    }
    write_json(output or RESULTS / "weights.json", facts)


def score(data: str, cases: int = 7, splits: str = "", output: str = "", metadata: str = "") -> None:
    """Evaluate the shipped weights on the validation patients in every way of ``WAYS``, in float32 on every machine.

    Args:
        data: folder with ``images`` and ``labels``, as for ``accuracy.py train``.
        cases: labelled patients of the protocol; the validation patients are the same for all.
        splits: JSON of patients; default ``configs/acdc_splits.json``.
        output: default ``benchmarks/results/weights_scores.json``.
        metadata: whose ``eval_metrics`` to replace; default ``bundle/configs/metadata.json``.
    """
    record: dict[str, Any] = {
        "command": "python benchmarks/weights.py score --data DIR",
        "commit": git("rev-parse", "HEAD"),
        "weights_sha256": hashlib.sha256((BUNDLE / "models" / "model.pt").read_bytes()).hexdigest(),
        "versions": versions(),
    }
    model = BUNDLE / "models" / "model.pt"
    settings = json.loads((BUNDLE / "models" / "training.json").read_text())
    said = {name: settings[name] for name in WAYS["plain"]}
    default = next((way for way, options in WAYS.items() if options == said), None)
    if default is None:
        raise SystemExit(f"models/training.json: expected one of {list(WAYS.values())}, received {said}.")
    with tempfile.TemporaryDirectory() as folder:
        make_datalist(data, cases, f"{folder}/datalist.json", splits)
        for way, options in WAYS.items():
            evaluate(model, f"{folder}/datalist.json", data, folder, amp=False, **options)
            scores = json.loads(Path(folder, "scores.json").read_text())
            kept = ("cases", "list", "mean", "classes", "distance_unit", "empty_rule")
            record[way] = {key: scores[key] for key in kept}
    write_json(output or RESULTS / "weights_scores.json", record)
    path = Path(metadata) if metadata else BUNDLE / "configs" / "metadata.json"
    values = json.dumps(metrics(record[default]), indent=8).replace("}", "    }")
    text = path.read_text()
    path.write_text(re.sub(r'"eval_metrics": \{.*?\}', lambda _: f'"eval_metrics": {values}', text, flags=re.S))


if __name__ == "__main__":
    fire.Fire({"publish": publish, "score": score})
