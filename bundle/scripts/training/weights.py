"""Files of weights: saved by a training with the settings that they mean nothing without, and loaded."""

from __future__ import annotations

import json
import logging
import math
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Workflow

from ..dataio.storage import read_json, replace_file
from ..distributed import rank_and_size
from ..errors import InputError
from .trainer import unwrapped

logger = logging.getLogger("semsim")

#: What a state lies in in files of MONAI, of this program's checkpoints and of Lightning.
WRAPPINGS = ("model", "network", "state_dict")
#: Settings of a training that its weights mean nothing without; a file of weights has them, too.
NOTED = (
    "spatial_dims", "spacing", "spatial_size", "in_channels", "features", "class_names", "slice_axis", "intensity",
)  # fmt: skip


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
