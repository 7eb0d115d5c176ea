"""Deterministic transforms of volumes, as MONAI transforms."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import (
    InvertibleTransform,
    MapLabelValued,
    MapTransform,
    SpatialResample,
    Transform,
)
from monai.utils import convert_to_tensor, ensure_tuple_rep
from nibabel.affines import voxel_sizes

from ..errors import InputError
from .files import is_picture
from .geometry import file_name, on_image_grid, states_grid, vanished
from .label_resampling import on_grid, resampled_label
from .slice_axis import coarser_elsewhere, stored_axis

logger = logging.getLogger("semsim")

Item = Mapping[Hashable, Any]

#: Class index of what nobody judged: it counts neither in the loss nor in the scores.
IGNORED = -1
#: More classes than this no prediction can hold, which is stored in bytes.
MOST_CLASSES = 256


def whole(label: torch.Tensor) -> torch.Tensor:
    """Label values as whole numbers where all are within a thousandth of one, as scaled files make them; else as is."""
    if not label.is_floating_point():
        return label
    rounded = label.round()
    return rounded if bool(((label - rounded).abs() <= 1e-3).all()) else label


class SliceGrid(SpatialResample):
    """Resample a volume ``(C, X, Y, Z)`` to the grid that the 2D network sees, ``(C, H, W, slices)``.

    Slices lie along the last axis, one per stored slice and in the stored order. In plane, axes point to the right and
    to the front as nearly as the affine allows, pixels are square, the image fills ``spatial_size`` along one axis and
    is centred and zero-padded along the other, so that its proportions are kept. A 2D image ``(C, X, Y)`` becomes a
    volume of one slice. Predictions return to the stored grid by :mod:`scripts.evaluation.stored_grid`; ``inverse`` and
    ``Invertd`` do so for other maps.
    """

    def __init__(
        self, spatial_size: Sequence[int] | int, *, slice_axis: str | int | None = None, mode: str = "bilinear"
    ) -> None:
        """
        Args:
            spatial_size: ``(X, Y)`` in pixels, of a picture its width and height; or one number for both.
            slice_axis: direction of the body (``R``, ``A``, ``S``) or axis of the stored array along which slices are
                stacked; see :func:`stored_axis`.
            mode: ``bilinear`` for images; ``nearest`` for labels, which means a vote of the voxels around, see
                :func:`~scripts.dataio.label_resampling.resampled_label`, and has no ``inverse``.
        """
        super().__init__(mode=mode, padding_mode="zeros", dtype=np.float32)
        self.spatial_size = ensure_tuple_rep(spatial_size, 2)
        self.slice_axis = slice_axis

    def grid(
        self, affine: np.ndarray, shape: Sequence[int], *, picture: bool = False
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Matrix from voxels of the slice grid to voxels as stored, ``(4, 4)``, and the grid's size."""
        spacing = voxel_sizes(affine)
        axis = stored_axis(affine, shape, self.slice_axis, picture=picture)
        orientation = nib.io_orientation(affine)
        world = [(a if np.isnan(o) else o) for a, o in enumerate(orientation[:, 0])]
        in_plane = sorted((a for a in range(3) if a != axis), key=lambda a: world[a])

        extent = [shape[a] * spacing[a] for a in in_plane]
        pixel = max(e / n for e, n in zip(extent, self.spatial_size))
        matrix = np.zeros((4, 4))
        matrix[3, 3] = matrix[axis, 2] = 1.0
        for column, a in enumerate(in_plane):
            scale = pixel / spacing[a] * (-1.0 if orientation[a, 1] == -1 else 1.0)
            matrix[a, column] = scale
            matrix[a, 3] = (shape[a] - 1) / 2 - scale * (self.spatial_size[column] - 1) / 2
        return matrix, (*self.spatial_size, shape[axis])

    def __call__(self, img: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        affine = to_affine_nd(3, img.affine.cpu().numpy() if isinstance(img, MetaTensor) else np.eye(4))
        matrix, size = self.grid(affine, img.shape[1:], picture=is_picture(file_name(img)))
        if self.mode != "nearest":
            return super().__call__(img, torch.as_tensor(affine @ matrix), size)
        axes = [int(np.abs(matrix[:3, column]).argmax()) for column in range(3)]
        places = [matrix[a, c] * torch.arange(size[c]) + matrix[a, 3] for c, a in enumerate(axes[:2])]
        label = convert_to_tensor(img, track_meta=False).permute(0, *(1 + a for a in axes))
        return on_grid(img, resampled_label(label, [*places, None], outside=0), affine @ matrix)


class SliceGridd(MapTransform, InvertibleTransform):
    """Dictionary version of :class:`SliceGrid`; also records the pixel size for the log."""

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | int,
        *,
        slice_axis: str | int | None = None,
        mode: Sequence[str] | str = "bilinear",
        class_names: Sequence[str] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        """Arguments as in :class:`SliceGrid`, with one ``mode`` a key; ``class_names`` are for warnings."""
        super().__init__(keys, allow_missing_keys)
        self.slice_axis, self.class_names = slice_axis, tuple(class_names)
        self._told, self._told_lost, self._told_unplaced = set[str](), set[tuple[str, str]](), False
        self.grids = {
            key: SliceGrid(spatial_size, slice_axis=slice_axis, mode=m)
            for key, m in zip(self.keys, ensure_tuple_rep(mode, len(self.keys)))
        }

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        result = dict(data)
        for number, key in enumerate(self.key_iterator(result)):
            if number == 0 and isinstance(self.slice_axis, str):
                self._tell(result[key])
            stored, result[key] = result[key], self.grids[key](result[key])
            if self.grids[key].mode == "nearest":
                self._tell_lost(stored, result[key])
        return result

    def _tell_lost(self, stored: torch.Tensor, seen: torch.Tensor) -> None:
        """Warn of classes of a label, once, that nothing is left of."""
        file, size = file_name(stored), " x ".join(map(str, seen.shape[1:3]))
        lost = vanished(stored, seen, self.class_names)
        if lost and (file, size) not in self._told_lost:
            self._told_lost.add((file, size))
            logger.warning(
                f"{file}: nothing is left of {lost} in slices of {size} pixels; a larger --spatial_size keeps it."
            )

    def _tell(self, image: torch.Tensor) -> None:
        """Warn of an image, once, whose own voxels would have it cut along another axis than the data set.

        And of the first that says nothing of the body, where others do.
        """
        file = file_name(image)
        affine = to_affine_nd(3, image.affine.cpu().numpy() if isinstance(image, MetaTensor) else np.eye(4))
        axis = stored_axis(affine, image.shape[1:], self.slice_axis, picture=is_picture(file))
        volume = not is_picture(file) and min(image.shape[1:]) > 1
        if volume and not self._told_unplaced and not states_grid(affine, getattr(image, "meta", None)):
            self._told_unplaced = True
            logger.warning(
                f"{file}: states no place in space, as perhaps others do not, and the data set that the axis "
                f"{self.slice_axis} is of does: slices are cut along its stored axis {axis}; mend its header if they "
                "lie along another."
            )
        if file not in self._told and image.shape[1 + axis] > 1 and coarser_elsewhere(affine, axis):
            self._told.add(file)
            spacing = " x ".join(f"{s:.3g}" for s in voxel_sizes(affine))
            logger.warning(
                f"{file}: slices are cut along {self.slice_axis}, as in the whole data set, though its voxels "
                f"({spacing} mm as stored) are larger along another axis."
            )

    def inverse(self, data: Item) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.grids[key].inverse(result[key])
        return result


class AsVolumed(MapTransform, InvertibleTransform):
    """Give a 2D image ``(C, X, Y)`` a third spatial axis of length one; volumes pass unchanged.

    ``inverse`` removes the axis again, so that a PNG comes back as one.
    """

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if image.ndim not in (3, 4):
                raise InputError(
                    f"{file_name(image, data)}: expected a 2D image or a 3D volume, received an array with "
                    f"{image.ndim - 1} spatial axes {tuple(image.shape[1:])}; split a time series into its frames."
                )
            flat = image.ndim == 3
            result[key] = image.unsqueeze(-1) if flat else image
            if flat and isinstance(image, MetaTensor):
                result[key].affine = to_affine_nd(3, image.affine)  # ITK's is of two dimensions
            self.push_transform(result[key], orig_size=image.shape[1:], extra_info={"flat": flat})
        return result

    def inverse(self, data: Item) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            info = self.pop_transform(result[key])
            if info["extra_info"]["flat"]:
                result[key] = result[key].squeeze(-1)
        return result


class LabelValuesd(MapLabelValued):
    """Values in label files to class indices 0, 1, 2, ...; a value that is no class is refused, naming the file."""

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Sequence[int] | None,
        class_names: Sequence[str],
        *,
        ignore_label: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        """
        Args:
            keys: keys of labels.
            label_values: a value for every class, in their order; ``None``: 0, 1, 2, ...
            class_names: names of the classes, background first.
            ignore_label: value of what nobody judged, which becomes ``IGNORED``; ``None`` for none.
            allow_missing_keys: whether items without label pass.

        Raises:
            InputError: another number of values than of classes, a class whose voxels are to be ignored, or two
                classes of one name.
        """
        if len({*class_names}) < len(class_names):
            raise InputError(f"class_names: expected names that differ, received {', '.join(class_names)}.")
        self.label_values = list(label_values or range(len(class_names)))
        if len(self.label_values) != len(class_names):
            raise InputError(
                f"label_values {self.label_values}: expected one value for each of the {len(class_names)} classes "
                f"({', '.join(class_names)}); change label_values or class_names."
            )
        indices = list(range(len(self.label_values)))
        if ignore_label is not None:
            if ignore_label in self.label_values:
                raise InputError(
                    f"ignore_label {ignore_label}: is also the value of a class ({self.label_values}); remove it from "
                    "label_values, or give another ignore_label."
                )
            self.label_values.append(ignore_label)
            indices.append(IGNORED)
        super().__init__(keys, self.label_values, indices, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            data[key] = whole(torch.as_tensor(data[key]))
            wrong = sorted({*torch.unique(torch.as_tensor(data[key])).tolist()} - {*self.label_values})
            if wrong:
                raise InputError(
                    f"{file_name(data[key])}: expected label values {self.label_values}, received "
                    f"{', '.join(f'{v:g}' for v in wrong[:5])}, too; give every value in label_values and its class in "
                    "class_names, or give the value of voxels to ignore as ignore_label."
                )
        return super().__call__(data)


class LeaveOutIgnoredd(Transform):
    """Let prediction and truth agree on background where the truth is ``IGNORED``, so that no score counts it."""

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        """``pred`` and ``label``: class indices ``(1, *spatial)``."""
        label, pred = data["label"], data["pred"]
        pred = pred.masked_fill(torch.as_tensor(label < 0).to(pred.device), 0)
        return {**data, "label": label.clamp(min=0), "pred": pred}


class CheckVolumed(Transform):
    """Refuse what training would choke on, naming the file: NaN, shapes that differ, unknown label values.

    An item has ``image``, ``(C, ...)``, and where it is labelled ``label``, ``(1, ...)``, which is put on the grid of
    the image, see :func:`on_image_grid`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        trust: str | None = None,
        ignore: bool = False,
    ) -> None:
        """
        Args:
            in_channels: channels that the network takes.
            num_classes: classes that the network predicts, background included.
            trust: what counts where the headers of image and label contradict each other, see :func:`on_image_grid`.
            ignore: whether labels may hold ``IGNORED``.

        Raises:
            InputError: more classes than a prediction can hold.
        """
        if num_classes > MOST_CLASSES:
            raise InputError(
                f"class_names: expected {MOST_CLASSES} classes at most, which predictions have room for, received "
                f"{num_classes}; merge some, or train on fewer."
            )
        self.lowest = IGNORED if ignore else 0
        self.in_channels, self.num_classes, self.trust = in_channels, num_classes, trust

    def __call__(self, data: Item) -> dict[Hashable, Any]:
        image = data["image"]
        name = file_name(image, data)
        if image.shape[0] != self.in_channels:
            kind = {1: "L", 3: "RGB", 4: "RGBA"}.get(self.in_channels)
            remedy = (
                f"convert it, with Pillow: Image.open(FILE).convert('{kind}')"
                if is_picture(name) and kind
                else "if this is a time series, split it into one file a frame"
            )
            raise InputError(
                f"{name}: expected {self.in_channels} channel(s), received {image.shape[0]}; {remedy}, or train with "
                f"--in_channels {image.shape[0]} (weights predict images of as many channels as they were trained on)."
            )
        bad = int((~torch.isfinite(torch.as_tensor(image))).sum())
        if bad:
            raise InputError(
                f"{name}: expected finite intensities, received {bad} NaN or infinite voxels; replace those "
                "(numpy.nan_to_num) or remove the case from the list."
            )
        result = dict(data)
        if "label" in data:
            label = result["label"] = whole(data["label"])
            self._check_channels(label)
            if isinstance(label, MetaTensor) and isinstance(image, MetaTensor):
                result["label"] = on_image_grid(label, image, self.trust)
            self._check_values(label)
        return result

    def _check_channels(self, label: torch.Tensor) -> None:
        if label.shape[0] != 1:
            raise InputError(
                f"{file_name(label)}: expected one channel of label values, received {label.shape[0]}; save it as "
                "indices."
            )

    def _check_values(self, label: torch.Tensor) -> None:
        name = file_name(label)
        values = torch.unique(torch.as_tensor(label))
        wrong = [v for v in values.tolist() if v != int(v) or not self.lowest <= v < self.num_classes]
        if wrong:
            raise InputError(
                f"{name}: expected label values 0 to {self.num_classes - 1} ({self.num_classes} classes), received "
                f"{', '.join(f'{v:g}' for v in wrong[:5])}; set class_names to all "
                "classes, label_values to the values in the files (--label_values '[0,255]'), or ignore_label to the "
                "value of voxels to ignore."
            )


def movers(transform: Any) -> Iterator[Any]:
    """Those of MONAI's transforms, in a composition or alone, that move voxels or cut some off."""
    kind = type(transform)
    moving = kind.__module__.startswith(("monai.transforms.spatial", "monai.transforms.croppad"))
    if moving and not kind.__name__.startswith("RandSimulateLowResolution"):  # it blurs
        yield transform
    for part in getattr(transform, "transforms", ()):
        yield from movers(part)


def apart(transform: Any) -> Iterator[str]:
    """A line for each transform that moves an image without its label, or the label alone."""
    for part in movers(transform):
        if len({"image", "label"}.intersection(getattr(part, "keys", ()))) == 1:
            yield (
                f"labeled_transforms: expected {type(part).__name__} to move image and label together, received the "
                f"keys {', '.join(map(str, part.keys))} alone; give it keys: [image, label]."
            )


def check_whole(label: Any) -> None:
    """That a label holds classes still, and nothing between them.

    Raises:
        InputError: a transform has interpolated it.
    """
    if not isinstance(label, torch.Tensor) or not label.is_floating_point():
        return
    between = label[label != label.round()]
    if len(between):
        raise InputError(
            f"labeled_transforms: expected whole numbers in labels, received {float(between[0]):.3g}, between two "
            "classes; give each of them that moves voxels mode: [bilinear, nearest]."
        )
