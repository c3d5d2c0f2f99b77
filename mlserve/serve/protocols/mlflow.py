"""MLflow's scoring protocol: its forms of JSON, and `/version`. Its `/invocations` is shared, in `invocations.py`.

    {"dataframe_split": {"columns": [...], "data": [[...], ...]}}      as pandas' `to_dict(orient="split")`
    {"dataframe_records": [{...}, ...]}                               as `to_dict(orient="records")`
    {"instances": [...]}                                              rows, as TensorFlow Serving has them
    {"inputs": {...} | [...]}                                         columns by name, or rows

`params` may stand beside each; the models served here take none, so an object is let pass and nothing is made of it,
as MLflow itself does for a model without a parameter schema.
"""

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from mlserve import __version__
from mlserve.errors import InvalidRequest
from mlserve.serve.protocols.dialect import Dialect, Documentation, Page
from mlserve.serve.protocols.rows import RowsRequest, of_columns, of_rows, of_table
from mlserve.serve.service import ServedModel
from mlserve.serve.tasks.task import Asked
from mlserve.wire.tables import Table

__all__ = ["FORMS", "dialect", "error_body", "of_document", "split_table"]

FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""The names a request's rows may stand under; just one of them."""

_ERROR_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    413: "REQUEST_LIMIT_EXCEEDED",
    415: "BAD_REQUEST",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def dialect() -> Dialect:
    """Its own page; `/ping` and `/health` are other dialects' too."""
    documentation = Documentation(response={"type": "string"})
    return Dialect(
        "mlflow",
        (Page("/version", ("GET",), None, _version, "The server's version", documentation),),
        error_body,
    )


def error_body(status: int, message: str) -> bytes:
    """`{"error_code": ..., "message": ...}`, at most a kilobyte of it."""
    code = _ERROR_CODES.get(status, "INTERNAL_ERROR")
    return msgspec.json.encode({"error_code": code, "message": message[:900]})


def of_document(document: dict[str, Any], model: ServedModel, form: Any) -> RowsRequest | Asked:
    """The rows of a JSON object. Raises InvalidRequest when it is no request of MLflow's or does not fit the model."""
    present = [name for name in FORMS if name in document]
    if len(present) != 1:
        raise InvalidRequest(f"the request must hold just one of {', '.join(FORMS)}; it holds {len(present)}")
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        raise InvalidRequest("'params' is no object")
    unknown = next((name for name in document if name not in (*FORMS, "params")), None)
    if unknown is not None:
        raise InvalidRequest(f"'{unknown[:64]}' is not known beside '{present[0]}'")
    rows = document[present[0]]
    if present[0] == "dataframe_split":
        return of_table(split_table(rows), model, form)
    if present[0] == "dataframe_records":
        return of_table(_records_table(rows), model, form)
    if isinstance(rows, dict) and present[0] == "inputs":
        return of_columns(rows, model, form)
    return of_rows([rows] if isinstance(rows, str) else rows, model, form)


def split_table(frame: Any) -> Table:
    """A data frame as `{"columns": [...], "data": [[...], ...]}`; an `index` may stand beside them.

    Raises InvalidRequest for another form.
    """
    if not isinstance(frame, dict) or not frame.keys() <= {"columns", "data", "index"} or "data" not in frame:
        raise InvalidRequest("a data frame by 'split' is an object with 'columns' and 'data', and perhaps 'index'")
    columns, rows = frame.get("columns") or [], frame["data"]
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise InvalidRequest("'columns' and 'data' of a data frame are lists")
    if not all(isinstance(row, list) for row in rows):
        raise InvalidRequest("every row of a data frame's 'data' is a list")
    return Table(rows, tuple(map(str, columns)))


def _records_table(records: Any) -> Table:
    if not isinstance(records, list) or not records or not all(isinstance(row, dict) for row in records):
        raise InvalidRequest("a data frame by 'records' is a list of at least one object")
    names = tuple(records[0])
    for record in records:
        if record.keys() != records[0].keys():
            raise InvalidRequest("the records of a data frame do not all have the same names")
    return Table([[record[name] for name in names] for record in records], names)


async def _version(_: Request) -> Response:
    return PlainTextResponse(__version__)
