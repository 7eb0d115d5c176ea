"""What a datalist states of its data besides the lists: classes, their values, channels, intensities, slices.

The command ``create`` writes it down, so that a training needs no option for it; an option of its own goes first.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from .datalist import load_datalist, readable_items
from .slice_axis import direction_of

#: Names of classes that nobody named.
MADE_UP = re.compile(r"class \d+")


def stated(datalist: str | os.PathLike, name: str, given: Any = "auto", default: Any = None) -> Any:
    """What a datalist says under a name.

    Args:
        datalist: JSON file.
        name: ``labels``, ``label_values``, ``channels``, ``window``, ``slice_axis``, ``trust``.
        given: returned instead, unless it is ``auto``.
        default: returned where the datalist does not say, or where there is none.

    Raises:
        InputError: ``channels`` that are no number.
    """
    if given != "auto":
        return given
    found = load_datalist(datalist).get(name, default) if os.path.isfile(datalist) else default
    if name == "channels" and not (isinstance(found, int) and found > 0):
        raise InputError(f"{datalist}: expected `channels` to be a whole number, received {found!r}; mend it.")
    return found


def classes_of(path: str | os.PathLike, labels: Any) -> tuple[list[str], list[int], int | None]:
    """Names, values and what is ignored, of ``labels`` in a JSON file: by value (Decathlon) or by name (nnU-Net)."""
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    if not isinstance(labels, Mapping) or not labels:
        return [], [], None
    if any(isinstance(value, (list, tuple)) for value in labels.values()):
        raise InputError(f"{path}: its classes are regions of several values, which overlap; here classes exclude "
                         "each other, so give --images and --labels, and the values by --label_values.")  # fmt: skip
    by_value = all(str(key).lstrip("-").isdigit() for key in labels)
    try:
        pairs = [(int(k), str(v)) if by_value else (int(v), str(k)) for k, v in labels.items()]
    except (TypeError, ValueError):
        expected = '{"0": "background", "1": "liver"}'
        raise InputError(f"{path}: expected `labels` such as {expected}, received {labels}.") from None
    ignored = [value for value, name in pairs if name.lower() == "ignore"]
    kept = sorted(pair for pair in pairs if pair[0] not in ignored)
    return [name for _, name in kept], [value for value, _ in kept], ignored[0] if ignored else None


def _classes(datalist: str | os.PathLike) -> tuple[list[str], list[int], int | None]:
    """Names and values of the classes, background first, and the value to ignore; empty where ``labels`` is missing."""
    names, values, ignored = classes_of(datalist, stated(datalist, "labels"))
    order = stated(datalist, "label_values") or values
    if sorted(order) != values:
        raise InputError(f"{datalist}: expected `label_values` of the values in `labels`, {values}, received {order}.")
    by_value = dict(zip(values, names))
    return [by_value[value] for value in order], order, ignored


def class_names(datalist: str | os.PathLike, default: Sequence[str]) -> list[str]:
    """Names of the classes, background first: as in ``labels`` of a datalist; the ``default`` where there is no file.

    Raises:
        InputError: a datalist without names, which those of other data would stand for.
    """
    names = _classes(datalist)[0]
    if not names and os.path.isfile(datalist):
        raise InputError(
            f'{datalist}: expected names of the classes, received none; add "labels": {{"0": "background", "1": '
            '"liver"}, or give --class_names "[background,liver]".'
        )
    return names or list(default)


def label_values(datalist: str | os.PathLike) -> list[int] | None:
    """Their values in the label files, as in ``labels``; ``None`` for 0, 1, 2, ..."""
    values = _classes(datalist)[1]
    return values if values != list(range(len(values))) else None


def ignore_label(datalist: str | os.PathLike) -> int | None:
    """Value of the voxels to ignore: that whose name in ``labels`` is ``ignore``; ``None`` where there is none."""
    return _classes(datalist)[2]


def check_classes(datalist: str | os.PathLike, class_names: Sequence[str], label_values: Sequence[int] | None) -> None:
    """That a datalist gives no class of the weights the value of another one in their training.

    Names that ``create`` made up count for nothing. Values that the training did not know are refused where a label
    shows them.

    Args:
        datalist: JSON file.
        class_names: that the weights were trained on, background first.
        label_values: of them in label files; ``None``: 0, 1, 2, ...

    Raises:
        InputError: it does, so that one class would be scored as another.
    """
    names, values, _ = _classes(datalist)
    here = {name: value for name, value in zip(names, values) if not MADE_UP.fullmatch(name)}
    trained = dict(zip(class_names, label_values or range(len(class_names))))
    for name, value in trained.items():
        if here.get(name, value) != value and here[name] in trained.values():
            ours = [here.get(other, known) for other, known in trained.items()]
            shown = json.dumps(ours, separators=(",", ":"))
            option = f'"{shown}"' if len({*ours}) == len(ours) else f"and a value for each of {', '.join(trained)}"
            raise InputError(
                f"{datalist}: expected {name} to have the value {value} in labels, as these weights learnt it, "
                f"received {here[name]}; give --label_values {option}, or mend `labels` there."
            )


def slice_axis(
    given: str | int | None, datalist: str | os.PathLike, dataset_dir: str | os.PathLike, **options: Any
) -> str | int | None:
    """What slices are stacked along: as given, or as the datalist says, or as most of its images suggest.

    Args:
        given: ``R``, ``A``, ``S``, a stored axis, ``None`` for the coarsest of each image, or ``auto``.
        datalist: JSON file.
        dataset_dir: folder that its paths are relative to.
        options: of :func:`read_datalist`.

    Returns:
        the same but ``auto``; ``None`` where there are no volumes.
    """
    if given != "auto":
        return given
    if not os.path.isfile(datalist):
        return None
    known = stated(datalist, "slice_axis")
    return direction_of(readable_items(datalist, dataset_dir, **options)) if known is None else known
