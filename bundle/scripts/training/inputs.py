"""Which files a training reads, and whether a resumed one reads them as they were."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataio.files import image_files
from ..dataio.metaimage import voxel_file
from ..dataio.storage import read_json
from ..errors import InputError

#: Beside the weights.
LISTS_FILE = "training_lists.json"
#: Entry of that file with a number for each file, which changes with it.
CONTENTS = "contents"


def inputs(streams: Mapping[str, Sequence[Mapping[str, Any]] | None], dataset_dir: str | os.PathLike) -> dict[str, Any]:
    """What ``training_lists.json`` holds: the items of each list in their order, and a number for each file.

    Args:
        streams: items of the datalist by the name of their list; ``None``: not to be compared at a resume.
        dataset_dir: folder that files are named relative to, so that it may move between a stop and a resume.
    """
    root = os.path.abspath(dataset_dir) if dataset_dir else ""
    known = {name: items for name, items in streams.items() if items is not None}
    lists: dict[str, Any] = {name: [_identity(item, root) for item in items] for name, items in known.items()}
    files = [one for items in known.values() for item in items for one in (item, _voxels(item))]
    lists[CONTENTS] = dict(pair for item in files for pair in file_numbers(item, root))
    return lists


def _voxels(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of the files that headers of MetaImage name, for these stay the same where voxels change."""
    label = item.get("label")
    return {"image": [*filter(None, map(voxel_file, image_files(item)))], "label": label and voxel_file(label)}


def compare_inputs(path: Path, now: Mapping[str, Any]) -> None:
    """That a training reads the files of an earlier one, in their order and as they were.

    Args:
        path: of the ``training_lists.json`` of the earlier one; what it lacks is not compared.
        now: from :func:`inputs`.

    Raises:
        InputError: other files, another order, or files that have changed.
    """
    began = read_json(path)
    for name, items in now.items():
        earlier = began.get(name, items)
        if earlier == items or name == CONTENTS:
            continue
        new, gone = ([x for x in a if x not in b] for a, b in ((items, {*earlier}), (earlier, {*items})))
        parts = [f"{len(part)} {what}, {part[0]} first" for part, what in ((new, "new"), (gone, "gone")) if part]
        raise InputError(
            f"{path}: the training here began with other {name} images ({'; '.join(parts) or 'another order'}); "
            "resume with the datalist that it began with, or begin anew in another --output_dir."
        )
    contents = now[CONTENTS]
    changed = [name for name, value in began.get(CONTENTS, {}).items() if contents.get(name, value) != value]
    if changed:
        raise InputError(
            f"{path}: expected the files that the training here began with, received {len(changed)} that have changed "
            f"since, {changed[0]} first; put those back, or begin anew in another --output_dir."
        )


def _identity(item: Mapping[str, Any], root: str) -> str:
    """Which files and slices an item of a datalist means."""
    parts = [" + ".join(_shown(path, root) for path in image_files(item))]
    if item.get("label"):
        parts.append(f"with {_shown(item['label'], root)}")
    if item.get("labeled_slices") is not None:
        parts.append(f"slices {item['labeled_slices']}")
    return " ".join(parts)


def labelled_numbers(lists: Mapping[str, Any]) -> set[tuple[int, ...]]:
    """Numbers of image and label, as :func:`file_numbers` has them, of each labelled item of ``training_lists.json``.

    Items that share theirs, uncompressed images with empty labels, are left out: the numbers do not tell them apart.
    """
    numbers = lists.get(CONTENTS, {})
    found: Counter[tuple[int, ...]] = Counter()
    for line in lists.get("labelled", []):  # as `_identity` writes it; a name may hold the same words
        words = line.split(" with ")
        for k in range(1, len(words)):
            images, label = " with ".join(words[:k]), " with ".join(words[k:])
            files = [*images.split(" + "), label if label in numbers else label.rpartition(" slices [")[0]]
            if all(file in numbers for file in files):
                found[tuple(numbers[file] for file in files)] += 1
    return {each for each, count in found.items() if count == 1}


def file_numbers(item: Mapping[str, Any], root: str) -> Iterator[tuple[str, int]]:
    """Files of an item: the bytes of an image, which are many, and the checksum of a label."""
    for path in image_files(item):
        parts = [part for part in Path(path).rglob("*") if part.is_file()] if os.path.isdir(path) else [Path(path)]
        if all(part.is_file() for part in parts):
            yield _shown(path, root), sum(part.stat().st_size for part in parts)
    if item.get("label") and os.path.isfile(item["label"]):
        checksum = 0
        with open(item["label"], "rb") as file:
            while block := file.read(2**20):
                checksum = zlib.crc32(block, checksum)
        yield _shown(item["label"], root), checksum


def _shown(path: str | os.PathLike, root: str) -> str:
    """A path relative to ``root``; an absolute one outside."""
    path = os.path.abspath(path)
    return os.path.relpath(path, root) if root and os.path.commonpath([path, root]) == root else path
