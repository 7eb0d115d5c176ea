"""Which label belongs to which image, by their names, in two folders."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from ..dataio.files import LABEL_ENDINGS, LABEL_WORD
from ..dataio.folders import find_images, join_channels, without_labels_told
from ..errors import InputError, raise_all

logger = logging.getLogger("semsim")

T = TypeVar("T")
#: The first word of a file name and what follows: ``label0001``, ``T2_P01``, ``segmentation-7``.
FIRST_WORD = re.compile(r"((?:.*/)?)([A-Za-z]+\d*[_.-]|[A-Za-z]+)([^/]+)")


def pair_files(
    images: str | os.PathLike, labels: str | os.PathLike, image_suffix: str = "", label_suffix: str = ""
) -> tuple[dict[str, Path], dict[str, Path]]:
    """Image and label files by the name that they share.

    Args:
        images: folder of images, with all below it but ``labels`` and what is a label by its name.
        labels: folder of labels; it may be the same with a ``label_suffix``, or if label names begin with ``label``,
            ``segmentation`` or the like.
        image_suffix: what image names end with and label names do not; others are left out, with a warning.
        label_suffix: the same of labels.

    Raises:
        InputError: one folder without anything to tell the two apart, or one of the two not there.
    """
    if "," in image_suffix + label_suffix:
        raise InputError(
            f"{image_suffix or label_suffix}: expected one ending, received several; channels in files of their own "
            "are joined from a folder for each patient, given as --data, or where names end with _0000, _0001, ..."
        )
    images, labels = Path(images), Path(labels)
    same = images.resolve() == labels.resolve()
    image_files, label_files = find_images(images, recursive=True), find_images(labels, recursive=True, labels=True)
    if same:
        told = {name for name in label_files if (name.endswith(label_suffix) if label_suffix else _label_begins(name))}
        image_files = {name: path for name, path in image_files.items() if name not in told}
        label_files = {name: path for name, path in label_files.items() if name in told}
        if not label_suffix and not (image_files and label_files):
            raise InputError(
                f"{images}: expected images and labels in two folders, received one; separate them, or say what the "
                "names of the labels end with, for instance --label_suffix _seg."
            )
        if not image_files or not label_files:
            raise InputError(
                f"{images}: expected images, and labels whose names end with {label_suffix}, received only one of the "
                "two; give the ending that tells them apart as --label_suffix."
            )
    else:
        below = os.path.join(os.path.abspath(labels), "")
        image_files = {name: path for name, path in image_files.items() if not os.path.abspath(path).startswith(below)}
        if not image_files:
            raise InputError(f"{images}: expected images beside the labels in {labels}, found none.")
        label_files = _ending(label_files, label_suffix, labels, "label")
    image_files = without_labels_told(image_files)
    image_files = _ending(image_files, image_suffix, images, "image")
    return (
        {name.removesuffix(image_suffix): path for name, path in image_files.items()},
        {name.removesuffix(label_suffix): path for name, path in label_files.items()},
    )


def _label_begins(name: str) -> bool:
    """Whether a name is ``segmentation-12`` and the like."""
    match = FIRST_WORD.fullmatch(name)
    return bool(match and re.fullmatch(LABEL_WORD, match[2].rstrip("_.-"), re.IGNORECASE))


def _ending(found: Mapping[str, Path], suffix: str, folder: Path, kind: str) -> dict[str, Path]:
    """Those of some files whose names end with what was given, with a warning that names the first of the others.

    Raises:
        InputError: there are none.
    """
    kept = {name: path for name, path in found.items() if name.endswith(suffix)}
    if not kept:
        raise InputError(
            f"{folder}: expected names that end with {suffix}, received {next(iter(found))} and the like; give another "
            f"--{kind}_suffix, or none."
        )
    if left := [path for name, path in found.items() if name not in kept]:
        logger.warning(f"{len(left)} files are left out, whose names do not end with {suffix}, {left[0]} first.")
    return kept


def paired(
    images: str | os.PathLike, labels: str | os.PathLike, image_suffix: str = "", label_suffix: str = ""
) -> tuple[dict[str, Path | list[Path]], dict[str, Path]]:
    """:func:`pair_files` with nnU-Net's channels joined, and without what all labels or all images end with.

    So nobody has to say ``_0000`` or ``.seg``, and the channels of a patient are not taken for unlabelled ones.

    Args:
        images, labels, image_suffix, label_suffix: as in :func:`pair_files`.
    """
    found, truth = pair_files(images, labels, "" if image_suffix == "_0000" else image_suffix, label_suffix)
    ended = {name: match for name in truth if (match := LABEL_ENDINGS.fullmatch(name))}
    alike = len(ended) == len(truth) and len({match[2] for match in ended.values()}) == 1
    cut = _of_one_name((match[1], truth[name]) for name, match in ended.items()) if alike else truth
    for own in (truth, cut):
        if any(name in found for name in own):  # numbers that labels have, too, count time points or patients
            return dict(found), own
    joined = join_channels(found)
    if not any(name in joined for name in truth):
        joined = _of_one_name((name.removesuffix("_0000"), path) for name, path in joined.items())
    for own in (truth, cut):
        if any(name in joined for name in own):
            return joined, own
    return joined, _by_file_name(joined, truth) or _by_file_name(joined, cut) or _by_what_follows(joined, truth) or cut


def _of_one_name(pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Files by the names of their cases.

    Raises:
        InputError: two files of one case, all of them listed.
    """
    found: dict[str, T] = {}
    problems = []
    for name, path in pairs:
        if name in found:
            problems.append(f"{path}: a second file of the case {name} beside {found[name]}; keep one of them.")
        found[name] = path
    raise_all(problems)
    return found


def _by_file_name(images: Iterable[str], labels: Mapping[str, Path]) -> dict[str, Path]:
    """Labels by file names: ``P1`` is that of ``labelled/P1`` if no other image is P1; ``a/P1`` not of ``b/P1``.

    Returns:
        all labels, with a warning, those without such an image by their own names; none if there is no such image.
    """
    of_images, of_labels = (Counter(map(os.path.basename, names)) for names in (images, labels))
    image_of = {os.path.basename(name): name for name in images}
    own = {name: name for name in labels}
    for name in labels:
        file = os.path.basename(name)  # one of the two has no folder, so that no folder says whose it is otherwise
        if of_images[file] == of_labels[file] == 1 and file in (name, image_of[file]):
            own[name] = image_of[file]
    moved = [name for name in own if own[name] != name]
    if not moved:
        return {}
    label, image = labels[moved[0]], own[moved[0]]
    logger.warning(f"{label}: taken for the label of {image}, and so on: the names are the same, the folders are not.")
    return {own[name]: path for name, path in labels.items()}


def _by_what_follows(images: Iterable[str], labels: Mapping[str, Path]) -> dict[str, Path]:
    """Labels by the names of images that differ in the first word alone: ``label0001`` is that of ``img0001``.

    Args:
        images: names, which may all begin with one word.
        labels: files by names that all begin with one word for a label.

    Returns:
        all labels, with a warning; none unless each has its image.
    """
    rest = _after_first_word(labels, LABEL_WORD)
    for own in ({name: name for name in images}, {end: name for name, end in _after_first_word(images).items()}):
        if rest and {*rest.values()} <= {*own}:
            found = _of_one_name((own[end], labels[name]) for name, end in rest.items())
            image, label = next(iter(found.items()))
            logger.warning(f"{label}: taken for the label of {image}, and so on: only the first words of names differ.")
            return found
    return {}


def _after_first_word(names: Iterable[str], word: str = ".+") -> dict[str, str]:
    """Names without the first word of their file, by the whole name; none unless all have the same."""
    found = {name: FIRST_WORD.fullmatch(name) for name in names}
    words = {match and match[2].rstrip("_.-") for match in found.values()}
    if len(words) != 1 or not re.fullmatch(word, words.pop() or "", re.IGNORECASE):
        return {}
    return {name: match[1] + match[3] for name, match in found.items() if match}
