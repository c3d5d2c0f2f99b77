"""What several passes do to an ONNX graph: walk it, name what they leave out, turn weights, write it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlserve.errors import UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES
from mlserve.optimize.passes.int8_operators import matching

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = [
    "FREE_INITIALIZERS_IR",
    "computes_in_int8",
    "drop_unused",
    "excluded_names",
    "graphs",
    "operator_count",
    "turn_weights",
    "write_graph",
]

# From this version of the format on, an initializer need not be an input too.
FREE_INITIALIZERS_IR = 4
# Operators that compute on integers made of activations; those of weight-only quantization do not.
_INT8_OPERATORS = (
    *("ConvInteger", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"),
    *("MatMulInteger", "MatMulIntegerToFloat", "QAttention", "QEmbedLayerNormalization", "QGemm", "QLinearConv"),
    *("QLinearMatMul", "QuantizeLinear"),
)


def graphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    """`graph` and those inside its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def excluded_names(model: "ModelProto", patterns: tuple[str, ...]) -> frozenset[str]:
    """The names of operators that one of `patterns` (`*/pooler/*`) matches.

    Raises UsageError for a pattern that matches none.
    """
    if not patterns:
        return frozenset()
    names = [node.name for graph in graphs(model.graph) for node in graph.node if node.name]
    if not names:
        raise UsageError(
            f"exclude: the operators of this model have no names for {patterns[0]!r} to match; leave it out"
        )
    return matching(names, patterns)


def computes_in_int8(model: "ModelProto") -> bool:
    """Whether any operator takes or makes int8 activations."""
    return any(node.op_type in _INT8_OPERATORS for graph in graphs(model.graph) for node in graph.node)


def operator_count(model: "ModelProto") -> int:
    """How many operators there are; constants, which some exporters write as operators, are not counted."""
    return sum(node.op_type != "Constant" for graph in graphs(model.graph) for node in graph.node)


def turn_weights(model: "ModelProto") -> None:
    """Stores every weight that a Gemm uses transposed the other way round.

    onnxruntime's quantizer would do it once for each Gemm, and so turn a weight that two of them share back again
    (`replace_gemm_with_matmul`: "assume B is not used by any other node").
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    turned = {}
    for graph in graphs(model.graph):
        for node in graph.node:
            transposed = next((attribute for attribute in node.attribute if attribute.name == "transB"), None)
            if node.op_type != "Gemm" or transposed is None or not transposed.i or node.input[1] not in weights:
                continue
            name = f"{node.input[1]}_turned"
            if name not in turned:
                turned[name] = numpy_helper.from_array(numpy_helper.to_array(weights[node.input[1]]).T.copy(), name)
            node.input[1] = name
            node.attribute.remove(transposed)
    model.graph.initializer.extend(turned.values())
    model.ir_version = max(model.ir_version, FREE_INITIALIZERS_IR)
    drop_unused(model.graph, {name.removesuffix("_turned") for name in turned})


def drop_unused(graph: "GraphProto", names: set[str]) -> None:
    """Removes those of the initializers `names` that nothing uses any more."""
    used = {name for inner in graphs(graph) for node in inner.node for name in node.input}
    used |= {output.name for inner in graphs(graph) for output in inner.output}
    for values in (graph.initializer, graph.input):
        kept = [value for value in values if value.name not in names - used]
        del values[:]
        values.extend(kept)


def _declare_domains(model: "ModelProto") -> None:
    """Every operator's domain is named with its version: onnxruntime does without, onnx's shape inference does not."""
    import onnx

    declared = {entry.domain for entry in model.opset_import}
    used = {node.domain for graph in graphs(model.graph) for node in graph.node if node.domain not in ("", "ai.onnx")}
    model.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(used - declared))


def write_graph(model: "ModelProto", folder: Path, source: Artifact) -> Path:
    """Writes `folder/model.onnx`, its weights beside it where those of `source` are more than a message holds."""
    import onnx

    _declare_domains(model)
    path = folder / MODEL_FILE
    large = source.size_bytes > INLINE_LIMIT_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{MODEL_FILE}.data" if large else None)
    return path
