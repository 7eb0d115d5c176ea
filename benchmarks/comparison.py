"""Tables and pictures of the results of accuracy.py, with paired differences: its commands ``table`` and ``report``."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import METHODS
from common import ROOT, interval, markdown, patient_of, read_splits, shown
from common import fill as fill_page
from scoring import EVALUATIONS, RESULTS, mean_known

#: methods that are gone, and have results
FORMER = ("semsim_light",)
PROCESSED = "post_processed"
MISSING = "not run yet"
#: methods of the table, as it names them
TITLES = {
    "labeled_only": "labelled scans only", "fixmatch": "FixMatch", "unimatch": "UniMatch",
    "semsim_minus": "SemSim-", "semsim": "SemSim",
}  # fmt: skip


def load(paths: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
    """Results, in the order of METHODS and FORMER, changes and seeds."""
    records = [json.loads(Path(path).read_text()) for path in paths]
    order = [*METHODS, *FORMER]
    return sorted(records, key=lambda r: (r["cases"], order.index(r["method"]), r["change"], r["seed"]))


def per_patient(
    record: Mapping[str, Any], which: str = "last", metric: str = "dice", name: str = ""
) -> dict[str, float]:
    """Mean of a patient's frames and classes, or of the class ``name`` alone."""
    kept = slice(None) if not name else slice(at := record["class_names"][1:].index(name), at + 1)
    patients: dict[str, list[float | None]] = {}
    for case, scores in record[which]["per_case"].items():
        patients.setdefault(patient_of(case), []).extend(scores[metric][kept])
    return {patient: mean_known(values) for patient, values in patients.items()}


def paired(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], which: str, name: str = ""
) -> dict[str, Any]:
    """Difference in Dice, second less first, over the seeds that both have: patient by patient, mean over seeds.

    Of all classes, or of the class ``name`` alone.

    Returns:
        ``mean``, the 95 % interval ``low`` to ``high`` of Student's t over patients, ``seeds``, the difference of each
        seed, and ``verdict``: ahead, behind, or tie where the interval holds zero.
    """
    by_seed = [{r["seed"]: per_patient(r, which, name=name) for r in group} for group in (first, second)]
    seeds = sorted(set(by_seed[0]) & set(by_seed[1]))
    patients = sorted(by_seed[0][seeds[0]])
    table = np.array([[by_seed[1][s][p] - by_seed[0][s][p] for p in patients] for s in seeds])
    return interval(table.mean(axis=0)) | {"seeds": table.mean(axis=1).tolist(), "patients": len(patients)}


def label(record: Mapping[str, Any]) -> str:
    """How tables call a method and its changes."""
    return " + ".join([record["method"], *record["change"]])


def groups_of(records: Iterable[Mapping[str, Any]], against: str = "") -> dict[str, list[Mapping[str, Any]]]:
    """Results of one label, over seeds, and of one number of steps; among them those to compare with."""
    records = list(records)
    several = len({record.get("iterations") for record in records}) > 1
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        steps = f", {record.get('iterations')} steps" if several else ""
        groups.setdefault(label(record) + steps, []).append(record)
    if against and against not in groups:
        raise SystemExit(f"{against}: no result of this to compare with; there are {', '.join(groups)}.")
    return groups


def _over_seeds(group: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float], digits: int) -> str:
    values = [value(r) for r in group]
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(*results: str, against: str = "") -> None:
    """Print Markdown tables of results of one protocol: scores over seeds, and paired differences.

    Args:
        results: files of ``train``.
        against: label that every other one is compared with; default: the one before it.
    """
    print("\n".join(table_lines(load(results), against)))


def table_lines(records: Sequence[Mapping[str, Any]], against: str = "") -> list[str]:
    """The lines of ``table``."""
    names = records[0]["class_names"][1:]
    unit = records[0]["last"]["distance_unit"]
    groups = groups_of(records, against)
    head = ["method", "seeds", *names, "mean Dice, last iteration", "mean of last five", "best on validation"]
    rows = []
    for name, group in groups.items():
        cells = [name, str(len(group))]
        cells += [f"{np.mean([r['last']['classes'][c]['dice'] for r in group]):.3f}" for c in names]
        cells += [_over_seeds(group, lambda r, w=which: r[w]["mean"]["dice"], 3) for which in EVALUATIONS]  # type: ignore[misc]
        rows.append([*cells, _over_seeds(group, lambda r: r["last"]["mean"]["hd95"], 1)])
    lines = markdown([*head, f"95HD ({unit}), last"], rows)
    processed = {name: found for name, group in groups.items() if (found := [r for r in group if PROCESSED in r])}
    if processed:
        lines += ["", *_processed_lines(processed, names, unit)]
    pairs = list(zip(groups, list(groups)[1:]))
    if against:
        pairs = [(against, name) for name in groups if name != against]
    rows = []
    for first, second in pairs:
        if not {r["seed"] for r in groups[first]} & {r["seed"] for r in groups[second]}:
            continue
        found = [paired(groups[first], groups[second], which) for which in EVALUATIONS[:2]]
        cells = [second, first, *map(shown, found)]
        if processed:
            known = all(PROCESSED in r for r in (*groups[first], *groups[second]))
            cells.append(shown(paired(groups[first], groups[second], PROCESSED)) if known else "-")
        rows.append([*cells, ", ".join(f"{s:+.3f}" for s in found[0]["seeds"])])
    head = ["method", "against", "Dice, last iteration", "Dice, mean of last five"]
    head += [*[_way(processed)] * bool(processed), "each seed, last"]
    return [*lines, "", *markdown(head, rows)] if rows else lines


def _way(groups: Mapping[str, list[Mapping[str, Any]]]) -> str:
    """How the post-processed scores of results were made: patches are not flipped by default."""
    flips = all(r[PROCESSED]["flip_tta"] for group in groups.values() for r in group)
    return "flips and largest component" if flips else "largest component"


def _processed_lines(groups: Mapping[str, list[Mapping[str, Any]]], names: Sequence[str], unit: str) -> list[str]:
    """Scores of the last iteration with the largest component, of slices over flips; then Dice over flips alone."""
    flips = all("flips" in r for group in groups.values() for r in group)
    rows = []
    for name, group in groups.items():
        cells = [f"{np.mean([r[PROCESSED]['classes'][c]['dice'] for r in group]):.3f}" for c in names]
        cells.append(_over_seeds(group, lambda r: r[PROCESSED]["mean"]["dice"], 3))
        cells.append(_over_seeds(group, lambda r: r[PROCESSED]["mean"]["hd95"], 1))
        if flips:
            cells.append(_over_seeds(group, lambda r: r["flips"]["mean"]["dice"], 3))
        rows.append([name, str(len(group)), *cells])
    head = [_way(groups), "seeds", *names, "mean Dice, last iteration", f"95HD ({unit}), last"]
    return markdown([*head, *["mean Dice, flips alone"] * flips], rows)


def cells_lines(records: Sequence[Mapping[str, Any]], which: str = "last", change: str = "") -> list[str]:
    """Dice and 95HD at the last iteration, a row a method and a column a number of labelled patients.

    Means are over the seeds that all methods of a column have, or their order would be that of the seeds; the mean Dice
    over all seeds of a method stands behind.

    Args:
        records: results.
        which: evaluation.
        change: of the methods; default: none.
    """
    changed = [change] if change else []
    run = {r["cases"] for r in records if r["change"] == changed}
    labelled = read_splits(dataset=records[0].get("dataset", "acdc"))["labelled"]
    counts = [int(count) for count in labelled if int(count) in run]
    runs: dict[tuple[str, int], dict[int, Mapping[str, float]]] = {}
    for r in records:
        if r["change"] == changed:
            runs.setdefault((r["method"], r["cases"]), {})[r["seed"]] = r[which]["mean"]
    shared = {count: set.intersection(*({*runs[key]} for key in runs if key[1] == count)) for count in counts}
    rows = []
    for method, title in TITLES.items():
        cells = []
        for count in counts:
            found = runs.get((method, count), {})
            dice, distance = (
                np.mean([found[s][m] for s in shared[count] & {*found}] or [np.nan]) for m in ("dice", "hd95")
            )
            seeds = f" ({len(shared[count])} seeds)" if len(shared[count]) > 1 else ""
            if len(found) > len(shared[count]):
                seeds += f"; {np.mean([mean['dice'] for mean in found.values()]):.3f} over {len(found)} seeds"
            cells.append(f"{dice:.3f} / {distance:.1f}{seeds}" if found else MISSING)
        if {*cells} != {MISSING}:
            rows.append([title, *cells])
    return markdown(["Dice / 95HD", *(f"{count} labelled" for count in counts)], rows)


def gradient_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of results of ``gradients.py``: mean cosines, and norms as multiples of that of L_u on strong_1."""
    names = {
        "L_intra": "L_intra",
        "L_cross": "L_cross",
        "strong_2": "L_u, strong_2",
        "weak_perturbed": "L_u, weak view",
    }
    rows = []
    for record in records:
        cosines, norms = record["cosines_with_loss_u_on_strong_1"], record["norms"]
        size = {name: np.mean(norms[name]) / np.mean(norms["strong_1"]) for name in names}
        cells = [f"{np.mean(cosines[name]):.2f} ({size[name]:.2f})" for name in names]
        rows.append([record["run"], str(len(norms["strong_1"])), *cells])
    return markdown(["training", "steps", *names.values()], rows)


def class_lines(records: Sequence[Mapping[str, Any]], against: str) -> list[str]:
    """Paired differences in mean Dice and class by class, last iteration, over the seeds that both have."""
    names, groups = records[0]["class_names"][1:], groups_of(records, against)
    rows = []
    for name, group in groups.items():
        if name == against or not {r["seed"] for r in group} & {r["seed"] for r in groups[against]}:
            continue
        found = [paired(groups[against], group, "last", c) for c in ("", *names)]
        rows.append([name, str(len(found[0]["seeds"])), *map(shown, found)])
    return markdown([f"less {against}", "seeds", "mean Dice", *names], rows)


def quality_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Pseudo-labels at the end of the training against labels kept from it, and the size of the terms, over seeds."""
    names = records[0]["class_names"][1:]
    rows = []
    for name, group in groups_of(records).items():
        cells = []
        for c in names:
            kinds = ("confident", "precision", "recall")
            cells.append(" / ".join(_mean_of_last(group, "pseudo_labels", f"{c} {kind}", 2) for kind in kinds))
        terms = [_mean_of_last(group, "training_curve", f"loss_{term}", 3) for term in ("u", "intra", "cross")]
        rows.append([name, *cells, ", ".join(terms)])
    return markdown(["method", *names, "terms of the loss: u, intra, cross"], rows)


def _mean_of_last(group: Sequence[Mapping[str, Any]], curves: str, key: str, digits: int) -> str:
    """The last value of a curve, mean over seeds; a dash where the method has none."""
    values = [r[curves][key][-1] for r in group if key in r[curves]]
    return f"{np.mean(values):.{digits}f}" if values else "-"


def _elsewhere(right: float | None, share: float | None, there: float | None) -> float | None:
    """A fraction of the whole, less what a share of it contributes: the fraction of the rest; nothing for no rest."""
    if right is None or share is None or share > 0.99999:
        return None
    return (right - share * (there or 0.0)) / (1 - share)


def similarity_lines(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Results of pseudo_labels.py: how often each prediction is right, by the decoder's confidence."""
    edges, rows = records[0]["edges"], []
    for r in sorted(records, key=lambda r: (len(r["run"]), r["run"], r["steps"])):
        mean = {kind: f"{np.mean(r[kind]['dice']):.3f}" for kind in ("decoder", "p_w1", "p_w2")}
        right = {f"{kind} right": [mean[kind], *r[kind]["right"]] for kind in mean}
        there = r["p_w2"]["right_where_it_agrees"]
        right["decoder right where p_w2 agrees"] = ["", *there]
        rest = map(_elsewhere, r["decoder"]["right"], r["p_w2"]["agrees"], there)
        right["decoder right where it does not"] = ["", *rest]
        rows.append([f"{r['run'].split('_')[0].removeprefix('acdc')} labelled, {r['steps']} steps", "positions", ""])
        rows[-1] += [f"{v:.1%}" for v in r["positions"]]
        rows += [["", name, v[0], *("-" if x is None else f"{x:.3f}" for x in v[1:])] for name, v in right.items()]
    return markdown(["training", "", "mean Dice", *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(edges))], rows)


#: what ``report`` fills
PAGES = [ROOT / "README.md", *(ROOT / "benchmarks" / f"{name}.md" for name in ("ACCURACY", "LEFT_ATRIUM", "RECIPE"))]


def report(page: str = "", results: str = "") -> None:
    """Write the tables and pictures of a page (all pages without one) from results, between its marks.

    Marks are ``<!-- table PATTERN -->`` or ``<!-- table PATTERN against LABEL -->``, likewise ``methods`` without
    the results of changes, ``curves`` (of methods), ``patients`` and ``differences`` for pictures, ``cells`` for
    methods by labelled patients (``cells_post_processed``: with flips and the largest component; ``against CHANGE``:
    of the methods with that change), ``quality`` for pseudo-labels, ``classes`` for differences class by class,
    ``similarities`` for what pseudo_labels.py found, ``gradients`` for what gradients.py found, each closed by
    ``<!-- end -->``; PATTERN chooses result files by name.

    Args:
        page: Markdown file; default ``README.md``, ``ACCURACY.md``, ``LEFT_ATRIUM.md`` and ``RECIPE.md``.
        results: folder of the results; default ``benchmarks/results/accuracy``.
    """
    for path in [Path(page)] if page else PAGES:
        path.write_text(fill(path.read_text(), Path(results) if results else RESULTS, path.parent / "figures"))


def fill(text: str, results: Path, figures: Path | None = None) -> str:
    """A page with its marked parts made anew; without ``figures`` no picture is drawn."""

    def part(kind: str, pattern: str, against: str) -> str:
        if kind == "similarities":
            found = sorted(results.parent.glob(f"pseudo_labels_{pattern}.json"))
            return "\n".join(similarity_lines([json.loads(path.read_text()) for path in found]))
        if kind == "gradients":
            found = sorted(results.parent.glob(f"gradients_{pattern}.json"))
            return "\n".join(gradient_lines([json.loads(path.read_text()) for path in found]))
        records = load(results.glob(f"{pattern}.json"))
        if not records:
            raise SystemExit(f"{results}: no result matches {pattern}.")
        if kind in TABLES:
            return "\n".join(TABLES[kind](records, against))
        name = f"{kind}_{re.sub(r'[^a-z0-9]+', '_', pattern).strip('_')}.png"
        if figures is not None:
            figures.mkdir(parents=True, exist_ok=True)
            DRAW[kind](records, figures / name, against)
        return f"![{CAPTIONS[kind]}](figures/{name})"

    return fill_page(text, part)


TABLES: dict[str, Callable[..., list[str]]] = {
    "table": table_lines,
    "methods": lambda records, against: table_lines([r for r in records if not r["change"]], against),
    "cells": lambda records, change: cells_lines(records, change=change),
    "cells_post_processed": lambda records, change: cells_lines(records, PROCESSED, change),
    "quality": lambda records, _: quality_lines(records),
    "classes": class_lines,
}
CAPTIONS = {
    "curves": "Dice on validation during training",
    "patients": "Dice of every validation patient",
    "differences": "Difference in Dice with its 95 % interval",
}


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """Figure and axes of so many inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), constrained_layout=True)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG without a note of the version that drew it, and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path, _against: str) -> None:
    """Mean validation Dice over iterations, a line a method, its seeds from lowest to highest shaded."""
    figure, ax = new_figure(11, 4.5)
    for name, group in groups_of([r for r in records if not r["change"]]).items():
        steps = np.array(group[0]["validation_curve"]["epoch"]) * group[0]["steps_per_epoch"]
        values = np.array([r["validation_curve"]["mean_dice"] for r in group])
        (line,) = ax.plot(steps, values.mean(axis=0), label=f"{name} ({len(group)} seed{'s' * (len(group) > 1)})")
        if len(group) > 1:
            ax.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.15, color=line.get_color(), lw=0)
    ax.set(xlabel="iterations", ylabel="mean Dice, validation", ylim=(0, 1))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    save_figure(figure, path)


def draw_patients(records: Sequence[Mapping[str, Any]], path: Path, _against: str) -> None:
    """Dice of every patient at the last iteration, mean over seeds, frames and classes, as box plots."""
    groups = groups_of(records)
    columns = []
    for group in groups.values():
        patients = [per_patient(r) for r in group]
        columns.append([np.mean([p[name] for p in patients]) for name in sorted(patients[0])])
    figure, ax = new_figure(1.5 + 1.1 * len(groups), 4.5)
    names = [name.replace(" + ", "\n+ ") for name in groups]
    ax.boxplot(columns, tick_labels=names, showfliers=False, medianprops={"color": "black"})
    for position, column in enumerate(columns, start=1):
        ax.plot(np.full(len(column), position), column, "o", alpha=0.6, markersize=4)
    ax.set(ylabel="mean Dice of a validation patient, last iteration", ylim=(0, 1))
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="y", alpha=0.3)
    save_figure(figure, path)


def draw_differences(records: Sequence[Mapping[str, Any]], path: Path, against: str) -> None:
    """Paired differences from ``against`` with their intervals, best first."""
    groups = groups_of(records, against)
    rows = [(n, paired(groups[against], g, "last")) for n, g in groups.items() if n != against]
    rows.sort(key=lambda row: row[1]["mean"])
    figure, ax = new_figure(8, 1 + 0.28 * len(rows))
    for y, (_, d) in enumerate(rows):
        color = {"ahead": "tab:green", "behind": "tab:red", "tie": "tab:gray"}[d["verdict"]]
        ax.errorbar(
            d["mean"], y, xerr=[[d["mean"] - d["low"]], [d["high"] - d["mean"]]], fmt="o", color=color, capsize=3
        )
    ax.set_yticks(range(len(rows)), [name.removeprefix(f"{against} + ") for name, _ in rows])
    ax.axvline(0, color="black", lw=0.8)
    ax.set(xlabel=f"difference in mean Dice from {against}, last iteration")
    ax.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


DRAW = {"curves": draw_curves, "patients": draw_patients, "differences": draw_differences}
