"""A model that computes for as long as a request says, and loads at once all the same."""

from pathlib import Path

import numpy as np

__all__ = ["ENDLESS", "slow_body", "slow_message", "write_slow"]

ENDLESS = 1e6
"""More turns than any test waits for."""


def write_slow(path: Path) -> Path:
    """`turns` float32 [batch, 1] -> `same` float32 [batch, 1], after so many products of matrices: a few ms each."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    square, value = [256, 256], ["batch", 1]
    unit = numpy_helper.from_array(np.eye(256, dtype=np.float32), "unit")
    body = helper.make_graph(
        [helper.make_node("MatMul", ["before", "unit"], ["after"]), helper.make_node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, square),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Loop", ["trips", "yes", "unit"], ["last"], body=body),
        helper.make_node("ReduceMax", ["last"], ["one"], keepdims=0),
        helper.make_node("Mul", ["one", "zero"], ["nothing"]),
        helper.make_node("Add", ["turns", "nothing"], ["same"]),
    ]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, value)] for name in ("turns", "same"))
    constants = [
        unit,
        numpy_helper.from_array(np.array(True), "yes"),  # the value of an ONNX constant
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    graph = helper.make_graph(nodes, "slow", inputs, outputs, constants)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def slow_body(turns: float) -> str:
    """A request of V2 over REST."""
    return f'{{"inputs": [{{"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [{turns}]}}]}}'


def slow_message(turns: float, model: str = "slow") -> bytes:
    """The same over gRPC."""
    from mlserve.wire import messages

    request = messages.ModelInferRequest(model_name=model)
    request.inputs.add(name="turns", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.float32(turns).tobytes())
    message: bytes = request.SerializeToString()
    return message
