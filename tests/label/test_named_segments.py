"""A label means what its segments are called, wherever it comes from: Slicer's files, other apps, DICOM archives."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from fastapi import HTTPException
from label_server import assemble
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "label_app"))

from lib import archive, labels, names
from lib.active import KEYS, Scores
from lib.studies import Studies
from lib.train import SemiSupervised
from monailabel.config import settings
from monailabel.datastore import dicom
from monailabel.datastore.utils import convert
from monailabel.interfaces import app

LIVER, TUMOUR = 1, 2
GRID = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (20, 20, 4)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return assemble(tmp_path_factory.mktemp("names") / "app", class_names=["liver", "tumour"]) / "model" / "semsim"


def truth() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:8, 2:8], label[12:15, 12:15] = LIVER, TUMOUR
    return label


def turned() -> np.ndarray:
    return np.choose(truth(), [0, 2, 1]).astype(np.uint8)


def write(path: Path, array: np.ndarray, names: dict[int, str] | None = None) -> Path:
    """A label, in Slicer's ``.nrrd`` with the names of its segments."""
    if path.suffix != ".nrrd":
        nib.save(nib.Nifti1Image(array, GRID), path)
        return path
    image = itk.image_from_array(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([1, 1, 2])
    itk.imwrite(image, str(path))
    header, _, voxels = path.read_bytes().partition(b"\n\n")
    for number, (value, name) in enumerate((names or {}).items()):
        header += f"\nSegment{number}_LabelValue:={value}\nSegment{number}_Name:={name}".encode()
    path.write_bytes(header + b"\n\n" + voxels)
    return path


def read(path: str) -> np.ndarray:
    return itk.array_from_image(itk.imread(path)).transpose(2, 1, 0)


@pytest.fixture
def studies(tmp_path):
    final = tmp_path / "studies" / "labels" / "final"
    final.mkdir(parents=True)
    for name in "abc":
        write(tmp_path / "studies" / f"{name}.nii.gz", np.random.default_rng(0).random(SHAPE).astype(np.float32))
    return final


def opened(final: Path) -> Studies:
    options = {"extensions": settings.MONAI_LABEL_DATASTORE_FILE_EXT, "read_only": False}
    return Studies(str(final.parents[1]), server=True, auto_reload=False, **options)


def fetched(bundle: Path, datastore: Studies, copies: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """What a training learns from, by image, and what it leaves out."""
    task = SemiSupervised(str(bundle), {})
    task.copies = copies
    items = task._fetch_datalist({"model": "semsim"}, datastore)
    return {Path(item["image"]).name.split(".")[0]: read(item["label"]) for item in items}, sorted(task.left_out)


def test_segmentations_of_slicer_among_the_final_labels(bundle, studies, tmp_path):
    """Under either ending, and none of them is changed; one beside the images is no image."""
    order = {1: "Tumour", 2: "Liver"}
    files = [write(studies / name, turned(), order) for name in ("a.nrrd", "b.seg.nrrd")]
    write(studies.parents[1] / "c.seg.nrrd", turned(), order)
    before = [file.read_bytes() for file in files]
    datastore = opened(studies)
    assert sorted(datastore.list_images()) == ["a", "b", "c"] and datastore.get_unlabeled_images() == ["c"]
    learnt, left_out = fetched(bundle, datastore, tmp_path)
    assert sorted(learnt) == ["a", "b"] and left_out == []
    assert all(np.array_equal(label, truth()) for label in learnt.values())
    assert [file.read_bytes() for file in files] == before
    datastore.save_label("b", str(write(tmp_path / "b.nii.gz", truth())), "final", {})
    assert not files[1].exists() and list((studies.parents[1] / "labels_before" / "final").glob("b_*.seg.nrrd"))


def test_labels_of_an_app_with_other_classes(bundle, studies, tmp_path):
    """What the books say of a label counts, unless the file has changed since."""
    for name in "abc":
        write(studies / f"{name}.nii.gz", turned())
    datastore = opened(studies)
    told = [{"name": "tumour", "idx": 1}, {"name": "liver", "idx": 2}]
    datastore.update_label_info("a", "final", {"label_info": told})
    datastore.update_label_info("b", "final", {"label_info": [told[0], {"name": "cyst", "idx": 2}]})
    datastore.update_label_info("c", "final", {"label_info": told, "ts": 1_000_000})
    learnt, left_out = fetched(bundle, datastore, tmp_path)
    assert list(learnt) == ["a"] and np.array_equal(learnt["a"], truth())
    assert len(left_out) == 2 and "b.nii.gz" in left_out[0] and "cyst" in left_out[0]
    assert "c.nii.gz" in left_out[1] and "1 tumour, 2 liver" in left_out[1]


def test_files_that_would_be_passed_over(bundle, studies, tmp_path):
    """A label of no image is named; the newest file of a label counts; an ending may occur within a name."""
    write(studies / "a.nii.gz", turned())
    write(studies / "a_seg.nii.gz", truth())
    write(studies.parents[1] / "d.nii.gz.nii.gz", np.ones(SHAPE, np.float32))
    (studies.parents[1] / "notes.xml").write_text("<a/>")  # MONAI Label takes it for an image of a whole slide
    datastore = opened(studies)
    assert sorted(datastore.list_images()) == ["a", "b", "c", "d.nii.gz"]
    assert Path(datastore.get_image_uri("d.nii.gz")).is_file()
    newer = write(studies / "a.nrrd", truth())
    os.utime(newer, ns=(1, (studies / "a.nii.gz").stat().st_mtime_ns + 1))
    datastore.refresh()
    learnt, left_out = fetched(bundle, datastore, tmp_path)
    assert np.array_equal(learnt["a"], truth())
    assert len(left_out) == 1 and "a_seg.nii.gz" in left_out[0]


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

    def retrieve_series(self, study: str, uid: str) -> list[Dataset]:
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


@pytest.fixture
def pacs(bundle, tmp_path, monkeypatch):
    """An archive's folder with two CTs, one of them with a segmentation of other organs."""
    monkeypatch.setattr(dicom, "dicom_to_nifti", dicom.dicom_to_nifti)  # restored afterwards
    monkeypatch.setattr(app, "DICOMWebDatastore", app.DICOMWebDatastore)
    archive.install(bundle)
    for ct in ("1.2.1", "1.2.2"):
        series(tmp_path / "pacs" / ct)
        add_segmentation(tmp_path / "pacs", ct, turned(), ["lung", "rib"], "20300101")
    return tmp_path / "pacs"


def in_archive(pacs: Path, cache: str):
    return app.DICOMWebDatastore(Archive(pacs), {"Modality": "CT"}, str(pacs.parent / cache))


def test_segmentations_of_an_archive(bundle, pacs, caplog):
    """OHIF numbers its segments by the alphabet; a segmentation of other organs is no label."""
    ct = "1.2.1"
    add_segmentation(pacs, ct, turned(), ["tumour", "liver"], "20200101")
    datastore = in_archive(pacs, "cache")
    assert datastore.get_unlabeled_images() == ["1.2.2"]
    (item,) = datastore.datalist()
    assert ct in item["image"] and np.array_equal(read(item["label"]), truth())
    assert "lung" in caplog.text and "Left out" in caplog.text
    task = SemiSupervised(str(bundle), {})
    task.copies = pacs
    assert len(task._fetch_datalist({"model": "semsim"}, datastore)) == 1

    # a score counts once the books have the image, which another process may have fetched
    datastore._observer.stop()
    datastore._observer.join()
    scores, known = Scores(bundle, "https://archive.example.org"), datastore._datastore.objects
    scores._write({ct: {KEYS["entropy"]: 0.5}})
    gone = known.pop(ct)
    scores.enter(datastore)
    known[ct] = gone
    scores.enter(datastore)
    assert datastore.get_image_info(ct)[KEYS["entropy"]] == 0.5


def test_the_newest_segmentation_counts(pacs, monkeypatch):
    """A correction in OHIF of what was submitted in Slicer; and a submitted label is known at once."""
    datastore, ct = in_archive(pacs, "cache"), "1.2.1"
    assert datastore.datalist() == [] and sorted(datastore.get_unlabeled_images()) == [ct, "1.2.2"]

    def store(folder: str, label: str, info: list[dict]) -> str:
        uid = add_segmentation(pacs, ct, read(label), [entry["name"] for entry in info], "20200101")
        monkeypatch.setattr(dicom, "dicom_web_upload_dcm", lambda file, client: uid)
        (pacs.parent / "made.dcm").touch()
        return str(pacs.parent / "made.dcm")

    monkeypatch.setattr(dicom, "nifti_to_dicom_seg", store)
    file = write(pacs.parent / "mine.nii.gz", np.where(truth() == LIVER, LIVER, 0).astype(np.uint8))
    datastore.save_label(ct, str(file), "final", {"label_info": [{"name": "liver", "idx": 1}]})
    assert datastore.get_unlabeled_images() == ["1.2.2"]
    (item,) = datastore.datalist()
    assert set(np.unique(read(item["label"]))) == {0, LIVER}
    add_segmentation(pacs, ct, turned(), ["tumour", "liver"], "20210101")
    add_segmentation(pacs, ct, np.flip(turned()), ["tumour", "liver"], "20190101")
    for other in (in_archive(pacs, "cache"), in_archive(pacs, "another")):
        for _ in range(2):
            (item,) = other.datalist()
            assert np.array_equal(read(item["label"]), truth())
            with other.mutex:
                other._datastore.objects.clear()  # as the watch over the folder does before it fills the books anew


def test_a_download_that_breaks_off(pacs, monkeypatch):
    """What came of it is no image: the slices that are missing would be missing for good."""
    datastore, download, ct = in_archive(pacs, "cache"), dicom.dicom_web_download_series, "1.2.1"

    def broken(study: str | None, uid: str, folder: str, *others: object) -> None:
        download(study, uid, folder, *others)
        sorted(Path(folder).iterdir())[-1].unlink()
        raise ConnectionError("closed")

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(dicom, "dicom_web_download_series", broken)
        datastore.get_image_uri(ct)
    assert read(datastore.get_image_uri(ct)).shape == SHAPE
    assert {"name", "PatientID"} <= datastore.get_image_info(ct).keys()
    assert datastore.get_image_uri("1.2.9") == "" == datastore.get_label_uri("1.2.9", "final")

    monkeypatch.setattr(Archive, "search_for_series", counted(Archive.search_for_series, SHAPE[2] + 1))
    with pytest.raises(ValueError, match=r"1.2.2: expected the 5 files .* received 4"):
        datastore.get_image_uri("1.2.2")
    monkeypatch.setattr(Archive, "search_for_series", counted(Archive.search_for_series, SHAPE[2]))
    assert read(datastore.get_image_uri("1.2.2")).shape == SHAPE


def counted(search, number: int):
    """A search that says how many files a series has, as many archives do."""

    def call(self: Archive, search_filters: dict) -> list[dict]:
        return [{**ds, "00201209": {"vr": "IS", "Value": [number]}} for ds in search(self, search_filters)]

    return call


def test_names_of_a_label_without_one_of_the_classes(bundle, tmp_path, monkeypatch):
    """MONAI Label gives the segments of a SEG the first names of the list, whatever values there are."""
    templates = []
    monkeypatch.setattr(convert, "itk_image_to_dicom_seg", lambda label, folder, template: templates.append(template))
    file = write(tmp_path / "label.nii.gz", np.where(truth() == TUMOUR, TUMOUR, 0).astype(np.uint8))
    told = labels.present(bundle, file)
    assert told == [{"name": "tumour", "idx": TUMOUR}]
    convert.nifti_to_dicom_seg("", str(file), told)
    (segment,) = templates[0]["segmentAttributes"][0]
    assert segment["SegmentLabel"] == "tumour" and segment["labelID"] == TUMOUR, json.dumps(segment)


def test_a_validation_without_any_class_stops_no_client(bundle):
    """Its score is no number, which no JSON can say: with it, nobody could connect any more."""
    folder = bundle / "output" / "label_1"
    folder.mkdir(parents=True)
    (folder / "training_log.csv").write_text("epoch\n2\n")
    (folder / "training.json").write_text('{"epochs": 4, "unlabeled_images": 2}')
    for rows, best in (("1,nan\n2,\n", 0.0), ("1,nan\n2,0.5\n", 0.5)):
        (folder / "validation_log.csv").write_text("epoch,mean_dice\n" + rows)
        told = SemiSupervised(str(bundle), {}).stats()
        assert json.loads(json.dumps(told, allow_nan=False))["best_metric"] == best


def test_values_that_miss_a_whole_number_by_a_hair(bundle, tmp_path):
    """They are rounded, not cut off: 1.9999999 is 2. Halves are no label."""
    file = write(tmp_path / "a.nii.gz", turned().astype(np.float32) * np.float32(0.9999999))
    order = [{"name": "tumour", "idx": 1}, {"name": "liver", "idx": 2}]
    assert labels.by_name(bundle, file, order)
    assert np.array_equal(read(str(file)), truth())
    write(file, turned().astype(np.float32) * 0.5)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: expected whole numbers"):
        labels.by_name(bundle, file, order)


def test_a_label_with_a_palette(bundle, tmp_path):
    """The numbers of the palette are its values, whatever their colours."""
    picture = Image.fromarray(truth()[..., 0])
    picture.putpalette([0, 0, 0, 0, 200, 0, 250, 0, 0])
    picture.save(tmp_path / "a.png")
    told = labels.present(bundle, tmp_path / "a.png")
    assert [(entry["name"], entry["idx"]) for entry in told] == [("liver", LIVER), ("tumour", TUMOUR)]


def test_values_that_are_no_class_are_told_with_the_classes(bundle, studies):
    """The app has none of the options that a training of the bundle has for them."""
    file = write(studies / "a.nii.gz", truth() * np.uint8(100))
    with pytest.raises(
        ValueError, match=r"0 to 2 \(0 background, 1 liver, 2 tumour\), received 100, 200; save"
    ) as told:
        labels.check(bundle, str(studies.parents[1] / "a.nii.gz"), file)
    assert "--label_values" not in str(told.value)


def test_two_images_of_one_name_are_told(bundle, studies, caplog):
    """The books have room for one of them."""
    write(studies.parents[1] / "a.nrrd", truth())
    datastore = opened(studies)
    datastore.refresh()
    (told,) = [r.message for r in caplog.records if "has the same name" in r.message]
    assert told.startswith(("a.nrrd: left out, for a.nii.gz", "a.nii.gz: left out, for a.nrrd"))
    assert sorted(datastore.list_images()) == ["a", "b", "c"]


def test_images_that_are_not_taken_for_any_are_told(bundle, studies, caplog):
    """MONAI Label goes by some endings, as they are written; a folder of others would look empty."""
    for name in ("SCAN.NII.GZ", "scan.mha", "a.seg.nrrd", "notes.txt"):
        (studies.parents[1] / name).write_bytes(b"")
    datastore = opened(studies)
    datastore.refresh()
    (told,) = [r.message for r in caplog.records if "in small letters" in r.message]
    assert told.startswith("SCAN.NII.GZ and 1 more: left out; expected the endings .nii.gz")
    assert sorted(datastore.list_images()) == ["a", "b", "c"]


def test_lengths_that_train_nothing_are_refused(bundle, studies, tmp_path):
    """At once, and not by a training that has started."""
    task = SemiSupervised(str(bundle), {})
    for key in ("max_epochs", "minutes"):
        with pytest.raises(HTTPException) as error:
            names.checked({key: 0}, {"max_epochs": 20, "minutes": 5})
        assert error.value.status_code == 400 and f"{key}: expected a number like" in error.value.detail
    with pytest.raises(ValueError, match=r"val_split 0\.9: leaves none of the 1 labelled images for training"):
        task._partition_datalist([{"image": "a", "label": "a"}], {"val_split": 0.9})
    assert len(task._partition_datalist([{"image": "a", "label": "a"}], {})[0]) == 1


def test_validation_sees_no_patient_of_the_training(bundle, caplog):
    task = SemiSupervised(str(bundle), {})

    def held_back(*images, share=0.2):
        items = [{"image": f"/studies/{name}.nii.gz", "label": "x"} for name in images]
        training, validation = task._partition_datalist(items, {"val_split": share})
        assert sorted(item["image"] for item in (*training, *validation)) == sorted(item["image"] for item in items)
        return [Path(item["image"]).name.split(".")[0] for item in validation]

    assert held_back("a", "b", "c", "d", "e") == ["e"], "names that show no patient"
    visits = [f"patient{n}_t{t}" for n in (1, 2, 3) for t in (0, 1, 2)]
    assert held_back(*visits) == ["patient3_t0", "patient3_t1", "patient3_t2"]
    assert held_back(*visits, share=0.9) == visits[3:], "one patient at least is trained on"
    assert held_back(*visits[:3]) == [] and "all 3 labelled images are of one patient" in caplog.text
