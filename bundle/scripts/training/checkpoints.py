"""Files of a training: checkpoints to resume from, and weights."""

from __future__ import annotations

import json
import logging
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint
from monai.engines import Workflow
from monai.handlers import CheckpointLoader
from torch.optim.lr_scheduler import PolynomialLR

from ..dataio.storage import check_folder, read_json, replace_file
from ..distributed import check_agreed, rank_and_size
from ..errors import InputError
from .trainer import unwrapped

logger = logging.getLogger("semsim")

RESUME_PREFIX = "resume"
#: Before the names of checkpoints of epochs that a training goes back behind.
ABANDONED = "abandoned"
#: What a state lies in in files of MONAI, of this program's checkpoints and of Lightning.
WRAPPINGS = ("model", "network", "state_dict")
#: Settings of a training that its weights mean nothing without; a file of weights has them, too.
NOTED = (
    "spatial_dims", "spacing", "spatial_size", "in_channels", "features", "class_names", "slice_axis", "intensity",
)  # fmt: skip


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


class SaveBest:
    """Keep the weights of the best validation in ``model_best.pt``, also across restarts.

    Unlike MONAI's ``CheckpointSaver`` its record is part of the resume checkpoint, so a resumed training does not
    replace a better file by its first validation.
    """

    def __init__(self, output_dir: str | os.PathLike, network: torch.nn.Module) -> None:
        """
        Args:
            output_dir: folder of the file.
            network: whose state is kept.
        """
        self.path, self.network = Path(output_dir) / "model_best.pt", network
        self.best, self.epoch = float("-inf"), 0
        self.told = False

    def state_dict(self) -> dict[str, float]:
        """The record, for the resume checkpoint."""
        return {"best": self.best, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up the record of an earlier process, where its weights still lie here."""
        if self.path.is_file():
            self.best, self.epoch = state["best"], int(state["epoch"])

    def attach(self, engine: Workflow) -> None:
        """Register with the evaluator of a training."""
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Workflow) -> None:
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if math.isnan(score) and not self.told and rank_and_size()[0] == 0:
            self.told = True
            logger.warning(
                "Nothing to score: no label of `validation` shows a class, so no best weights are kept and "
                "model_last.pt is the result; add a case to `validation` that shows every class."
            )
        if not score > self.best:
            return
        self.best, self.epoch = score, engine.state.epoch
        if rank_and_size()[0] == 0:
            save_weights(self.network, self.path)


class SaveLast:
    """Write the weights of a finished training to ``model_last.pt``.

    Unlike MONAI's ``CheckpointSaver`` not when it ends by an error: a restart that is refused leaves the file alone.
    """

    def __init__(self, output_dir: str | os.PathLike, network: torch.nn.Module) -> None:
        """Arguments as of :class:`SaveBest`."""
        self.path, self.network = Path(output_dir) / "model_last.pt", network

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, lambda: save_weights(self.network, self.path))


def save_weights(network: torch.nn.Module, path: str | os.PathLike) -> None:
    """Write the state of a network, without the wrapper of distributed training, and :data:`NOTED` of its training.

    These are taken from the ``training.json`` beside it, and read by :func:`noted`; for others it is a state as any.
    """
    state: Any = unwrapped(network).state_dict()
    known = read_json(Path(path).with_name("training.json"))
    state.settings = {name: known[name] for name in NOTED if name in known}
    write_whole(state, Path(path))


def write_whole(content: Mapping[str, Any], path: Path) -> None:
    """Save tensors and plain values, as :func:`~scripts.dataio.storage.replace_file` does."""
    replace_file(path, lambda file: torch.save(content, file))


def weights_file(ckpt_path: str | os.PathLike) -> Path:
    """The file of weights that is meant: of a training's folder ``model_best.pt``, or else ``model_last.pt``.

    Without a case to validate on there is no best.
    """
    path = Path(ckpt_path)
    if not path.is_dir():
        return path
    return path / ("model_best.pt" if (path / "model_best.pt").is_file() else "model_last.pt")


def read_state(
    path: str | os.PathLike, device: str | torch.device = "cpu", *, option: str = "ckpt_path"
) -> dict[str, Any]:
    """The state of a network in a file, taken out of ``{"model": state}`` and the like, without ``module.`` in names.

    Args:
        path: the file.
        device: where to load it to.
        option: that named it, for messages.

    Raises:
        InputError: the file is missing, is no state (or would run code), or holds NaN or infinity.
    """
    state = _loaded(path, device, option)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path}: expected the state of a network, received a {type(state).__name__}; give weights.")
    broken = [key for key, value in state.items() if isinstance(value, torch.Tensor) and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{path}: expected finite weights, received NaN or infinity ({broken[0]}), as of a training that diverged; "
            f"give others as --{option}."
        )
    prefix = "module."
    if state and all(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def noted(path: str | os.PathLike) -> dict[str, Any]:
    """What a file of weights says of its training; empty in one that other programs, or earlier versions, wrote."""
    told = getattr(_loaded(path, "cpu", "ckpt_path"), "settings", {})
    known = {name: told[name] for name in NOTED if name in told} if isinstance(told, Mapping) else {}
    return json.loads(json.dumps(known, default=str, skipkeys=True))


def _loaded(path: str | os.PathLike, device: str | torch.device, option: str) -> Any:
    """The content of a file, or what :data:`WRAPPINGS` hold in it."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give --{option} FILE (a training without validation has model_last.pt alone)."
        ) from None
    except Exception as error:
        raise InputError(
            f"{path}: expected a PyTorch file of tensors alone, could not load it ({type(error).__name__}); give "
            "a model_best.pt or model_last.pt."
        ) from error
    for name in WRAPPINGS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            return state[name]
    return state


def load_weights(network: torch.nn.Module, ckpt_path: str, device: str | torch.device) -> torch.nn.Module:
    """Load a state into ``network``, strictly, and return it in evaluation mode on ``device``.

    Raises:
        InputError: the file is missing, is no state (or would run code), or is that of another network.
    """
    ckpt_path = str(weights_file(ckpt_path))
    state = read_state(ckpt_path, device)
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError) as error:
        reason = textwrap.shorten(str(error).strip().splitlines()[-1].strip(), 200, placeholder=" ...")
        raise InputError(
            f"{ckpt_path}: these weights are of another network ({reason}); in_channels, class_names and the network "
            "must be those of the training."
        ) from error
    logger.info(f"Weights: {ckpt_path}")
    return network.to(device).eval()
