"""Which value in the label files is which class: by what the files show and what a user says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import InputError
from .survey import Survey
from .value_names import background_elsewhere, contradictions


def class_values(
    found: Survey,
    class_names: Sequence[str] = (),
    label_values: Sequence[int] = (),
    ignore_label: int | None = None,
) -> list[int]:
    """The value of every class in the label files, background first; none where no label was looked at.

    Args:
        found: what the files hold.
        class_names: names of the classes, background first, if they are known.
        label_values: the values, if they are known.
        ignore_label: value of voxels to ignore.

    Raises:
        InputError: values that leave open which class is which, or two classes of one name.
    """
    values = [int(v) for v in found.values if v != ignore_label]
    names, shown = list(class_names), ", ".join(str(v) for v in values)
    if len({*names}) < len(names):
        raise InputError(f"class_names: expected names that differ, received {', '.join(names)}.")
    if label_values:
        if wrong := sorted({*values} - {*label_values}):
            raise InputError(f"{_first(found, wrong[0])}: shows the value {wrong[0]}, which is not one of label_values "
                             f"{list(label_values)}; add it, or give it as --ignore_label.")  # fmt: skip
        if names and len(names) != len(label_values):
            raise InputError(f"{len(label_values)} label_values ({', '.join(map(str, label_values))}) and {len(names)} "
                             f"class names ({', '.join(names)}); give one name for each value.")  # fmt: skip
        return list(label_values)
    if not found.labels or not values:
        return []
    example = ",".join(map(str, sorted(values, key=lambda v: (v != 0, v)) if len(values) > 1 else [0, 1]))
    ask = f'say which is which by --label_values "{example}", one for each class and background first'
    if values == [0, 1, 255] and not any({1, 255} <= {*facts.values} for facts in found.labels.values()):
        raise InputError(f"Masks of 0 and 1 beside masks of 0 and 255: {_first(found, 1)} and {_first(found, 255)}; "
                         "store them alike, or give 255 as --ignore_label if it marks voxels to ignore.")  # fmt: skip
    if values[0] < 0 or (255 in values and len(values) > 2 and len(names) != len(values)):
        odd = values[0] if values[0] < 0 else 255
        smeared = f"; values between 0 and {odd} may be edges that were smoothed: then save masks of 0 and {odd} alone"
        raise InputError(
            f"The labels show the values {shown}, and {odd} (in {_first(found, odd)}) may be a class or mark voxels "
            f"to ignore; {ask}, or give --ignore_label {odd}{smeared if 128 <= values[-2] < 255 else ''}."
        )
    if 0 not in values or (len(values) == 1 and not names):
        missing = "no 0 for the background" if 0 not in values else "nothing but background"
        raise InputError(f"The labels show the values {shown}: {missing}; {ask}.")
    if values[-1] < len(names):
        return list(range(len(names)))  # a class that no label shows
    if names and len(names) != len(values):
        raise InputError(
            f"The labels show the values {shown}, but there are {len(names)} class names ({', '.join(names)}); "
            "give one name for each value."
        )
    return values


def values_and_doubts(
    found: Survey, names: list[str], values: list[int], ignore_label: int | None, *, said: bool
) -> tuple[list[int], list[str]]:
    """Those of :func:`class_values`, and a line for each doubt about them; none about what a user has ``said``."""
    doubts: list[str] = []
    try:
        values = class_values(found, names, values, ignore_label)
    except InputError as error:
        doubts.append(str(error))
    if not said:
        shown = [(facts.path, facts.values) for facts in found.labels.values()]
        doubts += contradictions(shown) or background_elsewhere(shown, ignore_label)
    return values, doubts


def _first(found: Survey, value: float) -> Path:
    """The first label that shows a value."""
    return next(facts.path for facts in found.labels.values() if value in facts.values)


def named(values: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """The names of classes of these values, made up where there are none."""
    return list(class_names) or ["background", *(f"class {c}" for c in range(1, len(values)))]


def unseen_line(found: Survey, training: Iterable[str], values: Sequence[int], class_names: Sequence[str]) -> str:
    """A warning of classes that no label of ``training`` shows; empty for none.

    Args:
        found: what the files hold.
        training: cases trained on with their labels.
        values: of the classes, background first.
        class_names: their names.
    """
    shown = {value for case in training if case in found.labels for value in found.labels[case].values}
    missing = [f"{name} ({value})" for value, name in zip(values, class_names) if value not in shown]
    return f"warning: no label of `training` shows {', '.join(missing)}: it cannot be learnt" if missing else ""


def label_names(values: Sequence[int], class_names: Sequence[str], ignore_label: int | None) -> dict[str, str]:
    """``labels`` of a datalist: names by value in the label files; empty where neither is known.

    Args:
        values: of the classes, background first, see :func:`class_values`.
        class_names: their names, if they are known.
        ignore_label: value of voxels to ignore.
    """
    values = values or range(len(class_names))
    names = dict(zip(map(str, values), named(values, class_names) if values else []))
    return names | ({str(ignore_label): "ignore"} if ignore_label is not None and names else {})
