"""Training by the clock: minutes in place of epochs."""

from __future__ import annotations

import copy
import logging
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from ignite.engine import Events
from monai.engines import SupervisedEvaluator, Workflow
from torch.optim.lr_scheduler import LRScheduler, PolynomialLR

from ..dataio.sizes import Stage, Stages
from ..dataio.storage import read_json
from ..distributed import check_agreed, of_rank_0, rank_and_size
from ..errors import InputError
from .budget import RESERVE, Length, age, bought, duration, few_steps
from .checkpoints import read_checkpoint, resume_path, stretch
from .cost import Plan
from .settings import SETTINGS_FILE, write_settings
from .trainer import SemSimTrainer

logger = logging.getLogger("semsim")

#: Share of the time that measuring may take, two steps and a validation at least.
MEASURING = 0.04

now = time.perf_counter


def say(level: int, text: str) -> None:
    """Log in the first of several processes."""
    if rank_and_size()[0] == 0:
        logger.log(level, text)


class Clock:
    """How long a training by the clock is: measured once, kept by the processes that resume it.

    Steps are taken and thrown away before the training begins: weights, running statistics, momenta and averages are
    put back, and random numbers follow from (seed, epoch). So the training is the one that the same number of epochs
    and steps, given by hand, would be.

    Attributes:
        length: what the minutes buy; ``None`` in a training by epochs.
        validation_seconds: of a validation, as measured.
        step_seconds: of a step in each stage of the training, as measured.
    """

    def __init__(
        self,
        minutes: float | None,
        trainer: Callable[[], SemSimTrainer],
        evaluator: Callable[[], SupervisedEvaluator] | None = None,
        *,
        steps_per_epoch: int | None = None,
        val_interval: int | None = None,
        resume: str = "",
        output_dir: str | os.PathLike = "",
    ) -> None:
        """
        Args:
            minutes: from the start of the process to the end of the training, those of earlier processes of a resumed
                training included; ``None`` for a training by epochs, which this leaves alone.
            trainer, evaluator: as for :class:`~scripts.training.cost.Plan`.
            steps_per_epoch: steps of an epoch, where they are given.
            val_interval: epochs between validations, where they are given.
            resume: as for :class:`~scripts.training.checkpoints.ResumeFrom`.
            output_dir: of the training.

        Raises:
            InputError: too few minutes, those used up where epochs are left to resume, or a checkpoint of a training
                by epochs.
        """
        self.minutes = minutes or 0.0
        self.length: Length | None = None
        self.validation_seconds = 0.0
        self.step_seconds: dict[Stage, float] = {}
        self._steps_per_epoch, self._val_interval = steps_per_epoch, val_interval
        if minutes is None:
            return
        self._earlier, self._begin = age(), now()
        path = resume_path(resume, output_dir)
        check_agreed(path)
        if path is None:
            self._measure(trainer, evaluator)
        else:
            self._go_on(path)

    @property
    def epochs(self) -> int | None:
        """Epochs that were bought; ``None`` in a training by epochs."""
        return self.length.epochs if self.length else None

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch; ``None``: one pass over the slices."""
        return self.length.steps_per_epoch if self.length else self._steps_per_epoch

    @property
    def val_interval(self) -> int | None:
        """Epochs between validations."""
        return self.length.val_interval if self.length else self._val_interval

    def elapsed(self) -> float:
        """Seconds of the time that are over; while the machine sleeps the clock stands still."""
        return self._earlier + now() - self._begin

    def state_dict(self) -> dict[str, Any]:
        """The length and the time used, for the resume checkpoint; empty in a training by epochs."""
        if self.length is None:
            return {}
        spent = {
            "validation_seconds": self.validation_seconds, "seconds": self.elapsed(), "minutes": self.minutes,
            "step_seconds": {tuple(stage): seconds for stage, seconds in self.step_seconds.items()},
        }  # fmt: skip
        return {**asdict(self.length), **spent}

    def _go_on(self, path: str) -> None:
        content = read_checkpoint(path)
        state = dict(content.get("clock") or {})
        if not state:
            raise InputError(
                f"{path}: a training by epochs, received minutes {self.minutes:g}; resume with --epochs, or start "
                "afresh in another --output_dir."
            )
        used = state.pop("seconds")
        self._earlier += used
        self.validation_seconds = state.pop("validation_seconds")
        self.step_seconds = {Stage(*stage): seconds for stage, seconds in state.pop("step_seconds", {}).items()}
        longer = max(1.0, self.minutes / state.pop("minutes"))  # where more time is given than at first
        given = {"steps_per_epoch": self._steps_per_epoch, "val_interval": self._val_interval}
        state |= {name: number for name, number in given.items() if number}  # other steps are refused later
        length = Length(**state)
        self.length = length = replace(length, epochs=int(longer * length.epochs))
        if used >= 60 * self.minutes and content["trainer"]["iteration"] < length.steps:
            raise InputError(
                f"{path}: expected more minutes than the {math.ceil(used / 6) / 10:.1f} that its training has used, "
                f"received minutes {self.minutes:g}; give more."
            )
        say(
            logging.INFO,
            f"Going on with {length.steps:,} steps; {duration(self.elapsed())} of {self.minutes:g} minutes are used.",
        )

    def _measure(self, trainer: Callable[[], SemSimTrainer], evaluator: Callable[[], Any] | None) -> None:
        probe = trainer()
        keepers: tuple[Any, ...] = (probe.network, probe.optimizer)
        states = [copy.deepcopy(keeper.state_dict()) for keeper in keepers]
        plan = Plan(lambda: probe, evaluator, max_seconds=MEASURING * 60 * self.minutes)
        step, self.validation_seconds = plan.speed()
        self.step_seconds = plan.step_seconds
        for keeper, state in zip(keepers, states):
            keeper.load_state_dict(state)
        probe.optimizer.zero_grad(set_to_none=True)

        spent, step, self.validation_seconds = of_rank_0((self.elapsed(), step, self.validation_seconds))
        given = {"one_pass": len(plan.loader), "steps_per_epoch": self._steps_per_epoch,
                 "val_interval": self._val_interval}  # fmt: skip
        self.length = length = bought(self.minutes, spent, step, self.validation_seconds, **given)
        validations = f" and {length.validations} validations of {self.validation_seconds:.1f} s"
        say(
            logging.INFO,
            f"{self.minutes:g} minutes buy {length.steps:,} steps of {step:.2f} s"
            + (validations if self.validation_seconds else "")
            + f". The same by hand: --epochs {length.epochs} --steps_per_epoch {length.steps_per_epoch} "
            f"--val_interval {length.val_interval}",
        )
        if few := few_steps(length, spent, step, self.validation_seconds, **given):
            say(logging.WARNING, few)


class KeepTime:
    """Look at the clock after every epoch, and where a training would miss its end, change the number of its epochs.

    On a machine that keeps its pace nothing happens. If by the pace of the last epochs the end would fall behind the
    time, or before it by more than twice the reserve (other programs came or went, the processor throttles, a killed
    process lost an epoch), the number is set anew, the learning rate takes its course to the new end, and it is said.
    A schedule of another kind keeps its course, and the training becomes no longer than it. Where the time is over
    before the last stage has begun, one epoch of that stage follows all the same.
    """

    def __init__(
        self, clock: Clock, lr_scheduler: LRScheduler, output_dir: str | os.PathLike, stages: Stages | None = None
    ) -> None:
        """
        Args:
            clock: of the training.
            lr_scheduler: stepped at every step.
            output_dir: where ``training.json`` notes the number of epochs.
            stages: of the training; default: one.
        """
        self.stages = stages
        self.clock, self.lr_scheduler, self.path = clock, lr_scheduler, Path(output_dir) / SETTINGS_FILE
        self.begun = self.completed = 0.0
        #: seconds of the steps of each epoch of this process, were its stage of average cost
        self.seconds: list[float] = []
        #: seconds between two epochs, without and with a validation
        self.between = {False: 0.0, True: clock.validation_seconds}

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, before what validates."""
        if self.clock.length is None:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._look)
        engine.add_event_handler(Events.COMPLETED, self._tell)

    def _start(self, engine: Workflow) -> None:
        self.begun = self.clock.elapsed()
        if self.seconds:
            validated = (engine.state.epoch - 1) % cast(Length, self.clock.length).val_interval == 0
            self.between[validated] = self.begun - self.completed

    def _look(self, engine: Workflow) -> None:
        self.completed = self.clock.elapsed()
        epoch = engine.state.epoch
        self.seconds.append((self.completed - self.begun) / self._cost(epoch, epoch, engine.state.max_epochs))
        length = cast(Length, self.clock.length)
        epochs = of_rank_0(self._epochs(engine.state.epoch, length))
        own = not isinstance(self.lr_scheduler, PolynomialLR)
        if epochs == length.epochs or (own and epochs > length.epochs):
            return
        minutes = self.clock.minutes
        end = self._end(engine.state.epoch, replace(length, epochs=epochs), self._pace(length))
        in_time = epochs == engine.state.epoch or end <= 60 * minutes
        say(
            logging.WARNING,
            f"{'Slower' if epochs < length.epochs else 'Faster'} than before: {epochs} epochs of "
            f"{length.steps_per_epoch} steps in place of {length.epochs}"
            + (
                f", so that the training ends after {minutes:g} minutes."
                if in_time
                else "; the last of them begins the last stage (full size, unlabelled images), so that the training "
                f"ends after about {duration(end)}, not {minutes:g} minutes."
            ),
        )
        self.clock.length = length = replace(length, epochs=epochs)
        engine.state.max_epochs = epochs
        if isinstance(self.lr_scheduler, PolynomialLR):
            stretch(self.lr_scheduler, length.steps)
        if rank_and_size()[0] == 0 and self.path.is_file():
            write_settings(self.path, {**read_json(self.path), "epochs": epochs})

    def _cost(self, first: int, last: int, epochs: int) -> float:
        """What the epochs from ``first`` to ``last`` of a training of so many cost by stage; 1 each on average."""
        seconds = self.clock.step_seconds
        if self.stages is None or any(stage not in seconds for stage, _ in self.stages.shares):
            return last - first + 1
        mean = sum(share * seconds[stage] for stage, share in self.stages.shares)
        return sum(number * seconds[stage] for stage, number in self.stages.numbers(first, last, epochs)) / mean

    def _epochs(self, epoch: int, length: Length) -> int:
        """How many epochs there should be, at the end of one."""
        if len(self.seconds) < max(3, length.epochs // 10):  # too few to tell; the first is slower than the others
            return length.epochs
        pace, limit = self._pace(length), 60 * self.clock.minutes
        if limit * (1 - 2 * RESERVE) <= self._end(epoch, length, pace) <= limit:
            return length.epochs
        begun = self.stages is None or self.stages.stage(epoch, length.epochs) == self.stages.last
        epochs = epoch if begun else epoch + 1  # the last has the size of prediction, and unlabelled images
        step = 1  # longer and longer ones, for there may be many thousand epochs
        while step:
            if self._end(epoch, replace(length, epochs=epochs + step), pace) <= limit * (1 - RESERVE / 2):
                epochs, step = epochs + step, 2 * step
            else:
                step //= 2
        return epochs

    def _pace(self, length: Length) -> float:
        """Seconds of the steps of an epoch of average cost, by the last ones."""
        return statistics.mean(self.seconds[1:][-max(3, length.epochs // 6) :])

    def _end(self, epoch: int, length: Length, pace: float) -> float:
        """Seconds at which a training of that length would end, after the steps of an epoch."""
        epochs, interval = length.epochs, length.val_interval
        validations = epochs // interval - (epoch - 1) // interval + (epochs % interval > 0)
        others = epochs - epoch + 1 - validations
        between = validations * self.between[True] + others * self.between[False]
        return self.completed + self._cost(epoch + 1, epochs, epochs) * pace + between

    def _tell(self, engine: Workflow) -> None:
        say(logging.INFO, f"Trained {engine.state.iteration:,} steps in {duration(self.clock.elapsed())}.")
