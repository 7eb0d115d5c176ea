"""A report of a training and its evaluation: one HTML page that needs no network, and its figures as PNG beside it.

    python -m scripts report OUTPUT_DIR

uses only the files of a training. With the data, the report also shows cases and features:

    python -m monai.bundle run reporting --config_file "['configs/train.yaml','configs/evaluate.yaml']" \
      --dataset_dir DIR --datalist FILE --output_dir OUTPUT_DIR
"""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..command_line import command
from ..dataio.storage import read_json, write_text
from ..errors import InputError
from ..evaluation.metrics import METRICS
from ..training.budget import duration
from ..training.settings import SETTINGS_FILE, saved
from ..training.weights import weights_file
from . import plots
from .page import TEXTS, Figure, Section, Table, render
from .samples import CasePictures, FeatureLook, Slice

logger = logging.getLogger("semsim")

#: How the trainings of ``fusion`` are called.
METHODS = {
    "sfm": "SemSim (spatial-aware fusion)",
    "conv": "SemSim- (plain convolution in place of the fusion module)",
    "none": "no similarity terms",
}


class Report:
    """Collects what a training and its evaluation left behind, draws it and writes ``report/index.html``."""

    def __init__(
        self,
        output_dir: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        spatial_dims: int | None = None,
        cases: CasePictures | None = None,
        features: FeatureLook | None = None,
    ) -> None:
        """
        Args:
            output_dir: folder of the training or of the evaluation.
            class_names: background first; ``None``: those of ``training.json``.
            spatial_dims: of the network that was scored; ``None``: as ``training.json`` says.
            cases: predicts the cases to be shown; ``None`` for none.
            features: computes features; ``None`` for none.
        """
        self.folder, self.out = Path(output_dir), Path(output_dir) / "report"
        self.class_names, self.spatial_dims = list(class_names or []), spatial_dims
        self.cases, self.features = cases, features

    def _read(self) -> None:
        """What lies in the folder by now."""
        self.settings, self.summary = read_json(self.folder / SETTINGS_FILE), read_json(self.folder / "scores.json")
        self.log, self.validation = self._csv("training_log.csv"), self._csv("validation_log.csv")
        self.quality, self.scores = self._csv("pseudo_labels.csv"), self._csv("scores.csv")
        self.other = other_weights(str(self.summary.get("weights", "")), self.folder)
        self.text = ""
        if self.other and not self.settings and self.log is None:  # an evaluation in a folder of its own
            self.settings = saved(self.other)[1]
        elif self.other:
            what = "scores, cases, affinities and features"
            self.text = f"The {what} are of other weights than this training's: {self.other}."
        #: of the training that is described, and of what was scored
        self.trained_names = list(self.settings.get("class_names") or self.class_names)
        self.class_names = self.class_names or self.trained_names

    def _csv(self, name: str) -> pd.DataFrame | None:
        path = self.folder / name
        if not path.is_file():
            return None
        # names as they stand there: "NA" and "None" are no missing values, "01" is no number
        try:
            return pd.read_csv(path, dtype={"case": str, "class": str}, keep_default_na=False, na_values=["", "nan"])
        except ValueError as error:
            raise InputError(
                f"{path}: expected a table, received one that cannot be read ({error}); copy it anew or remove it."
            ) from error

    def run(self) -> Path:
        """Draw everything and write the page; returns its path.

        Raises:
            InputError: a folder with neither logs nor scores.
        """
        self._read()
        if self.log is None and self.scores is None:
            raise InputError(
                f"{self.folder}: expected the folder of a training or an evaluation (training_log.csv, scores.csv), "
                "found neither; give the --output_dir of one."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        parts = (self._overview, self._scores, self._cases, self._curves, self._pseudo_labels)
        sections = [part() for part in parts] + self._explanations()
        page = render(
            f"SemSim training report: {self.folder.absolute().name}",
            "Research software, not for diagnosis. All figures are beside this file as PNG.",
            sections,
        )
        path = self.out / "index.html"
        write_text(path, page)
        logger.info(f"Report: {path}")
        return path

    def _overview(self) -> Section:
        s, rows = self.settings, []
        size = s.get("spatial_size")
        unit, of = ("patches", "voxels") if s.get("spatial_dims") == 3 else ("slices", "pixels")
        semi = self.log is None or "pseudo_1" in self.log or self._unlabeled_to_come()
        if s:
            labeled, kind = s.get("labeled_cases", []), str(s.get("fusion", "?"))
            rows = [
                ["method", METHODS.get(kind, kind) if semi else "supervised, on the labelled images alone"],
                ["classes", ", ".join(self.trained_names)],
                ["labelled images", f"{len(labeled)}: {', '.join(labeled)}"],
                ["unlabelled images", str(s.get("unlabeled_images", "?"))],
                [unit, f"{size} {of}, {s.get('in_channels')} channel(s), batch {s.get('batch_size')}"],
                ["training", f"{s.get('epochs')} epochs of {s.get('steps_per_epoch')} steps, seed {s.get('seed')}"],
            ]
        if self.log is not None:
            rows.append(["trained so far", f"{len(self.log)} epochs, {duration(float(self.log['seconds'].sum()))}"])
        if self.summary:
            rows.append(["evaluated", f"{self.summary['cases']} cases of the list {self.summary.get('list', '?')!r}"])
            rows.append(["weights", str(self.other or weights_file(str(self.summary.get("weights", "?"))).name)])
        if versions := s.get("versions"):
            rows.append(["versions", ", ".join(f"{k} {v}" for k, v in versions.items())])
        return Section("overview", "Overview", [self.text] if self.text else [], [Table(rows)])

    def _unlabeled_to_come(self) -> bool:
        """Whether a training that is not over yet has still to come to its unlabelled images."""
        s, done = self.settings, 0 if self.log is None else len(self.log)
        return bool(s.get("use_unlabeled") and s.get("unlabeled_images")) and done < (s.get("epochs") or 0)

    @property
    def metrics(self) -> list[str]:
        """Metrics of the evaluation."""
        return [m for m in METRICS if self.scores is not None and m in self.scores]

    def _scores(self) -> Section:
        section = Section("scores", "Scores")
        if self.scores is None:
            return section.without(
                "Not evaluated yet: run with 'configs/evaluate.yaml' on labelled test or validation cases."
            )
        unit = str(self.summary.get("distance_unit", "mm"))
        names = {m: f"{plots.METRIC_NAMES[m]}{'' if m == 'dice' else f' ({unit})'}" for m in self.metrics}
        rows = []
        for name, part in self.scores.groupby("class", sort=False):
            cells = [_spread(part[m], m) for m in self.metrics]
            rows.append([str(name), *cells, str(int(part[self.metrics[0]].notna().sum()))])
        if len(rows) > 1:
            means = [self.scores.groupby("class")[m].mean().mean() for m in self.metrics]
            rows.append(["mean", *(_number(v, m) for v, m in zip(means, self.metrics)), ""])
        file = self.out / "scores.png"
        plots.score_boxes(self.scores, self.metrics, unit, file)
        section.texts = [
            f"Mean and standard deviation over cases. {self.summary.get('empty_rule', '')}"
            + (" The files state no voxel size, so distances are in voxels." if unit == "voxel" else "")
        ]
        section.tables = [Table(rows, ["class", *names.values(), "cases"]), self._every_case(self.scores)]
        section.figures = [Figure(file, "box plots of the scores of every class", "Case by case",
                                  "Each dot is a case; the line in the box is the median.")]  # fmt: skip
        return section

    def _every_case(self, scores: pd.DataFrame) -> Table:
        """A row for every case, worst first, by the first metric.

        Raises:
            InputError: two cases of one name.
        """
        if scores.duplicated(["case", "class"]).any():
            raise InputError(f"{self.folder / 'scores.csv'}: two cases of one name; evaluate again.")
        metric = self.metrics[0]
        pivot = scores.pivot(index="case", columns="class", values=metric)
        pivot = pivot.reindex(columns=list(scores["class"].unique()))
        means = pivot.mean(axis=1).sort_values(ascending=metric == "dice")
        rows = [[str(case), *("-" if np.isnan(v) else f"{v:.3f}" for v in (*pivot.loc[case], mean))]
                for case, mean in means.items()]  # fmt: skip
        caption = f"{plots.METRIC_NAMES[metric]} of every case, worst first"
        return Table(rows, ["case", *map(str, pivot.columns), "mean"], caption, True)

    def _cases(self) -> Section:
        section = Section("cases", "Cases")
        if self.scores is None or self.cases is None:
            return section.without(TEXTS["needs data"])
        classes = self.scores["class"].nunique()
        by_case = self.scores[self.metrics[0]].to_numpy().reshape(-1, classes)
        if len(by_case) != len(self.cases.data):
            raise InputError(f"{self.folder / 'scores.csv'}: {len(by_case)} cases, where the list now has "
                             f"{len(self.cases.data)}; evaluate again.")  # fmt: skip
        with np.errstate(all="ignore"):
            means = np.array([np.nan if np.isnan(row).all() else np.nanmean(row) for row in by_case])
        order = [int(i) for i in np.argsort(means) if not np.isnan(means[i])]
        if self.metrics[0] != "dice":
            order.reverse()
        chosen = dict(zip((order[0], order[len(order) // 2], order[-1]), ("worst", "median", "best"))) if order else {}
        section.texts = [TEXTS["cases"]]
        for index, name in reversed(chosen.items()):  # of few cases each is shown once
            case = str(self.scores["case"].iloc[index * classes])
            file = self.out / f"case_{name}.png"
            plots.case_slices(self.cases.planes(index), case, self.class_names, file)
            score = f"{plots.METRIC_NAMES[self.metrics[0]]} {means[index]:.3f}"
            section.figures.append(
                Figure(file, f"slices of {case} with contours", f"{name.capitalize()}: {case}, {score}")
            )
        return section

    def _curves(self) -> Section:
        section = Section("curves", "Learning curves")
        if self.log is None:
            return section.without("No training_log.csv in this folder.")
        file = self.out / "losses.png"
        plots.loss_curves(self.log, file)
        section.figures.append(Figure(file, "loss terms by epoch", "Loss terms", TEXTS["losses"]))
        file = self.out / "masks.png"
        if plots.mask_curves(self.log, file):
            section.figures.append(Figure(file, "mask ratios by epoch", "Mask ratios", TEXTS["masks"]))
        if self.validation is not None:
            file = self.out / "validation.png"
            plots.validation_curves(self.validation, self.trained_names, file)
            section.figures.append(Figure(file, "validation Dice by epoch", "Validation Dice", TEXTS["validation"]))
        return section

    def _pseudo_labels(self) -> Section:
        section = Section("pseudo", "Pseudo-labels")
        if self.quality is not None:
            file = self.out / "pseudo_label_quality.png"
            plots.pseudo_label_quality(self.quality, self.trained_names, file)
            alt = "precision, recall and confident fraction by epoch"
            section.figures.append(Figure(file, alt, "Against the truth", TEXTS["quality"]))
        file = self.out / "class_shares.png"
        if self.log is not None and plots.class_shares(self.log, self.trained_names, file):
            section.figures.append(Figure(file, "class fractions by epoch", "Class fractions", TEXTS["shares"]))
        if not section.figures:
            return section.without(
                "No training_log.csv in this folder." if self.log is None else "No unlabelled images were used."
            )
        if self.quality is None:
            section.texts = [TEXTS["unknown"]]
        return section

    def _explanations(self) -> list[Section]:
        affinity, space = Section("affinity", "Affinities"), Section("features", "Features")
        look = self.features
        if look is None or not look.possible or not all(look.lists.values()):
            return [section.without(self._unexplained()) for section in (affinity, space)]
        slices = {name: look.slices(name) for name in look.lists}
        return [self._affinities(affinity, look, slices), self._features(space, look, slices)]

    def _unexplained(self) -> str:
        """Why there are no pictures of the features."""
        if self.features is not None and not self.features.possible:
            return "This network has no fused features."
        if self.features is not None:
            return "There are no unlabelled images."
        if (self.spatial_dims or self.settings.get("spatial_dims")) == 3:
            return "These pictures are of slices; this network sees volumes."
        if self.cases is not None:
            return "These pictures look into the network of SemSim alone; this is another one."
        return TEXTS["needs data"]

    def _affinities(self, section: Section, look: FeatureLook, slices: Mapping[str, Sequence[Slice]]) -> Section:
        chosen = max(slices["unlabelled"], key=lambda s: (len(np.unique(s.classes)), int((s.classes > 0).sum())))
        if not (chosen.classes > 0).any():
            chosen = slices["labelled"][0]
        image, maps = look.affinities(chosen, self.class_names)
        if not maps:
            return section.without("No slice looked at shows a class, so there is no pixel to choose.")
        file = self.out / "affinity.png"
        plots.affinity_maps(image, maps, look.temperature, file)
        section.texts = [TEXTS["affinity"]]
        section.figures = [Figure(file, "affinity maps of a pixel of each class", chosen.name)]
        return section

    def _features(self, section: Section, look: FeatureLook, slices: Mapping[str, Sequence[Slice]]) -> Section:
        points = {name: look.points(parts) for name, parts in slices.items()}
        file = self.out / "features.png"
        plots.feature_scatter(points, self.class_names, file)
        table = plots.class_distances(points, self.class_names)
        section.texts = [TEXTS["features"]]
        section.figures = [Figure(file, "scatter plots of labelled and unlabelled features by class")]
        rows = [[str(name), *("-" if np.isnan(v) else f"{v:.2f}" for v in row)] for name, row in table.iterrows()]
        section.tables = [Table(rows, ["unlabelled, predicted as", *map(str, table.columns)],
                                "Mean cosine with the labelled features of each class")]  # fmt: skip
        return section


def other_weights(weights: str, folder: Path) -> Path | None:
    """The file of weights that were scored, if it is not one of this folder; ``None`` where nobody can tell.

    Args:
        weights: a file, or the folder of a training, as the evaluation was given it; empty without an evaluation.
        folder: of the training, which may have been moved or copied since.
    """
    file = weights_file(weights)
    own = folder / file.name
    same = own.is_file() and file.is_file() and filecmp.cmp(own, file, shallow=False)
    return file if weights and file.is_file() and not same else None


def _number(value: float, metric: str) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}" if metric == "dice" else f"{value:.2f}"


def _spread(values: pd.Series, metric: str) -> str:
    counted = values.dropna()
    return f"{_number(counted.mean(), metric)} \u00b1 {_number(counted.std(ddof=0), metric)}" if len(counted) else "-"


def write(output_dir: str) -> None:
    """Report of a training or an evaluation from the files in its folder.

    Args:
        output_dir: Its folder; the report goes to its subfolder report
    """
    print(Report(str(output_dir)).run())


def main() -> None:
    """Command line of this module."""
    command(write)
