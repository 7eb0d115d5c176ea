"""How images and labels are drawn, in reports, overlays and TensorBoard: colours of classes, contours, legends."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .planes import Planes, choose_slices, foreground_window

#: Colours of the classes 1 to 7, as red, green, blue in [0, 1]; by Okabe and Ito, distinct to colour-blind eyes.
CLASS_COLORS = ((0.90, 0.62, 0.0), (0.34, 0.71, 0.91), (0.0, 0.62, 0.45), (0.80, 0.47, 0.65), (0.94, 0.89, 0.26),
                (0.84, 0.37, 0.0), (0.0, 0.45, 0.70))  # fmt: skip


def class_color(index: int) -> tuple[float, float, float]:
    """Colour of class ``index``, from 1: the seven, then lighter, then darker; from 22 on anew."""
    turn, place = divmod(index - 1, len(CLASS_COLORS))
    low, high = ((0.0, 1.0), (0.5, 1.0), (0.0, 0.5))[turn % 3]
    red, green, blue = (low + (high - low) * part for part in CLASS_COLORS[place])
    return red, green, blue


def paint(label: Tensor, num_classes: int) -> Tensor:
    """Class indices ``(*spatial)`` -> colours ``(3, *spatial)`` in [0, 1]; background is black."""
    table = torch.tensor([(0.0, 0.0, 0.0), *(class_color(c) for c in range(1, num_classes))])
    return table[label.long().clamp(min=0).cpu()].movedim(-1, 0)


@contextmanager
def canvas(output: str | os.PathLike, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.0, 3.6)) -> Any:
    """Figure and axes ``(rows, columns)`` of ``size`` inches; written to ``output`` afterwards, legends around it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"text.parse_math": False}):  # names are no formulas, whatever $ they hold
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        try:
            yield figure, axes
            legends = [legend for ax in axes.flat if (legend := ax.get_legend())]
            for legend in legends:  # they take no room from the axes
                legend.set_in_layout(False)
            figure.tight_layout()
            for legend in legends:  # the picture grows by them
                legend.set_in_layout(True)
            Path(output).absolute().parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(output, dpi=110, bbox_inches="tight")
        finally:
            plt.close(figure)


def legend_below(figure: Any, handles: Sequence[Any], **options: Any) -> None:
    """Legend under a figure, in as many columns as its width has room for."""
    points = 45 + 6.5 * max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, min(len(handles), int(72 * figure.get_figwidth() / points)))
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=columns,
        frameon=False,
        fontsize=10,
        **options,
    )


def draw_slice(ax: Any, planes: Planes, position: int, styles: Mapping[str, str]) -> None:
    """One slice with the contours of its labels.

    Args:
        ax: axes of matplotlib.
        planes: image and labels.
        position: of the slice.
        styles: line style by name of the label.
    """
    from matplotlib.patheffects import withStroke

    image = planes.image[:, :, position]
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=planes.aspect, interpolation="nearest")
    for name, style in styles.items():
        label = planes.labels[name][:, :, position]
        for c in np.unique(label[label > 0]):
            lines = ax.contour(
                np.pad(label == c, 1),
                levels=[0.5],
                colors=[class_color(c)],
                linestyles=style,
                linewidths=1.4,
                extent=(-1, label.shape[1], -1, label.shape[0]),
            )
            lines.set_path_effects([withStroke(linewidth=2.2, foreground="black", alpha=0.6)])
    ax.set_xlim(-0.5, image.shape[1] - 0.5)
    ax.set_ylim(image.shape[0] - 0.5, -0.5)
    ax.axis("off")


def draw_rows(axes: Any, rows: Sequence[Planes], styles: Mapping[str, str], *, zoom: bool = True) -> None:
    """Slices of a volume, a row for each way of cutting it, evenly spaced among those where a label shows anything.

    Args:
        axes: of matplotlib, ``(rows, slices)``; those without a slice stay empty.
        rows: image and labels.
        styles: line style by name of the label.
        zoom: whether to show the surroundings of the labels alone.
    """
    for line, planes in zip(axes, rows):
        chosen = choose_slices(planes, len(line))
        down, across = foreground_window(planes)
        for ax in line[len(chosen) :]:
            ax.axis("off")
        for ax, position in zip(line, chosen):
            draw_slice(ax, planes, position, styles)
            if planes.image.shape[2] > 1:
                ax.set_title(f"{planes.plane} slice {planes.numbers[position]}".lstrip(), fontsize=10)
            if zoom:
                ax.set(xlim=across, ylim=down[::-1])


def class_legend(figure: Any, names: Mapping[int, str], styles: Mapping[str, str]) -> None:
    """Legend below a figure: colours of the classes, whose names are given by value, and line styles if several."""
    import matplotlib.pyplot as plt

    handles: list[Any] = [
        plt.Line2D([], [], color=class_color(c), label=name, linewidth=2) for c, name in names.items()
    ]
    if len(styles) > 1:
        handles += [plt.plot([], [], color="0.3", linestyle=style, label=name)[0] for name, style in styles.items()]
    legend_below(figure, handles)
