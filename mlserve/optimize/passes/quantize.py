"""Quantization: float32 weights to int8."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mlserve.errors import Refused
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES
from mlserve.optimize.passes.graph import excluded_names, turn_weights
from mlserve.optimize.passes.int8_operators import refuse_unless_onnx
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, quiet, stepped
from mlserve.optimize.precision import weight_precision

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["DYNAMIC_OPERATORS", "Quantize"]

# What onnxruntime computes in int8 when activations are scaled as they come. Convolutions are not among it: the one
# kernel there is (ConvInteger) takes unsigned weights only and is slower than float32; they need static quantization.
DYNAMIC_OPERATORS = ("Attention", "EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul")
_INTEGER_MARKS = ("MatMulInteger", "DynamicQuantizeLSTM", "DequantizeLinear", "QAttention", "QEmbedLayerNormalization")


class Quantize(msgspec.Struct, frozen=True, tag_field="pass", tag="quantize", forbid_unknown_fields=True):
    """Weights to int8; activations are scaled batch by batch as they come (`dynamic`), which needs no calibration data.

    `per_channel` gives every output channel a scale of its own. Operators whose name matches one of the patterns
    `exclude` stay in float32. Raises Refused when the model holds nothing to quantize, or weights that are not float32,
    UsageError for a pattern that matches no operator.
    """

    mode: Literal["dynamic"] = "dynamic"
    per_channel: bool = True
    exclude: tuple[str, ...] = ()

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        refuse_unless_onnx(source, "int8")
        target = out / MODEL_FILE
        model = onnx.load(source.model_path)
        precision = weight_precision(model)
        if precision != "fp32":
            raise Refused(
                f"int8 is made from float32 weights, and most of this model's are {precision}; keep it as it is"
            )
        excluded = excluded_names(model, self.exclude)
        # The quantizer transposes weights; shapes that an exporter noted for them would then contradict it.
        del model.graph.value_info[:]
        turn_weights(model)
        already = _integer_operators(model)
        try:
            with quiet():
                quantize_dynamic(
                    model,
                    target,
                    op_types_to_quantize=list(DYNAMIC_OPERATORS),
                    # It makes a MatMul of every Gemm first, and calls it so.
                    nodes_to_exclude=sorted({*excluded, *(f"{name}_MatMul" for name in excluded)}),
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
