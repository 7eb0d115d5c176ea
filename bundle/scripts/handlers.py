"""Handlers of training and evaluation: what is logged, shown, warned of and saved."""

from __future__ import annotations

import csv
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint, DiskSaver
from monai.engines import Workflow
from monai.handlers import CheckpointLoader
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from .datalist import case_name
from .errors import InputError
from .loaders import rank_and_size

logger = logging.getLogger("semsim")

RESUME_PREFIX = "resume"
SETTINGS_FILE = "training.json"


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file, writing its header first. A file with other columns is kept under another name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open(newline="") as file:
            if next(csv.reader(file), None) != list(row):
                path.replace(path.with_name(f"{path.stem}_{time.strftime('%Y%m%d_%H%M%S')}{path.suffix}"))
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


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
        self.count, self.started = 0, 0.0
        self.shown: set[str] = set()
        self.warned: set[str] = set()

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _reset(self) -> None:
        self.sums, self.count, self.started = {}, 0, time.perf_counter()

    def _add(self, engine: Workflow) -> None:
        self.count += 1
        for name, value in engine.state.scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _write(self, engine: Workflow) -> None:
        means = {name: total / self.count for name, total in self.sums.items()}
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


class TrainingProgress:
    """Progress bar over the whole training with the time left, and an early line on how long it will take."""

    def __init__(self, *, hint: str = "", warmup: int = 3, after: int = 10, max_seconds: float = 30.0) -> None:
        """
        Args:
            hint: what to do about a long run, added to the estimate when it exceeds ten minutes.
            warmup: first steps, which are slower and not counted.
            after: steps after which the estimate is given, or
            max_seconds: seconds, whichever comes first.
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


def duration(seconds: float) -> str:
    """``4000`` -> ``1 h 7 min``."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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
        shown = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name != "epoch")
        logger.info(f"validation after epoch {row['epoch']}: {shown}")


class ResumeCheckpoint:
    """Everything that a training needs to go on, in ``resume_checkpoint_N.pt`` after epoch N; the last two are kept.

    Unlike MONAI's ``CheckpointSaver`` it writes beside the final place and renames, so that a half-written file is
    never taken for whole.
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
            {**self.save_dict, "trainer": engine},
            DiskSaver(self.save_dir, create_dir=True, require_empty=False, atomic=True),
            filename_prefix=RESUME_PREFIX,
            global_step_transform=lambda *_: engine.state.epoch,
            n_saved=None,
        )
        every = Events.EPOCH_COMPLETED(every=self.interval)
        engine.add_event_handler(every, checkpoint)
        engine.add_event_handler(every, self._keep_two)

    def _keep_two(self) -> None:
        # ignite forgets the files of an earlier process, so the folder is asked
        for path in resume_checkpoints(self.save_dir)[:-2]:
            path.unlink()


def resume_checkpoints(save_dir: str | os.PathLike) -> list[Path]:
    """Checkpoints of :class:`ResumeCheckpoint` in a folder, the newest last."""
    found = Path(save_dir).glob(f"{RESUME_PREFIX}_checkpoint_*.pt")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


class ResumeFrom:
    """Load a checkpoint of :class:`ResumeCheckpoint` when training starts."""

    def __init__(self, resume: str, save_dir: str, load_dict: dict[str, Any], device: str | torch.device) -> None:
        """
        Args:
            resume: empty for a fresh start, ``auto`` for the newest checkpoint in ``save_dir`` if there is one, or a
                file.
            save_dir: folder of the checkpoints.
            load_dict: what was saved besides the trainer.
            device: where to load it to.

        Raises:
            InputError: no such file, or a fresh start where checkpoints of an earlier training lie.
        """
        found = resume_checkpoints(save_dir)
        self.path: str | None = None
        if resume in ("", None, False):
            if earlier := [*sorted(Path(save_dir).glob("model_*.pt")), *found]:
                raise InputError(
                    f"{earlier[-1]}: an earlier training has its files here; go on from it with --resume auto, or "
                    "give another --output_dir."
                )
        elif resume in ("auto", True):
            self.path = str(found[-1]) if found else None
        elif os.path.isfile(resume):
            self.path = resume
        else:
            raise InputError(f"{resume}: no such checkpoint; give a file, `auto`, or nothing for a fresh start.")
        self.load_dict, self.device = dict(load_dict), device

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer."""
        if self.path is not None:
            engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, engine: Workflow) -> None:
        logger.info(f"Resuming from {self.path}")
        steps, schedule = engine.state.epoch_length, self.load_dict.get("lr_scheduler")
        total = getattr(schedule, "total_iters", None)
        where: Any = self.device  # annotated as a dict in MONAI, handed to torch.load as it is
        load_dict = {**self.load_dict, "trainer": engine}
        CheckpointLoader(load_path=str(self.path), load_dict=load_dict, map_location=where)(engine)
        if engine.state.epoch_length != steps:
            raise InputError(
                f"{self.path}: its training had {engine.state.epoch_length} steps an epoch, this one has {steps}; "
                "resume with the same datalist, batch_size and processes, or start afresh in another --output_dir."
            )
        if schedule is not None and total is not None and schedule.total_iters != total:
            # another number of epochs: the schedule takes its course to the new end
            schedule.total_iters = total
            for group, rate in zip(schedule.optimizer.param_groups, schedule._get_closed_form_lr()):
                group["lr"] = rate


class SaveBest:
    """Keep the weights of the best validation in ``model_best.pt``, also across restarts.

    Unlike MONAI's ``CheckpointSaver`` its record is part of the resume checkpoint, so a resumed training does not
    replace a better file by its first validation.
    """

    def __init__(
        self, output_dir: str | os.PathLike, network: torch.nn.Module, filename: str = "model_best.pt"
    ) -> None:
        """
        Args:
            output_dir: folder of the file.
            network: whose state is kept.
            filename: name of the file.
        """
        self.path, self.network = Path(output_dir) / filename, network
        self.best, self.epoch = float("-inf"), 0

    def state_dict(self) -> dict[str, float]:
        """The record, for the resume checkpoint."""
        return {"best": self.best, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up the record of an earlier process."""
        self.best, self.epoch = state["best"], int(state["epoch"])

    def attach(self, engine: Workflow) -> None:
        """Register with the evaluator of a training."""
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Workflow) -> None:
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if not score > self.best:
            return
        self.best, self.epoch = score, engine.state.epoch
        if rank_and_size()[0] > 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        part = self.path.with_suffix(".part")
        torch.save(network.state_dict(), part)
        os.replace(part, self.path)


class SaveSettings:
    """Write ``training.json`` beside the weights: what prediction has to know, and what a result has to name."""

    def __init__(
        self, output_dir: str | os.PathLike, settings: Mapping[str, Any], labeled: Sequence[Mapping[str, Any]]
    ) -> None:
        """
        Args:
            output_dir: folder of the training.
            settings: ``spatial_size``, ``in_channels``, ``class_names``, ``slice_axis`` and whatever else is worth it.
            labeled: items of the datalist that were trained on with their labels.
        """
        self.path = Path(output_dir) / SETTINGS_FILE
        cases = [case_name(item["image"] if isinstance(item["image"], str) else item["image"][0]) for item in labeled]
        self.settings = {**settings, "labeled_cases": cases}

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, before what resumes it."""
        engine.add_event_handler(Events.STARTED, self._write)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and resume_checkpoints(self.path.parent):
            earlier, now = json.loads(self.path.read_text()), json.loads(json.dumps(self.settings))
            other = [k for k in now if k != "epochs" and k in earlier and earlier[k] != now[k]]
            if other:
                raise InputError(
                    f"{self.path}: the training here began with other settings ("
                    + "; ".join(f"{k}: expected {earlier[k]}, received {now[k]}" for k in other)
                    + "); resume with those, or give another --output_dir."
                )
        versions = {"monai": monai.__version__, "torch": torch.__version__}
        self.path.write_text(json.dumps({**self.settings, "versions": versions}, indent=2) + "\n")


def trained_setting(ckpt_path: str | os.PathLike, name: str, default: Any = None) -> Any:
    """A setting that the weights in ``ckpt_path`` were trained with, so that nobody has to repeat it.

    Args:
        ckpt_path: weights; ``training.json`` is looked for beside them.
        name: key in that file.
        default: returned when there is no such file or key.
    """
    path = Path(ckpt_path).parent / SETTINGS_FILE
    if not path.is_file():
        if default is not None:
            logger.warning(f"{path}: no settings beside the weights; taking {name}: {default}.")
        return default
    value = json.loads(path.read_text()).get(name)
    return default if value is None else value


def find_checkpoint(output_dir: str | os.PathLike, bundle_root: str | os.PathLike) -> str:
    """The weights to predict and evaluate with.

    Args:
        output_dir: folder of a training: its ``model_best.pt`` (best on validation) or else ``model_last.pt``.
        bundle_root: whose ``models/model.pt`` is taken when the training folder has neither.

    Returns:
        path of the file; a warning is logged where it is the shipped one.

    Raises:
        InputError: there is none.
    """
    candidates = [Path(output_dir) / "model_best.pt", Path(output_dir) / "model_last.pt"]
    candidates.append(Path(bundle_root) / "models" / "model.pt")
    for path in candidates:
        if path.is_file():
            if path is candidates[-1]:
                logger.warning(f"{output_dir}: no trained weights here; taking the shipped {path}.")
            return str(path)
    raise InputError(
        f"{candidates[0]}: no trained weights, nor {candidates[-1]}; train first or give --ckpt_path FILE."
    )


def load_weights(network: torch.nn.Module, ckpt_path: str, device: str | torch.device) -> torch.nn.Module:
    """Load a state into ``network``, strictly, and return it in evaluation mode on ``device``.

    Raises:
        InputError: the file is missing, is no state (or would run code), or is that of another network.
    """
    try:
        state = torch.load(ckpt_path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"{ckpt_path}: no such file; give --ckpt_path FILE (a training without validation has model_last.pt alone)."
        ) from None
    except Exception as error:
        raise InputError(
            f"{ckpt_path}: expected a PyTorch file of tensors alone, could not load it ({type(error).__name__}); give "
            "a model_best.pt or model_last.pt."
        ) from error
    state = state.get("model", state.get("network", state))
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(
            f"{ckpt_path}: these weights are of another network ({reason}); in_channels, class_names and the network "
            "must be those of the training."
        ) from error
    logger.info(f"Weights: {ckpt_path}")
    return network.to(device).eval()
