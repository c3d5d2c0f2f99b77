"""Requests that are wrong, each in one way, for every dialect; and one for each that is right."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from mlserve.wire import messages, tensorflow_messages

__all__ = ["RIGHT", "Question", "v2_message", "wrong_requests"]

INFER = "/v2/models/known/infer"
INFER_CALL = f"/{messages.SERVICE}/ModelInfer"
PREDICT_CALL = f"/{tensorflow_messages.PREDICTION_SERVICE}/Predict"
_SAGEMAKER = {"x-amzn-sagemaker-target-model": "known"}
_JSON = {"content-type": "application/json"}
# Asked so, GraphQL says by the status too that it refuses (GraphQL over HTTP, 6.4.2).
_GRAPHQL = {**_JSON, "accept": "application/graphql-response+json"}
_DEEP = (120, 250_000)


class Question(NamedTuple):
    """What is asked: of a page over HTTP, or of a call over gRPC."""

    dialect: str
    what: str
    path: str
    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012  # a default nobody changes

    @property
    def is_grpc(self) -> bool:
        return self.dialect.endswith("grpc")


def _v2(
    data: Any = (1, -1), shape: Any = (1, 2), datatype: Any = "FP32", name: Any = "x", **extra: Any
) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **extra}


def _request(*tensors: Any, **extra: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **extra}).encode()


RIGHT = (
    Question("v2 json", "right", INFER, _request(_v2())),
    Question("tensorflow rest", "right", "/v1/models/known:predict", b'{"instances": [[1, -1]]}'),
    Question("torchserve", "right", "/predictions/known", b"[1, -1]", _JSON),
    Question("sagemaker", "right", "/invocations", b"1,-1", {**_SAGEMAKER, "content-type": "text/csv"}),
    Question("friendly", "right", "/v1/predict", b'{"model": "known", "inputs": {"x": [[1, -1]]}}'),
    Question(
        "graphql",
        "right",
        "/graphql",
        b'{"query": "{ models { name } }"}',
        _GRAPHQL,
    ),
)


def wrong_requests() -> Iterator[Question]:
    """All of them."""
    yield from _wrong_v2()
    for what, body in _wrong_tensorflow():
        yield Question("tensorflow rest", what, "/v1/models/known:predict", body)
    for what, payload in _wrong_predictions():
        yield Question("tensorflow grpc", what, PREDICT_CALL, payload)
    for what, body, kind in _wrong_rows():
        yield Question("torchserve", what, "/predictions/known", body, {"content-type": kind})
        yield Question("sagemaker", what, "/invocations", body, {**_SAGEMAKER, "content-type": kind})
    for what, body in _wrong_frames():
        yield Question("mlflow", what, "/invocations", body, {**_SAGEMAKER, **_JSON})
    for what, body in _wrong_friendly():
        yield Question("friendly", what, "/v1/predict", body)
    for what, body in _wrong_graphql():
        yield Question("graphql", what, "/graphql", body, _GRAPHQL)
    yield Question("tensorflow rest", "unknown model", "/v1/models/nobody:predict", RIGHT[1].body)
    yield Question("torchserve", "unknown model", "/predictions/nobody", RIGHT[2].body)


def _wrong_v2() -> Iterator[Question]:
    for what, body in _wrong_v2_json():
        yield Question("v2 json", what, INFER, body)
    for what, head, raw in _wrong_v2_binary():
        size = {"inference-header-content-length": str(len(head))}
        yield Question("v2 binary", what, INFER, head + raw, size)
    for what, value, body in _wrong_header_lengths():
        yield Question("v2 binary", what, INFER, body, {"inference-header-content-length": value})
    for what, payload in _wrong_v2_messages():
        yield Question("v2 grpc", what, INFER_CALL, payload)
    for path in ("/v2/models/nobody/infer", "/v2/models/known/versions/99/infer", "/v2/models/..%2f..%2fetc/infer"):
        yield Question("v2 json", f"path {path}", path, RIGHT[0].body)


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def _wrong_json(right: bytes) -> Iterator[tuple[str, bytes]]:
    """What is wrong with any JSON."""
    yield "empty", b""
    yield "null", b"null"
    yield "a list", b"[]"
    yield "a number", b"1e400"
    yield "cut short", right[:-5]
    yield "goes on", right + b"]"
    yield "not UTF-8", right[:-1] + b'"\xff\xfe"}'
    yield "UTF-16", right.decode().encode("utf-16")
    for depth in _DEEP:
        yield f"depth {depth}", _nested(depth)
        yield f"depth {depth} of objects", b'{"a":' * depth + b"1" + b"}" * depth
        yield f"depth {depth} never closed", b"[" * depth


def _wrong_v2_json() -> Iterator[tuple[str, bytes]]:
    yield from _wrong_json(_request(_v2()))
    for depth in _DEEP:
        yield f"data of depth {depth}", _request(_v2("DEEP")).replace(b'"DEEP"', _nested(depth))
        yield f"a parameter of depth {depth}", _request(_v2(), parameters="DEEP").replace(b'"DEEP"', _nested(depth))
    for datatype in ("INT64", "FP99", "", None, 5, "fp32", "BYTES"):
        yield f"datatype {datatype!r}", _request(_v2(datatype=datatype))
    for shape in (
        [2], [1, 3], [1, 2, 1], [], [-1, 2], [1, -2], [-1, -2], [2**60, 2], [2**32, 2**32], [2**63, 2], [2**64, 2],
        [10**30, 2], [0, 2], ["1", "2"], [1.5, 2], [True, 2], None, 2, "1,2", [[1, 2]], {"0": 1}, [None, 2],
    ):  # fmt: skip
        yield f"shape {shape}", _request(_v2(shape=shape))
    for data in (
        [], [1], [1, 2, 3], [[1], [2, 3]], [[1, 2], [3, 4]], ["1", "2"], [None, 1], [{}, 1], "12", 5, None, {"0": 1},
        [True, False], [[[[1, 2]]], 3],
    ):  # fmt: skip
        yield f"data {data}", _request(_v2(data=data))
    for word in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "0x1", "01", "1.", "+1", "9" * 400):
        yield f"the number {word[:20]}", _request(_v2("W")).replace(b'"W"', f"[{word}, 1]".encode())
    for name in ("y", "", None, 5, "x" * 100_000, "\0", "../x"):
        yield f"the name {str(name)[:20]!r}", _request(_v2(name=name))
    yield "no inputs", b"{}"
    yield "empty inputs", _request()
    yield "inputs no list", b'{"inputs": {"x": 1}}'
    yield "inputs of numbers", b'{"inputs": [1, 2]}'
    yield "one input too many", _request(_v2(), _v2(name="y"))
    yield "a tensor twice", _request(_v2(), _v2())
    yield "no data", _request({"name": "x", "datatype": "FP32", "shape": [1, 2]})
    yield "no shape", _request({"name": "x", "datatype": "FP32", "data": [1, 2]})
    yield "an unknown output", _request(_v2(), outputs=[{"name": "z"}])
    yield "an output twice", _request(_v2(), outputs=[{"name": "y"}, {"name": "y"}])
    yield "outputs no list", _request(_v2(), outputs={"name": "y"})
    yield "a reserved parameter", _request(_v2(), parameters={"sequence_id": 1})
    yield "a timeout of words", _request(_v2(), parameters={"timeout": "soon"})
    yield "a priority below zero", _request(_v2(), parameters={"priority": -1})
    yield "a shared memory region", _request(_v2(parameters={"shared_memory_region": "r"}))
    yield "classes of words", _request(_v2(), outputs=[{"name": "y", "parameters": {"classification": "all"}}])
    yield "classes 2^63", _request(_v2(), outputs=[{"name": "y", "parameters": {"classification": 2**63}}])


def _wrong_v2_binary() -> Iterator[tuple[str, bytes, bytes]]:
    def head(shape: Any = (1, 2), size: Any = 8, datatype: str = "FP32") -> bytes:
        tensor = {"name": "x", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
        return json.dumps({"inputs": [tensor]}).encode()

    raw = struct.pack("<2f", 1, -1)
    for size in (-1, 0, 4, 7, 9, 2**31, 2**62, 2**64, "8", 8.5, None, True, [8]):
        yield f"{size} bytes of 8", head(size=size), raw
    for shape in ([-1, 2], [2**60, 2], [2**32, 2**32], [2**62, 2], [0, 2], [1, 3], [2, 2], [], [1.5, 2]):
        yield f"raw shape {shape}", head(shape=shape), raw
    yield "too few bytes", head(), raw[:5]
    yield "none of the bytes", head(), b""
    yield "bytes left over", head(), raw + b"more"
    yield "data beside raw data", head().replace(b'"FP32"', b'"FP32", "data": [1, 2]'), raw
    yield "text for numbers", head((1, 2), 8, "BYTES"), struct.pack("<I", 2**32 - 1) + b"word"


def _wrong_header_lengths() -> Iterator[tuple[str, str, bytes]]:
    right = _request(_v2())
    for value in ("-1", "1e3", "words", "", "99999", str(2**70), "9" * 3000, "0x10", " ", "5"):
        yield f"a header of {value[:20]!r} bytes", value, right
    for body in (b"", b"\0" * 4, b"\0" * 7, b"\0" * 9):
        yield f"a body of {len(body)} raw bytes", "0", body


def v2_message(**changes: Any) -> Any:
    """The right message for `known`, with some fields set otherwise."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    fields = {"model_name": "known", "inputs": [tensor], "raw_input_contents": [struct.pack("<2f", 1, -1)]}
    return messages.ModelInferRequest(**(fields | changes))


def _wrong_v2_messages() -> Iterator[tuple[str, bytes]]:
    def tensor(shape: Any = (1, 2), datatype: str = "FP32", name: str = "x", **contents: Any) -> dict[str, Any]:
        return {"name": name, "datatype": datatype, "shape": shape} | ({"contents": contents} if contents else {})

    right = v2_message().SerializeToString()
    for cut in (1, 5, len(right) // 2, len(right) - 1):
        yield f"cut after {cut} bytes", right[:cut]
    yield "no message", b"\xff" * 50
    yield "a field without end", b"\x0a\xff\xff\xff\xff\x0f"
    yield "groups without end", b"\x0b" * 10_000
    yield "nothing", b""
    shapes: Any = ((2,), (1, 3), (1, 2, 1), (), (-1, 2), (1, -2), (-1, -2), (2**60, 2), (2**32, 2**32), (2**62, 2),
                   (0, 2), (2**63 - 1, 2**63 - 1))  # fmt: skip
    for shape in shapes:
        yield f"shape {shape} raw", v2_message(inputs=[tensor(shape)]).SerializeToString()
        typed = tensor(shape, fp32_contents=[1, -1])
        yield f"shape {shape} typed", v2_message(inputs=[typed], raw_input_contents=[]).SerializeToString()
    for size in (0, 4, 7, 9, 16):
        yield f"{size} raw bytes", v2_message(raw_input_contents=[b"\0" * size]).SerializeToString()
    for count in (0, 2, 100):
        yield f"{count} raw tensors", v2_message(raw_input_contents=[b"\0" * 8] * count).SerializeToString()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("int_contents", {"int_contents": [1, 2]}),
        ("too few contents", {"fp32_contents": [1]}),
        ("two kinds of contents", {"fp32_contents": [1, 2], "int_contents": [1, 2]}),
        ("bytes_contents", {"bytes_contents": [b"1", b"2"]}),
        ("bool_contents", {"bool_contents": [True, False]}),
    ]
    for what, contents in wrong:
        yield what, v2_message(inputs=[tensor(**contents)], raw_input_contents=[]).SerializeToString()
    yield "raw and typed", v2_message(inputs=[tensor(fp32_contents=[1, 2])]).SerializeToString()
    for datatype in ("INT64", "FP99", "", "BYTES", "BF16"):
        yield f"datatype {datatype!r}", v2_message(inputs=[tensor(datatype=datatype)]).SerializeToString()
    yield "another name", v2_message(inputs=[tensor(name="y")]).SerializeToString()
    twice = v2_message(inputs=[tensor(), tensor()], raw_input_contents=[b"\0" * 8] * 2)
    yield "a tensor twice", twice.SerializeToString()
    extra = v2_message(inputs=[tensor(), tensor(name="y")], raw_input_contents=[b"\0" * 8] * 2)
    yield "one input too many", extra.SerializeToString()
    yield "no inputs", v2_message(inputs=[], raw_input_contents=[]).SerializeToString()
    yield "an unknown model", v2_message(model_name="nobody").SerializeToString()
    yield "an unknown version", v2_message(model_version="99").SerializeToString()
    yield "an unknown output", v2_message(outputs=[{"name": "z"}]).SerializeToString()
    yield "an output twice", v2_message(outputs=[{"name": "y"}] * 2).SerializeToString()
    yield "a reserved parameter", v2_message(parameters={"sequence_id": {"int64_param": 1}}).SerializeToString()
    yield "a timeout of words", v2_message(parameters={"timeout": {"string_param": "soon"}}).SerializeToString()


def _wrong_tensorflow() -> Iterator[tuple[str, bytes]]:
    yield from _wrong_json(b'{"instances": [[1, -1]]}')
    for rows in (
        [], [[]], [[1]], [[1, 2, 3]], [[1, 2], [3]], ["12"], [None], [[None, 1]], [{"y": [1, 2]}], [{}], 5, "x", {},
        [[[1, 2]]], [[True, {}]], [{"b64": "####"}], [{"b64": 5}], [{"x": {"b64": "aGk="}}],
    ):  # fmt: skip
        yield f"instances {rows}", json.dumps({"instances": rows}).encode()
    for columns in ([], {}, {"y": [[1, 2]]}, {"x": 5}, {"x": [[1, 2]], "y": [[1, 2]]}, None, "x"):
        yield f"inputs {columns}", json.dumps({"inputs": columns}).encode()
    yield "both forms", b'{"instances": [[1, 2]], "inputs": [[1, 2]]}'
    yield "neither form", b"{}"
    yield "another signature", b'{"signature_name": "other", "instances": [[1, 2]]}'
    for word in ("1e400", "0x1", "9" * 400):
        yield f"the number {word[:20]}", b'{"instances": [[%b, 1]]}' % word.encode()
    for depth in _DEEP:
        yield f"instances of depth {depth}", b'{"instances": %b}' % _nested(depth)


def _wrong_predictions() -> Iterator[tuple[str, bytes]]:
    def message(shape: Any = (1, 2), dtype: int = 1, name: str = "x", model: str = "known", **content: Any) -> bytes:
        tensor: dict[str, Any] = {"dtype": dtype, "tensor_shape": {"dim": [{"size": size} for size in shape]}}
        tensor |= content or {"tensor_content": struct.pack("<2f", 1, -1)}
        request = tensorflow_messages.PredictRequest(model_spec={"name": model})
        request.inputs[name].CopyFrom(tensorflow_messages.TensorProto(**tensor))
        return bytes(request.SerializeToString())

    for shape in ((-1, 2), (1, -2), (2**60, 2), (2**32, 2**32), (2**62, 2), (0, 2), (1, 3), (2,), (), (1, 2, 1)):
        yield f"shape {shape}", message(shape)
    for dtype in (0, 2, 3, 7, 14, 99, 2**31 - 1):
        yield f"dtype {dtype}", message(dtype=dtype)
    for size in (1, 4, 7, 9):
        yield f"{size} bytes", message(tensor_content=b"\0" * size)
    yield "too many values", message(float_val=[1, 2, 3])
    yield "values of another kind", message(int_val=[1, 2])
    yield "half values", message(dtype=19, half_val=[2**31 - 1, 5])
    yield "another name", message(name="y")
    yield "an unknown model", message(model="nobody")
    yield "no message", b"\xff" * 40
    yield "nothing", b""


def _wrong_rows() -> Iterator[tuple[str, bytes, str]]:
    for what, body in _wrong_json(b"[[1, -1]]"):
        if what != "goes on":
            yield what, body, "application/json"
    for body in (b"[1]", b"[1, 2, 3]", b'["a", "b"]', b"[[1, 2], [3]]", b"[null, 1]", b'{"y": [1, 2]}', b"5", b'"x"',
                 b"[1e400, 1]", b"[{}]"):  # fmt: skip
        yield f"rows {body!r}", body, "application/json"
    for body in (b"", b"a,b", b"1", b"1,2,3", b"1,2\n3", b'"1', b"1;2", b"\xff\xfe", b"1e400x,2", b"\0,\0"):
        yield f"table {body!r}", body, "text/csv"
    array = b"\x93NUMPY\x01\x00"
    for what, header in (
        ("negative", "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }"),
        ("2^60", "{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 2), }"),
        ("object", "{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }"),
        ("code", "__import__('os').abort()"),
        ("deep", "(" * 200),
    ):
        yield f"npy {what}", array + struct.pack("<H", len(header)) + header.encode() + b"\0" * 8, "application/x-npy"
    yield "npy cut short", array + b"\xff\xff{", "application/x-npy"
    yield "no known type", b"1,2", "application/x-tar"
    yield "a form without parts", b"--b\r\nnothing", "multipart/form-data; boundary=b"


def _wrong_frames() -> Iterator[tuple[str, bytes]]:
    for frame in (
        {"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}},
        {"dataframe_split": {"data": 5}},
        {"dataframe_split": []},
        {"dataframe_records": [{"y": 1}]},
        {"dataframe_records": [1, 2]},
        {"dataframe_records": {}},
        {"instances": [[1, 2]], "inputs": [[1, 2]]},
        {"instances": [[1]]},
        {"inputs": {"y": [1]}},
        {"params": {}},
        {"dataframe_split": {"columns": [[]], "data": [[1]]}},
    ):
        yield json.dumps(frame)[:60], json.dumps(frame).encode()


def _wrong_friendly() -> Iterator[tuple[str, bytes]]:
    right = b'{"model": "known", "inputs": {"x": [[1, -1]]}}'
    yield from _wrong_json(right)
    for body in (
        {}, {"model": "nobody", "inputs": {"x": [[1, 2]]}}, {"model": 5}, {"model": "known"},
        {"model": "known", "inputs": {}}, {"model": "known", "inputs": {"y": [[1, 2]]}},
        {"model": "known", "inputs": {"x": [[1, 2, 3]]}}, {"model": "known", "inputs": {"x": "word"}},
        {"model": "known", "inputs": {"x": [[True, None]]}}, {"model": "known", "text": "hello"},
        {"model": "known", "inputs": 5}, {"model": "known", "inputs": {"x": [[1], [2, 3]]}},
        {"model": "known", "image": base64.b64encode(b"no image").decode()},
        {"model": "../../etc/passwd", "inputs": {"x": [[1, 2]]}},
    ):  # fmt: skip
        yield json.dumps(body)[:60], json.dumps(body).encode()
    for depth in _DEEP:
        yield f"inputs of depth {depth}", right.replace(b"[[1, -1]]", _nested(depth))


def _wrong_graphql() -> Iterator[tuple[str, bytes]]:
    yield from ((what, body) for what, body in _wrong_json(b'{"query": "{ models { name } }"}') if what != "goes on")
    for what, query in (
        ("no query", ""),
        ("no field", "{ nothing }"),
        ("not closed", "{ models { name "),
        ("many aliases", "{" + " ".join(f"a{number}: models {{ name }}" for number in range(20_000)) + "}"),
        ("deep braces", "{models" * 5000 + "}" * 5000),
        ("a fragment of itself", "{ ...f } fragment f on Query { ...f }"),
        ("a number beyond int", "{ models(first: 99999999999999999999) { name } }"),
    ):
        yield what, json.dumps({"query": query}).encode()
    yield "a query that is a number", b'{"query": 5}'
