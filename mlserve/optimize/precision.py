"""The precision of a model: the type that most of its weights are kept in."""

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["weight_precision"]


def weight_precision(model: "ModelProto") -> str:
    """`fp32`, `fp16`, `bf16`, `fp64`, `int8` or `int4`; `fp32` where there are no weights.

    Weights in external data count too, though they are not read.
    """
    from onnx import TensorProto

    names = {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.DOUBLE: "fp64",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "int8",
        TensorProto.INT4: "int4",
        TensorProto.UINT4: "int4",
    }
    packed = _packed_bits(model)
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        if tensor.name in packed:
            sizes[f"int{packed[tensor.name]}"] += prod(tensor.dims) * 8 // packed[tensor.name]
        elif tensor.data_type in names:
            sizes[names[tensor.data_type]] += prod(tensor.dims)
    return sizes.most_common(1)[0][0] if sizes else "fp32"


def _packed_bits(model: "ModelProto") -> dict[str, int]:
    """Weights of a few bits each that are stored as bytes: name -> bits. onnxruntime's operators know how many."""
    places = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
    bits: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in places:
            attribute = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
            bits[node.input[places[node.op_type]]] = attribute
    return bits
