"""What the dialects share that ask by rows: a body read by its content type, and answers written row by row.

    application/json               values as each dialect frames them
    text/csv                       a table
    application/x-npy              one array
    image/*, text/plain            what a person has, for a model with a task

Where the type says nothing (none, `application/octet-stream`, what `curl -d` sends) the first bytes decide. This list
is all there is: no type is read by a decoder that could run code.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from mlserve.errors import InvalidRequest, UnsupportedContent
from mlserve.model.tensors import Tensors
from mlserve.serve.pages.example import example_question
from mlserve.serve.protocols.dialect import Headers
from mlserve.serve.service import ServedModel
from mlserve.serve.tasks.task import Asked
from mlserve.wire.npy import read_npy
from mlserve.wire.plain import from_columns, from_rows, to_columns, to_rows
from mlserve.wire.signature import InferRequest, Signature
from mlserve.wire.tables import Table, check_table, from_table

__all__ = [
    "CSV",
    "IMAGE",
    "JSON",
    "NPY",
    "TEXT",
    "RowsRequest",
    "answer_rows",
    "content_kind",
    "example_rows",
    "media_type",
    "of_array",
    "of_columns",
    "of_image",
    "of_rows",
    "of_table",
    "of_text",
]

JSON, CSV, NPY, IMAGE, TEXT = "application/json", "text/csv", "application/x-npy", "image/*", "text/plain"

_UNTOLD = frozenset(("", "application/octet-stream", "application/x-www-form-urlencoded", "*/*"))
_IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_JSON_STARTS = (b"{", b"[", b'"')
# A person's value may come as an object of one of these names.
_PERSONS_NAMES = frozenset(("text", "image", "content", "b64"))


class RowsRequest(InferRequest):
    """A request for inference that remembers how it was asked; `form` is the dialect's own word for it."""

    form: Any = None


def media_type(field: bytes | None) -> str:
    """The media type of a header, without its parameters, in lower case; empty for none."""
    return (field or b"").partition(b";")[0].strip().lower().decode("latin-1")


def content_kind(body: bytes, headers: Headers, *, json_first: bool = True) -> str:
    """JSON, CSV, NPY, IMAGE or TEXT: what `body` is. Raises UnsupportedContent for any other type.

    `json_first`: what no type describes and no image is, is JSON, so that its faults are told; else it may be text.
    """
    told = media_type(headers.get(b"content-type"))
    if told in _UNTOLD:
        if _is_image(body):
            return IMAGE
        return JSON if json_first or body.lstrip()[:1] in _JSON_STARTS else TEXT
    if told.startswith("image/"):
        return IMAGE
    kind = {
        JSON: JSON,
        "text/json": JSON,
        CSV: CSV,
        "application/csv": CSV,
        NPY: NPY,
        TEXT: TEXT,
    }.get(told)
    if kind is None:
        raise UnsupportedContent(
            f"the content type '{told[:64]}' is not read; send application/json, text/csv, application/x-npy, "
            "text/plain or an image"
        )
    return kind


def of_rows(rows: Any, model: ServedModel, form: Any) -> RowsRequest | Asked:
    """A list of rows of plain JSON: texts and images of a model with a task, or its inputs. Raises InvalidRequest."""
    if model.task is not None and isinstance(rows, list) and rows:
        values = [_persons(row) for row in rows]
        if all(value is not None for value in values):
            return _asked(values, model, form)
    return _request(from_rows(rows, model.signature), model, form)


def of_columns(columns: dict[str, Any], model: ServedModel, form: Any) -> RowsRequest | Asked:
    """Every input by its name, `[rows, ...]`; or one column of a person's values, whatever its name."""
    if model.task is not None and len(columns) == 1 and not columns.keys() & model.signature.inputs.keys():
        (rows,) = columns.values()
        return of_rows(rows, model, form)
    return _request(from_columns(columns, model.signature), model, form)


def of_table(table: Table, model: ServedModel, form: Any) -> RowsRequest | Asked:
    """The rows of a table; a table of one column holds the texts or images of a model with a task."""
    if model.task is not None and check_table(table).width == 1 and table.names != tuple(model.signature.inputs):
        return of_rows([row[0] for row in table.rows], model, form)
    return _request(from_table(table, model.signature), model, form)


def of_array(body: bytes, model: ServedModel, form: Any) -> RowsRequest:
    """The bytes of a `.npy` file, for a model of one input."""
    signature = model.signature
    if len(signature.inputs) != 1:
        known = ", ".join(f"'{name}'" for name in signature.inputs)
        raise InvalidRequest(f"model '{signature.name}' takes {known}; an array is for a model of one input")
    (field,) = signature.inputs.values()
    return _request({field.name: read_npy(body, field, signature.name)}, model, form)


def of_image(body: bytes, model: ServedModel, form: Any) -> Asked:
    """The bytes of one image file."""
    _check_kind(model, "image")
    return Asked([body], form=form)


def of_text(body: bytes, model: ServedModel, form: Any) -> RowsRequest | Asked:
    """One text, also for a model whose only input is text itself. Raises InvalidRequest when it is no UTF-8."""
    _check_kind(model, "text")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("the text is no UTF-8") from error
    if model.task is None and all(field.dtype == object for field in model.signature.inputs.values()):
        return of_rows([text], model, form)
    return Asked([text], form=form)


def answer_rows(outputs: Tensors, signature: Signature) -> Any:
    """Every output by row, for `write_json`; by column where the outputs do not have one number of rows."""
    names = list(signature.outputs)
    lengths = {outputs[name].shape[:1] for name in names}
    return to_rows(outputs, names) if len(lengths) == 1 and () not in lengths else to_columns(outputs, names)


def _is_image(body: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG, GIF, WebP or BMP file."""
    webp = body[:4] == b"RIFF" and body[8:12] == b"WEBP"
    bitmap = body[:2] == b"BM" and body[6:10] == bytes(4)  # many a text begins with these letters, too
    return body.startswith(_IMAGE_STARTS) or webp or bitmap


def example_rows(model: ServedModel) -> list[Any]:
    """One row that `of_rows` reads, as JSON values. Raises InvalidRequest where none can be made up."""
    question = example_question(model)
    columns = question.get("inputs")
    if columns is None:
        return list(question.values())
    if not all(isinstance(values, list) for values in columns.values()):
        raise InvalidRequest(f"model '{model.signature.name}' takes values without rows")
    if len(columns) == 1:
        return list(*columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=False)]


def _request(inputs: Tensors, model: ServedModel, form: Any) -> RowsRequest:
    return RowsRequest(inputs=inputs, rows=model.signature.rows(inputs), form=form)


def _persons(row: Any) -> str | None:
    """The text of a person's value, `"..."` or `{"text": "..."}`; None for a row of another kind."""
    if isinstance(row, dict) and len(row) == 1 and row.keys() <= _PERSONS_NAMES:
        (row,) = row.values()
        if isinstance(row, dict) and row.keys() == {"b64"}:
            row = row["b64"]
    return row if isinstance(row, str) else None


def _asked(values: Sequence[Any], model: ServedModel, form: Any) -> Asked:
    """Texts as they are, images from their base64."""
    assert model.task is not None
    if model.task.kind == "text":
        return Asked(list(values), form=form)
    try:
        return Asked([base64.b64decode(value, validate=True) for value in values], form=form)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"model '{model.signature.name}' takes images, in JSON as base64") from error


def _check_kind(model: ServedModel, kind: str) -> None:
    if model.task is not None and model.task.kind != kind:
        raise InvalidRequest(f"model '{model.signature.name}' takes {model.task.kind}s, not {kind}s")
