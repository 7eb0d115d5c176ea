"""Labels in a DICOM archive: segmentation objects (SEG), whose segments are numbered as they were drawn."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pydicom
from monailabel.datastore import dicom

from lib import bundles
from lib.labels import by_name

logger = logging.getLogger(__name__)


def number_segments(bundle: Path) -> None:
    """Have MONAI Label's datastore of an archive number segments by name, and leave out what is no label of this app.

    It takes every segmentation of an image for its label, with the numbers of the segments as values: those of OHIF are
    in alphabetical order, and those of other programs of other organs.

    Args:
        bundle: folder of the bundle with the classes.
    """
    original = getattr(dicom.dicom_to_nifti, "original", dicom.dicom_to_nifti)

    @functools.wraps(original)
    def converted(series_dir: str, is_seg: bool = False) -> Any:
        if not is_seg:
            return original(series_dir)
        try:
            segments = segments_of(Path(series_dir))
            file = original(series_dir, is_seg=True)
            by_name(Path(file), segments, bundles.class_names(bundle))
            return file
        except Exception as error:
            series = Path(series_dir).name
            logger.warning(f"Left out of the training: segmentation {series} of the archive: {error}")
            return None

    converted.original = original  # type: ignore[attr-defined]
    dicom.dicom_to_nifti = converted


def segments_of(series: Path) -> list[dict[str, Any]]:
    """Name and number of each segment of the segmentation object in a folder."""
    file = next(path for path in sorted(series.iterdir()) if path.is_file()) if series.is_dir() else series
    segments = pydicom.dcmread(file, stop_before_pixels=True).SegmentSequence
    named = [{"name": str(segment.SegmentLabel), "idx": int(segment.SegmentNumber)} for segment in segments]
    return sorted(named, key=lambda entry: entry["idx"])
