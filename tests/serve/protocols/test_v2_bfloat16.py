"""BF16 end to end: through onnxruntime on the CPU, over both wires, bit for bit."""

import json

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper, save_model

ROWS = np.array([[1.5, -2, 1e38], [-0.0, np.inf, np.nan]], ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def server(serving_settings, tmp_path_factory):
    """`x` [batch, 3] -> `same`, and `twice` by way of float32; both bfloat16."""
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["twice"], to=TensorProto.BFLOAT16),
    ]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["batch", 3]) for name in ("x", "same", "twice")
    ]
    graph = helper.make_graph(nodes, "half", tensors[:1], tensors[1:])
    path = tmp_path_factory.mktemp("models") / "half.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with serving_settings(path) as made:
        yield made


@pytest.mark.parametrize("triton", [triton_http, triton_grpc])
def test_tritonclient_gets_its_halves_back_bit_for_bit(server, triton):
    tensor = triton.InferInput("x", list(ROWS.shape), "BF16")
    tensor.set_data_from_numpy(ROWS)
    with triton.InferenceServerClient(server.http if triton is triton_http else server.grpc) as client:
        result = client.infer("half", [tensor])
    assert result.as_numpy("same").tobytes() == ROWS.tobytes()
    twice = (ROWS.astype(np.float32) * 2).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(result.as_numpy("twice").astype(np.float32), twice.astype(np.float32))


def test_json_carries_them_as_numbers(server):
    status, document = server.infer("half", {"x": ("BF16", [[1.5, -2, 0.1]])})
    assert status == 200
    assert [output["datatype"] for output in document["outputs"]] == ["BF16", "BF16"]
    expected = np.array([1.5, -2, 0.1], ml_dtypes.bfloat16).astype(np.float64)
    assert document["outputs"][0]["data"] == pytest.approx(expected, rel=1e-6)
    status, document = server.infer("half", {"x": ("BF16", [[1.0, 2.0, 1e39]])})
    assert (status, "Unable to parse 'data'" in json.dumps(document)) == (400, True)
