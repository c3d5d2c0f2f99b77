"""Tensors as people write them: plain JSON values by row or by column, without types and shapes.

    by column   {"x": [[1, 2], [3, 4]], "flag": [true, false]}
    by row      [{"x": [1, 2], "flag": true}, {"x": [3, 4], "flag": false}]
    by row      [[1, 2], [3, 4]]   for a model of one input

The model's signature says what each value must be; a value that does not fit is refused, never bent.

JSON has no word for NaN and infinity. Most dialects refuse `NaN` in a request and answer null; TensorFlow Serving's
takes and gives the words `NaN`, `Infinity` and `-Infinity`: that is what `non_finite` asks for.
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, shape_matches
from mlserve.wire.signature import Field, Signature

__all__ = ["from_b64", "from_columns", "from_rows", "is_b64", "parse_json", "to_columns", "to_rows", "write_json"]


def parse_json(body: bytes, *, non_finite: bool = False) -> Any:
    """The value that `body` holds. `non_finite`: the words NaN, Infinity and -Infinity are numbers.

    Raises InvalidRequest when it is not JSON.
    """
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if non_finite and (b"NaN" in body or b"Infinity" in body):
            return _parse_non_finite(body)
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
    if not all(isinstance(row, dict) for row in rows) or is_b64(rows[0]):
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
    """The same by row: objects by output name, or the plain values of a single output.

    Outputs that do not all have the same number of rows belong together all the same: they are one row.
    """
    if len({outputs[name].shape[:1] for name in names}) != 1 or not outputs[names[0]].ndim:
        whole = to_columns(outputs, names)
        return [whole if len(names) > 1 else whole[names[0]]]
    columns = [list(_writable(outputs[name])) for name in names]
    if len(names) == 1:
        return columns[0]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def write_json(value: Any, *, non_finite: bool = False) -> bytes:
    """JSON of what `to_columns` and `to_rows` give: floats by their shortest digits.

    NaN and infinity become null, or the words NaN, Infinity and -Infinity where `non_finite`.
    """
    written = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if non_finite and b"null" in written:
        return orjson.dumps(_in_words(value), option=orjson.OPT_SERIALIZE_NUMPY)
    return written


def is_b64(value: Any) -> bool:
    """Whether `value` is bytes in JSON: an object with the one key `b64`."""
    return isinstance(value, dict) and value.keys() == {"b64"}


def from_b64(value: Mapping[str, Any]) -> bytes:
    """The bytes of `{"b64": ...}`. Raises InvalidRequest when it is no base64."""
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InvalidRequest(f"a 'b64' value is not base64: {error}") from error


def _parse_non_finite(body: bytes) -> Any:
    """`body` by the standard library's parser, held to what the other one refuses beside the words for non-numbers."""
    try:
        value = json.loads(body.decode(), parse_float=_finite)
        msgspec.json.encode(value)  # what it cannot encode is text with half a surrogate pair
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"the request body is not JSON: {error}") from error
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("Number out of range")
    return number


def _in_words(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by the word for it."""
    match value:
        case dict():
            return {name: _in_words(part) for name, part in value.items()}
        case list():
            return [_in_words(part) for part in value]
        case np.ndarray() if value.dtype.kind == "f" and not np.isfinite(value).all():
            return [_in_words(part) for part in value]
        case float() | np.floating() if not math.isfinite(value):
            word = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
            return orjson.Fragment(word)
    return value


def _writable(array: Array) -> Any:
    """`array` as something that orjson writes."""
    if array.dtype == object:
        return _texts_or_lists(array.tolist())
    if array.dtype.kind not in "biuf" or array.dtype == np.float16:
        array = array.astype(np.float32)
    # An engine's int64 may be a `longlong`, whose elements, outside an array, the JSON writer does not know.
    array = np.ascontiguousarray(array) if array.ndim else array
    array = array.view(np.dtype(array.dtype.str))
    return array if array.ndim else array[()]


def _texts_or_lists(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts_or_lists(part) for part in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _array(values: Any, field: Field, model: str) -> Array:
    """The nested list `values` as the input `field`, each element held to the types that V2's decoder has."""
    if field.dtype == object:
        values = _texts(values, len(field.dims))
    try:
        array = _checked(values, field)
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


def _checked(values: Any, field: Field) -> Array:
    """`values` as an array. Raises ValueError or OverflowError for an element that does not fit."""
    try:
        return np.array(msgspec.convert(values, field.nested_json.type), field.dtype)
    except msgspec.ValidationError:
        if field.dtype.kind in "biuO":
            raise
    # Its bounds keep out what would become infinite, and with it what is so already.
    element: Any = float
    for _ in field.dims:
        element = list[element]
    wide = np.array(msgspec.convert(values, element), np.float64)
    with np.errstate(over="ignore"):
        array = wide.astype(field.dtype)
    if (np.isfinite(wide) & ~np.isfinite(array.astype(np.float64))).any():
        raise ValueError(f"it holds a number beyond the largest of {field.datatype}")
    return array


def _texts(values: Any, depth: int) -> Any:
    """`values`, lists nested up to `depth` deep, with every `{"b64": ...}` replaced by the text it encodes."""
    if depth and isinstance(values, list):
        return [_texts(value, depth - 1) for value in values]
    if not is_b64(values):
        return values
    try:
        return from_b64(values).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("a 'b64' value is not base64 of UTF-8 text") from error
