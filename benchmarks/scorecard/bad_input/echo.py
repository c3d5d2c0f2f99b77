"""A model that gives every type back as it came: `in_FP32` [batch, n] -> `out_FP32` [batch, n], and so on."""

from pathlib import Path

__all__ = ["TYPES", "write_echo"]

TYPES = ("BOOL", "BYTES", "FP16", "BF16", "FP32", "FP64", "INT8", "INT32", "INT64", "UINT8", "UINT64")


def write_echo(path: Path, types: tuple[str, ...] = ("BYTES", "FP32", "INT64")) -> Path:
    """The model as an ONNX file."""
    from onnx import TensorProto, helper, save_model

    names = {"BYTES": "STRING", "FP16": "FLOAT16", "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE"}
    elements = {name: getattr(TensorProto, names.get(name, name)) for name in types}
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in types]
    inputs, outputs = (
        [helper.make_tensor_value_info(f"{side}_{name}", elements[name], ["batch", "n"]) for name in types]
        for side in ("in", "out")
    )
    graph = helper.make_graph(nodes, "echo", inputs, outputs)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
