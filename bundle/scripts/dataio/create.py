"""The command that makes a datalist: ``python -m scripts datalist create --help``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..command_line import command
from ..errors import InputError, raise_all
from .files import hidden_beside, ignored_line, paired
from .layouts import Layout, recognise
from .split import (
    Cases,
    as_names,
    distribute,
    draw_folds,
    group_cases,
    list_lines,
    make_lists,
    patients_line,
    write_json,
)  # fmt: skip
from .survey import MOST_VALUES, Survey, foreground_window, survey
from .tables import (
    class_values,
    describe,
    label_names,
    named,
    print_rows,
    scoring_command,
    suits_3d,
    training_command,
    unseen_line,
    write_table,
)
from .value_names import contradictions


def create(
    images: str = "",
    labels: str = "",
    output: str = "",
    data: str = "",
    labeled: Any = None,
    validation: Any = 0,
    testing: Any = 0,
    folds: Any = None,
    group_by: str | None = None,
    seed: int = 0,
    class_names: Any = None,
    channels: int | None = None,
    image_suffix: Any = "",
    label_suffix: Any = "",
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
            behind patient or subject, the outermost folder, or the name up to _frameNN, _sliceNN, _sesNN and the like
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
    if Path(output).exists() and not dry_run:
        raise InputError(f"{output}: exists already; give another name or remove it first.")
    # an option with commas comes as a tuple
    image_suffix, label_suffix = (",".join(map(str, _words(suffix or None))) for suffix in (image_suffix, label_suffix))
    if data:
        layout = recognise(data, image_suffix, label_suffix)
    else:
        layout = Layout("", *paired(images, labels, image_suffix, label_suffix))
    image_files, label_files = layout.images, layout.labels
    if layout.name:
        print(f"{'layout':<11} {layout.name}")
        class_names = class_names or layout.class_names
        label_values = label_values or layout.label_values
        ignore_label = layout.ignore_label if ignore_label is None else ignore_label
        channels = channels or layout.channels
        testing, validation = testing or layout.testing, validation or layout.validation
    elif several := [case for case, path in image_files.items() if isinstance(path, list)]:
        print(f"{'channels':<11} of {len(several)} images in files of their own (_0000, _0001, ...), joined")
    cases = group_cases(image_files, label_files, group_by)
    if layout.by_patient and not cases.known:
        cases = replace(cases, found_by={"their folder": len(image_files)})
    names = [str(name) for name in _words(class_names)]
    values, doubts = [int(v) for v in _words(label_values)], []
    said = layout.label_values != label_values and bool(values)
    found = (
        survey(image_files, label_files, channels=channels, trust=trust, most_classes=most_classes) if check else None
    )
    if found is not None:
        try:
            values = class_values(found, names, values, ignore_label)
        except InputError as error:
            doubts = [str(error)]
        if not said:
            doubts += contradictions((facts.path, facts.values) for facts in found.labels.values())
        patients = cases.known * len(cases.groups)
        shown = [] if doubts else names  # whose values are not known
        print_rows(
            describe(
                found, patients=patients, class_names=shown, values=values, ignore_label=ignore_label,
                slice_axis=slice_axis,
            )
        )  # fmt: skip
        if table:
            write_table(found, table)
    print(f"{'patients':<11} {patients_line(cases)}")
    if ignored := ignored_line(images or data):
        print(ignored)
    stray = _stray(layout, images or data)
    raise_all(stray + (found.problems + _masks(found) + _copied(found, cases) if found is not None else []) + doubts)

    wanted = {"testing": as_names(testing), "validation": as_names(validation)}
    if labeled is not None:
        wanted["training"] = as_names(labeled)
    taken = distribute(cases, wanted, seed=seed)
    root = Path(os.path.commonpath([Path(folder).absolute() for folder in ((data,) if data else (images, labels))]))
    scored_alone = "testing" in taken.values() and wanted.get("training") == 0
    fold_of = None if folds is None else draw_folds(taken, folds, seed=seed)
    lists = make_lists(cases, taken, root, folds=fold_of, to_train=not scored_alone)
    who = "patients" if cases.known else "cases"
    for line in list_lines(cases, taken, lists, who):
        print(line)
    for fold in range(folds if fold_of else 0):
        members = sorted(group for group, own in (fold_of or {}).items() if own == fold)
        print(f"{f'fold {fold}':<11} {len(members):4d} {who}  {' '.join(members)}")
    unused = [group for group in cases.labeled_groups if group not in taken]
    if unused and not scored_alone:
        print(f"{'not used':<11} labels of {len(unused)} {who}, {unused[0]} first; a larger --labeled trains on them")
    window = None  # a list that is scored alone says nothing of it: its labels are not to prepare its images
    if found is not None and found.ct and not scored_alone:
        window = foreground_window(found, classes=values[1:], trust=trust)
    if window is not None:
        print(f"{'window':<11} {window[0]:g} to {window[1]:g} HU become 0 and 1; --window at the training to change it")
    training = [case for group, use in taken.items() if use == "training" for case in cases.groups[group]]
    if found is not None and not scored_alone and (line := unseen_line(found, training, values, named(values, names))):
        print(line)
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
    if scored_alone:
        print(f"wrote {output}; to score the weights of a training on it, in the bundle's folder:")
        print(scoring_command(root, output))
        return
    turns = f", fold 0 of {folds}" if fold_of else ""
    print(f"wrote {output}; to train on it for an hour{turns}, in the bundle's folder:")
    print(training_command(root, output, folds=bool(fold_of)))
    if found is not None and suits_3d(found):
        print("or in 3D, which may do better here:")
        print(training_command(root, output, volumes=True, folds=bool(fold_of)))


def _stray(layout: Layout, where: str) -> list[str]:
    """Labels that belong to no image, and images that are none, a line each; prints what is merely worth knowing."""
    used = {os.path.realpath(path) for name, path in layout.labels.items() if name in layout.images}
    stray = [
        f"{path}: a label without an image of that name in {where}; rename or remove it, or say what label names end "
        "with by --label_suffix."
        for name, path in layout.labels.items()
        if name not in layout.images and os.path.realpath(path) not in used  # a link, as its image is
    ]
    alone = [path for path in layout.images.values() if isinstance(path, Path)]
    hidden, remarks = hidden_beside(alone, layout.labels.values())
    for remark in remarks:
        print(remark)
    return stray + hidden


def _masks(found: Survey) -> list[str]:
    """A line for each image without a label that shows few values, as labels do, where most images show many."""
    if 2 * sum(bool(facts.values) for facts in found.images.values()) >= len(found.images):
        return []
    return [
        f"{facts.path}: expected an image, received a file of the values {', '.join(f'{v:g}' for v in facts.values)} "
        "alone, as labels are, where most others show many; take it out of the images."
        for case, facts in found.images.items()
        if facts.values and case not in found.labels
    ]


def _copied(found: Survey, cases: Cases) -> list[str]:
    """A line for each image that is that of another patient once more: a list would test on what another taught."""
    patient = {case: group for group, members in cases.groups.items() for case in members}
    return [
        f"{found.images[case].path}: the same voxels as {found.images[first].path}, under the name of another patient; "
        "the same scan in two lists makes scores too good. Take one out, or make them one patient by --group_by."
        for first, *others in found.copies
        for case in others
        if patient[case] != patient[first]
    ]


def _words(value: Any) -> list[Any]:
    """``"background,heart"``, ``[background, heart]`` or nothing, from a command line."""
    if value is None:
        return []
    if isinstance(value, str):
        return [name.strip() for name in value.strip("[]").split(",")]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def main() -> None:
    """Command line of this module."""
    command(create, "create")
