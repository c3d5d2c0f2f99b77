"""V2 over REST: JSON tensors, and tensors as raw bytes behind the JSON (the binary tensor data extension).

Schema and element types are checked by msgspec while it parses, in C: a boolean is no number, 1.5 is no integer, 300 is
no UINT8. The tensor's own JSON is cut out unparsed first, because only the model knows what its elements must be.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.wire.parameters import check_tensor_parameters, read_classes, read_flag, read_parameters
from mlserve.wire.raw import from_raw, from_whole_body, to_raw
from mlserve.wire.signature import Field, InferRequest, Signature, answered_field

__all__ = ["decode_request", "decode_response", "encode_request", "encode_response", "tensor_from_json"]

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY
_ORJSON_DTYPES = frozenset(map(np.dtype, ["?", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]))


class _Input(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct, gc=False):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] | None = None


class _ResponseTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] = []
    parameters: dict[str, Any] = {}


class _Response(msgspec.Struct):
    outputs: list[_ResponseTensor]


_request_decoder = msgspec.json.Decoder(_Request)


def decode_request(body: bytes, signature: Signature, json_bytes: int | None = None) -> InferRequest:
    """Parses and checks one request body against a model.

    `json_bytes` is the header Inference-Header-Content-Length: where the JSON ends and raw tensors begin; None means
    the body is all JSON, 0 that it is the bytes of the model's only input. Raises InvalidRequest for anything the
    protocol or the model does not allow.
    """
    if json_bytes == 0:
        return _from_whole_body(body, signature)
    head, tail = (body, b"") if json_bytes is None else _split(body, json_bytes)
    try:
        document = _request_decoder.decode(head)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the request is no V2 inference request: {error}") from error
    except RecursionError as error:
        too_deep = "JSON nesting depth exceeds maximum allowed limit"
        raise InvalidRequest(f"the request body is not JSON: {too_deep}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the request body is not JSON: {error}") from error
    inputs: Tensors = {}
    raw_from = 0
    for tensor in document.inputs:
        name, shape = tensor.name, tensor.shape
        field = signature.field(name, tensor.datatype, shape)
        if name in inputs:
            raise InvalidRequest(f"input '{name}' already exists in request for model '{signature.name}'")
        size = _raw_bytes(tensor) if tensor.parameters else None
        if size is None:
            inputs[name] = tensor_from_json(bytes(tensor.data), field, shape)
        else:
            raw_to = _end_of_raw(size, raw_from, tail, name)
            inputs[name] = from_raw(tail[raw_from:raw_to], field, shape, signature.name)
            raw_from = raw_to
    if raw_from != len(tail):
        raise InvalidRequest(f"the body holds {len(tail) - raw_from} bytes that belong to no input")
    request = InferRequest(inputs, signature.rows(inputs), document.id)
    if document.outputs or document.parameters:
        _read_wishes(document, signature, request)
    return request


def encode_response(signature: Signature, request: InferRequest, outputs: Tensors) -> tuple[bytes, int | None]:
    """The response body, and how many bytes of it are JSON (None when all are). `outputs` are arrays [rows, ...].

    NaN and infinity, which JSON cannot say, become null; the binary form carries them.
    """
    parts = [signature.json_head]
    tail: list[bytes] = []
    if request.id:
        parts += (b',"id":', orjson.dumps(request.id))
    opening = b',"outputs":['
    for name in request.outputs or signature.outputs:
        array = outputs[name]
        parts += (opening, signature.outputs[name].json_head, orjson.dumps(array.shape))
        opening = b","
        if request.binary and name in request.binary:
            tail.append(to_raw(array))
            parts.append(b',"parameters":{"binary_data_size":%d}}' % len(tail[-1]))
        else:
            parts += (b',"data":', orjson.dumps(_to_json(array), option=_OPTIONS), b"}")
    parts.append(b"]}")
    head = b"".join(parts)
    return (head + b"".join(tail), len(head)) if tail else (head, None)


def encode_request(
    inputs: Tensors, specs: Sequence[TensorSpec], *, binary: bool = False
) -> tuple[bytes, dict[str, str]]:
    """A request body for `inputs`, and the headers that belong to it."""
    tensors: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for spec in specs:
        array = inputs[spec.name]
        tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
        if binary:
            tail.append(to_raw(array))
            tensor["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            tensor["data"] = _to_json(array)
        tensors.append(tensor)
    document: dict[str, Any] = {"inputs": tensors}
    if binary:
        document["parameters"] = {"binary_data_output": True}
    head = orjson.dumps(document, option=_OPTIONS)
    if not binary:
        return head, {"content-type": "application/json"}
    return head + b"".join(tail), {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }


def decode_response(body: bytes, specs: Mapping[str, TensorSpec], json_bytes: int | None = None) -> Tensors:
    """The output tensors of a response body. Raises InvalidRequest when it is none."""
    head, tail = (body, b"") if json_bytes is None else _split(body, json_bytes)
    try:
        document = msgspec.json.decode(head, type=_Response)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the response is no V2 inference response: {error}") from error
    outputs: Tensors = {}
    raw_from = 0
    for tensor in document.outputs:
        field = answered_field(specs, tensor.name, tensor.datatype, tensor.shape)
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            outputs[tensor.name] = _answered(tensor, field)
        else:
            raw_to = _end_of_raw(size, raw_from, tail, tensor.name)
            outputs[tensor.name] = from_raw(tail[raw_from:raw_to], field, tensor.shape, "")
            raw_from = raw_to
    return outputs


def _to_json(array: Array) -> Array | list[Any]:
    """The flat form of `array` that orjson can write."""
    flat = array.ravel()
    if flat.dtype in _ORJSON_DTYPES:
        return flat
    if flat.dtype == object:
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in flat.tolist()]
    return flat.astype(np.float32)


def _from_whole_body(body: bytes, signature: Signature) -> InferRequest:
    """A raw binary request: no JSON at all, one row, every output wanted as raw bytes."""
    inputs = from_whole_body(body, signature)
    return InferRequest(inputs, signature.rows(inputs), binary=signature.output_names)


def _split(body: bytes, json_bytes: int) -> tuple[bytes, bytes]:
    if not 0 < json_bytes <= len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes")
    return body[:json_bytes], body[json_bytes:]


def _raw_bytes(tensor: _Input) -> Any:
    """How many raw bytes its parameters say that the tensor has, None for a tensor in JSON."""
    parameters = tensor.parameters or {}
    check_tensor_parameters(tensor.name, parameters)
    size = parameters.get("binary_data_size")
    if size is not None and bytes(tensor.data):
        raise InvalidRequest(f"input '{tensor.name}' has both 'data' and 'binary_data_size'; send one")
    return size


def _end_of_raw(size: Any, start: int, tail: bytes, name: str) -> int:
    """Where the raw bytes of tensor `name` end that begin at `start` of `tail`."""
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(tail) - start:
        raise InvalidRequest(f"tensor '{name}' has binary_data_size {size!r}, the body holds {len(tail) - start} more")
    return start + size


def _answered(tensor: _ResponseTensor, field: Field) -> Array:
    """The elements of an answered tensor; null is a float that JSON cannot say."""
    try:
        dtype = np.float32 if field.dtype.kind == "V" else field.dtype  # bfloat16 knows no null
        return np.array(tensor.data, dtype).astype(field.dtype, copy=False).reshape(tensor.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"output '{field.name}' cannot be read as {field.datatype}: {error}") from error


def tensor_from_json(data: bytes, field: Field, shape: list[int]) -> Array:
    """The elements of a JSON list, flat or nested like `shape`. Raises InvalidRequest for others than `field` takes."""
    if not data:
        raise InvalidRequest(f"input '{field.name}' has no 'data'")
    nested = data[1:2] <= b" " or data[1:2] == b"["
    if nested:
        nested = data[1:].lstrip()[:1] == b"["
    try:
        values = (field.nested_json if nested else field.flat_json).decode(data)
        array = np.array(values, field.dtype)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"Unable to parse 'data' of input '{field.name}' as {field.datatype}: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(f"Unable to parse 'data' of input '{field.name}': it is nested too deep") from error
    if array.size == math.prod(shape) and not (nested and array.shape != tuple(shape)):
        return array.reshape(shape)
    raise InvalidRequest(
        f"Unable to parse 'data': Shape does not match true shape of 'data' field of input '{field.name}': "
        f"shape {shape}, data {list(array.shape)}"
    )


def _read_wishes(document: _Request, signature: Signature, request: InferRequest) -> None:
    """Which outputs are wanted, in which form, and what the parameters of the whole request ask for."""
    everything = False
    if document.parameters:
        everything = read_flag("binary_data_output", document.parameters.get("binary_data_output", False))
        read_parameters(document.parameters, request)
    if not document.outputs:
        if everything:
            request.binary = signature.output_names
        return
    request.outputs = signature.wanted([output.name for output in document.outputs])
    binary, classes = [], {}
    for output in document.outputs:
        name, parameters = output.name, output.parameters
        if parameters:
            check_tensor_parameters(name, parameters)
            if read_flag("binary_data", parameters.get("binary_data", everything)):
                binary.append(name)
            if best := read_classes(signature.outputs[name], parameters):
                classes[name] = best
        elif everything:
            binary.append(name)
    request.binary, request.classes = frozenset(binary), classes or None
