"""Named tensors: their declared shapes (`TensorSpec`), their values (`Tensors`), and the names types go by.

Dimension 0 is the row dimension wherever it is dynamic. A dynamic dimension is a word ("batch", "sequence"), a fixed
one is a number.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.errors import UsageError

__all__ = [
    "DATATYPE_OF",
    "DTYPE_OF",
    "Array",
    "Dims",
    "TensorSpec",
    "Tensors",
    "as_dtype",
    "batchable",
    "numpy_dtype",
    "parse_input_flag",
    "shape_matches",
]

Array = npt.NDArray[Any]
Tensors = dict[str, Array]
Dims = tuple[int | str, ...]

DATATYPE_OF = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
"""numpy's name of a type -> the Open Inference Protocol's. Text and bytes are numpy objects."""

DTYPE_OF = {datatype: dtype for dtype, datatype in DATATYPE_OF.items()}

# What the protocol and onnxruntime carry and numpy itself lacks; no importer makes a model of it.
_BFLOAT16 = "bfloat16"
_WIRE_DATATYPE_OF = {**DATATYPE_OF, _BFLOAT16: "BF16"}

# Of a dimension: what fits the 64 bits that ONNX and the protocols give it.
_MOST_DIGITS = 18


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output of a model.

    `TensorSpec("tokens", "int64", ("batch", 20))`  # any number of rows, each of 20 integers
    `TensorSpec("image", "float32", (1, 3, 224, 224))`  # exactly one row

    `below` is the exclusive upper bound of an integer input's values (a vocabulary's size), where it is known.
    """

    name: str
    dtype: str
    shape: Dims
    below: int | None = None

    @property
    def datatype(self) -> str:
        """The type as the Open Inference Protocol names it: `FP32`, `INT64`, `BYTES`."""
        return _WIRE_DATATYPE_OF[self.dtype]

    @property
    def wire_shape(self) -> list[int]:
        """The shape as the Open Inference Protocol writes it: -1 for a dynamic dimension."""
        return [dim if isinstance(dim, int) else -1 for dim in self.shape]

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}:{','.join(map(str, self.shape))}"


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of that name; `bfloat16` is ml_dtypes', whose kind is V."""
    if name == _BFLOAT16:
        import ml_dtypes  # noqa: F401  # from then on numpy knows the name
    return np.dtype(name)


def batchable(specs: Iterable[TensorSpec]) -> bool:
    """Whether every tensor has a dynamic row dimension, so that requests may be run together."""
    return all(spec.shape and isinstance(spec.shape[0], str) for spec in specs)


def shape_matches(shape: Sequence[int], dims: Dims) -> bool:
    """Whether concrete `shape` is an instance of `dims`; no dimension may be empty."""
    if len(shape) != len(dims):
        return False
    for size, dim in zip(shape, dims, strict=True):  # noqa: SIM110  # all() would cost a generator a request
        if size != dim and (size < 1 or isinstance(dim, int)):
            return False
    return True


def parse_input_flag(text: str) -> TensorSpec:
    """`"tokens:int64:batch,20"` -> `TensorSpec("tokens", "int64", ("batch", 20))`; an empty last part is a scalar.

    Raises UsageError for another form, a type mlserve does not know, or a dimension below 1.
    """
    form = "write name:dtype:dims, such as tokens:int64:batch,20 (numbers are fixed, words are dynamic)"
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not parts[0]:
        raise UsageError(f"--input {text!r} cannot be read; {form}")
    name, dtype, dims = parts
    if dtype not in DATATYPE_OF:
        raise UsageError(f"--input {text!r}: unknown type {dtype!r}; use one of {', '.join(DATATYPE_OF)}")
    shape = tuple(_parse_dim(dim.strip(), text, form) for dim in dims.split(",")) if dims.strip() else ()
    return TensorSpec(name, dtype, shape)


def _parse_dim(dim: str, text: str, form: str) -> int | str:
    if dim.isdecimal() and len(dim) <= _MOST_DIGITS and int(dim) >= 1:
        return int(dim)
    if dim.isidentifier():
        return dim
    raise UsageError(f"--input {text!r}: {dim!r} is no dimension; {form}")


def as_dtype(array: Array, dtype: str) -> Array:
    """`array` as `dtype`; text becomes objects, as onnxruntime takes it."""
    return array if array.dtype.name == dtype else array.astype(np.dtype(dtype))
