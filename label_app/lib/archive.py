"""Labels in a DICOM archive: segmentation objects (SEG), whose segments are numbered as they were drawn."""

from __future__ import annotations

import functools
import logging
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

logger = logging.getLogger(__name__)


class Archive(dicom.DICOMWebDatastore):
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
        label = super().save_label(*args, **kwargs)
        self._found = 0.0, {}
        return label

    def _download_labeled_data(self) -> None:
        final = DefaultLabelTag.FINAL.value
        folder = Path(self._datastore.label_path(final))
        for image, uid in self.segmentations().items():
            self.get_image_uri(image)
            if self.get_label_info(image, final).get("SeriesInstanceUID") != uid:
                for ending in (".nii.gz", ".nrrd"):  # of an earlier one, which the archive has
                    (folder / f"{image}{ending}").unlink(missing_ok=True)
                self.get_label_uri(uid, final, image)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        self._download_labeled_data()
        files = {self.get_image_uri(image) for image in self.segmentations()}
        items = [item for item in LocalDatastore.datalist(self) if Path(item["label"]).is_file()]
        return [item for item in items if item["image"] in files]


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
