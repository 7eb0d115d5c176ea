"""Pictures that ITK reads: their place has two dimensions, and prediction needs three."""

from __future__ import annotations

import numpy as np
import pytest
import samples
from monai.transforms import EnsureChannelFirstd
from PIL import Image
from scripts.dataio.readers import LoadFilesd
from scripts.dataio.transforms import AsVolumed, SliceGridd
from scripts.evaluation.stored_grid import StoredGrid


@pytest.mark.parametrize("ending", [".tif", ".nrrd"])
def test_predictions_return_to_the_pixels_of_a_picture(tmp_path, ending):
    """As they do to those of a PNG."""
    pixels = np.arange(48 * 80, dtype=np.uint8).reshape(48, 80)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    samples.write_itk(tmp_path / f"a{ending}", pixels.T, (1.0, 1.0))
    grids = []
    for name in ("a.png", f"a{ending}"):
        data = EnsureChannelFirstd("image")(LoadFilesd("image")({"image": str(tmp_path / name)}))
        grids.append(StoredGrid.of(SliceGridd("image", 64)(AsVolumed("image")(data))["image"]))
    expected, found = grids
    assert found.shape == expected.shape == (80, 48, 1) and found.axes == expected.axes
    assert np.abs(found.scale) == pytest.approx(np.abs(expected.scale))


def test_a_size_is_the_width_and_the_height_of_a_picture(tmp_path):
    """As the reference says; the other way round most of what the network sees would be padding."""
    Image.fromarray(np.full((48, 80), 200, np.uint8)).save(tmp_path / "landscape.png")
    data = AsVolumed("image")(
        EnsureChannelFirstd("image")(LoadFilesd("image")({"image": str(tmp_path / "landscape.png")}))
    )
    assert (SliceGridd("image", (40, 24))(data)["image"] > 100).all()
