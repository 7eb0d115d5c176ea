"""What is wrong with the files that a datalist is to be made of, a line each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..command_line import option_text
from ..dataio.files import contours_line
from ..dataio.folders import hidden_beside
from ..dataio.patients import Cases
from .layouts import Layout
from .survey import Survey


def undecoded_names(layout: Layout) -> list[str]:
    """A line for each file whose name is no UTF-8, as old systems wrote umlauts: tables and pages cannot hold it."""
    files = [path for image in layout.images.values() for path in (image if isinstance(image, list) else [image])]
    return [
        f"{str(path)!a}: expected a name in UTF-8, received other bytes; rename it, for instance with "
        "`convmv -r -f latin1 -t utf8 --notest FOLDER`."
        for path in [*files, *layout.labels.values()]
        if str(path).encode(errors="replace").decode() != str(path)
    ]


def stray_labels(layout: Layout, where: str) -> list[str]:
    """Labels that belong to no image, and images that are none, a line each; prints what is merely worth knowing."""
    used = {os.path.realpath(path) for name, path in layout.labels.items() if name in layout.images}
    stray = [
        contours_line(path)  # as of whoever reads it: its name is not what is wrong
        or f"{path}: a label without an image of that name in {where}; {_remedy(name, layout.images)}."
        for name, path in layout.labels.items()
        if name not in layout.images and os.path.realpath(path) not in used  # a link, as its image is
    ]
    alone = [path for path in layout.images.values() if isinstance(path, Path)]
    hidden, remarks = hidden_beside(alone, layout.labels.values())
    for remark in remarks:
        print(remark)
    return stray + hidden


def _remedy(label: str, images: Mapping[str, Any]) -> str:
    """What to do with a label that has no image of its name, but perhaps some of a longer one."""
    longer = sorted(name for name in images if name.startswith((f"{label}_", f"{label}.", f"{label}-", f"{label}/")))
    if not longer:
        return "rename or remove it, or say what label names end with by --label_suffix"
    option = option_text("image_suffix", longer[0][len(label) :])
    return (
        f"if it is that of {longer[0]} say what such names end with by {option}, which leaves out others, else rename "
        "or remove it"
    )


def masks_among_images(found: Survey) -> list[str]:
    """A line for each image that is its label once more, or is one by its few values where most images show many."""
    lines = [
        f"{facts.path}: expected an image, received the voxels of its label, {found.labels[case].path}; replace it."
        for case, facts in found.images.items()
        if len(facts.values) > 1 and case in found.labels and facts.values == found.labels[case].values
    ]
    if 2 * sum(bool(facts.values) for facts in found.images.values()) >= len(found.images):
        return lines
    return lines + [
        f"{facts.path}: expected an image, received a file of the values {', '.join(f'{v:g}' for v in facts.values)} "
        "alone, as labels are, where most others show many; take it out of the images."
        for case, facts in found.images.items()
        if facts.values and case not in found.labels
    ]


def copies_of_others(found: Survey, cases: Cases) -> list[str]:
    """A line for each image that is that of another patient once more: a list would test on what another taught."""
    patient = {case: group for group, members in cases.groups.items() for case in members}
    return [
        f"{found.images[case].path}: the same voxels as {found.images[first].path}, under the name of another patient; "
        "the same scan in two lists makes scores too good. Take one out, or make them one patient by --group_by."
        for first, *others in found.copies
        for case in others
        if patient[case] != patient[first]
    ]
