"""MONAI's image loading for files with information that MONAI does not read: it is used, or refused in one line."""

from __future__ import annotations

import functools
import logging
import os
import re
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor, PILReader
from monai.data.image_reader import ImageReader
from monai.data.utils import to_affine_nd
from monai.transforms import EnsureChannelFirst, LoadImage, LoadImaged
from monai.utils import ensure_tuple
from nibabel.affines import voxel_sizes
from PIL import Image, ImageOps

from ..errors import InputError
from .dicom import check_series, series_files, states_unit_pixels
from .dicom_seg import SegmentationReader
from .files import beginnings, evenly, image_files, is_dicom, is_picture
from .geometry import APART, compared, voxels_apart
from .itk_read import itk_read
from .metaimage import MetaReader
from .nifti import NIFTI, NiftiReader, with_one_size
from .nrrd import NRRD, check_nrrd
from .tiff import TiffReader

logger = logging.getLogger("semsim")

#: PNG: kinds of several channels.
DEEP_COLOURS = {2: "red, green and blue", 4: "grey and alpha", 6: "red, green, blue and alpha"}
#: EXIF's number of how a picture is turned.
ORIENTATION = 274
#: Endings of NIfTI and of Analyze in two files.
PAIR = (".hdr", ".img")

# With pydicom installed MONAI says twice for every loader that there is no decoder on a GPU, which nothing here needs.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


class PictureReader(PILReader):
    """Reads PNG, JPG and BMP as viewers show them: turned as EXIF says, a palette as the colours that it stands for.

    In a label the numbers of the palette are the values.

    Raises:
        InputError: a JPEG without its end, the rest of which Pillow makes up if zeros stand there, as of a download;
            PNG of 16 bits a colour, the lower 8 of which Pillow drops.
    """

    def __init__(self, *, label: bool = False) -> None:
        """
        Args:
            label: whether pictures are labels.
        """
        super().__init__(converter=functools.partial(_as_seen, label=label))

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        for path in map(Path, ensure_tuple(data)):
            content = path.read_bytes() if path.suffix.lower() in (".jpg", ".jpeg") else b""
            last = content[content.rfind(b"\xff\xda") :]  # the last scan; only at its end are these two bytes
            if content.startswith(b"\xff\xd8") and b"\xff\xd9" not in last:
                raise InputError(f"{path}: expected a whole JPEG, received one that is cut off; copy it anew.")
            with path.open("rb") as file:
                start = file.read(26)
            if start.startswith(b"\x89PNG") and start[24] == 16 and start[25] in DEEP_COLOURS:
                raise InputError(
                    f"{path}: expected PNG of 8 bits a colour, or of one channel, received {DEEP_COLOURS[start[25]]} "
                    "of 16 bits; save it with 8 bits, or as TIFF, of which all are read (magick FILE.png FILE.tif)."
                )
        return super().read(data, **kwargs)


def _as_seen(picture: Image.Image, *, label: bool) -> Image.Image:
    seen: Image.Image = ImageOps.exif_transpose(picture)
    if seen.mode == "P" and not label:
        colors = np.array(seen.getpalette()).reshape(-1, 3)
        seen = seen.convert("L" if (colors == colors[:, :1]).all() else "RGB")
    if seen.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        seen = seen.convert("RGB")
    seen.format = picture.format
    return seen


class MedicalReader(ITKReader):
    """Reads DICOM and NRRD, whatever other readers are installed, after a look at what else they may be.

    Raises:
        InputError: NIfTI or Analyze in two files, among whatever else is wrong with a file.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        names = [os.fspath(name) for name in ensure_tuple(filename)]
        return all(os.path.isdir(name) or name.lower().endswith((*NRRD, *PAIR)) or is_dicom(name) for name in names)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> Any:
        import itk  # slow, and few data sets need it

        images = []
        for name in map(os.fspath, ensure_tuple(data)):
            files: str | list[str] = name
            options = {**self.kwargs, **kwargs}
            if name.lower().endswith(NRRD):
                check_nrrd(name)
            elif name.lower().endswith(PAIR) and os.path.isfile(name):
                raise InputError(
                    f"{name}: NIfTI or Analyze in two files, which is not read; convert it, by nibabel: "
                    "nibabel.save(nibabel.load(FILE), 'NAME.nii.gz'), and if it is Analyze, which does not say where "
                    "left is, compare the sides with a scan that you know."
                )
            else:
                slices = check_series(name)
                if os.path.isdir(name):
                    files = series_files(name, len(slices)) if len(slices) > 1 else os.path.join(name, slices[0].file)
                if len({one.meaning for one in slices}) > 1:
                    options["pixel_type"] = itk.F  # as of PET; else ITK casts all to the type of the first slice
            images.append(itk_read(files, **options))
        return images if len(images) > 1 else images[0]


def states_unit_size(path: str | os.PathLike) -> bool:
    """Whether an image that was read with voxels of 1 mm says so: ITK takes that size for what states none.

    Returns:
        ``True`` for formats other than NRRD, MetaImage and DICOM.
    """
    name = os.fspath(path).lower()
    if name.endswith((*NRRD, ".mha", ".mhd")):
        with open(path, "rb") as file:
            header = re.split(rb"\r?\n\r?\n" if name.endswith(NRRD) else rb"ElementDataFile", file.read(65536))[0]
        sizes = rb"^\s*(spacings|space directions|ElementSpacing|ElementSize)\s*[:=].*\d"
        return bool(re.search(sizes, header, flags=re.MULTILINE | re.IGNORECASE))
    inside = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    first = next(filter(is_dicom, inside), None)  # slices of one series measure the same
    return first is None or states_unit_pixels(first)


class ChannelLoader(LoadImage):
    """MONAI's ``LoadImage``, which says which of several files does not lie on the grid of the first, and how it lies.

    Files of several formats are read each by its own reader; MONAI gives them all to one, which looks at none.

    Raises:
        InputError: they are not the channels of one image.
    """

    def __call__(self, filename: Any, reader: ImageReader | None = None) -> Any:
        names = ensure_tuple(filename)
        if reader is None and len(names) > 1 and len({*map(self._reader_of, names)}) > 1:
            return self._joined(names)
        try:
            return super().__call__(filename, reader)
        except RuntimeError as error:
            if "channel-wise" not in str(error):
                raise
        return self._joined(names)

    def _reader_of(self, name: Any) -> ImageReader | None:
        return next((reader for reader in self.readers[::-1] if reader.verify_suffix(name)), None)

    def _joined(self, names: Sequence[Any]) -> MetaTensor:
        """Files as the channels of one image, ``(C, *spatial)``."""
        parts: list[Any] = [super(ChannelLoader, self).__call__(name) for name in names]
        for name, part in zip(names, parts):
            if not _on_one_grid(parts[0], part):
                raise _apart(names[0], parts[0], name, part)
        channels: list[Any] = parts if self.ensure_channel_first else [EnsureChannelFirst()(part) for part in parts]
        return MetaTensor(torch.cat([channel.as_tensor() for channel in channels]), affine=parts[0].affine,
                          meta={**parts[0].meta, "original_channel_dim": 0})  # fmt: skip


def _on_one_grid(image: Any, other: Any) -> bool:
    shape, found = (one.meta["spatial_shape"].tolist() for one in (image, other))
    return shape == found and voxels_apart(image.affine, other.affine, shape) < APART  # formats round it


def _apart(first: Any, image: Any, name: Any, other: Any) -> InputError:
    """What is wrong with a channel, and its file, that does not lie on the grid of the first."""
    shape, found = (tuple(one.meta["spatial_shape"].tolist()) for one in (image, other))
    grids = compared(*(to_affine_nd(3, one.affine.numpy()) for one in (other, image)))
    return InputError(
        f"{name}: expected {' x '.join(map(str, shape))} voxels at the place of {first}, for both are channels of one "
        f"image, received {' x '.join(map(str, found))} voxels ({grids}); resample it to that grid."
    )


def _with_own(loader: LoadImage, label: bool) -> LoadImage:
    pictures = (PictureReader(label=label), TiffReader())
    for reader in (*pictures, MedicalReader(), SegmentationReader(), NiftiReader(), MetaReader()):
        loader.register(reader)  # the last that takes a file reads it
    return loader


def image_loader(*, label: bool = False) -> LoadImage:
    """MONAI's ``LoadImage`` with the readers of this module; files and DICOM folders become ``(C, *spatial)``.

    Args:
        label: whether files are labels.
    """
    return _with_own(ChannelLoader(image_only=True, ensure_channel_first=True), label)


class LoadFilesd(LoadImaged):
    """MONAI's ``LoadImaged`` with the readers of this module; what has the key ``label`` is one."""

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False) -> None:
        """Arguments as in ``LoadImaged``."""
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.loaders = {key: _with_own(ChannelLoader(image_only=True), key == "label") for key in self.keys}

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.loaders[key](result[key], reader)
        return result


def read_grid(path: str | os.PathLike) -> tuple[np.ndarray, tuple[int, ...]]:
    """Affine ``(4, 4)`` and voxels along each axis of an image as it is loaded, without its voxels where that is easy.

    Raises:
        InputError: a place in space that is none, among whatever else is wrong with a file.
    """
    name = os.fspath(path).lower()
    if os.fspath(path).endswith(NIFTI):
        image: Any = with_one_size(nib.load(path), os.fspath(path))  # as it is read
        affine, shape = to_affine_nd(3, image.affine), tuple(int(n) for n in image.shape[:3])
        if not any(int(image.header[code]) for code in ("qform_code", "sform_code")):  # a size, but no place
            affine = np.diag([*voxel_sizes(affine), 1.0])
        return affine, shape
    if is_picture(name) and not name.endswith((".tif", ".tiff")):
        with Image.open(path) as picture:
            turned = picture.getexif().get(ORIENTATION, 1) >= 5  # by 90 degrees, as viewers show it
            return np.eye(4), picture.size[::-1] if turned else picture.size
    image = image_loader()(path)
    return to_affine_nd(3, image.affine.numpy()), tuple(image.shape[1:])


def warn_of_predictions(images: Mapping[str, Path]) -> None:
    """Warn of images that may be predictions of others among them, whatever was put behind their names.

    They are called as another image with more behind, and hold bytes or whole numbers of 32 bits, which that does not.

    Args:
        images: by case name; those that are not NIfTI are passed over.
    """
    own = {name.rpartition("/")[2]: path for name, path in images.items()}

    def coded(path: Path) -> bool:
        try:
            return path.name.endswith(NIFTI) and nib.load(path).get_data_dtype() in (np.uint8, np.int32)  # type: ignore[attr-defined]
        except Exception as error:  # whoever reads it next names it
            logger.debug(f"{path}: {error}")
            return False

    like = []
    for name, path in images.items():
        base = next((own[start] for start, _ in beginnings(name.rpartition("/")[2]) if start in own), None)
        if base is not None and coded(path) and not coded(base):
            like.append(path)
    if like:
        logger.warning(
            f"{len(like)} images are called as others with more behind and stored as labels are, {like[0]} first; if "
            "they are earlier predictions, keep them outside of --dataset_dir."
        )


def read_grids(items: Sequence[Mapping[str, Any]], most: int) -> Iterator[tuple[str, np.ndarray, tuple[int, ...]]]:
    """File and grid of the images of a list, at most so many, evenly spread; unreadable ones are passed over."""
    for item in evenly(items, most):
        file = image_files(item)[0]
        try:
            affine, shape = read_grid(file)
        except Exception as error:  # whoever reads it next names it
            logger.debug(f"{file}: {error}")
            continue
        yield file, affine, shape
