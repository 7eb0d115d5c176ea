"""Handlers of training and evaluation: logs, progress, warnings and saved tables."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Events
from monai.engines import Workflow
from monai.handlers import MeanDice, ValidationHandler
from monai.metrics import DiceMetric
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..dataio.storage import write_text
from ..method.network import Streams
from .budget import duration
from .trainer import Teacher, frozen_statistics

logger = logging.getLogger("semsim")


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Append the row of an epoch to a CSV file, header first.

    Rows of this and later epochs, left by a process that died before its checkpoint, are replaced. Columns that come
    later are empty in the rows before; a file with columns that the row lacks is kept under another name.
    """
    path = Path(path)
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept = [
                r for r in csv.DictReader(file) if None not in r.values() and float(r.get("epoch") or 0) < row["epoch"]
            ]
        if any(value and name not in row for r in kept for name, value in r.items()):
            path.replace(path.with_name(f"{path.stem}_{time.strftime('%Y%m%d_%H%M%S')}{path.suffix}"))
            kept = []
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(row), extrasaction="ignore")
    writer.writeheader()
    writer.writerows([*kept, row])
    write_text(path, text.getvalue())


def scalars_of(output: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The scalars in the output of a training step, by name: what TensorBoard shows."""
    return {name: value for name, value in output[0].items() if isinstance(value, float)}


class TrainingLog:
    """Mean of every scalar of an epoch, the learning rate and the time: one log line, one row of ``training_log.csv``.

    Warns when a class that the labels show has vanished from the pseudo-labels (collapse).
    """

    def __init__(
        self, output_dir: str | os.PathLike, optimizer: Optimizer, class_names: Sequence[str], *, patience: int = 10
    ) -> None:
        """
        Args:
            output_dir: folder of ``training_log.csv``.
            optimizer: whose learning rate is logged.
            class_names: names of the classes, for warnings.
            patience: epoch from which a class that was never among the pseudo-labels is warned of, too.
        """
        self.patience = patience
        self.path = Path(output_dir) / "training_log.csv"
        self.optimizer, self.class_names = optimizer, list(class_names)
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.started = 0.0
        self.shown: set[str] = set()
        self.warned: set[str] = set()

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _reset(self) -> None:
        self.sums, self.counts, self.started = {}, {}, time.perf_counter()

    def _add(self, engine: Workflow) -> None:
        for name, value in engine.state.scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def _write(self, engine: Workflow) -> None:
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        row = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self.started, 3),
        }
        append_row(self.path, row | {name: f"{value:.6g}" for name, value in means.items()})
        shown = "  ".join(f"{k} {v:.4f}" for k, v in means.items() if k.startswith(("loss", "mask", "agree")))
        logger.info(f"epoch {row['epoch']}/{engine.state.max_epochs}  {shown}  lr {row['learning_rate']:.2e}")
        self._warn(means, engine.state.epoch)

    def _warn(self, means: Mapping[str, float], epoch: int) -> None:
        for c, name in enumerate(self.class_names):
            share, labeled = means.get(f"pseudo_{c}"), means.get(f"label_{c}", 0.0)
            if share is None or labeled == 0.0:
                continue
            if share > 1e-6:
                self.shown.add(name)
                self.warned.discard(name)
            elif name not in self.warned and (name in self.shown or epoch >= self.patience):
                self.warned.add(name)
                logger.warning(
                    f"Collapse: no pseudo-label of epoch {epoch} shows the class {name!r}, which {labeled:.2%} of the "
                    "labelled pixels show. If this lasts, lower the threshold or lambda_u, or label more cases."
                )


class PseudoLabelQuality:
    """Quality of the pseudo-labels, on unlabelled images whose labels are known but not used for training.

    For research. A row of ``pseudo_labels.csv`` holds for every class ``confident``: the fraction of its true pixels
    with a confident pseudo-label; ``precision``: the fraction of its confident pseudo-labels that are right;
    ``recall``: the fraction of its confident true pixels that the pseudo-label finds.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        dataset: Dataset,
        teacher: Teacher,
        class_names: Sequence[str],
        *,
        threshold: float = 0.8,
        interval: int = 1,
        batch_size: int = 16,
    ) -> None:
        """
        Args:
            output_dir: folder of ``pseudo_labels.csv``.
            dataset: slices with ``image`` and ``label``.
            teacher: what makes the pseudo-labels.
            class_names: names of the classes, background first.
            threshold: tau.
            interval: epochs between two looks.
            batch_size: slices at a time; they are spread over the images, as a training batch is.
        """
        self.path, self.interval = Path(output_dir) / "pseudo_labels.csv", interval
        self.teacher, self.class_names, self.threshold = teacher, list(class_names), threshold
        size = len(dataset)  # type: ignore[arg-type]
        number = -(-size // batch_size)
        self.loader = DataLoader(dataset, batch_sampler=[list(range(k, size, number)) for k in range(number)])

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._write)

    @torch.no_grad()
    def _write(self, engine: Workflow) -> None:
        k = len(self.class_names)
        confident, total = torch.zeros(k, k), torch.zeros(k)  # pairs (true, pseudo); true
        network = self.teacher.network
        with frozen_statistics(network):
            for batch in self.loader:
                image, label = batch["image"].to(engine.state.device), batch["label"].flatten().long()
                logits = network({"weak": image}, Streams(decode=("weak",))).logits["weak"]
                p, pseudo = logits.float().softmax(dim=1).cpu().max(dim=1)
                judged = (label >= 0).cpu()
                label = label.cpu().clamp(min=0)
                sure = (p.flatten() >= self.threshold) & judged
                confident += torch.bincount(label[sure] * k + pseudo.flatten()[sure], minlength=k * k).view(k, k)
                total += torch.bincount(label[judged], minlength=k)
        row: dict[str, Any] = {"epoch": engine.state.epoch}
        for c, name in enumerate(self.class_names):
            values = {
                "confident": confident[c].sum() / total[c],
                "precision": confident[c, c] / confident[:, c].sum(),
                "recall": confident[c, c] / confident[c].sum(),
            }
            row |= {f"{name} {key}": round(float(v), 4) for key, v in values.items()}
        append_row(self.path, row)


class TrainingProgress:
    """Progress bar over the whole training with the time left, and an early line on how long it will take."""

    def __init__(self, *, hint: str = "", warmup: int = 3, after: int = 10, max_seconds: float = 30.0) -> None:
        """
        Args:
            hint: what to do about a long run, added to the estimate when it exceeds ten minutes.
            warmup: first steps, which are slower and not counted.
            after: steps after which the estimate is given, at the latest.
            max_seconds: seconds after which it is given, at the latest.
        """
        self.hint, self.warmup, self.after, self.max_seconds = hint, warmup, after, max_seconds
        self.bar: tqdm
        self.first: int | None = None

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.TERMINATE, self._close)

    def _start(self, engine: Workflow) -> None:
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = tqdm(total=total, desc="Training", unit="step", smoothing=0.05, mininterval=2.0)
        self.begin = self.clock = time.perf_counter()
        self.first, self.counted, self.told = None, 0, False

    def _step(self, engine: Workflow) -> None:
        now = time.perf_counter()
        if self.first is None:  # after a resume the engine starts at a later iteration
            self.first = engine.state.iteration - 1
            self.bar.update(self.first)
        self.bar.total = engine.state.max_epochs * engine.state.epoch_length  # may change on the way, by the clock
        self.bar.update(1)
        self.bar.set_postfix(epoch=engine.state.epoch, loss=f"{engine.state.scalars['loss']:.4f}", refresh=False)
        done = engine.state.iteration - self.first
        if done <= self.warmup:
            self.clock = now
        if self.told or (done < min(self.after, self.bar.total) and now - self.begin < self.max_seconds):
            return
        self.told = True
        per_step = (now - self.clock) / (done - self.warmup) if done > self.warmup else (now - self.begin) / done
        left = per_step * (self.bar.total - engine.state.iteration)
        logger.info(
            f"About {duration(left)} left for {engine.state.max_epochs} epochs of {engine.state.epoch_length} steps "
            f"on {engine.state.device} at {per_step:.2f} s a step, validation not counted."
            + (f" {self.hint}" if self.hint and left > 600 else "")
        )

    def _close(self) -> None:
        self.bar.close()


class RegularValidation(ValidationHandler):
    """MONAI's handler, which validates every ``interval`` epochs, and after the last epoch, whatever the interval."""

    def attach(self, engine: Workflow) -> None:  # type: ignore[override]
        """Register with a trainer."""

        def due(trainer: Workflow, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == trainer.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)


class _Dice(DiceMetric):
    """MONAI's metric, which leaves out a class that the truth lacks even where the prediction shows it; here that is 0.

    As evaluation scores it (``EMPTY_RULE``), so that the best weights are best by the scores that are reported. It is
    -0.0, which says that no truth stands behind it.
    """

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        scores = cast(torch.Tensor, super()._compute_tensor(y_pred, y))
        classes = range(1, cast(int, self.num_classes))
        shown = torch.stack([(y_pred == c).flatten(1).any(dim=1) for c in classes], dim=1)
        return scores.masked_fill(scores.isnan() & shown.to(scores.device), -0.0)


class CountedDice(MeanDice):
    """MONAI's handler with the rules of evaluation: for empty masks, and of a mean over cases, then over classes.

    MONAI's mean is over the classes of each case first, and 0 where nothing is scored; here that is nan. Of class
    indices ``(B, 1, *spatial)``, over the foreground classes.
    """

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        """
        Args:
            num_classes: background included.
            kwargs: as in MONAI's ``MeanDice``.
        """
        super().__init__(include_background=False, num_classes=num_classes, **kwargs)
        self.metric_fn = _Dice(include_background=False, reduction="mean", num_classes=num_classes)

    def compute(self) -> Any:
        """Mean Dice of the cases and classes that count; nan where no truth shows a class, which leaves no choice."""
        super().compute()
        scores = torch.as_tensor(self.metric_fn.get_buffer())
        unseen = bool((scores.isnan() | scores.signbit()).all())
        return float("nan") if unseen else scores.nanmean(dim=0).nanmean().item()


class ValidationLog:
    """Validation Dice of every class: one log line, one row of ``validation_log.csv``."""

    def __init__(
        self, output_dir: str | os.PathLike, class_names: Sequence[str], metric: str = "val_mean_dice"
    ) -> None:
        """
        Args:
            output_dir: folder of ``validation_log.csv``.
            class_names: names of the classes, background first.
            metric: name of the key metric, whose details are ``(cases, classes - 1)``.
        """
        self.path = Path(output_dir) / "validation_log.csv"
        self.foreground, self.metric = list(class_names)[1:], metric

    def attach(self, engine: Workflow) -> None:
        """Register with the evaluator of a training."""
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Workflow) -> None:
        per_class = torch.as_tensor(engine.state.metric_details[self.metric]).float().nanmean(dim=0).tolist()
        row = {"epoch": engine.state.epoch, "mean_dice": round(float(engine.state.metrics[self.metric]), 6)}
        row |= {name: round(value, 6) for name, value in zip(self.foreground, per_class)}
        append_row(self.path, row)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k != "epoch" and not math.isnan(v))
        logger.info(f"validation after epoch {row['epoch']}: {shown or 'nothing to score'}")
