"""A submitted label: its segments by name, and whether a training can use it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np

from lib import bundles

logger = logging.getLogger(__name__)

#: The highest value of a label that is numbered anew, as 16 bits hold it.
MOST = 65_535


def check(bundle: Path, image: str, label: str | Path, *, empty: bool = False) -> None:
    """Look at a label as a training will.

    Args:
        bundle: folder of the bundle that is trained.
        image: file of the image.
        label: file of its label.
        empty: whether it may have no segment at all.

    Raises:
        InputError: another shape or place than the image's, values that are no class, or no segment.
    """
    errors = bundles.module(bundle, "errors")
    loader = bundles.module(bundle, "dataio.readers").image_loader
    settings, names = bundles.settings(bundle), bundles.class_names(bundle)
    transform = bundles.module(bundle, "dataio.transforms").CheckVolumed(
        in_channels=settings.get("in_channels") or 1, num_classes=len(names)
    )
    try:
        data = {"image": loader()(str(image)), "label": loader(label=True)(str(label))}
    except Exception as error:
        raise errors.InputError(
            f"{Path(label).name}: expected an image and its label, could not read them ({type(error).__name__})."
        ) from error
    whole = _whole(np.asarray(data["label"]), Path(label))
    if whole.shape[0] == 1 and (wrong := sorted(value for value in _values(whole) if not 0 <= value < len(names))):
        classes = ", ".join(f"{value} {name}" for value, name in enumerate(names))
        raise errors.InputError(
            f"{Path(label).name}: expected label values 0 to {len(names) - 1} ({classes}), received "
            f"{', '.join(map(str, wrong[:5]))}; save it with these values, or submit it with the names of its segments."
        )
    transform(data)
    if not empty and not data["label"].any():
        raise errors.InputError(
            f"{Path(label).name}: expected a segment, received an empty label; draw one, or send "
            '{"empty": true} in params if there is nothing to see in this image.'
        )


def check_readable(bundle: Path, label: Path) -> None:
    """Raise an InputError where a file is no label of one value a voxel."""
    error_of = bundles.module(bundle, "errors").InputError
    try:
        channels = bundles.module(bundle, "dataio.readers").image_loader(label=True)(str(label)).shape[0]
    except Exception as error:
        raise error_of(f"{label.name}: expected a label file, could not read it ({type(error).__name__}).") from error
    if channels != 1:
        raise error_of(
            f"{label.name}: expected one value a voxel, received {channels} layers; segments may not overlap: save it "
            "as a label map."
        )


def by_name(bundle: Path, file: Path, label_info: Sequence[Mapping[str, Any]] | None, *, by_order: bool = True) -> bool:
    """Give the segments of a label file the values of their classes.

    Clients number segments by their order, so that only the name says what was drawn. A ``.seg.nrrd`` names its
    segments itself, in other files ``label_info`` does.

    Args:
        bundle: folder of the bundle with the classes.
        file: changed in place where a number differs.
        label_info: ``{"name": ..., "idx": ...}`` for each segment, in order; without it the numbers count as they are.
        by_order: whether the values may also be 1, 2, 3, ... in this order, whatever ``idx`` says.

    Returns:
        whether the file was changed.

    Raises:
        ValueError: in one line: a segment that is no class, or names that fit the numbers in two ways.
    """
    named = _own_names(bundle, file) or _named(label_info)[: None if by_order else 1]
    if not named:
        return False
    class_names = bundles.class_names(bundle)
    array = _array(file)
    present = _values(array)
    if odd := sorted(value for value in present if not 0 <= value <= MOST):
        raise ValueError(
            f"{file.name}: expected label values 0 to {MOST}, received {', '.join(map(str, odd[:5]))}; save it with "
            "others."
        )
    fitting = [names for names in named if present <= names.keys()]
    used = [{value: names[value] for value in present} for names in fitting]
    if not fitting or any(other != used[0] for other in used):
        raise ValueError(
            f"label_info: expected a name for each of the values {sorted(present)}, received {named[0]}; number the "
            "segments as they are numbered in the file."
        )
    known = _known(class_names)
    unknown = sorted({name for name in used[0].values() if name not in known})
    if unknown:
        raise ValueError(
            f"label_info: expected segments named {', '.join(class_names[1:])}, received {', '.join(unknown)}; rename "
            "or remove them."
        )
    target = {value: known[name] for value, name in used[0].items()}
    if all(old == new for old, new in target.items()):
        return False
    table = np.zeros(int(array.max()) + 1, np.uint8)
    table[list(target)] = list(target.values())
    _rewrite(file, table[array])
    logger.info(f"{file.name}: numbered by name, {', '.join(f'{a} is {b}' for a, b in sorted(target.items()))}.")
    return True


def numbered(bundle: Path, copy: Path, info: Mapping[str, Any]) -> None:
    """Give a label for a training the values of the classes, if its segments have names that ask for others.

    What the books say is of the file that was submitted. In the place of that file another one may lie, whose numbers
    then count as they are.

    Args:
        bundle: folder of the bundle that is trained.
        copy: of the label, with its time; changed in place.
        info: what the books say of the label.

    Raises:
        InputError: segments that are no class, an earlier content with classes of other numbers, or no label.
    """
    error_of = bundles.module(bundle, "errors").InputError
    own, told = _own_names(bundle, copy), info.get("label_info")
    told = told if isinstance(told, list) and all(isinstance(entry, dict) for entry in told) else None
    if not (own or told):
        return
    if not own and not _is_told_of(copy, info):
        names, known = _named(told)[0], _known(bundles.class_names(bundle))
        if any(known.get(name) != value for value, name in names.items()):
            raise error_of(
                f"{copy.name}: was replaced after it was submitted, when the classes were numbered otherwise "
                f"({', '.join(f'{value} {name}' for value, name in names.items())}); submit it again."
            )
        return
    check_readable(bundle, copy)
    try:
        by_name(bundle, copy, told, by_order="stored" not in info)  # which of our own books say the value
    except ValueError as error:
        raise error_of(f"{copy.name}: {str(error).removeprefix(f'{copy.name}: ')}") from error


def _is_told_of(file: Path, info: Mapping[str, Any]) -> bool:
    """Whether a file is the one that was submitted: by size and time, or by when that was, in books of other apps."""
    about, at = file.stat(), info.get("ts")
    if stored := info.get("stored"):
        return bool(stored == [about.st_size, about.st_mtime_ns])
    return isinstance(at, (int, float)) and abs(about.st_mtime - at) <= 5


def present(bundle: Path, file: Path) -> list[dict[str, Any]]:
    """Name and value of each class in a label, in the order of the values, as MONAI Label names segments of DICOM."""
    label = bundles.module(bundle, "dataio.readers").image_loader(label=True)(str(file))
    names = bundles.class_names(bundle)
    return [{"name": names[value], "idx": value} for value in sorted(_values(_whole(np.asarray(label), file)))]


def values_of(file: Path) -> list[int]:
    """The values of a label file, ascending and without the background."""
    return sorted(_values(_array(file)))


def _array(file: Path) -> np.ndarray:
    array = np.asanyarray(nib.load(file).dataobj) if _is_nifti(file) else itk.array_from_image(itk.imread(str(file)))
    return _whole(array, file)


def _whole(array: np.ndarray, file: Path) -> np.ndarray:
    """The values as whole numbers, which files of floats may miss by a hair.

    Raises:
        ValueError: they are none.
    """
    rounded = np.rint(array)
    if not (np.abs(array - rounded) <= 1e-3).all():
        raise ValueError(
            f"{file.name}: expected whole numbers as label values, received others; save it as a label map."
        )
    return rounded.astype(np.int64)


def _values(array: np.ndarray) -> set[int]:
    return {int(v) for v in np.unique(array) if v}


def _known(class_names: Sequence[str]) -> dict[str, int]:
    """The value of each class by its name, in small letters."""
    return {name.strip().lower(): value for value, name in enumerate(class_names)}


def _named(label_info: Sequence[Mapping[str, Any]] | None) -> list[dict[int, str]]:
    """Names by value: as ``idx`` says, and by order, where they differ because a client left segments out."""
    if not label_info:
        return []
    names = [str(entry.get("name", "")).strip().lower() for entry in label_info]
    stated = [entry.get("idx", entry.get("id", n)) for n, entry in enumerate(label_info, 1)]
    if not all(isinstance(value, int) for value in stated):
        stated = list(range(1, len(names) + 1))
    return [dict(zip(stated, names)), dict(zip(range(1, len(names) + 1), names))]


def _own_names(bundle: Path, file: Path) -> list[dict[int, str]]:
    if not file.name.lower().endswith(".nrrd"):
        return []
    told = bundles.module(bundle, "preparation.value_names").segments(file)
    found = {int(s["LabelValue"]): s["Name"].lower() for s in told if {"LabelValue", "Name"} <= s.keys()}
    return [found] if found else []


def _is_nifti(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


def _rewrite(file: Path, array: np.ndarray) -> None:
    """Other values in the same file, on the same grid."""
    if _is_nifti(file):
        header = nib.load(file).header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        nib.save(nib.Nifti1Image(array, header.get_best_affine(), header), file)
    else:
        image = itk.image_from_array(np.ascontiguousarray(array))
        image.CopyInformation(itk.imread(str(file)))
        itk.imwrite(image, str(file))
