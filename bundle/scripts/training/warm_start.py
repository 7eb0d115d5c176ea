"""Training that starts from the weights of another training, with the same or other classes: ``--initial FILE``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dataio.intensity import as_saved
from ..errors import InputError
from .recipe import differences
from .settings import saved
from .weights import read_state, weights_file

logger = logging.getLogger("semsim")

#: The layer that gives a score to each class, and the part that training alone has.
HEAD, FUSION = "backbone.final_conv.", "fusion."


def initialized(
    network: torch.nn.Module,
    initial: str | os.PathLike,
    class_names: Sequence[str],
    *,
    same_classes: bool = False,
    preparation: Mapping[str, Any] | None = None,
) -> torch.nn.Module:
    """``network`` with the weights of a file, as far as they mean the same in it.

    Its last layer is made anew where the file's classes are others, and so is the fusion where the file has another
    kind. Everything else has to fit.

    Args:
        network: of the training, with random weights.
        initial: file of weights, or the folder of a training; empty: none. ``training.json`` beside it names its
            classes.
        class_names: of the training.
        same_classes: whether other classes are refused, as in MONAI Label, whose panel has a switch `pretrained`.
        preparation: of the images of this training, by the keys of ``training.json``: ``intensity``, ``spacing``. A
            warning says where that of the weights was another.

    Returns:
        the same network.

    Raises:
        InputError: the file has other channels or another network (of 2D for 3D, say), or other classes where that is
            refused.
    """
    if initial in ("", None):
        return network
    initial = weights_file(initial)
    state, own = read_state(initial, option="initial"), network.state_dict()
    _check_axes(initial, state, own)
    _, known = saved(initial)
    before, now = known.get("class_names"), json.loads(json.dumps(preparation or {}))
    if other := differences(as_saved(known), as_saved(now), now.keys() & known.keys()):
        logger.warning(
            f"{initial}: these weights have seen images prepared in another way ({'; '.join(other)}); they will "
            "adapt, or give --window or --spacing as then."
        )
    new: list[str] = []
    others = before is not None and list(before) != list(class_names)
    if others or (any(k.startswith(HEAD) for k in state) and _differ(state, own, HEAD)):
        was = f"classes {', '.join(before)}" if others and before else "another number of classes"
        if same_classes:
            raise InputError(
                f"{initial}: expected weights of {', '.join(class_names)}, received {was}; give others, or switch "
                "`pretrained` off to train from scratch."
            )
        wanted = ", ".join(class_names)
        if any(k.startswith(HEAD) for k in own):
            logger.info(f"{initial}: weights of {was}; the last layer is initialised anew for {wanted}.")
            new.append(HEAD)
        else:  # a network of the user's, whose last layer may have any name
            logger.warning(f"{initial}: weights of {was}; this network begins with all of them, also for {wanted}.")
    if any(k.startswith(FUSION) for k in own) and _differ(state, own, FUSION):
        logger.info(f"{initial}: has no weights for this kind of fusion, which is initialised anew.")
        new.append(FUSION)
    fused = any(k.startswith(FUSION) for k in own)
    left_out = tuple(new) if fused else (*new, FUSION)
    kept = {k: v for k, v in state.items() if not k.startswith(left_out)}
    expected = {k: v for k, v in own.items() if not k.startswith(left_out)}
    wrong = sorted(k for k in kept.keys() | expected.keys() if _shape(kept, k) != _shape(expected, k))
    if wrong:
        raise InputError(
            f"{initial}: these weights are of another network ({wrong[0]}: expected {_shape(expected, wrong[0])}, "
            f"received {_shape(kept, wrong[0])}); in_channels and features must be those of their training."
        )
    network.load_state_dict({**own, **kept})
    logger.info(f"Starting from the weights in {initial}")
    return network


def _check_axes(initial: str | os.PathLike, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """That weights of slices are not given to a network of volumes, or the other way round."""
    kinds = {2: "slices (2D)", 3: "volumes (3D)"}
    theirs, ours = (
        max((value.ndim for value in weights.values() if isinstance(value, Tensor)), default=0) - 2
        for weights in (state, own)
    )
    if theirs != ours and {theirs, ours} <= kinds.keys():
        raise InputError(
            f"{initial}: expected weights of {kinds[ours]}, received weights of {kinds[theirs]}; give others, or train "
            f"on {kinds[theirs]}, {'with' if theirs == 3 else 'without'} configs/volumes.yaml."
        )


def _shape(state: dict[str, Any], key: str) -> tuple[int, ...] | None:
    value = state.get(key)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _differ(state: dict[str, Any], own: dict[str, Any], prefix: str) -> bool:
    keys = {k for k in state.keys() | own.keys() if k.startswith(prefix)}
    return any(_shape(state, k) != _shape(own, k) for k in keys)
