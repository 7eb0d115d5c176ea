"""What is saved beside the weights, and restored by everything that loads them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import Workflow

from ..callers import caller
from ..dataio.files import case_names, image_files
from ..dataio.intensity import NAME, as_saved
from ..dataio.stated import MADE_UP, class_names
from ..dataio.storage import read_json, write_text
from ..distributed import check_agreed, rank_and_size
from ..errors import InputError
from ..method.network import SegmentationNet
from .checkpoints import resume_checkpoints
from .inputs import LISTS_FILE, compare_inputs, inputs
from .lock import locked, release
from .recipe import differences, is_free, recipe
from .weights import load_weights, noted, weights_file

logger = logging.getLogger("semsim")

SETTINGS_FILE = "training.json"
#: What prediction repeats of a training, and what is taken where nothing is saved beside the weights.
REPEATED: dict[str, Any] = {
    "spatial_dims": 2,
    "spacing": None,
    "spatial_size": 224,
    "in_channels": 1,
    "features": [16, 32, 64, 128, 256, 16],
    "class_names": ["background", "right ventricle", "myocardium", "left ventricle"],
    "label_values": None,
    "ignore_label": None,
    "slice_axis": None,
    "intensity": {
        "_target_": NAME,
        "keys": "image", "lower": 0.5, "upper": 99.5, "channel_wise": True,
    },
    "fusion": "sfm",
    "keep_largest": False,
    "flip_tta": False,
}  # fmt: skip


def saved(ckpt_path: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """``training.json`` beside weights or in the folder of a training, and its content; empty where it is missing."""
    path = weights_file(ckpt_path).parent / SETTINGS_FILE
    return path, read_json(path)


def trained(ckpt_path: str | os.PathLike, window: Any = None) -> dict[str, Any]:
    """The settings that the weights in a file were trained with, so that users need not repeat them.

    Args:
        ckpt_path: weights, or the folder of a training; ``training.json`` is looked for beside them.
        window: lowest and highest intensity, instead of what was done in training.

    Returns:
        plain data for every key of ``REPEATED``; ``intensity`` describes a transform, see
        :func:`~scripts.dataio.intensity.transform_of`. What is not saved there is as the weights themselves say, and
        what these do not say as in ``REPEATED``, with a warning.
    """
    path, known = saved(ckpt_path)
    if own := {name: value for name, value in _told(ckpt_path).items() if name not in known}:
        rest = ", ".join(sorted(REPEATED.keys() - own.keys() - known.keys()))
        logger.warning(
            f"{path}: settings are missing beside the weights; taken from the weights themselves: {', '.join(own)}"
            f"{f'; by default, unless given: {rest}' if rest else ''}."
        )
        known |= own
    guessed = [name for name, value in REPEATED.items() if name not in known and value is not None]
    # nothing else was there before they were saved
    silent = {"spatial_dims", "features", "fusion", "keep_largest", "flip_tta"}
    if window is not None:
        known["intensity"] = {"_target_": REPEATED["intensity"]["_target_"], "keys": "image", "window": window}
        silent.add("intensity")
    if told := [f"{name}: {_shown(REPEATED[name])}" for name in guessed if not known or name not in silent]:
        lack = "some settings are missing" if path.is_file() else "no settings beside the weights"
        logger.warning(f"{path}: {lack}; using {', '.join(told)}, unless given.")
    return {**REPEATED, **{name: known[name] for name in REPEATED if known.get(name) is not None}}


def trained_network(ckpt_path: str | os.PathLike, device: str | torch.device = "cpu") -> torch.nn.Module:
    """The U-Net with the weights in a file, of the widths, channels and classes that are saved beside them.

    Raises:
        InputError: as :func:`~scripts.training.weights.load_weights`.
    """
    known = trained(ckpt_path)
    network = SegmentationNet(known["spatial_dims"], known["in_channels"], len(known["class_names"]), known["features"])
    return load_weights(network, str(ckpt_path), device)


def check_noted(ckpt_path: str | os.PathLike) -> None:
    """That weights lie beside the settings that they were trained with, as far as their file says so.

    Args:
        ckpt_path: weights, or the folder of a training.

    Raises:
        InputError: they were trained with others, with which alone they predict well.
    """
    (path, known), told = saved(ckpt_path), _told(ckpt_path)
    if other := differences(as_saved(known), as_saved(told), told.keys() & known.keys()):
        raise InputError(
            f"{weights_file(ckpt_path)}: these weights were trained with other settings than {path} says "
            f"({'; '.join(other[:4])}); put them there together with their own {SETTINGS_FILE}."
        )


def _told(ckpt_path: str | os.PathLike) -> dict[str, Any]:
    """What weights say of their training; nothing if they cannot be read, which whoever loads them says."""
    with contextlib.suppress(InputError):
        return noted(weights_file(ckpt_path))
    return {}


def _shown(value: Any) -> Any:
    return "percentiles" if isinstance(value, Mapping) else value


class SaveSettings:
    """Write ``training.json`` beside the weights: what prediction has to know, and what a result has to name."""

    def __init__(
        self,
        output_dir: str | os.PathLike,
        settings: Mapping[str, Any],
        labeled: Sequence[Mapping[str, Any]],
        *,
        unlabeled: Sequence[Mapping[str, Any]] | None = None,
        validation: Sequence[Mapping[str, Any]] | None = None,
        dataset_dir: str | os.PathLike = "",
        resume: str = "",
    ) -> None:
        """
        Args:
            output_dir: folder of the training.
            settings: ``spatial_size``, ``in_channels``, ``class_names``, ``slice_axis``, ``intensity`` and what else
                is worth it.
            labeled: items of the datalist that were trained on with their labels.
            unlabeled: items that were trained on without; ``None``: not to be compared at a resume.
            validation: items that choose the best weights; ``None``: not to be compared either.
            dataset_dir: folder that files are named relative to, so that it may move between a stop and a resume.
            resume: as for :class:`~scripts.training.checkpoints.ResumeFrom`; a file may be of another folder.
        """
        self.path, self.parser = Path(output_dir) / SETTINGS_FILE, caller(ConfigParser)
        self.file = isinstance(resume, str) and os.path.isfile(resume)
        self.begun = Path(resume).parent if self.file else self.path.parent
        names = case_names([image_files(item)[0] for item in labeled])
        cases = [item.get("case") or name for item, name in zip(labeled, names)]
        self.settings = {**settings, "processes": rank_and_size()[1], "labeled_cases": cases}
        if initial := settings.get("initial"):  # to be found from any folder
            self.settings["initial"] = os.path.abspath(initial)
        streams = {"labelled": labeled, "unlabelled": unlabeled, "validation": validation}
        self.lists = inputs(streams, dataset_dir)
        self.written = False

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, before what resumes it."""
        engine.add_event_handler(Events.STARTED, self._begin)
        # after all that may refuse to start
        engine.add_event_handler(Events.EPOCH_STARTED | Events.COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda: self.unlock())

    def _begin(self) -> None:
        # by now the training is made, and its configuration resolved
        self.settings["recipe"] = recipe(self.parser) if self.parser else {}
        before = self.begun / SETTINGS_FILE
        if self.file or resume_checkpoints(self.begun):
            if not before.exists():
                logger.warning(
                    f"{before}: missing, so nothing tells whether this training goes on with the settings and files "
                    "that it began with; put it there, from the folder of the training."
                )
            self._compare(before, json.loads(json.dumps(self.settings)))
            compare_inputs(self.begun / LISTS_FILE, self.lists)
        lock = locked(self.path.parent)
        self.unlock = weakref.finalize(self, release, lock)  # at the end of the process at the latest

    def _write(self, engine: Workflow) -> None:
        if self.written:
            return
        self.written = True
        versions = {"monai": monai.__version__, "torch": torch.__version__}
        write_settings(self.path, {**self.settings, "versions": versions})
        write_text(self.path.with_name(LISTS_FILE), json.dumps(self.lists, indent=0) + "\n")

    def _compare(self, path: Path, now: dict[str, Any]) -> None:
        """That a training is resumed with the settings that it began with, as far as they were saved then."""
        began = read_json(path)
        free = {"epochs", "minutes", "keep_largest", "flip_tta", "recipe"}  # the others may change on the way
        if began.get("initial"):  # which nothing reads any more, so it may have moved or be left out
            free.add("initial")
            self.settings["initial"] = now.get("initial") or began["initial"]
        other = differences(as_saved(began), as_saved(now), (now.keys() & began.keys()) - free)
        was, values = began.get("recipe"), now["recipe"]
        if was and values:  # what a setting says is not said again
            for gone in ("teacher#ema_decay", "loss#ignore"):  # of earlier versions: the checkpoint tells of the first,
                was.pop(gone, None)  # and the second is always on
            noted = {name for name in was.keys() | values.keys() if not is_free(name)}  # an earlier version noted more
            other = other or differences(was, values, noted)
        if other:
            more = f"; and {len(other) - 4} more" if len(other) > 4 else ""
            raise InputError(
                f"{path}: the training here began with other settings ({'; '.join(other[:4])}{more}); resume with "
                "those, or begin anew in another --output_dir."
            )


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write ``training.json``, with a line for each setting and for each value of the recipe."""

    def lines(values: Mapping[str, Any], indent: str) -> str:
        return ",\n".join(f"{indent}{json.dumps(name)}: {value}" for name, value in values.items())

    texts = {name: json.dumps(value) for name, value in settings.items()}
    if known := settings.get("recipe"):
        texts["recipe"] = "{\n" + lines({name: json.dumps(value) for name, value in known.items()}, "    ") + "\n  }"
    write_text(path, "{\n" + lines(texts, "  ") + "\n}\n")


def find_checkpoint(
    output_dir: str | os.PathLike, bundle_root: str | os.PathLike, datalist: str | os.PathLike = ""
) -> str:
    """The weights to predict and evaluate with.

    Args:
        output_dir: folder of a training: its ``model_best.pt`` (best on validation) or else ``model_last.pt``.
        bundle_root: whose ``models/model.pt`` is taken when the training folder has neither.
        datalist: JSON file of the images; one that names other classes than the shipped weights is not theirs.

    Returns:
        path of the file; a warning is logged where it is the shipped one.

    Raises:
        InputError: there is none, or the shipped one knows other classes than the datalist.
    """
    candidates = [Path(output_dir) / "model_best.pt", Path(output_dir) / "model_last.pt"]
    candidates.append(Path(bundle_root) / "models" / "model.pt")
    for path in candidates:
        if path.is_file():
            if path is candidates[-1]:
                known = trained(path)["class_names"]
                here = class_names(datalist, known)
                if len(here) != len(known) or any(name not in known and not MADE_UP.fullmatch(name) for name in here):
                    raise InputError(
                        f"{output_dir}: no trained weights here, and the shipped {path} are for {', '.join(known)}, "
                        f"not for {', '.join(here)} of {datalist}; mend --output_dir, or give --ckpt_path FILE."
                    )
                logger.warning(f"{output_dir}: no trained weights here; using the shipped {path}.")
            check_agreed(str(path))
            return str(path)
    raise InputError(
        f"{candidates[0]}: no trained weights here, and no {candidates[-1]}; train first or give --ckpt_path FILE."
    )
