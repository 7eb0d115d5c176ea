"""Slices with contours: how images and labels are shown, in reports and in TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from nibabel.affines import voxel_sizes
from torch import Tensor

from ..command_line import command
from ..dataio.files import case_name, evenly, is_picture
from ..dataio.geometry import on_image_grid, states_grid
from ..dataio.readers import image_loader
from ..dataio.slice_axis import DIRECTIONS, stored_axis
from ..errors import InputError

#: Colours of the classes 1 to 7, as red, green, blue in [0, 1]; by Okabe and Ito, distinct to colour-blind eyes.
CLASS_COLORS = ((0.90, 0.62, 0.0), (0.34, 0.71, 0.91), (0.0, 0.62, 0.45), (0.80, 0.47, 0.65), (0.94, 0.89, 0.26),
                (0.84, 0.37, 0.0), (0.0, 0.45, 0.70))  # fmt: skip


#: Endings of a figure's file.
PICTURES = (".png", ".jpg", ".pdf", ".svg")
#: The plane across a direction of the body.
PLANES = {"S": "axial", "A": "coronal", "R": "sagittal"}


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


@dataclass(frozen=True)
class Planes:
    """An image and labels of it as slices to be shown.

    Attributes:
        image: ``(rows, columns, slices)``, or ``(rows, columns, slices, 3)`` for colour, in [0, 1].
        labels: class indices ``(rows, columns, slices)`` by name.
        aspect: height of a pixel divided by its width.
        numbers: index of each slice, as the file stores it.
        plane: axial, coronal or sagittal, if that was asked for; else empty.
    """

    image: np.ndarray
    labels: Mapping[str, np.ndarray]
    aspect: float
    numbers: np.ndarray
    plane: str = ""


def as_planes(
    image: MetaTensor, labels: Mapping[str, Tensor], *, picture: bool = False, slice_axis: str | int | None = None
) -> Planes:
    """Turn a volume as it is stored into slices as one looks at them.

    Volumes are shown with the patient's right on the left and the front (or the head) on top, where the file says which
    is which; pictures as they are.

    Args:
        image: ``(C, *spatial)``, two or three axes.
        labels: class indices ``(1, *spatial)`` on its grid, by name.
        picture: whether the rows of the file run downwards, as in PNG and JPG.
        slice_axis: what slices are stacked along, see :func:`stored_axis`; ``None``: the coarsest axis.
    """
    affine = np.asarray(image.affine.cpu())
    tensors: dict[str, Any] = {"image": image}
    tensors |= {
        name: MetaTensor(torch.tensor(np.asarray(label.cpu())), affine=image.affine) for name, label in labels.items()
    }
    flat = image.ndim == 3
    spacing = voxel_sizes(affine)
    axis = 2 if flat else stored_axis(affine, image.shape[1:], slice_axis, picture=picture)
    flipped = False
    if not flat and states_grid(affine):
        orient = Orientation(axcodes="LAS", labels=None)
        tensors = {name: orient(tensor) for name, tensor in tensors.items()}
        world, direction = nib.io_orientation(affine)[axis]
        axis, flipped = int(world), bool(direction * (-1 if world == 0 else 1) < 0)
        spacing = voxel_sizes(np.asarray(tensors["image"].affine.cpu()))
    arrays = {name: np.asarray(tensor.cpu())[..., None] if flat else np.asarray(tensor.cpu())
              for name, tensor in tensors.items()}  # fmt: skip

    def shown(array: np.ndarray) -> np.ndarray:
        # (X, Y, slices) -> rows from top to bottom, columns from left to right
        array = np.moveaxis(array, axis, -1).swapaxes(0, 1)
        return array if picture else array[::-1]

    channels = np.stack([shown(channel) for channel in arrays["image"]], axis=-1).astype(np.float32)
    colour = channels.shape[-1] == 3
    values = channels if colour else channels[..., 0]
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5]) if finite.size else (0.0, 1.0)
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-6), posinf=1.0)
    numbers = np.arange(scaled.shape[2])
    plane = [float(spacing[a]) for a in range(3) if a != axis]
    return Planes(
        image=scaled.clip(0, 1),
        labels={name: shown(arrays[name][0]).round().astype(int) for name in labels},
        aspect=plane[1] / plane[0],
        numbers=numbers[::-1] if flipped else numbers,
        plane="" if picture else PLANES.get(str(slice_axis), ""),
    )


def as_axes(slice_axis: Any, *, picture: bool = False) -> list[Any]:
    """``"S,A,R"`` or a list -> its entries, one row of slices each; one axis or ``None`` -> itself alone.

    A stack of pictures says nothing of the body: several directions are its stored axes, from its pages on.
    """
    if isinstance(slice_axis, str):
        slice_axis = [name.strip() for name in slice_axis.split(",")]
    axes = list(slice_axis) if isinstance(slice_axis, (list, tuple)) else [slice_axis]
    return [DIRECTIONS.get(axis, axis) for axis in axes] if picture and len(axes) > 1 else axes


def choose_slices(planes: Planes, number: int) -> np.ndarray:
    """Positions of ``number`` slices, evenly spaced among those where a label shows anything."""
    filled = np.flatnonzero(sum((a > 0).any(axis=(0, 1)).astype(int) for a in planes.labels.values()))
    filled = filled if len(filled) else np.arange(planes.image.shape[2])
    return np.array(evenly(filled, number))  # type: ignore[arg-type]


def foreground_window(planes: Planes, *, margin: float = 0.5) -> tuple[tuple[float, float], tuple[float, float]]:
    """Rows and columns, first and last, around all that the labels show: with ``margin`` of it on either side."""
    shown = np.any([a > 0 for a in planes.labels.values()], axis=0).any(axis=2)
    window = []
    for axis, length in enumerate(shown.shape):
        inside = np.flatnonzero(shown.any(axis=1 - axis))
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (0, length)
        room = max(margin * (last - first), 0.1 * length)
        window.append((max(first - room, 0.0) - 0.5, min(last + room, float(length)) - 0.5))
    return window[0], window[1]


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


def names_by_value(class_names: Sequence[str] | Mapping[Any, str] | str) -> dict[int, str]:
    """Names of classes by their values: of 0, 1, 2, ..., in the order of a list or a text with commas, or as given.

    Raises:
        InputError: names by something else than whole numbers.
    """
    if isinstance(class_names, str):
        class_names = [name.strip(" '\"") for name in class_names.strip("[]()").split(",")]
    if not isinstance(class_names, Mapping):
        return dict(enumerate(class_names))
    try:
        return {int(value): str(name) for value, name in class_names.items()}
    except ValueError:
        raise InputError(
            f"class_names: expected names by whole numbers, background first, received {dict(class_names)}; write "
            '"{0: background, 2: liver}", or names alone where the values are 0, 1, 2, ...'
        ) from None


def class_numbers(labels: Iterable[np.ndarray], *, background: int = 0) -> dict[int, int]:
    """A number for each value in some labels: 0 for the background, greater ones for all else, however coded."""
    values = sorted({int(value) for label in labels for value in np.unique(label)})
    return {v: 0 if v == background else v if v > 0 else values[-1] + 1 - v for v in values}


def renumbered(label: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """A label with the numbers of :func:`class_numbers` in the place of its values."""
    result = np.zeros_like(label)
    for value, number in numbers.items():
        result[label == value] = number
    return result


def overlay(
    image: str,
    prediction: str,
    output: str,
    truth: str = "",
    slices: int = 5,
    class_names: Sequence[str] | Mapping[Any, str] | str = (),
    slice_axis: Any = None,
    zoom: bool = False,
    trust: str = "",
) -> str:
    """Figure of a predicted volume: slices with the contours of the prediction, and of the truth if it is given.

    Args:
        image: Image file
        prediction: Label file on the image's grid
        output: PNG file to write, or JPG, PDF or SVG
        truth: Label file of the truth, drawn dashed
        slices: How many slices, evenly spaced among those with a prediction or truth
        class_names: Names for the legend, by value, background first, as in "{0: background, 2: liver}", or those of
            the values 0, 1, 2, ... with commas. Values without a name are shown as numbers
        slice_axis: Axis along which slices are stacked: R, A, S, or 0, 1, 2 as stored; S,A,R shows all three planes of
            the body. By default the coarsest axis
        zoom: Show only the region of the labels
        trust: If the headers of image and label disagree about position, which counts: header or voxels. By default
            such a label is refused

    Returns:
        ``output``.

    Raises:
        InputError: files that do not fit, or an ``output`` that is no picture or one of the others.
    """
    if type(slices) is not int or slices < 1:
        raise InputError(f"--slices: expected a whole number of 1 or more, received {slices!r}.")
    if Path(output).suffix.lower() not in PICTURES:
        raise InputError(f"--output {output}: expected a file that ends with {', '.join(PICTURES)}; give another name.")
    if os.path.realpath(output) in {os.path.realpath(file) for file in (image, prediction, truth) if file}:
        raise InputError(f"--output {output}: the figure would replace this file; give another name.")
    load, read_label = image_loader(), image_loader(label=True)
    files = {"prediction": prediction} | ({"truth": truth} if truth else {})
    volume: Any = load(image)
    labels = {name: on_image_grid(read_label(file), volume, trust or None) for name, file in files.items()}  # type: ignore[arg-type]
    picture = is_picture(image)
    rows = [as_planes(volume, labels, picture=picture, slice_axis=a) for a in as_axes(slice_axis, picture=picture)]
    styles = {"prediction": "solid"} | ({"truth": "dashed"} if truth else {})
    named = names_by_value(class_names)
    numbers = class_numbers(rows[0].labels.values(), background=next(iter(named), 0))
    rows = [
        replace(planes, labels={k: renumbered(label, numbers) for k, label in planes.labels.items()}) for planes in rows
    ]
    columns = max(len(choose_slices(planes, slices)) for planes in rows)
    with canvas(output, len(rows), columns, (3.2 * columns, 3.4 * len(rows))) as (figure, axes):
        draw_rows(axes, rows, styles, zoom=zoom)
        figure.suptitle(case_name(image), fontsize=11)
        class_legend(figure, {c: named.get(value, f"value {value}") for value, c in numbers.items() if c}, styles)
    return output


def main() -> None:
    """Command line of this module."""
    command(overlay)
