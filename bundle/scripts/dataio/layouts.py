"""Folder layouts of other programs and data sets: which files are images or labels, and what the classes are."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, raise_all
from .files import (
    BIDS_LABELS,
    HELPER_MASKS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    LABEL_NAMES,
    case_name,
    case_names,
    entries,
    find_images,
    is_dicom,
    join_channels,
    without_labels_told,
)
from .value_names import UNNAMED, segments

logger = logging.getLogger("semsim")

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
        return _bids(root, image_suffix, label_suffix)
    _refuse_two_folders(root)
    if any(root.rglob("[!.]*.seg.nrrd")):
        return _slicer(root)
    if found := _patients(root, image_suffix, label_suffix):
        return found
    raise InputError(f"{root}: expected one of the layouts {KNOWN}; give --images and --labels instead.")


def _refuse_two_folders(root: Path) -> None:
    """One folder of images and one of labels are given as such, for their names say which belong together.

    They may be the folders `images` and `labels` of a folder `labelled` beside one of unlabelled images.
    """
    found = []
    for folder in (root, *_folders(root)):
        images, unlabeled = (
            [path for path in _folders(folder) if path.name.lower().startswith(word)] for word in ("image", "unlabel")
        )
        labels = [path for path in _folders(folder) if LABEL_FOLDERS.fullmatch(path.name)]
        if images and labels and (folder == root or len(find_images(labels[0], recursive=True)) > 1):
            alone = folder == root and (len(labels) > 1 or len(images + unlabeled) == 1)
            found.append((images[0] if alone else root, labels[0]))  # the unlabelled ones beside them are to be found
    if found and (found[0][1].parent == root or len(found) == 1):
        raise InputError(f"{root}: holds a folder of images and one of labels; instead of --data give "
                         f"{shlex.join(['--images', str(found[0][0]), '--labels', str(found[0][1])])}.")  # fmt: skip


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the JSON of a data set, could not read it ({error}).") from error
    return content if isinstance(content, dict) else {}


def classes_of(path: str | os.PathLike, labels: Any) -> tuple[list[str], list[int], int | None]:
    """Names, values and what is ignored, of ``labels`` in a JSON file: by value (Decathlon) or by name (nnU-Net)."""
    if isinstance(labels, list):
        labels = dict(enumerate(labels))
    if not isinstance(labels, Mapping) or not labels:
        return [], [], None
    if any(isinstance(value, (list, tuple)) for value in labels.values()):
        raise InputError(f"{path}: its classes are regions of several values, which overlap; here classes exclude "
                         "each other, so give --images and --labels, and the values by --label_values.")  # fmt: skip
    by_value = all(str(key).lstrip("-").isdigit() for key in labels)
    try:
        pairs = [(int(k), str(v)) if by_value else (int(v), str(k)) for k, v in labels.items()]
    except (TypeError, ValueError):
        expected = '{"0": "background", "1": "liver"}'
        raise InputError(f"{path}: expected `labels` such as {expected}, received {labels}.") from None
    ignored = [value for value, name in pairs if name.lower() == "ignore"]
    kept = sorted(pair for pair in pairs if pair[0] not in ignored)
    return [name for _, name in kept], [value for value, _ in kept], ignored[0] if ignored else None


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


def _entities(path: Path) -> tuple[dict[str, str], str]:
    """``sub-01_ses-2_T1w.nii.gz`` -> ``{"sub": "01", "ses": "2"}`` and ``T1w``."""
    parts = case_name(path).split("_")
    pairs = [part.partition("-") for part in parts if "-" in part]
    return {key: value for key, _, value in pairs}, "" if "-" in parts[-1] else parts[-1]


def _bids(root: Path, image_suffix: str, label_suffix: str) -> Layout:
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
    images = {name: [p[k] for k in wanted] if len(wanted) > 1 else p[wanted[0]] for name, p in groups.items()}
    labels: dict[str, Path] = {}
    for path in truth:
        given, _ = _entities(path)
        keys = [key for key in ("ses", "run", "acq") if key == "ses" or key in given]
        fits = [name for name, parts in groups.items()
                if (own := _entities(next(iter(parts.values())))[0])["sub"] == given.get("sub")
                and all(own.get(key) == given.get(key) for key in keys)]  # fmt: skip
        if not fits and (given.get("sub"), given.get("ses")) in left_out:
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
    return Layout("BIDS", dict(images), labels)


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


def _patients(root: Path, image_suffix: str, label_suffix: str) -> Layout | None:
    """A folder for each patient, in which at least one holds a label by its name; ``None`` for something else."""
    scans: dict[str, list[tuple[str, Path]]] = {}  # P1_seg beside seg has the same role
    truth: dict[str, list[tuple[str, Path]]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        inside = folder.rglob("[!.]*")  # all are hidden in __MACOSX
        if not any(path.name.lower().endswith(IMAGE_SUFFIXES) or is_dicom(path) for path in inside):
            continue
        for name, path in find_images(folder, recursive=True).items():
            *below, own = name.split("/")
            role = own.removeprefix(folder.name).lstrip("_.-") or "image"
            among_labels = any(LABEL_FOLDERS.fullmatch(part) for part in below)
            is_label = (
                role.endswith(label_suffix.lstrip("_.-"))
                if label_suffix
                else bool(LABEL_NAMES.fullmatch(re.split(r"[_.-]", role)[-1]))
            )
            if among_labels and label_suffix and not is_label:
                continue  # another structure's
            files = (truth if is_label or among_labels else scans).setdefault(folder.name, [])
            files.append(("/".join([*below, role]), path))
    if not truth or not scans:
        return None
    if loose := [path for path in entries(root, False) if path.name.lower().endswith(IMAGE_SUFFIXES)]:
        logger.warning(f"{len(loose)} files beside the folders of the patients are left out, {loose[0]} first; to use "
                       "them, give each a folder of its own.")  # fmt: skip
    for patient, parts in truth.items():
        if not label_suffix:
            truth[patient] = [part for part in parts if not HELPER_MASKS.fullmatch(part[0])] or parts
    roles = Counter(role for parts in scans.values() for role, _ in parts)
    wanted = [role.strip().lstrip("_.-") for role in image_suffix.split(",") if role.strip()]
    images: dict[str, Path | list[Path]] = {}
    problems = []
    for patient, parts in scans.items():
        fitting = {role: [path for own, path in parts if own.endswith(role)] for role in wanted}
        chosen = [path for paths in fitting.values() for path in paths] if wanted else [path for _, path in parts]
        if missing := [role for role, paths in fitting.items() if not paths]:
            there = ", ".join(own for own, _ in parts)
            problems.append(f"{root / patient}: expected an image for each --image_suffix, received {there} and none "
                            f"that ends with {', '.join(missing)}; add it or take the patient out.")  # fmt: skip
        elif wanted and len(chosen) == len(wanted) > 1:
            images[patient] = chosen
        elif len(chosen) == 1:
            images[patient] = chosen[0]
        else:
            shown = ", ".join(role for role, _ in roles.most_common(6))
            problems.append(f"{root / patient}: {len(chosen)} images ({shown}), expected one; say which by "
                            "--image_suffix, or several with commas as the channels of one image; if they are of "
                            f"several patients or visits give {root} both as --images and as --labels, with "
                            "--image_suffix and --label_suffix.")  # fmt: skip
    chosen_files = {path for image in images.values() for path in (image if isinstance(image, list) else [image])}
    if left := [path for parts in scans.values() for _, path in parts if wanted and path not in chosen_files]:
        logger.warning(f"{len(left)} files are left out, which neither end with {image_suffix} nor are labels by their "
                       f"names, {left[0]} first.")  # fmt: skip
    problems += [
        f"{root / patient}: {len(parts)} labels ({', '.join(path.name for _, path in parts)}), expected one; say which "
        "by --label_suffix, keep one, or join masks of one class each by `python -m scripts merge`."
        for patient, parts in truth.items()
        if len(parts) > 1
    ]
    problems += [
        f"{root / patient}: a label and no image of this patient." for patient in truth if patient not in scans
    ]
    raise_all(problems)
    labels = {patient: parts[0][1] for patient, parts in truth.items()}
    return Layout("a folder for each patient", images, labels, by_patient=True)
