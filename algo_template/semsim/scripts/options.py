"""What a user may set: names of other algorithms, strings from a command line, keys that stay as generated."""

from __future__ import annotations

import ast
import difflib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger("semsim")

#: Names of other Auto3DSeg algorithms for our keys.
ALIASES = {
    "num_epochs": "epochs",
    "num_images_per_batch": "batch_size",
    "num_epochs_per_validation": "val_interval",
    "roi_size": "spatial_size",
    "input_channels": "in_channels",
}
#: Where the results of a fold lie, which fold it is, and what it was generated for.
FIXED = ("bundle_root", "generated_in", "output_dir", "ckpt_path", "fold", "spatial_dims")

#: What reads `window`.
WINDOWED = "scripts.dataio.intensity.Intensityd"
#: Keys that are lists whatever the configuration makes them of.
LISTS = ("class_names", "label_values", "metrics")


def layers(spatial_dims: int | None) -> list[str]:
    """Names of the configurations of a fold, each an overlay of those before; ``None``: slices, as 2."""
    return ["train", *(["volumes"] if spatial_dims == 3 else []), "hyper_parameters"]


def moved_along(path: str, generated_in: str | None, bundle_root: str, datalist: str = "") -> str:
    """Where a file or folder of the data is, that may have been copied or moved together with a generated folder.

    Args:
        path: as the folder was generated.
        generated_in: where that was.
        bundle_root: where the folder is now.
        datalist: file with the images in the folder ``path``, if it is one. Every folder has one above it, which is no
            other place of the data unless they are there.

    Returns:
        the one that lies to the folder as ``path`` lay to it then, if there is one; otherwise ``path``.
    """
    here = Path(bundle_root).resolve()
    if not path or not generated_in or here == Path(generated_in):
        return path
    beside = Path(os.path.normpath(here / os.path.relpath(path, generated_in)))
    if beside.exists() and (not datalist or _has_images(beside, datalist)):
        logger.info(f"{beside}: taken in the place of {path}, for this folder was generated in {generated_in}.")
        return str(beside)
    return path


def _has_images(folder: Path, datalist: str) -> bool:
    """Whether the first image of a datalist is there; a list that cannot be read is told by who reads it."""
    try:
        image = json.loads(Path(datalist).read_text())["training"][0]["image"]
        return (folder / (image if isinstance(image, str) else image[0])).exists()
    except (OSError, ValueError, LookupError, TypeError):
        return True


def understood(given: Mapping[str, Any], known: Any, *, source: str) -> dict[str, Any]:
    """Keys of the configuration that a user sets; what SemSim does not know is named in the log and left out.

    Args:
        given: keys and values as they came, under our names or those of other algorithms; ``loss#lambda_u`` reaches
            into the configuration.
        known: the configuration (a ``ConfigParser``).
        source: where they came from, for messages.

    Returns:
        values by our names, in the type of the configuration.

    Raises:
        ValueError: a value that cannot be meant.
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key)
        if name in FIXED:
            logger.warning(f"{source}: {key} stays as generated; {value!r} is ignored.")
        elif name not in known:
            near = difflib.get_close_matches(name, [*known.get(), *ALIASES], n=1)
            hint = f" (is {near[0]} meant?)" if near else ""
            logger.warning(f"{source}: SemSim has no key {key}{hint}; {value!r} is ignored.")
        else:
            value = converted(value, [] if name in LISTS else known[name], key)
            if name == "spatial_size" and isinstance(value, list) and len(value) == 3 and known["spatial_dims"] != 3:
                if key == name:
                    raise ValueError(
                        f"{source}: spatial_size {value}: expected the pixels of a slice, one or two numbers, received "
                        "three; leave the number of slices out."
                    )
                logger.warning(f"{source}: {key} {value} is of three dimensions and this fold of two; ignored.")
                continue
            values[name] = value
    if values.get("window") is not None:  # in the place of what the data suggest
        values.setdefault("intensity", {"_target_": WINDOWED, "keys": "image", "window": values["window"]})
    return values


def one_length(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a user in which `minutes` stand in for the epochs that others gave or chose, or the other way round.

    Args:
        values: as :func:`understood` returns them; both of one user stay, and the training refuses them.
    """
    first, other = ("minutes", "epochs") if values.get("minutes") is not None else ("epochs", "minutes")
    return {other: None, **values} if values.get(first) is not None else dict(values)


def converted(value: Any, like: Any, key: str) -> Any:
    """A value from a command line in the type of what it replaces: ``"16,16"``, ``"a,b"`` and ``"false"``.

    Args:
        value: as it came.
        like: the value of the configuration.
        key: its name, for messages.

    Raises:
        ValueError: text for a switch that is neither true nor false.
    """
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, str) or value.startswith(("$", "@", "%")):
        return value
    if isinstance(like, bool):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{key}: expected true or false, received {value!r}.")
        return value.lower() == "true"
    if isinstance(like, list) or "," in value:
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return [part.strip() for part in value.strip("[]").split(",")] if isinstance(like, list) else value
        return list(read) if isinstance(read, tuple) else read
    return value
