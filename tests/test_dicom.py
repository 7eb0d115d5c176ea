"""DICOM is not taken on trust: slices make one even, straight stack, or one line says what they are."""

from __future__ import annotations

import numpy as np
import pytest
import samples
from scripts.errors import InputError, find_input_error
from scripts.readers import LoadFilesd
from scripts.survey import look

IMAGE = samples.blob((10, 8, 6), seed=2)[0]


@pytest.mark.parametrize("spacing", [(0.9, 0.9, 6.0), (0.9, 0.9, 0.5)])
def test_an_even_straight_stack_passes(tmp_path, spacing):
    samples.write_dicom(tmp_path / "s", IMAGE, spacing)
    assert look(tmp_path / "s").shape == (10, 8, 6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"skip": (2, 3)}, r"gaps of 6 mm and one of 18 mm after s1_005\.dcm; add the missing slices"),
        ({"shift": 2.1838}, r"gantry tilt of 20 degrees; .*dcm2niix"),
        ({"positions": (0, 0, 6, 6, 12, 12)}, r"3 of 6 slices lie where another does .*several time points"),
        ({"turned": (5,)}, r"slices of 2 orientations in one series, 1 of 6 unlike the others \(s1_001\.dcm first\)"),
        ({"cropped": (0,)}, r"slices of 2 sizes in one series, 1 of 6 unlike the others \(s1_006\.dcm first\)"),
    ],
    ids=["missing", "tilt", "time points", "localizer", "scout"],
)
def test_other_stacks_are_refused_with_the_remedy(tmp_path, options, message):
    samples.write_dicom(tmp_path / "s", IMAGE, **options)
    with pytest.raises(InputError, match=message):
        look(tmp_path / "s")
    with pytest.raises(InputError, match=message):  # in training and prediction, too
        try:
            LoadFilesd("image")({"image": str(tmp_path / "s")})
        except RuntimeError as error:
            raise find_input_error(error) or error from None


def test_a_segmentation_object_is_named(tmp_path):
    samples.write_dicom(tmp_path / "s", IMAGE[..., :1], storage="1.2.840.10008.5.1.4.1.1.66.4")
    with pytest.raises(InputError, match=r"s1_001\.dcm: a DICOM segmentation object, which is not read here; convert"):
        look(tmp_path / "s")


def test_a_single_slice_is_an_image(tmp_path):
    samples.write_dicom(tmp_path / "s", IMAGE[..., :1])
    assert look(tmp_path / "s").shape[:2] == (10, 8)
    np.testing.assert_allclose(look(tmp_path / "s").spacing[:2], (0.9, 0.9), atol=1e-4)
