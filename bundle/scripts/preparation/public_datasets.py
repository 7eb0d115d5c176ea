"""Datalists of public benchmarks, from the files as released: nothing is copied or converted.

``python -m scripts benchmark acdc --source DIR --output FILE``, likewise ``promise12`` and ``isic``. By default the
numbers of cases and of labelled patients are those of the SemSim paper (IV-A). Identifiers are printed. If the paper
does not name the patients, they are drawn by ``--seed``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import command
from ..dataio.files import case_name
from ..dataio.patients import Cases
from ..dataio.storage import check_new
from ..errors import InputError, raise_all
from .next_commands import bundle_command
from .split import Names, as_names, distribute, list_lines, make_lists, write_json
from .survey import Survey, survey
from .tables import describe, print_rows

#: ACDC, 70 / 10 / 20 patients and labelled ones as published with UniMatch's code. Training: the others.
ACDC_VALIDATION = (2, 19, 28, 30, 39, 45, 78, 82, 85, 87)
ACDC_TESTING = (1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93)
ACDC_LABELED = {1: (99,), 3: (38, 50, 99), 7: (21, 38, 49, 50, 58, 99, 100)}


@dataclass(frozen=True)
class Release:
    """One benchmark as it is released.

    Attributes:
        name: its name.
        find: images and labels of every case, and the patient of a case, from the source folder.
        sizes: patients (or 2D images) for training, validation and testing by default.
        labeled: how many of the training ones are labelled by default.
        class_names: background first.
        label_values: values of the label files in that order.
        note: what one of ``sizes`` is called.
    """

    name: str
    find: Callable[[Path], Cases]
    sizes: tuple[int, int, int]
    labeled: int
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    note: str = "patients"


def _below(source: Path, pattern: str) -> list[tuple[Path, re.Match[str]]]:
    """Files below ``source`` whose whole name matches, sorted, each with the match."""
    expression = re.compile(pattern, flags=re.IGNORECASE)
    found = ((path, expression.fullmatch(path.name)) for path in sorted(source.rglob("*")))
    return [(path, match) for path, match in found if match and path.is_file()]


def _once(files: Sequence[tuple[str, Path]], problems: list[str]) -> dict[str, Path]:
    """Files by case; a second file of a case is a problem (a release unpacked twice)."""
    result: dict[str, Path] = {}
    for case, path in files:
        if case in result:
            problems.append(f"{path}: {case} once more beside {result[case]}; keep one of them.")
        result.setdefault(case, path)
    return result


def find_acdc(source: Path) -> Cases:
    """``patientNNN/patientNNN_frameMM.nii.gz``, ``..._gt.nii.gz``, ``Info.cfg`` of patients 1 to 100; 4D files ignored.

    Raises:
        InputError: none found, or frames that ``Info.cfg`` names and the folder lacks.
    """
    problems: list[str] = []
    files = [(p, m) for p, m in _below(source, r"(patient(\d{3}))_frame\d+(_gt)?\.nii(\.gz)?") if 1 <= int(m[2]) <= 100]
    images = _once([(case_name(p), p) for p, m in files if not m[3]], problems)
    labels = _once([(case_name(p).removesuffix("_gt"), p) for p, m in files if m[3]], problems)
    if not images:
        raise InputError(f"{source}: expected ACDC's folders patient001 to patient100 with patientNNN_frameMM.nii.gz, "
                         "found none; give the folder that they lie in.")  # fmt: skip
    groups: dict[str, list[str]] = {}
    for case in images:
        groups.setdefault(case.split("_")[0], []).append(case)
    for patient, cases in groups.items():
        info = images[cases[0]].with_name("Info.cfg")
        if not info.is_file():
            problems.append(f"{info}: no such file; expected it beside the frames, as released.")
            continue
        for phase, frame in re.findall(r"^(ED|ES):\s*(\d+)", info.read_text(), flags=re.MULTILINE):
            if f"{patient}_frame{int(frame):02d}" not in images:
                problems.append(f"{info}: names frame {frame} as {phase}, but {patient}_frame{int(frame):02d}.nii.gz "
                                "is not there; unpack this patient again.")  # fmt: skip
    problems += _without_label(images, labels)
    raise_all(problems)
    return Cases(images, labels, groups)


def find_promise12(source: Path) -> Cases:
    """``CaseNN.mhd`` with its ``.raw`` or ``.zraw``, and ``CaseNN_segmentation.mhd``; cases without one are ignored.

    Raises:
        InputError: none found, or a header whose file of voxels is not there.
    """
    problems: list[str] = []
    files = _below(source, r"(Case\d+)(_segmentation)?\.mhd")
    labels = _once([(m[1], p) for p, m in files if m[2]], problems)
    # the test cases carry the same numbers in another folder and have no segmentation
    images = _once(
        [(m[1], p) for p, m in files if not m[2] and p.with_name(f"{m[1]}_segmentation.mhd").exists()], problems
    )
    if not images:
        raise InputError(f"{source}: expected PROMISE12's CaseNN.mhd with CaseNN_segmentation.mhd beside it, found "
                         "none; give the folder that the training cases lie in.")  # fmt: skip
    for path in (*images.values(), *labels.values()):
        voxels = re.search(r"^ElementDataFile\s*=\s*(\S+)", path.read_text(errors="replace"), flags=re.MULTILINE)
        if voxels and voxels[1].upper() not in ("LOCAL", "LIST") and not path.with_name(voxels[1]).is_file():
            problems.append(f"{path}: its voxels should lie in {voxels[1]} beside it, which is not there; unpack the "
                            "case again.")  # fmt: skip
    problems += _without_label(images, labels)
    raise_all(problems)
    return Cases(images, labels, {case: [case] for case in images})


def find_isic(source: Path) -> Cases:
    """``ISIC_NNNNNNN.jpg`` and ``ISIC_NNNNNNN_segmentation.png`` of task 1; superpixels and tables are ignored.

    Raises:
        InputError: none found.
    """
    problems: list[str] = []
    labels = _once([(m[1], p) for p, m in _below(source, r"(ISIC_\d+)_segmentation\.png")], problems)
    images = _once(
        [(m[1], p) for p, m in _below(source, r"(ISIC_\d+)\.jpe?g") if m[1] in labels or not labels], problems
    )
    if not images or not labels:
        raise InputError(f"{source}: expected ISIC 2018's ISIC_*.jpg and ISIC_*_segmentation.png in the folders below, "
                         f"found {len(images)} and {len(labels)}; give the folder that holds input and ground truth of "
                         "task 1.")  # fmt: skip
    problems += [f"{path}: a segmentation without its ISIC image {case}.jpg; unpack the input again."
                 for case, path in labels.items() if case not in images]  # fmt: skip
    raise_all(problems)
    return Cases(images, labels, {case: [case] for case in images})


def _without_label(images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[str]:
    return [f"{path}: no segmentation of this image beside it; unpack the release again."
            for case, path in images.items() if case not in labels]  # fmt: skip


RELEASES = {
    "acdc": Release(
        "ACDC",
        find_acdc,
        sizes=(70, 10, 20),
        labeled=7,
        class_names=("background", "right ventricle", "myocardium", "left ventricle"),
        label_values=(0, 1, 2, 3),
    ),
    "promise12": Release(
        "PROMISE12",
        find_promise12,
        sizes=(35, 5, 10),
        labeled=2,
        class_names=("background", "prostate"),
        label_values=(0, 1),
        note="cases",
    ),
    "isic": Release(
        "ISIC 2018",
        find_isic,
        sizes=(1838, 0, 756),
        labeled=181,
        class_names=("background", "lesion"),
        label_values=(0, 255),
        note="images",
    ),
}


def _sizes(split: Any, total: int, release: Release) -> tuple[int, int, int]:
    """Patients for training, validation and testing: numbers, or fractions of all; the paper's by default."""
    if split is None:
        if sum(release.sizes) != total:
            raise InputError(
                f"{release.name}: expected {sum(release.sizes)} {release.note} ({', '.join(map(str, release.sizes))} "
                f"for training, validation, testing), found {total}; unpack the rest, or give your own numbers or "
                "fractions, for instance --split 0.7,0.1,0.2."
            )
        return release.sizes
    parts = [float(part) for part in (split.split(",") if isinstance(split, str) else split)]
    shares = sum(parts) <= 1 + 1e-9
    if len(parts) != 3 or min(parts) < 0 or (not shares and any(part % 1 for part in parts)):
        raise InputError(f"--split {split}: expected three numbers or fractions, for training, validation and testing, "
                         "for instance 70,10,20 or 0.7,0.1,0.2.")  # fmt: skip
    if shares:
        validation, testing = round(parts[1] * total), round(parts[2] * total)
        rest = total - validation - testing if sum(parts) > 1 - 1e-9 else round(parts[0] * total)
        parts = [rest, validation, testing]
    if sum(parts) > total:
        raise InputError(
            f"--split {split}: expected at most the {total} {release.note} found, received {sum(parts):g}."
        )
    return int(parts[0]), int(parts[1]), int(parts[2])


def choose(cases: Cases, release: Release, labeled: Any, split: Any, seed: int) -> tuple[Cases, dict[str, str]]:
    """The patients that take part and the list of each labelled one.

    Args:
        cases: all of the release.
        release: which.
        labeled: how many, or which, of the training patients are labelled; ``None``: the release's default.
        split: numbers or fractions for training, validation, testing; ``None``: those of the paper.
        seed: of the draws. A draw of fewer labelled patients is part of a draw of more.

    Raises:
        InputError: numbers that do not fit, patients of the published lists that are not there.
    """
    sizes = _sizes(split, len(cases.groups), release)
    order = sorted(cases.groups)
    random.Random(seed).shuffle(order)
    parts = {
        "training": order[: sizes[0]],
        "validation": order[sizes[0] : sizes[0] + sizes[1]],
        "testing": order[sizes[0] + sizes[1] : sum(sizes)],
    }
    wanted = as_names(release.labeled if labeled is None else labeled)
    if release.name == "ACDC" and split is None:
        parts = _acdc_published(order)
        if isinstance(wanted, int) and wanted in ACDC_LABELED:
            wanted = [f"patient{n:03d}" for n in ACDC_LABELED[wanted]]
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(parts["training"]):
            raise InputError(f"{wanted} labelled {release.note} wanted: expected 1 to {len(parts['training'])}, those "
                             "for training; change --labeled or --split.")  # fmt: skip
        wanted = parts["training"][:wanted]
    outside = [name for name in wanted if name not in parts["training"]]
    raise_all(f"{name}: named as labelled, but not one of the {release.note} for training; name others or change "
              "--split." for name in outside)  # fmt: skip
    kept = {group: cases.groups[group] for group in sorted(g for part in parts.values() for g in part)}
    kept_cases = {case for group in kept.values() for case in group}
    chosen = Cases(
        {case: path for case, path in cases.images.items() if case in kept_cases},
        {case: path for case, path in cases.labels.items() if case in kept_cases},
        kept,
    )
    lists = {"training": wanted, "validation": parts["validation"], "testing": parts["testing"]}
    return chosen, distribute(chosen, lists)


def _acdc_published(order: Sequence[str]) -> dict[str, list[str]]:
    lists = {"validation": ACDC_VALIDATION, "testing": ACDC_TESTING}
    parts = {use: [f"patient{n:03d}" for n in numbers] for use, numbers in lists.items()}
    taken = {name for names in parts.values() for name in names}
    return {"training": [name for name in order if name not in taken], **parts}


def prepare(
    release: str,
    source: str,
    output: str,
    labeled: Names = None,
    split: Any = None,
    seed: int = 0,
    check: bool = True,
    dry_run: bool = False,
) -> None:
    """Check a public benchmark as it was released, print what is there, and make the datalist of the paper.

    acdc: 70 / 10 / 20 of the patients 001 to 100, both frames, by the published lists, 1, 3 or 7 labelled (default 7).
    promise12: 35 / 5 / 10 of the 50 training cases, 1 or 2 labelled (default 2), drawn. isic (2018, task 1): 1838 / 756
    pictures for training and testing, 55 or 181 labelled (default 181), drawn.

    Args:
        release: acdc, promise12 or isic
        source: Folder that the release was unpacked into, subfolders included
        output: JSON file to write, which must not exist yet
        labeled: How many of the training patients are labelled, or their names
        split: Numbers or fractions for training, validation and testing, drawn by seed, in place of the paper's split
        seed: Seed of the draws
        check: Whether to read and check every file; False trusts them
        dry_run: Print everything, but write nothing
    """
    if release not in RELEASES:
        raise InputError(f"{release}: expected one of {', '.join(RELEASES)}; for data of your own there is "
                         "`python -m scripts datalist create`.")  # fmt: skip
    chosen, folder = RELEASES[release], Path(source)
    if not folder.is_dir():
        raise InputError(f"{source}: no such folder; give the one that {chosen.name} was unpacked into as --source.")
    if not dry_run:
        check_new(output)
    cases, taken = choose(chosen.find(folder), chosen, labeled, split, seed)
    axis = _check(cases, chosen).direction if check else None
    lists = make_lists(cases, taken, folder)
    for line in list_lines(cases, taken, lists, chosen.note):
        print(line)
    if dry_run:
        print("nothing written (--dry_run)")
        return
    facts = {"name": chosen.name, "seed": seed, "labels": dict(zip(chosen.label_values, chosen.class_names))}
    write_json(output, {**facts, **({} if axis is None else {"slice_axis": axis}), **lists})
    print(f"wrote {output}; to train on it, in the bundle's folder:")
    print(bundle_command("run training", release, folder.absolute(), output, "--output_dir RUN"))


def _check(cases: Cases, release: Release) -> Survey:
    """Read every file, print and return what they hold; raises for all that cannot be used."""
    found = survey(cases.images, cases.labels)
    print_rows(describe(found, patients=len(cases.groups), class_names=release.class_names, note=release.note))
    for facts in found.labels.values():
        unknown = [f"{value:g}" for value in facts.values if value not in release.label_values]
        if unknown:
            found.problems.append(f"{facts.path}: holds the value(s) {', '.join(unknown)}, where {release.name} has "
                                  f"{', '.join(map(str, release.label_values))}; unpack the file again.")  # fmt: skip
    raise_all(found.problems)
    return found


def main() -> None:
    """Command line of this module."""
    command(prepare)
