"""A float32 graph in which each layer alone can be made to compute as if it were int8.

Weights become inputs with a default, so that one run may be given others; before each layer stands a switch that
rounds its activations. So one loaded model answers for every layer, without being written or loaded again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mlserve.model.tensors import Tensors
from mlserve.stats import Floats

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["Layer", "add_switches", "as_int8"]

_STEPS = 127
# From this opset on there is DynamicQuantizeLinear.
_ROUNDING_OPSET = 11
# From this version of the format on, an initializer that is an input too is one with a default.
_DEFAULTS_IR = 4


class _Kind(msgspec.Struct, frozen=True):
    """Which inputs of an operator are weights, which axes of them have a scale for each index, which input is rounded.

    No axes: one scale for all, as onnxruntime has it for tables. Negative axes count from the last.
    """

    weights: tuple[int, ...]
    channels: tuple[int, ...]
    activation: int | None = 0


_KINDS = {
    "Attention": _Kind((1,), (-1,)),
    "Conv": _Kind((1,), (0,)),
    "ConvTranspose": _Kind((1,), (1,)),
    "EmbedLayerNormalization": _Kind((2, 3, 4), (), None),
    "GRU": _Kind((1, 2), (0, 1)),
    "Gather": _Kind((0,), (), None),
    "Gemm": _Kind((1,), (-1,)),
    "LSTM": _Kind((1, 2), (0, 1)),
    "MatMul": _Kind((1,), (-1,)),
}


class Layer(msgspec.Struct, frozen=True):
    """An operator with weights: its name, its type, its weights' names and their scales' axes, and its switch."""

    node: str
    operator: str
    weights: tuple[str, ...]
    channels: tuple[int, ...]
    switch: str = ""

    def as_int8(self, weights: dict[str, "TensorProto"], folder: Path) -> Tensors:
        """The inputs that make this layer alone compute as if it were int8.

        `weights` are the graph's, by name; those that are kept beside it lie in `folder`.
        """
        from onnx import numpy_helper

        rounded = {
            name: as_int8(numpy_helper.to_array(weights[name], str(folder)), self.channels).astype(np.float32)
            for name in self.weights
        }
        return rounded | ({self.switch: np.array(True)} if self.switch else {})


def add_switches(model: "ModelProto", operators: tuple[str, ...] = ()) -> list[Layer]:
    """Changes `model` so that every layer can be switched, and returns the layers in the order of the graph.

    `operators` are the types that count, by default all that have weights. Activations are left alone in a model of an
    opset that cannot round them.
    """
    graph = model.graph
    wanted = {name: kind for name, kind in _KINDS.items() if not operators or name in operators}
    rounds = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) >= _ROUNDING_OPSET
    _keep_constants_as_weights(graph)
    model.ir_version = max(model.ir_version, _DEFAULTS_IR)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers: list[Layer] = []
    nodes: list[NodeProto] = []
    for name, node in _named(graph):
        kind = wanted.get(node.op_type)
        own = [] if kind is None else [place for place in kind.weights if _is_weight(node, place, weights)]
        if kind is not None and own:
            names = tuple(_own_weight(graph, node, place, weights, len(layers)) for place in own)
            switch = f"mlserve.round.{len(layers)}" if rounds and kind.activation is not None else ""
            if switch:
                nodes.append(_switched(graph, node, kind.activation or 0, switch))
            layers.append(Layer(name, node.op_type, names, _channels(node, kind), switch))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return layers


def as_int8(weight: Floats, channels: tuple[int, ...]) -> Floats:
    """`weight` rounded to 255 steps about zero, of a size of its own for each index of the axes `channels`."""
    kept = {axis % weight.ndim for axis in channels}
    others = tuple(axis for axis in range(weight.ndim) if axis not in kept)
    step = np.abs(weight).max(axis=others, keepdims=True) / _STEPS
    rounded: Floats = np.round(weight / np.where(step > 0, step, 1.0)) * step
    return rounded


def _named(graph: "GraphProto") -> "Iterator[tuple[str, NodeProto]]":
    """Every operator with its name; one without gets its type and number, as the quantizing passes have it."""
    taken: set[str] = set()
    for number, node in enumerate(list(graph.node)):
        name = node.name if node.name and node.name not in taken else f"{node.name or node.op_type}_{number}"
        taken.add(name)
        yield name, node


def _is_weight(node: "NodeProto", place: int, weights: dict[str, "TensorProto"]) -> bool:
    from onnx import TensorProto

    tensor = weights.get(node.input[place]) if place < len(node.input) else None
    return tensor is not None and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) >= 2


def _keep_constants_as_weights(graph: "GraphProto") -> None:
    """Constants that an exporter wrote as operators become initializers, which is what they are."""
    for node in graph.node:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None and len(value.dims) >= 2:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = f"{node.output[0]}.value"
            node.op_type = "Identity"
            del node.attribute[:]
            node.input.append(tensor.name)
            for user in graph.node:
                for place, name in enumerate(user.input):
                    if name == node.output[0]:
                        user.input[place] = tensor.name


def _own_weight(
    graph: "GraphProto", node: "NodeProto", place: int, weights: dict[str, "TensorProto"], number: int
) -> str:
    """The name of a weight that only this operator uses and a run may replace: a copy where it is shared."""
    from onnx import helper

    name = str(node.input[place])
    users = sum(used == name for other in graph.node for used in other.input)
    if users > 1:
        copy = graph.initializer.add()
        copy.CopyFrom(weights[name])
        copy.name = f"{name}.{number}.{place}"
        node.input[place] = copy.name
        weights[copy.name] = copy
        name = str(copy.name)
    if name not in {value.name for value in graph.input}:
        tensor = weights[name]
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return name


def _switched(graph: "GraphProto", node: "NodeProto", place: int, switch: str) -> "NodeProto":
    """An operator that gives input `place` of `node` as it is or, switched on, rounded to 8 bits over its range."""
    from onnx import TensorProto, helper, numpy_helper

    source, result = node.input[place], f"{switch}.result"
    node.input[place] = result
    graph.initializer.append(numpy_helper.from_array(np.array(False), switch))
    graph.input.append(helper.make_tensor_value_info(switch, TensorProto.BOOL, []))
    parts = [f"{switch}.{part}" for part in ("integers", "scale", "zero")]
    rounded, same = f"{switch}.rounded", f"{switch}.same"
    on = [
        helper.make_node("DynamicQuantizeLinear", [source], parts),
        helper.make_node("DequantizeLinear", parts, [rounded]),
    ]
    off = [helper.make_node("Identity", [source], [same])]
    branches = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
        for nodes, name in ((on, rounded), (off, same))
    ]
    return helper.make_node("If", [switch], [result], then_branch=branches[0], else_branch=branches[1])


def _channels(node: "NodeProto", kind: _Kind) -> tuple[int, ...]:
    """The output channels' axis of a Gemm is the first of a weight it uses transposed."""
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return (0,) if node.op_type == "Gemm" and turned else kind.channels
