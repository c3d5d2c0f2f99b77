"""Tensors as raw bytes: row-major, little-endian; text elements each after their length."""

import math
from collections.abc import Sequence

import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors
from mlserve.wire.signature import Field, Signature

__all__ = ["from_raw", "from_whole_body", "to_raw"]


def to_raw(array: Array) -> bytes:
    """The bytes of `array`."""
    return _raw_from_texts(array) if array.dtype == object else array.tobytes()


def from_raw(raw: bytes | memoryview, field: Field, shape: Sequence[int], model: str) -> Array:
    """The tensor that `raw` holds. Raises InvalidRequest when it does not hold just that many elements."""
    dtype = field.dtype
    if dtype.kind == "O":
        return _texts_from_raw(raw, math.prod(shape), field.name).reshape(shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidRequest(
            f"input byte size mismatch for input '{field.name}' for model '{model}'. "
            f"Expected {expected}, got {len(raw)}"
        )
    if dtype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise InvalidRequest(f"input '{field.name}' is BOOL and holds a byte that is neither 0 nor 1")
    return np.frombuffer(raw, dtype).reshape(shape)


def from_whole_body(raw: bytes, signature: Signature) -> Tensors:
    """The only input of a model from a body that is nothing but its elements: one row, one text for a model of texts.

    Of the dimensions beyond the row one may be dynamic: as many elements as there are decide it. Raises InvalidRequest
    for a model that takes more than one input, leaves more than one size open, or takes more than one text.
    """
    if len(signature.inputs) != 1:
        raise InvalidRequest(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(signature.inputs)} inputs in "
            f"'{signature.name}' model configuration"
        )
    (field,) = signature.inputs.values()
    dims = [1, *field.dims[1:]] if signature.together else list(field.dims)
    if field.dtype.kind == "O":
        if any(dim != 1 for dim in dims):
            raise InvalidRequest(
                f"For BYTE datatype raw input '{field.name}', the model must have input shape [1], it is "
                f"{field.spec.wire_shape}"
            )
        return {field.name: np.array([_text(raw, field.name)], object).reshape([1] * len(dims))}
    return {field.name: from_raw(raw, field, _deduced(dims, raw, field, signature.name), signature.name)}


def _deduced(dims: Sequence[int | str], raw: bytes, field: Field, model: str) -> list[int]:
    """`dims` with a size for the dynamic one, if any."""
    dynamic = sum(isinstance(dim, str) for dim in dims)
    if dynamic > 1:
        raise InvalidRequest(
            f"the shape of raw input '{field.name}' cannot be deduced: model '{model}' takes {field.spec.wire_shape}, "
            "with more than one dynamic dimension; send the shape as JSON, with binary_data_size"
        )
    others_bytes = math.prod(dim for dim in dims if isinstance(dim, int)) * field.dtype.itemsize
    size = len(raw) // others_bytes if others_bytes else 0
    if dynamic and not size:
        raise InvalidRequest(
            f"input byte size mismatch for input '{field.name}' for model '{model}'. "
            f"Expected a multiple of {others_bytes}, got {len(raw)}"
        )
    return [size if isinstance(dim, str) else dim for dim in dims]


def _text(raw: bytes | memoryview, name: str) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input '{name}' holds a string element that is no UTF-8") from error


def _texts_from_raw(raw: bytes | memoryview, count: int, name: str) -> Array:
    """`count` texts, each after its length as four little-endian bytes, as an object array [count] of str.

    Raises InvalidRequest when lengths and bytes disagree or a text is no UTF-8.
    """
    texts: list[str] = []
    position = 0
    view = memoryview(raw)
    while position < len(view) and len(texts) < count:
        start = position + 4
        position = start + int.from_bytes(view[start - 4 : start], "little")
        if position > len(view):
            raise InvalidRequest(f"input '{name}' ends within a string element")
        texts.append(_text(view[start:position], name))
    if position != len(view) or len(texts) != count:
        raise InvalidRequest(f"expected {count} string elements for inference input '{name}', got {len(texts)}")
    return np.array(texts, object)


def _raw_from_texts(array: Array) -> bytes:
    """The reverse of `_texts_from_raw`, for an array of str or bytes of any shape."""
    elements = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
