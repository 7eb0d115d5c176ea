"""What is wrong with a datalist: the form of its items, its files, and what stands in two places."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import IMAGE_SUFFIXES, image_files

logger = logging.getLogger("semsim")

#: Lists of a datalist.
LISTS = ("training", "unlabeled", "validation", "testing")
#: Other names that people give the lists.
OTHER_NAMES = {
    "train": "training", "trainset": "training", "training_set": "training", "labeled": "training",
    "labelled": "training", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "testing", "tests": "testing", "testset": "testing",
    "unlabelled": "unlabeled", "unlabel": "unlabeled", "unlabelled_images": "unlabeled",
}  # fmt: skip


def unread_lists(datalist: str | os.PathLike, content: Mapping[str, Any], key: str, unlabeled_key: str) -> list[str]:
    """Lists of images that nothing reads: one line each where the name of one that is read is likely meant.

    Args:
        datalist: file, for messages.
        content: of it.
        key: list that is being read; for ``testing`` alone, as in a prediction, the others do not matter.
        unlabeled_key: a list of another name that is read.
    """
    problems = []
    for name, value in content.items():
        if name in (*LISTS, unlabeled_key) or not isinstance(value, list):
            continue
        if not value or not all((isinstance(item, dict) and "image" in item) or is_image(item) for item in value):
            continue
        near = difflib.get_close_matches(name.lower(), [*LISTS, *OTHER_NAMES], n=1, cutoff=0.8)
        likely = OTHER_NAMES.get(near[0], near[0]) if near else ""
        if not likely:
            logger.warning(f"{datalist}: nothing reads the list `{name}`; the lists are {', '.join(LISTS)}.")
        elif key != "testing" or likely == "testing":
            also = f", or read it as it is by --unlabeled_key {name}" if likely == "unlabeled" else ""
            problems.append(f"{datalist}: nothing reads the list `{name}`; if `{likely}` is meant call it so{also}.")
    return problems


def is_image(item: Any) -> bool:
    """Whether an entry is the name of an image file."""
    return isinstance(item, str) and item.lower().endswith(IMAGE_SUFFIXES)


def items_of(datalist: str | os.PathLike, content: Mapping[str, Any], key: str, problems: list[str]) -> list[dict]:
    """The items of a list; a line for each that is none joins ``problems``."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        problems.append(f"{datalist}: `{key}` should be a list of items, received {type(entries).__name__}.")
        return []
    items = []
    for number, entry in enumerate(entries):
        item = {"image": entry} if isinstance(entry, str) else entry
        if fault := _fault(item):
            problems.append(f"{datalist}: item {number} of `{key}` {fault}, received {entry!r}.")
        else:
            items.append(dict(item))
    return items


def _fault(item: Any) -> str:
    """What is wrong with the form of an item; empty for nothing."""
    if not isinstance(item, dict) or not _names_files(item.get("image")):
        return 'should be {"image": FILE, ...}, or {"image": [FILE, ...], ...} for channels in several files'
    if item.get("label") and not _names_files(item["label"]):
        return "should have a file as its label, or none"
    slices = item.get("labeled_slices")
    if slices is not None and not (isinstance(slices, list) and all(type(k) is int for k in slices)):
        return "should have a list of numbers as its labeled_slices"
    return ""


def _names_files(value: Any) -> bool:
    files = value if isinstance(value, list) else [value]
    return bool(files) and all(isinstance(f, str) and f and "\0" not in f for f in files)


def names_of_fold(fold: int) -> tuple[int, str]:
    """A fold as datalists write it: as a number, ``0.0`` included, or as text, which AutoRunner takes for one."""
    return fold, str(fold)


def unknown_fold(datalist: str | os.PathLike, training: Sequence[dict], fold: int) -> list[str]:
    """What is wrong with a fold that nobody is in: without it every fold would be trained on, and none validate."""
    if any(item.get("fold") in names_of_fold(fold) for item in training):
        return []
    there = {str(item["fold"]) for item in training if item.get("fold") is not None}
    if not there:
        remedy = "make them with `python -m scripts datalist create --folds N`, or leave --fold out"
        return [f"{datalist}: fold {fold}: expected a list `training` with folds, received one without; {remedy}."]
    names = ", ".join(sorted(there, key=lambda name: (len(name), name)))
    return [f"{datalist}: expected one of its folds {names}, received fold {fold}; give another --fold."]


def unfit(item: Mapping[str, Any], scored: bool, require_label: bool) -> str:
    """Why the label of an item does not do for its list; empty where it does."""
    if scored and item.get("label") and item.get("labeled_slices") is not None:
        return (
            "with labeled_slices; a case that is scored needs the label of every slice: label the others, too, or move "
            "it to `training` and score another list."
        )
    if require_label and not item.get("label"):
        return 'without a label; add "label": FILE or move it to `unlabeled`.'
    return ""


def resolve(item: dict, dataset_dir: Path, datalist: str | os.PathLike, allow_outside: bool) -> list[str]:
    """Make the paths of ``item`` absolute in place; returns what is wrong with them."""
    problems = []
    root = os.path.join(os.path.abspath(dataset_dir), "")
    for name in ("image", "label"):
        if not item.get(name):
            continue
        files = item[name] if isinstance(item[name], list) else [item[name]]
        paths = [os.path.normpath(dataset_dir / str(f)) for f in files]
        for path in paths:
            # links below dataset_dir may lead anywhere: whoever made them could read their target
            if not allow_outside and not os.path.join(os.path.abspath(path), "").startswith(root):
                problems.append(
                    f"{path}: named in {datalist}, but not in dataset_dir ({dataset_dir}); give the folder above both "
                    "as dataset_dir, or allow it by --allow_outside True."
                )
            elif not os.path.exists(path):
                problems.append(
                    f"{path}: no such {name} file, named in {datalist}; check dataset_dir ({dataset_dir}) or the list."
                )
        item[name] = paths if isinstance(item[name], list) else paths[0]
    return problems


def in_two_lists(datalist: str | os.PathLike, lists: Mapping[str, Sequence[Mapping]], root: str) -> list[str]:
    """Images that two items name, whether as a relative path, an absolute one or a link."""
    first: dict[str, tuple[str, str]] = {}
    problems = []
    for name, items in lists.items():
        for item in items:
            shown = image_files(item)[0]
            path = os.path.realpath(os.path.join(root, shown))
            if path in first:
                other, earlier = first[path]
                also = "" if os.path.normpath(shown) == os.path.normpath(earlier) else f" (as {earlier})"
                problems.append(
                    f"{datalist}: {shown} stands in `{other}`{also} and again in `{name}`; a case belongs to one "
                    'list, once (for single labelled slices give "labeled_slices" in `training`).'
                )
            first.setdefault(path, (name, shown))
    return problems


def labels_of_two_images(
    datalist: str | os.PathLike, lists: Mapping[str, Sequence[Mapping]], root: str, key: str
) -> list[str]:
    """Labels that two items name: a slip, or one patient in two lists. Within one list that is read, ``key``, it may be
    two sequences of one patient, and is said in the log."""
    first: dict[str, tuple[str, str]] = {}
    problems = []
    for name, items in lists.items():
        for item in items:
            if not isinstance(item.get("label"), str):
                continue
            path = os.path.realpath(os.path.join(root, item["label"]))
            other, image = first.setdefault(path, (name, shown := image_files(item)[0]))
            if image == shown:
                continue
            line = f"{datalist}: {item['label']} is the label of {image} in `{other}` and of {shown} in `{name}`"
            if other != name:
                problems.append(f"{line}; correct the list, or if both are of one patient put them into one list.")
            elif name == key:
                logger.warning(f"{line}; right for two images of one patient on one grid, else correct the list.")
    return problems
