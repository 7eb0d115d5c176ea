"""Checkpoints that a training resumes from."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint
from monai.engines import Workflow
from monai.handlers import CheckpointLoader
from torch.optim.lr_scheduler import PolynomialLR

from ..dataio.storage import check_folder
from ..distributed import check_agreed
from ..errors import InputError
from .weights import read_state, weights_file, write_whole

logger = logging.getLogger("semsim")

RESUME_PREFIX = "resume"
#: Before the names of checkpoints of epochs that a training goes back behind.
ABANDONED = "abandoned"


class ResumeCheckpoint:
    """Everything that a training needs to go on, in ``resume_checkpoint_N.pt`` after epoch N; the last two are kept.

    Network, optimizer, schedule, best score and whatever else is handed over, the trainer's epoch and iteration, the
    scaler of mixed precision. Random numbers need no saving: they follow from (seed, epoch). Unlike MONAI's
    ``CheckpointSaver`` it writes beside the final place and renames, so that no half-written file is taken for whole.

    A training that goes on from an older one renames the later ones to ``abandoned_resume_checkpoint_N.pt``: they would
    be kept in place of its own, and taken for the newest.
    """

    def __init__(self, save_dir: str, save_dict: Mapping[str, Any], *, interval: int = 1) -> None:
        """
        Args:
            save_dir: folder of the checkpoints.
            save_dict: what to save besides the trainer: network, optimizer, schedule.
            interval: epochs between two checkpoints.
        """
        self.save_dir, self.save_dict, self.interval = save_dir, dict(save_dict), interval

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, whose state is saved too."""
        checkpoint = Checkpoint(
            {**self.save_dict, "scaler": PrecisionState(engine), "trainer": engine},
            self._write,
            filename_prefix=RESUME_PREFIX,
            global_step_transform=lambda *_: engine.state.epoch,
            n_saved=None,
        )
        engine.add_event_handler(Events.EPOCH_STARTED, self._put_aside)  # by then all has been read and checked
        every = Events.EPOCH_COMPLETED(every=self.interval)
        engine.add_event_handler(every, checkpoint)
        engine.add_event_handler(every, self._keep_two)

    def _write(self, content: Mapping[str, Any], filename: str, _: Any = None) -> None:
        write_whole(content, Path(self.save_dir) / filename)

    def _put_aside(self, engine: Workflow) -> None:
        for path in resume_checkpoints(self.save_dir):
            if _epoch(path) < engine.state.epoch:
                continue
            kept, number = path.with_name(f"{ABANDONED}_{path.name}"), 2
            while kept.exists():
                kept, number = path.with_name(f"{ABANDONED}{number}_{path.name}"), number + 1
            path.rename(kept)
            logger.warning(
                f"{path}: of an epoch after the checkpoint that this training goes on from; kept as {kept.name}, which "
                "`auto` does not take."
            )

    def _keep_two(self) -> None:
        # ignite forgets the files of an earlier process, so the folder is asked
        for path in resume_checkpoints(self.save_dir)[:-2]:
            path.unlink(missing_ok=True)


class PrecisionState:
    """What a trainer computes in, and its scaler of mixed precision if it has one (MONAI makes it when the run begins).

    Weights and moments are float32 in any case, so a training goes on where the machine computes in something else.
    """

    def __init__(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer, a ``SemSimTrainer``.
        """
        self.engine: Any = engine

    def state_dict(self) -> dict[str, Any]:
        """For the resume checkpoint."""
        scaler = {} if self.engine.scaler is None else self.engine.scaler.state_dict()
        return {"dtype": str(self.engine.precision.dtype), **scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the scaler of an earlier process, where both had one; say so where the precision is another."""
        scaler = dict(state)
        before = scaler.pop("dtype", None)
        if before and before != str(self.engine.precision.dtype):
            before = before.removeprefix("torch.")
            logger.warning(f"This training has used {before} so far; it continues in {self.engine.precision}.")
        if scaler and self.engine.scaler is not None and self.engine.scaler.is_enabled():
            self.engine.scaler.load_state_dict(scaler)


def read_checkpoint(path: str | os.PathLike) -> Mapping[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        InputError: not a whole file of tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: expected a checkpoint of this program, could not read it ({type(error).__name__}); resume from "
            "another file, or start afresh in another --output_dir."
        ) from error


def newest_readable(paths: Sequence[Path]) -> Path | None:
    """The newest of some checkpoints that is whole; ``None`` if there are none.

    Raises:
        InputError: none of them is.
    """
    for path in reversed(paths):
        try:
            read_checkpoint(path)
            return path
        except InputError as error:
            logger.warning(error)
            last = error
    if paths:
        raise last
    return None


def resume_checkpoints(save_dir: str | os.PathLike) -> list[Path]:
    """Checkpoints of :class:`ResumeCheckpoint` in a folder, that of the last epoch last."""
    found = Path(save_dir).glob(f"{RESUME_PREFIX}_checkpoint_*.pt")  # copies have other times, and clocks may go wrong
    return sorted((path for path in found if path.stem.rsplit("_", 1)[1].isdecimal()), key=_epoch)


def _epoch(path: Path) -> int:
    """That after which one of :func:`resume_checkpoints` was written."""
    return int(path.stem.rsplit("_", 1)[1])


def resume_path(resume: str, save_dir: str | os.PathLike) -> str | None:
    """The checkpoint that this process finds to go on from, ``None`` for a fresh start.

    Args:
        resume, save_dir: as for :class:`ResumeFrom`, whose errors of one process this raises.
    """
    folder = Path(save_dir)
    found = resume_checkpoints(folder)
    if resume in ("auto", True):
        newest, last = newest_readable(found), folder / "model_last.pt"
        if newest is None and last.exists():
            raise InputError(
                f"{last}: a training has ended here, and none of its {RESUME_PREFIX}_checkpoint_N.pt is left to go on "
                f"from; give another --output_dir, with --initial {folder} to begin with its weights."
            )
        return None if newest is None else str(newest)
    fresh = resume in ("", None, False)
    if not fresh and not os.path.isfile(resume):
        raise InputError(f"{resume}: no such checkpoint; give a file, `auto`, or nothing for a fresh start.")
    begins = fresh or Path(resume).resolve().parent != folder.resolve()
    if begins and (earlier := [*sorted(folder.glob("model_*.pt")), *found]):
        raise InputError(
            f"{earlier[-1]}: an earlier training has its files here; continue it with --resume auto, or give another "
            "--output_dir."
        )
    return None if fresh else resume


def check_start(resume: str | None, output_dir: str, initial: str | os.PathLike = "") -> None:
    """That what a training begins with can be used, before it reads its images.

    Each process looks for itself, for not all of them need come here at the same point of their run.

    Args:
        resume, output_dir: as for :class:`ResumeFrom`; ``None``: no matter what lies there, for nothing is written.
        initial: weights to begin with, or the folder of a training; empty: none.

    Raises:
        InputError: also where the weights cannot be read, or ``output_dir`` not be written.
    """
    check_folder(output_dir, "output_dir", output_dir)
    if resume is not None:
        resume_path(resume, output_dir)
    if initial:
        read_state(weights_file(initial), option="initial")


def stretch(schedule: PolynomialLR, total: int) -> None:
    """Let a schedule take its course to another end, from the step where it is.

    Args:
        schedule: of the learning rate.
        total: its steps in all.
    """
    schedule.total_iters = total
    for group, rate in zip(schedule.optimizer.param_groups, schedule._get_closed_form_lr()):
        group["lr"] = rate


class ResumeFrom:
    """Load a checkpoint of :class:`ResumeCheckpoint` when training starts."""

    def __init__(self, resume: str, save_dir: str, load_dict: dict[str, Any]) -> None:
        """
        Args:
            resume: empty for a fresh start, ``auto`` for the newest checkpoint in ``save_dir`` that is whole, if there
                is one, or a file.
            save_dir: folder of the checkpoints.
            load_dict: what was saved besides the trainer.

        Raises:
            InputError: no such file, one that cannot be read, a fresh start or a checkpoint of another folder where
                files of an earlier training lie, ``auto`` where one has ended and left no checkpoint, or processes that
                found different checkpoints.
        """
        self.path = resume_path(resume, save_dir)
        check_agreed(self.path)
        self.load_dict = dict(load_dict)

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        if self.path is not None:
            engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, engine: Workflow) -> None:
        logger.info(f"Resuming from {self.path}")
        steps, schedule = engine.state.epoch_length, self.load_dict.get("lr_scheduler")
        total = schedule.total_iters if isinstance(schedule, PolynomialLR) else None
        # everything is copied to where it belongs; on a GPU an optimizer's count of steps would stay there, and each
        # step would wait for it once for every parameter
        where: Any = "cpu"  # annotated as a dict in MONAI, handed to torch.load as it is
        load_dict = {**self.load_dict, "trainer": engine}
        content = read_checkpoint(str(self.path))
        if "trainer" not in content:
            raise InputError(
                f"{self.path}: expected a checkpoint to resume from ({RESUME_PREFIX}_checkpoint_N.pt), received "
                "weights alone; begin a new training with them by --initial FILE."
            )
        if content.get("teacher"):  # of an earlier version
            raise InputError(
                f"{self.path}: its training has pseudo-labels of a moving average (ema_decay), which this version "
                "lacks; resume with the version that it began with, or begin anew in another --output_dir."
            )
        state, wanted = content["trainer"], engine.state.max_epochs
        done = state["iteration"] // state["epoch_length"]
        if wanted is not None and done > wanted:
            raise InputError(
                f"{self.path}: its training has done {done} epochs, received epochs {wanted}; give --epochs {done} "
                "or more."
            )
        if "scaler" in content:
            load_dict["scaler"] = PrecisionState(engine)
        if "stages" not in content:  # of an earlier version
            load_dict.pop("stages", None)
        CheckpointLoader(load_path=str(self.path), load_dict=load_dict, map_location=where)(engine)
        if engine.state.epoch_length != steps:
            raise InputError(
                f"{self.path}: its training had {engine.state.epoch_length} steps an epoch, this one has {steps}; "
                "resume with the same datalist, batch_size and processes, or start afresh in another --output_dir."
            )
        if isinstance(schedule, PolynomialLR) and total is not None and schedule.total_iters != total:
            stretch(schedule, total)  # another number of epochs
