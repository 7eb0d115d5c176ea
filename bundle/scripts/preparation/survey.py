"""A check of every image and label before training: what there is, and what cannot be used."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from ..dataio.files import evenly, is_dicom, is_picture
from ..dataio.geometry import contradict, on_image_grid, states_grid, turned, unit_of
from ..dataio.intensity import AIR, looks_like_ct, looks_wrapped, padding_value
from ..dataio.readers import image_loader, states_unit_size
from ..dataio.slice_axis import common_direction
from ..dataio.threads import in_threads
from ..dataio.transforms import MOST_CLASSES, whole
from ..errors import InputError, reason

logger = logging.getLogger("semsim")

#: More values than this in a label file, or fractions: it is no label but an image, or was stored with losses.
MOST_VALUES = 64
#: So many values at most make an image look like a label.
FEW = 8
#: A usual window of CT, in Hounsfield units.
SOFT_TISSUE = (-150.0, 250.0)


@dataclass(frozen=True)
class Facts:
    """What a file holds.

    Attributes:
        path: the file, or the folder of a DICOM series.
        channels: how many.
        shape: voxels along each axis, as stored.
        spacing: voxel size along each axis, in ``unit``; ones where the file states none.
        affine: from voxels to mm in space, ``(4, 4)``; the identity where the file does not say.
        intensity: smallest value, 0.5 and 99.5 percentile, largest value; of an image. The percentiles leave out the
            padding of a CT.
        ct: whether the intensities look like Hounsfield units.
        values: how many voxels have which value; of a label, and of an image that shows a few whole ones like a label.
        content: digest of the voxels, in one orientation; empty where they are all alike.
        wrapped: whether numbers below zero seem to have lost their sign, see :func:`looks_wrapped`.
        sized: whether the size of 1 mm that an image was read with is stated, see :func:`states_unit_size`.
        unit: of the spacing: ``mm``, or what a NIfTI header says.
    """

    path: Path
    channels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray
    intensity: tuple[float, float, float, float] | None = None
    values: Mapping[float, int] = field(default_factory=dict)
    ct: bool = False
    content: str = ""
    wrapped: bool = False
    sized: bool = True
    unit: str = "mm"


def look(
    path: Path,
    *,
    label: bool = False,
    channels: int | None = None,
    most_classes: int = MOST_VALUES,
    files: Sequence[Path] = (),
) -> Facts:
    """Read one file and check it on its own.

    Args:
        path: image or label, or the folder of a DICOM series.
        label: whether it is a label.
        channels: how many channels the images are said to have; with more than one a 4D file is one of channels.
        most_classes: how many values a label may show.
        files: of all channels, where each has a file; ``path`` is the first.

    Raises:
        InputError: in one line with the file and the remedy.
    """
    tensor = _loaded(path, files, label)
    spatial = tensor.ndim - 1
    several = tensor.shape[0] > 1 and not path.is_dir() and not is_dicom(path)  # the channels of DICOM are colours
    if not label and (spatial > 3 or (spatial == 3 and several and tensor.shape[0] != channels)):
        volumes = tensor.shape[0] if spatial == 3 else tensor.shape[-1]
        raise InputError(
            f"{path}: a 4D image of {volumes} volumes; split a time series into one file a frame, or take it out if "
            "its frames lie there already; if these are channels (modalities), say so with --channels "
            f"{volumes}{_leading_axis(tensor.shape[1:])}."
        )
    if spatial < 2 or min(tensor.shape) < 1 or spatial > 3:
        kind = "label" if label else "image"
        raise InputError(f"{path}: expected a 2D or 3D {kind}, received an array of {tuple(tensor.shape[1:])}.")
    array = tensor.numpy()
    if bad := int((~np.isfinite(array)).sum()):
        raise InputError(f"{path}: {bad} voxels are NaN or infinite; replace those (numpy.nan_to_num).")
    affine = to_affine_nd(3, tensor.affine.numpy())
    spacing = tuple(round(float(s), 4) for s in voxel_sizes(affine)[:spatial])
    if not states_grid(affine, tensor.meta):
        affine = np.eye(4)
    shape, unit = tuple(int(n) for n in tensor.shape[1:]), unit_of(tensor.meta)
    facts = Facts(path, int(tensor.shape[0]), shape, spacing, affine, unit=unit)
    if not label and {*spacing[:2]} == {1.0}:
        facts = replace(facts, sized=states_unit_size(path))
    return _of_label(facts, array, most_classes) if label else _of_image(facts, array)


def _leading_axis(shape: Sequence[int]) -> str:
    """What else a 4D file may be: an array ``(1, X, Y, Z)`` of torch, saved as it is; empty for others."""
    if len(shape) < 3 or shape[0] > 1:
        return ""
    return "; or if its first axis, of one voxel, is that of a channel, save the array without it (array[0])"


def _loaded(path: Path, files: Sequence[Path], label: bool) -> MetaTensor:
    try:
        return image_loader(label=label)(list(files) or path)  # type: ignore[return-value]
    except InputError:
        raise
    except Exception as error:
        kind = "a label" if label else "an image"
        raise InputError(
            f"{path}: cannot be read as {kind} ({type(error).__name__}: {reason(error)}); replace the file or take it "
            "out of the folder."
        ) from error


def _of_image(facts: Facts, array: np.ndarray) -> Facts:
    """With the intensities of an image ``(C, *spatial)``."""
    some = array[..., ::4] if array.size > 4e6 else array
    padding = padding_value(some)
    low, high = np.percentile(some if padding is None else some[some != padding], [0.5, 99.5])
    intensity = (float(array.min()), float(low), float(high), float(array.max()))
    ct = facts.channels == 1 and looks_like_ct(array)
    if intensity[0] == intensity[3]:
        return replace(facts, intensity=intensity, ct=ct)
    content = _digest(array, facts.affine)
    return replace(
        facts, intensity=intensity, ct=ct, content=content, values=_few_values(array), wrapped=looks_wrapped(some)
    )


def _of_label(facts: Facts, array: np.ndarray, most_classes: int) -> Facts:
    """With the values of a label, which are refused where they cannot be classes."""
    values, counts = np.unique(np.asarray(whole(torch.as_tensor(array))), return_counts=True)
    fractions = bool((values != np.round(values)).any())
    smeared = facts.path.suffix.lower() in (".jpg", ".jpeg") and len(values) > 2
    if most_classes < len(values) <= MOST_CLASSES and not fractions and not smeared:
        raise InputError(
            f"{facts.path}: {len(values)} different whole numbers from {values[0]:g} to {values[-1]:g}, more than the "
            f"{most_classes} classes that a label may show; if these are classes give --most_classes {len(values)} "
            f"(at most {MOST_CLASSES}), if it is an image take it out of the labels."
        )
    if len(values) > most_classes or fractions or smeared:
        lossy = " (JPEG stores with losses: use PNG)" if smeared else ""
        raise InputError(
            f"{facts.path}: {len(values)} different values from {values[0]:g} to {values[-1]:g}; expected a label of a "
            f"few whole numbers, one a class{lossy}."
        )
    content = _digest(array, facts.affine) if len(values) > 1 else ""
    return replace(facts, values=dict(zip(values.tolist(), counts.tolist())), content=content)


def _digest(array: np.ndarray, affine: np.ndarray) -> str:
    """Of voxels ``(C, *spatial)``, alike in whatever type and orientation they are stored."""
    voxels = np.moveaxis(array, 0, -1)
    if array.ndim == 4:
        voxels = turned(voxels, affine, np.eye(4))[0]
    return f"{hashlib.sha256(np.ascontiguousarray(voxels, dtype=np.float32).data).hexdigest()} {voxels.shape}"


def _few_values(array: np.ndarray) -> dict[float, int]:
    """How many voxels have which value where these are whole numbers and at most ``FEW``; else nothing."""
    for part in (array.ravel()[:: max(array.size // 10_000, 1)], array):  # few in a sample first, which is soon known
        values, counts = np.unique(part, return_counts=True)
        if len(values) > FEW or (values != np.round(values)).any():
            return {}
    return dict(zip(values.tolist(), counts.tolist()))


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        images: facts of every readable image, by case.
        labels: the same of every readable label.
        problems: one line for each file that cannot be used.
        placed: cases whose label is stored otherwise than its image and was put on it.
    """

    images: dict[str, Facts]
    labels: dict[str, Facts]
    problems: list[str]
    placed: list[str] = field(default_factory=list)

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
    def ct(self) -> bool:
        """Whether most images look like CT."""
        return 2 * sum(facts.ct for facts in self.images.values()) > len(self.images)

    @property
    def direction(self) -> str | int | None:
        """What most volumes were acquired along, see :func:`common_direction`; ``None`` for planes alone."""
        return common_direction((f.affine, f.shape, is_picture(f.path)) for f in self.images.values())

    @property
    def copies(self) -> list[list[str]]:
        """Cases whose images hold the same voxels, if any, in groups."""
        return _alike(self.images)

    @property
    def same_labels(self) -> list[list[str]]:
        """Cases whose labels hold the same voxels though their images differ, if any, in groups."""
        images = {case: facts.content for case, facts in self.images.items()}
        groups = (list({images.get(case, case): case for case in cases}.values()) for cases in _alike(self.labels))
        return [cases for cases in groups if len(cases) > 1]

    @property
    def unplaced(self) -> list[Path]:
        """Volumes that state no place in space where others do."""
        volumes = [f for f in self.images.values() if min((*f.shape, 1)[:3]) > 1 and not is_picture(f.path)]
        lost = [facts.path for facts in volumes if not states_grid(facts.affine)]
        return lost if len(lost) < len(volumes) else []

    @property
    def laid(self) -> list[Path]:
        """Labels that state no place in space though their images do, or the other way round: a guess lays them."""
        pairs = [(label, self.images[case]) for case, label in self.labels.items() if case in self.images]
        return [
            label.path
            for label, image in pairs
            if states_grid(label.affine) != states_grid(image.affine) and min((*image.shape, 1)[:3]) > 1
        ]

    @property
    def has_spacing(self) -> bool:
        """Whether any image states a voxel size."""
        return any(not np.allclose(f.spacing, 1.0) or states_grid(f.affine) for f in self.images.values())


def _alike(files: Mapping[str, Facts]) -> list[list[str]]:
    """Cases whose files hold the same voxels, in groups."""
    alike: dict[str, list[str]] = {}
    for case, facts in files.items():
        if facts.content:
            alike.setdefault(facts.content, []).append(case)
    return [cases for cases in alike.values() if len(cases) > 1]


def survey(
    images: Mapping[str, Path | list[Path]],
    labels: Mapping[str, Path],
    *,
    channels: int | None = None,
    trust: str | None = None,
    most_classes: int = MOST_VALUES,
) -> Survey:
    """Read every file once.

    Args:
        images: image files by case, or the files of its channels.
        labels: label files by case, for some of them.
        channels: how many channels the images are said to have; ``None``: as most of them have.
        trust: what counts where the headers of image and label contradict each other: ``header`` or ``voxels``.
        most_classes: how many values a label may show.
    """
    problems: list[str] = []
    found: tuple[dict[str, Facts], dict[str, Facts]] = ({}, {})
    both: tuple[Mapping[str, Any], Mapping[str, Any]] = (images, labels)
    listed = [(kind, case, path) for kind, files in enumerate(both) for case, path in files.items()]
    folder = Path.cwd()  # ITK goes to another while it loads a part of itself, and takes all threads along

    def looked(entry: tuple[int, str, Path | list[Path]]) -> Facts | InputError:
        kind, _, path = entry
        parts = [folder / part for part in path] if isinstance(path, list) else []
        first, number = (path[0], len(parts)) if isinstance(path, list) else (path, channels)
        try:
            facts = look(folder / first, label=bool(kind), channels=number, most_classes=most_classes, files=parts)
            return replace(facts, path=first)
        except InputError as error:
            return error

    with in_threads(looked, listed) as results:
        for (kind, case, _), facts in zip(listed, tqdm(results, "Reading files", len(listed), unit="file")):
            if isinstance(facts, InputError):
                problems.append(str(facts))
            else:
                found[kind][case] = facts
    result = Survey(*found, problems)
    problems += _channel_problems(result, channels or result.channels, channels is not None)
    problems += _pair_problems(result)
    problems += _misplaced(result, trust)
    return result


def _channel_problems(found: Survey, expected: int, said: bool) -> Iterable[str]:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(expected, "L")
    others = f"{expected} were said to be there" if said else f"most of the others have {expected}"
    for facts in found.images.values():
        if facts.channels != expected:
            yield (
                f"{facts.path}: {facts.channels} channel(s), where {others}; convert the file, for "
                f"2D images with Pillow: Image.open(FILE).convert('{mode}')."
            )


def _pair_problems(found: Survey) -> Iterable[str]:
    for label in found.labels.values():
        if label.channels != 1:
            remedy = "split a time series into one file a frame, or join the masks of several classes into one volume"
            if len(label.shape) == 2:
                remedy = "for 2D images with Pillow: Image.open(FILE).convert('L')"
            hint = _leading_axis(label.shape)
            yield f"{label.path}: {label.channels} channels; expected one of class indices, {remedy}{hint}."


def _misplaced(found: Survey, trust: str | None) -> Iterable[str]:
    """Labels that cannot be put on their images; only those of :func:`elsewhere` are read again."""
    for case in elsewhere(found):
        image: Any = image_loader()(found.images[case].path)
        label: Any = image_loader(label=True)(found.labels[case].path)
        try:
            placed = on_image_grid(label, image, trust)
            found.placed.append(case)
            found.labels[case] = replace(found.labels[case], values=_counts(np.asarray(whole(placed))))
        except InputError as error:
            yield str(error)


def _counts(array: np.ndarray) -> dict[float, int]:
    """How many voxels have which value."""
    return {float(v): int(n) for v, n in zip(*np.unique(array, return_counts=True))}


def elsewhere(found: Survey) -> list[str]:
    """Cases whose label has another size than the image, or is put elsewhere by its header where both state a grid."""
    result = []
    for case, label in found.labels.items():
        image = found.images.get(case)
        if image is None or label.channels != 1:
            continue
        same = (*image.shape, 1)[:3] == (*label.shape, 1)[:3]
        if not same or contradict(image.affine, label.affine, image.shape):
            result.append(case)
    return result


def foreground_window(
    found: Survey, cases: Iterable[str], *, classes: Sequence[float] = (), trust: str | None = None, most: int = 8
) -> tuple[float, float]:
    """A window for CT: the labelled tissue, with as much on either side, in tens of Hounsfield units.

    Args:
        found: images of which some have a label without problems.
        cases: whose labels may be looked at, those that are trained on; an image that is no CT says nothing.
        classes: label values of the tissue; none: all but 0.
        trust: what counts where the headers of image and label contradict each other.
        most: how many images to look into.

    Returns:
        lowest and highest intensity; those of soft tissue where no label shows anything.
    """
    ranges = []
    labelled = [case for case in cases if case in found.labels and case in found.images and found.images[case].ct]
    for case in evenly(labelled, most):
        image: Any = image_loader()(found.images[case].path)
        label: Any = image_loader(label=True)(found.labels[case].path)
        placed = np.asarray(whole(on_image_grid(label, image, trust))[0])
        inside = np.asarray(image[0])[np.isin(placed, list(classes)) if classes else placed != 0]
        if inside.size:
            ranges.append(np.percentile(inside, [0.5, 99.5]))
    if not ranges:
        return SOFT_TISSUE
    low, high = np.min(ranges, axis=0)[0], np.max(ranges, axis=0)[1]
    margin = max(high - low, 20.0)
    return float(max(10 * np.floor((low - margin) / 10), AIR)), float(10 * np.ceil((high + margin) / 10))


def join(numbers: Sequence[float]) -> str:
    """``(12, 10, 3)`` -> ``12x10x3``."""
    return "x".join(f"{n:.4g}" for n in numbers)
