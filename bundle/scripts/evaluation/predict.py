"""Prediction of many files: unusable ones are named at the end and stop nothing, and no file replaces another."""

from __future__ import annotations

import builtins
import gc
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import FolderLayout, MetaTensor, list_data_collate
from monai.data.folder_layout import default_name_formatter
from monai.engines import SupervisedEvaluator
from monai.transforms import Transform
from monai.utils import ensure_tuple
from torch import Tensor
from torch.utils.data import Dataset

from ..dataio.datalist import common_folder
from ..dataio.files import IMAGE_SUFFIXES, image_files, is_picture
from ..dataio.geometry import contradict
from ..dataio.loaders import read_item
from ..dataio.readers import read_grid
from ..errors import SMALLER, InputError, chain, find_input_error, not_written, out_of_memory, raise_all
from ..training.settings import saved
from .inferer import flip_axes
from .stored_header import ending_of, part_of

logger = logging.getLogger("semsim")

#: Bytes of a file's name that file systems allow.
LONGEST = 255


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that could not be used.

    Attributes:
        problem: one line: file, expected, received, remedy.
    """

    problem: str


class PredictionDataset(Dataset):
    """Images one after the other, none kept in memory; an :class:`Unreadable` in the place of a broken one."""

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], *, output_ext: str = ".nii.gz"
    ) -> None:
        """
        Args:
            data: items with ``image``.
            transform: reads and prepares an item.
            output_ext: ending of the predictions; see :func:`check_flat`.
        """
        self.data, self.transform, self.output_ext = list(data), transform, output_ext

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        try:
            item = read_item(self.transform, self.data[index])
            check_flat(item["image"], self.output_ext)
            return item
        except InputError as error:
            return Unreadable(no_room(image_files(self.data[index])[0]) if out_of_memory(error) else str(error))


def no_room(image: str) -> str:
    """The problem of an image for which there is not enough memory."""
    return f"{image}: out of memory. {SMALLER['prediction']}"


def of_one_image(error: BaseException, image: str, shape: str) -> str:
    """The problem of an image whose prediction has failed; empty where that of the others would fail, too.

    Args:
        error: what was raised.
        image: its name.
        shape: what the network sees of it.
    """
    if out_of_memory(error):
        return f"{no_room(image)} The network sees {shape} of it."
    if found := find_input_error(error):
        return str(found) if image in str(found) else f"{image}: {found}"
    if written := next(filter(None, map(not_written, chain(error))), None):
        reason = written[1]
        kind = getattr(builtins, reason.partition(":")[0], Exception)
        if not issubclass(kind, (OSError, RuntimeError)):  # of the disk, and ITK's, which does not say why
            return f"{image}: its prediction could not be written ({reason}); give another --output_ext or take it out."
    return ""


def collate(batch: Sequence[Any]) -> Any:
    """MONAI's collation of a batch of one; an :class:`Unreadable` passes as it is."""
    return batch[0] if isinstance(batch[0], Unreadable) else list_data_collate(batch)


class Predictor(SupervisedEvaluator):
    """MONAI's evaluator that passes over images that are unusable, too large for the memory, or cannot be written.

    It names them, all at once, when the others are predicted.
    """

    def __init__(self, *args: Any, output_dir: str | os.PathLike = "", **kwargs: Any) -> None:
        """Arguments as in MONAI's ``SupervisedEvaluator``, and the folder of the predictions, to say where they are."""
        super().__init__(*args, **kwargs)
        self.output_dir = output_dir
        self.problems: list[str] = []
        self.add_event_handler(Events.STARTED, self.problems.clear)
        self.add_event_handler(Events.COMPLETED, self._tell)

    def _iteration(self, engine: Any, batchdata: Any) -> dict:
        if isinstance(batchdata, Unreadable):
            return self._passed_over(batchdata.problem)
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            image = batchdata["image"]
            name = str(ensure_tuple(image.meta.get("filename_or_obj") or "(in memory)")[0])
            problem = of_one_image(error, name, "x".join(map(str, image.shape[2:])))
            if not problem:
                raise
            del image
        # outside of the handler, whose traceback holds the tensors
        self.state.batch = self.state.output = None  # type: ignore[assignment]
        del batchdata
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._passed_over(problem)

    def _passed_over(self, problem: str) -> dict:
        self.problems.append(problem)
        logger.warning(problem)
        return {}

    def _tell(self) -> None:
        total = self.state.epoch_length or 0
        done = total - len(self.problems)
        where = f" into {os.path.abspath(self.output_dir)}" if done and self.output_dir else ""
        logger.info(f"{done} of {total} images predicted{where}.")
        raise_all(self.problems)


def postfix_of(text: str | None) -> str:
    """What is put behind names; empty for nothing."""
    return text or ""


def prepared_output(
    data: Sequence[Mapping[str, Any]],
    output_dir: str | os.PathLike,
    *,
    output_postfix: str = "seg",
    output_ext: str = ".nii.gz",
    existing: str = "refuse",
) -> list[dict[str, Any]]:
    """The images to predict, after a look at the files that this will write.

    Args:
        data: items with ``image``.
        output_dir: folder of the predictions, which keep the folders below the images' common one.
        output_postfix: what is put behind an image's name.
        output_ext: ending of the predictions.
        existing: predictions that are there already: ``refuse`` to start, ``skip`` those images, or ``overwrite`` them.

    Returns:
        the items, without those that are skipped.

    Raises:
        InputError: a prediction would replace an image, another prediction, or an earlier one.
    """
    if existing not in ("refuse", "skip", "overwrite"):
        raise InputError(f"existing: expected refuse, skip or overwrite, received {existing!r}.")
    layout = FolderLayout(output_dir, output_postfix, ending_of(output_ext), data_root_dir=common_folder(data))
    images = {Path(f).resolve() for item in data for f in image_files(item)}
    owners: dict[Path, str] = {}
    kept, problems = [], []
    for item in data:
        image = image_files(item)[0]
        target = Path(layout.filename(_subject(image))).resolve()
        if target in images:
            problems.append(f"{target}: a prediction would replace this image; give another --output_dir or postfix.")
        elif target in owners:
            problems.append(
                f"{image}: its prediction {target} is also that of {owners[target]}; rename one, or predict them apart."
            )
        elif (length := len(os.fsencode(part_of(target).name))) > LONGEST:
            problems.append(
                f"{image}: expected a name short enough for its prediction ({LONGEST} bytes), received one that makes "
                f"{length}; shorten it, or give another --output_postfix."
            )
        elif target.exists() and existing == "refuse":
            problems.append(
                f"{target}: a prediction is there already; if it is of {image} give --existing skip or overwrite, else "
                "another --output_dir."
            )
        elif target.exists() and (other := _other_grid(image, target)):
            problems.append(
                f"{target}: expected the prediction of {image}, received one of another grid ({other}), so of another "
                "image, or cut off; give another --output_dir, or remove it."
            )
        elif target.exists() and existing == "skip":
            owners[target] = image
            continue
        owners[target] = image
        kept.append(dict(item))
    raise_all(problems)
    if len(kept) < len(data):
        logger.info(f"{len(data) - len(kept)} of {len(data)} images already have a prediction and are skipped.")
    return kept


def _other_grid(image: str, prediction: Path) -> str:
    """What tells that a prediction is of another image: its number of voxels, or its place; empty for nothing."""
    try:
        affine, shape = read_grid(image)
    except Exception as error:  # said of the image when it is read
        logger.debug(f"{image}: {error}")
        return ""
    try:
        found, own = read_grid(prediction)
    except Exception as error:
        return f"it cannot be read, {type(error).__name__}"
    if (*shape, 1)[:3] != (*own, 1)[:3]:
        return " and ".join(" x ".join(map(str, n)) for n in (own, shape)) + " voxels"
    flat = is_picture(image) or is_picture(prediction)  # which state no place
    return "its place in space" if not flat and contradict(affine, found, shape) else ""


def voxel_type(class_names: Sequence[str], label_values: Sequence[int] | None, output_ext: str) -> type[np.generic]:
    """The type of the voxels of predictions that hold the values of the labels; says what stands for which class.

    Args:
        class_names: background first.
        label_values: of the classes; ``None``: 0, 1, 2, ...
        output_ext: ending of the predictions.

    Returns:
        ``np.uint8`` or, for values that it cannot hold, ``np.int32``.

    Raises:
        InputError: an ending that nothing here writes or reads, values that are no whole numbers of 32 bits, another
            number of them than of classes, a value twice, or one that such files cannot hold.
    """
    ending = ending_of(output_ext)
    if ending in (".jpg", ".jpeg"):
        raise InputError(f"output_ext {output_ext}: JPG changes label values; give .png for 2D images, or .nii.gz.")
    if ending not in IMAGE_SUFFIXES:
        known = ", ".join(suffix for suffix in IMAGE_SUFFIXES if suffix not in (".jpg", ".jpeg"))
        raise InputError(f"output_ext: expected one of {known}, received {output_ext!r}; give .nii.gz for volumes.")
    if label_values is None:
        label_values = list(range(len(class_names)))
    values = list(label_values) if isinstance(label_values, (list, tuple)) else label_values
    if not isinstance(values, list) or not all(isinstance(v, int) and -(2**31) <= v < 2**31 for v in values):
        raise InputError(
            f'label_values: expected whole numbers of 32 bits, "[0,255]" for instance, received {values!r}; change it, '
            "or give '$None' for 0, 1, 2, ..."
        )
    if len(values) != len(class_names) or len({*values}) < len(values):
        raise InputError(
            f"label_values: expected a value of its own for each of the {len(class_names)} classes "
            f"({', '.join(class_names)}), received {values}; change it, or give '$None' for 0, 1, 2, ..."
        )
    small = min(values) >= 0 and max(values) <= 255
    if not small and ending in (".png", ".bmp"):
        raise InputError(
            f"output_ext {output_ext}: expected label values from 0 to 255, received {values}; give .nii.gz, or "
            "--label_values '$None' for predictions of 0, 1, 2, ..."
        )
    told = ", ".join(f"{value} for {name}" for name, value in zip(class_names, values))
    logger.info(f"Predictions hold {told}.")
    return np.uint8 if small else np.int32


def check_flat(image: Tensor, output_ext: str) -> None:
    """That a prediction fits into files with an ending: MONAI would write the first slice of a volume as a picture.

    Args:
        image: as read or prepared, with the ``spatial_shape`` of its file.
        output_ext: ending of the prediction.

    Raises:
        InputError: the file has several slices and such a prediction one.
    """
    if not isinstance(image, MetaTensor) or not is_picture(output_ext):
        return
    shape = [int(n) for n in image.meta["spatial_shape"]]
    if len(shape) > 2 and shape[2] > 1:
        raise InputError(
            f"{image.meta.get('filename_or_obj')}: expected an image of one slice for predictions in {output_ext}, "
            f"received a volume of {' x '.join(map(str, shape))} voxels; give --output_ext .nii.gz."
        )


def warn_of_flips(ckpt_path: str | os.PathLike, flip_tta: bool | Sequence[int]) -> None:
    """Warn where predictions are to be averaged over flips that the network has not learnt.

    Args:
        ckpt_path: weights, or the folder of a training; its ``training.json`` may say what was flipped.
        flip_tta: see :func:`~scripts.evaluation.inferer.flip_axes`.
    """
    path, known = saved(ckpt_path)
    if (flips := known.get("flips")) and (new := [axis for axis in flip_axes(flip_tta, len(flips)) if not flips[axis]]):
        logger.warning(
            f"{path}: images were not flipped along axis {', '.join(map(str, new))} in training, but predictions are "
            f"averaged over such flips (flip_tta {flip_tta}), which can make them worse; leave flip_tta as trained."
        )


def output_name(meta: Mapping[str, Any], saver: Transform) -> dict[str, Any]:
    """What ``SaveImage`` names a prediction by: the image's name, of a DICOM folder or UID with all its dots."""
    given = default_name_formatter(dict(meta), saver)
    return {**given, "subject": _subject(given["subject"])}


def _subject(image: str) -> str:
    if os.path.isdir(image) or os.path.splitext(image)[1][1:].isdecimal():  # of a UID, or GE's number of a slice
        return f"{image}.dcm"  # MONAI cuts off what follows the last dot
    ending = next((suffix for suffix in IMAGE_SUFFIXES if image.lower().endswith(suffix)), "")
    return image[: len(image) - len(ending)] + ending  # and knows .nii.gz in small letters alone
