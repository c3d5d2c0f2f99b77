"""A model that takes and gives what another does, and computes nothing: what is left is what a server costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlserve.model.tensors import TensorSpec, numpy_dtype

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["write_hollow"]

_OPSET, _IR = 17, 8
# As many digits as answers have.
_VALUE = 0.12345679


def write_hollow(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Writes the ONNX file `path`. An output's open dimension is as large as the input's of that name; else 1, and the
    first one as the first input's.
    """
    from onnx import TensorProto, helper, numpy_helper, save_model

    constants = [numpy_helper.from_array(np.array([position], np.int64), f"at{position}") for position in range(8)]
    nodes: list[Any] = [helper.make_node("Shape", [spec.name], [f"shape of {spec.name}"]) for spec in inputs]
    for number, spec in enumerate(outputs):
        parts = []
        for position, dim in enumerate(spec.shape):
            name = f"{number}.{position}"
            found = _found(dim, position, inputs)
            if found is None:
                size = dim if isinstance(dim, int) else 1
                constants.append(numpy_helper.from_array(np.array([size], np.int64), name))
            else:
                nodes.append(helper.make_node("Gather", [f"shape of {found[0]}", f"at{found[1]}"], [name], axis=0))
            parts.append(name)
        nodes += _filled(spec, number, parts)
    graph = helper.make_graph(
        nodes,
        "hollow",
        [helper.make_tensor_value_info(spec.name, _type(spec, TensorProto), list(spec.shape)) for spec in inputs],
        [helper.make_tensor_value_info(spec.name, _type(spec, TensorProto), list(spec.shape)) for spec in outputs],
        constants,
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR), path)


def _filled(spec: TensorSpec, number: int, parts: Sequence[str]) -> "list[NodeProto]":
    """The nodes that make `spec` of its sizes, which `parts` name."""
    from onnx import helper, numpy_helper

    shape = f"shape {number}"
    if spec.dtype == "object":
        value = numpy_helper.from_array(np.array(["text"], object), "text")
        nodes = [helper.make_node("Constant", [], [f"text {number}"], value=value)]
        nodes.append(helper.make_node("Expand", [f"text {number}", shape], [spec.name]))
    else:
        whole = np.array([_VALUE if spec.dtype.startswith(("float", "bfloat")) else 1])
        value = numpy_helper.from_array(whole.astype(numpy_dtype(spec.dtype)), "value")
        nodes = [helper.make_node("ConstantOfShape", [shape], [spec.name], value=value)]
    return [helper.make_node("Concat", list(parts), [shape], axis=0), *nodes]


def _found(dim: int | str, position: int, inputs: Sequence[TensorSpec]) -> tuple[str, int] | None:
    """The input, and its axis, that says how large an open dimension is."""
    if isinstance(dim, int):
        return None
    for spec in inputs:
        if dim in spec.shape:
            return spec.name, spec.shape.index(dim)
    return (inputs[0].name, 0) if position == 0 and inputs[0].shape else None


def _type(spec: TensorSpec, types: Any) -> int:
    from onnx import helper

    if spec.dtype == "object":
        return int(types.STRING)
    return int(helper.np_dtype_to_tensor_dtype(numpy_dtype(spec.dtype)))
