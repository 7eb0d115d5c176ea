"""A look into every image and label before anything is trained: what there is, and what cannot be used."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from .errors import InputError
from .files import IMAGE_SUFFIXES
from .readers import image_loader

logger = logging.getLogger(__name__)

#: More values than this in a label file, or fractions: it is no label but an image, or was stored with losses.
MOST_VALUES = 64


@dataclass(frozen=True)
class Facts:
    """What a file holds.

    Attributes:
        path: the file, or the folder of a DICOM series.
        channels: how many.
        shape: voxels along each axis, as stored.
        spacing: voxel size along each axis, mm; ones where the file states none.
        intensity: smallest value, 0.5 and 99.5 percentile, largest value; of an image.
        values: how many voxels have which value; of a label.
    """

    path: Path
    channels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    intensity: tuple[float, float, float, float] | None = None
    values: Mapping[float, int] = field(default_factory=dict)


def look(path: Path, *, label: bool = False, channels: int | None = None) -> Facts:
    """Read one file and check it on its own.

    Args:
        path: image or label, or the folder of a DICOM series.
        label: whether it is a label.
        channels: how many channels the images are said to have; with more than one a 4D file is one of channels.

    Raises:
        InputError: in one line with the file and the remedy.
    """
    kind = "label" if label else "image"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*more than one DICOM series")
            tensor = image_loader()(path)
    except Exception as error:
        if "more than one DICOM series" in str(error):
            raise InputError(f"{path}: several DICOM series in one folder; give each a folder of its own.") from error
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"{path}: cannot be read as {'a label' if label else 'an image'} ({type(error).__name__}: {reason}); "
            "replace the file or take it out of the folder."
        ) from error
    spatial = tensor.ndim - 1
    if not label and (spatial > 3 or (spatial == 3 and tensor.shape[0] > 1 and tensor.shape[0] != channels)):
        volumes = tensor.shape[0] if spatial == 3 else tensor.shape[-1]
        raise InputError(
            f"{path}: a 4D image of {volumes} volumes; split a time series into one file a frame, or if these are "
            f"channels (modalities), say so with --channels {volumes}."
        )
    if spatial < 2 or min(tensor.shape) < 1 or spatial > 3:
        raise InputError(f"{path}: expected a 2D or 3D {kind}, received an array of {tuple(tensor.shape[1:])}.")
    array = tensor.numpy()
    spacing = tuple(round(float(s), 4) for s in np.linalg.norm(tensor.affine.numpy()[:3, :3], axis=0)[:spatial])
    facts = (path, int(tensor.shape[0]), tuple(int(n) for n in tensor.shape[1:]), spacing)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InputError(f"{path}: {bad} voxels are NaN or infinite; replace those (numpy.nan_to_num).")
    if not label:
        low, high = np.percentile(array[..., ::4] if array.size > 4e6 else array, [0.5, 99.5])
        return Facts(*facts, intensity=(float(array.min()), float(low), float(high), float(array.max())))
    values, counts = np.unique(array, return_counts=True)
    if len(values) > MOST_VALUES or (values != np.round(values)).any():
        lossy = " (JPEG stores with losses: use PNG)" if path.suffix.lower() in (".jpg", ".jpeg") else ""
        raise InputError(
            f"{path}: {len(values)} different values from {values[0]:g} to {values[-1]:g}; expected a label of a few "
            f"whole numbers, one a class{lossy}."
        )
    return Facts(*facts, values={float(v): int(n) for v, n in zip(values, counts)})


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        images: facts of every readable image, by case.
        labels: the same of every readable label.
        problems: one line for each file that cannot be used.
    """

    images: dict[str, Facts]
    labels: dict[str, Facts]
    problems: list[str]

    @property
    def channels(self) -> int:
        """Channels that most images have."""
        counts = Counter(facts.channels for facts in self.images.values())
        return counts.most_common(1)[0][0] if counts else 1

    @property
    def values(self) -> list[float]:
        """Every value that labels show, sorted."""
        return sorted({value for facts in self.labels.values() for value in facts.values})

    @property
    def has_spacing(self) -> bool:
        """Whether any image states a voxel size."""
        return any(not np.allclose(facts.spacing, 1.0) for facts in self.images.values())


def survey(
    images: Mapping[str, Path], labels: Mapping[str, Path], *, channels: int | None = None, progress: bool = True
) -> Survey:
    """Read every file once.

    Args:
        images: image files by case.
        labels: label files by case, for some of them.
        channels: how many channels the images are said to have; ``None``: as most of them have.
        progress: whether to show a progress bar.
    """
    problems: list[str] = []
    found: tuple[dict[str, Facts], dict[str, Facts]] = ({}, {})
    bar = tqdm(total=len(images) + len(labels), desc="Reading files", unit="file", disable=not progress)
    for kind, files in enumerate((images, labels)):
        for case, path in files.items():
            try:
                found[kind][case] = look(path, label=bool(kind), channels=channels)
            except InputError as error:
                problems.append(str(error))
            bar.update()
    bar.close()
    result = Survey(*found, problems)
    problems += _channel_problems(result, channels or result.channels, channels is not None)
    problems += _pair_problems(result)
    return result


def _channel_problems(found: Survey, expected: int, said: bool) -> Iterable[str]:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(expected, "L")
    others = f"{expected} were said to be there" if said else f"most of the others have {expected}"
    for facts in found.images.values():
        if facts.channels != expected:
            yield (
                f"{facts.path}: {facts.channels} channel(s), where {others}; convert the file, for "
                f"pictures with Pillow: Image.open(FILE).convert('{mode}')."
            )


def _pair_problems(found: Survey) -> Iterable[str]:
    for case, label in found.labels.items():
        image = found.images.get(case)
        if label.channels != 1:
            yield (
                f"{label.path}: {label.channels} channels; expected one of class indices, for pictures with Pillow: "
                "Image.open(FILE).convert('L')."
            )
        elif image is not None and image.shape != label.shape:
            yield (
                f"{label.path}: its size is {_join(label.shape)}, that of its image {image.path} {_join(image.shape)}; "
                "resample the label to the image's grid."
            )


def _join(numbers: Sequence[float]) -> str:
    return "x".join(f"{n:.4g}" for n in numbers)


def _range(rows: Iterable[Sequence[float]], unit: str) -> str:
    """``104x110x7 to 136x128x10 voxels``, or one where all agree."""
    ordered = sorted(set(map(tuple, rows)), key=lambda row: float(np.prod(row)))
    if len(ordered) == 1:
        return f"{_join(ordered[0])} {unit}"
    return f"{_join(ordered[0])} to {_join(ordered[-1])} {unit} ({len(ordered)} different)"


def describe(
    found: Survey, *, patients: int, class_names: Sequence[str] = (), note: str = "patients"
) -> list[tuple[str, str]]:
    """What was found as rows of a table, name and value.

    Args:
        found: the survey.
        patients: number of patients the images belong to.
        class_names: names of the classes, in the order of their values.
        note: what they are called.
    """
    images, labels = list(found.images.values()), list(found.labels.values())
    if not images:
        return [("images", "none that can be read")]
    endings = Counter(_ending(facts.path) for facts in images)
    rows = [
        ("images", f"{len(images)} of {patients} {note}, {len(labels)} with a label"),
        ("formats", ", ".join(f"{ending} {number}" for ending, number in endings.most_common())),
        ("channels", ", ".join(str(c) for c in sorted({facts.channels for facts in images}))),
        ("size", _range((facts.shape for facts in images), "voxels")),
        ("spacing", _range((facts.spacing for facts in images), "mm") if found.has_spacing else
         "not stated: distances will be in voxels"),
    ]  # fmt: skip
    table = np.array([facts.intensity for facts in images])
    if len(table):
        middle = np.median(table, axis=0)
        rows.append(("intensity", f"{table[:, 0].min():.4g} to {table[:, 3].max():.4g}; in the median image "
                     f"{middle[1]:.4g} to {middle[2]:.4g} (0.5 and 99.5 percentile)"))  # fmt: skip
    totals: Counter[float] = Counter()
    for facts in labels:
        totals.update(facts.values)
    voxels = max(sum(totals.values()), 1)
    for number, value in enumerate(sorted(totals)):
        name = f" {class_names[number]}" if number < len(class_names) else ""
        cases = sum(value in facts.values for facts in labels)
        rows.append((f"label {value:g}{name}", f"{totals[value] / voxels:.2%} of the voxels, in {cases} of "
                     f"{len(labels)} labels"))  # fmt: skip
    return rows


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print a table of names and values."""
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def _ending(path: Path) -> str:
    if path.is_dir():
        return "DICOM series"
    return next(suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix))


def write_table(found: Survey, output: str | Path) -> None:
    """A row for every image as CSV: size, spacing, intensities, label values."""
    rows = []
    for case, facts in found.images.items():
        low, p_low, p_high, high = facts.intensity or (float("nan"),) * 4
        label = found.labels.get(case)
        rows.append({
            "case": case, "file": str(facts.path), "channels": facts.channels, "size": _join(facts.shape),
            "spacing": _join(facts.spacing), "smallest": low, "percentile_0.5": p_low, "percentile_99.5": p_high,
            "largest": high, "label": str(label.path) if label else "",
            "label_values": " ".join(f"{v:g}" for v in label.values) if label else "",
        })  # fmt: skip
    pd.DataFrame(rows).to_csv(output, index=False)


def training_command(
    root: str | Path, output: str | Path, found: Survey | None = None, class_names: Sequence[str] = ()
) -> str:
    """The command that trains on a datalist, with the options that its files ask for.

    Args:
        root: folder that the paths in it are relative to.
        output: the datalist.
        found: what the files hold, if they were looked at.
        class_names: names of the classes, background first; made up where there are none and the labels do not show
            the four values that the configs start from.

    Raises:
        InputError: label values that leave open which class is which.
    """
    options = [f"--dataset_dir {root}", f"--datalist {Path(output).absolute()}", "--output_dir RUN"]
    names = list(class_names)
    values = [int(v) for v in sorted({0, *found.values})] if found is not None and found.labels else []
    named = bool(names) and max(values, default=0) < len(names)
    if values != list(range(len(values))) and not named:
        if names and len(names) != len(values):
            raise InputError(
                f"The labels show the values {values}, but there are {len(names)} class names ({', '.join(names)}); "
                "give one name for each value."
            )
        options.append(f'--label_values "{_compact(values)}"')
    if not names and len(values) not in (0, 4):
        names = ["background", *(f"class {c}" for c in range(1, len(values)))]
    if names:
        options.append(f'--class_names "{_compact(names)}"')
    if found is not None and found.channels != 1:
        options.append(f"--in_channels {found.channels}")
    return "  python -m monai.bundle run training --config_file configs/train.yaml " + " ".join(options)


def _compact(values: Sequence[object]) -> str:
    return str(list(values)).replace(", ", ",")
