"""Bytes that were right, spoiled at random from one seed: what a fuzzer sends."""

import gzip
import json
import random
import struct
from collections.abc import Callable, Iterator

import numpy as np
from scorecard.bad_input.wrong_requests import INFER, INFER_CALL, PREDICT_CALL, RIGHT, Question, v2_message

from mlserve.wire import messages, tensorflow_messages

__all__ = ["mutated", "raw_http", "raw_http2", "seeds", "spoil"]

_NUMBERS = tuple(
    struct.pack(order, value)
    for order, value in (
        ("<I", 0), ("<I", 2**32 - 1), ("<I", 2**31), ("<Q", 2**63), ("<Q", 2**64 - 1), (">I", 2**31 - 1), ("<H", 65535),
    )
)  # fmt: skip
_WORDS = (
    b"-1", b"1e400", b"NaN", b"null", b"9" * 30, b"\0", b"\xff\xfe", b'"', b"\\u0000", b"[" * 50, b"{}", b"true",
    b"1152921504606846976", b"-9223372036854775808", b"BYTES", b"FP16", b"binary_data_size", b"\r\n", b"\r\n\r\n",
    b"%00", b"../", b"shared_memory_region",
)  # fmt: skip
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def spoil(content: bytes, chance: random.Random) -> bytes:
    """`content` with one to six small things wrong with it."""
    spoiled = bytearray(content)
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(spoiled) + 1)
        stop = min(len(spoiled), start + chance.choice((1, 1, 2, 4, 8, 32)))
        how = chance.randrange(7)
        if how == 0 and start < len(spoiled):
            spoiled[start] ^= 1 << chance.randrange(8)
        elif how == 1:
            spoiled[start:stop] = b""
        elif how == 2:
            spoiled[start:start] = chance.randbytes(chance.choice((1, 2, 4, 16)))
        elif how == 3:
            spoiled[start:start] = spoiled[start:stop] * chance.choice((1, 2, 50))
        elif how == 4:
            number = chance.choice(_NUMBERS)
            spoiled[start : start + len(number)] = number
        elif how == 5:
            spoiled[start:stop] = chance.choice(_WORDS)
        else:
            del spoiled[start:]
    return bytes(spoiled[: 1 << 20])


def seeds() -> list[Question]:
    """What is spoiled: requests that are right, for every dialect and both forms of V2's tensors."""
    raw = np.array([[1, -1], [2, -2]], np.float32).tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": len(raw)}}
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    head = json.dumps({"id": "1", "inputs": [tensor], "outputs": outputs, "parameters": {"priority": 1}}).encode()
    typed = {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1, -1]}}
    predict = tensorflow_messages.PredictRequest(model_spec={"name": "known"})
    predict.inputs["x"].CopyFrom(
        tensorflow_messages.TensorProto(dtype=1, tensor_shape={"dim": [{"size": 1}, {"size": 2}]}, float_val=[1, -1])
    )
    binary = {"inference-header-content-length": str(len(head))}
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + raw[:8]
    return [
        *RIGHT,
        Question("v2 binary", "spoiled", INFER, head + raw, binary),
        Question("v2 binary", "spoiled", INFER, head + raw, binary),
        Question("v2 packed", "spoiled", INFER, gzip.compress(RIGHT[0].body), {"content-encoding": "gzip"}),
        Question("npy", "spoiled", "/predictions/known", array, {"content-type": "application/x-npy"}),
        Question("v2 repository", "spoiled", "/v2/repository/index", b'{"ready": true}'),
        Question("v2 grpc", "spoiled", INFER_CALL, v2_message(id="1", outputs=[{"name": "y"}]).SerializeToString()),
        Question(
            "v2 grpc", "spoiled", INFER_CALL, v2_message(inputs=[typed], raw_input_contents=[]).SerializeToString()
        ),
        Question("tensorflow grpc", "spoiled", PREDICT_CALL, predict.SerializeToString()),
        Question("v2 metadata grpc", "spoiled", f"/{messages.SERVICE}/ModelMetadata", b"\x0a\x05known"),
    ]


def mutated(chance: random.Random) -> Iterator[Question]:
    """Spoiled requests without end, each well framed: the body, sometimes the path, sometimes a header."""
    made = seeds()
    while True:
        one = chance.choice(made)
        path, headers = one.path, dict(one.headers)
        if not one.is_grpc and chance.random() < 0.1:
            path = "/" + "".join(chance.choice("abv2/%0.:?=&_-~;,@") for _ in range(chance.randint(0, 60)))
        if headers and chance.random() < 0.1:
            name = chance.choice(list(headers))
            headers[name] = chance.choice(("", "-1", "5", "gzip", "deflate", "text/csv", "9" * 400, "a;b=c", "br"))
        yield one._replace(path=path, headers=headers, body=spoil(one.body, chance))


def raw_http(chance: random.Random) -> bytes:
    """A spoiled request of HTTP/1.1, its framing included; several at times."""
    one = chance.choice(RIGHT)
    lines = [f"{name}: {value}" for name, value in one.headers.items()]
    chunked = chance.random() < 0.3
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(one.body)}"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(one.body), one.body) if chunked else one.body
    head = "\r\n".join([f"POST {one.path} HTTP/1.1", "host: localhost", *lines, framing, "", ""]).encode()
    return spoil((head + body) * chance.choice((1, 1, 3)), chance)


def raw_http2(chance: random.Random) -> bytes:
    """Spoiled frames of HTTP/2, mostly after the right first word."""
    block = b"\x83\x86" + b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":path", INFER_CALL.encode()),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    payload = v2_message().SerializeToString()
    message = b"\0" + len(payload).to_bytes(4) + payload
    makers: tuple[Callable[[int], bytes], ...] = (
        lambda stream: _frame(1, 4, stream, block) + _frame(0, 1, stream, message),
        lambda stream: _frame(3, 0, stream, b"\0\0\0\x08"),
        lambda _: _frame(6, 0, 0, b"12345678"),
        lambda _: _frame(4, 0, 0, b"\0\x04\0\0\xff\xff"),
        lambda stream: _frame(8, 0, stream, b"\0\0\xff\xff"),
        lambda stream: _frame(9, 4, stream, block),
        lambda stream: _frame(chance.randrange(256), chance.randrange(256), stream, chance.randbytes(9)),
    )
    frames = b"".join(chance.choice(makers)(1 + 2 * number) for number in range(chance.randint(1, 8)))
    content = _PREFACE + _frame(4, 0, 0, b"") + frames
    return spoil(content, chance) if chance.random() < 0.8 else content


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload
