"""TensorFlow Serving over REST: predict, classify, regress, a model's status and its metadata.

    POST /v1/models/{name}[/versions/{version}|/labels/{label}]:predict
        {"instances": [...]} -> {"predictions": [...]}     by row
        {"inputs": ...}      -> {"outputs": ...}           by column
    POST ...:classify  {"examples": [{...}], "context": {...}} -> {"results": [[["spam", 0.95], ...], ...]}
    POST ...:regress   {"examples": [{...}]}                   -> {"results": [2.5, ...]}

A label is an alias. NaN, Infinity and -Infinity are words of its JSON, in both directions:
https://github.com/tensorflow/serving, tensorflow_serving/g3doc/api_rest.md
"""

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Tensors
from mlserve.serve.pages.example import example_tensors
from mlserve.serve.protocols.dialect import (
    Content,
    Dialect,
    Documentation,
    Headers,
    Inference,
    InferPage,
    Page,
    json_response,
)
from mlserve.serve.protocols.rows import RowsRequest
from mlserve.serve.protocols.tensorflow_signatures import (
    Method,
    check_signature,
    describe_signatures,
    find_model,
    labelled_scores,
    result_output,
    version_states,
)
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.tasks.task import Asked, TaskAnswer, TaskKind
from mlserve.wire.plain import from_b64, from_columns, from_rows, is_b64, parse_json, to_columns, to_rows, write_json
from mlserve.wire.signature import InferRequest, Signature
from mlserve.wire.tensorflow import from_examples, merge_context

__all__ = ["dialect"]

_BY_ROW, _BY_COLUMN = "predictions", "outputs"
# Texts whose name ends so are bytes to TensorFlow Serving, and written as base64.
_BYTES = "_bytes"

_NO_PREDICT_SIGNATURE = 'Serving signature name: "{name}" not found in signature def'
_NO_EXAMPLES_SIGNATURE = "No signature was found with the name: {name}"


def dialect(service: Service) -> Dialect:
    """Its pages."""
    pages = _Pages(service)
    model = "/v1/models/{name}"
    chosen = (model, f"{model}/versions/{{version}}", f"{model}/labels/{{label}}")
    asks = (
        ("predict", _PREDICT, "Predict from tensors by row or by column", _PREDICT_DOCUMENTATION),
        ("classify", _CLASSIFY, "Labels and scores of examples", _CLASSIFY_DOCUMENTATION),
        ("regress", _REGRESS, "One number for each example", _REGRESS_DOCUMENTATION),
    )
    return Dialect(
        "tensorflow",
        (
            *(
                InferPage(f"{path}:{verb}", inference, summary, documentation, _find)
                for verb, inference, summary, documentation in asks
                for path in chosen
            ),
            *(
                Page(f"{path}/metadata", ("GET",), "metadata", pages.metadata, "A model's signatures", _METADATA)
                for path in chosen
            ),
            *(
                Page(path, ("GET",), "metadata", pages.status, "The state of a model's versions", _STATUS)
                for path in chosen
            ),
        ),
    )


def _find(service: Service, request: Request) -> ServedModel:
    path = request.path_params
    return find_model(service, path["name"], path.get("version", ""), path.get("label", ""))


class _Pages:
    """One method a page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def status(self, request: Request) -> Response:
        path = request.path_params
        version = path.get("version", "")
        if "label" in path:
            version = _find(self._service, request).signature.version
        states = version_states(self._service, path["name"], version)
        return json_response(
            {
                "model_version_status": [
                    {
                        "version": each.version,
                        "state": each.state,
                        "status": {"error_code": each.error_code, "error_message": each.error_message},
                    }
                    for each in states
                ]
            }
        )

    async def metadata(self, request: Request) -> Response:
        from google.protobuf.json_format import MessageToDict

        model = _find(self._service, request)
        signatures = MessageToDict(
            describe_signatures(model), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        name, version = model.signature.name, model.signature.version
        spec = {"name": name, "signature_name": "", "version": version}
        return json_response({"model_spec": spec, "metadata": {"signature_def": signatures}})


def _decode_predict(body: bytes, model: ServedModel, _: Headers) -> InferRequest | Asked:
    document = _document(body, model, "predict", _NO_PREDICT_SIGNATURE)
    if "instances" in document and "inputs" in document:
        raise InvalidRequest("send 'instances' (by row) or 'inputs' (by column), not both")
    if "instances" in document:
        return _by_row(document["instances"], model)
    if "inputs" in document:
        return _by_column(document["inputs"], model)
    raise InvalidRequest("the request has neither 'instances' (by row) nor 'inputs' (by column)")


def _by_row(instances: Any, model: ServedModel) -> InferRequest | Asked:
    if not isinstance(instances, list):
        raise InvalidRequest("'instances' must be a list with one value a row")
    if not instances:
        raise InvalidRequest("'instances' is empty; send at least one row")
    values = _persons_values([_only_value(row, model) for row in instances], model)
    if values is not None:
        return Asked(values, form=_BY_ROW)
    return _request(from_rows(instances, model.signature), model, _BY_ROW)


def _by_column(columns: Any, model: ServedModel) -> InferRequest | Asked:
    values = _persons_values(_only_value(columns, model), model)
    if values is not None:
        return Asked(values, form=_BY_COLUMN)
    signature = model.signature
    if not isinstance(columns, dict) or is_b64(columns):
        if len(signature.inputs) != 1:
            raise InvalidRequest(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required: "
                f"{', '.join(signature.inputs)}"
            )
        columns = {next(iter(signature.inputs)): columns}
    return _request(from_columns(columns, signature), model, _BY_COLUMN)


def _request(inputs: Tensors, model: ServedModel, form: str) -> RowsRequest:
    return RowsRequest(inputs, model.signature.rows(inputs), form=form)


def _encode_predict(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    assert isinstance(request, RowsRequest)
    fields = model.signature.outputs
    names = list(fields)
    for name in names:
        if name.endswith(_BYTES) and fields[name].dtype == object:
            outputs = {**outputs, name: _in_base64(outputs[name])}
    if request.form == _BY_ROW:
        return _content({_BY_ROW: to_rows(outputs, names)})
    columns = to_columns(outputs, names)
    return _content({_BY_COLUMN: columns if len(names) > 1 else columns[names[0]]})


def _encode_predict_answers(_: ServedModel, asked: Asked, answers: Sequence[TaskAnswer]) -> Content:
    single = all(len(answer) == 1 for answer in answers)
    if asked.form == _BY_ROW:
        return _content({_BY_ROW: [_only(answer) for answer in answers] if single else list(answers)})
    if single:
        return _content({_BY_COLUMN: [_only(answer) for answer in answers]})
    return _content({_BY_COLUMN: {name: [answer.get(name) for answer in answers] for name in answers[0]}})


def _decode_classify(body: bytes, model: ServedModel, _: Headers) -> InferRequest | Asked:
    examples = _examples(_document(body, model, "classify", _NO_EXAMPLES_SIGNATURE), "classify")
    values = _persons_values([_only_value(example, model) for example in examples], model)
    if values is not None:
        return Asked(values)
    return _from_examples(examples, model.signature, "classify")


def _encode_classify(model: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    return _content({"results": labelled_scores(model, outputs[request.outputs[0]])})


def _encode_classify_answers(model: ServedModel, _: Asked, answers: Sequence[TaskAnswer]) -> Content:
    return _content({"results": [_labelled(answer, model) for answer in answers]})


def _labelled(answer: TaskAnswer, model: ServedModel) -> list[list[Any]]:
    """The labels that a task gives, best first, each with its score. Raises InvalidRequest where it gives none."""
    found = answer.get("labels", [answer])
    if not all("label" in each for each in found):
        raise InvalidRequest(f"model '{model.signature.name}' is no classifier; use :predict")
    return [[each["label"] or "", each["score"]] for each in found]


def _decode_regress(body: bytes, model: ServedModel, _: Headers) -> InferRequest | Asked:
    examples = _examples(_document(body, model, "regress", _NO_EXAMPLES_SIGNATURE), "regress")
    values = _persons_values([_only_value(example, model) for example in examples], model)
    if values is not None:
        return Asked(values)
    return _from_examples(examples, model.signature, "regress")


def _encode_regress(_: ServedModel, request: InferRequest, outputs: Tensors) -> Content:
    name = request.outputs[0]
    return _content({"results": to_columns({name: outputs[name].ravel()}, [name])[name]})


def _encode_regress_answers(model: ServedModel, _: Asked, answers: Sequence[TaskAnswer]) -> Content:
    if not all("value" in answer for answer in answers):
        raise InvalidRequest(f"model '{model.signature.name}' gives no numbers; use :predict")
    return _content({"results": [answer["value"] for answer in answers]})


def _document(body: bytes, model: ServedModel, method: Method, no_signature: str) -> dict[str, Any]:
    """The JSON object that `body` is, its signature one of the model's. Raises InvalidRequest."""
    document = parse_json(body, non_finite=True)
    if not isinstance(document, dict):
        raise InvalidRequest("the request is no JSON object")
    name = document.get("signature_name") or ""
    if not isinstance(name, str):
        raise InvalidRequest("'signature_name' must be text")
    check_signature(model, name, method, no_signature)
    return document


def _examples(document: dict[str, Any], method: Method) -> list[dict[str, Any]]:
    """The examples, each with the common context. Raises InvalidRequest."""
    examples, context = document.get("examples"), document.get("context", {})
    if examples is None:
        raise InvalidRequest(f"a request to {method} needs 'examples'")
    if not isinstance(examples, list):
        raise InvalidRequest("'examples' must be a list of objects")
    if not examples:
        raise InvalidRequest("'examples' is empty; send at least one")
    if not all(isinstance(each, dict) for each in (*examples, context)):
        raise InvalidRequest("an example must be an object of features by name")
    return merge_context(examples, context)


def _from_examples(examples: Sequence[dict[str, Any]], signature: Signature, method: Method) -> InferRequest:
    wanted = result_output(signature, method)
    inputs = from_examples(examples, signature)
    return InferRequest(inputs, signature.rows(inputs), outputs=(wanted,))


def _only_value(value: Any, model: ServedModel) -> Any:
    """What a person has, out of an object whose one key is the task's word for it (`text`, `image`, `image_bytes`)."""
    if model.task is not None and isinstance(value, dict) and len(value) == 1 and not is_b64(value):
        kind = model.task.kind
        for name in (kind, f"{kind}{_BYTES}"):
            if name in value and name not in model.signature.inputs:
                return value[name]
    return value


def _persons_values(values: Any, model: ServedModel) -> list[str] | list[bytes] | None:
    """`values` if they are what the model's task reads: texts, or images in base64; None if they are tensors."""
    if model.task is None or not isinstance(values, list) or not values:
        return None
    kind: TaskKind = model.task.kind
    if not all(is_b64(value) or (kind == "text" and isinstance(value, str)) for value in values):
        return None
    if kind == "image":
        return [from_b64(value) for value in values]
    try:
        return [value if isinstance(value, str) else from_b64(value).decode() for value in values]
    except UnicodeDecodeError as error:
        raise InvalidRequest("a 'b64' value is not base64 of UTF-8 text") from error


def _in_base64(array: Any) -> Any:
    flat = [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
    made = np.empty(len(flat), object)
    made[:] = [{"b64": base64.b64encode(value).decode()} for value in flat]
    return made.reshape(array.shape)


def _only(answer: TaskAnswer) -> Any:
    (value,) = answer.values()
    return value


def _content(value: Any) -> Content:
    return Content(write_json(value, non_finite=True))


_PREDICT = Inference("tensorflow-rest", _decode_predict, _encode_predict, _encode_predict_answers)
_CLASSIFY = Inference("tensorflow-rest", _decode_classify, _encode_classify, _encode_classify_answers)
_REGRESS = Inference("tensorflow-rest", _decode_regress, _encode_regress, _encode_regress_answers)


def _instances(model: ServedModel) -> dict[str, Any]:
    """A `predict` request for the model: its task's own example, or one row of tensors."""
    if model.task is None:
        tensors = example_tensors(model)
        return {"instances": msgspec.json.decode(write_json(to_rows(tensors, list(tensors))))}
    example = model.task.example
    return {"instances": [example if isinstance(example, str) else {"b64": base64.b64encode(example).decode()}]}


_SIGNATURE_NAME = {"signature_name": {"type": "string", "description": "Left out for the default one."}}
_EXAMPLES = {
    "type": "object",
    "required": ["examples"],
    "properties": {
        **_SIGNATURE_NAME,
        "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        "context": {"type": "object", "description": "Features that all examples have in common."},
    },
}
_STATUSES = (400, 404)

_PREDICT_DOCUMENTATION = Documentation(
    request={
        "type": "object",
        "properties": {
            **_SIGNATURE_NAME,
            "instances": {"type": "array", "minItems": 1, "description": "By row: values, or objects by input name."},
            "inputs": {"description": "By column: every input by name, or the values of the only one."},
        },
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    response={"type": "object", "properties": {_BY_ROW: {"type": "array"}, _BY_COLUMN: {}}},
    example=_instances,
    statuses=_STATUSES,
)
_CLASSIFY_DOCUMENTATION = Documentation(
    request=_EXAMPLES,
    response={
        "type": "object",
        "required": ["results"],
        "properties": {"results": {"type": "array", "description": "For each example, [label, score] of each class."}},
    },
    statuses=_STATUSES,
)
_REGRESS_DOCUMENTATION = Documentation(
    request=_EXAMPLES,
    response={"type": "object", "required": ["results"], "properties": {"results": {"type": "array"}}},
    statuses=_STATUSES,
)
_STATUS = Documentation(
    response={
        "type": "object",
        "required": ["model_version_status"],
        "properties": {"model_version_status": {"type": "array", "items": {"type": "object"}}},
    },
    statuses=_STATUSES,
)
_METADATA = Documentation(response={"type": "object", "required": ["model_spec", "metadata"]}, statuses=_STATUSES)
