"""What is different when MONAI Label runs the bundle: where images come from, where the weights go.

The assembled app has ``train.json``, ``volumes.json`` and ``inference.json`` beside the YAML, which MONAI Label takes
instead: the same configuration with the entries of ``label_app/configs``, which name the functions of this module.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Workflow

from ..dataio.files import IMAGE_SUFFIXES, results_folder
from ..dataio.slice_axis import direction_of
from ..dataio.volume_grid import median_spacing
from ..errors import InputError
from ..training.settings import SETTINGS_FILE
from ..training.weights import SaveBest

logger = logging.getLogger("semsim")

#: Set by a MONAI Label server for itself and for the processes it trains in: a folder, or the address of an archive.
STUDIES = "MONAI_LABEL_STUDIES"
#: What a local MONAI Label datastore keeps its books in.
BOOKS = "datastore_v2.json"


def inside() -> bool:
    """Whether this process belongs to a MONAI Label server."""
    return bool(os.environ.get(STUDIES))


def slice_axis(trained: str | int | None, images: Sequence[Mapping[str, Any]]) -> str | int | None:
    """What slices are stacked along: as in the weights that are there, else as most images of a training suggest."""
    return direction_of(images) if trained is None else trained


def spacing(trained: Sequence[float] | None, images: Sequence[Mapping[str, Any]]) -> Sequence[float]:
    """Voxels of a 3D network in mm: as of the weights that are there, else the median of the images of a training.

    Raises:
        InputError: there are no weights, and none of the images is a volume.
    """
    found = trained or median_spacing(images)
    if found is None:
        raise InputError(
            f"{images[0]['image']}: expected a volume of several slices, as 3D needs it, and found none among the "
            "images; add volumes, or make an app without --volumes."
        )
    return found


def new_folder(bundle_root: str | os.PathLike) -> str:
    """A folder below ``output`` that no other training has."""
    return results_folder(bundle_root, f"label_{datetime.now():%Y%m%d_%H%M%S_%f}_{os.getpid()}")


def unlabeled_images() -> list[dict[str, Any]]:
    """Images without a final label of the server's datastore; for an archive elsewhere the app has to give the list."""
    return unlabeled_of(os.environ[STUDIES]) if inside() else []


def unlabeled_of(studies: str | os.PathLike) -> list[dict[str, Any]]:
    """Images without a final label of a local MONAI Label datastore.

    Args:
        studies: folder of the datastore; the address of an archive has no such images.

    Returns:
        one ``{"image": path, "stream": "unlabeled"}`` an image, sorted by name.

    Raises:
        InputError: the datastore's books cannot be read.
    """
    path = Path(studies) / BOOKS
    if "://" in str(studies) or not path.is_file():
        logger.warning(f"{studies}: no local datastore of MONAI Label ({BOOKS}); training without unlabelled images.")
        return []
    try:
        books = json.loads(path.read_text(encoding="utf-8"))
        objects: Mapping[str, Any] = books["objects"]
        folder = Path(studies) / books.get("images_dir", "")
        files = [
            folder / f"{name}{entry['image'].get('ext', '')}"
            for name, entry in objects.items()
            if "final" not in entry.get("labels", {})
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected the books of a MONAI Label datastore, could not read them ({type(error).__name__}: "
            f"{error}); stop the server, move the file elsewhere and start it again: images and labels are in files of "
            "their own, and the newest one of a label counts."
        ) from error
    images = [str(f.resolve()) for f in files if f.name.lower().endswith(IMAGE_SUFFIXES) and f.is_file()]
    return [{"image": image, "stream": "unlabeled"} for image in sorted(images)]


def keep_published(root: Path) -> None:
    """Copy the weights of a bundle and their settings into a folder of their own, before others take their place.

    It is in ``models_before``, not in ``models``, for MONAI Label offers every file there.
    """
    models = root / "models"
    if not (models / "model.pt").is_file():
        return
    before = root / "models_before" / f"{datetime.now():%Y%m%d_%H%M%S_%f}"
    before.mkdir(parents=True)
    for name in ("model.pt", SETTINGS_FILE):
        if (models / name).is_file():
            shutil.copy2(models / name, before / name)
    logger.info(f"{models / 'model.pt'}: kept as {before / 'model.pt'}")


class Publish:
    """Put the trained weights into ``models/model.pt`` of the bundle when a training is complete.

    Written beside the final place and renamed, so that who reads it sees the old file or the new one. The old one is
    kept, see :func:`keep_published`.
    """

    def __init__(self, bundle_root: str | os.PathLike, output_dir: str | os.PathLike, best_model: SaveBest) -> None:
        """
        Args:
            bundle_root: folder of the bundle.
            output_dir: of the training, with its ``training.json``.
            best_model: the weights of the best validation; those of the last iteration are taken if there was none.
        """
        self.root, self.output_dir, self.best_model = Path(bundle_root), Path(output_dir), best_model

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer, after what saves."""
        engine.add_event_handler(Events.COMPLETED, self._publish)

    def _publish(self) -> None:
        models = self.root / "models"
        models.mkdir(parents=True, exist_ok=True)
        part, settings = models / "model.new", models / f"{SETTINGS_FILE}.part"
        best, last = self.best_model.path, self.output_dir / "model_last.pt"
        shutil.copyfile(best if best.is_file() and self.best_model.epoch else last, part)
        shutil.copyfile(self.output_dir / SETTINGS_FILE, settings)
        keep_published(self.root)
        os.replace(settings, models / SETTINGS_FILE)
        os.replace(part, models / "model.pt")
        logger.info(f"{models / 'model.pt'}: new weights, of epoch {self.best_model.epoch or 'the last iteration'}")
