"""Labels of a liver and a tumour, as files that name their segments or do not."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np

LIVER, TUMOUR = 1, 2
GRID = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (20, 20, 4)


def truth() -> np.ndarray:
    """A label of both organs."""
    label = np.zeros(SHAPE, np.uint8)
    label[2:8, 2:8], label[12:15, 12:15] = LIVER, TUMOUR
    return label


def turned() -> np.ndarray:
    """The same with its values exchanged."""
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
    """Voxels of a label, first axis first."""
    return itk.array_from_image(itk.imread(path)).transpose(2, 1, 0)
