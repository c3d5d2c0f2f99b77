"""Tensors as raw bytes: row-major, little-endian; text elements each after their length."""

import math
from collections.abc import Sequence

import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array
from mlserve.wire.signature import Field

__all__ = ["from_raw", "to_raw"]


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
        try:
            texts.append(str(view[start:position], "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"input '{name}' holds a string element that is no UTF-8") from error
    if position != len(view) or len(texts) != count:
        raise InvalidRequest(f"expected {count} string elements for inference input '{name}', got {len(texts)}")
    return np.array(texts, object)


def _raw_from_texts(array: Array) -> bytes:
    """The reverse of `_texts_from_raw`, for an array of str or bytes of any shape."""
    elements = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
