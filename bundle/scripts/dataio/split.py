"""Which patients are labelled, unlabelled, for validation or for testing: named, or drawn by seed."""

from __future__ import annotations

import json
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, raise_all
from .storage import write_text

#: Patients to use, as :func:`as_names` takes them; on a command line a text, which fire would read as Python.
Names = Any

#: Lists of a datalist.
LISTS = ("training", "unlabeled", "validation", "testing")
#: What counts the images of one patient.
COUNTED = "frame|slice|slc|ses|session|visit|timepoint|time|tp|phase|day|week|month|year|run|echo"
WORDS = r"(?:baseline|follow[ _-]?up|pre|post)\d*(?=[^a-z0-9]|$)"
#: A day behind a name with a number, which says that it is not the name of a scan alone: ``P1_20190101``.
DAY = r"(?<=\d)[ _-](?:19|20)\d\d[_-]?(?:0\d|1[0-2])[_-]?[0-3]\d(?!\d)"
#: What follows a patient. A word does behind a number alone, and before no other: ``P1_pre``, not ``heart_post_002``.
AGAIN = rf"(?:(?:[_-]|(?<=\d) )(?:{COUNTED})[ _-]?\d+|(?<=\d)[ _-]{WORDS}(?![^/]*[ _-]\d)|{DAY})"
#: Folders that hold a visit or a sequence of every patient.
SEQUENCES = r"(?:t1|t2|pd)(?:[_-]?w|[_-]?c|[_-]?ce|[_-]?gd)?|flair|dwi|adc|swi|dce|mra?|mri|cta?|pet|us"
SHARED = rf"(?:(?:{COUNTED})[ _-]?\d+|{WORDS}|{SEQUENCES})"
BELOW = "their name below the folder of a visit or sequence"
FOLDER = "their outermost folder"
#: Where a case name shows whose image it is, the surest first: what it is called, and the expression.
PATIENTS = {
    "their BIDS subject": r"(?:^|[/_])(sub-[A-Za-z0-9]+)(?=[/_]|$)",
    "the number behind `patient` or `subject`": r"(?:^|[/ _-])((?:patient|subject)[ _-]?\d+)(?=\D|$)",
    "the subject of BraTS": r"(?:^|/)(brats-[a-z]+-\d+)-\d{3}(?=\D|$)",
    BELOW: rf"^{SHARED}/(?!{SHARED}(?:/|$))([^/]+?)(?:{AGAIN}[^/]*)?(?:/|$)",
    FOLDER: rf"^([^/]+?)(?:{AGAIN}[^/]*)?/",
    "their name up to _frame, _slice, _ses, a day and the like": rf"^(.+?){AGAIN}(?=\D|$)",
}
#: Outermost folders that are nobody's, by the list that they hold.
PARTS = {
    "training": "train|training|labell?ed",
    "unlabeled": "unlabell?ed",
    "validation": "val|valid|validation",
    "testing": "test|testing",
}
#: Those and folders of images, of whatever patient.
NOBODYS = re.compile(
    rf"^(?:(?:{'|'.join(PARTS.values())}|images?(?:tr|ts|val?|un\w*)?|scans|volumes)/)+", re.IGNORECASE
)


@dataclass(frozen=True)
class Cases:
    """Images and labels by patient.

    Attributes:
        images: file of every case, or the files of its channels.
        labels: label file of some of them.
        groups: cases of every patient.
        found_by: how many images were given their patient by what; those of no rule count as a patient each.
    """

    images: Mapping[str, Path | list[Path]]
    labels: Mapping[str, Path]
    groups: Mapping[str, list[str]]
    found_by: Mapping[str, int] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether anything says which images belong to one patient."""
        return any(self.found_by.values())

    @property
    def labeled_groups(self) -> dict[str, list[str]]:
        """Patients all of whose images have labels, but for those below a folder `unlabeled`."""
        return {
            group: cases
            for group, cases in self.groups.items()
            if any(case in self.labels for case in cases)
            and all(case in self.labels or _part(case) == "unlabeled" for case in cases)
        }


def group_cases(
    images: Mapping[str, Path | list[Path]], labels: Mapping[str, Path], group_by: str | None = None
) -> Cases:
    """Sort images by patient.

    Args:
        images: files by case name, which holds the folders below the image folder: ``patient1/mr``.
        labels: label files by case name.
        group_by: regular expression whose first group is the patient in a case name. ``None``: the first of
            ``PATIENTS`` that finds one; an image whose name shows none is a patient of its own.

    Raises:
        InputError: no regular expression, or names in which it finds no patient.
    """
    try:
        rules = {"--group_by": re.compile(group_by)} if group_by else {
            what: re.compile(pattern, re.IGNORECASE) for what, pattern in PATIENTS.items()}  # fmt: skip
    except re.error as error:
        raise InputError(f"group_by {group_by!r} is no regular expression ({error}); try '^(patient\\d+)'.") from None
    groups: dict[str, list[str]] = {}
    found_by: Counter[str] = Counter()
    spelt: dict[str, str] = {}
    problems = []
    for name, path in images.items():
        what, match = _patient(name if group_by else NOBODYS.sub("", name), rules)
        if match is None and not group_by:
            groups.setdefault(name, []).append(name)
            continue
        if match is None or not match.groups() or match.group(1) is None:
            problems.append(f"{path}: group_by {group_by!r} finds no patient in {name!r}; give an expression with one "
                            "group, for instance '^(patient\\d+)'.")  # fmt: skip
        else:
            patient = match.group(1)
            if not group_by:  # `Patient01_visit1` and `patient01_visit2`
                patient = spelt.setdefault(patient.casefold(), patient)
            groups.setdefault(patient, []).append(name)
            found_by[what] += 1
    raise_all(problems)
    if found_by[BELOW] and found_by.total() == found_by[BELOW] == len(groups):
        found_by.clear()  # nobody is in two of those folders, so they show nothing
    return Cases(images, labels, groups, found_by)


def _patient(name: str, rules: Mapping[str, re.Pattern[str]]) -> tuple[str, re.Match[str] | None]:
    """The first rule that finds a patient in a name, and what it found; if none does, none."""
    found = ((what, match) for what, rule in rules.items() if (match := rule.search(name)))
    return next(found, ("", None))


def lists_by_folder(cases: Cases, uses: Sequence[str] = ("validation", "testing")) -> dict[str, list[str]]:
    """Cases of labelled patients that lie below a folder for one of the lists ``uses``.

    Raises:
        InputError: a patient below several of these folders: one in two lists, or two of one name.
    """
    found: dict[str, list[str]] = {use: [] for use in uses}
    problems = []
    for group, members in cases.labeled_groups.items():
        parts = {case: _part(case) for case in members if case in cases.labels}
        if len({*parts.values()}) > 1 and {*parts.values()} & {*found}:
            first, other = (next(c for c, use in parts.items() if use == one) for one in sorted({*parts.values()})[:2])
            problems.append(
                f"{group}: expected the images of a patient below one of the folders for training, validation and "
                f"testing, received {first} and {other}; if these are of two patients give {_apart([*cases.images])}, "
                f"if of one say which patients are for {' and '.join(uses)} by --{' and --'.join(uses)}."
            )
        for case, use in parts.items():
            if use in found:
                found[use].append(case)
    raise_all(problems)
    return found


def _apart(names: Sequence[str]) -> str:
    """An option by which patients of one name in two folders are two."""
    tried = ("^(.+?/.+?)/", "^([^/]+/[^ _]+)")
    found = next((expression for expression in tried if all(re.search(expression, name) for name in names)), "")
    return f"--group_by '{found}'" if found else "a --group_by whose group holds the folder"


def _part(case: str) -> str:
    """The list that the outermost folder of a case is named after; ``training`` where it is after none."""
    outermost = case.split("/")[0] if "/" in case else ""
    return next((use for use, names in PARTS.items() if re.fullmatch(names, outermost, re.IGNORECASE)), "training")


def shared_patients(training: Sequence[str], scored: Sequence[str]) -> list[tuple[str, str, str]]:
    """Patients that are trained on and scored, as far as file names alone show them: folders may mean anything here.

    Args:
        training, scored: names of cases.

    Returns:
        for each patient a name of either, and what shows that they are of one.
    """
    rules = {
        what: re.compile(pattern, re.IGNORECASE) for what, pattern in PATIENTS.items() if what not in (BELOW, FOLDER)
    }

    def first_of(names: Sequence[str]) -> dict[tuple[str, str], str]:
        first: dict[tuple[str, str], str] = {}
        for name in names:
            what, match = _patient(name, rules)
            if match is not None:
                first.setdefault((what, match[1].casefold()), name)
        return first

    trained = first_of(training)
    return [(trained[patient], name, patient[0]) for patient, name in first_of(scored).items() if patient in trained]


def patients_line(cases: Cases) -> str:
    """How images were put to patients, and what to do where nothing says so."""
    number, patients = len(cases.images), len(cases.groups)
    if not cases.known:
        first = next(iter(cases.images))
        return (
            f"not known: no name shows which images belong to one patient (the first is {first}), so each counts as "
            "one of its own and a patient of several may stand in several lists; if one has several, say so by "
            f"--group_by, an expression whose group is the patient{_example([*cases.images])}"
        )
    rules = ", ".join(f"{what}" if len(cases.found_by) == 1 else f"{what} ({n})" for what, n in cases.found_by.items())
    text = f"{patients} of {number} images, by {rules}"
    if alone := number - sum(cases.found_by.values()):
        text += f"; {alone} whose names show none count as one each, so that a patient of several may stand in several "
        text += "lists: if so, say it by --group_by"
    if "--group_by" in cases.found_by and patients == number > 1:
        text += "; no two are of one patient by it, so if some are, correct it"
    if patients == 1 < number:
        text += "; if they are of several, say so by --group_by"
    return text


def _example(names: Sequence[str]) -> str:
    """How an expression might look that puts some of these names together, but not all of them; empty for none."""
    digits = re.fullmatch(r"(.*?)(\d{3,})", names[0])
    tried = [rf"^({re.escape(digits[1])}\d{{{len(digits[2]) - 2}}})"] if digits else []
    for expression in [*tried, "^([^_]+)", "^([^ _-]+)", r"^(\D*\d+)"]:
        found = [match[1] for name in names if (match := re.search(expression, name))]
        if len(found) == len(names) and 1 < len({*found}) < len(names):
            return f", for instance '{expression}'"
    return ""


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
            apart = case not in cases.labels and _part(case) == "unlabeled"
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
