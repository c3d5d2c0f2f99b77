"""Answers in plain JSON, read as the tensors a model gives: what a client makes of `to_columns` and `to_rows`.

    by column   {"scores": [[0.1, 0.9], [0.8, 0.2]], "label": [1, 0]}
    by row      [{"scores": [0.1, 0.9], "label": 1}, {"scores": [0.8, 0.2], "label": 0}]
    by row      [[0.1, 0.9], [0.8, 0.2]]   of a model with one output
    one row     {"scores": [0.1, 0.9], "label": 1}, or [0.1, 0.9]

How deep the lists lie tells them apart. null is a float that JSON cannot say.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.wire.plain import from_b64, is_b64
from mlserve.wire.signature import Field

__all__ = ["read_answer"]

_MOST_NAMED = 16


def read_answer(value: Any, outputs: Mapping[str, TensorSpec]) -> Tensors:
    """The tensors `outputs` in a parsed JSON answer. Raises InvalidRequest for one that does not hold just them.

    Names beside those of `outputs` are passed over.
    """
    if not outputs:
        raise InvalidRequest("the answer names no types, and the model's outputs are not known")
    if isinstance(value, dict) and not is_b64(value):
        return _of_object(value, outputs)
    if isinstance(value, list) and value and all(isinstance(row, dict) and not is_b64(row) for row in value):
        return _of_columns({name: [_member(row, name) for row in value] for name in outputs}, outputs)
    if len(outputs) != 1:
        raise InvalidRequest(f"the answer names no outputs, and the model gives {_listed(outputs)}")
    (spec,) = outputs.values()
    one_row = _depth(value) == len(spec.shape) - 1 and value != []
    return {spec.name: _array([value] if one_row else value, spec)}


def _of_object(value: Mapping[str, Any], outputs: Mapping[str, TensorSpec]) -> Tensors:
    columns = {name: _member(value, name) for name in outputs}
    one_row = all(_depth(columns[name]) == len(spec.shape) - 1 for name, spec in outputs.items())
    return _of_columns({name: [column] for name, column in columns.items()} if one_row else columns, outputs)


def _of_columns(columns: Mapping[str, Any], outputs: Mapping[str, TensorSpec]) -> Tensors:
    return {name: _array(columns[name], spec) for name, spec in outputs.items()}


def _member(value: Mapping[str, Any], name: str) -> Any:
    if name not in value:
        raise InvalidRequest(f"the answer has no output '{name}'; it has {_listed(value)}")
    return value[name]


def _array(values: Any, spec: TensorSpec) -> Array:
    """Nested lists as the output `spec`, whose dynamic dimensions may be empty: some images hold nothing to detect."""
    try:
        array = _typed(values, _field(spec))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"output '{spec.name}' cannot be read as {spec.datatype}: {error}") from error
    if array.size == 0 and array.ndim < len(spec.shape):  # an empty list tells no more dimensions
        missing = spec.shape[array.ndim :]
        array = array.reshape(*array.shape, *(dim if isinstance(dim, int) else 0 for dim in missing))
    fits = array.ndim == len(spec.shape) and all(
        size == dim or isinstance(dim, str) for size, dim in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(f"output '{spec.name}' has shape {list(array.shape)}, expected {spec.wire_shape}")
    return array


def _typed(values: Any, field: Field) -> Array:
    """`values` in the output's type. Raises ValueError, TypeError or OverflowError where an element does not fit."""
    if field.dtype.kind in "fV":
        wide = np.array(values, np.float64)  # which makes NaN of None
        with np.errstate(over="ignore"):
            array = wide.astype(field.dtype)
        if (np.isfinite(wide) & ~np.isfinite(array.astype(np.float64))).any():
            raise ValueError("it holds a number beyond the largest of the type")
        return array
    if field.dtype.kind == "O":
        values = _texts(values)
    return np.array(msgspec.convert(values, field.nested_json.type), field.dtype)


def _texts(values: Any) -> Any:
    if isinstance(values, list):
        return [_texts(value) for value in values]
    return from_b64(values).decode() if is_b64(values) else values


_field = lru_cache(maxsize=1024)(Field)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name[:64] for name in list(names)[:_MOST_NAMED]) or "nothing"
