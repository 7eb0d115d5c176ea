"""Labels in a DICOM archive: segmentation objects (SEG), whose segments are numbered as they were drawn."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pydicom
from monailabel.config import settings
from monailabel.datastore import dicom
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces import app
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from pydicom.dataset import Dataset

from lib import bundles
from lib.labels import by_name
from lib.studies import locked

logger = logging.getLogger(__name__)


class _Books(LocalDatastore):
    """What a copy of an archive holds; the watch over its folder empties and fills these books anew."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.mutex = threading.RLock()
        super().__init__(*args, **kwargs)


for _name in (
    "add_image", "save_label", "get_image_info", "get_label_info", "update_image_info", "update_label_info",
    "refresh", "_on_modify_event",
):  # fmt: skip
    setattr(_Books, _name, locked(getattr(LocalDatastore, _name)))


class Archive(dicom.DICOMWebDatastore, _Books):
    """MONAI Label's datastore of an archive, for which the newest segmentation of an image is its label.

    MONAI Label's takes every one, of whatever organs, and keeps the one that it has stored itself.
    """

    #: Folder of the bundle with the classes.
    bundle = Path()
    _found: tuple[float, dict[str, str]] = (0.0, {})

    def segmentations(self) -> dict[str, str]:
        """Series of the newest segmentation whose segments are classes, by the series of its image."""
        until, found = self._found
        if time.monotonic() < until:
            return found
        classes = {name.lower() for name in bundles.class_names(self.bundle)}
        newest: dict[str, tuple[str, str]] = {}
        images = set(self.list_images())
        for listed in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            series = Dataset.from_json(listed)
            uid = str(series.SeriesInstanceUID)
            seg = Dataset.from_json(self._client.retrieve_series_metadata(str(series.StudyInstanceUID), uid)[0])
            image = next((str(part.SeriesInstanceUID) for part in seg.get("ReferencedSeriesSequence") or []), "")
            names = [entry["name"] for entry in _segments(seg)]
            if image in images and names and {name.strip().lower() for name in names} <= classes:
                newest[image] = max(newest.get(image, ("", "")), (_written(seg), uid))
            elif image in images:
                shown = ", ".join(names)
                logger.warning(f"Left out of the training: segmentation {uid} of the archive: no classes ({shown}).")
        found = {image: uid for image, (_, uid) in newest.items()}
        self._found = time.monotonic() + settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY, found
        return found

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return list(self.segmentations())

    def save_label(self, *args: Any, **kwargs: Any) -> str:
        try:
            return super().save_label(*args, **kwargs)
        finally:
            self._found = 0.0, {}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """From the files, for the books of the copy change under a reader: its watch and the server write them."""
        found = [(self.get_image_uri(image), self._label(uid)) for image, uid in self.segmentations().items()]
        return [{"image": image, "label": label} for image, label in found if image and label]

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image, or its folder; "" where the archive has no such series."""
        folder = Path(self._datastore.image_path()).resolve() / image_id
        file = folder.with_name(f"{image_id}.nii.gz")
        if not self._convert_to_nifti:
            return str(folder) if self._fetch(image_id, folder) else ""
        if not file.is_file():
            if not self._fetch(image_id, folder):
                return ""
            _put(dicom.dicom_to_nifti(str(folder)), file)
            self.refresh()
            with contextlib.suppress(
                ImageNotFoundException
            ):  # where the server, which keeps the books, has not seen it
                self.update_image_info(image_id, self._dicom_info(image_id))
        return str(file)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The file of a label, by its image or, as MONAI Label asks, by its series; "" where there is none."""
        if label_tag != DefaultLabelTag.FINAL:
            return LocalDatastore.get_label_uri(self, label_id, label_tag)
        return self._label(self.segmentations().get(label_id, label_id))

    def _label(self, uid: str) -> str:
        """The file of a segmentation, numbered by name; "" where there is none, or none that can be read."""
        file = Path(self._datastore_path).resolve() / "segmentations" / f"{uid}.nrrd"
        if not file.is_file():
            folder = Path(self._datastore.label_path(DefaultLabelTag.FINAL.value)) / uid
            made = dicom.dicom_to_nifti(str(folder), is_seg=True) if self._fetch(uid, folder) else None
            if not made:
                return ""
            file.parent.mkdir(exist_ok=True)
            _put(made, file)
        return str(file)

    def _fetch(self, uid: str, folder: Path) -> bool:
        """Download a series whole or not at all; whether the archive has it.

        Raises:
            ValueError: in one line, it sent fewer files than it says that the series has.
        """
        if folder.is_dir() and any(folder.iterdir()):
            return True
        listed = self._client.search_for_series(search_filters={"SeriesInstanceUID": uid})
        if not listed:
            return False
        with tempfile.TemporaryDirectory(prefix=".download_", dir=self._datastore_path) as part:
            whole = Path(part) / uid
            dicom.dicom_web_download_series(None, uid, str(whole), self._client, self._fetch_by_frame)
            expected = Dataset.from_json(listed[0]).get("NumberOfSeriesRelatedInstances") or 1
            if (received := len(list(whole.iterdir()))) < expected:
                raise ValueError(
                    f"{uid}: expected the {expected} files that the archive says this series has, received {received}; "
                    "try again, or look into the archive."
                )
            try:
                whole.rename(folder)
            except OSError:  # another was faster
                if not any(folder.iterdir()):
                    raise
        return True


def _put(made: str, file: Path) -> None:
    """Move a file to where others look for it, at once."""
    part = file.with_name(f".{os.getpid()}_{threading.get_ident()}_{file.name}.part")
    shutil.move(made, part)
    os.replace(part, file)


def install(bundle: Path) -> None:
    """Have MONAI Label make an :class:`Archive`, and number the segments that it reads by name.

    It gives them their numbers in the file as values; OHIF numbers them by the alphabet.

    Args:
        bundle: folder of the bundle with the classes.
    """
    app.DICOMWebDatastore = type("Archive", (Archive,), {"bundle": bundle})
    original = getattr(dicom.dicom_to_nifti, "original", dicom.dicom_to_nifti)

    @functools.wraps(original)
    def converted(series_dir: str, is_seg: bool = False) -> Any:
        if not is_seg:
            return original(series_dir)
        folder = Path(series_dir)
        try:
            first = next(path for path in sorted(folder.iterdir()) if path.is_file())
            file = original(series_dir, is_seg=True)
            by_name(bundle, Path(file), _segments(pydicom.dcmread(first, stop_before_pixels=True)))
            return file
        except Exception as error:
            logger.warning(f"Left out of the training: segmentation {folder.name} of the archive: {error}")
            return None

    converted.original = original  # type: ignore[attr-defined]
    dicom.dicom_to_nifti = converted


def _segments(seg: Dataset) -> list[dict[str, Any]]:
    """Name and number of each segment, in the order of the numbers."""
    named = [{"name": str(s.SegmentLabel), "idx": int(s.SegmentNumber)} for s in seg.get("SegmentSequence") or []]
    return sorted(named, key=lambda entry: entry["idx"])


def _written(seg: Dataset) -> str:
    """When a segmentation was written, in a form that sorts; empty where it does not say."""
    for kind in ("Content", "Series", "InstanceCreation"):
        if day := seg.get(f"{kind}Date"):
            return f"{day}{seg.get(f'{kind}Time') or ''}"
    return ""
