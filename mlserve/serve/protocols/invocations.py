"""`POST /invocations`: both SageMaker and MLflow ask a container so, and what the body holds tells whose it is.

| body | whose | answered with |
|---|---|---|
| object with `dataframe_split`, `dataframe_records`, `instances` or `inputs` | MLflow | `{"predictions": [...]}` |
| CSV whose first line holds no number: it names the columns | MLflow | `{"predictions": [...]}` |
| object whose `inputs` are tensors with `datatype` and `shape` | V2, as Triton on SageMaker | V2 |
| `application/vnd.sagemaker-triton.binary+json;json-header-size=N` | V2 with raw tensors | V2, in the same type |
| list of rows, CSV of numbers, `.npy`, an image, a text | SageMaker's framework containers | the rows alone |

`Accept: text/csv` and `application/x-npy` are followed for all but V2. Which model is meant: the one that the header
X-Amzn-SageMaker-Target-Model names, else the only one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Tensors
from mlserve.serve.protocols import mlflow, rows
from mlserve.serve.protocols.dialect import (
    JSON_FIELDS,
    Content,
    Dialect,
    Documentation,
    Headers,
    Inference,
    InferPage,
)
from mlserve.serve.protocols.rows import RowsRequest
from mlserve.serve.protocols.unnamed import find_target
from mlserve.serve.service import ServedModel
from mlserve.serve.tasks.task import Asked, TaskAnswer
from mlserve.wire import rest
from mlserve.wire.npy import write_npy
from mlserve.wire.plain import parse_json, write_json
from mlserve.wire.signature import InferRequest
from mlserve.wire.tables import read_csv, write_csv

__all__ = ["DOCUMENTATION", "INFERENCE", "Form", "dialect"]

_TRITON = "application/vnd.sagemaker-triton.binary+json"
_HEADER_SIZE = re.compile(rb";\s*json-header-size=([0-9]{1,18})\s*(;|$)", re.IGNORECASE)
_FIELDS = {
    rows.JSON: JSON_FIELDS,
    rows.CSV: b"content-type: text/csv\r\n",
    rows.NPY: b"content-type: application/x-npy\r\n",
}

_READ_BY_KIND: dict[str, Callable[[bytes, ServedModel, Any], InferRequest | Asked]] = {
    rows.NPY: rows.of_array,
    rows.IMAGE: rows.of_image,
    rows.TEXT: rows.of_text,
}


class Form(msgspec.Struct, frozen=True):
    """How an answer shall look: its media type, and in JSON whether its rows stand under `predictions`."""

    accept: str
    whose: Literal["mlflow", "sagemaker"]


def dialect() -> Dialect:
    """Its one page."""
    summary = "Inference as SageMaker and MLflow ask for it: rows, data frames, CSV, .npy, V2"
    page = InferPage("/invocations", INFERENCE, summary, DOCUMENTATION, find_target, by_path=False)
    return Dialect("invocations", (page,), mlflow.error_body)


def _decode(body: bytes, model: ServedModel, headers: Headers) -> InferRequest | Asked:
    content_type = headers.get(b"content-type", b"")
    if rows.media_type(content_type) == _TRITON:
        size = _HEADER_SIZE.search(content_type)
        if size is None:
            raise InvalidRequest(f"the content type '{_TRITON}' lacks json-header-size=N, the JSON's bytes")
        return rest.decode_request(body, model.signature, int(size[1]))
    accept = _accepted(headers.get(b"accept"), model)
    kind = rows.content_kind(body, headers)
    if kind == rows.JSON:
        return _of_json(body, model, accept)
    if kind == rows.CSV:
        table = read_csv(body)
        return rows.of_table(table, model, Form(accept, "mlflow" if table.names else "sagemaker"))
    return _READ_BY_KIND[kind](body, model, Form(accept, "sagemaker"))


def _of_json(body: bytes, model: ServedModel, accept: str) -> InferRequest | Asked:
    document = parse_json(body)
    if _is_v2(document):
        return rest.decode_request(body, model.signature)
    if isinstance(document, dict):
        return mlflow.of_document(document, model, Form(accept, "mlflow"))
    return rows.of_rows([document] if isinstance(document, str) else document, model, Form(accept, "sagemaker"))


def _is_v2(document: Any) -> bool:
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(inputs, list) or not inputs:
        return False
    return all(isinstance(tensor, dict) and tensor.keys() >= {"name", "datatype", "shape"} for tensor in inputs)


def _accepted(field: bytes | None, model: ServedModel) -> str:
    """JSON, CSV or NPY: the first of them that the header Accept names; JSON where it names none.

    Raises InvalidRequest for NPY from a model that does not give one array of numbers: before it runs, not after.
    """
    named = (rows.media_type(part) for part in (field or b"").split(b","))
    wanted = next((kind for kind in named if kind in _FIELDS), rows.JSON)
    if wanted == rows.NPY:
        outputs = list(model.signature.outputs.values())
        if len(outputs) != 1 or outputs[0].dtype == object:
            known = ", ".join(f"'{field.name}'" for field in outputs)
            raise InvalidRequest(f"the answer of model '{model.signature.name}' ({known}) is no one array of numbers")
    return wanted


def _encode(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    if not isinstance(request, RowsRequest):
        return _encode_v2(model, request, outputs)
    form: Form = request.form
    names = list(model.signature.outputs)
    if form.accept == rows.NPY:
        return Content(write_npy(outputs[names[0]]), _FIELDS[rows.NPY])
    answers = rows.answer_rows(outputs, model.signature)
    if form.accept == rows.CSV and isinstance(answers, list):
        return Content(write_csv(outputs, names), _FIELDS[rows.CSV])
    return _json(answers, form)


def _encode_v2(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    body, json_bytes = rest.encode_response(model.signature, request, outputs)
    if json_bytes is None:
        return Content(body)
    return Content(body, f"content-type: {_TRITON};json-header-size={json_bytes}\r\n".encode())


def _encode_answers(_: ServedModel, asked: Asked, answers: Sequence[TaskAnswer]) -> Content:
    return _json(list(answers), asked.form)


def _json(answers: Any, form: Form) -> Content:
    return Content(write_json({"predictions": answers} if form.whose == "mlflow" else answers))


INFERENCE = Inference("invocations", _decode, _encode, _encode_answers, all_headers=True, error=mlflow.error_body)
"""How `/invocations` reads and writes."""

_ROWS: dict[str, Any] = {"type": "array", "minItems": 1, "items": {}}
_FRAME: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"columns": {"type": "array", "items": {"type": "string"}}, "data": _ROWS},
}
_FORMS: dict[str, Any] = {
    "dataframe_split": _FRAME,
    "dataframe_records": _ROWS,
    "instances": _ROWS,
    "inputs": {"type": ["object", "array"]},
}

DOCUMENTATION = Documentation(
    request={
        "anyOf": [
            *({"type": "object", "required": [name], "properties": {name: form}} for name, form in _FORMS.items()),
            _ROWS,
        ]
    },
    response={"anyOf": [{"type": "object", "required": ["predictions"]}, {"type": "array"}]},
    media=(rows.JSON, rows.CSV, rows.NPY, _TRITON),
    statuses=(400, 404, 413, 415, 503, 504),
)
