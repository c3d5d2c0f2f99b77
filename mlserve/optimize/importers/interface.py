"""What a converted file shows to the outside: the names, order and open dimensions of its inputs and outputs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlserve.model.tensors import Dims

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

__all__ = ["ROWS", "drop_zipmap", "give_columns", "name_outputs", "negate", "open_dims"]

ROWS = "batch"
"""The word for the rows."""


def name_outputs(model: "ModelProto", names: Mapping[str, str]) -> None:
    """Keeps the outputs in `names` (old name -> new name), in that order; the rows of each are open."""
    graph = model.graph
    outputs = {output.name: output for output in graph.output}
    kept = [outputs[old] for old in names]
    del graph.output[:]
    graph.output.extend(kept)
    values = {value for node in graph.node for value in node.output}
    for old, new in names.items():
        if new in values and new != old:  # an inner value has the name we give
            _rename(graph, new, f"{new}_inner")
        _rename(graph, old, new)
    for output in graph.output:
        dims = output.type.tensor_type.shape.dim
        if dims:
            dims[0].dim_param = ROWS
    _one_opset_a_domain(model)


def drop_zipmap(model: "ModelProto") -> None:
    """Gives scores as a tensor [rows, classes] where skl2onnx makes a list of maps of them, which is not served."""
    from onnx import TensorProto, helper

    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        graph.node.remove(node)
        labels = next(list(values) for each in node.attribute if (values := each.strings or each.ints))
        scores = helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, [ROWS, len(labels)])
        position = [output.name for output in graph.output].index(node.output[0])
        graph.output[position].CopyFrom(scores)


def negate(model: "ModelProto", name: str, *, classes: int) -> None:
    """Turns the signs of the output `name` [rows, classes] if it has as many classes.

    onnxruntime gives the two margins of a binary SVMClassifier with their signs swapped: the class it names is the one
    with the lower.
    """
    from onnx import helper

    output = next(output for output in model.graph.output if output.name == name)
    if output.type.tensor_type.shape.dim[-1].dim_value == classes:
        inner = f"{name}_swapped"
        for node in model.graph.node:
            node.output[:] = [inner if one == name else one for one in node.output]
        _rename_uses(model.graph, name, inner)
        model.graph.node.append(helper.make_node("Neg", [inner], [name]))


def open_dims(model: "ModelProto", shapes: Mapping[str, Dims]) -> None:
    """Gives the inputs in `shapes` these dimensions, words for those that are open."""
    for value in model.graph.input:
        if value.name in shapes:
            _set_dims(value, shapes[value.name])


def give_columns(model: "ModelProto", names: Sequence[str]) -> None:
    """Turns inputs [rows, 1] into columns [rows], one value a row."""
    from onnx import helper, numpy_helper

    graph = model.graph
    axes = "column_axis"
    graph.initializer.append(numpy_helper.from_array(np.array([1]), axes))
    nodes = []
    for value in graph.input:
        if value.name in names:
            name = value.name
            _rename_uses(graph, name, f"{name}_column")
            nodes.append(helper.make_node("Unsqueeze", [name, axes], [f"{name}_column"]))
            _set_dims(value, (ROWS,))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _set_dims(value: "ValueInfoProto", dims: Dims) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for dim in dims:
        if isinstance(dim, int):
            shape.dim.add().dim_value = dim
        else:
            shape.dim.add().dim_param = dim


def _rename(graph: "GraphProto", old: str, new: str) -> None:
    if old == new:
        return
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    _rename_uses(graph, old, new)
    for output in graph.output:
        if output.name == old:
            output.name = new


def _rename_uses(graph: "GraphProto", old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _one_opset_a_domain(model: "ModelProto") -> None:
    """Some converters name a domain twice, which only onnxruntime takes."""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        versions[entry.domain] = max(entry.version, versions.get(entry.domain, 0))
    del model.opset_import[:]
    for domain, version in versions.items():
        added = model.opset_import.add()
        added.domain, added.version = domain, version
