"""How much training fits into a given time: steps, epochs and validations."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ..errors import InputError

#: Programs that are a training from beginning to end: MONAI's, MONAI Label's and the one of the Auto3DSeg template.
PROGRAMS = {("bundle", "__main__.py"), ("utils", "app.py"), ("scripts", "train.py")}
#: Fraction of the time held in reserve for what is not measured: checkpoints, images, the end of the process.
RESERVE = 0.04
#: Epochs at least: checkpoints are written between them, so a killed run loses a thirtieth of its time at most.
EPOCHS = 30
#: Validations at most, and the share of the time that they may take; one is made in any case.
VALIDATIONS, VALIDATION_SHARE = 10, 0.1
#: Steps below which a network has learned little. Of the trainings in benchmarks, those that learn quickest (patches
#: of the left atrium) come within 0.05 of their last Dice after 256.
FEW = 300


def age() -> float:
    """Seconds since this process began, where it is a training from beginning to end; 0 in a notebook or a server."""
    if Path(sys.argv[0]).parts[-2:] not in PROGRAMS:
        return 0.0
    process = psutil.Process()
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun began earlier
        process = process.parent() or process
    return time.time() - process.create_time()


def duration(seconds: float) -> str:
    """Seconds in the unit that one would say them in."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


@dataclass(frozen=True)
class Length:
    """How long a training is.

    Attributes:
        epochs: number of epochs.
        steps_per_epoch: steps of each.
        val_interval: epochs between validations; the last epoch is validated in any case.
    """

    epochs: int
    steps_per_epoch: int
    val_interval: int

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    @property
    def validations(self) -> int:
        """Validations in all."""
        return -(-self.epochs // self.val_interval)

    def seconds(self, step: float, validation: float) -> float:
        """What it takes, from the seconds of a step and of a validation."""
        return self.steps * step + self.validations * validation


def affordable(
    seconds: float,
    step: float,
    validation: float,
    *,
    one_pass: int,
    steps_per_epoch: int | None = None,
    val_interval: int | None = None,
) -> Length | None:
    """The longest training that fits into a time.

    An epoch is one pass over the slices, or a thirtieth of the training where that is shorter.

    Args:
        seconds: for steps and validations.
        step: seconds of a step.
        validation: seconds of a validation; 0 for a training without.
        one_pass: steps of a pass over the slices.
        steps_per_epoch: steps of an epoch where they are given.
        val_interval: epochs between validations where they are given; ``None``: ten validations, or as many as take a
            tenth of the time, one at least.

    Returns:
        the length; ``None`` where not even an epoch of one step (or of ``steps_per_epoch``) fits.
    """
    wanted = min(VALIDATIONS, max(1, int(VALIDATION_SHARE * seconds / validation))) if validation else VALIDATIONS
    steps = int((seconds - (1 if val_interval else wanted) * validation) / step)
    per_epoch = steps_per_epoch or min(one_pass, max(1, steps // EPOCHS))
    epochs = steps // per_epoch
    if epochs < 1:
        return None
    length = Length(epochs, per_epoch, val_interval or -(-epochs // wanted))
    while length.epochs > 1 and length.seconds(step, validation) > seconds:  # val_interval asks for more validations
        length = replace(length, epochs=length.epochs - 1)
    return length


def bought(minutes: float, spent: float, step: float, validation: float, **given: int | None) -> Length:
    """What is bought by some minutes of which a part is spent already.

    Args:
        minutes: all of the time.
        spent: seconds of it that are over, the start among them.
        step, validation, given: as of :func:`affordable`.

    Raises:
        InputError: too few minutes for an epoch.
    """
    length = affordable(60 * minutes * (1 - RESERVE) - spent, step, validation, **given)  # type: ignore[arg-type]
    if length is None:
        epoch = (given.get("steps_per_epoch") or 1) * step
        least = math.ceil((spent + epoch + validation) / (1 - RESERVE) / 6) / 10  # no less than would do
        raise InputError(
            f"minutes {minutes:g}: expected at least {least:.1f}, for start and measuring took {spent:.0f} s, and an "
            f"epoch takes {epoch:.1f} s, a validation {validation:.1f} s; give more minutes, or lower --spatial_size."
        )
    return length


def few_steps(length: Length, spent: float, step: float, validation: float, **given: int | None) -> str:
    """What to say of a training too short to learn much; empty for any other.

    Args:
        length: of the training.
        spent: seconds that are over before its first step.
        step, validation, given: as of :func:`affordable`.
    """
    if length.steps >= FEW:
        return ""
    minutes = 0
    found: Length | None = length
    while found is None or found.steps < FEW:
        minutes = max(1, math.ceil(1.05 * minutes), math.ceil((spent + FEW * step) / (1 - RESERVE) / 60))
        found = affordable(60 * minutes * (1 - RESERVE) - spent, step, validation, **given)  # type: ignore[arg-type]
    return (
        f"{length.steps:,} steps are few; a network learns little in less than about {FEW}. They would take --minutes "
        f"{minutes} here; a smaller --spatial_size makes steps cheaper."
    )


def check_one_length(minutes: float | None, epochs: int | None) -> None:
    """That a training is told how long it is to be, once.

    Raises:
        InputError: by both or by neither.
    """
    if minutes is not None and (isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or minutes <= 0):
        raise InputError(f"minutes: expected a number above 0, or None for a training by epochs, received {minutes!r}.")
    if minutes is not None and epochs is not None:
        raise InputError(
            f"minutes {minutes:g} and epochs {epochs}: expected one of the two, received both; leave one out, or give "
            "--epochs '$None' or --minutes '$None' where a config sets it."
        )
    if minutes is None and epochs is None:
        raise InputError("epochs: expected a number, or minutes instead, received neither; give --epochs or --minutes.")
