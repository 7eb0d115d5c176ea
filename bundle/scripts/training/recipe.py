"""What a training learns by, as plain values of its configuration: for a resume to compare."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

#: Entries of a configuration that a training depends on, with all that they name.
ROOTS = ("train#trainer", "lr_scheduler")
#: Names of what may change on the way: the machine, memory and speed, the length (steps an epoch are compared by
#: themselves), the place of the data (of which there are lists) and of the first weights, what looks on, and names of
#: classes in messages.
FREE = {
    "device", "amp", "non_blocking", "pin_memory", "num_workers", "cache_rate", "progress", "fusion_checkpoint",
    "max_epochs", "total_iters", "steps", "clock", "data", "initial", "train_handlers", "class_names",
}  # fmt: skip


def recipe(parser: ConfigParser) -> dict[str, Any]:
    """Every value that the training of a configuration depends on, by its place: ``{"loss#threshold": 0.8, ...}``.

    A reference is the value of what it names, or leads to it. An expression is what came out of it, or its text where
    that is no plain value.

    Args:
        parser: whose content is resolved as far as the training needs it; nothing more is resolved here.
    """
    found: dict[str, Any] = {}
    for root in ROOTS:
        if root in parser:
            _collect(parser, ReferenceResolver.normalize_id(root), found)
    return found


def is_free(name: str) -> bool:
    """Whether a value at this place may change on the way."""
    return name.split("#")[-1] in FREE


def differences(began: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """A line for each of the names whose value is another than it was, or that is there on one side only.

    Of values with parts, such as a transform, a line for each part: ``intensity#window: expected [0, 1], ...``.
    """

    def shown(values: Mapping[str, Any], name: str) -> str:
        return json.dumps(values[name]) if name in values else "nothing"

    lines = []
    for name in sorted(names):
        if name in began and name in now and began[name] == now[name]:
            continue
        was, new = began.get(name), now.get(name)
        if isinstance(was, Mapping) and isinstance(new, Mapping):
            lines += [f"{name}#{line}" for line in differences(was, new, was.keys() | new.keys())]
        else:
            lines.append(f"{name}: expected {shown(began, name)}, received {shown(now, name)}")
    return lines


def _collect(parser: ConfigParser, key: str, found: dict[str, Any]) -> None:
    name = key.replace("::", "#")
    if name in found or is_free(name):
        return
    raw = parser[key]
    parts = raw if isinstance(raw, Mapping) else range(len(raw)) if isinstance(raw, list) else ()
    named = list(ReferenceResolver.match_refs_pattern(raw)) if isinstance(raw, str) else []
    resolved = parser.ref_resolver.resolved_content
    value: Any = resolved.get(named[0] if named and raw.startswith("@") else key, raw)
    if _plain(value):
        found[name] = value.rsplit(".", 1)[-1] if name.endswith("#_target_") else value  # modules move between versions
        return
    if isinstance(raw, str) and raw.startswith("$"):
        found[name] = raw
    for following in [*(f"{key}::{part}" for part in parts), *named]:
        _collect(parser, following, found)


def _plain(value: Any) -> bool:
    """Whether a value is one of JSON, with nothing in it to be resolved or made."""
    if isinstance(value, Mapping):
        return "_target_" not in value and all(_plain(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return all(_plain(part) for part in value)
    return value is None or (isinstance(value, (bool, int, float, str)) and not str(value).startswith(("@", "$")))
