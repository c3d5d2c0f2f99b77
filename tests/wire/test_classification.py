"""The best elements of an output as texts: which, in which order, in which words."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlserve.model.tensors import DATATYPE_OF, TensorSpec
from mlserve.wire import grpc, rest
from mlserve.wire.classification import classify
from mlserve.wire.signature import InferRequest, Signature

NUMBERS = [dtype for dtype in DATATYPE_OF if dtype not in ("bool", "object")]
INPUT = [TensorSpec("x", "float32", ("batch",))]
FRUIT = ("apple", "pear", "plum")


def signature_of(dtype="float32", shape=("batch", 3)):
    return Signature("m", "1", INPUT, [TensorSpec("y", dtype, shape), TensorSpec("z", "int8", ("batch",))])


def best(array, most, labels=(), shape=("batch", 3)):
    signature, outputs = classify(signature_of(array.dtype.name, shape), {"y": most}, {"y": array}, labels)
    assert signature.outputs["y"].datatype == "BYTES"
    return outputs["y"].tolist()


def test_the_largest_of_each_row_come_first_with_value_index_and_label():
    rows = np.array([[0.1, 0.7, 0.2], [5, -1, 1e-9]], np.float32)
    assert best(rows, 2) == [["0.7:1", "0.2:2"], ["5.0:0", "1e-09:2"]]
    assert best(rows, 1, FRUIT) == [["0.7:1:pear"], ["5.0:0:apple"]]


def test_as_many_are_told_as_there_are_and_no_more():
    rows = np.array([[1, 3, 2]], np.int64)
    assert best(rows, 9) == [["3:1", "2:2", "1:0"]]
    assert best(rows, 2**63 - 1) == [["3:1", "2:2", "1:0"]]
    assert best(np.array([4, 5], np.int64), 3, shape=("batch",)) == [["4:0"], ["5:0"]]


def test_labels_are_told_only_where_there_is_one_for_each_element():
    rows = np.array([[1, 3, 2]], np.int8)
    assert best(rows, 1, FRUIT[:2]) == best(rows, 1, (*FRUIT, "fig")) == [["3:1"]]
    assert best(rows, 1, ("a:b", "c:d", "e")) == [["3:1:c:d"]]


def test_a_model_without_rows_has_one_list():
    whole = Signature("m", "1", [TensorSpec("x", "float32", (1,))], [TensorSpec("y", "float32", (2, 2))])
    _, outputs = classify(whole, {"y": 3}, {"y": np.array([[1, 2], [4, 3]], np.float32)}, ())
    assert outputs["y"].tolist() == ["4.0:2", "3.0:3", "2.0:1"]


def test_equal_elements_keep_their_order_and_what_is_no_number_comes_last():
    assert best(np.array([[2, 2, 2]], np.uint8), 3) == [["2:0", "2:1", "2:2"]]
    assert best(np.array([[np.nan, -1, np.inf]], np.float32), 3) == [["inf:2", "-1.0:1", "nan:0"]]


def test_outputs_that_were_not_asked_for_as_classes_stay_numbers():
    numbers = np.array([7], np.int8)
    signature, outputs = classify(signature_of(), {"y": 1}, {"y": np.ones((1, 3), np.float32), "z": numbers}, ())
    assert outputs["z"] is numbers
    assert [field.datatype for field in signature.outputs.values()] == ["BYTES", "INT8"]
    assert signature_of().outputs["y"].datatype == "FP32"


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_half_precision_is_told_in_its_own_digits(dtype):
    (told,) = best(np.array([[0.1, 0.9, 0.5]], dtype), 1)[0]
    assert told == f"{np.array(0.9, dtype)[()]!s}:1"


@given(
    st.sampled_from(NUMBERS).flatmap(
        lambda dtype: npst.arrays(
            dtype,
            st.tuples(st.integers(1, 3), st.integers(1, 6)),
            elements=npst.from_dtype(np.dtype(dtype), allow_nan=False),
        )
    ),
    st.integers(1, 7),
)
def test_the_values_told_are_the_row_s_largest_whatever_their_type(rows, most):
    for row, texts in zip(rows, best(rows, most, shape=("batch", "n")), strict=True):
        indices = [int(text.split(":")[1]) for text in texts]
        assert [text.split(":")[0] for text in texts] == [str(row[index]) for index in indices]
        assert row[indices].tolist() == sorted(row.tolist(), reverse=True)[:most]


@pytest.mark.parametrize("binary", [frozenset(), frozenset(["y"])])
def test_both_wires_carry_the_texts(binary):
    rows = np.array([[0.1, 0.7, 0.2]], np.float32)
    request = InferRequest({}, 1, outputs=["y"], binary=binary, classes={"y": 2})
    signature, outputs = classify(signature_of(), {"y": 2}, {"y": rows}, FRUIT)
    specs = {"y": TensorSpec("y", "object", ("batch", 2))}
    expected = [["0.7:1:pear", "0.2:2:plum"]]
    body, length = rest.encode_response(signature, request, outputs)
    assert rest.decode_response(body, specs, length)["y"].tolist() == expected
    assert grpc.decode_response(grpc.encode_response(signature, request, outputs), specs)["y"].tolist() == expected
