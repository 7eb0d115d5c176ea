"""The command ``overlay``: a picture of an image with the contours of a prediction, and of the truth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..command_line import command
from ..dataio.files import case_name, is_picture
from ..dataio.geometry import on_image_grid
from ..dataio.readers import image_loader
from ..errors import InputError
from .drawing import canvas, class_legend, draw_rows
from .planes import as_axes, as_planes, choose_slices

#: Endings of a figure's file.
PICTURES = (".png", ".jpg", ".pdf", ".svg")


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
