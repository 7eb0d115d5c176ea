"""What is different when MONAI Label runs the bundle: where images and settings come from, where the weights go.

MONAI Label trains ``train.yaml`` with lists, epochs and device of its own. Everything else it leaves to the bundle, and
that is decided here, from the environment of its processes: nothing of this takes effect elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.engines import Workflow

from ..dataio import phantom
from ..dataio.axis import direction_of
from ..dataio.datalist import read_datalist, read_images, stated
from ..dataio.files import IMAGE_SUFFIXES
from ..dataio.intensity import configured
from ..errors import InputError
from ..training.checkpoints import SETTINGS_FILE, SaveBest, save_weights, trained_intensity, trained_setting

logger = logging.getLogger("semsim")

#: Set by a MONAI Label server for itself and for the processes it trains in: a folder, or the address of an archive.
STUDIES = "MONAI_LABEL_STUDIES"
#: What a local MONAI Label datastore keeps its books in.
BOOKS = "datastore_v2.json"


def inside() -> bool:
    """Whether this process belongs to a MONAI Label server."""
    return bool(os.environ.get(STUDIES))


def setting(bundle_root: str | os.PathLike, name: str, default: Any) -> Any:
    """A setting of ``train.yaml``: ``default``, but in MONAI Label that of the weights in ``models``.

    So a training goes on from the weights that the annotator sees, with their classes, resolution and fusion.

    Args:
        bundle_root: folder of the bundle.
        name: key in ``models/training.json``.
        default: value elsewhere, and where that file does not say.
    """
    if not inside():
        return default
    if not (Path(bundle_root) / "models" / SETTINGS_FILE).is_file():
        return default
    return trained_setting(Path(bundle_root) / "models" / "model.pt", name, default)


def place(bundle_root: str | os.PathLike) -> Path:
    """Where data and results go by default: the bundle's folder; the working folder where that is installed."""
    root = Path(bundle_root)
    return Path() if "site-packages" in root.resolve().parts else root


def intensity(bundle_root: str | os.PathLike, transform: Any) -> Any:
    """The transform of intensities of ``train.yaml``; in MONAI Label that of the weights in ``models``, if they say."""
    if setting(bundle_root, "intensity", None) is None:
        return transform
    return trained_intensity(Path(bundle_root) / "models" / "model.pt", transform)


def intensity_settings(bundle_root: str | os.PathLike, window: Any = None) -> Any:
    """What :func:`intensity` takes, as data to be kept beside the weights."""
    return setting(bundle_root, "intensity", None) or configured("intensity", window)


def slice_axis(
    bundle_root: str | os.PathLike, datalist: str | os.PathLike, dataset_dir: str | os.PathLike, **options: Any
) -> str | int | None:
    """What slices are stacked along in ``train.yaml``: as the datalist says, else as most of its images suggest.

    In MONAI Label as in the weights in ``models``, else as most images of the datastore suggest.

    Args:
        bundle_root: folder of the bundle.
        datalist: JSON file.
        dataset_dir: folder that its paths are relative to.
        options: of :func:`~scripts.dataio.datalist.read_datalist`.

    Returns:
        ``R``, ``A``, ``S`` or a stored axis; ``None`` where there are no volumes.
    """
    if inside():
        known = setting(bundle_root, "slice_axis", None)
        return direction_of(unlabeled_of(os.environ[STUDIES])) if known is None else known
    if not os.path.isfile(datalist):
        return None
    known = stated(datalist, "slice_axis")
    if known is not None:
        return known
    items: list[dict[str, Any]] = []
    for key in ("training", "unlabeled"):
        with contextlib.suppress(InputError):  # whoever reads the list next names them
            items += read_datalist(datalist, dataset_dir, key, **options)
    return direction_of(items)


def dataset_dir(bundle_root: str | os.PathLike) -> str:
    """Folder of the data where none is given: the phantom's, generated on first use; in MONAI Label the bundle's."""
    return str(bundle_root) if inside() else phantom.ensure(place(bundle_root) / "data" / "phantom")


def output_dir(bundle_root: str | os.PathLike, name: str = "") -> str:
    """Folder of results where none is given: ``output``; in MONAI Label a new one below it for every training.

    Args:
        bundle_root: folder of the bundle.
        name: of a folder below ``output``.
    """
    folder = place(bundle_root) / "output" / name
    if inside():
        folder = folder / f"label_{datetime.now():%Y%m%d_%H%M%S_%f}_{os.getpid()}"
    return str(folder)


def datalist(
    datalist: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    key: str,
    **options: Any,
) -> list[dict[str, Any]]:
    """:func:`~scripts.dataio.datalist.read_datalist`; in MONAI Label the datastore's images instead.

    There the labelled images come with the request, so the list ``unlabeled`` alone has items: the images without a
    final label of a datastore on the server's disk. For an archive elsewhere the app has to give the list.
    """
    if not inside():
        return read_datalist(datalist, dataset_dir, key, **options)
    return unlabeled_of(os.environ[STUDIES]) if key == "unlabeled" else []


def images(dataset_dir: str | os.PathLike, datalist: str | os.PathLike = "", **options: Any) -> list[dict[str, Any]]:
    """:func:`~scripts.dataio.datalist.read_images`; in MONAI Label none, for every image comes with its request."""
    return [] if inside() else read_images(dataset_dir, datalist, **options)


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


class Publish:
    """Put the trained weights into ``models/model.pt`` of the bundle when a training is complete.

    Written beside the final place and renamed, so that who reads it sees the old file or the new one. The old one and
    its settings are kept in ``models_before``, not in ``models``, for MONAI Label offers every file there.
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
        best = self.best_model.path
        if best.is_file() and self.best_model.epoch:
            shutil.copyfile(best, part)
        else:
            save_weights(self.best_model.network, part)
        shutil.copyfile(self.output_dir / SETTINGS_FILE, settings)
        if (models / "model.pt").is_file():
            before = self.root / "models_before" / f"{datetime.now():%Y%m%d_%H%M%S_%f}"
            before.mkdir(parents=True)
            for name in ("model.pt", SETTINGS_FILE):
                if (models / name).is_file():
                    shutil.copy2(models / name, before / name)
            logger.info(f"{models / 'model.pt'}: kept as {before / 'model.pt'}")
        os.replace(settings, models / SETTINGS_FILE)
        os.replace(part, models / "model.pt")
        logger.info(f"{models / 'model.pt'}: new weights, of epoch {self.best_model.epoch or 'the last iteration'}")
