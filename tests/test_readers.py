"""Headers as the benchmarks' files have them: each quirk is read to the same values and the same spacing."""

from __future__ import annotations

import gzip
import zlib

import nibabel as nib
import numpy as np
import pytest
import samples
import tifffile
from monai.transforms import EnsureChannelFirstd
from PIL import Image
from scripts.dataio.folders import find_images
from scripts.dataio.loaders import read_item
from scripts.dataio.readers import LoadFilesd, image_loader, read_grid
from scripts.dataio.tiff import ORIENTATION_TAG
from scripts.errors import InputError, find_input_error
from scripts.preparation.survey import look

IMAGE, LABEL = samples.blob((12, 10, 4), seed=3)


def read(path):
    tensor = image_loader()(path)
    return tensor[0].numpy(), np.linalg.norm(tensor.affine[:3, :3].numpy(), axis=0)


@pytest.mark.parametrize("options", [{}, {"big_endian": True}, {"compressed": True}], ids=["little", "big", "zraw"])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.int8])
def test_metaimage(tmp_path, options, kind):
    array = LABEL.astype(kind) if kind is not np.int16 else IMAGE
    samples.write_mhd(tmp_path / "a.mhd", array, (0.625, 0.625, 3.6), **options)
    values, spacing = read(tmp_path / "a.mhd")
    np.testing.assert_array_equal(values, array)
    np.testing.assert_allclose(spacing, (0.625, 0.625, 3.6))


@pytest.mark.parametrize("unit", ["cm", "m", "um", "\u00b5m", "micron", "mm", "", "pixel"])
def test_sizes_in_another_unit_than_mm_are_refused(tmp_path, unit):
    """ITK takes the numbers for mm, whatever the header calls them."""
    told = {"space.nrrd": f'space units: "{unit}" "{unit}" "{unit}"', "axes.nrrd": f'units: "{unit}" "{unit}" "{unit}"'}
    for name, line in told.items():
        header = "type: short\ndimension: 3\nsizes: 12 10 4\nendian: little\nencoding: raw"
        where = "space directions: (0.5,0,0) (0,0.5,0) (0,0,2)\nspace origin: (0,0,0)"
        where = f"space: left-posterior-superior\n{where}" if name == "space.nrrd" else "spacings: 0.5 0.5 2"
        content = f"NRRD0005\n{header}\n{where}\n{line}\n\n".encode() + IMAGE.T.astype("<i2").tobytes()
        (tmp_path / name).write_bytes(content)
    samples.write_mhd(tmp_path / "a.mhd", IMAGE, (0.5, 0.5, 2.0))
    header = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_bytes(header.replace("DimSize", f"DistanceUnits = {unit or '?'}\nDimSize").encode())
    for name in (*told, "a.mhd"):
        if unit in ("mm", "", "pixel"):
            np.testing.assert_allclose(read(tmp_path / name)[1], (0.5, 0.5, 2.0))
        else:
            with pytest.raises(InputError, match=rf"{name}: expected sizes and places in mm, received {unit} by its"):
                look(tmp_path / name)


@pytest.mark.parametrize(
    "space", ["scanner-xyz", "\tscanner-xyz", "3D-right-handed", "3d-Left-Handed", "", "RAS", "dimension"]
)
def test_axes_that_are_not_of_the_body_are_refused(tmp_path, space):
    """ITK takes them for left-posterior-superior, as it does for files that state nothing."""
    line = "space dimension: 3\n" if space == "dimension" else f"space: {space}\n" * bool(space)
    where = "space directions: (0.5,0,0) (0,0.5,0) (0,0,2)" if space else "spacings: 0.5 0.5 2"
    header = "NRRD0005\ntype: short\ndimension: 3\nsizes: 12 10 4\nendian: little\nencoding: raw\n"
    (tmp_path / "a.nrrd").write_bytes(f"{header}{line}{where}\n\n".encode() + IMAGE.T.astype("<i2").tobytes())
    if "-" in space:
        with pytest.raises(InputError, match=f"a.nrrd: expected a space of .* received {space.strip()}, .* in LPS"):
            look(tmp_path / "a.nrrd")
    else:
        side = 0.5 if space == "RAS" else -0.5
        assert look(tmp_path / "a.nrrd").affine.diagonal().tolist() == [side, side, 2, 1]


@pytest.mark.parametrize("name", ["a.mhd", "a.mha", "detached.nrrd"])
def test_voxels_that_lack_their_end_are_not_made_up(tmp_path, name):
    voxels = IMAGE.T.astype("<i2").tobytes()
    samples.write_mhd(tmp_path / "a.mhd", IMAGE)
    if name == "a.mha":
        header = (tmp_path / "a.mhd").read_text().replace("a.raw", "LOCAL").encode()
    else:
        header = b"NRRD0005\ntype: short\ndimension: 3\nsizes: 12 10 4\nendian: little\nencoding: raw\n"
        header += b"data file: a.raw\n\n"
    for length in (len(voxels), len(voxels) - 10, 0):
        (tmp_path / "a.raw").write_bytes(voxels[:length])
        if name != "a.mhd":
            (tmp_path / name).write_bytes(header + voxels[:length] * (name == "a.mha"))
        if length == len(voxels):
            np.testing.assert_array_equal(read(tmp_path / name)[0], IMAGE)
        else:
            with pytest.raises(InputError, match=f"{name}: cannot be read as an image"):
                look(tmp_path / name)


def test_signed_bytes_in_other_formats_and_below_zero(tmp_path):
    array = LABEL.astype(np.int8) - 1
    raw = array.T.tobytes()
    sizes = " ".join(map(str, array.shape))
    (tmp_path / "a.nrrd").write_bytes(
        f"NRRD0004\ntype: signed char\ndimension: 3\nsizes: {sizes}\nspacings: 1 1 2\nencoding: raw\n\n".encode() + raw
    )
    packed = zlib.compress(raw)
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nCompressedDataSize = {len(packed)}\n"
        f"DimSize = {sizes}\nElementSpacing = 1 1 2\nElementType = MET_CHAR\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "b.mha").write_bytes(header.encode() + packed)
    for name in ("a.nrrd", "b.mha"):
        values, spacing = read(tmp_path / name)
        np.testing.assert_array_equal(values, array)
        assert spacing[2] == 2


def test_nifti_of_16_bits_with_a_slope(tmp_path):
    samples.write_nifti(tmp_path / "a.nii.gz", IMAGE * 2.5, (1.56, 1.56, 10.0), slope=2.5)
    values, spacing = read(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(values, IMAGE * 2.5)
    np.testing.assert_allclose(spacing, (1.56, 1.56, 10.0), atol=1e-5)


@pytest.mark.parametrize("ending", [".dcm", ".IMA", ".dicom", "", ".1000"])  # the last as of a UID
def test_dicom_slices_are_ordered_by_position_not_by_name(tmp_path, ending):
    samples.write_dicom(tmp_path / "series", IMAGE, (0.9, 0.9, 6.0), ending=ending)
    values, spacing = read(tmp_path / "series")
    np.testing.assert_array_equal(values, IMAGE)
    np.testing.assert_allclose(spacing, (0.9, 0.9, 6.0), atol=1e-4)


def test_masks_of_0_and_255(tmp_path):
    samples.write_picture(tmp_path / "a.png", LABEL[..., 0] * 255)
    facts = look(tmp_path / "a.png", label=True)
    assert list(facts.values) == [0, 255] and facts.shape == (12, 10)


@pytest.mark.parametrize("size", [(33, 57), (64, 40)])
def test_jpg_of_uneven_sizes_in_colour(tmp_path, size):
    colour = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    samples.write_picture(tmp_path / "a.jpg", colour, quality=95)
    assert Image.open(tmp_path / "a.jpg").size == size
    facts = look(tmp_path / "a.jpg")
    assert facts.channels == 3 and facts.shape == size and facts.intensity[3] <= 255


def test_the_directory_of_a_dicom_medium_is_no_series(tmp_path):
    (tmp_path / "cd" / "s1").mkdir(parents=True)
    for name in ("cd/DICOMDIR", "cd/s1/IM0001"):
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM")
    assert find_images(tmp_path / "cd", recursive=True) == {"s1": tmp_path / "cd" / "s1"}


def shown(path, *, label=False):
    return image_loader(label=label)(path).numpy()


@pytest.mark.parametrize("turn", [3, 6, 8])
def test_photographs_lie_as_viewers_show_them(tmp_path, turn):
    """EXIF says how a picture was held; the mask is drawn on the picture as it is seen."""
    picture = Image.fromarray(np.moveaxis(LABEL[..., 0] * 255, 0, 1))
    stored = picture.transpose({3: Image.ROTATE_180, 6: Image.ROTATE_90, 8: Image.ROTATE_270}[turn])
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = turn
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(shown(tmp_path / "a.png")[0], LABEL[..., 0] * 255)
    np.testing.assert_array_equal(LoadFilesd("image")({"image": str(tmp_path / "a.png")})["image"], LABEL[..., 0] * 255)
    assert look(tmp_path / "a.png").shape == (12, 10)


def test_a_palette_is_colours_in_an_image_and_numbers_in_a_label(tmp_path):
    numbers = np.moveaxis(LABEL[..., 0], 0, 1)
    picture = Image.fromarray(numbers)
    picture.putpalette([10, 20, 30, 200, 100, 0])
    picture.save(tmp_path / "a.png")
    image = shown(tmp_path / "a.png")
    assert image.shape == (3, 12, 10) and image[:, LABEL[..., 0] == 1].T.tolist()[0] == [200, 100, 0]
    np.testing.assert_array_equal(shown(tmp_path / "a.png", label=True)[0], LABEL[..., 0])
    item = LoadFilesd(["image", "label"])({key: str(tmp_path / "a.png") for key in ("image", "label")})
    assert item["image"].shape == (12, 10, 3) and item["label"].shape == (12, 10)
    picture.putpalette([10, 10, 10, 200, 200, 200])
    picture.save(tmp_path / "grey.png")
    assert shown(tmp_path / "grey.png").shape == (1, 12, 10)


@pytest.mark.parametrize("kind, channels", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits_keeps_them_or_is_refused(tmp_path, kind, channels):
    """Pillow drops the lower 8 of each colour: 16 levels of grey were left of a camera of 12 bits."""
    values = np.random.default_rng(0).integers(0, 4096, (10, 12, channels)).astype(">u2")

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    head = (12).to_bytes(4) + (10).to_bytes(4) + bytes([16, kind, 0, 0, 0])
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    if channels == 1:
        np.testing.assert_array_equal(shown(tmp_path / "a.png")[0], values[..., 0].T)
        return
    with pytest.raises(InputError, match=r"a\.png: expected PNG of 8 bits a colour, .* of 16 bits; save it"):
        look(tmp_path / "a.png")


def test_tiff_that_viewers_turn_is_refused(tmp_path):
    samples.write_tiff(tmp_path / "a.tif", IMAGE.astype(np.uint8), dpi=300, orientation=3)
    with pytest.raises(InputError, match=r"a\.tif: a TIFF with an orientation \(3\).*PNG"):
        look(tmp_path / "a.tif")


def test_segments_that_overlap_are_named(tmp_path):
    array = np.stack([LABEL, LABEL]).astype(np.uint8)
    (tmp_path / "a.seg.nrrd").write_bytes(
        b"NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 12 10 4\n"
        b"space directions: none (1,0,0) (0,1,0) (0,0,5)\nkinds: list domain domain domain\nencoding: raw\n"
        b"space origin: (0,0,0)\n\n" + array.tobytes(order="F")
    )
    with pytest.raises(InputError, match=r"a\.seg\.nrrd: a Slicer segmentation whose segments overlap.*labelmap"):
        look(tmp_path / "a.seg.nrrd", label=True)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.Nii"])
@pytest.mark.parametrize("kind", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["complex", "colours"])
def test_nifti_of_more_than_one_number_a_voxel_is_refused(tmp_path, kind, name):
    """Nothing but the real part would be left of complex numbers."""
    nib.Nifti1Image(np.zeros((4, 4, 2), kind), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    text = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / name).write_bytes(text if name.endswith("gz") else gzip.decompress(text))
    with pytest.raises(Exception, match=r"one real number a voxel, received a NIfTI of (complex numbers|colours)") as e:
        read(tmp_path / name)
    assert find_input_error(e.value)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (1, 1, 1), (3, 1)])
def test_nifti_lists_channels_along_a_fifth_axis(tmp_path, shape):
    """As ANTs and SimpleITK write them; a volume with axes of one behind its own three is a volume."""
    array = np.random.default_rng(0).integers(0, 9, (12, 10, 4, *shape)).astype(np.int16)
    image = nib.Nifti1Image(array, np.diag([1.5, 1.4, 5, 1]))
    image.header.set_slope_inter(2.0, 1.0)
    nib.save(image, tmp_path / "a.nii.gz")
    read = image_loader()(tmp_path / "a.nii.gz")
    expected = nib.load(tmp_path / "a.nii.gz").get_fdata().reshape(12, 10, 4, -1)
    np.testing.assert_allclose(read.numpy(), np.moveaxis(expected, -1, 0))
    np.testing.assert_allclose(read.affine, image.affine)
    assert read_grid(tmp_path / "a.nii.gz")[1] == (12, 10, 4)
    facts = look(tmp_path / "a.nii.gz", channels=3)
    assert (facts.channels, facts.shape, facts.spacing) == (max(shape), (12, 10, 4), (1.5, 1.4, 5.0))
    samples.write_nifti(tmp_path / "label.nii.gz", LABEL[..., None, None])
    assert look(tmp_path / "label.nii.gz", label=True).shape == (12, 10, 4)


def test_nifti_of_time_points_and_channels_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4, 3, 2), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(
        InputError, match=r"a\.nii\.gz: expected a volume, or .* received 6 x 5 x 4 x 3 x 2 voxels; split"
    ):
        look(tmp_path / "a.nii.gz")


def test_whole_numbers_of_64_bits(tmp_path):
    """Labels that were arrays of numpy, as SimpleITK writes them."""
    array, sizes = (LABEL.astype("<i8") * 7).tobytes(order="F"), " ".join(map(str, LABEL.shape))
    (tmp_path / "a.nrrd").write_bytes(
        f"NRRD0004\ntype: long long int\ndimension: 3\nsizes: {sizes}\nspacings: 1 1 2\nendian: little\n"
        "encoding: raw\n\n".encode()
        + array
    )
    (tmp_path / "b.mha").write_bytes(
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = {sizes}\n"
        "ElementSpacing = 1 1 2\nElementType = MET_LONG_LONG\nElementDataFile = LOCAL\n".encode()
        + array
    )
    for name in ("a.nrrd", "b.mha"):
        values, spacing = read(tmp_path / name)
        np.testing.assert_array_equal(values, LABEL * 7)
        assert spacing[2] == 2


@pytest.mark.parametrize("channels", [2, 3, 5])
@pytest.mark.parametrize("kind", ["short", "unsigned char"])
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".MHA"])
def test_several_channels_of_whole_numbers(tmp_path, ending, kind, channels):
    """As modalities that lie on one grid are written by SimpleITK."""
    stored = np.random.default_rng(0).integers(0, 200, (channels, 12, 10, 4), {"short": "<i2"}.get(kind, "u1"))
    header = (
        f"NRRD0004\ntype: {kind}\ndimension: 4\nsizes: {channels} 12 10 4\nspacings: nan 1 1.5 2\n"
        "kinds: vector domain domain domain\nendian: little\nencoding: raw\n\n"
        if ending == ".nrrd"
        else "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = 12 10 4\n"
        f"ElementSpacing = 1 1.5 2\nElementNumberOfChannels = {channels}\n"
        f"ElementType = {'MET_SHORT' if kind == 'short' else 'MET_UCHAR'}\nElementDataFile = LOCAL\n"
    )
    (tmp_path / f"a{ending}").write_bytes(header.encode() + stored.tobytes(order="F"))
    np.testing.assert_array_equal(shown(tmp_path / f"a{ending}"), stored)
    facts = look(tmp_path / f"a{ending}", channels=channels)
    assert (facts.channels, facts.spacing) == (channels, (1.0, 1.5, 2.0))


def odd_tiffs() -> dict:
    """TIFF that ITK turns into four channels of bytes, or refuses, and their values, ``(rows, columns, ...)``."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 4096, (40, 30)).astype(np.uint16), rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)
    tiles = {"tile": (16, 16), "metadata": None}
    return {
        "16 bits": (grey, grey, tiles),
        "compressed, big-endian": (grey, grey, {**tiles, "compression": "zlib", "byteorder": ">"}),
        "fractions": (grey / np.float32(7), grey / np.float32(7), tiles),
        "stack": (np.stack([grey, grey + 1]), np.stack([grey, grey + 1], -1), {**tiles, "photometric": "minisblack"}),
        "0 is white": (colour[..., 0], colour[..., 0], {**tiles, "photometric": "miniswhite"}),
        "colour": (colour, colour, {**tiles, "photometric": "rgb"}),
        "planes": (np.moveaxis(colour, -1, 0), colour, {"photometric": "rgb", "planarconfig": "separate"}),
        "colour of 16 bits": (257 * colour.astype(np.uint16), 257.0 * colour, {"photometric": "rgb"}),
        "signed bytes": (colour[..., 0].astype(np.int8), colour[..., 0].astype(np.int8), {}),
    }


@pytest.mark.parametrize("kind", odd_tiffs())
def test_tiff_of_any_kind_keeps_its_numbers_and_channels(tmp_path, kind):
    stored, values, options = odd_tiffs()[kind]
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    expected = np.swapaxes(values, 0, 1)
    expected = np.moveaxis(expected, -1, 0) if options.get("photometric") == "rgb" else expected[None]
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), expected)


def test_tiff_of_a_smaller_copy_and_of_single_bits(tmp_path):
    large, small = IMAGE[..., 0].T.astype(np.uint16), IMAGE[::2, ::2, 0].T.astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page, kind in ((large, 0), (small, 1)):
            file.write(page, subfiletype=kind, tile=(16, 16), metadata=None)
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), IMAGE[None, ..., 0])
    Image.fromarray(LABEL[..., 0].T > 0).save(tmp_path / "b.tif", compression="group4")
    np.testing.assert_array_equal(shown(tmp_path / "b.tif", label=True), LABEL[None, ..., 0])


@pytest.mark.parametrize("shape, kind, options, found", [
    ((20, 30, 2), np.uint8, {"planarconfig": "contig"}, "2 channels of 8 bits"),
    ((20, 30, 3), np.uint16, {"tile": (16, 16), "photometric": "rgb"}, "3 channels of 16 bits"),
    ((6, 20, 30), np.uint8, {"tile": (2, 16, 16), "volumetric": True}, "6 slices in one page"),
    ((20, 30), np.float64, {}, "numbers or channels of another kind"),
])  # fmt: skip
def test_tiff_that_cannot_be_read_as_it_is_is_refused(tmp_path, shape, kind, options, found):
    """Of two channels in turn one of their mixed values came out."""
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, kind), **{"photometric": "minisblack", **options})
    with pytest.raises(
        InputError, match=rf"a\.tif: expected a TIFF of one number a pixel.*received {found}; save it so"
    ):
        look(tmp_path / "a.tif")


@pytest.mark.parametrize("second, found", [
    (np.ones((24, 32), np.uint8), r"16 x 12 \(L\) and 32 x 24 \(L\)"),
    (np.ones((12, 16, 3), np.uint8), r"16 x 12 \(L\) and 16 x 12 \(RGB\)"),
    (np.ones((12, 16), np.uint16), r"16 x 12 \(I;16\) and 16 x 12 \(L\)"),
])  # fmt: skip
def test_pages_of_tiff_that_differ_are_no_slices(tmp_path, second, found):
    """ITK cut the second to the size of the first, or took its bytes for numbers of the first's kind."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(np.ones((12, 16), np.uint8), photometric="minisblack", metadata=None)
        file.write(second, photometric="rgb" if second.ndim == 3 else "minisblack", metadata=None)
    with pytest.raises(InputError, match=rf"a\.tif: expected pages of one size and kind, .*received {found}"):
        look(tmp_path / "a.tif")


@pytest.mark.parametrize("ending", [".mha", ".mhd"])
def test_compressed_voxels_that_are_broken_are_not_made_up(tmp_path, ending):
    """As of a download that was cut off, whose file has its full size: ITK reads whatever the memory held."""
    samples.write_mhd(tmp_path / "a.mhd", IMAGE, compressed=True)
    voxels = (tmp_path / "a.zraw").read_bytes()
    path, file = tmp_path / f"b{ending}", tmp_path / ("b.mha" if ending == ".mha" else "b.zraw")
    header = (tmp_path / "a.mhd").read_text().replace("a.zraw", "LOCAL" if ending == ".mha" else "b.zraw")
    for content in (voxels, voxels[:200] + bytes(len(voxels) - 200)):
        file.write_bytes(content)
        path.write_bytes(header.encode() + (content if ending == ".mha" else b""))
        if content == voxels:
            np.testing.assert_array_equal(read(path)[0], IMAGE)
    with pytest.raises(InputError, match=rf"{file.name}: expected compressed voxels, received some .* broken; copy it"):
        look(path)
    if ending == ".mha":
        path.write_bytes(header.replace("CompressedDataSize", "Comment").encode() + voxels)
        with pytest.raises(InputError, match=r"b\.mha: .*without the CompressedDataSize"):
            look(path)


def test_a_stack_of_tiff_that_is_cut_off_in_its_last_page_is_not_read_without_it(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.ascontiguousarray(IMAGE.T.astype(np.uint16)), photometric="minisblack", compression="zlib"
    )
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as stack:
        start = stack.pages[-1].offset
    for length in (start + 1, start + 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image"):
            look(path)
    path.write_bytes(whole)
    np.testing.assert_array_equal(read(path)[0], IMAGE)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_what_is_compressed_by_gzip_is_whole(tmp_path, ending):
    """As of a download of the full size that ends with zeros, and of a disk that lost a byte: the sum is never read."""
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).integers(0, 1000, (12, 10, 6)).astype(np.int16)
    if ending == ".nrrd":
        header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 12 10 6\nendian: little\nencoding: gzip\n\n"
        path.write_bytes(header + gzip.compress(noise.T.tobytes()))
    else:
        samples.write_nifti(path, noise)
    whole = path.read_bytes()
    np.testing.assert_array_equal(read(path)[0], noise)
    for content in (whole[:900] + bytes(len(whole) - 900), whole[:-200], whole[:-8] + bytes(8)):
        path.write_bytes(content)
        for read_it in (look, lambda file: read_item(LoadFilesd("image"), {"image": str(file)})):
            with pytest.raises(InputError, match=rf"a{ending}: expected compressed voxels, .* broken; copy it anew"):
                read_it(path)


def test_a_jpeg_that_ends_with_zeros_is_not_made_up(tmp_path):
    path = tmp_path / "a.jpg"
    samples.write_picture(path, np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content + bytes(10))  # padded, and whole
    assert look(path).shape == (40, 30)
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))
    with pytest.raises(InputError, match=r"a\.jpg: expected a whole JPEG, received one that is cut off; copy it anew"):
        look(path)


def test_channels_in_files_of_several_formats_are_each_looked_at(tmp_path):
    """MONAI gave them all to ITK, which reads what is broken in a NIfTI file, too."""
    samples.write_itk(tmp_path / "a.nrrd", IMAGE, (1.5, 1.5, 8.0))
    samples.write_nifti(tmp_path / "b.nii.gz", IMAGE + 1, (-1.5, -1.5, 8.0))
    for names in (["a.nrrd", "b.nii.gz"], ["b.nii.gz", "a.nrrd"]):
        files = [str(tmp_path / name) for name in names]
        item = EnsureChannelFirstd("image")(LoadFilesd("image")({"image": files}))
        for read in (image_loader()(files), item["image"]):
            np.testing.assert_array_equal(read, np.stack([IMAGE + (name == "b.nii.gz") for name in names]))
            np.testing.assert_allclose(read.affine, np.diag([-1.5, -1.5, 8.0, 1.0]))
            assert read.meta["filename_or_obj"] == files[0]
    content = (tmp_path / "b.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(content[:-100] + bytes(100))
    with pytest.raises(InputError, match=r"b\.nii\.gz: expected compressed voxels, received some that are cut off"):
        image_loader()(files)


def test_files_that_are_whole_but_called_otherwise_or_alone_are_not_called_broken(tmp_path):
    samples.write_nifti(tmp_path / "a.nii.gz", IMAGE)
    packed = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "b.nii").write_bytes(packed)
    (tmp_path / "c.nii.gz").write_bytes(gzip.decompress(packed))
    samples.write_mhd(tmp_path / "d.mhd", IMAGE)
    (tmp_path / "d.raw").unlink()
    lines = {"b.nii": r"by gzip; call the file \.nii\.gz", "c.nii.gz": r"call the file \.nii\.",
             "d.mhd": r"expected its voxels in .*d\.raw.* no such file; copy it there"}  # fmt: skip
    for name, line in lines.items():
        with pytest.raises(InputError, match=line):
            look(tmp_path / name)
        with pytest.raises(InputError, match=line):  # in training and prediction, too
            read_item(LoadFilesd("image"), {"image": str(tmp_path / name)})


def test_the_reason_that_itk_gives_is_told_and_not_the_line_of_its_source(tmp_path):
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bytes(100))
    for read_it in (look, lambda path: read_item(LoadFilesd("image"), {"image": str(path)})):
        with pytest.raises(InputError, match=r"fread got only 50 2-sized things, not 64"):
            read_it(tmp_path / "a.nrrd")
