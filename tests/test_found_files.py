"""What lies in people's folders besides images and labels: no label is taken for an image, and nothing is hidden."""

from __future__ import annotations

import errno
import json
import os

import nibabel as nib
import numpy as np
import pytest
import samples
from helpers import workflow
from PIL import Image
from scripts.__main__ import main
from scripts.dataio.datalist import read_images
from scripts.dataio.loaders import read_item
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.stated import stated
from scripts.dataio.transforms import LabelValuesd
from scripts.errors import InputError, explain
from scripts.preparation.create import create
from scripts.preparation.survey import look

IMAGE, LABEL = samples.blob((12, 10, 3), seed=1)


def made(folder, **options) -> dict[str, list[str]]:
    """Images of each list that has some."""
    create(output=str(folder / "l.json"), **{key: str(value) for key, value in options.items()})
    lists = json.loads((folder / "l.json").read_text())
    return {key: [item["image"] for item in lists[key]] for key in ("training", "unlabeled") if lists[key]}


def test_labels_below_the_images_and_beside_them_are_no_unlabelled_images(tmp_path, caplog):
    for noise, name in enumerate(("a", "b", "c")):
        samples.write_nifti(tmp_path / f"{name}.nii.gz", IMAGE + noise)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", LABEL)
    samples.write_nifti(tmp_path / "b_seg.nii.gz", LABEL)
    expected = {"training": ["a.nii.gz"], "unlabeled": ["b.nii.gz", "c.nii.gz"]}
    assert made(tmp_path, images=tmp_path, labels=tmp_path / "labels") == expected
    assert "1 files are labels by their names" in caplog.text and "b_seg.nii.gz first" in caplog.text
    for path in tmp_path.glob("*.nii.gz"):
        path.unlink()
    with pytest.raises(InputError, match="expected images beside the labels"):
        create(str(tmp_path), str(tmp_path / "labels"), str(tmp_path / "m.json"))


def test_previews_and_deleted_files_of_a_storage_are_no_images(tmp_path):
    for noise, name in enumerate(("a", "b", "@eaDir/b", "#recycle/c", ".snapshot/a")):
        samples.write_nifti(tmp_path / "images" / f"{name}.nii.gz", IMAGE + noise)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", LABEL)
    expected = {"training": ["images/a.nii.gz"], "unlabeled": ["images/b.nii.gz"]}
    folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    assert made(tmp_path, **folders, table=tmp_path / "new" / "t.csv") == expected
    assert len((tmp_path / "new" / "t.csv").read_text().splitlines()) == 3, "in a folder that it makes"


def test_a_name_of_an_old_system_is_refused_in_a_line(tmp_path):
    """No table and no page can hold it, so that scores would be lost at the end of an evaluation."""
    samples.write_nifti(tmp_path / "images" / "a.nii.gz", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", LABEL)
    os.link(tmp_path / "images" / "a.nii.gz", os.fsencode(tmp_path / "images") + b"/M\xfcller.nii.gz")
    with pytest.raises(InputError, match=r"M\\udcfcller\.nii\.gz': expected a name in UTF-8, .* rename it") as error:
        made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels", table=tmp_path / "t.csv")
    assert str(error.value).isascii()


@pytest.mark.parametrize("option", [{"trust": "voxel"}, {"ignore_label": "x"}, {"label_values": "a,b"}])
def test_options_that_mean_nothing_write_no_datalist(tmp_path, option):
    samples.write_nifti(tmp_path / "images" / "a.nii.gz", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", LABEL)
    with pytest.raises(InputError, match=f"{next(iter(option))}: expected .*, received '"):
        made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels", **option)
    assert not (tmp_path / "l.json").exists()


def test_where_no_datalist_can_be_written_no_image_is_read(tmp_path, monkeypatch, capfd):
    """Data folders are often read-only, and to read them all takes hours."""
    samples.write_nifti(tmp_path / "images" / "a.nii.gz", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", LABEL)
    monkeypatch.setattr("os.access", lambda path, mode: os.fspath(path) != str(tmp_path / "images"))
    folders = str(tmp_path / "images"), str(tmp_path / "labels")
    with pytest.raises(InputError, match=r"--output .*new/l\.json: not permitted to write in .*/images; give"):
        create(*folders, str(tmp_path / "images" / "new" / "l.json"))
    with pytest.raises(InputError, match=r"--table .*images/t\.csv: not permitted to write"):
        create(*folders, str(tmp_path / "l.json"), table=str(tmp_path / "images" / "t.csv"))
    assert "Reading files" not in capfd.readouterr().err and not (tmp_path / "l.json").exists()


def test_a_full_disk_leaves_no_part_of_a_datalist(tmp_path, monkeypatch):
    samples.write_nifti(tmp_path / "images" / "a.nii.gz", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", LABEL)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels")
    assert explain(error.value).startswith(f"{tmp_path / 'l.json'}: no space left to write")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]


def test_labelmaps_beside_slicers_segmentations_are_no_images(tmp_path):
    for noise, name in enumerate(("a", "b")):
        samples.write_itk(tmp_path / f"{name}.nrrd", IMAGE + noise)
    for name in ("a.seg.nrrd", "b-label.nrrd"):
        samples.write_itk(tmp_path / name, LABEL)
    assert made(tmp_path, data=tmp_path) == {"training": ["a.nrrd"], "unlabeled": ["b.nrrd"]}


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Nifti1Pair])
def test_images_of_kinds_that_are_not_read_are_named_with_the_remedy(tmp_path, caplog, kind):
    """One of three labels, say: its image was one without a label; where left is Analyze does not say."""
    for folder, array in (("images", IMAGE), ("labels", LABEL)):
        for noise, name in enumerate(("a", "b")):
            samples.write_nifti(tmp_path / folder / f"{name}.nii.gz", array + noise * (folder == "images"))
    (tmp_path / "labels" / "b.nii.gz").unlink()
    nib.save(kind(LABEL, np.diag([1.5, 1.5, 8, 1])), tmp_path / "labels" / "b.img")
    expected = {"training": ["images/a.nii.gz"], "unlabeled": ["images/b.nii.gz"]}
    assert made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels") == expected
    assert "2 files of kinds that are not read (.hdr, .img), " in caplog.text and "convert them to NIfTI" in caplog.text
    for name in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / "images" / name).rename(tmp_path / name)
    (tmp_path / "labels" / "b.img").rename(tmp_path / "images" / "b.img")
    with pytest.raises(InputError, match=r"found none, but 1 files of kinds that are not read \(\.img\), .* convert"):
        read_images(tmp_path / "images")
    with pytest.raises(InputError, match=r"b\.img: NIfTI or Analyze in two files, which is not read; convert it"):
        read_item(LoadFilesd("image"), {"image": str(tmp_path / "images" / "b.img")})


@pytest.mark.parametrize("hidden", ["seg.nii.gz", "later/s1_001.dcm"])
def test_what_lies_among_the_slices_of_a_series_is_named(tmp_path, caplog, hidden):
    samples.write_dicom(tmp_path / "images" / "p", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "p.nii.gz", LABEL, (-0.9, -0.9, 6.0))
    samples.write_picture(tmp_path / "images" / "p" / "preview.png", np.zeros((9, 9), np.uint8))
    assert made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels") == {"training": ["images/p"]}
    if hidden.endswith(".dcm"):
        samples.write_dicom(tmp_path / "images" / "p" / "later", IMAGE)
    else:
        samples.write_nifti(tmp_path / "images" / "p" / hidden, LABEL)
        samples.write_nifti(tmp_path / "images" / "p" / "by_dcm2niix.nii.gz", IMAGE)  # first, and no loss
    with pytest.raises(InputError, match=rf"images/p/{hidden}: lies in the folder of a DICOM series .*nothing reads"):
        create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "m.json"))
    assert [item["image"] for item in read_images(tmp_path / "images")] == [str(tmp_path / "images" / "p")]
    assert f"{hidden}: lies in the folder" in caplog.text


def test_images_of_one_file_below_another_one_are_named(tmp_path, caplog):
    """X-rays in a folder each, and one beside the folders: all but that were passed over without a word."""
    for name, noise in (("images", 0), ("images/p1", 1), ("images/p2", 2)):
        samples.write_dicom(tmp_path / name, IMAGE[..., :1] + noise, series=noise + 1)
    assert len(read_images(tmp_path)) == 1
    assert "images/p1/s2_001.dcm: lies in the folder of a DICOM series" in caplog.text


def test_what_is_no_loss_among_the_slices_of_a_series_is_said_and_not_refused(tmp_path, capsys):
    """The NIfTI file that dcm2niix writes beside them, one report as DICOM, and the label that is given."""
    folders = {"images": tmp_path / "p", "labels": tmp_path / "p" / "labels"}
    samples.write_dicom(folders["images"], IMAGE)
    samples.write_nifti(folders["labels"] / "p.nii.gz", LABEL, (-0.9, -0.9, 6.0))
    for name in ("", "a_report/s1_001.dcm", "p_t1.nii.gz"):
        if name.endswith(".dcm"):
            samples.write_dicom(folders["images"] / "a_report", IMAGE[..., :1])
        elif name:
            samples.write_nifti(folders["images"] / name, IMAGE)
        assert made(tmp_path, **folders) == {"training": ["."]}
        (tmp_path / "l.json").unlink()
        said = capsys.readouterr().out
        assert ("lies in the folder of a DICOM series" in said) == (name == "p_t1.nii.gz"), said


def test_a_time_series_beside_its_frames_is_to_be_taken_out(tmp_path):
    """As ACDC is released."""
    root = samples.make_acdc(tmp_path, (1, 2)) / "training"
    folders = {"images": root, "labels": root, "label_suffix": "_gt"}
    with pytest.raises(InputError, match=r"patient001_4d\.nii\.gz: a 4D image of 12 volumes; .* or take it out if its"):
        made(tmp_path, **folders)
    for path in root.rglob("*_4d.nii.gz"):
        path.unlink()
    assert len(made(tmp_path, **folders)["training"]) == 4


@pytest.mark.parametrize(("codes", "unit"), [((0, 0), 2), ((1, 0), 3), ((1, 1), 3)])
def test_a_prediction_says_of_its_place_what_its_image_says(tmp_path, codes, unit):
    """As MATLAB writes images: no place stated, where viewers differ in what they make up; micrometres. And both
    places, as nearly all programs state them: voxels had the size that the network sees."""
    image = nib.Nifti1Image(IMAGE, np.diag([-2.0, 2.0, 3.0, 1.0]))
    image.set_qform(None if not codes[0] else image.affine, code=codes[0], update_affine=False)
    image.set_sform(None if not codes[1] else image.affine, code=codes[1], update_affine=False)
    image = nib.Nifti1Image(IMAGE, None if not any(codes) else image.affine, image.header)
    image.header["xyzt_units"] = unit
    nib.save(image, tmp_path / "a.nii.gz")
    workflow("infer", "inference", dataset_dir=str(tmp_path / "a.nii.gz"), output_dir=str(tmp_path / "out"),
             show_progress=False, flip_tta=False).run()  # fmt: skip
    stored, predicted = (nib.load(tmp_path / name) for name in ("a.nii.gz", "out/a_seg.nii.gz"))
    assert [bool(predicted.header[f"{name}form_code"]) for name in "qs"] == [any(codes)] * 2
    assert predicted.header.get_xyzt_units()[0] == stored.header.get_xyzt_units()[0]
    np.testing.assert_allclose(predicted.affine, stored.affine)
    assert not any(codes) or np.allclose(predicted.get_qform(), stored.get_qform())
    np.testing.assert_allclose(predicted.header.get_zooms(), (2, 2, 3))


@pytest.mark.parametrize(("described", "refused"), [
    ("ImageJ=1.53\nimages=3\nchannels=3\nslices=1\n", False), ("ImageJ=1.53\nimages=3\nslices=3\n", False),
    ("ImageJ=1.53\nimages=3\nchannels=3\nmode=grayscale\n", False),  # as tifffile calls slices
    ("ImageJ=1.53\nimages=3\nchannels=3\nhyperstack=true\nmode=composite\n", 3),
    ("ImageJ=1.53\nimages=3\nslices=3\nmode=color\n", False), ('{"shape": [3, 10, 12], "axes": "CYX"}', 3),
    ("ImageJ=1.53\nimages=4\nchannels=2\nslices=2\nhyperstack=true\n", True),
    ("ImageJ=1.53\nimages=20\nslices=4\nframes=5\nhyperstack=true\n", True),
    ("ImageJ=1.53\nimages=6\nchannels=2\nframes=3\nhyperstack=true\n", True),
    ('<OME><Pixels SizeC="1" SizeT="1" SizeX="12" SizeY="10" SizeZ="3"/></OME>', False),
    ('<OME><Pixels SizeC="3" SizeT="1" SizeX="12" SizeY="10" SizeZ="3"/></OME>', False),  # colours of three pages
    ('<OME><Pixels SizeC="2" SizeT="1" SizeX="12" SizeY="10" SizeZ="3"/></OME>', 6),
    ('<OME><Pixels SizeC="3" SizeT="1" SizeX="12" SizeY="10" SizeZ="1"/></OME>', 3),
    ('{"shape": [3, 10, 12]}', False), ('{"shape": [1, 3, 1, 10, 12]}', False), ('{"shape": [2, 3, 10, 12]}', 6),
])  # fmt: skip
def test_channels_in_turn_are_no_slices(tmp_path, described, refused):
    number = 3 if isinstance(refused, bool) else refused
    pages = [Image.fromarray(IMAGE[..., k % 3].T.astype(np.uint8)) for k in range(number)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], tiffinfo={270: described})
    if not refused:
        assert look(tmp_path / "a.tif").shape == IMAGE.shape
        return
    with pytest.raises(InputError, match=r"a\.tif: a TIFF stack whose pages are (3 chan|\d.* times [235]).* in turn"):
        look(tmp_path / "a.tif")


def test_links_count_once_and_a_link_to_a_parent_is_no_loop(tmp_path, caplog):
    images = tmp_path / "images"
    for noise, name in enumerate(("p1/mr", "p2/mr")):
        samples.write_nifti(images / f"{name}.nii.gz", IMAGE + noise)
    samples.write_nifti(tmp_path / "labels" / "p2" / "mr.nii.gz", LABEL)
    (images / "all").symlink_to("..")
    for folder in (images, tmp_path / "labels"):
        (folder / "latest").symlink_to("p2")  # sorts before what it leads to
    expected = {"training": ["images/p2/mr.nii.gz"], "unlabeled": ["images/p1/mr.nii.gz"]}
    assert made(tmp_path, images=images, labels=tmp_path / "labels") == expected
    assert "1 images are links to others" in caplog.text and "latest/mr.nii.gz first" in caplog.text
    outside = tmp_path / "linked"
    outside.mkdir()
    (outside / "p1.nii.gz").symlink_to("../images/p1/mr.nii.gz")
    assert [item["image"] for item in read_images(outside)] == [str(outside / "p1.nii.gz")]


def test_a_scan_under_the_names_of_two_patients_is_refused(tmp_path):
    for name in ("p1_frame01", "p1_frame02", "p2_frame01", "blank1", "blank2"):
        samples.write_nifti(tmp_path / "images" / f"{name}.nii.gz", IMAGE * (not name.startswith("blank")))
    samples.write_nifti(tmp_path / "labels" / "p1_frame01.nii.gz", LABEL)
    samples.write_nifti(tmp_path / "labels" / "p1_frame02.nii.gz", LABEL)
    folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    with pytest.raises(InputError, match=r"^\S*p2_frame01\S*: the same voxels as \S*p1_frame01\S*, under the name of"):
        made(tmp_path, **folders)
    copy = tmp_path / "images" / "p2_frame01.nii.gz"
    stored = nib.load(copy)
    turned = nib.Nifti1Image(stored.get_fdata(), stored.affine).as_reoriented([[1, -1], [0, 1], [2, 1]])
    nib.save(turned, copy)
    assert nib.load(copy).get_data_dtype() != stored.get_data_dtype()
    with pytest.raises(InputError, match=r"^\S*p2_frame01\S*: the same voxels as \S*p1_frame01"):
        made(tmp_path, **folders)
    copy.unlink()
    assert made(tmp_path, **folders)["training"] == ["images/p1_frame01.nii.gz", "images/p1_frame02.nii.gz"]


def volumes(folder, *names, label=False):
    """Files of several names, no two images alike."""
    for noise, name in enumerate(names):
        samples.write_nifti(folder / f"{name}.nii.gz", LABEL if label else IMAGE + noise)


def test_a_suffix_chooses_among_the_files_and_says_how_many_it_leaves_out(tmp_path, caplog):
    """Other sequences of a patient are no unlabelled images, and no file replaces another of its shortened name."""
    volumes(tmp_path / "images", "P0_t1", "P0_t2", "P0", "P1_t1", "P1_t2")
    volumes(tmp_path / "labels", "P0_liver_seg", "P0_tumour_seg", label=True)
    folders = {"images": tmp_path / "images", "labels": tmp_path / "labels"}
    found = made(tmp_path, **folders, image_suffix="_t1", label_suffix="_liver_seg")
    assert found == {"training": ["images/P0_t1.nii.gz"], "unlabeled": ["images/P1_t1.nii.gz"]}
    assert "3 files are left out, whose names do not end with _t1" in caplog.text
    assert "1 files are left out, whose names do not end with _liver_seg" in caplog.text
    with pytest.raises(InputError, match="expected names that end with _flair, received P0"):
        create(**{k: str(v) for k, v in folders.items()}, output=str(tmp_path / "m.json"), image_suffix="_flair")


def test_other_masks_beside_the_chosen_ones_are_no_unlabelled_images(tmp_path, caplog):
    volumes(tmp_path / "one", "P0", "P1", "benign (1)")
    volumes(tmp_path / "one", "P0_liver_seg", "P0_tumour_seg", "benign (1)_mask_1", label=True)
    one = tmp_path / "one"
    found = made(one, images=one, labels=one, label_suffix="_liver_seg")
    assert found == {"training": ["P0.nii.gz"], "unlabeled": ["P1.nii.gz", "benign (1).nii.gz"]}
    assert "2 files are labels by their names" in caplog.text
    volumes(tmp_path / "two", "P0", "P1")
    volumes(tmp_path / "two" / "labels", "P0", label=True)
    volumes(tmp_path / "two" / "labels_rater2", "P0", "P1", label=True)
    found = made(tmp_path / "two", images=tmp_path / "two", labels=tmp_path / "two/labels")
    assert found == {"training": ["P0.nii.gz"], "unlabeled": ["P1.nii.gz"]}


def test_an_image_that_shows_what_labels_show_is_refused(tmp_path):
    volumes(tmp_path / "images", "P0", "P1", "P2")
    volumes(tmp_path / "images", "P0_expert", label=True)
    volumes(tmp_path / "labels", "P0", label=True)
    with pytest.raises(InputError, match=r"P0_expert.nii.gz: expected an image, received a file of the values 0, 1 al"):
        made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels")


def test_suffixes_with_commas_come_from_the_command_line(tmp_path, monkeypatch):
    def run(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["semsim", *words])
        main()

    for patient in ("P0", "P1"):
        volumes(tmp_path / "data" / patient, "image_t1", "image-flair")
    volumes(tmp_path / "data" / "P0", "label", label=True)
    output = tmp_path / "l.json"
    run("datalist", "create", f"--data={tmp_path / 'data'}", f"--output={output}", "--image_suffix=-flair,_t1",
        "--class_names=b,t", "--check=False")  # fmt: skip
    (item,) = json.loads(output.read_text())["training"]
    assert item["image"] == ["P0/image-flair.nii.gz", "P0/image_t1.nii.gz"]
    volumes(tmp_path / "labels", "P0", label=True)
    with pytest.raises(InputError, match="_t1,_flair: expected one ending, received several"):
        run("datalist", "create", f"--images={tmp_path / 'data'}", f"--labels={tmp_path / 'labels'}",
            f"--output={tmp_path / 'm.json'}", "--image_suffix", "_t1,_flair")  # fmt: skip


def test_names_that_python_reads_as_numbers_stay_as_they_are(tmp_path, monkeypatch):
    volumes(tmp_path / "images", "P0_0000", "P1_0000")
    volumes(tmp_path / "labels", "P0", label=True)
    output = tmp_path / "l.json"
    words = [f"--images={tmp_path / 'images'}", f"--labels={tmp_path / 'labels'}", f"--output={output}"]
    monkeypatch.setattr("sys.argv", ["semsim", "datalist", "create", *words, "--image_suffix=_0000", "--class_names",
                                     "['background', '1_2']"])  # fmt: skip
    main()
    assert json.loads(output.read_text())["labels"] == {"0": "background", "1": "1_2"}
    output.unlink()
    monkeypatch.setattr("sys.argv", ["semsim", "datalist", "create", *words, "--class_names", "background,1_2"])
    main()
    assert json.loads(output.read_text())["labels"] == {"0": "background", "1": "1_2"}
    output.unlink()
    monkeypatch.setattr("sys.argv", ["semsim", "datalist", "create", *words, "--class_names",
                                     "['background','left, upper lobe']"])  # fmt: skip
    main()
    assert json.loads(output.read_text())["labels"] == {"0": "background", "1": "left, upper lobe"}


def test_one_structure_is_chosen_from_a_folder_of_many(tmp_path):
    """As TotalSegmentator leaves them: a file for each structure in a folder beside the scan."""
    for noise, patient in enumerate(("s0000", "s0001")):
        samples.write_nifti(tmp_path / patient / "ct.nii.gz", IMAGE + noise)
        for structure in ("liver", "spleen"):
            samples.write_nifti(tmp_path / patient / "segmentations" / f"{structure}.nii.gz", LABEL)
    lists = made(tmp_path, data=tmp_path, label_suffix="liver")
    assert lists == {"training": ["s0000/ct.nii.gz", "s0001/ct.nii.gz"]}
    (item, _) = json.loads((tmp_path / "l.json").read_text())["training"]
    assert item["label"] == "s0000/segmentations/liver.nii.gz"
    with pytest.raises(InputError, match="say which by --label_suffix"):
        create(data=str(tmp_path), output=str(tmp_path / "m.json"))


def test_channels_whose_places_differ_by_rounding_are_one_image(tmp_path):
    turn = np.radians([10, 7])
    (c, d), (s, t) = np.cos(turn), np.sin(turn)
    oblique = np.array([[-c, s * d, -s * t, 90], [-s, -c * d, c * t, 100], [0, t, d, -40], [0, 0, 0, 1]])
    oblique[:3, :3] *= (0.97, 0.97, 4.4)
    for k, code in enumerate((0, 1)):
        image = nib.Nifti1Image(IMAGE + k, oblique)
        image.set_qform(oblique, code=1)
        image.set_sform(oblique if code else None, code=code)
        nib.save(image, tmp_path / f"a_000{k}.nii.gz")
    files = [tmp_path / f"a_000{k}.nii.gz" for k in range(2)]
    assert look(files[0], channels=2, files=files).channels == 2
    moved = nib.load(files[1])
    nib.save(nib.Nifti1Image(np.asarray(moved.dataobj), np.diag([0.97, 0.97, 4.4, 1])), files[1])
    place = (
        r"a_0001\.nii\.gz: expected 12 x 10 x 3 voxels at the place of .*a_0000.* received .*resample it to that grid"
    )
    with pytest.raises(InputError, match=place):
        look(files[0], channels=2, files=files)
    samples.write_nifti(files[1], IMAGE[..., :2])
    with pytest.raises(InputError, match=r"a_0001\.nii\.gz: expected 12 x 10 x 3 .* received 12 x 10 x 2 voxels"):
        read_item(LoadFilesd("image"), {"image": [str(file) for file in files]})


def test_names_of_umlauts_pair_however_they_are_written(tmp_path):
    samples.write_nifti(tmp_path / "images" / "Mu\u0308ller.nii.gz", IMAGE)
    samples.write_nifti(tmp_path / "labels" / "M\u00fcller.nii.gz", LABEL)
    assert len(made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels")["training"]) == 1


def test_numbers_of_patients_are_no_channels_where_labels_end_otherwise(tmp_path):
    for n in range(3):
        samples.write_nifti(tmp_path / "images" / f"pat_{n:04d}.nii.gz", IMAGE + n)
        samples.write_nifti(tmp_path / "labels" / f"pat_{n:04d}_seg.nii.gz", LABEL)
    found = made(tmp_path, images=tmp_path / "images", labels=tmp_path / "labels")
    assert found == {"training": [f"images/pat_{n:04d}.nii.gz" for n in range(3)]}


def test_several_volumes_in_a_nrrd_are_said_to_be_that(tmp_path):
    samples.write_itk(tmp_path / "a.nrrd", IMAGE)
    content = (tmp_path / "a.nrrd").read_bytes()
    kinds = next(line for line in content.split(b"\n") if line.startswith(b"kinds:"))
    for kind in ("list", "time"):
        (tmp_path / "a.nrrd").write_bytes(content.replace(kinds, f"kinds: {kind} domain domain".encode()))
        with pytest.raises(InputError, match=rf"expected one volume, received several \(kinds: {kind}\)"):
            look(tmp_path / "a.nrrd")


def test_what_is_no_number_of_channels_and_names_that_stand_twice_are_refused(tmp_path):
    (tmp_path / "l.json").write_text(json.dumps({"channels": "1", "training": []}))
    with pytest.raises(InputError, match="expected `channels` to be a whole number, received '1'"):
        stated(tmp_path / "l.json", "channels", default=1)
    assert stated(tmp_path / "none.json", "channels", default=1) == 1
    with pytest.raises(InputError, match="names that differ, received background, kidney, kidney"):
        LabelValuesd("label", None, ["background", "kidney", "kidney"])
    volumes(tmp_path / "images", "a")
    two = (LABEL * (1 + np.arange(12) % 2)[:, None, None]).astype(np.uint8)
    samples.write_nifti(tmp_path / "labels" / "a.nii.gz", two)
    folders = {name: str(tmp_path / name) for name in ("images", "labels")}
    with pytest.raises(InputError, match="names that differ"):
        create(**folders, output=str(tmp_path / "m.json"), class_names="background,kidney,kidney")


def test_a_label_of_several_sequences_is_told_how_to_choose_one(tmp_path):
    image, label = samples.blob((8, 8, 2))
    for sequence in ("t1", "t2"):
        samples.write_nifti(tmp_path / f"images/P1_{sequence}.nii.gz", image)
    samples.write_nifti(tmp_path / "labels/P1.nii.gz", label)
    options = {name: str(tmp_path / name) for name in ("images", "labels")} | {"dry_run": True, "check": False}
    with pytest.raises(
        InputError, match=r"if it is that of P1_t1 say what such names end with by --image_suffix _t1, "
    ):
        create(**options, output=str(tmp_path / "d.json"))
    create(**options, output=str(tmp_path / "d.json"), image_suffix="_t1")
