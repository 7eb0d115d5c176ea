"""Which images are of one patient, by their names and folders, and which list a folder is named after."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, raise_all

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
#: Folders of images, of whatever patient.
IMAGE_FOLDERS = r"images?(?:tr|ts|val?|un\w*)?|scans|volumes"
NOBODYS = re.compile(rf"^(?:(?:{'|'.join(PARTS.values())}|{IMAGE_FOLDERS})/)+", re.IGNORECASE)


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
            and all(case in self.labels or list_of_folder(case) == "unlabeled" for case in cases)
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
        parts = {case: list_of_folder(case) for case in members if case in cases.labels}
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


def list_of_folder(case: str) -> str:
    """The list that the outermost folder of a case is named after, below `images` and the like, or ``training``."""
    below = re.sub(rf"^(?:(?:{IMAGE_FOLDERS})/)+", "", case, flags=re.IGNORECASE)
    outermost = below.split("/")[0] if "/" in below else ""
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
