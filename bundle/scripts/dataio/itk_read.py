"""Files of any type of number through ITK, whose Python package has images of some types alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def itk_read(files: str | Sequence[str], **options: Any) -> Any:
    """ITK's image of a file, or of the slices of a series.

    What it has no images of comes as float32: signed bytes, as in the segmentations of PROMISE12, whole numbers of 64
    bits, as arrays of numpy often are, and several channels of most types.

    Args:
        files: to read.
        options: of ``itk.imread``.
    """
    import itk  # slow, and few data sets need it

    try:
        return itk.imread(files, **options)
    except itk.TemplateTypeError:
        if not isinstance(files, str):
            raise
        io = options.get("imageio") or itk.ImageIOFactory.CreateImageIO(files, itk.CommonEnums.IOFileMode_ReadMode)
        io.SetFileName(files)
        io.ReadImageInformation()
        image = itk.Image if io.GetNumberOfComponents() == 1 else itk.VectorImage
        reader = itk.ImageFileReader[image[itk.F, io.GetNumberOfDimensions()]].New(FileName=files, ImageIO=io)
        reader.Update()
        return reader.GetOutput()
