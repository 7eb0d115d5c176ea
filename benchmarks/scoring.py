"""What a finished training of ``accuracy.py`` gives: its scores, its predictions, the body of its result."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import ROOT, read_rows, versions, write_json

RESULTS = common.RESULTS / "accuracy"
METRICS = ("dice", "hd95", "assd")
EVALUATIONS = ("last", "mean_of_last_five", "best_on_validation")


def ways(flip_tta: bool | Sequence[int]) -> dict[str, dict[str, Any]]:
    """How the last iteration is scored besides: over the flips that it knows, and with the largest component."""
    over = {"flip_tta": flip_tta, "keep_largest": False}
    return ({"flips": over} if flip_tta else {}) | {"post_processed": {**over, "keep_largest": True}}


def post_processed(folder: Path, data: str, threads: int = 1) -> dict[str, Any]:
    """Scores of the last iteration in other :func:`ways`."""
    flip_tta = json.loads((folder / "training.json").read_text())["flip_tta"]
    found = {}
    for name, options in ways(flip_tta).items():
        with tempfile.TemporaryDirectory() as output:
            evaluate(folder / "model_last.pt", folder / "datalist.json", data, output, threads=threads, **options)
            found[name] = {**options, **scores_of([Path(output)])}
    return found


def evaluate(weights: Path, datalist: str | Path, data: str, output: str, threads: int = 1, **options: Any) -> None:
    """Score weights on the validation patients into ``scores.csv`` and ``scores.json`` of a folder."""
    line = common.command(
        "", ["train", "evaluate"], dataset_dir=Path(data).resolve(), datalist=datalist, output_dir=output,
        ckpt_path=weights.resolve(), evaluate_list="validation", show_progress=False, **options,
    )  # fmt: skip
    common.run(line, Path(output, "output.log"), threads)


def add_post_processed(run: str, data: str, results: str = "", threads: int = 1) -> None:
    """Add the post-processed scores to a result that was written without them.

    Args:
        run: folder of the training, named as its result.
        data: as for ``train``.
        results: folder of the result; default ``benchmarks/results/accuracy``.
        threads: CPU threads.
    """
    path = (Path(results) if results else RESULTS) / f"{Path(run).name}.json"
    record = json.loads(path.read_text())
    write_json(path, record | post_processed(Path(run).resolve(), data, threads))


def predict(run: str, images: str, output: str = "", threads: int = 1) -> None:
    """Predict images with the last weights of a finished training, to be scored elsewhere; nothing is overwritten.

    Args:
        run: folder of the training, named as its result.
        images: folder of the images.
        output: ``.npz`` to write, class indices on the grid of each image under its name; default
            ``benchmarks/predictions/NAME.npz``.
        threads: CPU threads.
    """
    import nibabel as nib

    weights = (Path(run) / "model_last.pt").resolve()
    target = Path(output) if output else ROOT / "benchmarks" / "predictions" / f"{Path(run).name}.npz"
    if target.exists():
        print(f"{target} exists; nothing to do.")
        return
    with tempfile.TemporaryDirectory() as folder:
        line = common.command(
            "", ["inference"], dataset_dir=Path(images).resolve(), output_dir=folder, ckpt_path=weights,
            keep_largest=False, flip_tta=False, label_values="$None",
        )  # fmt: skip
        common.run(line, Path(folder, "output.log"), threads)
        files = sorted(Path(folder).glob("*_seg.nii.gz"))
        arrays = {f.name.removesuffix("_seg.nii.gz"): np.asarray(nib.load(f).dataobj, dtype=np.uint8) for f in files}
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, **arrays)  # type: ignore[arg-type]
    print(f"{target}: {len(arrays)} images predicted with {weights}.")


def _number(text: str) -> float | None:
    return round(float(text), 5) if text else None


def scores_of(folders: Sequence[Path]) -> dict[str, Any]:
    """Means over evaluations of the scores of every case and class."""
    tables = [read_rows(folder / "scores.csv") for folder in folders]
    names = list(dict.fromkeys(row["class"] for row in tables[0]))
    cases: dict[str, dict[str, list[float | None]]] = {}
    for number, row in enumerate(tables[0]):
        for metric in METRICS:
            values = [v for table in tables if (v := _number(table[number][metric])) is not None]
            mean = round(float(np.mean(values)), 5) if values else None
            cases.setdefault(row["case"], {}).setdefault(metric, []).append(mean)
    per_class = {
        name: {m: mean_known(case[m][c] for case in cases.values()) for m in METRICS} for c, name in enumerate(names)
    }
    return {
        "mean": {m: mean_known(row[m] for row in per_class.values()) for m in METRICS},
        "classes": per_class,
        "per_case": cases,
        "distance_unit": tables[0][0]["unit"],
    }


def _of_epochs(folders: Sequence[Path]) -> dict[str, Any]:
    """Those of validations during the training, ``epoch_N``."""
    return {"epochs": [int(folder.name.split("_")[1]) for folder in folders], **scores_of(folders)}


def mean_known(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return round(float(np.mean(known)), 5) if known else float("nan")


def collect(folder: Path) -> dict[str, Any]:
    """What a finished training left, as the body of its result."""
    settings = json.loads((folder / "training.json").read_text())
    log = read_rows(folder / "training_log.csv")
    curve = read_rows(folder / "validation_log.csv")
    evaluated = sorted((folder / "validations").iterdir(), key=lambda p: int(p.name.split("_")[1]))
    if int(curve[-1]["epoch"]) != int(log[-1]["epoch"]):
        raise SystemExit(f"{folder}: the last epoch, {log[-1]['epoch']}, is not among the validated ones.")
    best = max(curve, key=lambda row: float(row["mean_dice"]))["epoch"]
    starts = json.loads((folder / "starts.json").read_text())
    recipe = ("early_sizes", "features", "copy_paste", "learning_rate", "batch_size")
    record: dict[str, Any] = {
        "recipe": {key: settings[key] for key in recipe},
        "labelled_cases": settings["labeled_cases"],
        "class_names": settings["class_names"],
        "steps": int(log[-1]["iteration"]),
        "steps_per_epoch": settings["steps_per_epoch"],
        "commit": sorted({s["commit"] for s in starts}),
        "changed_since_commit": any(s["changed"] for s in starts),
        "versions": versions("pytorch-ignite"),
        "machine": "; ".join(sorted({s["machine"] for s in starts})),
        "precision": "; ".join(sorted({*re.findall(r"Computing in (\w+)", (folder / "output.log").read_text())})),
        "training_seconds": round(sum(float(row["seconds"]) for row in log), 1),
        "last": _of_epochs(evaluated[-1:]),
        "mean_of_last_five": _of_epochs(evaluated[-5:]),
        "best_on_validation": _of_epochs([folder / "validations" / f"epoch_{best}"]),
    }
    shown = [k for k in log[-1] if k.startswith(("loss", "mask", "agreement", "pseudo"))]
    record["training_curve"] = {k: [_number(row[k]) for row in log] for k in ("iteration", *shown)}
    hidden = read_rows(folder / "pseudo_labels.csv")
    record["pseudo_labels"] = {k: [_number(row[k]) for row in hidden] for k in hidden[0]}
    record["validation_curve"] = {k: [_number(row[k]) for row in curve] for k in curve[0]}
    return record
