"""Labels in a DICOM archive: segmentation objects (SEG), whose segments are numbered as they were drawn."""

from __future__ import annotations

import functools
import logging
import os
import shutil
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
        items = []
        for image, uid in self.segmentations().items():
            file = Path(self._datastore.image_path()) / f"{image}.nii.gz"
            if not file.is_file():
                self.get_image_uri(image)
            if label := self._converted(uid):
                items.append({"image": os.path.realpath(file), "label": os.path.realpath(label)})
        return items

    def _converted(self, uid: str) -> Path | None:
        """The file of a segmentation, numbered by name; none where it could not be read."""
        file = Path(self._datastore_path) / "segmentations" / f"{uid}.nrrd"
        if not file.is_file():
            folder = Path(self._datastore.label_path(DefaultLabelTag.FINAL.value)) / uid
            if not folder.is_dir() or not any(folder.iterdir()):
                dicom.dicom_web_download_series(None, uid, str(folder), self._client, self._fetch_by_frame)
            made = dicom.dicom_to_nifti(str(folder), is_seg=True)
            if not made:
                return None
            file.parent.mkdir(exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            shutil.move(made, part)
            os.replace(part, file)
        return file


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
