"""A DICOM archive for tests: a DICOMweb server of CT series and their segmentations, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from label_server import assemble
from lib import archive
from monailabel.datastore import dicom
from monailabel.datastore.utils import convert
from monailabel.interfaces import app
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from segments import SHAPE, turned, write


def series(folder: Path) -> None:
    """A CT of the shape and grid of the other images."""
    folder.mkdir(parents=True)
    study, frame = generate_uid(), generate_uid()
    for number in range(SHAPE[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset(str(folder / f"{number}.dcm"), {}, file_meta=meta, preamble=b"\0" * 128)
        values = {
            "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID, "Modality": "CT",
            "SeriesInstanceUID": folder.name, "StudyInstanceUID": study, "FrameOfReferenceUID": frame,
            "InstanceNumber": number + 1, "PatientID": "p", "PatientName": "p", "PatientBirthDate": "",
            "PatientSex": "", "StudyID": "1", "StudyDate": "", "StudyTime": "", "AccessionNumber": "",
            "ReferringPhysicianName": "", "SeriesNumber": 1, "Rows": SHAPE[1], "Columns": SHAPE[0],
            "PixelSpacing": [1, 1], "SliceThickness": 2, "ImagePositionPatient": [0, 0, 2 * number],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
            "SamplesPerPixel": 1, "PixelRepresentation": 1, "PhotometricInterpretation": "MONOCHROME2",
            "PixelData": np.random.default_rng(number).integers(0, 99, SHAPE[1::-1]).astype(np.int16).tobytes(),
        }  # fmt: skip
        for key, value in values.items():
            setattr(slice_, key, value)
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.save_as(folder / f"{number}.dcm", write_like_original=False)


class Archive:
    """A DICOMweb server with one CT and its segmentations."""

    base_url = "https://archive.example.org"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _first(self, uid: str) -> Dataset:
        return pydicom.dcmread(sorted((self.folder / uid).iterdir())[0])

    def search_for_series(self, search_filters: dict) -> list[dict]:
        found = [self._first(path.name) for path in sorted(self.folder.iterdir())]
        for key, value in search_filters.items():
            found = [ds for ds in found if ds[key].value == value]
        return [ds.to_json_dict() for ds in found]

    def retrieve_series_metadata(self, study: str, uid: str) -> list[dict]:
        return [self._first(uid).to_json_dict(bulk_data_threshold=10**9)]

    def retrieve_series(self, study: str, uid: str, media_types: object = None) -> list[Dataset]:
        return [pydicom.dcmread(path) for path in sorted((self.folder / uid).iterdir())]


def add_segmentation(pacs: Path, ct: str, array: np.ndarray, names: list[str], day: str) -> str:
    """Store a SEG of a CT, its segments numbered in the order of their names here; returns its series."""
    file = write(pacs.parent / "seg.nii.gz", array)
    info = [{"name": name} for name in names]
    made = pydicom.dcmread(convert.nifti_to_dicom_seg(str(pacs / ct), str(file), info, use_itk=False))
    made.ContentDate = day
    (pacs / made.SeriesInstanceUID).mkdir()
    made.save_as(pacs / made.SeriesInstanceUID / "seg.dcm")
    return made.SeriesInstanceUID


def in_archive(pacs: Path, cache: str):
    return app.DICOMWebDatastore(Archive(pacs), {"Modality": "CT"}, str(pacs.parent / cache))


def counted(search, number: int):
    """A search that says how many files a series has, as many archives do."""

    def call(self: Archive, search_filters: dict) -> list[dict]:
        return [{**ds, "00201209": {"vr": "IS", "Value": [number]}} for ds in search(self, search_filters)]

    return call


def alone(datastore):
    """A datastore whose watch has ended, which would look at the folder at times of its own."""
    datastore._observer.stop()
    datastore._observer.join()
    return datastore


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return assemble(tmp_path_factory.mktemp("archive") / "app", class_names=["liver", "tumour"]) / "model" / "semsim"


@pytest.fixture
def pacs(bundle, tmp_path, monkeypatch):
    """An archive's folder with two CTs, one of them with a segmentation of other organs."""
    monkeypatch.setattr(dicom, "dicom_to_nifti", dicom.dicom_to_nifti)  # restored afterwards
    monkeypatch.setattr(app, "DICOMWebDatastore", app.DICOMWebDatastore)
    monkeypatch.setattr(convert, "itk_image_to_dicom_seg", convert.itk_image_to_dicom_seg)
    monkeypatch.setattr(
        dicom.DICOMwebClientX, "_decode_multipart_message", dicom.DICOMwebClientX._decode_multipart_message
    )
    archive.install(bundle, server=True)
    for ct in ("1.2.1", "1.2.2"):
        series(tmp_path / "pacs" / ct)
        add_segmentation(tmp_path / "pacs", ct, turned(), ["lung", "rib"], "20300101")
    return tmp_path / "pacs"
