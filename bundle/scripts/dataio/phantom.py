"""A generated short-axis heart phantom, used if the user gives no data.

Every patient is drawn from ``(seed, patient index)`` alone: anatomy, tissue intensities, bias field, noise and
distracting structures vary between patients, so two labelled patients do not describe the others. Labels are those of
ACDC: 0 background, 1 right ventricle, 2 myocardium, 3 left ventricle.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from .files import place

logger = logging.getLogger("semsim")

LABEL_NAMES = {"0": "background", "1": "right ventricle", "2": "myocardium", "3": "left ventricle"}
#: Patients in each list of the default phantom: 30 hearts, about 250 slices.
DEFAULT_SPLIT = {"training": 2, "unlabeled": 16, "validation": 4, "testing": 8}
#: Changes whenever the drawing changes, so that an older folder is never taken for a current one.
PHANTOM_VERSION = 1


@dataclass(frozen=True)
class Heart:
    """Shape of one heart in millimetres, drawn once per patient."""

    center: np.ndarray  # (2,) offset of the left ventricle from the image centre
    radius: float  # inner radius of the left ventricle at the base
    wall: float  # thickness of the myocardium
    ellipticity: float  # ratio of the two in-plane axes
    angle: float  # in-plane rotation, radians; the right ventricle lies in this direction
    rv_size: float  # right ventricle's radius as a multiple of the left one's
    rv_apex: float  # fraction of the long axis at which the right ventricle ends

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Heart:
        return cls(
            center=rng.uniform(-14, 14, size=2),
            radius=rng.uniform(16, 27),
            wall=rng.uniform(6, 12),
            ellipticity=rng.uniform(0.82, 1.2),
            angle=np.deg2rad(rng.uniform(150, 230)),
            rv_size=rng.uniform(0.95, 1.45),
            rv_apex=rng.uniform(0.6, 0.9),
        )


def _ellipse_distance(x: np.ndarray, y: np.ndarray, center: np.ndarray, ratio: float, angle: float) -> np.ndarray:
    """Distance from ``center`` in millimetres in which an ellipse of axis ratio ``ratio`` is a circle."""
    dx, dy = x - center[0], y - center[1]
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = -dx * np.sin(angle) + dy * np.cos(angle)
    return np.hypot(along * np.sqrt(ratio), across / np.sqrt(ratio))


def _label_slice(heart: Heart, x: np.ndarray, y: np.ndarray, depth: float) -> np.ndarray:
    """Labels of the slice at ``depth`` (0 base, 1 apex) on the millimetre grid ``x``, ``y``."""
    taper = np.sqrt(max(0.0, 1.0 - (0.95 * depth) ** 2.2))
    radius = heart.radius * taper * (1.0 if depth < 0.85 else 0.7)
    wall = heart.wall * (1.0 - 0.25 * depth)
    left = _ellipse_distance(x, y, heart.center, heart.ellipticity, heart.angle)

    label = np.zeros(x.shape, np.uint8)
    if depth < heart.rv_apex:
        rv_radius = heart.radius * heart.rv_size * np.sqrt(1.0 - (depth / heart.rv_apex) ** 2)
        shift = (radius + 0.55 * wall) * np.array([np.cos(heart.angle), np.sin(heart.angle)])
        right = _ellipse_distance(x, y, heart.center + shift, 1.35, heart.angle)
        label[right < rv_radius] = 1
    label[left < radius + wall] = 2
    if radius > 2.5:
        label[left < radius] = 3
    return label


def _paint_slice(
    label: np.ndarray, background: np.ndarray, tissue: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    """Intensities of a slice: tissues over ``background``, papillary muscles inside the left ventricle."""
    image = background.copy()
    image[label == 1] = tissue["blood"] * tissue["rv_gain"]
    image[label == 2] = tissue["myocardium"]
    image[label == 3] = tissue["blood"]
    pool = np.argwhere(label == 3)
    if len(pool) > 60:
        grid = np.indices(label.shape)
        for row, col in pool[rng.integers(len(pool), size=2)]:
            spot = np.hypot(grid[0] - row, grid[1] - col) < rng.uniform(1.0, 2.6)
            image[spot & (label == 3)] = tissue["myocardium"]
    return image


def _background(x: np.ndarray, y: np.ndarray, tissue: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Torso, lungs, liver and distractors: bright vessels and dark-ringed discs that resemble a left ventricle."""
    half = np.array([np.abs(x).max(), np.abs(y).max()])
    image = np.where(np.hypot(x / (0.95 * half[0]), y / (0.9 * half[1])) < 1, tissue["body"], 0.02)
    for side in (-1, 1):
        center = np.array([side * 0.55 * half[0], rng.uniform(-0.25, 0.1) * half[1]])
        image[_ellipse_distance(x, y, center, rng.uniform(0.5, 0.8), 0.0) < rng.uniform(0.28, 0.42) * half.min()] = (
            tissue["lung"]
        )
    liver = np.array([-0.35 * half[0], 0.65 * half[1]])
    image[_ellipse_distance(x, y, liver, rng.uniform(0.5, 1.0), 0.4) < 0.42 * half.min()] = tissue["liver"]
    for _ in range(rng.integers(2, 5)):
        center = rng.uniform(-0.8, 0.8, size=2) * half
        distance = _ellipse_distance(x, y, center, rng.uniform(0.7, 1.4), rng.uniform(0, np.pi))
        radius = rng.uniform(5, 15)
        if rng.random() < 0.6:
            image[distance < radius + rng.uniform(2, 6)] = tissue["myocardium"] * rng.uniform(0.8, 1.2)
        image[distance < radius] = tissue["blood"] * rng.uniform(0.85, 1.1)
    return image


def draw_patient(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one patient.

    Args:
        seed: seed of the whole phantom.
        index: number of the patient.

    Returns:
        image ``(X, Y, slices)`` int16, label ``(X, Y, slices)`` uint8 and the affine ``(4, 4)`` in millimetres; every
        second patient is stored LPS instead of RAS.
    """
    rng = np.random.default_rng([seed, index])
    heart = Heart.draw(rng)
    pixel, gap = rng.uniform(1.3, 1.8), rng.uniform(8.0, 10.0)
    shape = (int(rng.integers(104, 137)), int(rng.integers(104, 137)), int(rng.integers(7, 11)))
    x, y = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * pixel for n in shape[:2]), indexing="ij")
    tissue = {
        "blood": rng.uniform(0.6, 0.95),
        "rv_gain": rng.uniform(0.85, 1.05),
        "myocardium": rng.uniform(0.22, 0.45),
        "body": rng.uniform(0.3, 0.65),
        "lung": rng.uniform(0.03, 0.14),
        "liver": rng.uniform(0.3, 0.6),
    }
    background = _background(x, y, tissue, rng)
    drift = rng.uniform(-2.0, 2.0, size=2)  # millimetres by which the heart's axis leans from slice to slice

    labels, images = [], []
    for k in range(shape[2]):
        depth = k / (shape[2] - 1)
        leaning = Heart(**{**vars(heart), "center": heart.center + k * drift})
        label = _label_slice(leaning, x, y, depth)
        image = _paint_slice(label, background, tissue, rng)
        texture = gaussian_filter(rng.standard_normal(label.shape), rng.uniform(1.5, 3.0))
        image = image * (1 + 0.10 * texture / texture.std())
        images.append(gaussian_filter(image, rng.uniform(0.5, 0.9)))
        labels.append(label)
    image, label = np.stack(images, axis=-1), np.stack(labels, axis=-1)

    u, v = x / np.abs(x).max(), y / np.abs(y).max()
    a, b, c, d = rng.uniform(-0.45, 0.45, size=4)
    bias = np.exp(a * u + b * v + c * u * v + d * (u**2 - 0.3))[..., None]
    sigma = rng.uniform(0.02, 0.07)
    noise = rng.standard_normal((2, *image.shape)) * sigma
    image = np.hypot(image * bias + noise[0], noise[1])  # Rician, as in magnitude MR images
    image = np.clip(image * rng.uniform(250, 1200), 0, 32767).astype(np.int16)

    sign = -1.0 if index % 2 else 1.0
    affine = np.diag([sign * pixel, sign * pixel, gap, 1.0])
    affine[:3, 3] = [-sign * pixel * (shape[0] - 1) / 2, -sign * pixel * (shape[1] - 1) / 2, 0.0]
    if index % 2:  # the same anatomy in world coordinates, stored in the other direction
        image, label = image[::-1, ::-1].copy(), label[::-1, ::-1].copy()
    return image, label, affine


def generate(output_dir: str | os.PathLike, *, seed: int = 0, split: dict[str, int] | None = None) -> Path:
    """Write the phantom as ``images/``, ``labels/`` and ``datalist.json`` below ``output_dir``.

    The folder is built beside its final place and renamed, so an interrupted run leaves nothing half-made.

    Args:
        output_dir: folder to create; it must not exist.
        seed: seed of the phantom.
        split: number of patients in each list of the datalist. Unlabelled patients get **no** label file.

    Returns:
        ``output_dir`` as a path.
    """
    output_dir, split = Path(output_dir), dict(split or DEFAULT_SPLIT)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        (work / "images").mkdir()
        (work / "labels").mkdir()
        datalist: dict = {"name": "SemSim heart phantom", "version": PHANTOM_VERSION, "seed": seed}
        datalist["labels"] = LABEL_NAMES
        index = 0
        for key, count in split.items():
            datalist[key] = []
            for _ in range(count):
                image, label, affine = draw_patient(seed, index)
                name = f"patient{index:03d}.nii.gz"
                item = {"image": f"images/{name}"}
                _save(work / "images" / name, image, affine)
                if key != "unlabeled":
                    item["label"] = f"labels/{name}"
                    _save(work / "labels" / name, label, affine)
                datalist[key].append(item)
                index += 1
        (work / "datalist.json").write_text(json.dumps(datalist, indent=2) + "\n")
        os.chmod(work, 0o755)
        os.replace(work, output_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return output_dir


def _save(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def ensure(output_dir: str | os.PathLike) -> str:
    """Return ``output_dir`` as a string, generating the default phantom there on first use."""
    output_dir = Path(output_dir)
    current = output_dir / "datalist.json"
    if not current.exists():
        logger.info("No dataset_dir given: generating the heart phantom in %s", output_dir)
        try:
            generate(output_dir)
        except OSError:
            if not current.exists():  # unless another process was faster
                raise
    return str(output_dir)


def home(bundle_root: str | os.PathLike) -> str:
    """Folder of the phantom where no data are given, generated on first use."""
    return ensure(place(bundle_root) / "data" / "phantom")
