"""The guard's patience: which gRPC connections and calls it ends, which it lets wait, and what it says to them."""

import asyncio
import contextlib
import socket
import struct
import threading
import time

import grpc
import pytest

from mlserve.serve.settings import Limits
from mlserve.serve.transports.grpc_guard import GrpcGuard
from mlserve.serve.transports.receiving import Receiving
from mlserve.wire import messages
from mlserve.wire.http2_frames import FRAME_BYTES, WINDOW_BYTES, frame, window_update

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END, END_HEADERS, ACK = 1, 4, 1
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
WIDE_GREETING = GREETING + window_update((1 << 31) - 1 - WINDOW_BYTES)
NO_ERROR, ENHANCE_YOUR_CALM = 0, 11
SERVICE = "/inference.GRPCInferenceService"
HEAD_S, RECEIVE_S, KEEP_ALIVE_S, CONNECTIONS = 0.6, 1.0, 2.0, 8
SWEEP_S = 0.6  # so often, at the most, the guard looks
LIMITS = Limits(head_s=HEAD_S, receive_s=RECEIVE_S, keep_alive_s=KEEP_ALIVE_S, max_connections=CONNECTIONS)


def opening(method, stream=1):
    """The headers of a call."""
    fields = (
        (b":path", f"{SERVICE}/{method}".encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    block = b"\x83\x86" + b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in fields
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def tiny_request(rows=1):
    request = messages.ModelInferRequest(model_name="tiny", id="one")
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 30])
    request.raw_input_contents.append(bytes(120 * rows))
    return request.SerializeToString()


def message(payload):
    return b"\0" + len(payload).to_bytes(4) + payload


def frames_until_the_end(connection):
    """`(kind, flags, stream, payload)` of all that comes until the connection is closed."""
    said, found = b"", []
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65_536):
            said += piece
    while said:
        high, low, kind, flags, stream = struct.unpack_from(">HBBBI", said)
        size = 9 + (high << 8 | low)
        found.append((kind, flags, stream, said[9:size]))
        said = said[size:]
    return found


# Before a server that this test plays


@contextlib.contextmanager
def guarding(folder, behind, limits=LIMITS):
    """A guard before the coroutine `behind(reader, writer)`, on a loop of its own. Yields it and its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listener = socket.create_server(("127.0.0.1", 0))
    guard = GrpcGuard(listener, f"{folder}/s", limits, Receiving(1 << 30))

    async def answer(reader, writer):
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await behind(reader, writer)
        finally:
            writer.transport.abort()

    async def start():
        server = await asyncio.start_unix_server(answer, guard.behind)
        await guard.start()
        return server

    async def stop():
        await guard.stop()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.sleep(0.05)  # for connections to close

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield guard, listener.getsockname()
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def greet_only(reader, writer):
    writer.write(frame(SETTINGS, 0, 0))
    while await reader.read(65_536):
        pass


async def answer_without_end(reader, writer):
    """Headers of an answer to call 1, and then more of it than any buffer holds."""
    await reader.read(65_536)
    writer.write(frame(HEADERS, END_HEADERS, 1, b"\x88"))
    while True:
        writer.write(frame(DATA, 0, 1, bytes(FRAME_BYTES)))
        await writer.drain()


def test_a_connection_without_a_call_is_told_goodbye_and_closed(tmp_path):
    with guarding(tmp_path, greet_only) as (_, address), socket.create_connection(address, timeout=10) as connection:
        began_s = time.monotonic()
        connection.sendall(GREETING)
        for _ in range(5):  # a client that only says that it is there asks nothing
            time.sleep(0.2)
            connection.sendall(frame(PING, 0, 0, bytes(8)))
        *_, (kind, _, _, payload) = frames_until_the_end(connection)
        assert KEEP_ALIVE_S - 0.1 < time.monotonic() - began_s < KEEP_ALIVE_S + 2
        assert kind == GOAWAY
        assert struct.unpack(">II", payload[:8]) == (0, NO_ERROR)


def test_a_connection_with_a_call_that_the_server_takes_long_for_stays(tmp_path):
    async def answer_late(reader, writer):
        writer.write(frame(SETTINGS, 0, 0))
        await reader.readuntil(b"/Slow")
        await asyncio.sleep(KEEP_ALIVE_S + 1)
        writer.write(frame(HEADERS, END_HEADERS | END, 1, b"\x88"))
        await reader.read()

    with guarding(tmp_path, answer_late) as (_, address), socket.create_connection(address, timeout=10) as connection:
        began_s = time.monotonic()
        connection.sendall(GREETING + opening("Slow") + frame(DATA, END, 1, message(b"whole")))
        kinds = [(kind, stream, payload[:8]) for kind, _, stream, payload in frames_until_the_end(connection)]
        assert kinds[1:] == [(HEADERS, 1, b"\x88"), (GOAWAY, 0, struct.pack(">II", 1, NO_ERROR))]
        assert time.monotonic() - began_s > 2 * KEEP_ALIVE_S + 1 - SWEEP_S


def test_a_client_that_does_not_read_loses_its_place(tmp_path, until):
    with (
        guarding(tmp_path, answer_without_end) as (guard, address),
        socket.create_connection(address, timeout=10) as connection,
    ):
        connection.sendall(WIDE_GREETING + opening("Large") + frame(DATA, END, 1, message(b"whole")))
        until(lambda: len(guard.connections) == 1)
        until(lambda: not guard.connections, limit_s=KEEP_ALIVE_S + 5)


def test_a_client_that_is_sent_away_and_does_not_read_why_loses_its_place(tmp_path, until):
    with (
        guarding(tmp_path, answer_without_end, Limits(head_s=HEAD_S)) as (guard, address),
        socket.create_connection(address, timeout=10) as connection,
    ):
        whole = frame(DATA, END, 1, message(b"whole"))
        connection.sendall(WIDE_GREETING + opening("Large") + whole + frame(PING, 0, 0, bytes(8))[:10])
        until(lambda: len(guard.connections) == 1)
        until(lambda: not guard.connections, limit_s=HEAD_S + 8)


def test_a_refusal_of_an_answered_call_comes_as_its_trailers(tmp_path):
    async def answer_at_once(reader, writer):
        await reader.readuntil(b"/Stream")
        writer.write(frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, b"\x88"))
        await reader.read()

    with (
        guarding(tmp_path, answer_at_once) as (_, address),
        socket.create_connection(address, timeout=10) as connection,
    ):
        connection.sendall(GREETING + opening("Stream"))
        time.sleep(0.3)
        connection.sendall(frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"))
        said = frames_until_the_end(connection)
    (trailers,) = [payload for kind, flags, _, payload in said if kind == HEADERS and flags & END]
    assert b"grpc-status\x018" in trailers
    assert not trailers.startswith(b"\x88")


# Before the real one


@pytest.fixture(scope="module", params=["guarded", "grpcio"])
def transport(request):
    return request.param


@pytest.fixture(scope="module")
def server(transport, serving_settings, tiny_onnx):
    with serving_settings(tiny_onnx, limits=LIMITS, grpc_transport=transport) as made:
        yield made


def connect(server):
    return socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10)


def test_a_stream_may_wait_before_its_first_message_and_between_two(server):
    waits_s = iter((KEEP_ALIVE_S + 1, RECEIVE_S + 1))

    def requests():
        for wait_s in waits_s:
            time.sleep(wait_s)
            yield tiny_request()

    with grpc.insecure_channel(server.grpc) as channel:
        answers = list(channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(requests(), timeout=30))
    assert [messages.ModelStreamInferResponse.FromString(each).infer_response.id for each in answers] == ["one", "one"]


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("ModelInfer", b""),
        ("ModelInfer", frame(DATA, 0, 1, message(tiny_request()))),
        ("RepositoryModelLoad", b""),
    ],
)
def test_a_call_of_one_message_whose_client_never_ends_it_is_refused_in_time(server, transport, method, sent):
    if transport == "grpcio":
        pytest.skip("grpcio has no such limit")
    with connect(server) as connection:
        connection.sendall(GREETING + opening(method) + sent)
        said = frames_until_the_end(connection)
    (ending,) = [payload for kind, flags, stream, payload in said if stream == 1 and flags & END]
    assert b"grpc-status\x014" in ending
    assert b"the request was not complete after 1 s" in ending


def test_a_connection_without_a_call_is_closed(server):
    with connect(server) as connection:
        began_s = time.monotonic()
        connection.sendall(GREETING)
        assert GOAWAY in [kind for kind, *_ in frames_until_the_end(connection)]
        assert time.monotonic() - began_s > 0.8 * KEEP_ALIVE_S  # grpcio takes a tenth more or less


def test_so_many_connections(server, until):
    def greeted(kept):
        made = connect(server)
        kept.append(made)
        try:
            made.sendall(GREETING)
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
