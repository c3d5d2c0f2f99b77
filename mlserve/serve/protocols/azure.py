"""Azure ML's online endpoints: `POST /score`, its body under `data` or `input_data`, its answer the rows alone.

    {"data": [...]}                                               rows, as scoring scripts take them
    {"input_data": {"columns": [...], "index": [...], "data": [[...], ...]}}   a data frame, as MLflow models take it
    {"input_data": [...] | {"x": [...]}}                          rows, or columns by name

`params` may stand beside `input_data`; nothing is made of it. Liveness is `/`, `/health` or `/ready`.
"""

from collections.abc import Sequence
from typing import Any

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Tensors
from mlserve.serve.protocols.dialect import Content, Dialect, Documentation, Headers, Inference, InferPage
from mlserve.serve.protocols.mlflow import split_table
from mlserve.serve.protocols.rows import answer_rows, of_columns, of_rows, of_table
from mlserve.serve.protocols.unnamed import find_only
from mlserve.serve.service import ServedModel
from mlserve.serve.tasks.task import Asked, TaskAnswer
from mlserve.wire.plain import parse_json, write_json
from mlserve.wire.signature import InferRequest

__all__ = ["DOCUMENTATION", "INFERENCE", "dialect"]


def dialect() -> Dialect:
    """Its one page."""
    summary = "Inference as Azure ML's endpoints ask for it, for the only served model"
    page = InferPage("/score", INFERENCE, summary, DOCUMENTATION, find_only, by_path=False)
    return Dialect("azure", (page,))


def _decode(body: bytes, model: ServedModel, _: Headers) -> InferRequest | Asked:
    document = parse_json(body)
    if not isinstance(document, dict) or ("data" in document) == ("input_data" in document):
        raise InvalidRequest('the request is no object with one of "data" and "input_data"')
    rows = document["data"] if "data" in document else document["input_data"]
    if isinstance(rows, dict):
        if "data" in rows and "data" not in model.signature.inputs:
            return of_table(split_table(rows), model, None)
        return of_columns(rows, model, None)
    return of_rows([rows] if isinstance(rows, str) else rows, model, None)


def _encode(model: ServedModel, _: InferRequest, outputs: Tensors) -> Content:
    return Content(write_json(answer_rows(outputs, model.signature)))


def _encode_answers(_: ServedModel, __: Asked, answers: Sequence[TaskAnswer]) -> Content:
    return Content(write_json(list(answers)))


INFERENCE = Inference("azure", _decode, _encode, _encode_answers)
"""How `/score` reads and writes."""

_FORMS: dict[str, Any] = {"type": ["array", "object", "string"]}
DOCUMENTATION = Documentation(
    request={
        "oneOf": [
            {"type": "object", "required": ["data"], "properties": {"data": _FORMS}},
            {"type": "object", "required": ["input_data"], "properties": {"input_data": _FORMS}},
        ]
    },
    response={},
    statuses=(400, 404, 413, 415, 503, 504),
)
