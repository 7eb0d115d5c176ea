"""Folder layouts of other programs and data sets: which files are images or labels, and what the classes are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..dataio.files import IMAGE_SUFFIXES, LABEL_FOLDERS, case_names
from ..dataio.folders import find_images, join_channels, without_labels_told
from ..dataio.patients import NOBODYS
from ..dataio.stated import classes_of
from ..errors import InputError, raise_all
from .bids import bids_files
from .patient_folders import patient_files
from .value_names import UNNAMED, segments

KNOWN = (
    "nnU-Net (dataset.json, imagesTr, labelsTr), Medical Segmentation Decathlon (dataset.json with `training`), BIDS "
    "(sub-*), a folder for each patient with image and label in it, or 3D Slicer's .seg.nrrd beside the volumes"
)


@dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
        name: what the layout is called.
        images: file of every case, or the files of its channels.
        labels: label file of some of them.
        class_names: background first, where the folder says so.
        label_values: of the classes.
        ignore_label: value of voxels to ignore.
        channels: of the images, where 4D files hold them.
        testing: cases that the folder keeps for testing, with labels.
        validation: those that it keeps for validation.
        by_patient: whether it has one image of each patient.
    """

    name: str
    images: dict[str, Path | list[Path]]
    labels: dict[str, Path]
    class_names: list[str] = field(default_factory=list)
    label_values: list[int] = field(default_factory=list)
    ignore_label: int | None = None
    channels: int | None = None
    testing: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    by_patient: bool = False


def recognise(folder: str | Path, image_suffix: str = "", label_suffix: str = "") -> Layout:
    """Which of the known layouts a folder has, and its files.

    Args:
        folder: the data set's.
        image_suffix: what names of images end with, where a patient has several; with commas: the channels of one.
        label_suffix: what names of labels end with, where an image has several.

    Raises:
        InputError: none of the layouts, or files that leave open which belong together.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the data set's as --data.")
    content = _json(root / "dataset.json")
    if isinstance(content.get("training"), list) and not _numbered(root, content):
        return _decathlon(root, content)
    if content and any(root.glob("imagesTr")):
        return _nnunet(root, content)
    if any(path.is_dir() for path in root.glob("sub-*")):
        return Layout("BIDS", *bids_files(root, image_suffix, label_suffix))
    _refuse_two_folders(root)
    if any(root.rglob("[!.]*.seg.nrrd")):
        return _slicer(root)
    if found := patient_files(root, image_suffix, label_suffix):
        return Layout("a folder for each patient", *found, by_patient=True)
    raise InputError(f"{root}: expected one of the layouts {KNOWN}; give --images and --labels instead.")


def _refuse_two_folders(root: Path) -> None:
    """One folder of images and one of labels are given as such, for their names say which belong together.

    They may be the folders `images` and `labels` of a folder `labelled` beside one of unlabelled images.
    """
    found = []
    for folder in (root, *(path for path in _folders(root) if NOBODYS.match(f"{path.name}/"))):
        images, unlabeled = (
            [path for path in _folders(folder) if path.name.lower().startswith(word)] for word in ("image", "unlabel")
        )
        labels = [path for path in _folders(folder) if LABEL_FOLDERS.fullmatch(path.name)]
        if images and labels:
            alone = folder == root and (len(labels) > 1 or len(images + unlabeled) == 1)
            found.append((images[0] if alone else root, labels[0]))  # the unlabelled ones beside them are to be found
    if found and (found[0][1].parent == root or len(found) == 1):
        raise InputError(f"{root}: holds a folder of images and one of labels; instead of --data give "
                         f"{shlex.join(['--images', str(found[0][0]), '--labels', str(found[0][1])])}.")  # fmt: skip
    if found:
        parts = [labels.parent.name for _, labels in found]
        raise InputError(
            f"{root}: holds folders of images and of labels in each of {', '.join(parts)}; move or link them to "
            f"images/{parts[0]}, labels/{parts[0]} and so on there, and instead of --data give "
            f"{shlex.join(['--images', str(root / 'images'), '--labels', str(root / 'labels')])}."
        )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the JSON of a data set, could not read it ({error}).") from error
    return content if isinstance(content, dict) else {}


#: Lists of a dataset.json: Decathlon's own, and those that MONAI's users add.
LISTED = ("training", "validation", "test", "testing", "unlabeled")


def _decathlon(root: Path, content: Mapping[str, Any]) -> Layout:
    source = root / "dataset.json"
    names, values, ignored = classes_of(source, content.get("labels"))
    items: list[tuple[str, list[str], str]] = []  # list, files of the image, label
    problems = []
    for key in LISTED:
        for item in content.get(key) or []:
            image, label = (item.get("image"), item.get("label")) if isinstance(item, Mapping) else (item, "")
            files: list[Any] = image if isinstance(image, list) else [image]
            if not files or not all(isinstance(f, str) and f for f in (*files, label or "none")):
                problems.append(f"{source}: an item of `{key}` should name a file as its image and one or none as its "
                                f"label, received {item!r}.")  # fmt: skip
                continue
            items.append((key, files, label or ""))
            problems += [f"{root / f}: no such file, named in {source}; unpack the data set again."
                         for f in (*files, label or "") if f and not (root / f).exists()]  # fmt: skip
    raise_all(problems)
    images: dict[str, Path | list[Path]] = {}
    labels: dict[str, Path] = {}
    cases = case_names([root / files[0] for _, files, _ in items])
    for case, (_, files, label) in zip(cases, items):
        images[case] = [root / f for f in files] if len(files) > 1 else root / files[0]
        if label and labels.setdefault(case, root / label) != root / label:
            problems.append(f"{source}: two labels of {images[case]}, {labels[case]} and {root / label}; keep one.")
    raise_all(problems)
    testing = [case for case, (key, _, label) in zip(cases, items) if label and key in ("test", "testing")]
    validation = [case for case, (key, _, label) in zip(cases, items) if label and key == "validation"]
    told = content.get("modality")
    channels = len(told) if isinstance(told, (dict, list)) and told else None
    return Layout(
        "Medical Segmentation Decathlon", images, labels, names, values, ignored, channels, testing, validation
    )


def _numbered(root: Path, content: Mapping[str, Any]) -> bool:
    """Whether a list is nnU-Net's of old, whose files end with a channel that the list leaves out."""
    first = next(iter(content["training"]), None)
    image = first.get("image") if isinstance(first, Mapping) else first
    return isinstance(image, str) and not (root / image).exists() and any(root.glob("imagesTr/*_0000.*"))


def _nnunet(root: Path, content: Mapping[str, Any]) -> Layout:
    names, values, ignored = classes_of(root / "dataset.json", content.get("labels"))
    images: dict[str, Path | list[Path]] = {}
    labels: dict[str, Path] = {}
    testing: list[str] = []
    validation: list[str] = []
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or not folder.name.lower().startswith(("images", "unlabel")):
            continue
        if not any(path.name.lower().endswith(IMAGE_SUFFIXES) for path in folder.rglob("[!.]*")):
            continue
        joined = join_channels(find_images(folder))
        found = {name.removesuffix("_0000"): path for name, path in joined.items()}
        raise_all(f"{path}: the image of {name} once more, beside {found[name]}; keep one of them."
                  for name, path in joined.items() if name in found and found[name] != path)  # fmt: skip
        raise_all(f"{root}: {name} stands in {folder.name} and in another folder of images; keep one of them."
                  for name in found if name in images)  # fmt: skip
        images |= found
        truth = root / folder.name.replace("images", "labels", 1)
        if truth != folder and truth.is_dir() and any(truth.glob("[!.]*")):
            own = find_images(truth)
            labels |= own
            testing += [name for name in own if folder.name == "imagesTs"]
            validation += [name for name in own if folder.name in ("imagesVa", "imagesVal")]
    return Layout("nnU-Net", images, labels, names, values, ignored, testing=testing, validation=validation)


def _slicer(root: Path) -> Layout:
    found = find_images(root, recursive=True)
    labels = {name.removesuffix(".seg"): path for name, path in found.items() if path.name.endswith(".seg.nrrd")}
    scans = {name: path for name, path in found.items() if not path.name.endswith(".seg.nrrd")}
    images: dict[str, Path | list[Path]] = dict(without_labels_told(scans))
    classes: dict[int, str] = {}
    problems = []
    for path in labels.values():
        told = segments(path)
        if any(segment.get("Layer", "0") != "0" for segment in told):
            problems.append(f"{path}: its segments lie in several layers, for they overlap; in 3D Slicer export a "
                            "labelmap (Segmentations, Export), in which one counts.")  # fmt: skip
        for segment in told:
            value, name = int(segment.get("LabelValue", 1)), segment.get("Name", "")
            if UNNAMED.fullmatch(classes.setdefault(value, name)):  # until a file has a name for it
                classes[value] = name
    raise_all(problems)
    values = [0, *sorted(classes)] if classes else []
    names = ["background", *(classes[v] for v in values[1:])] if classes else []
    return Layout("3D Slicer segmentations", images, labels, names, values)
