"""Names and values of the classes, as an input of Auto3DSeg and its data statistics say them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from monai.bundle import ConfigParser

from .generation import bundle_folder


def judged(stats: Mapping[str, Any], given: Mapping[str, Any]) -> list[int]:
    """Label values without that of voxels that nobody judged."""
    ignored = ignored_value(given)
    return [int(v) for v in stats["label_stats"]["labels"] if int(v) != ignored]


def ignored_value(given: Mapping[str, Any]) -> int | None:
    """Value of voxels that nobody judged: as the input says, or its datalist, where the fold's training reads it, too.

    Raises:
        ValueError: ``labels`` of the datalist that cannot be meant.
    """
    value: int | None = given.get("ignore_label")
    datalist = str(given.get("datalist", ""))
    if value is None and os.path.isfile(datalist) and bundle_folder():
        from semsim_bundle.scripts.dataio.stated import classes_of  # of the package that generates folders

        value = classes_of(datalist, ConfigParser.load_config_file(datalist).get("labels"))[2]
    return value


def _groups(class_names: Any, class_index: Any) -> list[list[int]]:
    """Label values of each named class."""
    if isinstance(class_names, list) and class_names and isinstance(class_names[0], Mapping):
        if not all(isinstance(entry, Mapping) and {"name", "index"} <= entry.keys() for entry in class_names):
            raise ValueError(f"class_names: expected name and index in each entry, received {class_names}.")
        class_index = [entry["index"] for entry in class_names]
    return [[int(v) for v in (g if isinstance(g, (list, tuple)) else [g])] for g in class_index or []]


def overlapping(class_names: Any, class_index: Any) -> bool:
    """Whether a label value belongs to two classes."""
    values = [v for group in _groups(class_names, class_index) for v in group]
    return len(values) != len(set(values))


def stated_names(given: Mapping[str, Any]) -> Any:
    """``class_names`` of an input; where ``class_index`` says their values, with name and index in each entry.

    Raises:
        ValueError: names and values that differ in number.
    """
    names, groups = given.get("class_names"), _groups(given.get("class_names"), given.get("class_index"))
    if names is None or not groups:
        return names
    if not isinstance(names, list) or len(names) != len(groups):
        raise ValueError(f"class_index {groups}: expected values for each of class_names, received {names}.")
    names = [entry["name"] if isinstance(entry, Mapping) else entry for entry in names]
    ignored = ignored_value(given)
    groups = [[v for v in group if v != ignored] for group in groups]
    return [{"name": str(name).strip(), "index": group} for name, group in zip(names, groups)]


def names_in_order(class_names: Any, labels: list[int]) -> list[str]:
    """The names of :func:`names_by_value` in the order of their values, background first."""
    return [name for _, name in sorted(names_by_value(class_names, labels).items())]


def names_by_value(class_names: Any, labels: list[int]) -> dict[int, str]:
    """A name for every label value, also of named ones that do not occur; those of a group are told apart by value.

    A list of names is of the values 0, 1, 2, ... if its first is ``background``, and otherwise of 1, 2, 3, ..., in that
    order and whatever values happen to occur.

    Raises:
        ValueError: a value without a name, or a name twice.
    """
    if isinstance(class_names, list) and class_names and not isinstance(class_names[0], Mapping):
        named = [str(name).strip() for name in class_names]
        if named[0].lower() != "background":
            named = ["background", *named]
        if max(labels) >= len(named) or len({name.lower() for name in named}) < len(named) or not all(named):
            raise ValueError(
                f"class_names {class_names}: expected a name of its own for each of the label values 1 to "
                f"{max(labels)}; the background needs none."
            )
        return dict(enumerate(named))
    if class_names is not None and not isinstance(class_names, list):
        raise ValueError(f"class_names: expected a list of names, received {class_names!r}.")
    names = {v: f"class {v}" if v else "background" for v in labels}
    if class_names:
        names.setdefault(0, "background")
        for entry, group in zip(class_names, _groups(class_names, None)):
            names |= {v: entry["name"] if len(group) == 1 else f"{entry['name']} {v}" for v in group}
    return names
