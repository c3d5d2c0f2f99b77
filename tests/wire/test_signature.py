"""What a signature says about rows and batches."""

import numpy as np
import pytest

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import TensorSpec
from mlserve.wire.signature import Signature

OUT = [TensorSpec("y", "float32", ("batch",))]


def test_requests_share_a_batch_only_when_their_shapes_beyond_the_rows_are_equal():
    signature = Signature("m", "1", [TensorSpec("ids", "int64", ("batch", "sequence"))], OUT)
    keys = [signature.batch_key({"ids": np.zeros((rows, length))}) for rows, length in ((1, 5), (3, 5), (1, 6))]
    assert keys[0] == keys[1] != keys[2]


def test_fixed_shapes_always_share_a_batch():
    signature = Signature("m", "1", [TensorSpec("x", "float32", ("batch", 3))], OUT)
    assert signature.batch_key({"x": np.zeros((1, 3))}) == signature.batch_key({"x": np.zeros((9, 3))})


@pytest.mark.parametrize(
    ("inputs", "outputs", "together"),
    [
        ([TensorSpec("x", "float32", ("batch",))], OUT, True),
        ([TensorSpec("x", "float32", (1,))], OUT, False),
        ([TensorSpec("x", "float32", ("batch",))], [TensorSpec("y", "float32", ())], False),
        ([], OUT, False),
    ],
)
def test_only_a_model_with_a_row_dimension_everywhere_runs_rows_together(inputs, outputs, together):
    assert Signature("m", "1", inputs, outputs).together is together


def test_a_model_without_rows_counts_every_request_as_one():
    signature = Signature("m", "1", [TensorSpec("x", "float32", (4, 2))], OUT)
    assert signature.rows({"x": np.zeros((4, 2))}) == 1
    assert Signature("m", "1", [], OUT).rows({}) == 1


def test_row_counts_that_differ_are_refused_by_name():
    signature = Signature("m", "1", [TensorSpec(name, "int64", ("batch",)) for name in "ab"], OUT)
    assert signature.rows({"a": np.zeros(2), "b": np.zeros(2)}) == 2
    with pytest.raises(InvalidRequest, match="'a' has 2, 'b' has 3"):
        signature.rows({"a": np.zeros(2), "b": np.zeros(3)})
