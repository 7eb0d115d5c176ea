"""Labels in a DICOM archive: segmentation objects (SEG), whose segments are numbered as they were drawn."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
import requests
from monailabel.config import settings
from monailabel.datastore import dicom
from monailabel.datastore.local import LocalDatastore
from monailabel.datastore.utils import convert
from monailabel.interfaces import app
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from pydicom.dataset import Dataset

from lib import bundles
from lib.labels import by_name, present
from lib.names import refuse
from lib.studies import Books, labelled, locked, replaces_none

logger = logging.getLogger(__name__)

#: Seconds until the archive is asked again which images and segmentations it has.
SECONDS = 30
#: Seconds that the archive has to begin an answer, as from slow storage, to a request that is sent five times.
PATIENCE = 180
#: What is said where the tool for it is missing or has failed.
NOT_MADE = "itkimage2segimage has made no DICOM segmentation of it; the server's log says why."
#: Seconds after which a download belongs to a process that was killed.
ABANDONED = 24 * 3600


class _Copy(Books):
    """What the copy of an archive holds; the watch over its folder empties and fills these books anew."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.mutex = threading.RLock()
        super().__init__(*args, **kwargs)


for _name in (
    "save_label", "get_image_info", "get_label_uri", "get_label_info", "get_labels_by_image_id", "update_image_info",
    "update_label_info", "json", "refresh", "_on_modify_event",
):  # fmt: skip
    setattr(_Copy, _name, locked(getattr(LocalDatastore, _name)))


class Archive(dicom.DICOMWebDatastore, _Copy):
    """MONAI Label's datastore of an archive, for which the newest segmentation of an image is its label.

    MONAI Label's takes every one, of whatever organs, and keeps the one that it has stored itself.
    """

    #: Folder of the bundle with the classes.
    bundle = Path()
    _found: tuple[float, dict[str, str]] = (0.0, {})
    _images: tuple[float, dict[str, int]] = (0.0, {})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: of each segmentation its image, the names of its segments and when it was written
        self._read: dict[str, tuple[str, list[str], str]] = {}
        super().__init__(*args, **kwargs)
        self._handler.on_moved = self._on_moved_event
        if session := getattr(self._client, "_session", None):  # which would wait for ever
            session.request = functools.partial(session.request, timeout=PATIENCE)
        for part in Path(self._datastore_path).glob(".download_*"):
            with contextlib.suppress(OSError):
                if self.server and part.stat().st_mtime < time.time() - ABANDONED:
                    shutil.rmtree(part)

    def _on_moved_event(self, event: Any) -> None:
        """Downloads are renamed into place, in this process or another; so are the books, which are no news."""
        if event.dest_path != self._datastore_config_path:
            self._on_any_event(event)

    def list_images(self) -> list[str]:
        return list(self._sizes())

    def _sizes(self) -> dict[str, int]:
        """Number of files of each image, 0 where the archive does not say."""
        until, sizes = self._images
        if time.monotonic() < until:
            return sizes
        listed = [Dataset.from_json(one) for one in self._client.search_for_series(search_filters=self._search_filter)]
        sizes = {str(one.SeriesInstanceUID): int(one.get("NumberOfSeriesRelatedInstances") or 0) for one in listed}
        if not sizes and (sizes != self._images[1] or not until):
            logger.warning(
                f"{self.name()}: no series of images with {json.dumps(self._search_filter)}; for others set "
                'MONAI_LABEL_DICOMWEB_SEARCH_FILTER, for MR to {"Modality": "MR"}.'
            )
        self._images = _until(), sizes
        return sizes

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
            told = uid in self._read
            image, names, written = self._about(str(series.StudyInstanceUID), uid)
            if image in images and names and {name.strip().lower() for name in names} <= classes:
                newest[image] = max(newest.get(image, ("", "")), (written, uid))
            elif image in images and not told:
                shown = ", ".join(names)
                logger.warning(f"Left out of the training: segmentation {uid} of the archive: no classes ({shown}).")
        found = {image: uid for image, (_, uid) in newest.items()}
        self._found = _until(), found
        return found

    def _about(self, study: str, uid: str) -> tuple[str, list[str], str]:
        """What a segmentation says of itself; the archive is asked once."""
        if uid not in self._read:
            seg = Dataset.from_json(self._client.retrieve_series_metadata(study, uid)[0])
            image = next((str(part.SeriesInstanceUID) for part in seg.get("ReferencedSeriesSequence") or []), "")
            self._read[uid] = image, [entry["name"] for entry in _segments(seg)], _written(seg)
        return self._read[uid]

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return list(self.segmentations())

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        if replaces_none(label_info, label_tag):
            self._found = 0.0, {}  # the archive is asked again: somebody may have stored a label meanwhile
            if image_id in self.segmentations():
                raise labelled(image_id)
        if label_tag == DefaultLabelTag.FINAL and not label_info.get("label_info"):  # a prediction
            label_info = {**label_info, "label_info": present(self.bundle, Path(label_filename))}
        try:
            return super().save_label(image_id, label_filename, label_tag, label_info, label_id)
        except FileNotFoundError as error:
            raise refuse(f"{image_id}: {NOT_MADE}", 500) from error
        finally:
            self._found = 0.0, {}

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        raise refuse(f"{image_id}: the studies are an archive; send images to the archive itself.")

    def remove_image(self, image_id: str) -> None:
        raise refuse(f"{image_id}: the studies are an archive; remove images there.")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        if label_tag == DefaultLabelTag.FINAL:
            raise refuse(f"{label_id}: the studies are an archive; remove segmentations there.")
        super().remove_label(label_id, label_tag)

    def status(self) -> dict[str, Any]:
        entries = self.json()["objects"].values()
        tags = collections.Counter(tag for entry in entries for tag in entry["labels"])
        total, completed = len(self.list_images()), len(self.get_labeled_images())
        return {"total": total, "completed": completed, "label_tags": dict(tags)}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """From the files, for the books of the copy change under a reader: its watch and the server write them."""
        found = [(self.get_image_uri(image), self._label(image, uid)) for image, uid in self.segmentations().items()]
        return [{"image": image, "label": label} for image, label in found if image and label]

    def get_image_uri(self, image_id: str) -> str:
        """The file of an image, or its folder; "" where the archive has no such series.

        Raises:
            InputError: it is no image, or the archive has not sent all of it.
        """
        folder = Path(self._datastore.image_path()).resolve() / image_id
        file = folder.with_name(f"{image_id}.nii.gz")
        size = self._sizes().get(image_id, 0)
        with self.mutex:
            if folder.is_dir() and len(list(folder.iterdir())) < size:  # the archive had only a part of it
                file.unlink(missing_ok=True)
                shutil.rmtree(folder)
        if not self._convert_to_nifti:
            return str(folder) if self._fetch(image_id, folder) else ""
        if not file.is_file():
            if not self._fetch(image_id, folder):
                return ""
            try:
                made = dicom.dicom_to_nifti(str(folder))
            except RuntimeError as error:
                raise self._error(f"{image_id}: expected a series of images, could not read it.") from error
            _put(made, file)
        if image_id not in self._datastore.objects:  # the watch has not noticed it yet
            self.refresh()
            # not known yet to a process that reads the server's books
            with contextlib.suppress(ImageNotFoundException):
                self.update_image_info(image_id, self._dicom_info(image_id))
        return str(file)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The file of a label, by its image; "" where there is none."""
        if label_tag != DefaultLabelTag.FINAL:
            return _Copy.get_label_uri(self, label_id, label_tag)
        uid = self.segmentations().get(label_id)
        return self._label(label_id, uid) if uid else ""

    def _label(self, image: str, uid: str) -> str:
        """The file of a segmentation, called like its image and numbered by name; "" where none can be read.

        Apps with other classes share the copy of an archive.
        """
        classes = zlib.crc32(json.dumps(bundles.class_names(self.bundle)).encode())
        file = Path(self._datastore_path).resolve() / "segmentations" / f"{classes:08x}" / uid / f"{image}.nrrd"
        if not file.is_file():
            folder = Path(self._datastore.label_path(DefaultLabelTag.FINAL.value)) / uid
            made = dicom.dicom_to_nifti(str(folder), is_seg=True) if self._fetch(uid, folder) else None
            if not made:
                return ""
            file.parent.mkdir(parents=True, exist_ok=True)
            _put(made, file)
        return str(file)

    def _error(self, message: str) -> ValueError:
        error: ValueError = bundles.module(self.bundle, "errors").InputError(message)
        return error

    def _fetch(self, uid: str, folder: Path) -> bool:
        """Download a series whole or not at all; whether the archive has it.

        Raises:
            InputError: it sends none of the files, or fewer than it says that the series has.
        """
        if folder.is_dir() and any(folder.iterdir()):
            return True
        listed = self._client.search_for_series(search_filters={"SeriesInstanceUID": uid})
        if not listed:
            return False
        with tempfile.TemporaryDirectory(prefix=".download_", dir=self._datastore_path) as part:
            whole = Path(part) / uid
            try:
                dicom.dicom_web_download_series(None, uid, str(whole), self._client, self._fetch_by_frame)
            except requests.HTTPError as error:
                self._fetch_as_stored(Dataset.from_json(listed[0]), whole, error)
            expected = Dataset.from_json(listed[0]).get("NumberOfSeriesRelatedInstances") or 1
            if (received := len(list(whole.iterdir()))) < expected:
                raise self._error(
                    f"{uid}: expected the {expected} files that the archive says this series has, received {received}; "
                    "try again, or look into the archive."
                )
            try:
                whole.rename(folder)
            except OSError:  # another was faster
                if not any(folder.iterdir()):
                    raise
        return True

    def _fetch_as_stored(self, series: Dataset, folder: Path, error: requests.HTTPError) -> None:
        """Download a series that the archive cannot decompress, in whatever form it has it.

        Args:
            series: as the archive lists it.
            folder: for the files.
            error: what the archive has answered when it was asked for files without compression.
        """
        status = error.response.status_code if error.response is not None else 0
        if status < 500 and status != requests.codes.not_acceptable:
            raise error
        uid = str(series.SeriesInstanceUID)
        try:
            files = self._client.retrieve_series(
                str(series.StudyInstanceUID), uid, media_types=(("application/dicom", "*"),)
            )
        except requests.HTTPError:
            raise self._error(
                f"{uid}: the archive answers {status} where it is asked for this series; its log may say why."
            ) from error
        folder.mkdir(exist_ok=True)
        for file in files:
            file.save_as(folder / f"{file.SOPInstanceUID}.dcm")


def _until() -> float:
    """When the archive is asked again."""
    return time.monotonic() + min(SECONDS, settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY)


def _put(made: str, file: Path) -> None:
    """Move a file to where others look for it, at once."""
    part = file.with_name(f".{os.getpid()}_{threading.get_ident()}_{file.name}.part")
    shutil.move(made, part)
    os.replace(part, file)


def install(bundle: Path, *, server: bool) -> None:
    """Have MONAI Label make an :class:`Archive`, and number the segments that it reads by name.

    It gives them their numbers in the file as values; OHIF numbers them by the alphabet.

    Args:
        bundle: folder of the bundle with the classes.
        server: whether this is the server, which alone writes the books.
    """
    app.DICOMWebDatastore = type("Archive", (Archive,), {"bundle": bundle, "server": server})
    client = dicom.DICOMwebClientX
    client._decode_multipart_message = _to_the_end(_original(client._decode_multipart_message))
    convert.itk_image_to_dicom_seg = _in_utc(_original(convert.itk_image_to_dicom_seg))
    original = _original(dicom.dicom_to_nifti)

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


def _original(function: Any) -> Any:
    """The function that stood here before this file's took its place."""
    return getattr(function, "original", function)


def _to_the_end(original: Any) -> Any:
    """Of MONAI Label's client: an answer of unknown length that breaks off is none.

    Its last file would be short, and have noise in the place of its last pixels.
    """

    @functools.wraps(original)
    def decode(self: Any, response: requests.Response, stream: bool) -> Iterator[bytes]:
        boundary = re.search(r'boundary="?([^";]+)', response.headers.get("content-type", ""))
        told = {"content-length", "transfer-encoding"} & {name.lower() for name in response.headers}
        if boundary and not stream and not told and f"--{boundary[1]}--".encode() not in response.content:
            raise requests.ConnectionError("the answer breaks off", request=response.request)
        found: Iterator[bytes] = original(self, response, stream)
        return found

    decode.original = original  # type: ignore[attr-defined]
    return decode


def _in_utc(original: Any) -> Any:
    """Of MONAI Label's segmentations: written at the time in UTC, as those of OHIF are; the tool says the local time.

    The newest of both counts.
    """

    @functools.wraps(original)
    def made(label: str, series_dir: str, template: dict[str, Any]) -> str:
        file: str = original(label, series_dir, template)
        if os.path.isfile(file):
            seg, now = pydicom.dcmread(file), datetime.now(UTC)
            seg.ContentDate = seg.SeriesDate = f"{now:%Y%m%d}"
            seg.ContentTime = seg.SeriesTime = f"{now:%H%M%S.%f}"
            seg.save_as(file)
        return file

    made.original = original  # type: ignore[attr-defined]
    return made


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
