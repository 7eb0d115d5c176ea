"""Label maps of other programs beside the methods of accuracy.py: scored alike, on the same patients.

    python benchmarks/label_maps.py score --predictions FOLDER --labels DIR/labels --facts facts.json --output RESULT
    python benchmarks/label_maps.py report

``FOLDER`` holds a ``CASE.nii.gz`` for each validation image, class indices on its grid. A result holds the facts that
it is given (program, commands, versions) and Dice, 95HD and ASSD of every case and class, as predicted and with the
largest component of each class.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import common
import comparison
import numpy as np
import pandas as pd
import torch
from common import ROOT, markdown, patient_of
from monai.transforms import KeepLargestConnectedComponent, LoadImage
from nibabel.affines import voxel_sizes
from scripts.evaluation.metrics import METRICS, score_case, summarize

CLASSES = ["background", "right ventricle", "myocardium", "left ventricle"]
PAGE = ROOT / "benchmarks" / "NNUNET.md"
RESULTS = common.RESULTS / "label_maps"
#: how a result of this file is scored, and the evaluation of accuracy.py that is alike
WAYS = {"as_predicted": "flips", "largest_component": "post_processed"}
#: facts that a result has to state
FACTS = ("program", "cases", "steps", "minutes", "commands", "versions", "machine", "seed")


def score_files(files: Mapping[str, tuple[Path, Path]], keep_largest: bool = False) -> dict[str, Any]:
    """Dice, 95HD and ASSD of label maps, by class and case, and their means.

    Args:
        files: label and prediction of each case, class indices on one grid.
        keep_largest: score the largest component of each class alone.

    Raises:
        SystemExit: a prediction of another grid, or with other values.
    """
    load, rows = LoadImage(image_only=True), []
    largest = KeepLargestConnectedComponent(range(1, len(CLASSES)))
    for case, (label, prediction) in files.items():
        truth, said = load(label), load(prediction).as_tensor().squeeze()
        low, high = int(said.min()), int(said.max())
        if said.shape != truth.shape or low < 0 or high >= len(CLASSES):
            raise SystemExit(
                f"{prediction}: expected values 0 to {len(CLASSES) - 1} on a grid of {tuple(truth.shape)}, received "
                f"{low} to {high} on {tuple(said.shape)}."
            )
        if keep_largest:
            said = torch.as_tensor(largest(said[None])[0])
        spacing = voxel_sizes(np.asarray(truth.affine)).tolist()
        scores = score_case(said, truth.as_tensor(), num_classes=len(CLASSES), spacing=spacing)
        unit = "voxel" if np.allclose(spacing, 1.0) else "mm"
        for c, name in enumerate(CLASSES[1:]):
            rows.append({"case": case, "class": name, **{m: scores[m][c] for m in METRICS}, "unit": unit})
    frame = pd.DataFrame(rows)
    return summarize(frame) | {"per_case": frame.round(5).to_dict("records")}


def score(predictions: str, labels: str, facts: str, output: str, splits: str = "") -> None:
    """Score the predictions of a program on the validation patients; no result is overwritten.

    Args:
        predictions: folder of ``CASE.nii.gz``.
        labels: folder of the labels, of the same names; those of other patients are left out.
        facts: JSON with program, cases (labelled patients), steps, minutes, commands, versions, machine, seed.
        output: JSON to write.
        splits: JSON of patients; default ``configs/acdc_splits.json``.
    """
    if Path(output).exists():
        raise SystemExit(f"{output} exists; give another name or remove it first.")
    record = json.loads(Path(facts).read_text())
    if lacking := [name for name in FACTS if name not in record]:
        raise SystemExit(f"{facts}: expected {', '.join(FACTS)}; {', '.join(lacking)} is missing.")
    patients = common.read_splits(splits)["validation"]
    files = {
        label.name.removesuffix(".nii.gz"): (label, Path(predictions, label.name))
        for label in sorted(Path(labels).glob("*.nii.gz"))
        if patient_of(label.name) in patients
    }
    if missing := {*patients} - {patient_of(case) for case in files}:
        raise SystemExit(f"{labels}: expected labels of {len(patients)} patients, {min(missing)} for one is missing.")
    for _, path in files.values():
        if not path.is_file():
            raise SystemExit(f"{path}: expected a prediction of every validation image, this one is missing.")
    for way in WAYS:
        record[way] = score_files(files, keep_largest=way == "largest_component")
    common.write_json(output, record)


def _by_patient(record: Mapping[str, Any], way: str) -> dict[str, float]:
    frame = pd.DataFrame(record[way]["per_case"])
    return frame.groupby(frame["case"].map(patient_of))["dice"].mean().to_dict()


def lines(records: Iterable[Mapping[str, Any]], ours: Path = comparison.RESULTS) -> list[str]:
    """Rows of other programs, each followed by ours of as many labelled patients, less it, patient by patient."""
    head = ["labelled", "program", "steps", "minutes on one core"]
    head += ["Dice / 95HD (voxel)", "less the other", "largest component", "less the other"]
    rows = []
    for other in sorted(records, key=lambda r: r["cases"]):
        rows.append([str(other["cases"]), other["program"], f"{other['steps']:,}", f"{other['minutes']:.0f}"])
        for way in WAYS:
            mean = other[way]["mean"]
            rows[-1] += [f"{mean['dice']:.3f} / {mean['hd95']:.1f}", ""]
        for method, title in comparison.TITLES.items():
            record = json.loads((ours / f"acdc{other['cases']}_224_3000_{method}_seed0.json").read_text())
            gpu = record["machine"].startswith("NVIDIA")
            minutes = "(GPU)" if gpu else f"{record['training_seconds'] / 60:.0f}"
            rows.append([str(other["cases"]), title, f"{record['steps']:,}", minutes])
            for way, alike in WAYS.items():
                theirs, found = _by_patient(other, way), comparison.per_patient(record, alike)
                mean = record[alike]["mean"]
                difference = np.array([found[patient] - theirs[patient] for patient in sorted(theirs)])
                rows[-1] += [f"{mean['dice']:.3f} / {mean['hd95']:.1f}", common.shown(common.interval(difference))]
    return markdown(head, rows)


def fill(text: str, results: Path = RESULTS) -> str:
    """A page with the tables between ``<!-- table PATTERN -->`` and ``<!-- end -->`` made anew."""

    def part(_: str, pattern: str, __: str) -> str:
        return "\n".join(lines(json.loads(path.read_text()) for path in results.glob(f"{pattern}.json")))

    return common.fill(text, part)


def report() -> None:
    """Write the table of ``benchmarks/NNUNET.md`` from results."""
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == "__main__":
    import fire

    fire.Fire({"score": score, "report": report})
