"""Whether DICOM slices make one volume: ITK stacks whatever lies in a folder."""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .files import CONTOURS, DOSE, contours_line, is_dicom, is_segmentation, stores

#: Largest difference between the gaps of a stack, and shift of its slices against each other, as a share of the gap.
GAP_TOLERANCE = 0.05
#: Rows, columns, their spacing and the colours of a pixel, and how many numbers each is.
SIZE_TAGS = {"0028|0010": 1, "0028|0011": 1, "0028|0030": 2, "0028|0002": 1}
#: Kinds of images whose values have a unit: Hounsfield's, or that of activity.
MEASURED = ("CT", "PT")
#: Slope, intercept, bits of a pixel, and whether it has a sign: what makes values of what is stored.
VALUE_TAGS = ("0028|1053", "0028|1052", "0028|0100", "0028|0103")
#: What is told of each frame as it stands in a file, and how many numbers it is.
FRAME_TAGS = {"position": (b"\x20\0\x32\0", 3), "directions": (b"\x20\0\x37\0", 6),
              "intercept": (b"\x28\0\x52\x10", 1), "slope": (b"\x28\0\x53\x10", 1)}  # fmt: skip
#: The same of the size of a pixel, and of one on the detector of X-rays.
PIXEL_TAGS = {"size": (b"\x28\0\x30\0", 2), "on the detector": (b"\x18\0\x64\x11", 2)}
#: What follows the tag of a number: its length, with or without the type of the value.
LENGTH = rb"(?:DS(..)|(..)\0\0)"
#: The pixels and their length, and a table of values in place of slope and intercept, as they stand in a file.
PIXELS = re.compile(rb"\xe0\x7f\x10\0(?:(?:O[BW]|UN)\0\0)?(.{4})", re.DOTALL)
LOOKUP_TABLE = re.compile(rb"\x28\0\0\x30(?:SQ\0\0)?.{4}\xfe\xff\0\xe0", re.DOTALL)


@dataclass(frozen=True)
class Slice:
    """What the header of a DICOM file says.

    Attributes:
        file: its name.
        series: identifier of its series.
        size: rows, columns, their spacing, and the colours of a pixel; zeros where it does not say.
        position: of the first pixel in mm; ``None`` where it does not say.
        directions: of rows and columns, six numbers.
        frames: how many images it holds.
        meaning: what makes values of what is stored, as it is written, see ``VALUE_TAGS``.
        inverted: whether small numbers are bright (MONOCHROME1); ITK turns their order round.
    """

    file: str
    series: str
    size: tuple[float, ...]
    position: np.ndarray | None
    directions: np.ndarray | None
    frames: int = 1
    meaning: tuple[str, ...] = ()
    inverted: bool = False


def _numbers(text: str, count: int) -> np.ndarray | None:
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        return None
    return values if len(values) == count else None


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
        io.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            contours_line(path)
            or f"{path}: a DICOM file without a readable image, or cut off; copy it anew, or take it out of the folder."
        ) from error
    tags = io.GetMetaDataDictionary()

    def value(tag: str) -> str:
        return str(tags[tag]).strip().strip("\0") if tags.HasKey(tag) else ""

    sides = [np.zeros(count) if (n := _numbers(value(tag), count)) is None else n for tag, count in SIZE_TAGS.items()]
    size = tuple(np.concatenate(sides).tolist())
    position, directions = _numbers(value("0020|0032"), 3), _numbers(value("0020|0037"), 6)
    frames = _numbers(value("0028|0008"), 1)
    number = 1 if frames is None else int(frames[0])
    meaning = tuple(map(value, VALUE_TAGS))
    inverted = value("0028|0004") == "MONOCHROME1"
    if odd := _odd_values(value, inverted):
        raise InputError(f"{path}: {odd}")
    bits, colors = _numbers(value("0028|0100"), 1), 2 if value("0028|0004").endswith("422") else size[-1]
    _check_pixels(
        path,
        length=0 if bits is None else math.ceil(size[0] * size[1] * colors * max(number, 1) * bits[0] / 8),
        as_stored=value("0028|1040") in ("LOG", "DISP"),  # of X-ray angiography, whose table is not for display
    )
    return Slice(os.path.basename(path), value("0020|000e"), size, position, directions, number, meaning, inverted)


def _odd_values(value: Callable[[str], str], inverted: bool) -> str:
    """Why ITK would read other values than a DICOM file means; empty for no reason.

    Args:
        value: of a tag, as it is written.
        inverted: whether small numbers are bright.
    """
    stored, high = value("0028|0101"), value("0028|0102")
    if stored.isdigit() and high.isdigit() and int(high) != int(stored) - 1:
        return (
            f"expected its {stored} bits to end at bit {int(stored) - 1}, received bit {high}, as of ACR-NEMA, "
            "which is not read; shift its values with pydicom, and save it anew."
        )
    if inverted and (kind := value("0008|0060")) in MEASURED:
        return (
            f"expected {kind} with large numbers bright (MONOCHROME2), received MONOCHROME1, whose order is turned "
            "round in reading, so that they mean no unit; save it as MONOCHROME2, or as NIfTI."
        )
    return ""


def _check_pixels(path: str | os.PathLike, *, length: int, as_stored: bool) -> None:
    """That the pixels of a DICOM file are all there, and no table makes values of them: ITK makes up and ignores those.

    ITK tells neither, so they are looked for in the bytes of the file.

    Args:
        path: the file.
        length: bytes of all pixels where they are not compressed; those that are have no length of their own.
        as_stored: whether a table does not matter.

    Raises:
        InputError: they are not.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, longest = len(content), None
        for match in PIXELS.finditer(content):  # a small picture of the image may come first
            start, longest = match.start(), max(longest or 0, int.from_bytes(match[1], "little"))
            if longest >= length:
                break
        table = not as_stored and LOOKUP_TABLE.search(content, 0, start)
    if longest is not None and longest < length:
        raise InputError(f"{path}: expected {length} bytes of pixels, received {longest}, as of a file that was cut "
                         "off; copy it anew.")  # fmt: skip
    if table:
        raise InputError(
            f"{path}: expected values by slope and intercept, received a Modality LUT Sequence, which is not read; "
            "apply it with pydicom (pydicom.pixels.apply_modality_lut), and save the values, as NIfTI say."
        )


def _told_of_frames(
    path: str | os.PathLike, tags: Mapping[str, tuple[bytes, int]] = FRAME_TAGS
) -> dict[str, list[np.ndarray]]:
    """What a multi-frame file tells of its frames, by the names of ``tags``, in the order in which it does.

    ITK stacks frames as they are stored, with the slope of the first, and does not tell their places, so they are
    looked for in the bytes of the file.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {
            name: [
                numbers
                for match in re.finditer(re.escape(tag) + LENGTH, content, flags=re.DOTALL)
                if (numbers := _numbers(_text(content, match), count)) is not None
            ]
            for name, (tag, count) in tags.items()
        }


def states_unit_pixels(path: str | os.PathLike) -> bool:
    """Whether a DICOM file of which ITK says that pixels measure 1 mm, as of all that do not tell, tells so."""
    return any(np.allclose(size, 1.0) for sizes in _told_of_frames(path, PIXEL_TAGS).values() for size in sizes)


def _text(content: mmap.mmap, match: re.Match[bytes]) -> str:
    length = int.from_bytes(match[1] or match[2], "little")
    return content[match.end() : match.end() + length].decode("ascii", "replace")


def _frames(told: Mapping[str, list[np.ndarray]], number: int) -> list[Slice]:
    """The frames of a multi-frame file as slices in the order in which they are stored.

    Philips tells both of each frame once more, in a sequence of its own.

    Args:
        told: by :func:`_told_of_frames`.
        number: of frames.

    Returns:
        none where not every frame has a position.
    """
    positions, directions = (_once_a_frame(told[name], number) for name in ("position", "directions"))
    if not directions and told["directions"] and np.allclose(told["directions"], told["directions"][0], atol=1e-3):
        directions = told["directions"][:1] * number  # shared, or shared and in the copies
    if not positions or not directions:
        return []
    return [Slice(f"frame {k + 1}", "", (), p, d) for k, (p, d) in enumerate(zip(positions, directions))]


def _once_a_frame(values: Sequence[np.ndarray], number: int) -> list[np.ndarray]:
    """Values that stand as often for each of several frames, once for each; none where they do not."""
    if not values or len(values) % number:
        return []
    copies = np.reshape(values, (number, -1, len(values[0])))
    return list(copies[:, 0]) if np.allclose(copies, copies[:, :1], atol=1e-3) else []


def _rescaled(told: Mapping[str, list[np.ndarray]]) -> str:
    """Whether the numbers of frames mean different things; empty for no."""
    for name in ("slope", "intercept"):
        values = np.concatenate([*told[name], []])
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
        told = _told_of_frames(files[0])
        frames = _frames(told, slices[0].frames)
        problem = (_mixed(frames) or _uneven(frames) or _disordered(frames)) if frames else ""
        if problem := problem or _rescaled(told):
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
    if tilt > GAP_TOLERANCE * gap:
        angle = np.degrees(np.arctan2(tilt, gap))
        return (
            f"slices shifted against each other, by a gantry tilt of {angle:.0f} degrees; they are read as if straight "
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
