"""What a survey found, told: a table, a CSV file, the command that trains on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .errors import InputError
from .files import IMAGE_SUFFIXES, cell, is_picture
from .intensity import AIR
from .slices import coarser_elsewhere, name_of, stored_axis
from .survey import Facts, Survey, join


def _range(rows: Iterable[Sequence[float]], unit: str) -> str:
    """``104x110x7 to 136x128x10 voxels``, or one where all agree."""
    ordered = sorted(set(map(tuple, rows)), key=lambda row: float(np.prod(row)))
    if len(ordered) == 1:
        return f"{join(ordered[0])} {unit}"
    return f"{join(ordered[0])} to {join(ordered[-1])} {unit} ({len(ordered)} different)"


def describe(
    found: Survey,
    *,
    patients: int,
    class_names: Sequence[str] = (),
    note: str = "patients",
    slice_axis: str | int | None = None,
) -> list[tuple[str, str]]:
    """What was found as rows of a table, name and value.

    Args:
        found: the survey.
        patients: number of patients the images belong to.
        class_names: names of the classes, in the order of their values.
        note: what they are called.
        slice_axis: what slices are stacked along; ``None``: as most images suggest.
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
    if found.ct:
        others = [facts.path.name for facts in images if not facts.ct]
        rows.append(("CT", "Hounsfield units: train with a window (--window, proposed below)" + (
                     f"; {len(others)} images do not look like it, {others[0]} first" if others else "")))  # fmt: skip
        padded = [facts for facts in images if facts.intensity and facts.intensity[0] < AIR - 100]
        if padded:
            rows.append(("padding", f"{len(padded)} images are filled up with values below that of air, "
                         f"{padded[0].path.name} first, which count as air"))  # fmt: skip
    axis = found.direction if slice_axis is None else slice_axis
    if axis is not None:
        rows.append(("slices", _slices(images, axis)))
    if placed := found.placed:
        rows.append(("headers", f"{len(placed)} labels are stored otherwise than their images (another orientation, or "
                     f"a part), {found.labels[placed[0]].path} first: they are put on them"))  # fmt: skip
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


def _slices(images: Sequence[Facts], axis: str | int) -> str:
    """How many slices an image has, along what, and which images would by themselves be cut otherwise."""
    counts, away = [], []
    for facts in images:
        if len(facts.shape) == 3:
            stored = stored_axis(facts.affine, facts.shape, axis, picture=is_picture(facts.path))
            counts.append(facts.shape[stored])
            if counts[-1] > 1 and coarser_elsewhere(facts.affine, stored):
                away.append(facts.path.name)
    if not counts:
        return "one an image"
    number = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
    others = f", and {len(away) - 5} more" if len(away) > 5 else ""
    warning = f"; {', '.join(away[:5])}{others}: cut so, too, though coarser along another axis" if away else ""
    return f"{number} an image, {sum(counts)} in all, along {name_of(axis)}{warning}"


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
            "case": cell(case), "file": cell(str(facts.path)), "channels": facts.channels, "size": join(facts.shape),
            "spacing": join(facts.spacing), "smallest": low, "percentile_0.5": p_low, "percentile_99.5": p_high,
            "largest": high, "label": str(label.path) if label else "",
            "label_values": " ".join(f"{v:g}" for v in label.values) if label else "",
        })  # fmt: skip
    import pandas as pd  # slow, and prediction makes no table

    pd.DataFrame(rows).to_csv(output, index=False)


def training_command(
    root: str | Path,
    output: str | Path,
    found: Survey | None = None,
    class_names: Sequence[str] = (),
    window: Sequence[float] | None = None,
) -> str:
    """The command that trains on a datalist, with the options that its files ask for.

    Args:
        root: folder that the paths in it are relative to.
        output: the datalist.
        found: what the files hold, if they were looked at.
        class_names: names of the classes, background first; made up where there are none and the labels do not show
            the four values that the configs start from.
        window: lowest and highest intensity that become 0 and 1.

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
    if window is not None:
        options.append(f'--window "{_compact([int(value) for value in window])}"')
    return "  python -m monai.bundle run training --config_file configs/train.yaml " + " ".join(options)


def _compact(values: Sequence[object]) -> str:
    return str(list(values)).replace(", ", ",")
