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
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, raise_all
from .datalist_checks import (
    LISTS,
    in_two_lists,
    is_image,
    items_of,
    labels_of_two_images,
    names_of_fold,
    resolve,
    unfit,
    unknown_fold,
    unread_lists,
)
from .files import CHANNEL, case_name, case_names, image_files
from .folders import find_images, hidden_beside, join_channels, without_labels, without_labels_told, without_predictions
from .patients import shared_patients
from .readers import warn_of_predictions

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
    lists = {name: items_of(datalist, content, name, problems) for name in LISTS}
    if fold is not None:
        problems += unknown_fold(datalist, lists["training"], fold)
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
        lists[key] = items_of(datalist, content, unlabeled_key, problems)
    problems += unread_lists(datalist, content, key, unlabeled_key)
    root = os.path.abspath(dataset_dir)
    problems += in_two_lists(datalist, lists, root)
    problems += labels_of_two_images(datalist, lists, root, key)
    _name(lists, root)
    if key in ("validation", "testing"):
        _tell_shared(datalist, lists["training"], lists[key])
    chosen = [dict(item, stream=key) for item in lists[key]]
    if key == "unlabeled":
        chosen += [dict(item, stream=key) for item in lists["training"] if item.get("labeled_slices") is not None]
    for item in chosen:
        if key == "unlabeled":
            item.pop("label", None)
        elif reason := unfit(item, scored, require_label):
            problems.append(f"{datalist}: {image_files(item)[0]} stands in `{key}` {reason}")
        problems += resolve(item, Path(dataset_dir), datalist, allow_outside)
    raise_all(problems)
    return chosen


def _of_fold(training: Sequence[dict], fold: int) -> dict[str, list[dict]]:
    """``training`` and ``validation`` of a fold: a case that is not labelled throughout is trained on in every fold."""
    own = names_of_fold(fold)
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


def _name(lists: Mapping[str, Sequence[dict]], root: str) -> None:
    """Give every item its name among all images of the datalist, as ``case``."""
    items = [item for members in lists.values() for item in members]
    for item, name in zip(items, case_names([os.path.join(root, image_files(item)[0]) for item in items])):
        several = isinstance(item["image"], list) and len(item["image"]) > 1
        item["case"] = name.removesuffix("_0000") if several else name  # nnU-Net's first channel


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
    lists = {key: items_of(datalist, content, key, problems) for key in LISTS}
    raise_all(problems + unread_lists(datalist, content, "testing", ""))
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
        beside = {case_name(p): p for p in sorted(folder.glob("[!.]*")) if is_image(p.name) and p.is_file()}
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
