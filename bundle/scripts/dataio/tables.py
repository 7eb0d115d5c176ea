"""What a survey found: as a table, as a CSV file, and as the command that trains on it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .files import IMAGE_SUFFIXES, is_picture
from .intensity import AIR
from .slice_axis import coarser_elsewhere, name_of, stored_axis, worth_3d
from .storage import cell, check_new, write_text
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
    images, labels = list(found.images.values()), list(found.labels.values())
    if not images:
        return [("images", "none that can be read")]
    endings = Counter(_ending(facts.path) for facts in images)
    units = [unit for unit, _ in Counter(facts.unit for facts in images).most_common()]
    rows = [
        ("images", f"{len(images)}{f' of {patients} {note}' if patients else ''}, {len(labels)} with a label"),
        ("formats", ", ".join(f"{ending} {number}" for ending, number in endings.most_common())),
        ("channels", ", ".join(str(c) for c in sorted({facts.channels for facts in images}))),
        ("size", _range((facts.shape for facts in images), "voxels")),
        ("spacing", _range((facts.spacing for facts in images), " or ".join(units)) if found.has_spacing else
         "not stated: distances will be in voxels"),
    ]  # fmt: skip
    if other := [facts for facts in images if facts.unit != units[0]]:
        rows.append(("warning", f"{len(other)} images state their size in {other[0].unit}, {other[0].path.name} first, "
                     f"and most in {units[0]}: the numbers are taken as they are; mend those headers"))  # fmt: skip
    if unsized := [facts.path.name for facts in images if not facts.sized]:
        rows.append(("warning", f"{len(unsized)} images state no voxel size, {unsized[0]} first, and count as 1 mm: "
                     "distances go by it, and resampling in 3D; mend their headers if it is another"))  # fmt: skip
    table = np.array([facts.intensity for facts in images])
    if len(table):
        middle = np.median(table, axis=0)
        rows.append(("intensity", f"{table[:, 0].min():.4g} to {table[:, 3].max():.4g}; in the median image "
                     f"{middle[1]:.4g} to {middle[2]:.4g} (0.5 and 99.5 percentile)"))  # fmt: skip
    if wrapped := [facts for facts in images if facts.wrapped]:
        rows.append(("warning", f"{len(wrapped)} images hold numbers from 0 on and just below 65536, and none between, "
                     f"{wrapped[0].path.name} first, as if negative ones had lost their sign: air is brightest; "
                     "subtract 65536 from those above 32767"))  # fmt: skip
    if blank := [facts for facts in images if facts.intensity and facts.intensity[0] == facts.intensity[3]]:
        rows.append(("warning", f"{len(blank)} images show one value alone, {blank[0].path.name} first: nothing is to "
                     "be learnt from them; take out those that should show more"))  # fmt: skip
    for first, *rest in found.same_labels[:5]:
        rows.append(("warning", f"{found.labels[rest[0]].path.name}: the same voxels as the label of {first}, though "
                     "their images differ; see that it is the label of its image"))  # fmt: skip
    if found.ct:
        others = [facts.path.name for facts in images if not facts.ct]
        rows.append(("CT", "Hounsfield units" + (
                     f"; {len(others)} images do not look like it, {others[0]} first, which the window will not suit: "
                     "take them out" if others else "")))  # fmt: skip
        padded = [facts for facts in images if facts.intensity and facts.intensity[0] < AIR - 100]
        if padded:
            rows.append(("padding", f"{len(padded)} images are filled up with values below that of air, "
                         f"{padded[0].path.name} first, which count as air"))  # fmt: skip
    elif 4 * sum(facts.ct for facts in images) >= len(images):
        some, rest = ([facts.path.name for facts in images if facts.ct == is_ct] for is_ct in (True, False))
        rows.append(("warning", f"{len(some)} of {len(images)} images look like CT in Hounsfield units, {some[0]} "
                     f"first, and others do not, {rest[0]} first: store all alike (often 1024 was added), or take "
                     "some out"))  # fmt: skip
    axis = found.direction if slice_axis is None else slice_axis
    if any(len(facts.shape) == 3 for facts in images):
        rows.append(("slices", _slices(images, axis)))
    if suits_3d(found):
        rows.append(("3D", "voxels are nearly as long as wide, so a 3D network may do better than slices"))
    if unplaced := found.unplaced:
        rows.append(("warning", f"{len(unplaced)} images state no place in space, {unplaced[0].name} first, and others "
                     "do: taken as if stored from left to right, back to front, feet to head; mend their "
                     "headers"))  # fmt: skip
    if laid := found.laid:
        rows.append(("warning", f"{len(laid)} labels state no place in space while their images do, or the other way "
                     f"round, {laid[0]} first: laid on them voxel by voxel; look at one in a viewer"))  # fmt: skip
    if placed := found.placed:
        rows.append(("headers", f"{len(placed)} labels are stored otherwise than their images (another orientation or "
                     f"grid, or a part), {found.labels[placed[0]].path} first: their headers place them, unless "
                     "--trust voxels"))  # fmt: skip
    totals: Counter[float] = Counter()
    for facts in labels:
        totals.update(facts.values)
    voxels = max(sum(totals.values()), 1)
    names = dict(zip(values or sorted(totals), class_names))
    for value in sorted(totals):
        name = " (not judged)" if value == ignore_label else f" {names[value]}" if value in names else ""
        cases = sum(value in facts.values for facts in labels)
        rows.append((f"label {value:g}{name}", f"{totals[value] / voxels:.2%} of the voxels, in {cases} of "
                     f"{len(labels)} labels"))  # fmt: skip
    return rows


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


def class_values(
    found: Survey,
    class_names: Sequence[str] = (),
    label_values: Sequence[int] = (),
    ignore_label: int | None = None,
) -> list[int]:
    """The value of every class in the label files, background first; none where no label was looked at.

    Args:
        found: what the files hold.
        class_names: names of the classes, background first, if they are known.
        label_values: the values, if they are known.
        ignore_label: value of voxels to ignore.

    Raises:
        InputError: values that leave open which class is which, or two classes of one name.
    """
    values = [int(v) for v in found.values if v != ignore_label]
    names, shown = list(class_names), ", ".join(str(v) for v in values)
    if len({*names}) < len(names):
        raise InputError(f"class_names: expected names that differ, received {', '.join(names)}.")
    if label_values:
        if wrong := sorted({*values} - {*label_values}):
            raise InputError(f"{_first(found, wrong[0])}: shows the value {wrong[0]}, which is not one of label_values "
                             f"{list(label_values)}; add it, or give it as --ignore_label.")  # fmt: skip
        if names and len(names) != len(label_values):
            raise InputError(f"{len(label_values)} label_values ({', '.join(map(str, label_values))}) and {len(names)} "
                             f"class names ({', '.join(names)}); give one name for each value.")  # fmt: skip
        return list(label_values)
    if not found.labels or not values:
        return []
    example = ",".join(map(str, sorted(values, key=lambda v: (v != 0, v)) if len(values) > 1 else [0, 1]))
    ask = f'say which is which by --label_values "{example}", one for each class and background first'
    if values == [0, 1, 255] and not any({1, 255} <= {*facts.values} for facts in found.labels.values()):
        raise InputError(f"Masks of 0 and 1 beside masks of 0 and 255: {_first(found, 1)} and {_first(found, 255)}; "
                         "store them alike, or give 255 as --ignore_label if it marks voxels to ignore.")  # fmt: skip
    if values[0] < 0 or (255 in values and len(values) > 2 and len(names) != len(values)):
        odd = values[0] if values[0] < 0 else 255
        smeared = f"; values between 0 and {odd} may be edges that were smoothed: then save masks of 0 and {odd} alone"
        raise InputError(
            f"The labels show the values {shown}, and {odd} (in {_first(found, odd)}) may be a class or mark voxels "
            f"to ignore; {ask}, or give --ignore_label {odd}{smeared if 128 <= values[-2] < 255 else ''}."
        )
    if 0 not in values or (len(values) == 1 and not names):
        missing = "no 0 for the background" if 0 not in values else "nothing but background"
        raise InputError(f"The labels show the values {shown}: {missing}; {ask}.")
    if values[-1] < len(names):
        return list(range(len(names)))  # a class that no label shows
    if names and len(names) != len(values):
        raise InputError(
            f"The labels show the values {shown}, but there are {len(names)} class names ({', '.join(names)}); "
            "give one name for each value."
        )
    return values


def _first(found: Survey, value: float) -> Path:
    """The first label that shows a value."""
    return next(facts.path for facts in found.labels.values() if value in facts.values)


def named(values: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """The names of classes of these values, made up where there are none."""
    return list(class_names) or ["background", *(f"class {c}" for c in range(1, len(values)))]


def unseen_line(found: Survey, training: Iterable[str], values: Sequence[int], class_names: Sequence[str]) -> str:
    """A warning of classes that no label of ``training`` shows; empty for none.

    Args:
        found: what the files hold.
        training: cases trained on with their labels.
        values: of the classes, background first.
        class_names: their names.
    """
    shown = {value for case in training if case in found.labels for value in found.labels[case].values}
    missing = [f"{name} ({value})" for value, name in zip(values, class_names) if value not in shown]
    return f"warning: no label of `training` shows {', '.join(missing)}: it cannot be learnt" if missing else ""


def label_names(values: Sequence[int], class_names: Sequence[str], ignore_label: int | None) -> dict[str, str]:
    """``labels`` of a datalist: names by value in the label files; empty where neither is known.

    Args:
        values: of the classes, background first, see :func:`class_values`.
        class_names: their names, if they are known.
        ignore_label: value of voxels to ignore.
    """
    values = values or range(len(class_names))
    names = dict(zip(map(str, values), named(values, class_names) if values else []))
    return names | ({str(ignore_label): "ignore"} if ignore_label is not None and names else {})


def next_lines(
    found: Survey | None, root: str | Path, output: str | Path, *, folds: int | None = None, scored_alone: bool = False
) -> list[str]:
    """What to do with a datalist once it is written, with commands to be pasted into a shell.

    Args:
        found: what the files hold, if they were read.
        root: folder that the paths in it are relative to.
        output: the datalist.
        folds: of a cross-validation.
        scored_alone: whether it is for an evaluation and no training.
    """
    if scored_alone:
        command = bundle_command("run", "evaluate", root, output, "--ckpt_path RUN --output_dir SCORES")
        return [f"wrote {output}; to score the weights of a training on it, in the bundle's folder:", command]
    turns, given = (f", fold 0 of {folds}", "--fold 0 --output_dir RUN0") if folds else ("", "--output_dir RUN")
    slices, volumes = (
        bundle_command("run training", overlay, root, output, f"{given} --minutes 60")
        for overlay in ("semsim_minus", "volumes")
    )
    lines = [f"wrote {output}; to train on it for an hour{turns}, in the bundle's folder:", slices]
    if found is not None and suits_3d(found):
        lines += ["or in 3D, which may do better here:", volumes]
    return lines


def bundle_command(run: str, overlay: str, root: str | Path, output: str | Path, options: str) -> str:
    """A command of MONAI's on a datalist with an overlay of ``train.yaml``. Arguments as above."""
    files = f"\"['configs/train.yaml','configs/{overlay}.yaml']\""
    data = f"--dataset_dir {quoted(root)} --datalist {quoted(Path(output).absolute())}"
    return f"  python -m monai.bundle {run} --config_file {files} {data} {options}"


def quoted(path: str | Path) -> str:
    """A path as a shell takes it: as it stands, in double quotes where that is enough, else as shlex writes it."""
    text = str(path)
    if shlex.quote(text) == text or set('"$`!\\') & set(text):
        return shlex.quote(text)
    return f'"{text}"'
