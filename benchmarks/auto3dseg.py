"""What unlabelled scans add to the Auto3DSeg template on ACDC: AutoRunner with and without their list.

    python benchmarks/auto3dseg.py run --data DIR --work WORK --output benchmarks/results/auto3dseg_acdc.json
    python benchmarks/auto3dseg.py table benchmarks/results/auto3dseg_acdc.json
    python benchmarks/auto3dseg.py report

Two folds of the 7 labelled patients, the other 63 training patients unlabelled; the ensemble of both folds is scored on
the 10 validation patients, which AutoRunner knows as ``testing`` and never sees the labels of. Without the list the
training is given as many steps as with it. ``DIR`` as for ``accuracy.py``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch
from common import ROOT, markdown, note_start, patient_of
from label_maps import CLASSES, score_files
from monai.apps.auto3dseg import AutoRunner
from monai.transforms import LoadImage

VARIANTS = ("with_unlabeled", "without")


def datalist(data: Path, unlabeled: bool, split_file: str = "") -> dict[str, list[dict[str, Any]]]:
    """Auto3DSeg datalist of the 7-case protocol; the two frames of a patient are in one fold."""
    splits = common.read_splits(split_file)
    labelled = max(splits["labelled"].values(), key=len)
    lists = common.protocol_lists(data, splits, labelled)
    for item in lists["training"]:
        item["fold"] = labelled.index(patient_of(item["image"])) % 2
    lists["testing"] = [{"image": item["image"]} for item in lists.pop("validation")]
    return lists if unlabeled else {k: v for k, v in lists.items() if k != "unlabeled"}


def run(
    data: str, work: str, output: str, epochs: int = 7, spatial_size: int = 96, seed: int = 0, splits: str = ""
) -> None:
    """Train, predict and score both variants; goes on where an earlier call stopped.

    Args:
        data: folder with ``images`` and ``labels``.
        work: folder for AutoRunner's.
        output: JSON to write.
        epochs: passes over the unlabelled slices; the variant without them takes as many steps, fold by fold.
        spatial_size: pixels a side.
        seed: of initialisation and batches.
        splits: JSON of patients; default ``configs/acdc_splits.json``.
    """
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # AutoRunner calls `python`
    record: dict[str, Any] = {
        "command": f"python benchmarks/auto3dseg.py run --data DIR --work WORK --output {Path(output).name} "
        f"--epochs {epochs} --spatial_size {spatial_size} --seed {seed}" + (" --splits FILE" if splits else ""),
        "seed": seed,
        "versions": common.versions(),
        "threads": torch.get_num_threads(),
    }
    steps: list[int] = []
    for variant in VARIANTS:
        folder = Path(work).resolve() / variant
        folder.mkdir(parents=True, exist_ok=True)
        lists = datalist(Path(data), variant == "with_unlabeled", splits)
        (folder / "a3d.json").write_text(json.dumps(lists))
        given = {"modality": "mri", "dataroot": str(Path(data).resolve()), "datalist": str(folder / "a3d.json")}
        runner = AutoRunner(str(folder / "work"), {**given, "class_names": CLASSES}, algos="semsim",
                            templates_path_or_url=str(ROOT / "algo_template"))  # fmt: skip
        params = {"spatial_size": spatial_size, "seed": seed, "epochs": epochs, "val_interval": max(1, epochs // 10)}
        if steps:  # passes over the labelled slices, the more there are the shorter a pass
            per_epoch = slices_of_fold(Path(data), lists) // 8
            params["epochs"] = round(steps[0] / per_epoch)
            params["val_interval"] = max(1, params["epochs"] // 10)
        runner.set_training_params(params)
        note_start(folder)
        runner.run()
        folds = [json.loads(p.read_text()) for p in sorted(folder.glob("work/semsim_*/model_fold*/training.json"))]
        steps = [f["epochs"] * f["steps_per_epoch"] for f in folds]
        record[variant] = {
            "commit": sorted({s["commit"] for s in json.loads((folder / "starts.json").read_text())}),
            "seconds": round(sum(pd.read_csv(p)["seconds"].sum() for p in folder.rglob("training_log.csv"))),
            "steps": steps,
            "fusion": [f["fusion"] for f in folds],
            "labelled_cases": [f["labeled_cases"] for f in folds],
            "unlabeled_images": [f["unlabeled_images"] for f in folds],
            "validation_curves": validation_curves(folder),
            **score(Path(data), folder / "work" / "ensemble_output", lists["testing"]),
        }
    common.write_json(output, record)
    table(output)


def validation_curves(folder: Path) -> list[dict[str, list[float]]]:
    """Epochs and mean Dice of every fold's validations, on the cases of the fold."""
    logs = [pd.read_csv(p) for p in sorted(folder.glob("work/semsim_*/model_fold*/validation_log.csv"))]
    return [{"epoch": log["epoch"].tolist(), "mean_dice": log["mean_dice"].round(4).tolist()} for log in logs]


def slices_of_fold(data: Path, lists: dict[str, list[dict[str, Any]]]) -> float:
    """Labelled slices that a fold trains on, mean over the folds."""
    depth = [min(LoadImage(image_only=True)(data / i["image"]).shape) for i in lists["training"]]
    folds = {item["fold"] for item in lists["training"]}
    return float(np.mean([sum(d for d, i in zip(depth, lists["training"]) if i["fold"] != f) for f in folds]))


def score(data: Path, predictions: Path, testing: list[dict[str, Any]]) -> dict[str, Any]:
    """Dice, 95HD and ASSD of the ensemble, by class and case."""
    files = {}
    for item in testing:
        name = Path(item["image"]).name
        case = name.split(".")[0]
        (file,) = predictions.rglob(f"{case}_*.nii.gz")
        files[case] = data / "labels" / name, file
    return score_files(files)


def table_lines(record: dict[str, Any]) -> list[str]:
    """A result as a Markdown table, with the paired difference over patients."""
    head = ["", "unlabelled images", "steps of each fold", "minutes", *CLASSES[1:], "mean Dice", "95HD (voxel)"]
    rows, patients = [], {}
    for variant in VARIANTS:
        r = record[variant]
        cells = [variant.replace("_", " "), str(r["unlabeled_images"][0]), ", ".join(map(str, r["steps"]))]
        cells += [f"{r['seconds'] / 60:.0f}", *(f"{r['classes'][c]['dice']:.3f}" for c in CLASSES[1:])]
        rows.append([*cells, f"{r['mean']['dice']:.3f}", f"{r['mean']['hd95']:.1f}"])
        frame = pd.DataFrame(r["per_case"])
        patients[variant] = frame.groupby(frame["case"].map(patient_of))["dice"].mean()
    difference = (patients["with_unlabeled"] - patients["without"]).to_numpy()
    d = common.interval(difference)
    text = f"Difference in mean Dice {d['mean']:+.3f}, 95 % interval over {len(difference)} patients "
    text += f"{d['low']:+.3f} to {d['high']:+.3f}: {d['verdict'].replace('tie', 'a tie')}."
    return [*markdown(head, rows), "", text]


def table(result: str) -> None:
    """Print a result as a Markdown table."""
    print("\n".join(table_lines(json.loads(Path(result).read_text()))))


def fill(text: str, results: Path = common.RESULTS) -> str:
    """A page with the tables between ``<!-- table NAME -->`` and ``<!-- end -->`` made anew."""
    return common.fill(
        text, lambda _, name, __: "\n".join(table_lines(json.loads((results / f"{name}.json").read_text())))
    )


def report() -> None:
    """Write the tables of ``benchmarks/AUTO3DSEG.md`` from results."""
    page = ROOT / "benchmarks" / "AUTO3DSEG.md"
    page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    import fire

    fire.Fire({"run": run, "table": table, "report": report})
