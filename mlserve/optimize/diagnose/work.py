"""How much work an operation is, how many bytes it moves, and what it computes in: functions of its shapes.

Counted are the operators where the work of a network is: matrix products, convolutions, attention, recurrent layers. A
multiplication and an addition are two; bias, activation and normalization are not counted.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import msgspec

from mlserve.optimize.diagnose.facts import Operation, Tensor

__all__ = ["CONVERTING", "DYNAMIC", "MOVING", "Executed", "convolves", "flops", "is_quantized", "precision", "traffic"]

_PRODUCTS = frozenset(
    (
        "DynamicQuantizeMatMul",
        "FullyConnected",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearMatMul",
    )
)
# Where each convolution has its kernel among its inputs.
_CONVOLUTIONS = {
    "Conv": 1,
    "ConvInteger": 1,
    "Convolution": 1,
    "FusedConv": 1,
    "GroupConvolution": 1,
    "NhwcFusedConv": 1,
    "QLinearConv": 3,
}
_TRANSPOSED_CONVOLUTIONS = ("ConvTranspose", "Deconvolution")
_GATES = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}
_INT8 = frozenset(
    (
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
    )
)
CONVERTING = frozenset(
    ("Cast", "Convert", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "QuantizeLinear")
)
"""Operators that only turn numbers of one type into another."""

DYNAMIC = frozenset(
    ("DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat")
)
"""Operators that a model quantized dynamically has and one quantized statically has not."""

MOVING = frozenset(
    (
        "Concat",
        "Expand",
        "Flatten",
        "Identity",
        "MemcpyFromHost",
        "MemcpyToHost",
        "Pad",
        "Reorder",
        "ReorderInput",
        "ReorderOutput",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
)
"""Operators that only put numbers elsewhere."""

_VIEWS = frozenset(("Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"))
_LOOKUPS = frozenset(("EmbedLayerNormalization", "Gather", "GatherElements", "GatherND", "QEmbedLayerNormalization"))
_SHORT = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "double": "fp64",
    "f16": "fp16",
    "f32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "i8": "int8",
    "u8": "int8",
}
_BITS = {
    "bool": 8,
    "boolean": 8,
    "double": 64,
    "float": 32,
}


class Executed(msgspec.Struct, frozen=True):
    """One operation as an engine ran it.

    `inputs` are the values it was given, in order; weights that the engine has packed for itself may be missing among
    them. `weights` are the constant ones by their place among the node's inputs, as far as they are known.
    """

    operator: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    weights: Mapping[int, Tensor] = {}
    attributes: Mapping[str, int] = {}


def flops(executed: Executed) -> int:
    """Multiplications and additions; 0 for an operator that is not counted or whose shapes are not known.

    `[M, K] x [K, N]` is 2 M K N; a convolution 2 x outputs x channels of a group x kernel.
    """
    if not executed.outputs or not executed.inputs:
        return 0
    count = _COUNTS.get(executed.operator)
    return count(executed) if count else 0


def traffic(executed: Executed) -> tuple[int, int]:
    """`(bytes of everything read and written once, those of the weights among them)`.

    A look-up in a table reads what it gives, not the table; a view moves nothing.
    """
    if executed.operator in _VIEWS:
        return 0, 0
    written = sum(map(_size_bytes, executed.outputs))
    if executed.operator in _LOOKUPS:
        return 2 * written, 0
    weights = sum(map(_size_bytes, executed.weights.values()))
    constant = list(executed.weights.values())
    activations = 0
    for tensor in executed.inputs:
        if tensor in constant:
            constant.remove(tensor)
        else:
            activations += _size_bytes(tensor)
    return activations + weights + written, weights


def precision(executed: Executed) -> str:
    """What it computes in: `int8`, `int4`, `fp32`, `fp16`, ...; the type it gives where that is no float."""
    operator = executed.operator
    if operator in _INT8 or operator.startswith("QLinear"):
        return "int8"
    if operator == "MatMulNBits":
        return f"int{executed.attributes.get('bits', 4)}"
    dtype = executed.outputs[0].dtype if executed.outputs else ""
    return _SHORT.get(dtype, dtype)


def convolves(operation: Operation) -> bool:
    """Whether it is a convolution, in any precision."""
    return operation.operator in _CONVOLUTIONS or operation.operator in _TRANSPOSED_CONVOLUTIONS


def is_quantized(operation: Operation) -> bool:
    """Whether it computes on integers of 8 bits or fewer, rather than only makes, unmakes or moves them."""
    return operation.precision in ("int8", "int4") and operation.operator not in CONVERTING | MOVING


def _operand(executed: Executed, place: int) -> Tensor | None:
    if place in executed.weights:
        return executed.weights[place]
    return executed.inputs[place] if place < len(executed.inputs) else None


def _product(executed: Executed) -> int:
    return 2 * prod(executed.outputs[0].shape) * _inner(executed)


def _packed_product(executed: Executed) -> int:
    """MatMulNBits has K as an attribute, as its weights are packed."""
    return 2 * prod(executed.outputs[0].shape) * executed.attributes.get("K", 0)


def _convolution(executed: Executed) -> int:
    """Outputs x channels of a group x kernel, the last dimensions of the weights."""
    kernel = _operand(executed, _CONVOLUTIONS[executed.operator])
    written = executed.outputs[0].shape
    return 2 * prod(written) * prod(kernel.shape[1 - len(written) :]) if kernel else 0


def _transposed_convolution(executed: Executed) -> int:
    kernel = _operand(executed, 1)
    return 2 * prod(executed.inputs[0].shape) * prod(kernel.shape[1:]) if kernel else 0


def _inner(executed: Executed) -> int:
    """K, the length that a product sums over."""
    left = _operand(executed, 0)
    if left is None or not left.shape:
        return 0
    transposed = executed.attributes.get("transA", 0) and len(left.shape) > 1
    return left.shape[-2 if transposed else -1]


def _attention(executed: Executed) -> int:
    """Projection of [B, S, D] by [D, 3H], scores [B, S, S] and their product with the values."""
    weights = _operand(executed, 1)
    given = executed.inputs[0].shape
    if weights is None or len(given) != 3:
        return 0
    rows, length, wide = given
    hidden = executed.outputs[0].shape[-1]
    return 2 * rows * length * wide * weights.shape[-1] + 4 * rows * length * length * hidden


def _scaled_product(executed: Executed) -> int:
    """Scores and weighted values of queries [B, S, D] or [B, heads, S, d] over keys of length L: 2 S L (d + d_v)."""
    if len(executed.inputs) < 2:
        return 0
    query, key = executed.inputs[0].shape, executed.inputs[1].shape
    if len(query) not in (3, 4) or len(key) not in (3, 4):
        return 0
    leading = prod(query[:-2])
    return 2 * leading * query[-2] * key[-2] * (query[-1] + executed.outputs[0].shape[-1])


def _recurrent(executed: Executed) -> int:
    """Gates x hidden x (input + hidden) for each of [steps, rows, input] and each direction."""
    given = executed.inputs[0].shape
    hidden = executed.attributes.get("hidden_size", 0)
    if len(given) != 3:
        return 0
    directions = executed.outputs[0].shape[1] if len(executed.outputs[0].shape) == 4 else 1
    return 2 * prod(given[:2]) * directions * _GATES[executed.operator] * hidden * (given[2] + hidden)


_COUNTS: dict[str, Callable[[Executed], int]] = {
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_TRANSPOSED_CONVOLUTIONS, _transposed_convolution),
    **dict.fromkeys(_GATES, _recurrent),
    "Attention": _attention,
    "MatMulNBits": _packed_product,
    "MultiHeadAttention": _scaled_product,
    "QAttention": _attention,
    "ScaledDotProductAttention": _scaled_product,
}


def _size_bytes(tensor: Tensor) -> int:
    return prod(tensor.shape) * _bits(tensor.dtype) // 8


def _bits(dtype: str) -> int:
    """The digits at the end of a type's name say its size: `int64`, `bf16`, `u8`; text has none and counts as 0."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = dtype.lstrip("abcdefghijklmnopqrstuvwxyz_")
    return int(digits) if digits.isdecimal() else 0
