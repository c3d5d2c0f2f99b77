"""PredictRequest and PredictResponse from the client's side, against the server's."""

import numpy as np
import pytest

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import TensorSpec, numpy_dtype
from mlserve.wire.signature import Signature
from mlserve.wire.tensorflow import decode_predict, decode_predicted, encode_predict, to_tensor
from mlserve.wire.tensorflow_messages import PredictRequest, PredictResponse

NUMBERS = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
DTYPES = (*NUMBERS, "float16", "float32", "float64", "bfloat16", "object")


def made(dtype):
    spec = TensorSpec("x", dtype, ("batch", 2))
    if dtype == "object":
        return spec, np.array([["Zürich", ""]], object)
    return spec, np.array([[1, 0], [0, 1]]).astype(numpy_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_client_writes_the_server_reads(dtype):
    spec, array = made(dtype)
    message = PredictRequest.FromString(encode_predict("m", "7", {"x": array}, [spec]))
    assert (message.model_spec.name, message.model_spec.version.value) == ("m", 7)
    found = decode_predict(message, Signature("m", "7", [spec], [])).inputs["x"]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_server_answers_a_client_reads(dtype):
    spec, array = made(dtype)
    response = PredictResponse()
    response.outputs["x"].CopyFrom(to_tensor(array, spec.datatype))
    found = decode_predicted(response.SerializeToString(), {"x": spec})["x"]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_an_answer_with_another_output_is_refused():
    spec, array = made("float32")
    response = PredictResponse()
    response.outputs["y"].CopyFrom(to_tensor(array, spec.datatype))
    with pytest.raises(InvalidRequest, match="unexpected output 'y'"):
        decode_predicted(response.SerializeToString(), {"x": spec})
