"""Checks of the numbers, names and paths of the configuration about to run: those that would do something else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser

from ..command_line import left_tilde
from ..dataio.sizes import MULTIPLE
from ..errors import InputError
from ..evaluation.inferer import flip_axes

#: Least and greatest value of whole numbers, and of others. ``None`` leaves the choice to the program.
WHOLE = {
    "epochs": (1, math.inf), "steps_per_epoch": (1, math.inf), "val_interval": (1, math.inf),
    "checkpoint_interval": (1, math.inf), "batch_size": (1, math.inf), "num_workers": (0, math.inf),
    "patches": (1, math.inf), "in_channels": (1, math.inf), "slice_batch": (1, math.inf),
    "seed": (0, 2**32 - 1), "fold": (0, math.inf), "loss#regions": (1, math.inf),
}  # fmt: skip
REAL = {
    "learning_rate": (0, math.inf), "weight_decay": (0, math.inf), "poly_power": (0, math.inf), "cache_rate": (0, 1),
    "copy_paste": (0, 1), "foreground": (0, 1), "feature_dropout": (0, 1), "loss#threshold": (0, 1),
    "loss#lambda_u": (0, math.inf), "loss#lambda_intra": (0, math.inf), "loss#lambda_cross": (0, math.inf),
    "loss#lambda_labeled": (0, math.inf), "loss#prototype_temperature": (0, math.inf),
    "loss#affinity_temperature": (0, math.inf), "loss#uncertainty_scale": (0, math.inf),
}  # fmt: skip
#: Stages of the U-Net, and its last upsampling.
WIDTHS = 6
#: What is either on or off. Any text is on to Python, "no" and "FALSE" too.
SWITCHES = (
    "publish", "keep_largest", "allow_outside", "fusion_checkpoint", "use_unlabeled", "show_progress",
    "loss#average_images", "loss#gather_prototypes",
)  # fmt: skip
#: Files and folders.
PATHS = ("bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_path", "initial", "resume", "plan_file")
#: Texts that are no paths.
TEXTS = ("output_postfix", "output_ext", "unlabeled_key", "evaluate_list", "mlflow_tracking_uri",
         "mlflow_experiment_name")  # fmt: skip
#: What YAML takes for text, for want of a point, and everybody else for a number.
NUMBER = re.compile(r"([+-]?\d+)(e[+-]?\d+)", re.IGNORECASE)


def wrong_values(parser: ConfigParser) -> Iterator[str]:
    """A line for each number out of its range, each text for a switch, and each other value that nothing could use."""
    yield from _numbers_as_text(parser.get())
    for check in (_ranges, _paths, _texts, _switches, _size, _alone, _device, _flips, _widths, _class_names):
        yield from check(parser)


def _ranges(parser: ConfigParser) -> Iterator[str]:
    for ranges, kinds, what in ((WHOLE, int, "a whole number"), (REAL, (int, float), "a number")):
        for key, (least, most) in ranges.items():
            value = _given(parser, key)
            right = isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most
            if value is not None and not right:
                limits = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
                number = isinstance(value, str) and value.strip()[:1] in (*"+-.0123456789",)
                text = "; write 1.0e-3 in place of 1e-3 in YAML, and no quotes" if number else ""
                yield f"{key}: expected {what} {limits}, received {value!r}{text}."


def _paths(parser: ConfigParser) -> Iterator[str]:
    for key in PATHS:
        value = _given(parser, key)
        if isinstance(value, str) and (line := left_tilde(value)):
            yield f"{key}: {line}"
        elif isinstance(value, str) and "::" in value:
            yield (
                f"{key}: expected a path without '#' and '::', which MONAI takes for its own, received {value!r} (as "
                "it became); rename or link that folder."
            )
        elif isinstance(value, bool):  # an option without its value; of `resume` it means auto
            if key != "resume":
                yield f"{key}: expected a path behind it, received none; give one, or leave the option out."
        elif isinstance(value, (int, float, list, tuple)):
            yield f"{key}: expected a path, received {value!r} (as MONAI reads it); write ./ before a name."


def _texts(parser: ConfigParser) -> Iterator[str]:
    for key in TEXTS:
        if (value := _given(parser, key)) is not None and not isinstance(value, str):
            yield (
                f"{key}: expected a text, received {value!r} (as MONAI reads it); write \"'TEXT'\", with both kinds of "
                "quotes, or in YAML 'TEXT'."
            )


def _switches(parser: ConfigParser) -> Iterator[str]:
    for key in SWITCHES:
        if isinstance(value := _given(parser, key), str) and value.lower() != "true":
            yield f"{key}: expected True or False, received the text {value!r}; write one of the two, without quotes."


def _size(parser: ConfigParser) -> Iterator[str]:
    size = _given(parser, "spatial_size")
    sides = [size, size] if isinstance(size, int) else size
    pixels = isinstance(sides, Sequence) and len(sides) == 2 and all(type(n) is int and n >= MULTIPLE for n in sides)
    slices = isinstance(size, str) or _given(parser, "spatial_dims") == 2  # patches say it themselves
    if size is not None and not pixels and slices:
        yield f"spatial_size: expected {MULTIPLE} pixels or more, or [width, height] of as many, received {size!r}."


def _alone(parser: ConfigParser) -> Iterator[str]:
    size, weight, gathered = (
        _given(parser, key) for key in ("batch_size", "loss#lambda_labeled", "loss#gather_prototypes")
    )
    if size == 1 and isinstance(weight, (int, float)) and weight > 0 and not gathered:
        yield (
            "batch_size: expected 2 or more with loss#lambda_labeled, by which the labelled images of a step describe "
            "each other, received 1; raise it, or set loss#lambda_labeled to 0."
        )


def _device(parser: ConfigParser) -> Iterator[str]:
    device = _given(parser, "device")
    try:
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0][:150]
        yield f"device: expected cpu, or a device that torch finds here, received {device!r} ({reason}); give another."


def _flips(parser: ConfigParser) -> Iterator[str]:
    flips, dims = _given(parser, "flip_tta"), _given(parser, "spatial_dims")
    if flips is not None and dims in (2, 3):  # a training, which only saves it
        try:
            flip_axes(flips, dims)
        except InputError as error:
            yield str(error)


def _widths(parser: ConfigParser) -> Iterator[str]:
    widths = _given(parser, "features")
    stated = isinstance(widths, Sequence) and len(widths) == WIDTHS and all(type(n) is int and n > 0 for n in widths)
    if widths is not None and not stated:
        example = '"[16,32,64,128,256,16]"'
        yield f"features: expected {WIDTHS} numbers of channels, {example} for instance, received {widths!r}."


def _class_names(parser: ConfigParser) -> Iterator[str]:
    names = _given(parser, "class_names")
    if names is None:
        return
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) < 2:
        yield f"class_names: expected at least two, \"['background','organ']\" for instance, received {names!r}."
    elif other := [name for name in names if not isinstance(name, str)]:
        yield (
            f"class_names: expected a text for each class, received {other[0]!r} (as MONAI reads it); write each in "
            "quotes, \"['background','organ']\" for instance."
        )
    elif twice := sorted({name for name in names if list(names).count(name) > 1}):
        yield (
            f"class_names: expected a name of its own for each class, received {', '.join(twice)} more than once; "
            "rename them, for scores and logs go by these names."
        )


def _numbers_as_text(config: Any, key: str = "") -> Iterator[str]:
    """Arguments of components, lr: 1e-2 for instance."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            if key or not isinstance(value, str):  # a text of its own may be a name
                yield from _numbers_as_text(value, f"{key}#{name}".lstrip("#"))
    elif isinstance(config, (list, tuple)):
        for place, value in enumerate(config):
            yield from _numbers_as_text(value, f"{key}#{place}")
    elif isinstance(config, str) and key not in {*WHOLE, *REAL} and (parts := NUMBER.fullmatch(config)):
        yield f"{key}: expected a number, received the text {config!r}; write {parts[1]}.0{parts[2]} in YAML."


def _given(parser: ConfigParser, key: str) -> Any:
    """A value as it stands there; ``None`` for one that is computed, which may need files that are not there yet."""
    value = parser.get(key)
    computed = isinstance(value, Mapping) or (isinstance(value, str) and value.startswith(("@", "$", "%")))
    return None if computed else value
