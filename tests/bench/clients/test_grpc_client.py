"""The client against real servers: grpcio's, grpc.aio, and our own, whose gRPC is pygrpc-native."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import gevent
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from mlserve.bench.clients.client import Request
from mlserve.bench.clients.grpc import GrpcClient
from mlserve.tuning.serving import ServerOptions, serving
from mlserve.wire import messages

LARGE = 20_000_000
GRPC_AIO = """
import asyncio
from mlserve.bench.null_server.grpc import serve_by_grpcio
asyncio.run(serve_by_grpcio("/t.T/any", b"by aio", lambda port: print(port, flush=True)))
"""


class GrpcioServer:
    """grpcio's own, with a method for each thing that may come of a call."""

    def __init__(self, **options):
        self.given_up = threading.Event()
        self._threads = ThreadPoolExecutor(8)
        options = {"max_receive_message_length": -1, "so_reuseport": 0} | options
        self._server = grpc.server(self._threads, options=[(f"grpc.{name}", value) for name, value in options.items()])
        methods = {
            name: grpc.unary_unary_rpc_method_handler(getattr(self, name))
            for name in ("echo", "metadata", "fail", "wait", "pack")
        }
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", methods)])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def echo(self, body, context):
        context.set_trailing_metadata((("server-timing", "queue;dur=0.100, compute;dur=2"),))
        return body

    def metadata(self, body, context):
        found = dict(context.invocation_metadata())
        return f"{found['x-who']} {context.time_remaining() <= 5}".encode()

    def fail(self, body, context):
        context.abort(grpc.StatusCode[body.decode()], "as asked")

    def wait(self, body, context):
        context.add_callback(lambda: context.is_active() or self.given_up.set())
        time.sleep(float(body))
        return body

    def pack(self, body, context):
        context.set_compression(grpc.Compression.Gzip)
        return body * 1000

    def stop(self):
        self._server.stop(0).wait()
        self._threads.shutdown()


@pytest.fixture(scope="module")
def server():
    made = GrpcioServer()
    yield made
    made.stop()


@pytest.fixture
def connect():
    clients = []

    def to(server, method, *requests, timeout_s=5.0) -> GrpcClient:
        port = server if isinstance(server, int) else server.port
        made = [request if isinstance(request, Request) else Request(request) for request in requests]
        clients.append(GrpcClient("127.0.0.1", port, f"/t.T/{method}", made, timeout_s))
        return clients[-1]

    yield to
    for client in clients:
        client.close()


@pytest.fixture
def offer(ask):
    """Sends request 0 `count` times, one every `gap_s`; how often each status came back."""

    def at_a_rate(client, count, gap_s=0.0005, meanwhile=lambda _: None):
        statuses = []
        for number in range(count):
            client.send(0, lambda reply: statuses.append(reply.status))
            meanwhile(number)
            gevent.sleep(gap_s)
        deadline_s = time.monotonic() + 10
        while len(statuses) < count and time.monotonic() < deadline_s:
            gevent.sleep(0.005)
        gevent.sleep(0.02)
        assert len(statuses) == count
        return Counter(statuses)

    return at_a_rate


def test_an_answer_is_the_servers_message_with_its_instant_and_timing(server, connect, ask):
    before_ns = time.monotonic_ns()
    replies = ask(connect(server, "echo", b"one", b"", b"three"), 0, 1, 2)
    assert [reply.content for reply in replies] == [b"one", b"", b"three"]
    for reply in replies:
        assert (reply.status, reply.timing) == ("ok", "queue;dur=0.100, compute;dur=2")
        assert before_ns <= reply.first_byte_ns <= time.monotonic_ns()


def test_metadata_and_deadline_reach_the_server(server, connect, ask):
    client = connect(server, "metadata", Request(b"", (("X-Who", "me"),)), Request(b"", (("x-who", "you"),)))
    assert [reply.content for reply in ask(client, 0, 1, 0)] == [b"me True", b"you True", b"me True"]


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_a_status_is_told_by_its_name(server, connect, ask, code):
    assert ask(connect(server, "fail", code.encode()), 0)[0][:2] == (code, b"")


def test_a_method_that_is_not_there_is_unimplemented(server, connect, ask):
    assert ask(connect(server, "none", b""), 0)[0].status == "UNIMPLEMENTED"


def test_a_packed_answer_is_unpacked(server, connect, ask):
    assert ask(connect(server, "pack", b"again"), 0)[0][:2] == ("ok", b"again" * 1000)


def test_a_request_out_of_time_is_given_up_here_and_at_the_server(server, connect, ask):
    client = connect(server, "wait", b"0.3", b"0", timeout_s=0.1)
    began_s = time.monotonic()
    assert ask(client, 0)[0].status == "DEADLINE_EXCEEDED"
    assert time.monotonic() - began_s >= 0.1
    assert server.given_up.wait(5)
    assert ask(client, 1)[0][:2] == ("ok", b"0")


def test_large_messages_go_both_ways_and_small_ones_beside_them(server, connect, ask):
    bodies = [bytes([number]) * LARGE for number in (1, 2)]
    replies = ask(connect(server, "echo", *bodies, b"small"), 2, 0, 2, 1, 2)
    assert [reply.status for reply in replies] == ["ok"] * 5
    assert [reply.content for reply in replies] == [b"small", bodies[0], b"small", bodies[1], b"small"]


def test_a_server_that_takes_few_requests_at_once_gets_more_connections(connect, ask):
    # Its protection from overload refuses some at random below the limit, too, and twice in a row is a failed call.
    server = GrpcioServer(max_concurrent_streams=2, **{"http.overload_protection": 0})
    assert {reply.status for reply in ask(connect(server, "wait", b"0.01"), *[0] * 60)} == {"ok"}
    server.stop()


def test_connections_that_the_server_ends_for_their_age_cost_no_request(connect, offer):
    server = GrpcioServer(max_connection_age_ms=60, max_connection_age_grace_ms=1000)
    assert offer(connect(server, "echo", b"x"), 500) == {"ok": 500}
    server.stop()


def test_a_server_that_is_killed_ends_what_it_had_and_what_comes_later(connect, offer):
    process = subprocess.Popen([sys.executable, "-c", GRPC_AIO], stdout=subprocess.PIPE)
    with process:
        client = connect(int(process.stdout.readline()), "any", b"x")
        before = offer(client, 50)
        during = offer(client, 200, meanwhile=lambda number: number == 60 and os.kill(process.pid, signal.SIGKILL))
    assert before == {"ok": 50}
    assert set(during) <= {"ok", "connection closed", "connection refused"}
    assert during["ok"] > 0
    assert during["connection refused"] > 0


def test_a_server_that_is_not_there_refuses_and_may_come_later(connect, ask, unused_port):
    client = connect(unused_port, "echo", b"x")
    assert [reply.status for reply in ask(client, 0, 0)] == ["connection refused"] * 2
    server = GrpcioServer()
    late = connect(server, "echo", b"x")
    assert ask(late, 0)[0].status == "ok"
    server.stop()
    assert ask(late, 0)[0].status in {"connection refused", "connection closed"}


def test_a_host_that_nobody_knows_is_named(ask):
    client = GrpcClient("nobody.invalid", 1, "/t.T/echo", [Request(b"")], 5.0)
    assert [reply.status for reply in ask(client, 0, 0)] == ["unknown host"] * 2
    client.close()


def test_answers_of_our_own_server_are_those_of_tritons_client(tiny_onnx, tmp_path, ask):
    rows = np.linspace(-1, 1, 60, dtype=np.float32).reshape(2, 30)
    request = messages.ModelInferRequest(model_name="tiny", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    request.raw_input_contents.append(rows.tobytes())
    request.parameters["timing"].bool_param = True
    with serving(str(tiny_onnx), tmp_path, ServerOptions()) as served:
        host, _, port = served.grpc.removeprefix("grpc://").rpartition(":")
        other = messages.ModelInferRequest(model_name="none").SerializeToString()
        requests = [Request(request.SerializeToString()), Request(other)]
        client = GrpcClient(host, int(port), f"/{messages.SERVICE}/ModelInfer", requests, 5.0)
        replies = ask(client, *[0] * 100, 1)
        client.close()
        with triton.InferenceServerClient(f"{host}:{port}") as theirs:
            tensor = triton.InferInput("x", rows.shape, "FP32")
            tensor.set_data_from_numpy(rows)
            expected = theirs.infer("tiny", [tensor], request_id="7").get_response()
    assert [reply.status for reply in replies] == ["ok"] * 100 + ["NOT_FOUND"]
    for reply in replies[:100]:
        answer = messages.ModelInferResponse.FromString(reply.content)
        assert (answer.model_name, answer.id) == ("tiny", "7")
        # Rows that ran together may differ in a last bit.
        scores = [np.frombuffer(each.raw_output_contents[0], np.float32) for each in (answer, expected)]
        np.testing.assert_allclose(*scores, rtol=1e-5)
        assert "compute;dur=" in reply.timing
