import socket
import subprocess
import sys
import time
from pathlib import Path

import gevent
import psutil
import pytest
from gevent.event import Event

from mlserve.bench.clients.client import Request
from mlserve.bench.generator.generator import open_client
from mlserve.bench.generator.job import Address, Job
from mlserve.bench.null_server.opening import open_null_server
from mlserve.errors import BenchError
from mlserve.runs.load import Plan

ADDRESSES = {
    "http": Address("http", "far.invalid", 1, "/v2/models/tiny/infer"),
    "grpc": Address("grpc", "far.invalid", 1, "/inference.GRPCInferenceService/ModelInfer"),
}
PARENT = """
import sys, time
from mlserve.bench.generator.job import Address
from mlserve.bench.null_server.opening import open_null_server
with open_null_server(Address("http", "", 1, "/"), b"") as address:
    print(address.port, flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["http", "grpc"])
def address(request):
    return ADDRESSES[request.param]


@pytest.fixture
def answers():
    """What requests to an address are answered, all sent at once: {(status, content)}."""

    def ask(address, *bodies, times=1):
        plan = Plan(rate_per_s=1, duration_s=1, warm_up_s=0)
        requests = tuple(Request(body) for body in bodies)
        job = Job(plan=plan, name="", address=address, requests=requests, order=(0,), directory="")
        client, replies, over = open_client(address, job), [], Event()
        for number in range(len(bodies) * times):
            client.send(number % len(bodies), lambda reply: (replies.append(reply), over.set()))
        with gevent.Timeout(20):
            while len(replies) < len(bodies) * times:
                over.clear()
                over.wait()
        client.close()
        return {(reply.status, reply.content) for reply in replies}

    return ask


@pytest.mark.parametrize("answer", [b"the answer", b"", bytes(1_000_000)])
def test_every_request_is_answered_with_the_same_bytes(address, answers, answer):
    with open_null_server(address, answer) as found:
        assert (found.transport, found.path, found.host) == (address.transport, address.path, "127.0.0.1")
        assert answers(found, b"", b"x" * 1000, times=20) == {("ok", answer)}


def test_large_requests_are_taken(address, answers):
    with open_null_server(address, b"answer") as found:
        assert answers(found, bytes(20_000_000), b"small") == {("ok", b"answer")}


def test_it_ends_with_the_block_and_at_once(address, answers):
    before = {child.pid for child in psutil.Process().children()}
    with open_null_server(address, b"answer") as found:
        (server,) = [child for child in psutil.Process().children() if child.pid not in before]
        assert server.is_running()
    assert not server.is_running()
    assert answers(found, b"x") == {("connection refused", b"")}


def test_it_is_held_to_the_cores_it_is_given(address):
    before = {child.pid for child in psutil.Process().children()}
    cpus = psutil.Process().cpu_affinity()
    with open_null_server(address, b"answer", cpus[:1]):
        (server,) = [child for child in psutil.Process().children() if child.pid not in before]
        assert server.cpu_affinity() == cpus[:1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child outlives a parent that is killed")
def test_it_ends_when_its_parent_is_killed(until_refused):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    with parent:
        port = int(parent.stdout.readline())
        socket.create_connection(("127.0.0.1", port)).close()
        parent.kill()
    until_refused(port)


@pytest.fixture
def until_refused():
    def wait(port):
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                return
            time.sleep(0.01)
        raise AssertionError("it still listens")

    return wait


def test_requests_that_come_together_are_all_answered_and_what_is_no_request_is_turned_away():
    with open_null_server(ADDRESSES["http"], b"hi") as found:
        request = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc"
        with socket.create_connection((found.host, found.port), timeout=10) as connection:
            connection.sendall(request * 3)
            connection.sendall(request[:-1])
            said = b""
            while said.count(b"\r\n\r\nhi") < 3:
                said += connection.recv(65536)
            assert said.count(b"HTTP/1.1 200 OK\r\n") == 3
            connection.sendall(b"c")
            assert connection.recv(65536).endswith(b"\r\n\r\nhi")
            connection.sendall(b"hello there\r\n\r\n")
            assert connection.recv(65536) == b""


def test_grpcio_serves_where_the_native_front_is_missing(answers):
    code = (
        "import sys; sys.modules['pygrpc_native'] = None\n"
        "from mlserve.bench.null_server.grpc import serve_grpc\n"
        "serve_grpc(sys.argv[1], b'by grpcio', lambda port: print(port, flush=True))"
    )
    path = ADDRESSES["grpc"].path
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        port = int(process.stdout.readline())
        assert answers(Address("grpc", "127.0.0.1", port, path), b"", bytes(5_000_000)) == {("ok", b"by grpcio")}
        process.kill()


def test_a_server_that_cannot_start_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(_broken_python(tmp_path)))
    with (
        pytest.raises(BenchError, match="the null server did not start: it is broken"),
        open_null_server(ADDRESSES["http"], b""),
    ):
        pass


def _broken_python(folder: Path) -> Path:
    path = folder / "python"
    path.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    path.chmod(0o755)
    return path
