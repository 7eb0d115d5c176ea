"""Which patients are labelled, unlabelled, for validation or for testing: named, or drawn by seed."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataio.datalist_checks import LISTS
from ..dataio.patients import Cases, list_of_folder
from ..dataio.storage import write_text
from ..errors import InputError, raise_all

#: As :func:`as_names` or :func:`words` take them; on a command line a text, which fire would read as Python.
Names = Any


def words(value: Names) -> list[Any]:
    """``"background,heart"``, ``[background, heart]`` or nothing, from a command line."""
    if value is None:
        return []
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError):
            quoted = ast.literal_eval(value)
            if isinstance(quoted, (list, tuple)) and all(isinstance(name, str) for name in quoted):
                return [name.strip() for name in quoted]
        inside = value[1:-1] if value[:1] + value[-1:] in ("[]", "()") else value
        return [name.strip(" '\"") for name in inside.split(",")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def as_names(value: Any) -> list[str] | int:
    """A number of patients, or a list of names, from a command line.

    Args:
        value: ``7`` or ``"7"``; ``"038,050"`` or ``[038, 050]``; ``patient:6`` for one whose name is a number; or a
            file of names, one a line, which may hold blanks and commas.
    """
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, (bool, int, float)):
        raise InputError(f"Expected a number of patients of 0 or more, or names, received {value}.")
    if isinstance(value, str):
        if re.fullmatch(r"0|[1-9]\d*", value):  # 038 is a name
            return int(value)
        if re.fullmatch(r"-?\d*\.?\d+", value) and not value.isdigit():
            raise InputError(f"Expected a number of patients of 0 or more, or names, received {value}.")
        if os.path.isfile(value):
            return [name for line in _text(value).splitlines() if (name := line.strip())]
        inner = value[1:-1] if value[:1] + value[-1:] in ("[]", "()") else value
        value = inner.split(",")
    return [name for part in value if (name := str(part).strip(" \t'\"").removeprefix("patient:").strip())]


def _text(path: str) -> str:
    """What a file of names holds; programs of Windows begin it with a mark of UTF-8.

    Raises:
        InputError: another encoding.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected names in UTF-8, received other bytes ({error}); save it so.") from error


def distribute(cases: Cases, wanted: Mapping[str, list[str] | int], *, seed: int = 0) -> dict[str, str]:
    """The list of every patient that is not unlabelled.

    Args:
        cases: all of them.
        wanted: for ``testing``, ``validation``, ``training``: how many patients to draw, or names of patients or cases.
            Without ``training`` every patient with labels that is left.
        seed: of the draw.

    Raises:
        InputError: too few patients, unknown names, a patient in two lists.
    """
    taken: dict[str, str] = {}
    rng = random.Random(seed)
    # names first, then draws: what is named is never drawn for another list
    for use, names in sorted(wanted.items(), key=lambda pair: isinstance(pair[1], int)):
        _choose(names, cases.groups if not isinstance(names, int) else cases.labeled_groups, taken, use, rng)
    if "training" not in wanted:
        taken.update({group: "training" for group in cases.labeled_groups if group not in taken})
    return taken


def _choose(
    wanted: list[str] | int, groups: Mapping[str, list[str]], taken: dict[str, str], use: str, rng: random.Random
) -> None:
    """Give ``wanted`` groups (a number to draw, or names of patients or cases) to the list ``use``, in ``taken``."""
    if isinstance(wanted, int):
        free = [group for group in groups if group not in taken]
        if wanted > len(free):
            raise InputError(
                f"{wanted} patients wanted for {use}, but only {len(free)} are left all of whose images have labels; "
                "lower the numbers, label more, or tell patients apart otherwise (--group_by)."
            )
        chosen = rng.sample(free, wanted)
        if wanted and str(wanted) in groups:
            print(f"{use}: {wanted} patients are drawn; the patient of that name would be patient:{wanted}")
    else:
        by_case = {case: group for group, cases in groups.items() for case in cases}
        known = {unicodedata.normalize("NFC", name): name for name in (*by_case, *groups)}  # macOS writes umlauts apart
        wanted = [known.get(unicodedata.normalize("NFC", name), name) for name in wanted]
        # names parted by blanks, unless a name holds one
        wanted = [part for name in wanted for part in ([name] if name in groups or name in by_case else name.split())]
        unknown = [name for name in wanted if name not in groups and name not in by_case]
        raise_all(f"{name}: named for {use}, but there is no such {_meant(name)}." for name in unknown)
        chosen = list(dict.fromkeys(by_case.get(name, name) for name in wanted))
    for group in chosen:
        if group in taken:
            raise InputError(f"{group}: a patient can stand in one list only, received {taken[group]} and {use}.")
        taken[group] = use


def _meant(name: str) -> str:
    a_file = os.path.basename(name) != name or name.lower().endswith((".txt", ".csv"))
    return "patient or case, nor such a file of names" if a_file else "patient or case"


def draw_folds(taken: Mapping[str, str], number: int, *, seed: int = 0) -> dict[str, int]:
    """The fold of every patient of ``training``, for cross-validation; two folds differ by one patient at most.

    Args:
        taken: the list of every patient that is not unlabelled.
        number: of folds.
        seed: of the draw.

    Raises:
        InputError: a list ``validation`` as well, or a number that is not from 2 to the number of patients.
    """
    if apart := sorted(group for group, use in taken.items() if use == "validation"):
        raise InputError(f"folds: expected no list `validation`, for in cross-validation those of `training` validate "
                         f"in turn, received {', '.join(apart)}; leave out --validation, or --folds.")  # fmt: skip
    groups = [group for group, use in taken.items() if use == "training"]
    if not (type(number) is int and 2 <= number <= len(groups)):
        raise InputError(f"folds: expected a number from 2 to that of the patients to train on with labels, "
                         f"{len(groups)}, received {number!r}.")  # fmt: skip
    random.Random(seed).shuffle(groups)
    return {group: place % number for place, group in enumerate(groups)}


def make_lists(
    cases: Cases,
    taken: Mapping[str, str],
    root: Path,
    *,
    folds: Mapping[str, int] | None = None,
    to_train: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """The lists of a datalist, paths relative to ``root``; a patient that is in no list is unlabelled.

    Args:
        cases: all of them.
        taken: the list of every patient that is not unlabelled.
        root: folder of the images and labels.
        folds: fold of the patients of ``training``.
        to_train: whether somebody has to be left to train on.

    Raises:
        InputError: cases chosen for a list of labelled ones that have no label, or none left to train on.
    """
    lists: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
    problems, left = [], []
    for group, members in cases.groups.items():
        use = taken.get(group, "unlabeled")
        for case in members:
            files = cases.images[case]
            item: dict[str, Any] = {
                "image": [_relative(f, root) for f in files] if isinstance(files, list) else _relative(files, root)
            }
            apart = case not in cases.labels and list_of_folder(case) == "unlabeled"
            if apart and use in ("validation", "testing"):
                left.append(case)
                continue
            if use != "unlabeled" and not apart:
                if case not in cases.labels:
                    problems.append(f"{cases.images[case]}: chosen for {use}, but it has no label of that name.")
                    continue
                item["label"] = _relative(cases.labels[case], root)
            if folds and use == "training" and not apart:
                item["fold"] = folds[group]
            lists["unlabeled" if apart else use].append(item)
    raise_all(problems)
    if left:
        print(
            f"{'left out':<11} {len(left)} images below `unlabeled` of patients for validation or testing, "
            f"{left[0]} first"
        )
    if to_train and not cases.labels:
        raise InputError(f"{root}: expected a label for one of the images at least, found none by folders and names; "
                         "say where they lie by --images and --labels, or their ending by --label_suffix.")  # fmt: skip
    if to_train and not lists["training"]:
        raise InputError(f"{root}: no case is left to train on with its label; lower the numbers for validation and "
                         "testing, or give --labeled 0 and --testing for a datalist to score alone.")  # fmt: skip
    return lists


def _relative(path: Path, root: Path) -> str:
    """``path`` below ``root``; links keep their names."""
    return Path(os.path.relpath(os.path.abspath(path), os.path.abspath(root))).as_posix()


def list_lines(
    cases: Cases,
    taken: Mapping[str, str],
    lists: Mapping[str, Sequence],
    note: str = "patients",
    *,
    folds: Mapping[str, int] | None = None,
) -> list[str]:
    """A line for each list, how many patients and images, and who; and for each fold, if there are any."""
    lines = []
    partly = sorted(g for g in cases.groups if g not in cases.labeled_groups
                    and any(c in cases.labels for c in cases.groups[g]))  # fmt: skip
    if partly:
        lines.append(f"partly labelled, used without their labels: {' '.join(partly)}")
    for use in LISTS:
        members = sorted(group for group in cases.groups if taken.get(group, "unlabeled") == use)
        lines.append(f"{use:<11} {len(members):4d} {note} {len(lists[use]):5d} images  {' '.join(members)}")
    for fold in sorted({*(folds or {}).values()}):
        members = sorted(group for group, own in (folds or {}).items() if own == fold)
        lines.append(f"{f'fold {fold}':<11} {len(members):4d} {note}  {' '.join(members)}")
    return lines


def write_json(output: str | Path, content: Mapping[str, Any]) -> None:
    """Write a datalist, making its folder."""
    write_text(Path(output), json.dumps(content, indent=2) + "\n")
