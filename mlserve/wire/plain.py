"""Tensors as people write them: plain JSON values by row or by column, without types and shapes.

    by column   {"x": [[1, 2], [3, 4]], "flag": [true, false]}
    by row      [{"x": [1, 2], "flag": true}, {"x": [3, 4], "flag": false}]
    by row      [[1, 2], [3, 4]]   for a model of one input

The model's signature says what each value must be; a value that does not fit is refused, never bent.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, shape_matches
from mlserve.wire.signature import Field, Signature

__all__ = ["from_columns", "from_rows", "parse_json", "to_columns", "to_rows", "write_json"]


def parse_json(body: bytes) -> Any:
    """The value that `body` holds. Raises InvalidRequest when it is not JSON."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not JSON: {error}") from error


def from_columns(columns: Mapping[str, Any], signature: Signature) -> Tensors:
    """Every input of the model from nested lists `[rows, ...]`, by name.

    Raises InvalidRequest for an unknown or a missing input and for values that do not fit the input's type and shape.
    """
    unknown = [name for name in columns if name not in signature.inputs]
    missing = [name for name in signature.inputs if name not in columns]
    if unknown or missing:
        known = ", ".join(f"'{name}'" for name in signature.inputs)
        what = f"unexpected input '{unknown[0][:64]}'" if unknown else f"missing input '{missing[0]}'"
        raise InvalidRequest(f"{what} for model '{signature.name}'; it takes {known}")
    return {name: _array(columns[name], field, signature.name) for name, field in signature.inputs.items()}


def from_rows(rows: Sequence[Any], signature: Signature) -> Tensors:
    """Every input of the model from a list of rows: objects by input name, or plain values for a model of one input.

    Raises InvalidRequest as `from_columns` does, for rows that differ in kind, and for no rows.
    """
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest("the request holds no rows; send a list of at least one")
    if not all(isinstance(row, dict) for row in rows) or "b64" in rows[0]:
        if len(signature.inputs) != 1:
            known = ", ".join(f"'{name}'" for name in signature.inputs)
            raise InvalidRequest(
                f"model '{signature.name}' takes {known}: send every row as an object with a value for each"
            )
        return from_columns({next(iter(signature.inputs)): rows}, signature)
    names = rows[0].keys()
    for row in rows:
        if row.keys() != names:
            raise InvalidRequest("the rows do not all have the same names")
    return from_columns({name: [row[name] for row in rows] for name in names}, signature)


def to_columns(outputs: Tensors, names: Sequence[str]) -> dict[str, Any]:
    """`names` of `outputs`, `[rows, ...]`, as values for `write_json`."""
    return {name: _writable(outputs[name]) for name in names}


def to_rows(outputs: Tensors, names: Sequence[str]) -> list[Any]:
    """The same by row: objects by output name, or the plain values of a single output."""
    columns = [list(_writable(outputs[name])) for name in names]
    if len(names) == 1:
        return columns[0]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def write_json(value: Any) -> bytes:
    """JSON of what `to_columns` and `to_rows` give: floats by their shortest digits, NaN and infinity as null."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _writable(array: Array) -> Array | list[Any]:
    """`array` as something that orjson writes."""
    if array.dtype == object:
        return [_writable(part) for part in array] if array.ndim > 1 else [_text(value) for value in array.tolist()]
    if array.dtype.kind not in "biuf" or array.dtype == np.float16:
        array = array.astype(np.float32)
    return np.ascontiguousarray(array)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _array(values: Any, field: Field, model: str) -> Array:
    """The nested list `values` as the input `field`, each element checked by the decoder that V2 uses."""
    if field.dtype == object:
        values = _texts(values)
    encoded = msgspec.json.encode(values)
    try:
        checked = field.nested_json.decode(encoded)
        array = np.array(checked, field.dtype)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"input '{field.name}' of model '{model}' cannot be read as {field.datatype} of shape "
            f"{field.spec.wire_shape}: {error}"
        ) from error
    if array.ndim != len(field.dims) or not shape_matches(array.shape, field.dims):
        raise InvalidRequest(
            f"input '{field.name}' has shape {list(array.shape)[:16]} for model '{model}', "
            f"expected {field.spec.wire_shape}"
        )
    return array


def _texts(values: Any) -> Any:
    """`values` with every `{"b64": ...}` replaced by the text it encodes."""
    if isinstance(values, list):
        return [_texts(value) for value in values]
    if isinstance(values, dict) and values.keys() == {"b64"}:
        try:
            return base64.b64decode(values["b64"], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, TypeError, ValueError) as error:
            raise InvalidRequest(f"a 'b64' value is not base64 of UTF-8 text: {error}") from error
    return values
