"""What a survey found, as a table that is printed and as a CSV file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..dataio.files import IMAGE_SUFFIXES, is_picture
from ..dataio.intensity import AIR
from ..dataio.slice_axis import coarser_elsewhere, name_of, stored_axis, worth_3d
from ..dataio.storage import cell, check_new, write_text
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
    patients: int = 0,
    class_names: Sequence[str] = (),
    values: Sequence[float] = (),
    ignore_label: int | None = None,
    note: str = "patients",
    slice_axis: str | int | None = None,
) -> list[tuple[str, str]]:
    """What was found as rows of a table, name and value.

    Args:
        found: the survey.
        patients: number of patients the images belong to; 0: not known.
        class_names: names of the classes.
        values: of the classes, in their order; none: those that the labels show.
        ignore_label: value of voxels to ignore.
        note: what they are called.
        slice_axis: what slices are stacked along; ``None``: as most images suggest.
    """
    images = list(found.images.values())
    if not images:
        return [("images", "none that can be read")]
    number = f"{len(images)}{f' of {patients} {note}' if patients else ''}, {len(found.labels)} with a label"
    axis = found.direction if slice_axis is None else slice_axis
    classes = _values_shown(list(found.labels.values()), class_names, values, ignore_label)
    parts = (_stored(found, images), _intensities(found, images), _placed(found, images, axis), classes)
    return [("images", number), *(row for part in parts for row in part)]


def _stored(found: Survey, images: Sequence[Facts]) -> Iterator[tuple[str, str]]:
    """How files are stored: their kinds, sizes and units."""
    endings = Counter(_ending(facts.path) for facts in images)
    units = [unit for unit, _ in Counter(facts.unit for facts in images).most_common()]
    yield "formats", ", ".join(f"{ending} {number}" for ending, number in endings.most_common())
    yield "channels", ", ".join(str(c) for c in sorted({facts.channels for facts in images}))
    yield "size", _range((facts.shape for facts in images), "voxels")
    spacing = _range((facts.spacing for facts in images), " or ".join(units))
    yield "spacing", spacing if found.has_spacing else "not stated: distances will be in voxels"
    if other := [facts for facts in images if facts.unit != units[0]]:
        yield ("warning", f"{len(other)} images state their size in {other[0].unit}, {other[0].path.name} first, "
               f"and most in {units[0]}: the numbers are taken as they are; mend those headers")  # fmt: skip
    if unsized := [facts.path.name for facts in images if not facts.sized]:
        yield ("warning", f"{len(unsized)} images state no voxel size, {unsized[0]} first, and count as 1 mm: "
               "distances go by it, and resampling in 3D; mend their headers if it is another")  # fmt: skip


def _intensities(found: Survey, images: Sequence[Facts]) -> Iterator[tuple[str, str]]:
    """What images show, and labels that belong to another image."""
    table = np.array([facts.intensity for facts in images])
    if len(table):
        middle = np.median(table, axis=0)
        yield ("intensity", f"{table[:, 0].min():.4g} to {table[:, 3].max():.4g}; in the median image "
               f"{middle[1]:.4g} to {middle[2]:.4g} (0.5 and 99.5 percentile)")  # fmt: skip
    if wrapped := [facts for facts in images if facts.wrapped]:
        yield ("warning", f"{len(wrapped)} images hold numbers from 0 on and just below 65536, and none between, "
               f"{wrapped[0].path.name} first, as if negative ones had lost their sign: air is brightest; "
               "subtract 65536 from those above 32767")  # fmt: skip
    if blank := [facts for facts in images if facts.intensity and facts.intensity[0] == facts.intensity[3]]:
        yield ("warning", f"{len(blank)} images show one value alone, {blank[0].path.name} first: nothing is to "
               "be learnt from them; take out those that should show more")  # fmt: skip
    for first, *rest in found.same_labels[:5]:
        yield ("warning", f"{found.labels[rest[0]].path.name}: the same voxels as the label of {first}, though "
               "their images differ; see that it is the label of its image")  # fmt: skip
    if found.ct:
        others = [facts.path.name for facts in images if not facts.ct]
        yield ("CT", "Hounsfield units" + (
               f"; {len(others)} images do not look like it, {others[0]} first, which the window will not suit: "
               "take them out" if others else ""))  # fmt: skip
        padded = [facts for facts in images if facts.intensity and facts.intensity[0] < AIR - 100]
        if padded:
            yield ("padding", f"{len(padded)} images are filled up with values below that of air, "
                   f"{padded[0].path.name} first, which count as air")  # fmt: skip
    elif 4 * sum(facts.ct for facts in images) >= len(images):
        some, rest = ([facts.path.name for facts in images if facts.ct == is_ct] for is_ct in (True, False))
        yield ("warning", f"{len(some)} of {len(images)} images look like CT in Hounsfield units, {some[0]} "
               f"first, and others do not, {rest[0]} first: store all alike (often 1024 was added), or take "
               "some out")  # fmt: skip


def _placed(found: Survey, images: Sequence[Facts], axis: str | int | None) -> Iterator[tuple[str, str]]:
    """How volumes are cut, and where images and labels lie in space."""
    if any(len(facts.shape) == 3 for facts in images):
        yield ("slices", _slices(images, axis))
    if suits_3d(found):
        yield ("3D", "voxels are nearly as long as wide, so a 3D network may do better than slices")
    if unplaced := found.unplaced:
        yield ("warning", f"{len(unplaced)} images state no place in space, {unplaced[0].name} first, and others "
               "do: taken as if stored from left to right, back to front, feet to head; mend their "
               "headers")  # fmt: skip
    if laid := found.laid:
        yield ("warning", f"{len(laid)} labels state no place in space while their images do, or the other way "
               f"round, {laid[0]} first: laid on them voxel by voxel; look at one in a viewer")  # fmt: skip
    if placed := found.placed:
        yield ("headers", f"{len(placed)} labels are stored otherwise than their images (another orientation or "
               f"grid, or a part), {found.labels[placed[0]].path} first: their headers place them, unless "
               "--trust voxels")  # fmt: skip


def _values_shown(
    labels: Sequence[Facts], class_names: Sequence[str], values: Sequence[float], ignore_label: int | None
) -> Iterator[tuple[str, str]]:
    """How much of each value labels show."""
    totals: Counter[float] = Counter()
    for facts in labels:
        totals.update(facts.values)
    voxels = max(sum(totals.values()), 1)
    names = dict(zip(values or sorted(totals), class_names))
    for value in sorted(totals):
        name = " (not judged)" if value == ignore_label else f" {names[value]}" if value in names else ""
        cases = sum(value in facts.values for facts in labels)
        yield (f"label {value:g}{name}", f"{totals[value] / voxels:.2%} of the voxels, in {cases} of "
               f"{len(labels)} labels")  # fmt: skip


def suits_3d(found: Survey) -> bool:
    """Whether most images suit a 3D network."""
    images = found.images.values()
    suited = [facts for facts in images if facts.sized and worth_3d(facts.spacing, facts.shape)]
    return found.has_spacing and len(suited) > len(images) / 2


def _slices(images: Sequence[Facts], axis: str | int | None) -> str:
    """How many slices an image has, along what, and which images would by themselves be cut otherwise."""
    counts, away = [], []
    for facts in images:
        if len(facts.shape) == 3:
            stored = stored_axis(facts.affine, facts.shape, axis, picture=is_picture(facts.path))
            counts.append(facts.shape[stored])
            if counts[-1] > 1 and coarser_elsewhere(facts.affine, stored):
                away.append(facts.path.name)
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


def check_table(output: str) -> None:
    """That ``--table`` can be written; one of an earlier survey may be there.

    Raises:
        InputError: another file is there, or no folder can be.
    """
    path = Path(output)
    if path.is_file() and path.read_bytes()[:19] == b"case,file,channels,":
        return
    check_new(output, "table")


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

    write_text(Path(output), pd.DataFrame(rows).to_csv(index=False))
