"""Figures of a report: curves, scores, cases, affinities, features. Each writes one PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .drawing import canvas, class_color, class_legend, draw_rows, legend_below
from .planes import Planes, choose_slices, foreground_window

#: What the columns of ``training_log.csv`` are called in figures, and their colours.
TERMS = {
    "loss": ("total L", "black"),
    "loss_s": ("L_s, labelled images", "tab:blue"),
    "loss_u": ("L_u, weak to strong", "tab:orange"),
    "loss_intra": ("L_intra, affinities within an image", "tab:green"),
    "loss_cross": ("L_cross, prototypes of labelled images", "tab:red"),
    "loss_labeled": ("L_labeled, labelled images by each other", "tab:brown"),
}
MASKS: dict[str, tuple[str, str, Any]] = {
    "mask_u": ("in the mask of L_u", "tab:orange", "solid"),
    "mask_intra": ("in the mask of L_intra", "tab:green", (0, (6, 3))),
    "mask_cross": ("in the mask of L_cross", "tab:red", (3, (3, 6))),
    "agreement": ("mean weight in L_cross (agreement)", "tab:purple", "solid"),
}
METRIC_NAMES = {"dice": "Dice", "hd95": "95 % Hausdorff distance", "assd": "average surface distance"}


def _line(ax: Any, x: Any, y: Any, **options: Any) -> None:
    ax.plot(x, y, marker="o" if len(x) < 40 else None, markersize=3, linewidth=1.5, **options)


def _finish(ax: Any, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if handles := ax.get_legend_handles_labels()[0]:
        where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "ncols": -(-len(handles) // 15)}
        ax.legend(frameon=False, fontsize=9, handlelength=3.2, **where)


def loss_curves(log: pd.DataFrame, output: Path) -> None:
    """Every loss term, mean of an epoch, from ``training_log.csv``."""
    with canvas(output) as (_, axes):
        ax = axes[0, 0]
        own = {name: (name, None) for name in log if name.startswith("loss_") and name not in TERMS}  # of the user's
        for name, (label, color) in {**TERMS, **own}.items():
            if name in log:
                _line(ax, log["epoch"], log[name], label=label, color=color)
        ax.set_ylim(bottom=min(0.0, log.filter(like="loss").min(axis=None)))  # one of the user's may be negative
        _finish(ax, "epoch", "loss")


def mask_curves(log: pd.DataFrame, output: Path) -> bool:
    """Fraction of positions that each unlabelled term counts; ``False`` where the training had none."""
    shown = [name for name in MASKS if name in log]
    if shown:
        with canvas(output) as (_, axes):
            for name in shown:
                label, color, style = MASKS[name]
                _line(axes[0, 0], log["epoch"], log[name], label=label, color=color, linestyle=style)
            axes[0, 0].set_ylim(-0.02, 1.02)
            _finish(axes[0, 0], "epoch", "fraction of positions")
    return bool(shown)


def class_shares(log: pd.DataFrame, class_names: Sequence[str], output: Path) -> bool:
    """Fraction of each foreground class among the pseudo-labels and among the labels."""
    if "pseudo_1" not in log:
        return False
    with canvas(output) as (_, axes):
        ax = axes[0, 0]
        for c, name in enumerate(class_names[1:], 1):
            _line(ax, log["epoch"], log[f"pseudo_{c}"], color=class_color(c), label=f"{name}: pseudo-labels")
            ax.plot(log["epoch"], log[f"label_{c}"], color=class_color(c), linestyle="--", label=f"{name}: labels")
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(bottom=0)
        _finish(ax, "epoch", "fraction of pixels (logarithmic)")
    return True


def validation_curves(validation: pd.DataFrame, class_names: Sequence[str], output: Path) -> None:
    """Validation Dice of every class and their mean, from ``validation_log.csv``."""
    with canvas(output) as (_, axes):
        ax = axes[0, 0]
        for c, name in enumerate(class_names[1:], 1):
            if name in validation:
                _line(ax, validation["epoch"], validation[name], color=class_color(c), label=name)
        if len(class_names) > 2:
            _line(ax, validation["epoch"], validation["mean_dice"], color="black", label="mean")
        if validation["mean_dice"].notna().any():
            best = validation.loc[validation["mean_dice"].idxmax()]
            ax.axvline(best["epoch"], color="0.6", linestyle=":", label=f"best: epoch {best['epoch']:.0f}")
        ax.set_ylim(-0.02, 1.02)
        _finish(ax, "epoch", "Dice")


def pseudo_label_quality(quality: pd.DataFrame, class_names: Sequence[str], output: Path) -> None:
    """Precision, recall and confident fraction of pseudo-labels by class, from ``pseudo_labels.csv``."""
    with canvas(output, 1, 3, (11, 3.4)) as (_, axes):
        for ax, key in zip(axes[0], ("precision", "recall", "confident")):
            for c, name in enumerate(class_names[1:], 1):
                if f"{name} {key}" in quality:
                    _line(ax, quality["epoch"], quality[f"{name} {key}"], color=class_color(c), label=name)
            ax.set_ylim(-0.02, 1.02)
            ax.set_title(key, fontsize=11)
            _finish(ax, "epoch", "fraction of pixels" if key == "precision" else "")
            if key != "confident":
                ax.get_legend().remove()


def score_boxes(scores: pd.DataFrame, metrics: Sequence[str], unit: str, output: Path) -> None:
    """A box and its cases for every class and metric, from ``scores.csv``."""
    names = list(scores["class"].unique())
    rng = np.random.default_rng(0)
    width = max(3.2, 1.2 + 0.8 * len(names))
    rows, columns = (1, len(metrics)) if width * len(metrics) < 15 else (len(metrics), 1)
    with canvas(output, rows, columns, (width * columns, 3.8 * rows)) as (_, axes):
        for ax, metric in zip(axes.flat, metrics):
            for position, name in enumerate(names, 1):
                values = scores.loc[scores["class"] == name, metric].dropna().to_numpy()
                if not len(values):
                    continue
                ax.boxplot(values, positions=[position], widths=0.5, showfliers=False, medianprops={"color": "black"})
                spread = position + rng.uniform(-0.12, 0.12, len(values))
                ax.scatter(spread, values, s=14, color=class_color(position), alpha=0.8, zorder=3)
            ax.set_xticks(range(1, len(names) + 1), [textwrap.fill(name, 11) for name in names], fontsize=9)
            ax.set_xlim(0.4, len(names) + 0.6)
            ax.set_ylim((-0.02, 1.02) if metric == "dice" else (0, None))
            ax.set_title(METRIC_NAMES[metric], fontsize=11)
            _finish(ax, "", "" if metric == "dice" else unit)


def case_slices(rows: Sequence[Planes], title: str, class_names: Sequence[str], output: Path) -> None:
    """Slices of a case with the contours of prediction and truth, around what they show: a row for each plane."""
    styles = {"prediction": "solid", "truth": "dashed"}
    columns = max(len(choose_slices(planes, 5)) for planes in rows)
    side = 2.6 if columns > 1 else 4.0
    height = 0.75
    for planes in rows:
        down, across = foreground_window(planes)
        height += side * (down[1] - down[0]) * planes.aspect / (across[1] - across[0])
    with canvas(output, len(rows), columns, (max(side * columns, 5.5), height)) as (figure, axes):
        draw_rows(axes, rows, styles)
        figure.suptitle(title, fontsize=11)
        class_legend(figure, dict(enumerate(class_names[1:], 1)), styles)


def affinity_maps(
    image: np.ndarray, maps: Mapping[str, tuple[tuple[float, float], np.ndarray]], temperature: float, output: Path
) -> None:
    """The weights M of all positions for a chosen pixel.

    Args:
        image: ``(rows, columns)`` or with three colours, in [0, 1].
        maps: by name the chosen pixel (row, column) and its row of M (eq. 4), ``(rows, columns)`` of the features.
        temperature: t_a.
        output: PNG file.
    """
    with canvas(output, 1, len(maps) + 1, (3.0 * (len(maps) + 1) + 0.6, 3.6)) as (figure, axes):
        extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        axes[0, 0].imshow(image, cmap="gray", vmin=0, vmax=1)
        axes[0, 0].set_title("image", fontsize=10)
        for number, (ax, (name, (pixel, weights))) in enumerate(zip(axes[0, 1:], maps.items()), 1):
            shown = weights * weights.size
            top = float(np.percentile(shown, 99.5))
            ax.imshow(image, cmap="gray", vmin=0, vmax=1)
            # where there is no weight the image shows through
            drawn = ax.imshow(shown, cmap="autumn", alpha=(shown / top).clip(0, 0.75), extent=extent, vmin=0, vmax=top)
            ax.set_title(f"a pixel of: {name}", fontsize=10)
            for target in (ax, axes[0, 0]):
                target.plot(pixel[1], pixel[0], marker="P", markersize=9, markeredgecolor="black",
                            markerfacecolor=class_color(number))  # fmt: skip
            for beside in (ax, axes[0, 0]) if number == 1 else (ax,):
                ticks = [0.0, top / 2, top]
                bar = figure.colorbar(drawn, ax=beside, fraction=0.046, pad=0.03, ticks=ticks, format="%.1f")
                bar.ax.set_visible(beside is ax)  # beside the image an empty one, for the same size
        for ax in axes[0]:
            ax.axis("off")
        figure.suptitle(f"weight in M as a multiple of the mean, temperature {temperature:g}", fontsize=10)


def feature_scatter(
    streams: Mapping[str, tuple[np.ndarray, np.ndarray]], class_names: Sequence[str], output: Path, *, seed: int = 0
) -> None:
    """Features of labelled and unlabelled images side by side, in the same plane.

    Args:
        streams: by name features ``(N, D)`` of unit length, and their classes ``(N,)``.
        class_names: background first.
        output: PNG file.
        seed: of t-SNE.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = np.concatenate([f for f, _ in streams.values()])
    reduced = PCA(min(20, *features.shape), random_state=seed).fit_transform(features)
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    points = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(reduced)
    with canvas(output, 1, len(streams), (4.6 * len(streams), 4.5)) as (figure, axes):
        start = 0
        for ax, (name, (_, classes)) in zip(axes[0], streams.items()):
            own = points[start : start + len(classes)]
            start += len(classes)
            ax.scatter(*points.T, s=4, color="0.9", zorder=1)
            for c in range(len(class_names)):
                color = "0.45" if c == 0 else class_color(c)
                ax.scatter(*own[classes == c].T, s=7, color=color, label=class_names[c], zorder=2)
            ax.set_title(name, fontsize=11)
            ax.set_xticks([])
            ax.set_yticks([])
        legend_below(figure, axes[0, 0].get_legend_handles_labels()[0], markerscale=2.5)


def class_distances(streams: Mapping[str, tuple[np.ndarray, np.ndarray]], class_names: Sequence[str]) -> pd.DataFrame:
    """Mean cosine between unlabelled features of a class (rows) and the labelled mean of each class (columns).

    Args:
        streams: two, labelled first: features ``(N, D)`` of unit length, and their classes ``(N,)``.
        class_names: background first.
    """
    (labeled, classes), (unlabeled, predicted) = streams.values()
    means = {c: labeled[classes == c].mean(axis=0) for c in np.unique(classes)}
    rows = {}
    for c in np.unique(predicted):
        cosines = {d: unlabeled[predicted == c] @ (m / max(np.linalg.norm(m), 1e-6)) for d, m in means.items()}
        rows[class_names[c]] = {class_names[d]: float(v.mean()) for d, v in cosines.items()}
    return pd.DataFrame(rows).T
