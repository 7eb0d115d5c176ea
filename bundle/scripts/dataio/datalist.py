"""Datalists: which files are labelled, unlabelled, for validation or for testing.

The format is MONAI's Decathlon-style JSON with one list more, ``unlabeled``, whose items have an image and no label::

    {"labels": {"0": "background", "1": "right ventricle"},
     "training":   [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"},
                    {"image": "images/b.nii.gz", "label": "labels/b.nii.gz", "labeled_slices": [3, 4]}],
     "unlabeled":  [{"image": "images/c.nii.gz"}],
     "validation": [{"image": "images/d.nii.gz", "label": "labels/d.nii.gz"}],
     "testing":    [{"image": "images/e.nii.gz", "label": "labels/e.nii.gz"}]}

``labeled_slices`` (optional) are indices along the slice axis, counted as the file stores them; every other slice of
that volume joins the unlabelled stream. Paths are relative to ``dataset_dir``.

Command line: ``python -m scripts datalist create --help``.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, raise_all
from .files import (
    CHANNEL,
    IMAGE_SUFFIXES,
    case_name,
    case_names,
    find_images,
    hidden_beside,
    image_files,
    join_channels,
    without_labels,
    without_labels_told,
    without_predictions,
)
from .patients import shared_patients
from .readers import warn_of_predictions
from .split import LISTS

logger = logging.getLogger("semsim")


def load_datalist(datalist: str | os.PathLike) -> dict[str, Any]:
    """The content of a datalist.

    Raises:
        InputError: no such file, no JSON, or none of the lists in it.
    """
    try:
        content = json.loads(Path(datalist).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(
            f"{datalist}: no such datalist. Expected a JSON file with the lists {', '.join(LISTS)}; "
            "make one with `python -m scripts datalist create --images DIR --labels DIR --output FILE`."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{datalist}: expected a JSON datalist, received something unreadable ({error}).") from error
    if not isinstance(content, dict) or not any(key in content for key in LISTS):
        raise InputError(
            f"{datalist}: expected a JSON object with at least one of the lists {', '.join(LISTS)}; of a data set's "
            "own dataset.json make one with `python -m scripts datalist create --data DIR --output FILE`."
        )
    return content


#: Other names that people give the lists.
OTHER_NAMES = {
    "train": "training", "trainset": "training", "training_set": "training", "labeled": "training",
    "labelled": "training", "val": "validation", "valid": "validation", "dev": "validation",
    "test": "testing", "tests": "testing", "testset": "testing",
    "unlabelled": "unlabeled", "unlabel": "unlabeled", "unlabelled_images": "unlabeled",
}  # fmt: skip


def _unread(datalist: str | os.PathLike, content: Mapping[str, Any], key: str, unlabeled_key: str) -> list[str]:
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
        if not value or not all((isinstance(item, dict) and "image" in item) or _is_image(item) for item in value):
            continue
        near = difflib.get_close_matches(name.lower(), [*LISTS, *OTHER_NAMES], n=1, cutoff=0.8)
        likely = OTHER_NAMES.get(near[0], near[0]) if near else ""
        if not likely:
            logger.warning(f"{datalist}: nothing reads the list `{name}`; the lists are {', '.join(LISTS)}.")
        elif key != "testing" or likely == "testing":
            also = f", or read it as it is by --unlabeled_key {name}" if likely == "unlabeled" else ""
            problems.append(f"{datalist}: nothing reads the list `{name}`; if `{likely}` is meant call it so{also}.")
    return problems


def _is_image(item: Any) -> bool:
    return isinstance(item, str) and item.lower().endswith(IMAGE_SUFFIXES)


def _items(datalist: str | os.PathLike, content: Mapping[str, Any], key: str, problems: list[str]) -> list[dict]:
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


def read_datalist(
    datalist: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    key: str,
    *,
    require_label: bool | None = None,
    fold: int | None = None,
    unlabeled_key: str = "unlabeled",
    allow_outside: bool = False,
) -> list[dict[str, Any]]:
    """Read one list and check it against the others before anything is loaded.

    Args:
        datalist: JSON file in the format described at the top of this module.
        dataset_dir: folder that the paths in it are relative to.
        key: ``training``, ``unlabeled``, ``validation`` or ``testing``. ``unlabeled`` also receives the volumes of
            ``training`` that have ``labeled_slices``, for their other slices.
        require_label: whether an item without label is an error, and one that is labelled in part: of a list that is
            scored. Default: in ``training`` and ``validation`` an item without label is.
        fold: for cross-validation as in Auto3DSeg: items of ``training`` with this ``fold`` make ``validation``, the
            others and those with ``labeled_slices`` ``training``. ``None``: the lists as they stand.
        unlabeled_key: list to take the unlabelled images from; of ``testing`` only the images are used.
        allow_outside: whether paths may lead out of ``dataset_dir``.

    Returns:
        one dictionary an item with absolute ``image`` (a list where several files are the channels of one image), and
        ``label`` unless the item is unlabelled, and ``case``: a name that no other image of the file has. A list that
        the file does not have is empty.

    Raises:
        InputError: listing every problem at once: missing files, missing labels, cases that stand in two lists, paths
            that lead elsewhere, a fold that no item has.
    """
    if key not in LISTS:
        raise InputError(f"{datalist}: expected one of the lists {', '.join(LISTS)}, received {key!r}; choose one.")
    if key == "unlabeled" and require_label:
        others = ", ".join(name for name in LISTS if name != key)
        raise InputError(f"{datalist}: expected a list with labels to score ({others}), received {key!r}; choose one.")
    content = load_datalist(datalist)
    if not os.path.isdir(dataset_dir):
        raise InputError(
            f"{dataset_dir}: no such folder; give the one that {datalist} is relative to as --dataset_dir."
        )
    scored = key != "training" or bool(require_label)
    if require_label is None:
        require_label = key in ("training", "validation")
    problems: list[str] = []
    lists = {name: _items(datalist, content, name, problems) for name in LISTS}
    if fold is not None:
        problems += _unknown_fold(datalist, lists["training"], fold)
        lists |= _of_fold(lists["training"], fold)
        if key == "validation" and not lists[key] and not problems:
            logger.warning(
                f"{datalist}: no case of `training` that is labelled throughout has the fold {fold}, so none validates."
            )
    else:  # AutoRunner copies `validation` into `training`, with a fold in both
        lists["training"] = [i for i in lists["training"] if "fold" not in i or i not in lists["validation"]]
    if key == "unlabeled" and unlabeled_key != key:
        if unlabeled_key not in content:
            there = ", ".join(name for name, value in content.items() if isinstance(value, list))
            problems.append(f"{datalist}: unlabeled_key {unlabeled_key}: no such list; expected one of {there}.")
        lists.pop(unlabeled_key, None)  # its cases are to stand in two lists
        lists[key] = _items(datalist, content, unlabeled_key, problems)
    problems += _unread(datalist, content, key, unlabeled_key)
    root = os.path.abspath(dataset_dir)
    problems += _in_two_lists(datalist, lists, root)
    problems += _labels_of_two_images(datalist, lists, root, key)
    _name(lists, root)
    if key in ("validation", "testing"):
        _tell_shared(datalist, lists["training"], lists[key])
    chosen = [dict(item, stream=key) for item in lists[key]]
    if key == "unlabeled":
        chosen += [dict(item, stream=key) for item in lists["training"] if item.get("labeled_slices") is not None]
    for item in chosen:
        if key == "unlabeled":
            item.pop("label", None)
        elif reason := _unfit(item, scored, require_label):
            problems.append(f"{datalist}: {image_files(item)[0]} stands in `{key}` {reason}")
        problems += _resolve(item, Path(dataset_dir), datalist, allow_outside)
    raise_all(problems)
    return chosen


def _unknown_fold(datalist: str | os.PathLike, training: Sequence[dict], fold: int) -> list[str]:
    """What is wrong with a fold that nobody is in: without it every fold would be trained on, and none validate."""
    if any(item.get("fold") in _names_of(fold) for item in training):
        return []
    there = {str(item["fold"]) for item in training if item.get("fold") is not None}
    if not there:
        remedy = "make them with `python -m scripts datalist create --folds N`, or leave --fold out"
        return [f"{datalist}: fold {fold}: expected a list `training` with folds, received one without; {remedy}."]
    names = ", ".join(sorted(there, key=lambda name: (len(name), name)))
    return [f"{datalist}: expected one of its folds {names}, received fold {fold}; give another --fold."]


def _names_of(fold: int) -> tuple[int, str]:
    """A fold as datalists write it: as a number, ``0.0`` included, or as text, which AutoRunner takes for one."""
    return fold, str(fold)


def _of_fold(training: Sequence[dict], fold: int) -> dict[str, list[dict]]:
    """``training`` and ``validation`` of a fold: a case that is not labelled throughout is trained on in every fold."""
    own = _names_of(fold)
    validating = [item for item in training if item.get("fold") in own and item.get("labeled_slices") is None]
    return {"training": [item for item in training if item not in validating], "validation": validating}


def _tell_shared(datalist: str | os.PathLike, training: Sequence[dict], scored: Sequence[dict]) -> None:
    """Warn of patients that are trained on and scored."""
    if shared := shared_patients(*([str(item["case"]) for item in items] for items in (training, scored))):
        (trained, other, what), more = shared[0], len(shared) - 1
        logger.warning(
            f"{datalist}: {trained}, which is trained on, and {other}, which is scored, are of one patient by "
            f"{what}{f', and so are images of {more} more' * (more > 0)}: such scores are too good. Keep the "
            "images of a patient in one list, and in one fold, as `python -m scripts datalist create` does."
        )


def _unfit(item: Mapping[str, Any], scored: bool, require_label: bool) -> str:
    """Why the label of an item does not do for its list; empty where it does."""
    if scored and item.get("label") and item.get("labeled_slices") is not None:
        return (
            "with labeled_slices; a case that is scored needs the label of every slice: label the others, too, or move "
            "it to `training` and score another list."
        )
    if require_label and not item.get("label"):
        return 'without a label; add "label": FILE or move it to `unlabeled`.'
    return ""


def _resolve(item: dict, dataset_dir: Path, datalist: str | os.PathLike, allow_outside: bool) -> list[str]:
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


def _name(lists: Mapping[str, Sequence[dict]], root: str) -> None:
    """Give every item its name among all images of the datalist, as ``case``."""
    items = [item for members in lists.values() for item in members]
    for item, name in zip(items, case_names([os.path.join(root, image_files(item)[0]) for item in items])):
        several = isinstance(item["image"], list) and len(item["image"]) > 1
        item["case"] = name.removesuffix("_0000") if several else name  # nnU-Net's first channel


def _in_two_lists(datalist: str | os.PathLike, lists: Mapping[str, Sequence[Mapping]], root: str) -> list[str]:
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


def _labels_of_two_images(
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


def readable_items(datalist: str | os.PathLike, dataset_dir: str | os.PathLike, **options: Any) -> list[dict[str, Any]]:
    """Items of ``training`` and ``unlabeled`` as :func:`read_datalist` gives them, of a list that it refuses none."""
    items: list[dict[str, Any]] = []
    for key in ("training", "unlabeled"):
        with contextlib.suppress(InputError):  # whoever reads the list next says why
            items += read_datalist(datalist, dataset_dir, key, **options)
    return items


def evaluation_key(datalist: str | os.PathLike) -> str:
    """The list that evaluation scores: ``testing`` when it has labels, otherwise ``validation``."""
    content, problems = load_datalist(datalist), []  # type: ignore[var-annotated]
    lists = {key: _items(datalist, content, key, problems) for key in LISTS}
    raise_all(problems + _unread(datalist, content, "testing", ""))
    for key in ("testing", "validation"):
        if any(item.get("label") for item in lists[key]):
            return key
    return "validation"


def check_scored(datalist: str | os.PathLike, data: Sequence[Mapping[str, Any]], *, required: bool = True) -> None:
    """Say so where an evaluation has nothing to score.

    Args:
        datalist: JSON file.
        data: items to be scored.
        required: whether that is an error, or said in the log.

    Raises:
        InputError: it is required and there is none.
    """
    if data:
        return
    text = f"{datalist}: expected labelled cases in `testing` or `validation`, received none; "
    if required:
        raise InputError(f"{text}add some, or use `run reporting` for a report of the training only.")
    logger.warning(f"{text}this is a report of the training only.")


def read_images(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike = "",
    *,
    allow_outside: bool = False,
    in_channels: int = 1,
    output_dir: str | os.PathLike = "",
    output_postfix: str = "",
    output_ext: str = "",
) -> list[dict[str, Any]]:
    """Images to predict: every image file below ``dataset_dir``, or ``testing`` of a datalist.

    Args:
        dataset_dir: folder of images (its ``images`` if it has one, else itself with all below it but what is a label
            by its name), or one image file.
        datalist: JSON file; empty for none.
        allow_outside: whether its paths may lead out of ``dataset_dir``.
        in_channels: of the network; files of nnU-Net's names (``_0000``, ``_0001``) are joined if they are as many.
        output_dir, output_postfix, output_ext: of the predictions. Where their folder lies among the images, those that
            are there already are no images.

    Returns:
        one ``{"image": path}`` an image, sorted by name.

    Raises:
        InputError: no such folder, or no image in it.
    """
    if datalist:
        items = read_datalist(datalist, dataset_dir, "testing", allow_outside=allow_outside)
        if not items:
            raise InputError(f"{datalist}: expected images in `testing`, received none; leave --datalist out to "
                             "predict every image of the folder.")  # fmt: skip
        return [{"image": item["image"]} for item in items]
    folder = Path(dataset_dir)
    if folder.is_file():
        return [{"image": str(folder)}]
    beside: dict[str, Path] = {}
    if (folder / "images").is_dir():
        beside = {case_name(p): p for p in sorted(folder.glob("[!.]*")) if _is_image(p.name) and p.is_file()}
        folder = folder / "images"
    every = find_images(folder, recursive=True)
    scans = without_labels({**every, **beside}) if beside else {}
    if left := [path for name, path in beside.items() if name in scans]:
        logger.warning(
            f"{len(left)} images are not predicted, {left[0]} first: where there is a folder `images`, "
            f"{folder} here, only that is read; rename it, or give --dataset_dir apart, to predict the others."
        )
    found = without_predictions(every, output_dir, f"_{output_postfix}{output_ext}")
    images = without_labels_told(found)
    warn_of_predictions(images)
    for lines in hidden_beside(images.values()):
        for line in lines:
            logger.warning(line)
    numbers = {match[2] for name in images if (match := CHANNEL.fullmatch(name))}
    joined = (join_channels(images) if 1 < in_channels == len(numbers) else images).values()  # else frames of a video
    return [{"image": [str(f) for f in path] if isinstance(path, list) else str(path)} for path in joined]


def common_folder(items: Sequence[Mapping[str, Any]]) -> str:
    """The deepest folder that holds all images: predictions keep the folders below it, so no name occurs twice."""
    parents = [os.path.dirname(os.path.abspath(image_files(item)[0])) for item in items]
    return os.path.commonpath(parents) if parents else ""
