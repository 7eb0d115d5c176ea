"""Scores of an evaluation, case by case."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import Workflow
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from nibabel.affines import voxel_sizes
from torch import Tensor

from ..dataio.files import case_names
from ..dataio.geometry import file_name, states_grid, unit_of
from ..dataio.storage import cell, json_text, write_text
from ..distributed import rank_and_size
from ..errors import InputError

logger = logging.getLogger("semsim")

METRICS = ("dice", "hd95", "assd")
EMPTY_RULE = (
    "A class that neither truth nor prediction shows is not counted. One that only one of them shows scores Dice 0 and "
    "the diagonal of the image as HD95 and ASSD."
)


#: Each from prediction and truth ``(1, 1, *spatial)`` and the voxel size.
_COMPUTE: dict[str, Callable[..., Tensor]] = {
    "dice": lambda p, t, _: compute_dice(p, t),
    "hd95": lambda p, t, s: compute_hausdorff_distance(p, t, include_background=True, percentile=95, spacing=s),
    "assd": lambda p, t, s: compute_average_surface_distance(p, t, include_background=True, symmetric=True, spacing=s),
}


def score_case(
    prediction: Tensor,
    truth: Tensor,
    *,
    num_classes: int,
    spacing: Sequence[float],
    metrics: Sequence[str] = METRICS,
) -> dict[str, list[float]]:
    """Dice, 95 % Hausdorff distance and average symmetric surface distance of each foreground class.

    Args:
        prediction: class indices, ``(*spatial)``.
        truth: class indices, ``(*spatial)``, on the same grid.
        num_classes: background included.
        spacing: voxel size along each axis; distances come in its unit.
        metrics: which of ``dice``, ``hd95``, ``assd``.

    Returns:
        for each metric one value a foreground class, by the rule ``EMPTY_RULE``; nan if not counted.

    Raises:
        ValueError: shapes that differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} should agree in shape.")
    diagonal = float(np.linalg.norm(np.array(truth.shape) * np.array(spacing)))
    scores: dict[str, list[float]] = {name: [] for name in metrics}
    for c in range(1, num_classes):
        p, t = (prediction == c)[None, None], (truth == c)[None, None]
        shown = bool(p.any()), bool(t.any())
        if all(shown):
            single = [axis for axis in range(truth.ndim) if truth.shape[axis] == 1]
            voxel = list(spacing)
            if truth.ndim == 3 and len(single) == 1:  # a volume of one slice is a plane
                p, t = p.squeeze(2 + single[0]), t.squeeze(2 + single[0])
                del voxel[single[0]]
            row = [float(_COMPUTE[name](p, t, voxel)) for name in metrics]
        else:
            one_sided = {"dice": 0.0, "hd95": diagonal, "assd": diagonal}
            row = [one_sided[name] if any(shown) else float("nan") for name in metrics]
        for name, value in zip(metrics, row):
            scores[name].append(value)
    return scores


class ScoreCases:
    """Score every case of an evaluation on its own grid and write ``scores.csv`` and ``scores.json``.

    Several processes divide the cases among them, and the first process writes the scores of all.

    Expects decollated ``pred`` and ``label`` as class indices ``(1, *spatial)`` on the grid of the image file.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        *,
        metrics: Sequence[str] = METRICS,
        facts: Mapping[str, Any] | None = None,
        by_epoch: bool = False,
    ) -> None:
        """
        Args:
            output_dir: folder of the two files.
            class_names: names of the classes, background first.
            metrics: which of ``dice``, ``hd95``, ``assd``.
            facts: what else to keep beside the scores: weights, list, seed.
            by_epoch: write to ``output_dir/epoch_N`` instead, for validations of a training.

        Raises:
            InputError: unknown metric, or no list.
        """
        if isinstance(metrics, str) or not metrics or not set(metrics) <= set(METRICS):
            raise InputError(f"metrics: expected a list of some of {', '.join(METRICS)}, received {metrics!r}.")
        self.metrics = tuple(metrics)
        self.output_dir, self.names, self.facts = Path(output_dir), list(class_names), dict(facts or {})
        self.by_epoch = by_epoch
        #: rows of each image file
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def attach(self, engine: Workflow) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _add(self, engine: Workflow) -> None:
        batch = engine.state.batch if isinstance(engine.state.batch, list) else [{}] * len(engine.state.output)
        for source, output in zip(batch, engine.state.output):
            prediction, truth = output["pred"][0].cpu(), output["label"][0].cpu()
            label = output["label"]
            affine = label.affine.cpu().numpy() if isinstance(label, MetaTensor) else np.eye(4)
            spacing = voxel_sizes(affine)[: truth.ndim].tolist()
            scores = score_case(
                torch.as_tensor(prediction),
                torch.as_tensor(truth),
                num_classes=len(self.names),
                spacing=spacing,
                metrics=self.metrics,
            )
            # voxels that all measure exactly one are of 1 mm in a file that states its place, else they have no size
            meta = getattr(output["image"], "meta", {})
            sized = not np.allclose(spacing, 1.0, atol=1e-6) or states_grid(affine, meta)
            unit = unit_of(meta) if sized else "voxel"
            file = file_name(output["image"])
            for c, name in enumerate(self.names[1:]):
                row: dict[str, Any] = {"case": str(source.get("case") or ""), "class": name}
                row |= {metric: scores[metric][c] for metric in self.metrics}
                row |= {"unit": unit, "spacing": "x".join(f"{s:.4g}" for s in spacing)}
                self.rows.setdefault(file, []).append(row)

    def _of_all_processes(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of every image, in the order of the list, whose items the processes have taken in turns."""
        _, size = rank_and_size()
        if size == 1:
            return self.rows
        shares: list[Any] = [None] * size
        dist.all_gather_object(shares, list(self.rows.items()))
        return dict(entry for turn in zip_longest(*shares) for entry in turn if entry is not None)

    def _write(self, engine: Workflow) -> None:
        rows = self._of_all_processes()
        if rank_and_size()[0] > 0:
            return
        for name, of_file in zip(case_names(list(rows)), rows.values()):
            for row in of_file:  # without a datalist the files alone say which case it is
                row["case"] = row["case"] or name
        folder = self.output_dir / f"epoch_{engine.state.epoch}" if self.by_epoch else self.output_dir
        table = pd.DataFrame([row for case in rows.values() for row in case])
        texts = {name: [cell(str(text)) for text in table[name]] for name in ("case", "class")}
        write_text(folder / "scores.csv", table.round(5).assign(**texts).to_csv(index=False))
        summary = summarize(table) | {"empty_rule": EMPTY_RULE} | self.facts
        write_text(folder / "scores.json", json_text(summary))
        if not any(row["counted"] for row in summary["classes"].values()):
            logger.warning("Nothing to score: neither truth nor prediction of any case shows a class.")
        for name, row in summary["classes"].items():
            logger.info(f"{name}: {_shown(row)}")
        logger.info(
            f"mean of classes, {summary['cases']} cases: {_shown(summary['mean'], summary['distance_unit'])}  -> "
            f"{folder / 'scores.csv'}, scores.json"
        )


def _shown(values: Mapping[str, Any], unit: str = "") -> str:
    """``Dice 0.8123  HD95 3.20 mm``."""
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    parts = [f"Dice {values['dice']:.4f}"] if "dice" in values else []
    parts += [f"{m.upper()} {values[m]:.2f} {unit}".rstrip() for m in ("hd95", "assd") if m in values]
    return "  ".join(parts) or "not counted"


def summarize(table: pd.DataFrame) -> dict[str, Any]:
    """Means of a table of :class:`ScoreCases`: over cases for each class, then over classes."""
    metrics = [metric for metric in METRICS if metric in table]
    classes = {}
    for name, rows in table.groupby("class", sort=False):
        classes[name] = {metric: float(rows[metric].mean()) for metric in metrics}
        classes[name]["counted"] = int(rows[metrics[0]].notna().sum())
    units = sorted(table["unit"].unique())
    stated = ", ".join(unit for unit in units if unit != "voxel")
    return {
        "cases": int(table["case"].nunique()),
        "classes": classes,
        "mean": {m: float(pd.Series([row[m] for row in classes.values()]).mean()) for m in metrics},
        "distance_unit": units[0] if len(units) == 1 else f"{stated}, or voxels for files without a spacing",
    }
