"""The labels of the datastore that trainings and scores take, and a line for each one that is left out."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from lib import labels
from lib.archive import Archive
from lib.studies import Studies

logger = logging.getLogger(__name__)


def numbered(
    bundle: Path, datastore: Datastore, items: Sequence[Mapping[str, Any]], folder: Path, *, check: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Labelled images with copies of their labels, which have the values of the classes.

    The copy is what is checked and learnt, whatever is submitted meanwhile in the place of the label.

    Args:
        bundle: folder of the bundle.
        datastore: of the images; what its books say of a label counts.
        items: ``{"image": file, "label": file}`` each.
        folder: for the copies.
        check: whether to look at each label as a training does.

    Returns:
        the items, with the copies in the place of the labels; and a line for each label that is left out.
    """
    final = DefaultLabelTag.FINAL.value
    known = {}
    if not isinstance(datastore, Archive):  # which reads the names in the segmentation itself
        known = {datastore.get_image_uri(i): datastore.get_label_info(i, final) for i in datastore.get_labeled_images()}
    usable, problems = [], []
    copies = {item["label"]: _copied(Path(item["label"]), folder) for item in items}  # at once: checks take a while
    for item in items:
        info, label, copy = known.get(item["image"], {}), item["label"], copies[item["label"]]
        if copy is None:
            problems.append(f"Left out of the training: {label}: has just gone; submit it again if it should count.")
            continue
        try:
            labels.numbered(bundle, copy, info)
            if check:
                labels.check(bundle, item["image"], copy, empty=info.get("empty") is True)
            usable.append({**item, "label": str(copy)})
        except ValueError as error:
            problems.append(f"Left out of the training: {str(error).replace(str(copy), label)}")
    if isinstance(datastore, Studies):
        problems += [f"Left out of the training: {line}" for line in datastore.strays()]
    for problem in problems:
        logger.warning(problem)
    return usable, problems


def _copied(label: Path, folder: Path) -> Path | None:
    """A copy of a label, of the same name and time; none where it has gone."""
    copy = folder / label.name
    try:
        about = label.stat()
        shutil.copyfile(label, copy)
    except FileNotFoundError:
        return None
    os.utime(copy, ns=(about.st_atime_ns, about.st_mtime_ns))
    return copy
