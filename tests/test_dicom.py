"""DICOM is not taken on trust: slices make one even, straight stack, or one line says what they are."""

from __future__ import annotations

import re
import shutil
import sys
import zlib

import numpy as np
import pytest
import samples
from scripts.dataio.folders import find_images
from scripts.dataio.geometry import on_image_grid
from scripts.dataio.loaders import read_item
from scripts.dataio.readers import LoadFilesd, image_loader, states_unit_size
from scripts.errors import InputError, find_input_error
from scripts.preparation.create import create
from scripts.preparation.survey import look

IMAGE = samples.blob((10, 8, 6), seed=2)[0]


@pytest.mark.parametrize("spacing", [(0.9, 0.9, 6.0), (0.9, 0.9, 0.5)])
def test_an_even_straight_stack_passes(tmp_path, spacing):
    samples.write_dicom(tmp_path / "s", IMAGE, spacing)
    assert look(tmp_path / "s").shape == (10, 8, 6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"skip": (2, 3)}, r"gaps of 6 mm and one of 18 mm after s1_005\.dcm; add the missing slices"),
        ({"shift": 2.1838}, r"gantry tilt of 20 degrees; .*dcm2niix"),
        ({"positions": (0, 0, 6, 6, 12, 12)}, r"3 of 6 slices lie where another does .*several time points"),
        ({"turned": (5,)}, r"slices of 2 orientations in one series, 1 of 6 unlike the others \(s1_001\.dcm first\)"),
        ({"coloured": (2,)}, r"slices of 2 sizes in one series, 1 of 6 unlike the others \(s1_004\.dcm first\)"),
        ({"cropped": (0,)}, r"slices of 2 sizes in one series, 1 of 6 unlike the others \(s1_006\.dcm first\)"),
    ],
    ids=["missing", "tilt", "time points", "localizer", "dose report", "scout"],
)
def test_other_stacks_are_refused_with_the_remedy(tmp_path, options, message):
    samples.write_dicom(tmp_path / "s", IMAGE, **options)
    with pytest.raises(InputError, match=message):
        look(tmp_path / "s")
    with pytest.raises(InputError, match=message):  # in training and prediction, too
        try:
            LoadFilesd("image")({"image": str(tmp_path / "s")})
        except RuntimeError as error:
            raise find_input_error(error) or error from None


def test_a_small_tilt_is_refused_where_the_last_slice_would_be_read_out_of_its_place(tmp_path):
    """2.4 degrees: 0.25 mm a slice, over 30 of them 7 mm; a move of the table and rounded positions are none."""
    image = IMAGE[..., [0] * 30]
    samples.write_dicom(tmp_path / "tilt", image, shift=0.25)
    with pytest.raises(InputError, match=r"gantry tilt of 2\.4 degrees; .*dcm2niix"):
        look(tmp_path / "tilt")
    turned = r"1\0\0\0\0.99995\0.00999983"  # slices 5 mm apart that move by 0.05 mm, which is rounded to 0.1
    places = [rf"0\{-0.05 * k:.1f}\{4.99975 * k:.1f}" for k in range(30)]
    told = {
        "table": [{"0020|0032": rf"0\{2 * (k > 14)}\{6 * k}"} for k in range(30)],
        "rounded": [{"0020|0032": place, "0020|0037": turned} for place in places],
    }
    for name, tags in told.items():
        samples.write_dicom(tmp_path / name, image, told=tags)
        assert look(tmp_path / name).shape == (10, 8, 30)


@pytest.mark.parametrize(
    "tag, texts",
    [("0018|0050", ("6.0", "6.00")), ("0018|0024", ("*tse2d1", "*tse2d1_15")), ("0008|0021", ("20200101", "20200102")),
     ("0020|0037", (r"1\0\0\0\0.999499\0.0316", r"1\0\0\0\0.999501\0.0316"))],
    ids=["thickness", "sequence", "midnight", "orientation"],
)  # fmt: skip
def test_a_series_is_read_whole_however_its_slices_spell_their_headers(tmp_path, tag, texts):
    """GDCM takes such a series for two, of which training and prediction read the first as the image."""
    samples.write_dicom(tmp_path / "s", IMAGE, told=[{tag: texts[k // 3]} for k in range(6)])
    np.testing.assert_array_equal(LoadFilesd("image")({"image": str(tmp_path / "s")})["image"], IMAGE)
    assert look(tmp_path / "s").shape == IMAGE.shape


def test_a_slice_that_only_itk_knows_is_not_passed_over(tmp_path):
    samples.write_dicom(tmp_path / "s", IMAGE)
    last = min((tmp_path / "s").iterdir())
    last.write_bytes(last.read_bytes()[132:])  # as before 1993, without what tells that it is DICOM
    with pytest.raises(InputError, match="expected 5 slices of one DICOM series, received 6 as ITK reads them"):
        look(tmp_path / "s")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none: expected the slices of a DICOM series, found none"):
        look(tmp_path / "none")


@pytest.mark.parametrize("storage", [b"1.2.840.10008.5.1.4.1.1.66.4", b"1.2.840.10008.5.1.4.1.1.66.7"])  # of labelmaps
def test_segmentation_objects_are_labels_and_no_images(tmp_path, monkeypatch, storage):
    samples.write_dicom(tmp_path / "images/p1", IMAGE)
    samples.write_dicom(tmp_path / "images/p2", IMAGE)
    for patient in ("p1", "p2"):
        samples.write_dicom(tmp_path / "labels" / patient, IMAGE[..., :1], storage="1.2.840.10008.5.1.4.1.1.66.4")
        file = tmp_path / "labels" / patient / "s1_001.dcm"
        file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.66.4", storage))
        (tmp_path / "labels" / patient / ".DS_Store").touch()
    assert set(find_images(tmp_path / "labels", recursive=True, labels=True)) == {"p1", "p2"}
    assert set(find_images(tmp_path, recursive=True)) == {"images/p1", "images/p2"}, "none is predicted"
    monkeypatch.setitem(sys.modules, "highdicom.seg", None)
    with pytest.raises(InputError, match=r"s1_001\.dcm: a DICOM segmentation object.*pip install highdicom"):
        look(tmp_path / "labels/p1/s1_001.dcm", label=True)
    (tmp_path / "labels/p1/s1_001.dcm").rename(tmp_path / "images/p1/seg.dcm")
    with pytest.raises(InputError, match=r"images/p1: holds a DICOM segmentation object \(seg\.dcm\)"):
        look(tmp_path / "images/p1")


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segmentation_objects_are_read_by_highdicom(tmp_path, kind):
    """Frames that show nothing are left out of the file, and its frames come in another order."""
    hd, dcm = pytest.importorskip("highdicom"), pytest.importorskip("pydicom")
    samples.write_dicom(tmp_path / "image", IMAGE)
    source = [dcm.dcmread(path) for path in sorted((tmp_path / "image").iterdir(), reverse=True)]
    for one in source:
        one.PatientID = one.PatientName = "P^P"
        one.StudyInstanceUID, one.FrameOfReferenceUID = "1.2.826.2", "1.2.826.3"
        for name in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
                     "ReferringPhysicianName"):  # fmt: skip
            setattr(one, name, "")
    label = np.zeros(IMAGE.shape, np.uint8)
    label[2:5, 3:6, 1:4] = 1
    code = hd.sr.CodedConcept("10200004", "SCT", "Liver")
    segment = hd.seg.SegmentDescription(1, "liver", code, code, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
    made = hd.seg.Segmentation(source, label.transpose(2, 1, 0), kind, [segment],
                               hd.UID(), 2, hd.UID(), 1, "m", "m", "1", "1")  # fmt: skip
    made.save_as(tmp_path / "label.dcm")
    image, read = image_loader()(tmp_path / "image"), image_loader(label=True)(tmp_path / "label.dcm")
    np.testing.assert_array_equal(on_image_grid(read, image)[0], label)


def test_a_slope_for_every_slice_keeps_its_fractions(tmp_path):
    """As in PET, where the values of the first slice may happen to be whole numbers."""
    samples.write_dicom(tmp_path / "s", IMAGE)
    slopes = [1, 0.1, 2.5, 0.3, 1, 0.7]
    for path, slope in zip(sorted((tmp_path / "s").iterdir(), reverse=True), slopes):
        content = re.sub(rb"\x28\0[\x52\x53]\x10\x02\0\0\0[01] ", b"", path.read_bytes())  # those of the writer
        pixels = content.rindex(b"\xe0\x7f\x10\x00")
        told = b"".join(
            b"\x28\0" + tag + len(text).to_bytes(4, "little") + text
            for tag, text in ((b"\x52\x10", b"0 "), (b"\x53\x10", f"{slope:<4g}".encode()))
        )
        path.write_bytes(content[:pixels] + told + content[pixels:])
    read = image_loader()(tmp_path / "s").numpy()[0]
    np.testing.assert_allclose(np.sort(read, axis=None), np.sort(IMAGE * np.array(slopes), axis=None), rtol=1e-5)


def replaced(path, old: bytes, new: bytes) -> None:
    """One place of a file, whose length stays the same."""
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def test_slices_whose_numbers_mean_the_opposite_brightness_are_not_mixed(tmp_path):
    """ITK turns the order of MONOCHROME1 round: an X-ray is read as it is shown, and CT would lose its unit."""
    samples.write_dicom(tmp_path / "s", IMAGE)
    files = sorted((tmp_path / "s").iterdir(), reverse=True)
    for path in files[:2]:
        replaced(path, b"MONOCHROME2", b"MONOCHROME1")
    with pytest.raises(InputError, match=r"2 of 6 slices have small numbers bright \(MONOCHROME1, s1_005\.dcm first\)"):
        look(tmp_path / "s")
    for path in files[2:]:
        replaced(path, b"MONOCHROME2", b"MONOCHROME1")
    np.testing.assert_array_equal(image_loader()(tmp_path / "s")[0], -1 - IMAGE)  # of 16 bits with a sign
    samples.write_dicom(tmp_path / "ct", IMAGE[..., :1], told=[{"0008|0060": "CT"}])
    replaced(tmp_path / "ct" / "s1_001.dcm", b"MONOCHROME2", b"MONOCHROME1")
    with pytest.raises(InputError, match=r"s1_001\.dcm: expected CT with large numbers bright \(MONOCHROME2\)"):
        look(tmp_path / "ct")


def test_bits_that_end_elsewhere_are_refused_and_an_overlay_above_them_is_no_image(tmp_path):
    """Of 12 bits of a word of 16 GDCM reads the lower ones, wherever they are said to end."""
    samples.write_dicom(tmp_path / "s", IMAGE[..., :1])
    (path,) = (tmp_path / "s").iterdir()
    bits = b"\x28\0\1\1\2\0\0\0%c\0\x28\0\2\1\2\0\0\0%c\0\x28\0\3\1\2\0\0\0%c\0"
    replaced(path, bits % (16, 15, 1), bits % (12, 11, 0))
    content = path.read_bytes()
    path.write_bytes(content[:-160] + (IMAGE[..., 0].T | np.eye(8, 10, dtype=np.int16) << 12).astype("<i2").tobytes())
    np.testing.assert_array_equal(image_loader()(tmp_path / "s")[0], IMAGE[..., :1])
    replaced(path, bits % (12, 11, 0), bits % (12, 15, 0))
    with pytest.raises(InputError, match=r"s1_001\.dcm: expected its 12 bits to end at bit 11, received bit 15"):
        look(tmp_path / "s")


def test_a_dose_is_not_read_without_its_scale(tmp_path):
    samples.write_dicom(tmp_path / "s", IMAGE[..., :1], storage="1.2.840.10008.5.1.4.1.1.481.2")
    with pytest.raises(InputError, match=r"s1_001\.dcm: a dose \(RTDOSE\), .* without their scale .* take it out, or"):
        look(tmp_path / "s")
    samples.write_nifti(tmp_path / "a.nii.gz", IMAGE, (-0.9, -0.9, 6.0))
    with pytest.raises(InputError, match=r"s1_001\.dcm: a dose"):  # as a channel, too
        read_item(LoadFilesd("image"), {"image": [str(tmp_path / "a.nii.gz"), str(tmp_path / "s")]})


def test_slices_with_a_sign_beside_some_without_keep_what_is_below_zero(tmp_path):
    signed = IMAGE - np.array([0, 0, 500, 0, 500, 0], np.int16)
    samples.write_dicom(tmp_path / "s", signed)
    for path in [max((tmp_path / "s").iterdir()), min((tmp_path / "s").iterdir())]:  # the first and the last
        content, number = re.subn(rb"(\x28\0\x03\x01\x02\0\0\0)\x01", rb"\1\0", path.read_bytes())
        assert number == 1
        path.write_bytes(content)
    np.testing.assert_array_equal(image_loader()(tmp_path / "s").numpy()[0], signed)


@pytest.mark.parametrize("ending", [".dcm", ""])
def test_a_last_slice_that_was_cut_off_is_not_left_out(tmp_path, ending):
    samples.write_dicom(tmp_path / "s", IMAGE)
    for path in (tmp_path / "s").iterdir():
        path.rename(path.with_suffix(ending))
    (tmp_path / "s/LICENSE").write_text("CC BY 4.0")
    (tmp_path / "s/._s1_001.dcm").write_bytes(b"")
    assert look(tmp_path / "s").shape == IMAGE.shape
    for content in (b"", bytes(100), bytes(1000), *[b"<!DOCTYPE html>" * 20] * (ending == ".dcm")):
        (tmp_path / f"s/s1_006{ending}").write_bytes(content)
        with pytest.raises(
            InputError, match=rf"s1_006{ending}: lies among the slices of a DICOM series, .* copy it anew"
        ):
            look(tmp_path / "s")


def test_pixels_that_were_cut_off_are_not_made_up(tmp_path):
    """ITK fills them up with zeros, or with what lies in memory, where the file gives the length of what is left."""
    samples.write_dicom(tmp_path / "s", IMAGE)
    path = sorted((tmp_path / "s").iterdir())[2]
    multi_frame(tmp_path / "m" / "a.dcm", (0, 5, 10, 15))
    for file, head, needed in ((path, 8, 160), (tmp_path / "m" / "a.dcm", 12, 384)):
        content = file.read_bytes()
        start = content.rindex(b"\xe0\x7f\x10\0") + head
        file.write_bytes(content[: start - 4] + (needed - 6).to_bytes(4, "little") + content[start:-6])
        with pytest.raises(InputError, match=rf"{file.name}: expected {needed} bytes of pixels, received {needed - 6}, "
                                             r".* cut off; copy it anew"):  # fmt: skip
            look(file.parent)
        file.write_bytes(content[:-6])
        with pytest.raises(InputError, match=rf"{file.name}: .* cut off; copy it anew, or take it out"):
            look(file.parent)


@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_an_odd_number_of_pixels_may_be_padded(tmp_path, padding):
    samples.write_dicom(tmp_path / "s", IMAGE[:9, :7, :1])
    (path,) = (tmp_path / "s").iterdir()
    content = re.sub(rb"(\x28\0[\0\1\2]\x01\x02\0\0\0)(.)", lambda m: m[1] + bytes([m[2][0] - 8]), path.read_bytes())
    head, pixels = content[: content.rindex(b"\xe0\x7f\x10\0") + 4], bytes(range(63)) + padding
    path.write_bytes(head + len(pixels).to_bytes(4, "little") + pixels)
    np.testing.assert_array_equal(image_loader()(tmp_path / "s")[0, ..., 0].T.ravel(), np.arange(63))


@pytest.mark.parametrize("relation", ["", "LOG"])
def test_a_table_of_values_is_not_passed_over(tmp_path, relation):
    """ITK reads what is stored; the table of X-ray angiography is not for display."""
    samples.write_dicom(tmp_path / "s", IMAGE[..., :1], told=[{"0028|1040": relation}] if relation else [])
    (path,) = (tmp_path / "s").iterdir()
    content = path.read_bytes()
    start = content.rindex(b"\xe0\x7f\x10\0")
    item = b"\x28\0\x06\x30\4\0\0\0\0\1\0\2"  # its numbers alone
    item = b"\xfe\xff\0\xe0" + len(item).to_bytes(4, "little") + item
    table = b"\x28\0\0\x30" + len(item).to_bytes(4, "little") + item
    path.write_bytes(content[:start] + table + content[start:])
    if relation:
        np.testing.assert_array_equal(image_loader()(tmp_path / "s")[0], IMAGE[..., :1])
    else:
        with pytest.raises(InputError, match=r"s1_001\.dcm: .*received a Modality LUT Sequence.*apply it with pydicom"):
            look(tmp_path / "s")


def test_contours_are_named_as_such(tmp_path):
    """RTSTRUCT: an image's header says what the file stores; it has no pixels."""
    samples.write_dicom(tmp_path / "labels/s", IMAGE[..., :1], storage="1.2.840.10008.5.1.4.1.1.481.3")
    (path,) = (tmp_path / "labels/s").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\x28\x00")])
    for label in (path, tmp_path / "labels/s"):
        with pytest.raises(InputError, match=r"contours \(RTSTRUCT\), which are not read; export them as a labelmap"):
            look(label, label=True)
    samples.write_dicom(tmp_path / "images/p1", IMAGE)
    for folder in (tmp_path / "labels/s", tmp_path / "labels"):  # alone, and in the folder of its patient
        with pytest.raises(InputError) as caught:
            create(str(tmp_path / "images"), str(folder), str(tmp_path / "list.json"))
        assert re.fullmatch(rf"{path}: contours [^\n]* `plastimatch[^\n]*", str(caught.value)), "no line about its name"
    for number in (1, 2):
        shutil.copy(path, tmp_path / f"labels/P{number}.dcm")
    with pytest.raises(InputError, match=r"labels/P1\.dcm: contours .*, and 1 more in its folder; export"):
        create(str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "list.json"))
    path.rename(tmp_path / "images/p1/RS.dcm")  # among the slices, as planning systems export it
    with pytest.raises(InputError, match=r"RS\.dcm: contours .*, and take the file out of the folder of the slices\."):
        look(tmp_path / "images/p1")


def test_a_single_slice_is_an_image(tmp_path):
    samples.write_dicom(tmp_path / "s", IMAGE[..., :1])
    assert look(tmp_path / "s").shape[:2] == (10, 8)
    np.testing.assert_allclose(look(tmp_path / "s").spacing[:2], (0.9, 0.9), atol=1e-4)


def test_a_single_slice_in_colours_is_an_image_of_three_channels(tmp_path):
    """As of ultrasound and of secondary capture: it was taken for three volumes."""
    samples.write_dicom(tmp_path / "s", IMAGE[..., :1], coloured=[0])
    facts = look(tmp_path / "s")
    assert (facts.channels, facts.shape) == (3, (10, 8, 1))
    np.testing.assert_array_equal(image_loader()(tmp_path / "s"), np.stack([IMAGE[..., :1].astype(np.uint8)] * 3))


def multi_frame(
    path, places, *, syntax: str = ".1", slopes=(), philips: bool = False, stamp: bytes = b""
) -> np.ndarray:
    """An enhanced MR file of frames at these places, 5 mm apart where they are even; returns the frames as stored.

    Args:
        syntax: end of the transfer syntax: explicit little endian, implicit (empty), deflated, or big endian.
        slopes: of the frames.
        philips: whether each frame tells its place once more, as in that maker's files.
        stamp: the first bytes of each frame.
    """

    def element(group, number, kind, value) -> bytes:
        order = "big" if syntax == ".2" and group > 2 else "little"
        if isinstance(value, int):
            value = value.to_bytes({"US": 2, "UL": 4}[kind], order)
        value = value if isinstance(value, bytes) else value.encode()
        value += (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
        tag = group.to_bytes(2, order) + number.to_bytes(2, order)
        if kind == "item" or (not syntax and group > 2):
            return tag + len(value).to_bytes(4, order) + value
        long = kind in ("OB", "OW", "SQ")
        return tag + kind.encode() + (b"\0\0" * long) + len(value).to_bytes(4 if long else 2, order) + value

    def sequence(group, number, *items) -> bytes:
        return element(group, number, "SQ", b"".join(element(0xFFFE, 0xE000, "item", item) for item in items))

    order = ">i2" if syntax == ".2" else "<i2"
    pixels = np.stack([np.full(48, 10 * (k + 1), "<i2") for k in range(len(places))])
    pixels[:, : len(stamp) // 2] = np.frombuffer(stamp, order)
    frames = pixels.reshape(-1, 6, 8).T
    storage = "1.2.840.10008.5.1.4.1.1.4.1"
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", storage) + element(2, 3, "UI", "1.2.3")
    meta += element(2, 16, "UI", "1.2.840.10008.1.2" + syntax)
    shared = sequence(0x20, 0x9116, element(0x20, 0x37, "DS", "1\\0\\0\\0\\1\\0"))
    shared += sequence(0x28, 0x9110, element(0x18, 0x50, "DS", "5") + element(0x28, 0x30, "DS", "1\\1"))
    each = [sequence(0x20, 0x9113, element(0x20, 0x32, "DS", f"0\\0\\{place}")) for place in places]
    for k, place in enumerate(places if philips else ()):
        again = element(0x20, 0x32, "DS", f"0\\0\\{place}") + element(0x20, 0x37, "DS", "1\\0\\0\\0\\1\\0")
        each[k] += element(0x2005, 0x14, "LO", "Philips MR Imaging DD 005") + sequence(0x2005, 0x140F, again)
    for k, slope in enumerate(slopes):
        scale = element(0x28, 0x1052, "DS", "0") + element(0x28, 0x1053, "DS", str(slope))
        each[k] += sequence(0x28, 0x9145, scale + element(0x28, 0x1054, "LO", "US"))
    numbers = {0x02: 1, 0x10: 6, 0x11: 8, 0x100: 16, 0x101: 16, 0x102: 15, 0x103: 1}
    image = {number: element(0x28, number, "US", value) for number, value in numbers.items()}
    image[4], image[8] = element(0x28, 4, "CS", "MONOCHROME2"), element(0x28, 8, "IS", str(len(places)))
    content = (
        element(8, 8, "CS", "ORIGINAL\\PRIMARY\\M\\NONE") + element(8, 0x16, "UI", storage)
        + element(8, 0x18, "UI", "1.2.3") + element(8, 0x60, "CS", "MR") + element(0x20, 0xE, "UI", "1.2.9")
        + b"".join(image[number] for number in sorted(image)) + sequence(0x5200, 0x9229, shared)
        + sequence(0x5200, 0x9230, *each) + element(0x7FE0, 0x10, "OW", pixels.astype(order).tobytes())
    )  # fmt: skip
    if syntax == ".1.99":
        content = zlib.compress(content, wbits=-zlib.MAX_WBITS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + element(2, 0, "UL", len(meta)) + meta + content)
    return frames


KINDS = [{}, {"syntax": ""}, {"syntax": ".1.99"}, {"syntax": ".2"}, {"philips": True}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("places", [(0, 5, 10, 15), (15, 10, 5, 0)])
def test_frames_of_one_volume_pass(tmp_path, places, kind):
    frames = multi_frame(tmp_path / "s" / "a.dcm", places, **kind)
    read = image_loader()(tmp_path / "s")
    np.testing.assert_array_equal(read[0], frames)
    np.testing.assert_allclose(read.affine[2, 2:], (places[1] - places[0], places[0]))
    assert states_unit_size(tmp_path / "s")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("places", "message"), [
    ((0, 5, 0, 5), "2 of 4 slices lie where another does"), ((0, 5, 10, 30), "gaps of 5 mm and one of 20 mm"),
    ((5, 0, 15, 10), "not stored in the order in which they lie"),
])  # fmt: skip
def test_frames_of_several_volumes_are_refused(tmp_path, places, message, kind):
    """Time points, echoes or stacks in one file, which ITK takes for one volume."""
    multi_frame(tmp_path / "s" / "a.dcm", places, **kind)
    with pytest.raises(InputError, match=rf"a\.dcm: 4 frames in one file, .*{message}.*dcm2niix"):
        look(tmp_path / "s")


@pytest.mark.parametrize("syntax", ["", ".1", ".1.99", ".2"])
def test_pixels_that_look_like_a_header_tell_nothing(tmp_path, syntax):
    """Places, a slope, a table of values and other pixels, in bytes by chance."""
    stamp = b"".join(
        tag + (kind + len(value).to_bytes(2, "little") if syntax else len(value).to_bytes(4, "little")) + value
        for tag, kind, value in (
            (b"\x20\0\x32\0", b"DS", b"0\\0\\99  "), (b"\x28\0\x53\x10", b"DS", b"7 "),
            (b"\x28\0\0\x30", b"SQ", b"\0\0\0\0\xfe\xff\0\xe0"), (b"\xe0\x7f\x10\0", b"OW", b"\0\0\xff\0\0\0"),
        )
    )  # fmt: skip
    frames = multi_frame(tmp_path / "s" / "a.dcm", (0, 5, 10, 15), syntax=syntax, slopes=(2, 2, 2, 2), stamp=stamp)
    np.testing.assert_array_equal(image_loader()(tmp_path / "s")[0], 2.0 * frames)
    for places, slopes, message in (
        ((0, 5, 10, 30), (), "gaps of 5 mm and one of 20 mm"),
        ((5, 0, 15, 10), (), "not stored in the order"),
        ((0, 5, 10, 15), (2, 2, 3, 3), "slope from 2 to 3"),
    ):
        multi_frame(tmp_path / "s" / "a.dcm", places, syntax=syntax, slopes=slopes, stamp=stamp)
        with pytest.raises(InputError, match=rf"4 frames in one file, .*{message}"):
            look(tmp_path / "s")


@pytest.mark.parametrize("other", [True, False])
def test_files_of_several_frames_are_no_slices_of_one_volume(tmp_path, other):
    multi_frame(tmp_path / "s" / "a.dcm", (0, 5, 10, 15))
    if other:
        (tmp_path / "s" / "b.dcm").write_bytes((tmp_path / "s" / "a.dcm").read_bytes())
    else:
        samples.write_dicom(tmp_path / "s", IMAGE[..., :1], told=[{"0020|000e": "1.2.9"}])
    with pytest.raises(
        InputError, match=rf"s: {1 + other} of 2 files hold several frames, .*\(a\.dcm first\); put each"
    ):
        look(tmp_path / "s")


def test_files_of_one_frame_each_are_not_called_images_without_a_position(tmp_path):
    """Enhanced CT with a file for each slice: as PNG it would lose its Hounsfield units, and its place."""
    for place in (0, 5, 10):
        multi_frame(tmp_path / "s" / f"{place}.dcm", (place,))
    with pytest.raises(InputError, match=r"s: 3 files of enhanced DICOM with one frame each, .*dcm2niix"):
        look(tmp_path / "s")
    assert look(tmp_path / "s" / "5.dcm").shape == (8, 6, 1)


@pytest.mark.parametrize("syntax", ["", ".1", ".1.99", ".2"])
def test_frames_of_several_slopes_are_refused(tmp_path, syntax):
    """Enhanced PET, and MR of Philips: ITK takes the slope of the first frame for all."""
    frames = multi_frame(tmp_path / "s" / "a.dcm", (0, 5, 10, 15), syntax=syntax, slopes=(2, "2.0", 2, 2))
    np.testing.assert_array_equal(image_loader()(tmp_path / "s")[0], 2 * frames)
    multi_frame(tmp_path / "t" / "a.dcm", (0, 5, 10, 15), syntax=syntax, slopes=(2, 3, 2, 2.5))
    with pytest.raises(InputError, match=r"4 frames in one file, with a rescale slope from 2 to 3, of which.*dcm2niix"):
        look(tmp_path / "t")
