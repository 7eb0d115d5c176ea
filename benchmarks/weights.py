"""Put the weights of a training of accuracy.py into the bundle, with what they scored.

    python benchmarks/weights.py publish --result benchmarks/results/accuracy/NAME.json --run benchmarks/runs/NAME \
        --keep_largest True
    python benchmarks/weights.py score --data DIR

``model_last.pt`` of the training, its last iteration, becomes ``bundle/models/model.pt``, with ``training.json`` beside
it, and ``benchmarks/results/weights.json`` names the result and the file's SHA-256. ``score`` evaluates the shipped
weights on the validation patients, with and without all but the largest piece of each class dropped, into
``benchmarks/results/weights_keep_largest.json``; those of the way that they predict by default go into ``eval_metrics``
of ``bundle/configs/metadata.json``.
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
from accuracy import METRICS, make_datalist
from common import BUNDLE, RESULTS, command, git, run, versions, write_json


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
    (models / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
    facts = {
        "result": Path(result).name,
        "which": "last iteration",
        "sha256": hashlib.sha256((models / "model.pt").read_bytes()).hexdigest(),
    }
    write_json(output or RESULTS / "weights.json", facts)


def score(data: str, cases: int = 7, splits: str = "", output: str = "", metadata: str = "") -> None:
    """Evaluate the shipped weights on the validation patients, with and without ``keep_largest``; write both down.

    Args:
        data: folder with ``images`` and ``labels``, as for ``accuracy.py train``.
        cases: labelled patients of the protocol; the validation patients are the same for all.
        splits: JSON of patients; default ``configs/acdc_splits.json``.
        output: default ``benchmarks/results/weights_keep_largest.json``.
        metadata: whose ``eval_metrics`` to replace; default ``bundle/configs/metadata.json``.
    """
    record: dict[str, Any] = {
        "command": "python benchmarks/weights.py score --data DIR",
        "commit": git("rev-parse", "HEAD"),
        "weights_sha256": hashlib.sha256((BUNDLE / "models" / "model.pt").read_bytes()).hexdigest(),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory() as folder:
        make_datalist(data, cases, f"{folder}/datalist.json", splits)
        for keep in (False, True):
            line = command(
                "", ["train", "evaluate"], dataset_dir=Path(data).resolve(), datalist=f"{folder}/datalist.json",
                output_dir=folder, ckpt_path="models/model.pt", keep_largest=keep,
            )  # fmt: skip
            run(line, Path(folder, "output.log"))
            scores = json.loads(Path(folder, "scores.json").read_text())
            kept = ("cases", "list", "mean", "classes", "distance_unit", "empty_rule")
            record[f"keep_largest_{str(keep).lower()}"] = {key: scores[key] for key in kept}
    write_json(output or RESULTS / "weights_keep_largest.json", record)
    keep = json.loads((BUNDLE / "models" / "training.json").read_text())["keep_largest"]
    path = Path(metadata) if metadata else BUNDLE / "configs" / "metadata.json"
    values = json.dumps(metrics(record[f"keep_largest_{str(keep).lower()}"]), indent=8).replace("}", "    }")
    text = path.read_text()
    path.write_text(re.sub(r'"eval_metrics": \{.*?\}', lambda _: f'"eval_metrics": {values}', text, flags=re.S))


if __name__ == "__main__":
    fire.Fire({"publish": publish, "score": score})
