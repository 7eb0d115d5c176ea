"""Data sets in the layout of BIDS: ``sub-01/anat/sub-01_T1w.nii.gz``, labels beside it or in ``derivatives``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..dataio.files import BIDS_LABELS, IMAGE_SUFFIXES, case_name
from ..errors import InputError, raise_all

logger = logging.getLogger("semsim")

#: A subject and a session, either of which may not be told.
Visit = tuple[str | None, str | None]


def bids_files(
    root: Path, image_suffix: str, label_suffix: str
) -> tuple[dict[str, Path | list[Path]], dict[str, Path]]:
    """Images, or the files of their channels, and labels of some of them, by case.

    Args:
        root: folder of the data set.
        image_suffix: the kind of image that is meant, where there are several; with commas: the channels of one.
        label_suffix: what names of labels end with, where an image has several.

    Raises:
        InputError: files that leave open which belong together.
    """
    scans, truth, absent = _scans_and_labels(root, label_suffix)
    groups = _by_kind(root, scans, image_suffix)
    images: dict[str, Path | list[Path]] = {}
    for name, parts in groups.items():
        files = [*parts.values()]
        images[name] = files if len(files) > 1 else files[0]
    return images, _labels_of(groups, truth, absent)


def _scans_and_labels(root: Path, label_suffix: str) -> tuple[list[Path], list[Path], set[Visit]]:
    """Images, labels, and of whom images are links to what is not there."""
    named = [path for path in sorted(root.rglob("sub-*")) if path.name.lower().endswith(IMAGE_SUFFIXES)]
    # BIDS keeps what its files were made from in `sourcedata`, often by the same names
    named = [path for path in named if "sourcedata" not in path.relative_to(root).parts] or named
    if absent := [path for path in named if not path.exists()]:
        logger.warning(f"{len(absent)} files are links to what is not there and are left out, {absent[0]} first; fetch "
                       "them (`datalad get`, `git annex get`) to use them.")  # fmt: skip
    without = [_entities(path)[0] for path in absent if not BIDS_LABELS.fullmatch(case_name(path))]
    left_out = {(given.get("sub"), given.get("ses")) for given in without}
    truth, scans = [], []
    for path in filter(Path.is_file, named):
        if BIDS_LABELS.fullmatch(case_name(path)):
            truth.append(path)
        elif "derivatives" not in path.relative_to(root).parts:
            scans.append(path)
    truth = [path for path in truth if case_name(path).endswith(label_suffix)]
    if not label_suffix:  # fMRIPrep's mask beside a label
        truth = [path for path in truth if not case_name(path).endswith("desc-brain_mask")] or truth
    return scans, truth, left_out


def _by_kind(root: Path, scans: Sequence[Path], image_suffix: str) -> dict[str, dict[str, Path]]:
    """Images of the wanted kinds, in their order, by case and kind."""
    kinds = Counter(_entities(path)[1] for path in scans)
    wanted = [kind.strip().lstrip("_.-") for kind in image_suffix.split(",") if kind.strip()] or list(kinds)
    if not image_suffix and len(kinds) > 1:
        shown = ", ".join(f"{kind} ({number})" for kind, number in kinds.most_common())
        most = kinds.most_common(1)[0][0]
        raise InputError(f"{root}: images of several kinds, {shown}; say which by --image_suffix _{most}, or several "
                         "with commas as the channels of one image.")  # fmt: skip
    groups: dict[str, dict[str, Path]] = {}
    problems: list[str] = []
    for path in scans:
        kind = _entities(path)[1]
        if kind in wanted:
            first = groups.setdefault(case_name(path).removesuffix(f"_{kind}"), {}).setdefault(kind, path)
            if first != path:
                problems.append(f"{path}: a second file of that name beside {first}; keep one of them.")
    if not groups:
        there = ", ".join(kinds) or "none"
        raise InputError(f"{root}: expected images such as sub-01_T1w.nii.gz, received the kinds {there}; give "
                         "one of these as --image_suffix, or fetch the files.")  # fmt: skip
    raise_all(problems)
    raise_all(f"{next(iter(parts.values()))}: no {', '.join(k for k in wanted if k not in parts)} beside it; add it or "
              "take the case out." for parts in groups.values() if len(parts) < len(wanted))  # fmt: skip
    return {name: {kind: parts[kind] for kind in wanted} for name, parts in groups.items()}


def _labels_of(groups: Mapping[str, Mapping[str, Path]], truth: Sequence[Path], absent: set[Visit]) -> dict[str, Path]:
    """The label of each case that has one, by subject and session."""
    labels: dict[str, Path] = {}
    problems: list[str] = []
    for path in truth:
        given, _ = _entities(path)
        keys = [key for key in ("ses", "run", "acq") if key == "ses" or key in given]
        fits = [name for name, parts in groups.items()
                if (own := _entities(next(iter(parts.values())))[0])["sub"] == given.get("sub")
                and all(own.get(key) == given.get(key) for key in keys)]  # fmt: skip
        if not fits and (given.get("sub"), given.get("ses")) in absent:
            continue  # its image is not there
        if len(fits) != 1:
            problems.append(f"{path}: {len(fits)} images of this subject and session, expected one; give "
                            "--label_suffix or --image_suffix, or rename it.")  # fmt: skip
        elif fits[0] in labels:
            problems.append(f"{path}: a second label of {fits[0]} beside {labels[fits[0]]}; choose by --label_suffix, "
                            "for instance _label-lesion_mask.")  # fmt: skip
        else:
            labels[fits[0]] = path
    raise_all(problems)
    return labels


def _entities(path: Path) -> tuple[dict[str, str], str]:
    """``sub-01_ses-2_T1w.nii.gz`` -> ``{"sub": "01", "ses": "2"}`` and ``T1w``."""
    parts = case_name(path).split("_")
    pairs = [part.partition("-") for part in parts if "-" in part]
    return {key: value for key, _, value in pairs}, "" if "-" in parts[-1] else parts[-1]
