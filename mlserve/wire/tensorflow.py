"""TensorFlow Serving's tensors and examples: TensorProto and tf.Example to arrays, and arrays to TensorProto.

A TensorProto holds its elements as raw bytes (`tensor_content`) or in the list of its type (`float_val`, ...). A list
that is shorter than the tensor repeats its last element, an empty one means zeros:
https://github.com/tensorflow/tensorflow, tensorflow/core/framework/tensor.proto
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Array, Tensors, TensorSpec
from mlserve.wire.messages import parse_message
from mlserve.wire.plain import from_columns
from mlserve.wire.raw import from_raw
from mlserve.wire.signature import Field, InferRequest, Signature, answered_field
from mlserve.wire.tensorflow_messages import DataType, PredictRequest, PredictResponse, TensorProto

__all__ = [
    "TYPE_OF",
    "decode_predict",
    "decode_predicted",
    "encode_predict",
    "examples_of",
    "from_examples",
    "from_tensor",
    "merge_context",
    "to_tensor",
]

TYPE_OF = {
    "BOOL": "DT_BOOL",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}
"""The Open Inference Protocol's name of a type -> TensorFlow's."""

_DATATYPE = {DataType[theirs]: ours for ours, theirs in TYPE_OF.items()}
_LIST_OF = {
    "BOOL": "bool_val",
    "INT8": "int_val",
    "INT16": "int_val",
    "INT32": "int_val",
    "INT64": "int64_val",
    "UINT8": "int_val",
    "UINT16": "int_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
    "FP16": "half_val",
    "BF16": "half_val",
    "FP32": "float_val",
    "FP64": "double_val",
    "BYTES": "string_val",
}
_LISTS = frozenset(_LIST_OF.values())
# protobuf packs lists of these as their little-endian bytes, one after the other: the same bytes as the array's own.
_RAW_LIST = {"FP32": TensorProto.FLOAT_VAL_FIELD_NUMBER, "FP64": TensorProto.DOUBLE_VAL_FIELD_NUMBER}
_LENGTH_DELIMITED = 2

# What a list's last element may fill: as much as a message of gRPC's default size could hold as it is.
_MOST_FILLED_BYTES = 4 << 20
_MOST_DIMS = 64  # numpy's own limit
_MOST_NAMED = 16


def decode_predict(message: Any, signature: Signature) -> InferRequest:
    """Checks a parsed PredictRequest against a model. Raises InvalidRequest for what either does not allow."""
    tensors = message.inputs
    if len(tensors) != len(signature.inputs) or not all(name in tensors for name in signature.inputs):
        raise InvalidRequest(_other_inputs(set(tensors), set(signature.inputs)))
    inputs = {name: from_tensor(tensors[name], name, signature) for name in signature.inputs}
    request = InferRequest(inputs, signature.rows(inputs))
    if message.output_filter:
        request.outputs = _wanted(list(message.output_filter), signature)
    return request


def encode_predict(model: str, version: str, inputs: Tensors, specs: Sequence[TensorSpec]) -> bytes:
    """A PredictRequest for `inputs`, of the default signature; `version` is a number, or "" for the default one.

    Numbers travel in `tensor_content`, as TensorFlow's own clients send them.
    """
    request = PredictRequest(model_spec={"name": model, **({"version": {"value": int(version)}} if version else {})})
    for spec in specs:
        request.inputs[spec.name].CopyFrom(_to_content(inputs[spec.name], spec.datatype))
    payload: bytes = request.SerializeToString()
    return payload


def decode_predicted(payload: bytes, specs: Mapping[str, TensorSpec]) -> Tensors:
    """The output tensors of a PredictResponse. Raises InvalidRequest when it is none, or does not hold `specs`."""
    tensors = parse_message(PredictResponse, payload).outputs
    return {name: _read(tensors[name], name, partial(answered_field, specs, name)) for name in sorted(tensors)}


def from_tensor(tensor: Any, name: str, signature: Signature) -> Array:
    """The input `name` of the model from a TensorProto. Raises InvalidRequest where it does not fit."""
    return _read(tensor, name, partial(signature.field, name), signature.name)


def _read(tensor: Any, name: str, field_of: Callable[[str, list[int]], Field], model: str = "") -> Array:
    """The array of a TensorProto, once `field_of` has taken its type and shape."""
    if tensor.tensor_shape.unknown_rank:
        raise InvalidRequest(f"input '{name[:64]}' has no shape (unknown_rank); send one")
    datatype = _DATATYPE.get(tensor.dtype)
    if datatype is None:
        raise InvalidRequest(f"input '{name[:64]}' has the type number {tensor.dtype}, which is not supported")
    dims = tensor.tensor_shape.dim
    if len(dims) > _MOST_DIMS:
        raise InvalidRequest(f"input '{name[:64]}' has {len(dims)} dimensions; {_MOST_DIMS} is the most")
    shape = [dim.size for dim in dims]
    field = field_of(datatype, shape)
    if not tensor.tensor_content:
        return _from_list(tensor, field, shape)
    if datatype == "BYTES":
        raise InvalidRequest(f"input '{name}': strings travel in string_val, not in tensor_content")
    return from_raw(tensor.tensor_content, field, shape, model)


def to_tensor(array: Array, datatype: str) -> Any:
    """`array` as a TensorProto, in the list of its type: what TensorFlow Serving answers, and its clients read."""
    tensor = TensorProto(
        dtype=DataType[TYPE_OF[datatype]], tensor_shape={"dim": [{"size": size} for size in array.shape]}
    )
    number = _RAW_LIST.get(datatype)
    if number is not None:
        raw = array.tobytes()
        tensor.MergeFromString(bytes((number << 3 | _LENGTH_DELIMITED,)) + _varint(len(raw)) + raw)
    elif datatype == "BYTES":
        tensor.string_val.extend(
            [value if isinstance(value, bytes) else str(value).encode() for value in array.ravel().tolist()]
        )
    else:
        bits = array.view(np.uint16) if datatype in ("FP16", "BF16") else array
        getattr(tensor, _LIST_OF[datatype]).extend(bits.ravel().tolist())
    return tensor


def _to_content(array: Array, datatype: str) -> Any:
    if datatype == "BYTES":
        return to_tensor(array, datatype)
    return TensorProto(
        dtype=DataType[TYPE_OF[datatype]],
        tensor_shape={"dim": [{"size": size} for size in array.shape]},
        tensor_content=array.tobytes(),
    )


def examples_of(message: Any) -> list[dict[str, list[Any]]]:
    """The examples of an `Input` message, each with the common context: the values of its features by name.

    Raises InvalidRequest for no examples, for a feature that is also in the context, and for bytes that are no UTF-8.
    """
    context: dict[str, list[Any]] = {}
    found = message.example_list.examples
    if message.HasField("example_list_with_context"):
        found = message.example_list_with_context.examples
        context = _features(message.example_list_with_context.context)
    if not found:
        raise InvalidRequest("the input holds no examples")
    return merge_context([_features(example) for example in found], context)


def merge_context(examples: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`examples`, each with the features of `context` too. Raises InvalidRequest for a feature that is in both."""
    for example in examples:
        both = example.keys() & context.keys()
        if both:
            raise InvalidRequest(f"feature '{min(both)[:64]}' is in the context and in an example; send it in one")
    return [{**example, **context} for example in examples]


def from_examples(examples: Sequence[Mapping[str, Any]], signature: Signature) -> Tensors:
    """Every input of the model from examples: features by input name, each a value or a flat list of values.

    Raises InvalidRequest for an unknown or a missing feature and for values that do not fit the input.
    """
    names = examples[0].keys()
    for position, example in enumerate(examples):
        if example.keys() != names:
            raise InvalidRequest(f"example {position} does not have the same features as the first one")
    columns = {}
    for name in names:
        field = signature.inputs.get(name)
        dims = () if field is None else field.dims[1:]
        columns[name] = [_shaped(example[name], name, dims) for example in examples]
    return from_columns(columns, signature)


def _from_list(tensor: Any, field: Field, shape: list[int]) -> Array:
    name = _LIST_OF[field.datatype]
    values = getattr(tensor, name)
    count, found = math.prod(shape), len(values)
    others = [] if found else [each.name for each, _ in tensor.ListFields() if each.name in _LISTS]
    if others:
        raise InvalidRequest(f"input '{field.name}' is {field.datatype}, whose elements go in {name}, not {others[0]}")
    if found > count:
        raise InvalidRequest(f"input '{field.name}' has shape {shape} but {found} elements in {name}")
    if found < count and count * field.dtype.itemsize > _MOST_FILLED_BYTES:
        raise InvalidRequest(
            f"input '{field.name}' has shape {shape} but {found} elements in {name}: its last element may fill "
            f"{_MOST_FILLED_BYTES} bytes; send every element, best in tensor_content"
        )
    elements = _elements(values, field)
    if found < count:
        nothing = "" if field.dtype == object else 0
        last = elements[-1] if found else nothing
        elements = np.concatenate([elements, np.full(count - found, last, field.dtype)])
    return elements.reshape(shape)


def _elements(values: Any, field: Field) -> Array:
    """The array of a TensorProto's list. Raises InvalidRequest for an element that does not fit."""
    if field.dtype == object:
        return np.array([_text(value, field.name) for value in values], object)
    as_bits = field.datatype in ("FP16", "BF16")
    narrow = np.dtype(np.uint16) if as_bits else field.dtype
    if narrow.kind not in "iu" or narrow.itemsize > 2:
        # With its type left to numpy, an array of large and small UINT64 would become one of floats.
        return np.array(values, field.dtype)
    wide = np.array(values, np.int64)
    bounds = np.iinfo(narrow)
    if not (bounds.min <= wide.min(initial=0) and wide.max(initial=0) <= bounds.max):
        raise InvalidRequest(f"input '{field.name}' has values that do not fit {field.datatype}")
    elements = wide.astype(narrow)
    return elements.view(field.dtype) if as_bits else elements


def _features(example: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = list(getattr(feature, kind).value) if kind else []
        found[name] = [_text(value, name) for value in values] if kind == "bytes_list" else values
    return found


def _shaped(values: Any, name: str, dims: Sequence[int | str]) -> Any:
    """A feature's flat `values` nested as `dims`, of which one may be dynamic."""
    flat = values if isinstance(values, list) else [values]
    if any(isinstance(value, list) for value in flat):
        raise InvalidRequest(f"feature '{name[:64]}' holds a list within a list; features are flat")
    count, known = len(flat), math.prod(dim for dim in dims if isinstance(dim, int))
    dynamic = sum(not isinstance(dim, int) for dim in dims)
    if dynamic > 1 or not flat or (count % known if dynamic else count != known):
        expected = [dim if isinstance(dim, int) else -1 for dim in dims]
        raise InvalidRequest(f"feature '{name[:64]}' has {count} values, which do not fill the shape {expected}")
    for dim in reversed(dims):
        size = dim if isinstance(dim, int) else count // known
        flat = [flat[start : start + size] for start in range(0, len(flat), size)]
    return flat[0]


def _wanted(names: list[str], signature: Signature) -> list[str]:
    """The output filter, if the model has such outputs. Raises InvalidRequest."""
    for position, name in enumerate(names):
        if name not in signature.outputs:
            raise InvalidRequest(
                f"unexpected output '{name[:64]}' for model '{signature.name}'; it gives {_set(signature.outputs)}"
            )
        if name in names[:position]:
            raise InvalidRequest(f"output '{name}' is asked for twice")
    return names


def _other_inputs(sent: set[str], known: set[str]) -> str:
    return (
        f"the inputs do not fit: the request has {_set(sent)}, the model takes {_set(known)}; "
        f"missing {_set(known - sent)}, unexpected {_set(sent - known)}"
    )


def _set(names: Sequence[str] | set[str] | Mapping[str, Any]) -> str:
    return f"{{{','.join(name[:64] for name in sorted(names)[:_MOST_NAMED])}}}"


def _text(value: bytes, name: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"'{name[:64]}' holds a string element that is no UTF-8") from error


def _varint(number: int) -> bytes:
    """`number` as protobuf writes lengths: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
