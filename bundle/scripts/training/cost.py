"""The cost of a training in time and memory, measured on this machine before it starts."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator

from ..dataio.loaders import TwoStreamLoader
from ..dataio.sizes import Stage
from ..dataio.storage import check_folder, write_text
from ..distributed import of_rank_0, rank_and_size
from ..errors import InputError
from ..memory import PeakMemory, available_memory
from .budget import RESERVE, Length, affordable, age, bought, duration, few_steps
from .trainer import SemSimTrainer

logger = logging.getLogger("semsim")

GIB = 2**30
#: Share of the available memory that a plan may fill.
MARGIN = 0.9
#: Minutes whose worth a plan says.
OFFERS = (10, 60, 480)

Batch = Mapping[str, Mapping[str, Any]]


class Plan:
    """Runs a few steps of a training, and one validation volume, and says what the whole will take.

    Nothing is written, save for ``plan_file``; the network it trains for these steps is thrown away with the process.
    """

    def __init__(
        self,
        trainer: Callable[[], SemSimTrainer],
        evaluator: Callable[[], SupervisedEvaluator] | None = None,
        *,
        epochs: int | None = None,
        minutes: float | None = None,
        val_interval: int | None = None,
        steps_per_epoch: int | None = None,
        steps: int = 8,
        max_seconds: float = 120.0,
        plan_file: str = "",
    ) -> None:
        """
        Args:
            trainer: makes that of the training, without handlers.
            evaluator: makes that of its validation, without handlers and one volume long; ``None`` for a training
                without.
            epochs: of the training; ``None``: as many as fit into ``minutes``.
            minutes: time of the training, in place of ``epochs``.
            val_interval: epochs between validations; ``None``: as :func:`~scripts.training.budget.affordable` chooses.
            steps_per_epoch: steps of an epoch where they are given.
            steps: steps to time, after two that are not timed; fewer, but at least two, once ``max_seconds`` are over.
            max_seconds: seconds for timing, divided among the stages of the training.
            plan_file: JSON file to write the figures to; empty for none.

        Raises:
            InputError: ``plan_file`` cannot be written.
        """
        if plan_file:  # now, and not when everything is measured
            if Path(plan_file).is_dir():
                raise InputError(f"--plan_file {plan_file}: expected a file, received a folder; add a name.")
            check_folder(Path(plan_file).parent, "plan_file", plan_file)
        self.trainer, self.evaluator = trainer(), evaluator() if evaluator else None
        self.epochs, self.minutes, self.val_interval, self.steps_per_epoch = (
            epochs, minutes, val_interval, steps_per_epoch
        )  # fmt: skip
        self.loader = cast(TwoStreamLoader, self.trainer.data_loader)
        self.device: torch.device = self.trainer.state.device  # type: ignore[assignment]
        self.steps, self.max_seconds, self.plan_file = steps, max_seconds, plan_file
        #: seconds of a step in each stage of the training, once they are measured
        self.step_seconds: dict[Stage, float] = {}
        self._measured: dict[Stage | None, tuple[float, float]] = {}

    def run(self) -> dict[str, Any]:
        """Measure, log a summary and return the figures: times in seconds, memory in bytes.

        Of several processes the first one speaks and writes.

        Raises:
            InputError: a training that one slice of each stream is too large for.
        """
        start_up = age()
        loader, device = self.loader, self.device
        size = loader.batch_size
        most = max(loader.most, size)
        available = available_memory(device)
        memory = self._memory(next(self._batches()), available)
        largest = of_rank_0(memory.largest(MARGIN * available))
        if largest < 1:
            raise InputError(
                f"One {loader.unit[0]} of each stream needs about {memory(1) / GIB:.1f} GiB, of "
                f"{available / GIB:.1f} GiB available: lower --spatial_size, or choose "
                "configs/semsim_minus.yaml."
            )
        fits = size <= largest
        with PeakMemory(device) as peak:
            self._measure(min(size, largest))
            validation = self._validate()
        scale = 1.0 if fits else size / largest
        offered, _ = self._average(scale)
        step, wait = self._average(scale, None if self.minutes is not None else self.epochs or 1)
        volumes = self._volumes()
        validation *= volumes
        length = self._length(start_up, step, validation)
        figures = {
            "device": str(device),
            "threads": torch.get_num_threads(),
            "batch_size": size,
            "step_seconds": step,
            "loading_seconds": wait,
            "steps_per_epoch": length.steps_per_epoch,
            "epochs": length.epochs,
            "validation_seconds": validation,
            "validations": length.validations if volumes else 0,
            "start_seconds": start_up,
            "total_seconds": start_up + length.seconds(step, validation),
            "peak_bytes": max(peak.peak, memory(size)) if fits else memory(size),
            "available_bytes": available,
            "largest_batch_size": min(largest, most),
            "minutes_buy": self._offers(start_up, offered, validation),
        }
        if rank_and_size()[0] > 0:
            return figures
        for line in self._lines(figures, volumes, length.val_interval):
            logger.info(line)
        if self.minutes is not None and (few := few_steps(length, start_up, step, validation, **self._given())):
            logger.warning(few)
        if self.plan_file:
            write_text(Path(self.plan_file), json.dumps(figures, indent=1) + "\n")
        return figures

    def speed(self) -> tuple[float, float]:
        """Seconds of a step with its loading, and of a validation of all volumes; 0 without."""
        self._measure(self.loader.batch_size)
        return self._average()[0], self._validate() * self._volumes()

    def _volumes(self) -> int:
        return len(cast(DataLoader, self.evaluator.data_loader)) if self.evaluator else 0

    def _length(self, start_up: float, step: float, validation: float) -> Length:
        if self.minutes is not None:
            return bought(self.minutes, start_up, step, validation, **self._given())
        epochs = self.epochs or 1
        return Length(epochs, len(self.loader), min(self.val_interval or epochs, epochs))

    def _given(self) -> dict[str, int | None]:
        interval = None if self.minutes is None else self.val_interval  # else that of a training by epochs
        return {"one_pass": len(self.loader), "steps_per_epoch": self.steps_per_epoch, "val_interval": interval}

    def _offers(self, start_up: float, step: float, validation: float) -> dict[str, dict[str, int] | None]:
        """What some numbers of minutes would buy; ``None`` for nothing."""
        offers: dict[str, dict[str, int] | None] = {}
        for minutes in OFFERS:
            seconds = 60 * minutes * (1 - RESERVE) - start_up
            length = affordable(seconds, step, validation, **self._given())  # type: ignore[arg-type]
            offers[str(minutes)] = None if length is None else {
                "steps": length.steps, "epochs": length.epochs, "steps_per_epoch": length.steps_per_epoch,
                "validations": length.validations if validation else 0,
            }  # fmt: skip
        return offers

    def _batches(self, stage: Stage | None = None) -> Iterator[Batch]:
        """Batches as training draws them, epoch after epoch, in a stage; by default in the last."""
        epoch = 0
        while True:
            epoch += 1
            self.loader.set_epoch(epoch)
            if stage is not None:
                self.loader.set_stage(stage)
            yield from self.loader

    @staticmethod
    def _part(batch: Batch, size: int) -> Batch:
        return {name: {key: value[:size] for key, value in stream.items()} for name, stream in batch.items()}

    def _step(self, batch: Batch) -> None:
        self.trainer._iteration(self.trainer, batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory(self, batch: Batch, available: int) -> Line:
        """Memory as a straight line of the batch size, through small batches and, if it should fit, the whole one."""
        size = self.loader.batch_size
        sizes = sorted({max(size // 4, 1), max(size // 2, 1)} - {size})
        points: list[tuple[int, int]] = []
        for part in (*sizes, size):
            if part == size and of_rank_0(len(points) > 1 and Line(points)(size) > MARGIN * available):
                break
            with PeakMemory(self.device) as peak:
                for _ in range(2):  # gradients and momenta are there from the second step on
                    self._step(self._part(batch, part))
            points.append((part, peak.peak))
            if len(points) == 1:
                points.insert(0, (0, peak.before))
        return Line(points)

    def _shares(self, epochs: int | None = None) -> Sequence[tuple[Stage | None, float]]:
        """Stages of the training and their fractions of it; where it has so many epochs, those of its epochs."""
        stages = self.loader.stages
        if stages is None:
            return [(None, 1.0)]
        if epochs is None:
            return stages.shares
        return [(stage, number / epochs) for stage, number in stages.numbers(1, epochs, epochs)]

    def _measure(self, batch_size: int) -> None:
        """Time steps of every stage of the training."""
        shares = self._shares()
        for stage, _ in shares:
            batches = (self._part(b, batch_size) for b in self._batches(stage))
            self._measured[stage] = self._time(batches, self.max_seconds / len(shares))
            if stage is not None:
                self.step_seconds[stage] = of_rank_0(self._measured[stage][0])

    def _average(self, scale: float = 1.0, epochs: int | None = None) -> tuple[float, float]:
        """Seconds of a step with its loading, and of the loading, times ``scale``: the mean over the stages."""
        shares = self._shares(epochs)
        step, wait = (scale * sum(share * self._measured[stage][k] for stage, share in shares) for k in (0, 1))
        return step, wait

    def _time(self, batches: Iterator[Batch], max_seconds: float) -> tuple[float, float]:
        """Median seconds of a step with its loading, and of the loading."""
        totals: list[float] = []
        waits: list[float] = []
        begin = last = time.perf_counter()
        for number, batch in enumerate(batches):
            loaded = time.perf_counter()
            self._step(batch)
            now = time.perf_counter()
            if number >= 2:
                totals.append(now - last)
                waits.append(loaded - last)
            last = now
            if of_rank_0(len(totals) >= self.steps or (len(totals) >= 2 and now - begin > max_seconds)):
                break
        return statistics.median(totals), statistics.median(waits)

    def _validate(self) -> float:
        """Seconds of the validation of one volume."""
        if self.evaluator is None:
            return 0.0
        level = self.evaluator.logger.level
        self.evaluator.logger.setLevel(logging.WARNING)
        begin = time.perf_counter()
        self.evaluator.run()
        seconds = time.perf_counter() - begin
        self.evaluator.logger.setLevel(level)
        return seconds

    def _lines(self, f: Mapping[str, Any], volumes: int, interval: int) -> list[str]:
        size, largest = f["batch_size"], f["largest_batch_size"]
        share = f["loading_seconds"] / f["step_seconds"]
        batch = f"{size} + {size}" if self.loader.use_unlabeled else f"{size} labelled"
        lines = [
            f"What this training costs here, on {f['device']} ({f['threads']} threads), {batch} "
            f"{self.loader.unit[1]} a step, in {self.trainer.precision}:",
            f"  step        {f['step_seconds']:.2f} s, {share:.0%} of it waiting for data",
            f"  epoch       {f['steps_per_epoch']} steps, {duration(f['steps_per_epoch'] * f['step_seconds'])}",
            f"  validation  {duration(f['validation_seconds'])} for {volumes} volumes, every {interval} epochs"
            if f["validations"]
            else "  validation  none: no labelled volume in `validation`",
            f"  training    {f['epochs']} epochs, {duration(f['total_seconds'])}",
            f"  memory      {f['peak_bytes'] / GIB:.1f} GiB at most, {f['available_bytes'] / GIB:.1f} GiB available",
            f"  batch size  up to {largest} fits"
            + (f", and there are no more {self.loader.unit[1]}" if self.loader.most <= largest else ""),
        ]
        for minutes, offer in f["minutes_buy"].items():
            shown = (
                f"{offer['steps']:,} steps ({offer['epochs']} epochs of {offer['steps_per_epoch']})"
                + (f", {offer['validations']} validations" if offer["validations"] else "")
                if offer
                else "nothing: too short"
            )
            lines.append(f"  {'--minutes ' + minutes:<15} {shown}")
        if size > largest:
            lines.append(f"This does NOT fit: lower --batch_size to {largest}, or add --fusion_checkpoint True.")
        if share > 0.05:
            lines.append("Waiting for data: increase --num_workers if processor cores are idle.")
        return lines


class Line:
    """A rising straight line through the last two points."""

    def __init__(self, points: list[tuple[int, int]]) -> None:
        """
        Args:
            points: pairs of batch size and bytes, by batch size.
        """
        (x0, y0), (x1, y1) = points[-2:]
        self.slope = max((y1 - y0) / (x1 - x0), 1.0)
        self.x, self.y = x1, y1

    def __call__(self, x: float) -> float:
        return self.y + self.slope * (x - self.x)

    def largest(self, bound: float) -> int:
        """Largest whole x that stays within ``bound``."""
        return int(self.x + (bound - self.y) // self.slope)
