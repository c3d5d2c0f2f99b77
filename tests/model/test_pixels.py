"""Images as a model's own preprocessing reads them."""

import numpy as np
import pytest
from PIL import Image

from mlserve.model.pixels import pixels
from mlserve.model.processing import ImageInput


def ramp(width, height):
    """Red grows to the right, green downwards, by 1 a pixel."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([across, down, np.zeros_like(down)], -1).astype(np.uint8))


def test_the_shorter_side_is_resized_and_the_middle_cut_out():
    form = ImageInput(height=4, width=6, resize=10, scale=1.0, layout="NHWC")
    found = pixels(ramp(20, 10), form, "float32")
    assert found.shape == (4, 6, 3)
    assert found[0, :, 0].tolist() == [7, 8, 9, 10, 11, 12]
    assert found[:, 0, 1].tolist() == [3, 4, 5, 6]


def test_an_exact_size_is_cut_out_of_and_an_own_size_is_not():
    whole = pixels(ramp(8, 8), ImageInput(height=8, width=8, scale=1.0, layout="NHWC"), "float32")
    cut = pixels(ramp(8, 8), ImageInput(height=4, width=4, resize=(8, 8), scale=1.0, layout="NHWC"), "float32")
    np.testing.assert_array_equal(cut, whole[2:6, 2:6])


def test_scale_comes_first_then_mean_then_deviation_each_by_channel():
    form = ImageInput(height=1, width=1, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    image = Image.new("RGB", (1, 1), (255, 51, 0))
    expected = (np.array([1.0, 0.2, 0.0]) - [0.1, 0.2, 0.3]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(pixels(image, form, "float32").ravel(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("layout", "channels", "shape"),
    [("NCHW", 3, (3, 2, 4)), ("NHWC", 3, (2, 4, 3)), ("NCHW", 1, (1, 2, 4)), ("NHW", 1, (2, 4))],
)
def test_every_layout_has_its_shape(layout, channels, shape):
    form = ImageInput(height=2, width=4, channels=channels, layout=layout)
    assert pixels(ramp(9, 9), form, "float32").shape == form.shape == shape


def test_bytes_stay_bytes():
    form = ImageInput(height=8, width=8, layout="NHWC", scale=1.0)
    found = pixels(ramp(8, 8), form, "uint8")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(ramp(8, 8)))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mean": (0.5,)}, "mean has 1 numbers for 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std holds a 0"),
        ({"layout": "NHW"}, "NHW is for 1 channel"),
        ({"resize": 0}, "resize is 0"),
        ({"resize": (10, 100_000)}, "resize is"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        ImageInput(**{"height": 8, "width": 8} | wrong)
