"""Images of which nearly every voxel is zero."""

import numpy as np
import torch
from scripts.dataio.intensity import Intensityd


def test_an_image_of_hardly_anything_but_zeros_stays_in_the_unit_range_and_is_named(caplog):
    image = torch.zeros(1, 100, 100)
    image[0, 0, :10] = torch.arange(100.0, 1100.0, 100.0)
    scaled = Intensityd("image")({"image": image})["image"]
    np.testing.assert_allclose(scaled[0, 0, :10], np.arange(0.1, 1.05, 0.1), rtol=1e-5)
    assert "percentiles are equal" in caplog.text and "--window" in caplog.text
