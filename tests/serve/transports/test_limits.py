"""The limits of docs/operations.md: the same as in the code, and each refused just above its value and not at it."""

import json
import re
import socket
import struct
import time
from importlib import import_module
from inspect import signature
from pathlib import Path

import grpc
import msgspec
import pytest

from mlserve.cli.serve import serve
from mlserve.serve.settings import Limits
from mlserve.wire import messages

OPERATIONS = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
SECTION = OPERATIONS.partition("\n## Limits\n")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.splitlines()
    if re.match(r"\| .* \| `(serve|wire|model)\.", line)
]
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "s": 1, "": 1}


def value_of(name):
    """What the code says: a module's constant, or the default of a struct's field."""
    parts = name.split(".")
    for split in (len(parts) - 1, len(parts) - 2):
        try:
            found = import_module(".".join(["mlserve", *parts[:split]]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            fields = {field.name: field.default for field in msgspec.structs.fields(found)} if is_struct(found) else {}
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AssertionError(f"there is no {name}")


def is_struct(found):
    return isinstance(found, type) and issubclass(found, msgspec.Struct)


@pytest.mark.parametrize(("name", "value"), [(row[1].strip("`"), row[2]) for row in ROWS])
def test_the_table_says_what_the_code_does(name, value):
    number, _, unit = value.partition(" ")
    assert float(number.replace(",", "")) * UNITS[unit] == value_of(name)


def test_every_limit_of_the_settings_is_in_the_table():
    told = {row[1].strip("`").rpartition(".")[2] for row in ROWS}
    assert {field.name for field in msgspec.structs.fields(Limits)} - {"drain_s"} <= told


def test_every_flag_of_the_table_is_one_of_serve():
    flags = {"--" + name.replace("_", "-") for name in signature(serve).parameters}
    told = {flag for row in ROWS for flag in re.findall(r"--[a-z-]+", row[3])}
    assert told
    assert told <= flags


# At the limits


CONNECTIONS, HEADERS, HEADER_BYTES, REQUEST_BYTES, RECEIVING_BYTES = 12, 20, 2000, 300_000, 400_000


@pytest.fixture(scope="module")
def server(serving_settings, tiny_onnx):
    limits = Limits(
        max_connections=CONNECTIONS,
        max_headers=HEADERS,
        max_header_bytes=HEADER_BYTES,
        max_request_bytes=REQUEST_BYTES,
        max_receiving_bytes=RECEIVING_BYTES,
        head_s=0.6,
        receive_s=1.5,
    )
    with serving_settings(tiny_onnx, limits=limits, grpc_transport="guarded") as made:
        yield made


@pytest.fixture(autouse=True)
def still_right(server, until):
    """However a test ends, the server answers afterwards; what it took has been given back."""
    yield

    def good():
        try:
            return server.infer("tiny", {"x": ("FP32", [[0.0] * 30])})[0] == 200
        except OSError:
            return False

    until(good)


def status(connection):
    """The status of the next reply; 0 when the connection was closed without one."""
    said = b""
    try:
        while b"\r\n\r\n" not in said and (piece := connection.recv(4096)):
            said += piece
    except ConnectionError:
        pass
    return int(said[9:12]) if said else 0


def health(fields=b""):
    return b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + fields + b"\r\n"


@pytest.mark.parametrize(("extra", "found"), [(0, 200), (1, 431)])
def test_so_many_headers(server, extra, found):
    with server.connect() as connection:
        connection.sendall(health(b"x: y\r\n" * (HEADERS - 1 + extra)))
        assert status(connection) == found


@pytest.mark.parametrize(("extra", "found"), [(0, 200), (1, 431)])
def test_headers_of_so_many_bytes(server, extra, found):
    counted = len("/health") + len("host") + len("localhost") + 4 + len("x") + 4
    with server.connect() as connection:
        connection.sendall(health(b"x: %b\r\n" % (b"y" * (HEADER_BYTES - counted + extra))))
        assert status(connection) == found


def test_so_many_connections(server, until):
    def idle(kept):
        made = server.connect()
        kept.append(made)
        made.sendall(health())
        return status(made)

    kept = []
    try:
        until(lambda: not kept.clear() and [idle(kept) for _ in range(CONNECTIONS)] == [200] * CONNECTIONS)
        assert idle(kept) in (0, 503)
    finally:
        for connection in kept:
            connection.close()


def test_so_many_connections_over_grpc(server, until):
    def greeted(kept):
        made = socket.create_connection(("127.0.0.1", server.grpc_port), timeout=5)
        kept.append(made)
        try:
            made.sendall(PREFACE)
            return bool(made.recv(100))
        except ConnectionError:
            return False

    kept = []
    try:
        until(lambda: not kept.clear() and all(greeted(kept) for _ in range(CONNECTIONS)))
        assert not greeted(kept)
    finally:
        for connection in kept:
            connection.close()


def begin(server, size):
    connection = server.connect()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {size}\r\n\r\n"
    connection.sendall(head.encode() + b"{")
    time.sleep(0.05)
    return connection


def test_unfinished_requests_together(server):
    """Each is allowed by itself; the second brings what the worker holds above what it may."""
    with begin(server, REQUEST_BYTES) as first, begin(server, REQUEST_BYTES) as second:
        first.sendall(b" " * (REQUEST_BYTES - 100_000))
        time.sleep(0.2)
        second.sendall(b" " * (REQUEST_BYTES - 2))
        assert status(second) == 503
        first.sendall(b" " * 99_999)
        assert status(first) == 400  # it was whole, and no JSON


@pytest.mark.parametrize(("begun", "limit_s"), [(b"POST / HTTP/1.1\r\nx: ", 0.6), (None, 1.5)])
def test_headers_have_less_time_than_bodies(server, begun, limit_s):
    began_s = time.monotonic()
    with server.connect() if begun else begin(server, 10) as connection:
        if begun:
            connection.sendall(begun)
        assert status(connection) == 408
    assert limit_s - 0.1 < time.monotonic() - began_s < limit_s + 2


def test_trailers_are_not_kept_and_have_an_end(server):
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n"
    with server.connect() as connection:
        connection.sendall(head + b"0\r\n" + b"a: b\r\n" * 50 + b"\r\n")
        assert status(connection) == 400  # it was whole, and no JSON
    with server.connect() as connection:
        try:
            for _ in range(40):
                connection.sendall(b"0\r\n" * bool(head) + b"a: b\r\n" * 50 if not head else head + b"0\r\n")
                head = b""
                time.sleep(0.002)
        except ConnectionError:
            pass
        assert status(connection) in (0, 400, 413)


# gRPC, behind the guard


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"


@pytest.fixture
def call(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")


def message_of(size):
    """A right message of just so many bytes."""
    message = messages.ModelInferRequest(
        model_name="tiny",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 30]}],
        raw_input_contents=[struct.pack("<30f", *range(30))],
    )
    message.id = "i" * 1000
    message.id = "i" * (1000 + size - message.ByteSize())
    message.id = "i" * (len(message.id) + size - message.ByteSize())
    assert message.ByteSize() == size
    return message.SerializeToString()


@pytest.mark.parametrize("packed", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_of_so_many_bytes(call, packed):
    assert messages.ModelInferResponse.FromString(call(message_of(REQUEST_BYTES), compression=packed, timeout=10))
    with pytest.raises(grpc.RpcError) as caught:
        call(message_of(REQUEST_BYTES + 1), compression=packed, timeout=10)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"exceeds the maximum allowed input size of {REQUEST_BYTES}" in caught.value.details()
    assert messages.ModelInferResponse.FromString(call(message_of(2000), timeout=10)).model_name == "tiny"


def test_a_message_that_never_ends_is_refused_in_time(server):
    block = b"\x83\x86" + b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10) as connection:
        connection.sendall(PREFACE + len(block).to_bytes(3) + b"\1\4\0\0\0\1" + block)
        connection.sendall(b"\0\0\6\0\0\0\0\0\1" + b"\0" + (1000).to_bytes(4) + b"a")
        said = b""
        while b"grpc-status\x014" not in said:
            piece = connection.recv(4096)
            assert piece
            said += piece
    assert b"the request was not complete after 1.5 s" in said


def test_other_words_than_http2_end_the_connection(server):
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10) as connection:
        connection.sendall(json.dumps({"no": "HTTP/2"}).encode())
        while connection.recv(4096):
            pass
