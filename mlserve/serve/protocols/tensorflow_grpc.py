"""TensorFlow Serving over gRPC: PredictionService, and ModelService's GetModelStatus."""

from functools import partial
from typing import Any

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Tensors
from mlserve.serve.protocols.dialect import Call, InferCall
from mlserve.serve.protocols.tensorflow_signatures import (
    DEFAULT_SIGNATURE,
    Method,
    check_signature,
    describe_signatures,
    find_model,
    labelled_scores,
    result_output,
    version_states,
)
from mlserve.serve.service import ServedModel, Service
from mlserve.wire.messages import parse_message
from mlserve.wire.signature import InferRequest
from mlserve.wire.tensorflow import decode_predict, examples_of, from_examples, to_tensor
from mlserve.wire.tensorflow_messages import (
    MODEL_SERVICE,
    PREDICTION_SERVICE,
    ClassificationRequest,
    ClassificationResponse,
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    PredictRequest,
    PredictResponse,
    RegressionRequest,
    RegressionResponse,
)

__all__ = ["CALLS"]

_PROTOCOL = "tensorflow-grpc"
_SIGNATURES = "signature_def"
_ANY_OF = "type.googleapis.com/"

_NO_PREDICT_SIGNATURE = 'Serving signature key "{name}" not found.'
_NO_EXAMPLES_SIGNATURE = "No signature was found with the name: {name}"


def _find(service: Service, message: Any) -> ServedModel:
    if not message.HasField("model_spec"):
        raise InvalidRequest("the request names no model: set model_spec.name")
    spec = message.model_spec
    return find_model(service, spec.name, _version(spec), spec.version_label)


def _decode_predict(message: Any, model: ServedModel) -> InferRequest:
    check_signature(model, message.model_spec.signature_name, "predict", _NO_PREDICT_SIGNATURE)
    return decode_predict(message, model.signature)


def _encode_predict(model: ServedModel, request: InferRequest, outputs: Tensors) -> bytes:
    fields = model.signature.outputs
    response = PredictResponse(model_spec=_spec(model, DEFAULT_SIGNATURE))
    for name in request.outputs or fields:
        response.outputs[name].CopyFrom(to_tensor(outputs[name], fields[name].datatype))
    payload: bytes = response.SerializeToString()
    return payload


def _decode_examples(message: Any, model: ServedModel, method: Method) -> InferRequest:
    check_signature(model, message.model_spec.signature_name, method, _NO_EXAMPLES_SIGNATURE)
    wanted = result_output(model.signature, method)
    inputs = from_examples(examples_of(message.input), model.signature)
    return InferRequest(inputs, model.signature.rows(inputs), outputs=(wanted,))


def _encode_classify(model: ServedModel, request: InferRequest, outputs: Tensors) -> bytes:
    rows = labelled_scores(model, outputs[request.outputs[0]])
    found = [{"classes": [{"label": label, "score": float(score)} for label, score in row]} for row in rows]
    payload: bytes = ClassificationResponse(
        model_spec=_spec(model, DEFAULT_SIGNATURE), result={"classifications": found}
    ).SerializeToString()
    return payload


def _encode_regress(model: ServedModel, request: InferRequest, outputs: Tensors) -> bytes:
    values = outputs[request.outputs[0]].ravel().tolist()
    payload: bytes = RegressionResponse(
        model_spec=_spec(model, DEFAULT_SIGNATURE), result={"regressions": [{"value": value} for value in values]}
    ).SerializeToString()
    return payload


def _metadata(service: Service, payload: bytes) -> Any:
    request = parse_message(GetModelMetadataRequest, payload)
    model = _find(service, request)
    if not request.metadata_field:
        raise InvalidRequest("metadata_field is empty; ask for 'signature_def'")
    for field in request.metadata_field:
        if field != _SIGNATURES:
            raise InvalidRequest(f"there is no metadata field '{field[:64]}'; ask for 'signature_def'")
    response = GetModelMetadataResponse(model_spec=_spec(model, ""))
    signatures = describe_signatures(model)
    packed = response.metadata[_SIGNATURES]
    packed.type_url = f"{_ANY_OF}{signatures.DESCRIPTOR.full_name}"
    packed.value = signatures.SerializeToString(deterministic=True)
    return response


def _status(service: Service, payload: bytes) -> Any:
    request = parse_message(GetModelStatusRequest, payload)
    if not request.HasField("model_spec"):
        raise InvalidRequest("the request names no model: set model_spec.name")
    spec = request.model_spec
    version = _find(service, request).signature.version if spec.version_label else _version(spec)
    return GetModelStatusResponse(
        model_version_status=[
            {
                "version": int(each.version),
                "state": each.state,
                "status": {"error_code": each.error_code, "error_message": each.error_message},
            }
            for each in version_states(service, spec.name, version)
        ]
    )


def _version(spec: Any) -> str:
    return str(spec.version.value) if spec.HasField("version") else ""


def _spec(model: ServedModel, signature_name: str) -> dict[str, Any]:
    signature = model.signature
    return {
        "name": signature.name,
        "version": {"value": int(signature.version)},
        "signature_name": signature_name,
    }


CALLS = (
    InferCall(
        f"/{PREDICTION_SERVICE}/Predict",
        _PROTOCOL,
        partial(parse_message, PredictRequest),
        _find,
        _decode_predict,
        _encode_predict,
    ),
    InferCall(
        f"/{PREDICTION_SERVICE}/Classify",
        _PROTOCOL,
        partial(parse_message, ClassificationRequest),
        _find,
        partial(_decode_examples, method="classify"),
        _encode_classify,
    ),
    InferCall(
        f"/{PREDICTION_SERVICE}/Regress",
        _PROTOCOL,
        partial(parse_message, RegressionRequest),
        _find,
        partial(_decode_examples, method="regress"),
        _encode_regress,
    ),
    Call(f"/{PREDICTION_SERVICE}/GetModelMetadata", "metadata", _metadata),
    Call(f"/{MODEL_SERVICE}/GetModelStatus", "metadata", _status),
)
