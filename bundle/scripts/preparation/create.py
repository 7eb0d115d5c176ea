"""The command that makes a datalist: ``python -m scripts datalist create --help``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..command_line import command
from ..dataio.folders import ignored_line
from ..dataio.geometry import TRUST
from ..dataio.patients import Cases, group_cases, lists_by_folder, patients_line
from ..dataio.storage import check_new
from ..errors import InputError, raise_all
from .class_values import label_names, named, unseen_line, values_and_doubts
from .layouts import Layout, recognise
from .list_problems import copies_of_others, masks_among_images, stray_labels, undecoded_names
from .next_commands import next_lines
from .pairing import paired
from .split import Names, as_names, distribute, draw_folds, list_lines, make_lists, words, write_json
from .survey import MOST_VALUES, SOFT_TISSUE, Survey, foreground_window, survey
from .tables import check_table, describe, print_rows, write_table


def create(
    images: str = "",
    labels: str = "",
    output: str = "",
    data: str = "",
    labeled: Names = None,
    validation: Names = None,
    testing: Names = None,
    folds: Any = None,
    group_by: str | None = None,
    seed: int = 0,
    class_names: Names = None,
    channels: int | None = None,
    image_suffix: Names = "",
    label_suffix: Names = "",
    slice_axis: Any = None,
    trust: str | None = None,
    label_values: Any = None,
    ignore_label: int | None = None,
    most_classes: int = MOST_VALUES,
    check: bool = True,
    table: str = "",
    dry_run: bool = False,
) -> None:
    r"""Check images and labels, print what is there, and make a datalist, split by patient.

    They come as two folders, or as one data set whose layout is recognised: nnU-Net, Medical Segmentation Decathlon,
    BIDS, a folder for each patient, 3D Slicer's segmentations.

    A patient is used with labels only if every image of that patient has one.

    Args:
        images: Folder of images, subfolders included; the DICOM slices in a folder are one image
        labels: Folder of labels, matched by name without ending; not every image needs one
        output: JSON file to write, which must not exist yet
        data: Folder of a data set, in place of images and labels
        labeled: Patients to train on with labels, all by default. patient:6 is the one named 6, 6 a number to draw by
            seed (0 to score --testing alone); also names with commas, or a file with one name per line
        validation: The same for validation, none by default
        testing: The same for testing, none by default
        folds: Number of folds for cross-validation, in place of --validation; the images of a patient are in one fold
        group_by: Regular expression whose first group is the patient in a name. Default: the BIDS subject, the number
            behind patient or subject, the outermost folder unless it is a visit or sequence, or the name up to
            _frameNN, _sliceNN, _sesNN, a day and the like
        seed: Seed of the draw
        class_names: Names of the classes in the order of their label values, background first
        channels: Number of channels, if 4D files hold them along their last axis
        image_suffix: Ending of image names that label names lack, for instance _0000; images without it are left out
        label_suffix: Ending of label names that image names lack, for instance _seg; then both may be in one folder
        slice_axis: Axis along which slices are stacked in all images: R (left to right), A (back to front), S
            (feet to head), or 0, 1, 2 as stored; by default as most images suggest. Kept in the datalist
        trust: If the headers of image and label disagree about position, which counts: header, or
            voxels, which ignores the headers of all labels. By default such labels are refused. Kept in the datalist
        label_values: Value of each class in the label files, background first, if the files leave that open
        ignore_label: Value of voxels to ignore, which count in no loss and no score
        most_classes: Most values that a label may have
        check: Whether to read and check every file; False trusts them
        table: CSV file to write, with a row for every image
        dry_run: Print everything, but write no datalist
    """
    if not output or bool(data) == bool(images or labels) or bool(images) != bool(labels):
        raise InputError("Expected --images and --labels, or --data for a whole data set, and --output; see --help.")
    if not dry_run:
        check_new(output)
    if table:
        check_table(table)
    layout = _files(images, labels, data, image_suffix, label_suffix)
    names = [str(name) for name in words(class_names or layout.class_names)]
    values = [_whole("label_values", value) for value in words(label_values or layout.label_values)]
    ignore_label = layout.ignore_label if ignore_label is None else _whole("ignore_label", ignore_label)
    if trust not in (None, *TRUST):
        raise InputError(f"trust: expected header, voxels or nothing, received {trust!r}.")
    raise_all(undecoded_names(layout))
    channels = channels or layout.channels
    cases = group_cases(layout.images, layout.labels, group_by)
    if layout.by_patient and not cases.known:
        cases = replace(cases, found_by={"their folder": len(layout.images)})
    found: Survey | None = None
    doubts: list[str] = []
    if data and layout.labels:
        _say("first pair", _first_pair(layout))
    if check:
        found = survey(layout.images, layout.labels, channels=channels, trust=trust, most_classes=most_classes)
        values, doubts = values_and_doubts(found, names, values, ignore_label, said=bool(label_values))
        patients, shown = cases.known * len(cases.groups), [] if doubts else names  # whose values are not known
        print_rows(describe(found, patients=patients, class_names=shown, values=values, ignore_label=ignore_label,
                            slice_axis=slice_axis))  # fmt: skip
        if table:
            write_table(found, table)
    _say("patients", patients_line(cases))
    for folder, where in [(images or data, ""), *[(labels, " among the labels")] * _apart(images, labels)]:
        if ignored := ignored_line(folder, where, {*layout.labels.values()}):
            print(ignored)
    problems = stray_labels(layout, images or data)
    if found is not None:
        problems += found.problems + masks_among_images(found) + copies_of_others(found, cases)
    raise_all(problems + doubts)

    layout = _own_lists(layout, cases, labeled=labeled, validation=validation, testing=testing, folds=folds)
    wanted = {
        "testing": as_names(testing) or as_names(layout.testing),
        "validation": as_names(validation) or as_names(layout.validation),
    }
    if labeled is not None:
        wanted["training"] = as_names(labeled)
    taken = distribute(cases, wanted, seed=seed)
    scored_alone = "testing" in taken.values() and wanted.get("training") == 0
    fold_of = None if folds is None else draw_folds(taken, folds, seed=seed)
    root = Path(os.path.commonpath([Path(folder).absolute() for folder in ((data,) if data else (images, labels))]))
    lists = make_lists(cases, taken, root, folds=fold_of, to_train=not scored_alone)
    for line in list_lines(cases, taken, lists, _who(cases), folds=fold_of):
        print(line)
    # a list to be scored alone says nothing of its images: its labels are not to prepare them
    window = None if scored_alone else _of_training(found, cases, taken, values, names, trust)
    if dry_run:
        print("nothing written (--dry_run)")
        return
    channels = found.channels if found is not None else channels
    facts = {
        "labels": label_names(values, names, ignore_label) or None,
        "label_values": values if values != sorted(values) else None,
        "channels": channels if channels != 1 else None,
        "window": window,
        "slice_axis": found.direction if found is not None and slice_axis is None else slice_axis,
        "trust": trust,
    }
    write_json(output, {name: value for name, value in facts.items() if value is not None} | lists)
    for line in next_lines(found, root, output, folds=folds, scored_alone=scored_alone):
        print(line)


def _say(name: str, text: str) -> None:
    """A line of what is printed, in the columns of the other commands."""
    print(f"{name:<11} {text}")


def _first_pair(layout: Layout) -> str:
    case = next(iter(layout.labels))
    image = layout.images.get(case, "no image")
    parts = " + ".join(map(str, image)) if isinstance(image, list) else image
    return f"{parts} with its label {layout.labels[case]}"


def _own_lists(
    layout: Layout, cases: Cases, *, labeled: Names, validation: Names, testing: Names, folds: int | None
) -> Layout:
    """With the lists of a data set that count here, for validation and testing; prints where its folders make them."""
    if not (layout.testing or layout.validation):
        asked = {"validation": validation, "testing": testing}
        by_name = any(isinstance(as_names(names), list) for names in (labeled, validation, testing))
        layout = _by_folder(layout, cases, [use for use, names in asked.items() if names is None and not by_name])
    if folds is not None and layout.validation and not as_names(validation):
        number = len(layout.validation)
        _say("folds", f"the {number} cases that the data set has for validation go into the folds")
        layout = replace(layout, validation=[])
    return layout


def _by_folder(layout: Layout, cases: Cases, uses: list[str]) -> Layout:
    """With those of the lists ``uses`` that folders like ``val`` and ``test`` are named after, which it prints."""
    own = lists_by_folder(cases, uses)
    kept_apart = {case for names in own.values() for case in names}
    if all(kept_apart & {*members} for members in cases.labeled_groups.values()):
        return layout  # nobody would be left to train on: the names mean something else
    if kept := ", ".join(f"{len(names)} images for {use}" for use, names in own.items() if names):
        _say("own lists", f"{kept}, by their folders (--{' and --'.join(own)} to change it, 0 for none)")
    return replace(layout, testing=own.get("testing", []), validation=own.get("validation", []))


def _apart(images: str, labels: str) -> bool:
    """Whether there is a folder of labels, and it is neither that of the images nor below it."""
    return bool(labels) and not Path(labels).resolve().is_relative_to(Path(images).resolve())


def _files(images: str, labels: str, data: str, image_suffix: Names, label_suffix: Names) -> Layout:
    """Images and labels, of two folders or of a whole data set; prints what was recognised."""
    image_suffix, label_suffix = (",".join(map(str, words(suffix or None))) for suffix in (image_suffix, label_suffix))
    if data:
        layout = recognise(data, image_suffix, label_suffix)
        _say("layout", layout.name)
        return layout
    layout = Layout("", *paired(images, labels, image_suffix, label_suffix))
    if several := sum(isinstance(path, list) for path in layout.images.values()):
        _say("channels", f"of {several} images in files of their own (_0000, _0001, ...), joined")
    return layout


def _who(cases: Cases) -> str:
    return "patients" if cases.known else "cases"


def _of_training(
    found: Survey | None, cases: Cases, taken: Mapping[str, str], values: list[int], names: list[str], trust: str | None
) -> tuple[float, float] | None:
    """The window of :func:`_window`; prints what those that are trained on with their labels leave open."""
    if unused := [group for group in cases.labeled_groups if group not in taken]:
        first = f"labels of {len(unused)} {_who(cases)}, {unused[0]} first"
        _say("not used", f"{first}; a larger --labeled trains on them")
    if found is None:
        return None
    training = [case for group, use in taken.items() if use == "training" for case in cases.groups[group]]
    window = _window(found, training, values, trust)
    if line := unseen_line(found, training, values, named(values, names)):
        print(line)
    return window


def _window(found: Survey, training: list[str], values: list[int], trust: str | None) -> tuple[float, float] | None:
    """A window for images of CT from the labels of ``training``, which it prints; ``None`` for others."""
    if not found.ct:
        return None
    low, high = foreground_window(found, training, classes=values[1:], trust=trust)
    usual = ", as is usual for soft tissue, for no label of `training` shows any" if (low, high) == SOFT_TISSUE else ""
    _say("window", f"{low:g} to {high:g} HU become 0 and 1{usual}; --window at the training to change it")
    return low, high


def _whole(option: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InputError(f"{option}: expected whole numbers, received {value!r}; correct --{option}.") from None


def main() -> None:
    """Command line of this module."""
    command(create, "create")
