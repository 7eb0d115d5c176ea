"""Cases to be scored that the weights have already seen with their labels, whose scores would be too high."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataio.files import case_name, image_files
from ..dataio.storage import read_json
from ..distributed import rank_and_size
from .inputs import LISTS_FILE, file_numbers, labelled_numbers
from .settings import saved
from .weights import weights_file

logger = logging.getLogger("semsim")


def warn_of_trained_on(ckpt_path: str | os.PathLike, data: Sequence[Mapping[str, Any]]) -> None:
    """Say so where cases to be scored were trained on, by these weights or by those that they began with.

    They are known by the size of the image and the checksum of the label, wherever the files lie.

    Args:
        ckpt_path: weights, or the folder of a training; ``training_lists.json`` is looked for beside them.
        data: items to be scored.
    """
    known = _trained_on(weights_file(ckpt_path))
    if not known or rank_and_size()[0] > 0:
        return
    names = [
        str(item.get("case") or case_name(image_files(item)[0]))
        for item in data
        if tuple(number for _, number in file_numbers(item, "")) in known
    ]
    if names:
        logger.warning(
            f"{ckpt_path}: these weights were trained on {len(names)} of the {len(data)} cases to be scored, with "
            f"their labels, {names[0]} first; their scores are too high for new images, so score others."
        )


def _trained_on(weights: Path) -> set[tuple[int, ...]]:
    """Numbers of image and label of each labelled case of a training, and of those that it began with."""
    found: set[tuple[int, ...]] = set()
    folders: list[Path] = []
    while weights.parent not in folders:
        folders.append(weights.parent)
        settings, known = saved(weights)
        lists = settings.with_name(LISTS_FILE)
        found |= labelled_numbers(read_json(lists))
        weights = weights_file(known.get("initial") or weights)
    return found
