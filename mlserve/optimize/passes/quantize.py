"""Quantization: float32 weights to int8."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mlserve.errors import Refused
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, quiet, stepped
from mlserve.optimize.precision import weight_precision

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["Quantize"]

# What onnxruntime computes in int8 when activations are scaled as they come. Convolutions are not among it: the one
# kernel there is (ConvInteger) takes unsigned weights only and is slower than float32; they need static quantization.
_OPERATORS = ("Attention", "EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul")
_INTEGER_MARKS = ("MatMulInteger", "DynamicQuantizeLSTM", "DequantizeLinear", "QAttention", "QEmbedLayerNormalization")
# From this version of the format on, an initializer need not be an input too.
_FREE_INITIALIZERS_IR = 4


class Quantize(msgspec.Struct, frozen=True, tag_field="pass", tag="quantize", forbid_unknown_fields=True):
    """Weights to int8; activations are scaled batch by batch as they come (`dynamic`), which needs no calibration data.

    `per_channel` gives every output channel a scale of its own. Raises Refused when the model holds nothing to
    quantize, or weights that are not float32.
    """

    mode: Literal["dynamic"] = "dynamic"
    per_channel: bool = True

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = out / MODEL_FILE
        model = onnx.load(source.model_path)
        precision = weight_precision(model)
        if precision != "fp32":
            raise Refused(
                f"int8 is made from float32 weights, and most of this model's are {precision}; keep it as it is"
            )
        # The quantizer transposes weights; shapes that an exporter noted for them would then contradict it.
        del model.graph.value_info[:]
        _turn_weights(model)
        already = _integer_operators(model)
        try:
            with quiet():
                quantize_dynamic(
                    model,
                    target,
                    op_types_to_quantize=list(_OPERATORS),
                    per_channel=self.per_channel,
                    weight_type=QuantType.QInt8,
                    use_external_data_format=source.size_bytes > INLINE_LIMIT_BYTES,
                    # After fusion some tensors have no inferred type; float32 is what they are.
                    extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
                )
        except Exception as error:  # the quantizer fails in as many ways as there are graphs
            if no_space_left(error):
                raise
            raise Refused(f"int8 cannot be made of this model: {type(error).__name__}: {error}") from error
        notes = _what_changed(onnx.load(target, load_external_data=False), already)
        copy_companions(source, out)
        return stepped(source, out, self, notes)


def _turn_weights(model: "ModelProto") -> None:
    """Stores every weight that a Gemm uses transposed the other way round.

    The quantizer would do it once for each Gemm, and so turn a weight that two of them share back again
    (`replace_gemm_with_matmul`: "assume B is not used by any other node").
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    turned = {}
    for graph in _graphs(model.graph):
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
    model.ir_version = max(model.ir_version, _FREE_INITIALIZERS_IR)
    _drop_unused(model.graph, {name.removesuffix("_turned") for name in turned})


def _drop_unused(graph: "GraphProto", names: set[str]) -> None:
    """Removes those of the initializers `names` that nothing uses any more."""
    used = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    used |= {output.name for inner in _graphs(graph) for output in inner.output}
    for values in (graph.initializer, graph.input):
        kept = [value for value in values if value.name not in names - used]
        del values[:]
        values.extend(kept)


def _graphs(graph: "GraphProto") -> "Iterator[GraphProto]":
    """`graph` and those inside its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _integer_operators(model: "ModelProto") -> int:
    return sum(node.op_type in _INTEGER_MARKS for node in model.graph.node)


def _what_changed(model: "ModelProto", already: int) -> tuple[str, ...]:
    """How many more operators than `already` compute on integers now, and what stayed in float32.

    Raises Refused when there are none.
    """
    integer = _integer_operators(model) - already
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    if integer <= 0:
        what = f"its {convolutions} convolutions need static quantization" if convolutions else "no weight can be int8"
        raise Refused(f"int8 brings nothing for this model: {what}; keep float32")
    notes = [f"{integer} operators in int8"]
    if convolutions:
        notes.append(f"{convolutions} convolutions stay in float32: they need static quantization")
    return tuple(notes)
