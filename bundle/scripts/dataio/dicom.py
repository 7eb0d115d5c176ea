"""Whether DICOM slices make one volume: ITK stacks whatever lies in a folder."""

from __future__ import annotations

import functools
import logging
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from ..errors import InputError
from .files import CONTOURS, DOSE, contours_line, is_dicom, is_segmentation, stores

#: Largest difference between the gaps of a stack, and shift of its slices against each other, as a share of the gap.
GAP_TOLERANCE = 0.05
#: Largest shift, in mm, of the last slice of a stack against the first.
MOST_SHIFT = 1.0
#: Rows, columns, their spacing and the colours of a pixel, and how many numbers each is.
SIZE = {"Rows": 1, "Columns": 1, "PixelSpacing": 2, "SamplesPerPixel": 1}
#: The size of a pixel in the patient, on the detector of X-rays, and of a scanned film.
PIXEL_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
#: Kinds of images whose values have a unit: Hounsfield's, or that of activity.
MEASURED = ("CT", "PT")
#: Slope, intercept, bits of a pixel, and whether it has a sign: what makes values of what is stored.
MEANING = ("RescaleSlope", "RescaleIntercept", "BitsAllocated", "PixelRepresentation")
#: What a multi-frame file tells of all its frames, and of each.
SHARED, EACH = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
PIXEL_DATA = Tag("PixelData")

# pydicom says of every slice what is odd in the spelling of its header, which is common and changes nothing here.
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"pydicom\.")


@dataclass(frozen=True)
class Slice:
    """What the header of a DICOM file says, or that of one of several frames in a file.

    Attributes:
        file: its name.
        series: identifier of its series.
        size: rows, columns, their spacing, and the colours of a pixel; zeros where it does not say.
        position: of the first pixel in mm; ``None`` where it does not say.
        directions: of rows and columns, six numbers.
        meaning: what makes values of what is stored, see ``MEANING``; of a frame, its slope and intercept.
        inverted: whether small numbers are bright (MONOCHROME1); ITK turns their order round.
        frames: how many images it holds.
        stack: those that it tells something of, in the order in which they are stored.
    """

    file: str
    series: str
    size: tuple[float, ...]
    position: np.ndarray | None
    directions: np.ndarray | None
    meaning: tuple[float | None, ...]
    inverted: bool = False
    frames: int = 1
    stack: tuple[Slice, ...] = ()


def read_header(path: str | os.PathLike) -> tuple[Dataset, int]:
    """The header of a DICOM file, by pydicom.

    Returns:
        what comes before the pixels; and how many bytes those take: ``0xFFFFFFFF`` if compressed, 0 without any.

    Raises:
        Exception: of various kinds, by pydicom, at a header that is broken.
    """
    pixels = 0

    def at_pixels(tag: BaseTag, kind: str | None, length: int) -> bool:
        nonlocal pixels
        if tag == PIXEL_DATA:
            pixels = length
        return tag == PIXEL_DATA

    with open(path, "rb") as file:
        return read_partial(file, at_pixels), pixels


def _numbers(header: Dataset, name: str, count: int) -> np.ndarray | None:
    """So many numbers of a header; ``None`` where it does not say, or others."""
    try:
        value = header.get(name)
        values = np.ravel([] if value is None else value).astype(float)
    except (ValueError, TypeError, OverflowError):  # no numbers
        return None
    return values if len(values) == count else None


def _number(header: Dataset, name: str) -> float | None:
    values = _numbers(header, name, 1)
    return None if values is None else float(values[0])


def _word(header: Dataset, name: str) -> str:
    return str(header.get(name) or "")


def read_slice(path: str | os.PathLike) -> Slice:
    """The header of a DICOM file.

    Raises:
        InputError: it cannot be read, or ITK would read other values than it holds.
    """
    import itk  # slow, and few data sets need it

    if stores(path, DOSE):
        raise InputError(
            f"{path}: a dose (RTDOSE), whose values are read without their scale (DoseGridScaling); take it "
            "out, or to use it convert it to NIfTI on the grid of its scan, in 3D Slicer (SlicerRT) or by `plastimatch "
            "convert`."
        )
    io = itk.GDCMImageIO.New()
    io.SetFileName(os.fspath(path))
    try:
        io.ReadImageInformation()  # the pixels, too
        header, pixels = read_header(path)
        frames = int(_number(header, "NumberOfFrames") or 1)
        stack = tuple(_frames(header))
    except Exception as error:  # whatever GDCM and pydicom raise at what is no DICOM
        raise InputError(
            contours_line(path)
            or f"{path}: a DICOM file without a readable image, or cut off; copy it anew, or take it out of the folder."
        ) from error
    if odd := _odd_values(header) or _missing_pixels(header, pixels, frames):
        raise InputError(f"{path}: {odd}")
    sides = [np.zeros(count) if (n := _numbers(header, name, count)) is None else n for name, count in SIZE.items()]
    return Slice(
        os.path.basename(path),
        series=_word(header, "SeriesInstanceUID"),
        size=tuple(np.concatenate(sides).tolist()),
        position=_numbers(header, "ImagePositionPatient", 3),
        directions=_numbers(header, "ImageOrientationPatient", 6),
        meaning=tuple(_number(header, name) for name in MEANING),
        inverted=_word(header, "PhotometricInterpretation") == "MONOCHROME1",
        frames=frames,
        stack=stack,
    )


def _odd_values(header: Dataset) -> str:
    """Why ITK would read other values than a DICOM file means; empty for no reason."""
    stored, high = _number(header, "BitsStored"), _number(header, "HighBit")
    if stored is not None and high is not None and high != stored - 1:
        return (
            f"expected its {stored:.0f} bits to end at bit {stored - 1:.0f}, received bit {high:.0f}, as of ACR-NEMA, "
            "which is not read; shift its values with pydicom, and save it anew."
        )
    kind = _word(header, "Modality")
    if kind in MEASURED and _word(header, "PhotometricInterpretation") == "MONOCHROME1":
        return (
            f"expected {kind} with large numbers bright (MONOCHROME2), received MONOCHROME1, whose order is turned "
            "round in reading, so that they mean no unit; save it as MONOCHROME2, or as NIfTI."
        )
    # that of X-ray angiography is not for display
    if header.get("ModalityLUTSequence") and _word(header, "PixelIntensityRelationship") not in ("LOG", "DISP"):
        return (
            "expected values by slope and intercept, received a Modality LUT Sequence, which is not read; "
            "apply it with pydicom (pydicom.pixels.apply_modality_lut), and save the values, as NIfTI say."
        )
    return ""


def _missing_pixels(header: Dataset, length: int, frames: int) -> str:
    """What tells that pixels are missing, which ITK makes up; empty for nothing.

    Args:
        header: of the file.
        length: bytes of its pixels; those that are compressed have no length of their own.
        frames: number of images in it.
    """
    colors = 2 if _word(header, "PhotometricInterpretation").endswith("422") else _number(header, "SamplesPerPixel")
    sides = (_number(header, "Rows"), _number(header, "Columns"), colors, _number(header, "BitsAllocated"))
    expected = math.ceil(frames * math.prod(side or 0 for side in sides) / 8)
    if length < expected:
        return f"expected {expected} bytes of pixels, received {length}, as of a file that was cut off; copy it anew."
    return ""


def states_unit_pixels(path: str | os.PathLike) -> bool:
    """Whether a DICOM file of which ITK says that pixels measure 1 mm, as of all that do not tell, tells so."""
    header, _ = read_header(path)
    groups = [*(header.get(SHARED) or ()), *(header.get(EACH) or ())]
    places = [header, *(item for group in groups for item in group.get("PixelMeasuresSequence") or ())]
    sizes = (_numbers(place, name, 2) for place in places for name in PIXEL_SIZES)
    return any(size is not None and np.allclose(size, 1.0) for size in sizes)


def _frames(header: Dataset) -> list[Slice]:
    """What a multi-frame file tells of its frames, of each or of all, as slices in the order in which they are stored.

    ITK stacks them in that order, with the slope of the first, and does not tell their places.
    """
    frames = []
    for k, own in enumerate(header.get(EACH) or ()):
        told = functools.partial(_told, (own, *(header.get(SHARED) or ())))
        position = told("PlanePositionSequence", "ImagePositionPatient", 3)
        directions = told("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        scale = [told("PixelValueTransformationSequence", name, 1) for name in MEANING[:2]]
        meaning = tuple(None if number is None else float(number[0]) for number in scale)
        frames.append(Slice(f"frame {k + 1}", "", (), position, directions, meaning))
    return frames


def _told(groups: Sequence[Dataset], sequence: str, name: str, count: int) -> np.ndarray | None:
    """So many numbers of a sequence, of the first of some functional groups that has them; ``None`` of none."""
    found = (_numbers(item, name, count) for group in groups for item in group.get(sequence) or ())
    return next((numbers for numbers in found if numbers is not None), None)


def _rescaled(slices: Sequence[Slice]) -> str:
    """Whether the numbers of frames mean different things; empty for no."""
    for k, name in enumerate(("slope", "intercept")):
        values = np.array([one.meaning[k] for one in slices if one.meaning[k] is not None])
        if len(values) and not np.allclose(values, values[0], rtol=1e-4, atol=0):
            return f"with a rescale {name} from {values.min():.4g} to {values.max():.4g}, of which one is used."
    return ""


def _disordered(frames: Sequence[Slice]) -> str:
    """Whether frames are stored in another order than they lie; empty for no."""
    directions = np.asarray(frames[0].directions)
    steps = np.diff([one.position for one in frames], axis=0) @ np.cross(directions[:3], directions[3:])
    return (
        "" if (steps > 0).all() or (steps < 0).all() else "frames that are not stored in the order in which they lie."
    )


def _looks_cut_off(path: Path, slices: Sequence[Path]) -> bool:
    """Whether a file that is no slice was one: by its ending, or it has that of a slice and begins with zeros alone."""
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(132)
    ending = path.suffix.lower()
    named = ending in (".dcm", ".ima") and start[:2] not in (b"\2\0", b"\x08\0")  # without a preamble ITK knows it
    return named or (not any(start) and ending in {one.suffix.lower() for one in slices})


def check_series(path: str | os.PathLike) -> list[Slice]:
    """Refuse a folder of DICOM slices (or a file) that do not make one volume of parallel, evenly spaced slices.

    Returns:
        its files.

    Raises:
        InputError: in one line, what they are and what to do.
    """
    folder = Path(path)
    inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    if objects := [f.name for f in inside if is_segmentation(f)]:
        raise InputError(
            f"{path}: holds a DICOM segmentation object ({objects[0]}), which is a label and no image; keep labels in "
            "a folder of their own."
        )
    files = [f for f in inside if is_dicom(f)]
    if 0 < sum(stores(f, CONTOURS) for f in files) < len(files):
        raise InputError(f"{contours_line(path).rstrip('.')}, and take the file out of the folder of the slices.")
    others = sorted({*inside} - {*files}) if folder.is_dir() else []
    if broken := [f for f in others if _looks_cut_off(f, files)]:
        raise InputError(
            f"{broken[0]}: lies among the slices of a DICOM series, and is none by its first bytes, as of a copy that "
            "was cut off; copy it anew, or take it out."
        )
    slices = [read_slice(file) for file in files]
    if not slices:
        raise InputError(
            f"{path}: expected the slices of a DICOM series, found none; check the path, or mend the list."
        )
    if len(slices) > 1:
        problem = _mixed(slices) or _uneven(slices)
        if problem:
            raise InputError(f"{path}: {problem}")
    elif slices[0].frames > 1:
        stack = slices[0].stack
        placed = all(one.position is not None and one.directions is not None for one in stack)
        known = placed and len(stack) == slices[0].frames
        problem = (_mixed(stack) or _uneven(stack) or _disordered(stack)) if known else ""
        if problem := problem or _rescaled([slices[0], *stack]):
            reason = problem.rpartition(";")[0] or problem.rstrip(".")
            raise InputError(
                f"{files[0]}: {slices[0].frames} frames in one file, {reason}; "
                "convert it with dcm2niix, which sorts them into volumes."
            )
    return slices


def series_files(folder: str | os.PathLike, number: int) -> list[str]:
    """The slices of the only DICOM series in a folder, in the order in which they lie.

    Args:
        folder: that :func:`check_series` has passed.
        number: of slices that it has found.

    Raises:
        InputError: ITK finds others than those.
    """
    import itk  # slow, and few data sets need it

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(False)  # else a series with two spellings of its thickness, say, counts as two
    names.SetDirectory(os.fspath(folder))
    found = [list(names.GetFileNames(series)) for series in names.GetSeriesUIDs()]
    if [len(files) for files in found] != [number]:
        shown = " and ".join(str(len(files)) for files in found) or "none"
        raise InputError(
            f"{folder}: expected {number} slices of one DICOM series, received {shown} as ITK reads them; convert it "
            "with dcm2niix, or take out what is no slice."
        )
    return found[0]


def _mixed(slices: Sequence[Slice]) -> str:
    """What tells that slices of several images lie together; empty for nothing."""
    series = {one.series for one in slices}
    if len(series) > 1:
        return f"{len(series)} DICOM series in one folder; put each into its own folder."
    if several := [one.file for one in slices if one.frames > 1]:
        return (
            f"{len(several)} of {len(slices)} files hold several frames, a volume or a clip of its own each "
            f"({several[0]} first); put each into its own folder."
        )
    if any(one.position is None or one.directions is None for one in slices):
        if any(one.stack for one in slices):
            return (
                f"{len(slices)} files of enhanced DICOM with one frame each, whose places are not read together; "
                "convert them with dcm2niix, which makes one volume of them."
            )
        return (
            f"{len(slices)} DICOM files without a position, which may be single images; give each a "
            "folder of its own, or convert them to PNG."
        )
    if 0 < (number := sum(one.inverted for one in slices)) < len(slices):
        first = next(one.file for one in slices if one.inverted)
        return (
            f"{number} of {len(slices)} slices have small numbers bright (MONOCHROME1, {first} first), the others "
            "dark; save all alike, or take out what is no slice."
        )
    facets: list[tuple[str, list[Any]]] = [
        ("orientation", [one.directions for one in slices]),
        ("size", [one.size for one in slices]),
    ]
    for name, values in facets:
        kinds: list[tuple[Any, list[str]]] = []
        for one, value in zip(slices, values):
            files = next((files for kind, files in kinds if np.allclose(kind, value, atol=1e-3)), None)
            kinds.append((value, [one.file])) if files is None else files.append(one.file)
        if len(kinds) > 1:
            fewest = min((files for _, files in kinds), key=len)
            return (
                f"slices of {len(kinds)} {name}s in one series, {len(fewest)} of {len(slices)} unlike the others "
                f"({fewest[0]} first), as of a localizer; move them into a folder of their own."
            )
    return ""


def _uneven(slices: Sequence[Slice]) -> str:
    """What is wrong with the positions of a stack; empty for nothing."""
    directions = np.asarray(slices[0].directions)
    normal = np.cross(directions[:3], directions[3:])
    positions = np.array([one.position for one in slices])
    order = np.argsort(positions @ normal, kind="stable")
    steps = np.diff(positions[order], axis=0)
    gaps = steps @ normal
    gap = float(np.median(gaps[gaps > 1e-3])) if (gaps > 1e-3).any() else 0.0
    doubled = np.flatnonzero(gaps < GAP_TOLERANCE * gap) if gap else np.arange(len(gaps))
    if len(doubled):
        pair = " and ".join(slices[order[doubled[0] + k]].file for k in (0, 1))
        return (
            f"{len(doubled)} of {len(slices)} slices lie where another does ({pair}), as of several time points, "
            "echoes or copies; give each its own folder."
        )
    shift = steps - gaps[:, None] * normal
    tilt = float(np.median(np.linalg.norm(shift, axis=1)))
    # all steps alike: neither rounded positions, of which most are shifted, nor one move of the table in between
    whole = min(np.linalg.norm(shift.sum(axis=0)), np.linalg.norm(np.median(shift, axis=0)) * len(shift))
    if tilt > GAP_TOLERANCE * gap or whole > MOST_SHIFT:
        angle = np.degrees(np.arctan2(tilt, gap))
        return (
            f"slices shifted against each other, by a gantry tilt of {angle:.2g} degrees; they are read as if straight "
            "here: convert with dcm2niix, which straightens them, and draw or move labels on the result."
        )
    uneven = np.flatnonzero(np.abs(gaps - gap) > GAP_TOLERANCE * gap)
    if len(uneven):
        at = uneven[0]
        return (
            f"expected evenly spaced slices, received gaps of {gap:.4g} mm and one of {gaps[at]:.4g} mm after "
            f"{slices[order[at]].file}; add the missing slices, or resample image and label to even ones."
        )
    return ""
