"""Datalists: which file is labelled, unlabelled, for validation or for testing.

The format is MONAI's Decathlon-style JSON with one list more, ``unlabeled``, whose items have an image and no label::

    {"labels": {"0": "background", "1": "right ventricle"},
     "training":   [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"},
                    {"image": "images/b.nii.gz", "label": "labels/b.nii.gz", "labeled_slices": [3, 4]}],
     "unlabeled":  [{"image": "images/c.nii.gz"}],
     "validation": [{"image": "images/d.nii.gz", "label": "labels/d.nii.gz"}],
     "testing":    [{"image": "images/e.nii.gz", "label": "labels/e.nii.gz"}]}

``labeled_slices`` (optional) are indices along the slice axis, counted as the file stores them; every other slice of
that volume joins the unlabelled stream. Paths are relative to ``dataset_dir``.

Command line: ``python -m scripts.datalist create --help``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError, raise_all
from .files import case_name, find_images, ignored_line, pair_files
from .split import LISTS, as_names, distribute, group_cases, list_lines, make_lists, write_json
from .survey import foreground_window, survey
from .tables import describe, print_rows, training_command, write_table

__all__ = ["case_name", "find_images"]  # for those that look for them here


def _load(datalist: str | os.PathLike) -> dict[str, Any]:
    try:
        content = json.loads(Path(datalist).read_text())
    except FileNotFoundError:
        raise InputError(
            f"{datalist}: no such datalist. Expected a JSON file with the lists {', '.join(LISTS)}; "
            "make one with `python -m scripts.datalist create --images DIR --labels DIR --output FILE`."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{datalist}: expected a JSON datalist, received something unreadable ({error}).") from error
    if not isinstance(content, dict) or not any(key in content for key in LISTS):
        raise InputError(f"{datalist}: expected a JSON object with at least one of the lists {', '.join(LISTS)}.")
    return content


def stated(datalist: str | os.PathLike, name: str) -> Any:
    """What a datalist says about its data besides the lists; ``None`` where it does not, or where there is none.

    Args:
        datalist: JSON file.
        name: ``trust``, ``slice_axis``.
    """
    return _load(datalist).get(name) if os.path.isfile(datalist) else None


def _items(datalist: str | os.PathLike, content: Mapping[str, Any], key: str, problems: list[str]) -> list[dict]:
    entries = content.get(key, [])
    if not isinstance(entries, list):
        problems.append(f"{datalist}: `{key}` should be a list of items, received {type(entries).__name__}.")
        return []
    items = []
    for number, entry in enumerate(entries):
        item = {"image": entry} if isinstance(entry, str) else entry
        if fault := _fault(item):
            problems.append(f"{datalist}: item {number} of `{key}` {fault}, received {entry!r}.")
        else:
            items.append(dict(item))
    return items


def _fault(item: Any) -> str:
    """What is wrong with the form of an item; empty for nothing."""
    if not isinstance(item, dict) or not _names_files(item.get("image")):
        return 'should be {"image": FILE, ...}, or {"image": [FILE, ...], ...} for channels in several files'
    if item.get("label") and not _names_files(item["label"]):
        return "should have a file as its label, or none"
    slices = item.get("labeled_slices")
    if slices is not None and not (isinstance(slices, list) and all(type(k) is int for k in slices)):
        return "should have a list of numbers as its labeled_slices"
    return ""


def _names_files(value: Any) -> bool:
    files = value if isinstance(value, list) else [value]
    return bool(files) and all(isinstance(f, str) and f and "\0" not in f for f in files)


def _image_files(item: Mapping[str, Any]) -> list[str]:
    image = item["image"]
    return [os.fspath(f) for f in (image if isinstance(image, (list, tuple)) else [image])]


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
        require_label: whether an item without label is an error. Default: in ``training`` and ``validation`` it is.
        fold: for cross-validation as in Auto3DSeg: items of ``training`` with this ``fold`` make ``validation``, the
            others and those with ``labeled_slices`` ``training``. ``None``: the lists as they stand.
        unlabeled_key: list to take the unlabelled images from; of ``testing`` only the images are used.
        allow_outside: whether paths may lead out of ``dataset_dir``.

    Returns:
        one dictionary an item with absolute ``image`` (a list where several files are the channels of one image), and
        ``label`` unless the item is unlabelled. A list that the file does not have is empty.

    Raises:
        InputError: listing every problem at once: missing files, missing labels, cases that stand in two lists, paths
            that lead elsewhere.
    """
    if key not in LISTS:
        raise ValueError(f"key should be one of {LISTS}, received {key!r}.")
    content = _load(datalist)
    if not os.path.isdir(dataset_dir):
        raise InputError(
            f"{dataset_dir}: no such folder; give the one that {datalist} is relative to as --dataset_dir."
        )
    if require_label is None:
        require_label = key in ("training", "validation")
    problems: list[str] = []
    lists = {name: _items(datalist, content, name, problems) for name in LISTS}
    if fold is not None:
        labeled = lists["training"]
        # a case of which some slices have no label cannot be scored: it is trained on in every fold
        whole = [item for item in labeled if item.get("fold") == fold and item.get("labeled_slices") is None]
        lists["training"] = [item for item in labeled if item not in whole]
        lists["validation"] = whole
    if key == "unlabeled" and unlabeled_key != key:
        lists.pop(unlabeled_key, None)  # its cases are to stand in two lists
        lists[key] = _items(datalist, content, unlabeled_key, problems)
    problems += _in_two_lists(datalist, lists)

    chosen = [dict(item, stream=key) for item in lists[key]]
    if key == "unlabeled":
        chosen += [dict(item, stream=key) for item in lists["training"] if item.get("labeled_slices") is not None]
    for item in chosen:
        if key == "unlabeled":
            item.pop("label", None)
        elif key != "training" and item.get("label") and item.get("labeled_slices") is not None:
            problems.append(
                f"{datalist}: {_image_files(item)[0]} stands in `{key}` with labeled_slices; a case that is scored "
                "needs the label of every slice: move it to `training`, or label the others, too."
            )
        elif require_label and not item.get("label"):
            problems.append(
                f"{datalist}: {_image_files(item)[0]} stands in `{key}` without a label; "
                'add "label": FILE or move it to `unlabeled`.'
            )
        problems += _resolve(item, Path(dataset_dir), datalist, allow_outside)
    raise_all(problems)
    return chosen


def _resolve(item: dict, dataset_dir: Path, datalist: str | os.PathLike, allow_outside: bool) -> list[str]:
    """Make the paths of ``item`` absolute in place; returns what is wrong with them."""
    problems = []
    root = os.path.join(os.path.abspath(dataset_dir), "")
    for name in ("image", "label"):
        if not item.get(name):
            continue
        files = item[name] if isinstance(item[name], list) else [item[name]]
        paths = [os.path.normpath(dataset_dir / str(f)) for f in files]
        for path in paths:
            # links below dataset_dir may lead anywhere: whoever made them could read their target
            if not allow_outside and not os.path.join(os.path.abspath(path), "").startswith(root):
                problems.append(
                    f"{path}: named in {datalist}, but not in dataset_dir ({dataset_dir}); give the folder above both "
                    "as dataset_dir, or allow it by --allow_outside True."
                )
            elif not os.path.exists(path):
                problems.append(
                    f"{path}: no such {name} file, named in {datalist}; check dataset_dir ({dataset_dir}) or the list."
                )
        item[name] = paths if isinstance(item[name], list) else paths[0]
    return problems


def _in_two_lists(datalist: str | os.PathLike, lists: Mapping[str, Sequence[Mapping]]) -> list[str]:
    first: dict[str, str] = {}
    problems = []
    for name, items in lists.items():
        for item in items:
            path = os.path.normpath(_image_files(item)[0])
            if path in first:
                problems.append(
                    f"{datalist}: {path} stands in `{first[path]}` and again in `{name}`; a case belongs to one list, "
                    'once (for single labelled slices give "labeled_slices" in `training`).'
                )
            first.setdefault(path, name)
    return problems


def evaluation_key(datalist: str | os.PathLike, fold: int | None = None) -> str:
    """The list that evaluation scores: ``testing`` when it has labels, otherwise ``validation`` (or the ``fold``).

    Raises:
        InputError: neither has a labelled case.
    """
    content, problems = _load(datalist), []  # type: ignore[var-annotated]
    lists = {key: _items(datalist, content, key, problems) for key in LISTS}
    raise_all(problems)
    for key in ("testing", "validation"):
        if any(item.get("label") for item in lists[key]):
            return key
    if fold is not None and any(item.get("fold") == fold for item in lists["training"]):
        return "validation"
    raise InputError(f"{datalist}: expected labelled cases in `testing` or `validation`, received none; add some.")


def read_images(
    dataset_dir: str | os.PathLike, datalist: str | os.PathLike = "", *, allow_outside: bool = False
) -> list[dict[str, Any]]:
    """Images to predict: every image file below ``dataset_dir``, or ``testing`` of a datalist.

    Args:
        dataset_dir: folder of images (its ``images`` if it has one, else itself with all below it), or one image file.
        datalist: JSON file; empty for none.
        allow_outside: whether its paths may lead out of ``dataset_dir``.

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
    if (folder / "images").is_dir():
        folder = folder / "images"
    return [{"image": str(path)} for path in find_images(folder, recursive=True).values()]


def common_folder(items: Sequence[Mapping[str, Any]]) -> str:
    """The deepest folder that holds all images: predictions keep the folders below it, so no name occurs twice."""
    parents = [os.path.dirname(os.path.abspath(_image_files(item)[0])) for item in items]
    return os.path.commonpath(parents) if parents else ""


def create(
    images: str,
    labels: str,
    output: str,
    labeled: Any = None,
    validation: Any = 0,
    testing: Any = 0,
    group_by: str | None = None,
    seed: int = 0,
    class_names: Any = None,
    channels: int | None = None,
    image_suffix: str = "",
    label_suffix: str = "",
    slice_axis: Any = None,
    trust: str | None = None,
    check: bool = True,
    table: str = "",
    dry_run: bool = False,
    **unknown: Any,
) -> None:
    r"""Look at a folder of images and a folder of labels, say what is there, and make a datalist, split by patient.

    A patient is used with labels only if every image of that patient has one.

    Args:
        images: Folder of images of any format MONAI reads, with all folders below; DICOM slices in a folder are one
        labels: Folder of labels, matched by name without ending; not every image needs one.
        output: JSON file to write, which must not exist yet.
        labeled: Number of patients to train on with labels, drawn by seed, or their names; default all
        validation: The same for validation, none by default.
        testing: The same for testing, none by default.
        group_by: Regular expression whose first group is the patient in a name. Default: the outermost folder, or the
            name without _frameNN
        seed: Seed of the draw.
        class_names: Names of the classes in the order of their label values, background first
        channels: Channels of the images, where 4D files hold them along their last axis
        image_suffix: What image names end with and label names do not, for instance _0000
        label_suffix: What label names end with and image names do not, such as _seg; then both may be in one folder
        slice_axis: What slices are stacked along, the same in every image: R (left to right), A (back to front), S
            (feet to head), or 0, 1, 2 as stored; default as most images suggest. Kept in the datalist
        trust: What counts where the headers of image and label put the same voxels in different places: header, or
            voxels, which then ignores the headers of all labels; default such labels are refused. Kept in the datalist
        check: Whether to read every file; false trusts them.
        table: CSV file to write a row for every image to.
        dry_run: Say what is there and who would land where, and write no datalist.
    """
    if unknown:
        raise InputError(f"Unknown option --{next(iter(unknown))}; see --help.")
    if Path(output).exists() and not dry_run:
        raise InputError(f"{output}: exists already; give another name or remove it first.")
    image_files, label_files = pair_files(images, labels, image_suffix, label_suffix)
    cases = group_cases(image_files, label_files, group_by)
    names = [str(name) for name in _words(class_names)]
    found = survey(image_files, label_files, channels=channels, trust=trust) if check else None
    if found is not None:
        print_rows(describe(found, patients=len(cases.groups), class_names=names, slice_axis=slice_axis))
        if table:
            write_table(found, table)
    if ignored := ignored_line(images):
        print(ignored)
    stray = [
        f"{path}: a label without an image of that name in {images}; rename or remove it, or say what label names end "
        "with by --label_suffix."
        for name, path in label_files.items()
        if name not in image_files
    ]
    raise_all(stray + (found.problems if found is not None else []))

    wanted = {"testing": as_names(testing), "validation": as_names(validation)}
    if labeled is not None:
        wanted["training"] = as_names(labeled)
    taken = distribute(cases, wanted, seed=seed)
    root = Path(os.path.commonpath([Path(images).absolute(), Path(labels).absolute()]))
    lists = make_lists(cases, taken, root)
    for line in list_lines(cases, taken, lists):
        print(line)
    window = foreground_window(found, trust=trust) if found is not None and found.ct else None
    command = training_command(root, output, found, names, window)
    if dry_run:
        print("nothing written (--dry_run)")
        return
    classes = {"labels": dict(enumerate(names))} if names else {}
    axis = found.direction if found is not None and slice_axis is None else slice_axis
    facts = {name: value for name, value in (("slice_axis", axis), ("trust", trust)) if value is not None}
    write_json(output, {**classes, **facts, **lists})
    print(f"wrote {output}; to train on it, in the bundle's folder:")
    print(command)


def _words(value: Any) -> list[Any]:
    """``"background,heart"``, ``[background, heart]`` or nothing, from a command line."""
    if value is None:
        return []
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)


def main() -> None:
    """Command line of this module."""
    import fire

    from .errors import one_line_errors

    one_line_errors()
    fire.Fire({"create": create})


if __name__ == "__main__":
    main()
