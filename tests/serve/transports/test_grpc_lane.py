"""The fast lane of gRPC between a client and a server behind: what it answers, what it lets pass, and how calls end."""

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hpack import Decoder, Encoder

from mlserve.serve.access import Access
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.catalog import Catalog
from mlserve.serve.dialects import CALLS
from mlserve.serve.keys import Key, digest
from mlserve.serve.loading import load_model
from mlserve.serve.service import Service
from mlserve.serve.settings import BatchSettings, Limits, ModelSource, ServeSettings
from mlserve.serve.transports.grpc_guard import GrpcGuard
from mlserve.serve.transports.grpc_lane import GrpcLane
from mlserve.serve.transports.receiving import Receiving
from mlserve.wire import http2_frames as http2
from mlserve.wire import messages

INFER = "/inference.GRPCInferenceService/ModelInfer"
BEHIND = "answered behind"
SECRET = "a-secret-of-32-characters-or-more"
DEADLINE_EXCEEDED, UNAVAILABLE = "4", "14"
FIELDS = {
    ":method": "POST",
    ":scheme": "http",
    ":authority": "x",
    ":path": INFER,
    "content-type": "application/grpc",
    "te": "trailers",
}


class Behind(grpc.GenericRpcHandler):
    """Answers every inference with the request's id, as its own work, and counts them."""

    def __init__(self):
        self.count = 0

    def service(self, details):
        if details.method != INFER:
            return None

        async def answer(payload, _):
            self.count += 1
            request = messages.ModelInferRequest.FromString(payload)
            return messages.ModelInferResponse(model_name=BEHIND, id=request.id).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


class World:
    """A guard with a lane, at `address`, before a server of grpcio's."""

    def __init__(self, folder, models, access):
        self.loop, self.behind = asyncio.new_event_loop(), Behind()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.target = f"127.0.0.1:{self.address[1]}"
        self.folder, self.sources, self.access = folder, models, access

    def run(self, making):
        return asyncio.run_coroutine_threadsafe(making, self.loop).result(30)

    async def start(self):
        turn = LoopTurn(self.loop)
        settings = ServeSettings(batch=BatchSettings(max_rows=1))
        models = {
            (name, "1"): load_model(ModelSource(name, "1", str(path)), settings, turn) for name, path in self.sources
        }
        catalog = Catalog(models, {name: "1" for name, _ in models})
        self.service = Service(catalog, self.access)
        self.server = grpc.aio.server(options=[("grpc.http2.bdp_probe", 0)])  # which would let frames grow
        self.server.add_generic_rpc_handlers([self.behind])
        self.server.add_insecure_port(f"unix:{self.folder}/s")
        await self.server.start()
        lane = GrpcLane(self.service, turn, CALLS)
        self.guard = GrpcGuard(self.listener, f"{self.folder}/s", Limits(), Receiving(1 << 30), None, lane)
        await self.guard.start()

    async def stop(self):
        await self.guard.stop()
        await self.server.stop(0)
        await asyncio.sleep(0.05)  # for connections to close
        self.service.close()

    def end(self):
        self.run(self.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@contextmanager
def world_of(folder, *models, access=None):
    made = World(folder, [(path.stem, path) for path in models], access)
    made.run(made.start())
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def world(tmp_path, tiny_onnx, slow_onnx):
    with world_of(tmp_path, tiny_onnx, slow_onnx) as made:
        yield made


def tiny_request(number, rows=1):
    request = messages.ModelInferRequest(model_name="tiny", id=str(number))
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 30])
    request.raw_input_contents.append(np.full((rows, 30), number / 100, np.float32).tobytes())
    return request.SerializeToString()


def slow_request(turns):
    request = messages.ModelInferRequest(model_name="slow", id=str(turns))
    request.inputs.add(name="turns", datatype="FP32", shape=[1, 1])
    request.raw_input_contents.append(np.float32(turns).tobytes())
    return request.SerializeToString()


def check(payload, number, reference, rows=1):
    """Returns whether the lane answered."""
    answer = messages.ModelInferResponse.FromString(payload)
    assert answer.id == str(number)
    if answer.model_name == BEHIND:
        return False
    scores = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(rows, -1)
    np.testing.assert_allclose(scores, reference(np.full((rows, 30), number / 100)), rtol=1e-4)
    return True


# With clients of grpcio's


@pytest.mark.parametrize(
    "options", [{}, {"timeout": 20}, {"metadata": (("authorization", "Bearer x"), ("x-one", "1"))}]
)
def test_a_client_that_asks_again_and_again_is_answered_by_the_lane(world, reference, options):
    with grpc.insecure_channel(world.target) as channel:
        infer = channel.unary_unary(INFER)
        ways = [check(infer(tiny_request(number), **options), number, reference) for number in range(40)]
    assert not ways[0]
    assert ways.count(False) == world.behind.count
    assert ways.count(True) >= 30


def test_tritonclient_is_answered_by_the_lane(world, reference):
    with triton.InferenceServerClient(world.target) as client:
        rows = np.linspace(-1, 1, 30, dtype=np.float32).reshape(1, 30)
        tensor = triton.InferInput("x", rows.shape, "FP32")
        tensor.set_data_from_numpy(rows)
        answers = [client.infer("tiny", [tensor], client_timeout=20).get_response() for _ in range(20)]
    assert [answer.model_name for answer in answers].count("tiny") >= 10  # now and then its deadline is told anew


def test_calls_of_both_ways_beside_each_other_on_one_connection(world, reference):
    """Small ones, and those of several frames, whose answers the server behind gives."""
    with grpc.insecure_channel(world.target) as channel, ThreadPoolExecutor(16) as pool:
        infer = channel.unary_unary(INFER)

        def ask(number):
            rows = 600 if number % 7 == 0 else 1
            return check(infer(tiny_request(number, rows), timeout=30), number, reference, rows), rows

        ways = list(pool.map(ask, range(1000)))
    assert not any(lane for lane, rows in ways if rows > 1)
    assert sum(lane for lane, _ in ways) > 200


def test_errors_of_the_lane_are_statuses_and_the_connection_goes_on(world, reference):
    with grpc.insecure_channel(world.target) as channel:
        infer = channel.unary_unary(INFER)
        for number in range(5):
            infer(tiny_request(number))
        wrong = messages.ModelInferRequest(model_name="no such ü", id="1").SerializeToString()
        for payload, code, words in (
            (wrong, grpc.StatusCode.NOT_FOUND, "unknown model: 'no such ü'"),
            (b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, ""),
            (b"", grpc.StatusCode.NOT_FOUND, "unknown model"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                infer(payload)
            assert caught.value.code() is code
            assert words in caught.value.details()
        assert check(infer(tiny_request(9)), 9, reference)


def test_a_key_is_looked_at_with_every_call(tmp_path, tiny_onnx, reference):
    key = Key("k", digest(SECRET.encode()), frozenset({"infer"}))
    with world_of(tmp_path, tiny_onnx, access=Access([key])) as world, grpc.insecure_channel(world.target) as channel:
        infer = channel.unary_unary(INFER)
        right, wrong = ((("authorization", f"Bearer {secret}"),) for secret in (SECRET, "another"))
        for number in range(5):
            infer(tiny_request(number), metadata=right)
        for number in range(5):
            with suppress(grpc.RpcError):  # the first ones go behind, where nobody asks
                infer(tiny_request(number), metadata=wrong)
        count = world.behind.count
        assert check(infer(tiny_request(7), metadata=right), 7, reference)
        for metadata in (wrong, wrong):
            with pytest.raises(grpc.RpcError) as caught:
                infer(tiny_request(7), metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert world.behind.count == count


# With one that says frame by frame what it does


class Raw:
    """A client whose headers the lane knows, by three calls before."""

    def __init__(self, connection, **fields):
        self.connection, self.encoder, self.splitter = connection, Encoder(), http2.FrameSplitter()
        self.fields = {**FIELDS, **fields}
        self.stream, self.frames = -1, []
        connection.sendall(http2.greeting())
        for number in range(3):
            self.read_to_the_end_of(self.ask(tiny_request(number)))
        for _ in range(3):  # the warm-up of this model is short; now it is known to need a thread of its own
            self.read_to_the_end_of(self.ask(slow_request(20)))

    def written(self, payload):
        """The bytes of the next call."""
        self.stream += 2
        message = b"\0" + len(payload).to_bytes(4) + payload
        block = self.encoder.encode(list(self.fields.items()))
        head = http2.frame(http2.HEADERS, http2.END_HEADERS, self.stream, block)
        return head + http2.frame(http2.DATA, http2.END_STREAM, self.stream, message)

    def ask(self, payload):
        self.connection.sendall(self.written(payload))
        return self.stream

    def read_to_the_end_of(self, stream):
        """The last headers of the stream."""
        while True:
            for kind, flags, each, payload in self.frames:
                if each == stream and kind == http2.HEADERS and flags & http2.END_STREAM:
                    return payload
            piece = self.connection.recv(65_536)
            assert piece, "the connection was closed"
            self.frames += self.splitter.split(piece)


@contextmanager
def connected(world):
    with socket.create_connection(world.address, timeout=20) as connection:
        yield connection


def test_a_call_that_runs_when_its_time_is_over_is_told_so_at_once(world):
    with connected(world) as connection:
        client = Raw(connection, **{"grpc-timeout": "300m"})
        began_s = time.monotonic()
        ending = client.read_to_the_end_of(client.ask(slow_request(3000)))
        assert 0.2 < time.monotonic() - began_s < 1.5
        assert b"grpc-status\x01" + DEADLINE_EXCEEDED.encode() in ending
        assert world.behind.count <= 2


def idle(world):
    return world.service.find("slow").idle


def test_a_call_that_is_given_up_while_it_waits_never_runs(world, until):
    batcher = world.service.find("slow").batcher
    with connected(world) as connection:
        client = Raw(connection)
        running = client.ask(slow_request(1500))
        until(lambda: batcher._running)
        waiting = [client.ask(slow_request(1)) for _ in range(5)]
        until(lambda: batcher.waiting_rows == 5)
        for stream in waiting[1:]:
            connection.sendall(http2.reset(stream, 8))
        until(lambda: batcher.waiting_rows == 1)
        for stream in (running, waiting[0]):
            client.read_to_the_end_of(stream)
        assert not [each for _, _, each, _ in client.frames if each in waiting[1:]]


def test_a_call_that_is_given_up_in_the_same_breath_never_runs(world):
    batcher, ran = world.service.find("slow").batcher, []
    with connected(world) as connection:
        client = Raw(connection)
        count, content = world.behind.count, b""
        for _ in range(5):
            content += client.written(slow_request(50)) + http2.reset(client.stream, 8)
        last = client.written(tiny_request(1))
        submit, batcher.submit = batcher.submit, ran.append
        try:
            connection.sendall(content + last)
            client.read_to_the_end_of(client.stream)
        finally:
            batcher.submit = submit
    assert not ran
    assert world.behind.count == count


def test_what_waits_for_a_client_that_goes_away_never_runs(world, until):
    batcher = world.service.find("slow").batcher
    with connected(world) as connection:
        client = Raw(connection)
        client.ask(slow_request(6000))
        until(lambda: batcher._running)
        client.ask(slow_request(1))
        until(lambda: batcher.waiting_rows == 1)
    until(lambda: not batcher.waiting_rows)
    assert batcher._running
    until(lambda: idle(world) and not world.guard.connections)


def test_what_is_not_answered_when_the_server_stops_is_told_so(world, until):
    with connected(world) as connection:
        client = Raw(connection)
        stream = client.ask(slow_request(1500))
        until(lambda: any(each._calls.open for each in world.guard.connections))
        world.loop.call_soon_threadsafe(world.guard.abandon)
        ending = client.read_to_the_end_of(stream)
        assert b"grpc-status\x02" + UNAVAILABLE.encode() in ending
        until(lambda: idle(world))


def test_nobody_is_answered_before_the_server_behind_has_said_its_first_word(world):
    """A client that sends more than one call at once, before it has heard anything."""
    with connected(world) as connection:
        encoder, content = Encoder(), http2.greeting()
        for number in range(20):
            block = encoder.encode(list(FIELDS.items()))
            payload = tiny_request(number)
            message = b"\0" + len(payload).to_bytes(4) + payload
            content += http2.frame(http2.HEADERS, http2.END_HEADERS, 2 * number + 1, block)
            content += http2.frame(http2.DATA, http2.END_STREAM, 2 * number + 1, message)
        connection.sendall(content)
        splitter, found = http2.FrameSplitter(), []
        while len([1 for kind, flags, *_ in found if kind == http2.HEADERS and flags & http2.END_STREAM]) < 20:
            found += splitter.split(connection.recv(65_536))
        assert found[0][0] == http2.SETTINGS


def test_the_window_of_a_connection_whose_calls_the_lane_answers_is_filled_up(world):
    with connected(world) as connection:
        client = Raw(connection)
        sent_bytes = 0
        for number in range(500):
            payload = tiny_request(number)
            client.read_to_the_end_of(client.ask(payload))
            sent_bytes += len(payload) + 5
            client.frames = [each for each in client.frames if each[0] == http2.WINDOW_UPDATE]
        granted = sum(int.from_bytes(payload) for _, _, stream, payload in client.frames if stream == 0)
        assert sent_bytes > http2.WINDOW_BYTES
        assert granted >= sent_bytes - http2.WINDOW_BYTES // 2


def test_a_window_that_comes_right_behind_its_call_counts(world):
    with connected(world) as connection:
        client = Raw(connection)
        connection.sendall(http2.frame(http2.SETTINGS, 0, 0, (4).to_bytes(2) + bytes(4)))  # none, unless it is told so
        for went_on in (True, False):
            count = world.behind.count
            content = client.written(tiny_request(1))
            connection.sendall(content + http2.frame(http2.WINDOW_UPDATE, 0, client.stream, (9000).to_bytes(4)))
            client.read_to_the_end_of(client.stream)
            assert (world.behind.count > count) is went_on  # the first one, for its settings may mean another table


def test_the_server_behind_keeps_no_table_of_headers(tiny_server):
    """For frames of different streams may overtake one another behind it."""
    with socket.create_connection(("127.0.0.1", tiny_server.grpc_port), timeout=20) as connection:
        encoder, splitter, decoder, statuses = Encoder(), http2.FrameSplitter(), Decoder(), []
        connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
        for number, model in enumerate(["tiny", "no such model", "tiny", "tiny"]):
            fields = {**FIELDS, "x-one": str(number)}  # always new: no lane
            block = encoder.encode(list(fields.items()))
            payload = tiny_request(number) if model == "tiny" else b"\x0a\x01y"
            message = b"\0" + len(payload).to_bytes(4) + payload
            stream = 2 * number + 1
            content = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)
            connection.sendall(content + http2.frame(http2.DATA, http2.END_STREAM, stream, message))
            ended = False
            while not ended:
                for kind, flags, each, payload in splitter.split(connection.recv(65_536)):
                    if kind == http2.HEADERS:
                        fields = dict(decoder.decode(payload))
                        ended = bool(flags & http2.END_STREAM) and each == stream
                        statuses += [fields["grpc-status"]] if ended else []
        assert statuses == ["0", "5", "0", "0"]
        assert not decoder.header_table.dynamic_entries
        assert decoder.header_table_size == 0
