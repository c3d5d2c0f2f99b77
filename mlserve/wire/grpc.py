"""V2 over gRPC: protobuf messages with tensors as raw bytes or as typed lists (`contents`)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.wire.messages import ModelInferRequest, ModelInferResponse
from mlserve.wire.parameters import check_tensor_parameters, read_classes, read_parameters
from mlserve.wire.raw import from_raw, to_raw
from mlserve.wire.signature import Field, InferRequest, Signature, answered_field

__all__ = ["ask_timing", "decode_request", "decode_response", "encode_request", "encode_response", "parse_request"]

_CONTENTS_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parse_request(payload: bytes) -> Any:
    """The ModelInferRequest that `payload` holds. Raises InvalidRequest when it is none."""
    try:
        return ModelInferRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidRequest("the message is no ModelInferRequest") from error


def decode_request(message: Any, signature: Signature) -> InferRequest:
    """Checks a parsed ModelInferRequest against a model. Raises InvalidRequest for what either does not allow."""
    tensors, raw = message.inputs, message.raw_input_contents
    if raw and len(raw) != len(tensors):
        raise _unequal(tensors, raw)
    inputs: Tensors = {}
    for position, tensor in enumerate(tensors):
        name, shape = tensor.name, list(tensor.shape)
        field = signature.field(name, tensor.datatype, shape)
        if name in inputs:
            raise InvalidRequest(f"input '{name}' already exists in request for model '{signature.name}'")
        if raw:
            if tensor.HasField("contents"):
                raise _both_contents(name)
            inputs[name] = from_raw(raw[position], field, shape, signature.name)
        else:
            if not tensor.HasField("contents"):
                check_tensor_parameters(name, tensor.parameters)
            inputs[name] = _from_contents(tensor.contents, field, shape)
    request = InferRequest(inputs, signature.rows(inputs), message.id)
    if message.parameters:
        read_parameters(_values(message.parameters), request)
    if message.outputs:
        _read_outputs(message.outputs, signature, request)
    return request


def _read_outputs(outputs: Any, signature: Signature, request: InferRequest) -> None:
    asked = list(outputs)  # protobuf makes an object of each every time it is looked at
    request.outputs = signature.wanted([output.name for output in asked])
    for output in asked:
        if output.parameters:
            _read_wishes(output, signature.outputs[output.name], request)


def _read_wishes(output: Any, field: Field, request: InferRequest) -> None:
    parameters = _values(output.parameters)
    check_tensor_parameters(field.name, parameters)
    if best := read_classes(field, parameters):
        request.classes = {**(request.classes or {}), field.name: best}


def _values(parameters: Any) -> dict[str, Any]:
    """A map of InferParameter as plain values; one without a value is None."""
    chosen = {name: (value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}
    return {name: getattr(value, field) if field else None for name, (value, field) in chosen.items()}


def _unequal(tensors: Any, raw: Any) -> InvalidRequest:
    """What is wrong with a request whose raw tensors are not as many as its inputs."""
    for tensor in tensors:
        check_tensor_parameters(tensor.name, tensor.parameters)
        if tensor.HasField("contents"):
            return _both_contents(tensor.name)
    return InvalidRequest(f"the request has {len(tensors)} inputs but {len(raw)} raw_input_contents")


def _both_contents(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"input '{name[:64]}' has both contents and raw_input_contents; send one"
        ": contents field must not be specified when using raw_input_contents"
    )


def encode_response(signature: Signature, request: InferRequest, outputs: Tensors) -> bytes:
    """The ModelInferResponse for `outputs` (arrays [rows, ...]), tensors as raw bytes."""
    names = request.outputs or signature.outputs
    payload: bytes = ModelInferResponse(
        model_name=signature.name,
        model_version=signature.version,
        id=request.id,
        outputs=[
            {"name": name, "datatype": signature.outputs[name].datatype, "shape": outputs[name].shape} for name in names
        ],
        raw_output_contents=[to_raw(outputs[name]) for name in names],
    ).SerializeToString()
    return payload


def encode_request(model: str, version: str, inputs: Tensors, specs: Sequence[TensorSpec]) -> bytes:
    """A ModelInferRequest for `inputs`, tensors as raw bytes."""
    payload: bytes = ModelInferRequest(
        model_name=model,
        model_version=version,
        inputs=[{"name": spec.name, "datatype": spec.datatype, "shape": inputs[spec.name].shape} for spec in specs],
        raw_input_contents=[to_raw(inputs[spec.name]) for spec in specs],
    ).SerializeToString()
    return payload


def ask_timing(payload: bytes) -> bytes:
    """The ModelInferRequest `payload` with the parameter by which a client asks where its request's time went."""
    message = parse_request(payload)
    message.parameters["timing"].bool_param = True
    asking: bytes = message.SerializeToString()
    return asking


def decode_response(payload: bytes, specs: Mapping[str, TensorSpec]) -> Tensors:
    """The output tensors of a ModelInferResponse. Raises InvalidRequest when it is none."""
    try:
        message = ModelInferResponse.FromString(payload)
    except DecodeError as error:
        raise InvalidRequest("the message is no ModelInferResponse") from error
    raw = message.raw_output_contents
    if raw and len(raw) != len(message.outputs):
        raise InvalidRequest(f"the response has {len(message.outputs)} outputs but {len(raw)} raw_output_contents")
    outputs: Tensors = {}
    for position, tensor in enumerate(message.outputs):
        shape = list(tensor.shape)
        field = answered_field(specs, tensor.name, tensor.datatype, shape)
        if raw:
            outputs[tensor.name] = from_raw(raw[position], field, shape, "")
        else:
            outputs[tensor.name] = _from_contents(tensor.contents, field, shape)
    return outputs


def _from_contents(contents: Any, field: Field, shape: list[int]) -> Array:
    name = _CONTENTS_FIELD.get(field.datatype)
    if name is None:
        raise InvalidRequest(f"input '{field.name}': {field.datatype} has no typed contents; send raw_input_contents")
    values = getattr(contents, name)
    count = math.prod(shape)
    if len(values) != count:
        raise InvalidRequest(f"input '{field.name}' has shape {shape} but {len(values)} elements in {name}")
    others = [each.name for each, _ in contents.ListFields() if each.name != name]
    if others:
        raise InvalidRequest(f"input '{field.name}' is {field.datatype}, whose elements go in {name}, not {others[0]}")
    if field.dtype == object:
        return np.array([_text(value, field) for value in values], object).reshape(shape)
    narrow = field.dtype.kind in "iu" and field.dtype.itemsize < 4  # these travel in 32 bits
    # With its type left to numpy, an array of large and small UINT64 would become one of floats.
    array = np.array(values, np.int64 if narrow else field.dtype)
    if narrow:
        bounds = np.iinfo(field.dtype)
        if not (bounds.min <= array.min(initial=0) and array.max(initial=0) <= bounds.max):
            raise InvalidRequest(f"input '{field.name}' has values that do not fit {field.datatype}")
    return array.astype(field.dtype).reshape(shape)


def _text(value: bytes, field: Field) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input '{field.name}' holds a string element that is no UTF-8") from error
