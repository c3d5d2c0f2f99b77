"""The quick way through a JSON request says what the whole way says, whatever came before."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import TensorSpec
from mlserve.wire import rest, rest_fast
from mlserve.wire.signature import Signature

Y = TensorSpec("y", "float32", ("batch", 1))
SIGNATURES = [
    Signature("floats", "1", [TensorSpec("x", "float32", ("batch", "n"))], [Y]),
    Signature("floats", "2", [TensorSpec("x", "float32", ("batch", 2))], [Y]),
    Signature("small", "1", [TensorSpec("x", "int8", ("batch", "n"))], [Y]),
    Signature("texts", "1", [TensorSpec("x", "object", ("batch", "n"))], [Y]),
    Signature("two", "1", [TensorSpec("x", "float32", ("batch", 2)), TensorSpec("z", "float32", ("batch", 2))], [Y]),
]
DATA = [
    "[1,2]", "[1.5, -2]", "[[1, 2]]", "[ 3,4 ]", " [5,6]", "[7,8] ", "[1]", "[1,2,3]", "[]", "null", "300", "[300,1]",
    '["a","b"]', '["\\u0041","]"]', "[1,2],[3,4]", '[1,2],"data":[3,4]', "[1,2", "1,2]", "[1,2]}", "[true,false]", "",
    '[1,2],"parameters":{"classification":1}', "[1e400,1]", "[NaN,1]", "[[1],[2]]", "[1,\n2]",
]  # fmt: skip


@st.composite
def bodies(draw):
    """Requests, right ones and wrong ones, of few forms, so that many are like one before."""
    tensor = {
        "name": draw(st.sampled_from(["x", "x", "y"])),
        "datatype": draw(st.sampled_from(["FP32", "INT8", "BYTES"])),
    }
    tensor |= {"shape": [1, 2]}
    if draw(st.booleans()):
        tensor["parameters"] = {"note": "data", "data": [1, 2]}
    document = {"inputs": [tensor], **draw(st.sampled_from([{}, {"id": "one"}, {"parameters": {"priority": 1}}]))}
    text = json.dumps(document)
    hole = draw(st.sampled_from(['"datatype"', '"shape"']))
    before, after = text.split(hole, 1)
    return (before + '"data": ' + draw(st.sampled_from(DATA)) + ", " + hole + after).encode()


def outcome(decode, body, signature):
    try:
        request = decode(body, signature)
    except InvalidRequest as error:
        return str(error)
    inputs = {name: (array.dtype, array.shape, array.tolist()) for name, array in request.inputs.items()}
    return inputs, request.rows, request.id, list(request.outputs), request.binary, request.priority


@given(st.lists(st.tuples(bodies(), st.sampled_from(SIGNATURES)), min_size=1, max_size=12))
def test_a_request_is_read_as_a_whole_is_read_whatever_came_before(many):
    for body, signature in many + many:
        assert outcome(rest_fast.decode_request, body, signature) == outcome(rest.decode_request, body, signature)


@pytest.mark.parametrize("first", DATA)
@pytest.mark.parametrize("shape", ["[1,2]", "[2,1]"])
def test_what_differs_from_the_one_before_in_its_data_is_read_as_a_whole_is(first, shape):
    for second in DATA:
        signature = Signature("fresh", "1", [TensorSpec("x", "float32", ("batch", "n"))], [Y])
        for data in (first, second):
            text = f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"FP32","data":{data}}}]}}'
            body = text.encode()
            assert outcome(rest_fast.decode_request, body, signature) == outcome(rest.decode_request, body, signature)


def test_a_likeness_of_the_data_elsewhere_is_not_taken_for_it():
    signature = SIGNATURES[0]
    form = b'{"inputs":[{"name":"x","parameters":{"data":%b,"n":1},"shape":[1,2],"datatype":"FP32","data":%b}]}'
    for outer, inner in (("[1,2]", "[1,2]"), ("[3,4]", "[1,2]"), ("[5,6]", "[7,8]"), ("[9,9]", "[7,8]")):
        request = rest_fast.decode_request(form % (outer.encode(), inner.encode()), signature)
        np.testing.assert_array_equal(request.inputs["x"], [json.loads(inner)])
