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
import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError, raise_all

logger = logging.getLogger(__name__)

LISTS = ("training", "unlabeled", "validation", "testing")
#: Endings of image files, longest first; ``case_name`` strips them.
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def case_name(path: str | os.PathLike) -> str:
    """File name without folder and image ending: ``images/patient001_frame01.nii.gz`` -> ``patient001_frame01``."""
    name = os.path.basename(os.fspath(path).rstrip("/"))
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


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


def _items(datalist: str | os.PathLike, content: Mapping[str, Any], key: str, problems: list[str]) -> list[dict]:
    entries = content.get(key, [])
    if not isinstance(entries, list):
        problems.append(f"{datalist}: `{key}` should be a list of items, received {type(entries).__name__}.")
        return []
    items = []
    for number, entry in enumerate(entries):
        item = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(item, dict) or "image" not in item:
            problems.append(
                f'{datalist}: item {number} of `{key}` should be {{"image": FILE, ...}}, received {entry!r}.'
            )
        else:
            items.append(dict(item))
    return items


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
) -> list[dict[str, Any]]:
    """Read one list and check it against the others before anything is loaded.

    Args:
        datalist: JSON file in the format described at the top of this module.
        dataset_dir: folder that the paths in it are relative to.
        key: ``training``, ``unlabeled``, ``validation`` or ``testing``. ``unlabeled`` also receives the volumes of
            ``training`` that have ``labeled_slices``, for their other slices.
        require_label: whether an item without label is an error. Default: in ``training`` and ``validation`` it is.
        fold: for cross-validation as in Auto3DSeg: items of ``training`` with this ``fold`` make ``validation``, the
            others ``training``. ``None``: the lists as they stand.
        unlabeled_key: list to take the unlabelled images from; of ``testing`` only the images are used.

    Returns:
        one dictionary an item with absolute ``image`` (a list where several files are the channels of one image), and
        ``label`` unless the item is unlabelled. A list that the file does not have is empty.

    Raises:
        InputError: listing every problem at once: missing files, missing labels, cases that stand in two lists.
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
        lists["training"] = [item for item in labeled if item.get("fold") != fold]
        lists["validation"] = [item for item in labeled if item.get("fold") == fold]
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
        elif require_label and not item.get("label"):
            problems.append(
                f"{datalist}: {_image_files(item)[0]} stands in `{key}` without a label; "
                'add "label": FILE or move it to `unlabeled`.'
            )
        problems += _resolve(item, Path(dataset_dir), datalist)
    raise_all(problems)
    return chosen


def _resolve(item: dict, dataset_dir: Path, datalist: str | os.PathLike) -> list[str]:
    """Make the paths of ``item`` absolute in place; returns what is wrong with them."""
    problems = []
    for name in ("image", "label"):
        if not item.get(name):
            continue
        files = item[name] if isinstance(item[name], list) else [item[name]]
        paths = [os.path.normpath(dataset_dir / str(f)) for f in files]
        problems += [
            f"{path}: no such {name} file, named in {datalist}; check dataset_dir ({dataset_dir}) or the list."
            for path in paths
            if not os.path.exists(path)
        ]
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
    content = _load(datalist)
    for key in ("testing", "validation"):
        if any(isinstance(item, dict) and item.get("label") for item in content.get(key) or []):
            return key
    if fold is not None and any(item.get("fold") == fold for item in content.get("training") or []):
        return "validation"
    raise InputError(f"{datalist}: expected labelled cases in `testing` or `validation`, received none; add some.")


def read_images(dataset_dir: str | os.PathLike, datalist: str | os.PathLike = "") -> list[dict[str, Any]]:
    """Images to predict: every image file below ``dataset_dir``, or ``testing`` of a datalist.

    Args:
        dataset_dir: folder of images (its ``images`` if it has one, else itself with all below it), or one image file.
        datalist: JSON file; empty for none.

    Returns:
        one ``{"image": path}`` an image, sorted by name.

    Raises:
        InputError: no such folder, or no image in it.
    """
    if datalist:
        items = read_datalist(datalist, dataset_dir, "testing")
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


def find_images(folder: str | os.PathLike, *, recursive: bool = False) -> dict[str, Path]:
    """Image files in ``folder`` by case name, with the folders below ``folder`` if ``recursive``, sorted.

    Raises:
        InputError: no such folder, no image in it, or two files of one case name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a folder of images ({', '.join(IMAGE_SUFFIXES)}).")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(IMAGE_SUFFIXES):
            continue
        name = str(path.parent.relative_to(folder) / case_name(path))
        if name in found:
            raise InputError(f"{path}: a second file of the case {name} beside {found[name]}; keep one of them.")
        found[name] = path
    if not found:
        raise InputError(f"{folder}: expected image files ({', '.join(IMAGE_SUFFIXES)}), found none.")
    return found


def _as_names(value: Any) -> list[str] | int:
    """A number of patients, or a list of names, from a command line: ``7``, ``"038,050"``, ``[038, 050]``, a file."""
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, (bool, int, float)):
        raise InputError(f"Expected a number of patients of 0 or more, or names, received {value}.")
    if isinstance(value, str):
        if os.path.isfile(value):
            return Path(value).read_text().split()
        return [name for name in re.split(r"[,\s]+", value) if name]
    return [str(name) for name in value]


def _choose(wanted: list[str] | int, groups: Mapping[str, list[str]], taken: dict[str, str], use: str, rng) -> None:
    """Give ``wanted`` groups (a number to draw, or names of patients or cases) to the list ``use``, in ``taken``."""
    if isinstance(wanted, int):
        free = [group for group in groups if group not in taken]
        if wanted > len(free):
            raise InputError(
                f"{wanted} patients wanted for {use}, but only {len(free)} are left all of whose images have labels; "
                "lower the numbers or label more."
            )
        chosen = rng.sample(free, wanted)
    else:
        by_case = {case: group for group, cases in groups.items() for case in cases}
        unknown = [name for name in wanted if name not in groups and name not in by_case]
        raise_all(f"{name}: named for {use}, but there is no such patient or case." for name in unknown)
        chosen = list(dict.fromkeys(by_case.get(name, name) for name in wanted))
    for group in chosen:
        if group in taken:
            raise InputError(f"{group}: a patient can stand in one list only, received {taken[group]} and {use}.")
        taken[group] = use


def create(
    images: str,
    labels: str,
    output: str,
    labeled: Any = None,
    validation: Any = 0,
    testing: Any = 0,
    group_by: str = r"^(.+?)(?:_frame\d+)?$",
    seed: int = 0,
    class_names: Any = None,
    **unknown: Any,
) -> None:
    r"""Make a datalist from a folder of images and a folder of labels, split by patient.

    A patient is used with labels only if every image of that patient has one.

    Args:
        images: Folder of images of any format MONAI reads.
        labels: Folder of labels, matched by file name without ending; not every image needs one.
        output: JSON file to write, which must not exist yet.
        labeled: Number of patients to train on with labels, drawn by seed, or their names; default all
        validation: The same for validation, none by default.
        testing: The same for testing, none by default.
        group_by: Regular expression whose first group is the patient in a file name
        seed: Seed of the draw.
        class_names: Names of the label values 0, 1, 2 and so on, for the record.
    """
    if unknown:
        raise InputError(f"Unknown option --{next(iter(unknown))}; see --help.")
    try:
        re.compile(group_by)
    except re.error as error:
        raise InputError(f"group_by {group_by!r} is no regular expression ({error}); try '^(patient\\d+)'.") from None
    if Path(images).resolve() == Path(labels).resolve():
        raise InputError(f"{images}: expected images and labels in two folders, received one; separate them.")
    output_path = Path(output)
    if output_path.exists():
        raise InputError(f"{output}: exists already; give another name or remove it first.")
    image_files, label_files = find_images(images), find_images(labels)
    raise_all(f"{path}: a label without an image of that name in {images}; rename or remove it."
              for name, path in label_files.items() if name not in image_files)  # fmt: skip

    groups: dict[str, list[str]] = {}
    for name in image_files:
        match = re.search(group_by, name)
        if match is None or not match.groups():
            raise InputError(f"{image_files[name]}: group_by {group_by!r} finds no patient in {name!r}; "
                             "give an expression with one group, for instance '^(patient\\d+)'.")  # fmt: skip
        groups.setdefault(match.group(1), []).append(name)
    with_labels = {g: cases for g, cases in groups.items() if all(case in label_files for case in cases)}

    taken: dict[str, str] = {}
    wanted = {"testing": _as_names(testing), "validation": _as_names(validation)}
    if labeled is not None:
        wanted["training"] = _as_names(labeled)
    rng = random.Random(seed)
    # names first, then draws: what is named is never drawn for another list
    for use, names in sorted(wanted.items(), key=lambda pair: isinstance(pair[1], int)):
        pool = groups if not isinstance(names, int) else with_labels
        _choose(names, pool, taken, use, rng)
    if labeled is None:
        taken.update({group: "training" for group in with_labels if group not in taken})

    root = Path(os.path.commonpath([Path(images).resolve(), Path(labels).resolve()]))
    content: dict[str, Any] = {}
    if class_names is not None:
        content["labels"] = {str(value): name for value, name in enumerate(_as_names(class_names))}  # type: ignore[arg-type]
    content.update({name: [] for name in LISTS})
    problems = []
    for group, cases in groups.items():
        use = taken.get(group, "unlabeled")
        for case in cases:
            item = {"image": os.path.relpath(image_files[case].resolve(), root)}
            if use != "unlabeled":
                if case not in label_files:
                    problems.append(f"{image_files[case]}: chosen for {use}, but {labels} has no label of that name.")
                    continue
                item["label"] = os.path.relpath(label_files[case].resolve(), root)
            content[use].append(item)
    raise_all(problems)
    if not content["training"]:
        raise InputError(f"{labels}: no case is left to train on with its label; lower validation and testing.")
    output_path.parent.mkdir(parents=True, exist_ok=True)
    output_path.write_text(json.dumps(content, indent=2) + "\n")

    partly = sorted(g for g in groups if g not in with_labels and any(c in label_files for c in groups[g]))
    if partly:
        print(f"partly labelled, used without their labels: {' '.join(partly)}")
    for use in LISTS:
        members = sorted({group for group in groups if taken.get(group, "unlabeled") == use})
        print(f"{use:<11} {len(members):4d} patients {len(content[use]):5d} images  {' '.join(members)}")
    print(f"wrote {output}; use it with --dataset_dir {os.path.relpath(root)} --datalist {output}")


def main() -> None:
    """Command line of this module."""
    import fire

    from .errors import one_line_errors

    one_line_errors()
    fire.Fire({"create": create})


if __name__ == "__main__":
    main()
