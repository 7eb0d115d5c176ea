"""The labels of the datastore that trainings and scores take, and a line for each one that is left out."""

from __future__ import annotations

import logging
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
    """Labelled images whose labels have the values of the classes.

    Args:
        bundle: folder of the bundle.
        datastore: of the images; what its books say of a label counts.
        items: ``{"image": file, "label": file}`` each.
        folder: for copies of labels whose segments are numbered otherwise.
        check: whether to look at each label as a training does.

    Returns:
        the items, with the copies in the place of such labels; and a line for each label that is left out.
    """
    final = DefaultLabelTag.FINAL.value
    known = {}
    if not isinstance(datastore, Archive):  # which reads the names in the segmentation itself
        known = {datastore.get_image_uri(i): datastore.get_label_info(i, final) for i in datastore.get_labeled_images()}
    usable, problems = [], []
    for item in items:
        info, label = known.get(item["image"], {}), item["label"]
        try:
            label = labels.numbered(bundle, item["label"], info, folder)
            if check:
                labels.check(bundle, item["image"], label, empty=info.get("empty") is True)
            usable.append({**item, "label": label})
        except ValueError as error:
            problems.append(f"Left out of the training: {str(error).replace(label, item['label'])}")
    if isinstance(datastore, Studies):
        problems += [f"Left out of the training: {line}" for line in datastore.strays()]
    for problem in problems:
        logger.warning(problem)
    return usable, problems
