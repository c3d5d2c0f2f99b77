"""One array in numpy's own file format (`.npy`, versions 1 to 3), without pickles.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Its header is a Python literal;
here only the one form that every writer of plain arrays gives it is known, and nothing is evaluated. The size of the
array is checked against the bytes at hand before anything is made of it.
"""

import io
import math
import re
from typing import Any

import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, shape_matches
from mlserve.wire.signature import Field

__all__ = ["read_npy", "write_npy"]

_MAGIC = b"\x93NUMPY"
# Of versions 1, 2 and 3: how many bytes hold the header's length.
_LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
_MOST_HEADER_BYTES = 4096
_HEADER = re.compile(
    rb"\{ *'descr': *'(?P<dtype>[<>|=][biuf][0-9]{1,2})', *'fortran_order': *(?P<by_column>True|False), *"
    rb"'shape': *\((?P<shape>(?:[0-9]{1,18}, *){0,31}(?:[0-9]{1,18})?)\),? *\}\s*"
)
_SIZE = re.compile(rb"[0-9]+")


def read_npy(body: bytes, field: Field, model: str) -> Array:
    """The array that `body` holds, as the input `field`.

    A number of another type is taken where its value fits: float64, numpy's habit, for float32, and int64 for int32.
    Raises InvalidRequest for other types, for values out of range and for another shape.
    """
    array = _read(body)
    if not shape_matches(array.shape, field.dims):
        raise InvalidRequest(
            f"input '{field.name}' has shape {list(array.shape)[:16]} for model '{model}', "
            f"expected {field.spec.wire_shape}"
        )
    if array.dtype == field.dtype:
        return array
    alike = (array.dtype.kind == "b") == (field.dtype.kind == "b") and field.dtype != object
    if not alike or not np.can_cast(array.dtype, field.dtype, "same_kind"):
        raise InvalidRequest(f"input '{field.name}' of model '{model}' is {field.datatype}, the array {array.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(field.dtype)
    fits = np.array_equal(cast, array) if field.dtype.kind in "iu" else not (np.isinf(cast) & ~np.isinf(array)).any()
    if not fits:
        raise InvalidRequest(f"input '{field.name}' holds a value that is too large for {field.datatype}")
    return cast


def write_npy(array: Array) -> bytes:
    """`array` as the bytes of a `.npy` file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _read(body: bytes) -> Array:
    length_bytes = _LENGTH_BYTES.get(body[6:8]) if body.startswith(_MAGIC) else None
    if length_bytes is None:
        raise InvalidRequest("the body is no array in numpy's .npy format, version 1 to 3")
    begins = 8 + length_bytes
    ends = begins + int.from_bytes(body[8:begins], "little")
    header = _HEADER.fullmatch(body, begins, ends) if ends - begins <= _MOST_HEADER_BYTES else None
    if header is None:
        raise InvalidRequest("the .npy file's header is not that of one plain array of numbers or booleans")
    dtype = _dtype(header["dtype"].decode())
    shape = [int(size) for size in _SIZE.findall(header["shape"])]
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(body) - ends:
        raise InvalidRequest(f"the array's header says {expected} bytes, the body holds {max(len(body) - ends, 0)}")
    flat = np.frombuffer(body, dtype, offset=ends)
    if dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
        raise InvalidRequest("the array is boolean and holds a byte that is neither 0 nor 1")
    array = flat.reshape(shape, order="F" if header["by_column"] == b"True" else "C")
    return np.ascontiguousarray(array).astype(dtype.newbyteorder("="), copy=False)


def _dtype(text: str) -> np.dtype[Any]:
    try:
        return np.dtype(text)
    except TypeError as error:
        raise InvalidRequest(f"there is no type {text!r} of numbers") from error
