"""Data sets of a folder for each patient, in which lie an image and its label: ``P1/t1.nii.gz``, ``P1/seg.nii.gz``."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

from ..dataio.files import HELPER_MASKS, IMAGE_SUFFIXES, LABEL_FOLDERS, LABEL_NAMES, is_dicom
from ..dataio.folders import entries, find_images
from ..errors import raise_all

logger = logging.getLogger("semsim")

#: Files of every patient, each with its role, such as ``t1`` or ``masks/seg``.
Files = dict[str, list[tuple[str, Path]]]


def patient_files(
    root: Path, image_suffix: str, label_suffix: str
) -> tuple[dict[str, Path | list[Path]], dict[str, Path]] | None:
    """Images, or the files of their channels, and labels by patient; ``None`` where no folder holds both kinds.

    Args:
        root: folder of the data set.
        image_suffix: what the name of the image ends with, where a patient has several; with commas: of its channels.
        label_suffix: what the name of the label ends with, where a patient has several.

    Raises:
        InputError: files that leave open which belong together.
    """
    scans, truth = _by_role(root, label_suffix)
    if not truth or not scans:
        return None
    if loose := [path for path in entries(root, False) if path.name.lower().endswith(IMAGE_SUFFIXES)]:
        logger.warning(f"{len(loose)} files beside the folders of the patients are left out, {loose[0]} first; to use "
                       "them, give each a folder of its own.")  # fmt: skip
    for patient, parts in truth.items():
        if not label_suffix:
            truth[patient] = [part for part in parts if not HELPER_MASKS.fullmatch(part[0])] or parts
    images, problems = _images_of(root, scans, image_suffix)
    problems += [
        f"{root / patient}: {len(parts)} labels ({', '.join(path.name for _, path in parts)}), expected one; say which "
        "by --label_suffix, keep one, or join masks of one class each by `python -m scripts merge`."
        for patient, parts in truth.items()
        if len(parts) > 1
    ]
    problems += [
        f"{root / patient}: a label and no image of this patient." for patient in truth if patient not in scans
    ]
    raise_all(problems)
    labels = {patient: parts[0][1] for patient, parts in truth.items()}
    return images, labels


def _by_role(root: Path, label_suffix: str) -> tuple[Files, Files]:
    """Images and labels, by their names and folders."""
    scans: Files = {}  # P1_seg beside seg has the same role
    truth: Files = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        inside = folder.rglob("[!.]*")  # all are hidden in __MACOSX
        if not any(path.name.lower().endswith(IMAGE_SUFFIXES) or is_dicom(path) for path in inside):
            continue
        for name, path in find_images(folder, recursive=True).items():
            *below, own = name.split("/")
            role = own.removeprefix(folder.name).lstrip("_.-") or "image"
            among_labels = any(LABEL_FOLDERS.fullmatch(part) for part in below)
            is_label = (
                role.endswith(label_suffix.lstrip("_.-"))
                if label_suffix
                else bool(LABEL_NAMES.fullmatch(re.split(r"[_.-]", role)[-1]))
            )
            if among_labels and label_suffix and not is_label:
                continue  # another structure's
            files = (truth if is_label or among_labels else scans).setdefault(folder.name, [])
            files.append(("/".join([*below, role]), path))
    return scans, truth


def _images_of(root: Path, scans: Files, image_suffix: str) -> tuple[dict[str, Path | list[Path]], list[str]]:
    """The image of each patient, and a line for each patient whose images leave open which it is."""
    roles = Counter(role for parts in scans.values() for role, _ in parts)
    wanted = [role.strip().lstrip("_.-") for role in image_suffix.split(",") if role.strip()]
    images: dict[str, Path | list[Path]] = {}
    problems = []
    for patient, parts in scans.items():
        fitting = {role: [path for own, path in parts if own.endswith(role)] for role in wanted}
        chosen = [path for paths in fitting.values() for path in paths] if wanted else [path for _, path in parts]
        if missing := [role for role, paths in fitting.items() if not paths]:
            there = ", ".join(own for own, _ in parts)
            problems.append(f"{root / patient}: expected an image for each --image_suffix, received {there} and none "
                            f"that ends with {', '.join(missing)}; add it or take the patient out.")  # fmt: skip
        elif wanted and len(chosen) == len(wanted) > 1:
            images[patient] = chosen
        elif len(chosen) == 1:
            images[patient] = chosen[0]
        else:
            shown = ", ".join(role for role, _ in roles.most_common(6))
            problems.append(f"{root / patient}: {len(chosen)} images ({shown}), expected one; say which by "
                            "--image_suffix, or several with commas as the channels of one image; if they are of "
                            f"several patients or visits give {root} both as --images and as --labels, with "
                            "--image_suffix and --label_suffix.")  # fmt: skip
    chosen_files = {path for image in images.values() for path in (image if isinstance(image, list) else [image])}
    if left := [path for parts in scans.values() for _, path in parts if wanted and path not in chosen_files]:
        logger.warning(f"{len(left)} files are left out, which neither end with {image_suffix} nor are labels by their "
                       f"names, {left[0]} first.")  # fmt: skip
    return images, problems
