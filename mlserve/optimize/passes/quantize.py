"""Quantization: float32 weights to int8."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from mlserve.errors import Refused
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.optimize.passes.step import copy_companions, stepped

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Quantize"]

# What onnxruntime computes in int8 when activations are scaled as they come. Convolutions are not among it: the one
# kernel there is (ConvInteger) takes unsigned weights only and is slower than float32; they need static quantization.
_OPERATORS = ("Attention", "EmbedLayerNormalization", "Gather", "Gemm", "LSTM", "MatMul")
_INTEGER_MARKS = ("MatMulInteger", "DynamicQuantizeLSTM", "DequantizeLinear", "QAttention", "QEmbedLayerNormalization")


class Quantize(msgspec.Struct, frozen=True, tag_field="pass", tag="quantize", forbid_unknown_fields=True):
    """Weights to int8; activations are scaled batch by batch as they come (`dynamic`), which needs no calibration data.

    `per_channel` gives every output channel a scale of its own. Raises Refused when the model holds nothing to
    quantize.
    """

    mode: Literal["dynamic"] = "dynamic"
    per_channel: bool = True

    def __call__(self, source: Artifact, out: Path) -> Artifact:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target = out / MODEL_FILE
        model = onnx.load(source.model_path)
        # The quantizer transposes weights; shapes that an exporter noted for them would then contradict it.
        del model.graph.value_info[:]
        with _quiet():
            quantize_dynamic(
                model,
                target,
                op_types_to_quantize=list(_OPERATORS),
                per_channel=self.per_channel,
                weight_type=QuantType.QInt8,
                use_external_data_format=source.size_bytes > 4 << 30,
                # After fusion some tensors have no inferred type; float32 is what they are.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        notes = _what_changed(onnx.load(target, load_external_data=False))
        copy_companions(source, out)
        return stepped(source, out, self, notes)


def _what_changed(model: "ModelProto") -> tuple[str, ...]:
    """How many operators compute on integers now, and what stayed in float32. Raises Refused when none does."""
    kinds = [node.op_type for node in model.graph.node]
    integer = sum(kinds.count(kind) for kind in _INTEGER_MARKS)
    convolutions = kinds.count("Conv")
    if not integer:
        what = f"its {convolutions} convolutions need static quantization" if convolutions else "it has no weights to"
        raise Refused(f"int8 brings nothing for this model: {what}; keep float32")
    notes = [f"{integer} operators in int8"]
    if convolutions:
        notes.append(f"{convolutions} convolutions stay in float32: they need static quantization")
    return tuple(notes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer recommends a preprocessing step through the root logger, whatever was done before."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
