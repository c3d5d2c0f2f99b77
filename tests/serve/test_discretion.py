"""What is told of an engine's message: what went wrong, but no path and no value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.serve.discretion import discreet

RESHAPE = "input_shape_size == size was false. The input tensor cannot be reshaped. Input shape:{1,4}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("index out of range, idx=87 must be within [-10,9]", "index out of range, idx=... must be within [-10,9]"),
        ("idx = -1.5e+7.", "idx = ...."),
        ("scale=nan is no scale", "scale=... is no scale"),
        (f"/onnxruntime_src/core/reshape_helper.h:47 a::B::C(const a::D&, bool) {RESHAPE}", RESHAPE),
        (r"C:\build\core\x.cpp:12 failed", "failed"),
        ("File /home/me/store/tiny/1/model.onnx is damaged", "File is damaged"),
        ("it takes x float32 [batch, 30], not float32 [1, 9]", "it takes x float32 [batch, 30], not float32 [1, 9]"),
        ("index: 1 Got: 9 Expected: 30", "index: 1 Got: 9 Expected: 30"),
        ("3/4 of N/A", "3/4 of N/A"),
    ],
)
def test_paths_and_values_go_and_the_rest_stays(text, told):
    assert discreet(text) == told


@given(st.text(max_size=200))
def test_nothing_is_added_and_it_is_done_at_once(text):
    once = discreet(text)
    assert discreet(once) == once
    assert "\n" not in once


@given(st.text("abc/\\.:_() 0=", max_size=400))
def test_no_path_is_left(text):
    assert "/a/b" not in discreet(f"{text} /a/b/c.py:1 ")
