import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.clients.client import Reply
from mlserve.bench.clients.grpc import model_version as grpc_version
from mlserve.bench.clients.rest import RestClient
from mlserve.bench.clients.rest import model_version as rest_version
from mlserve.bench.target import parse_target
from mlserve.wire.messages import ModelInferResponse

HEADERS = {"content-type": "application/json"}


@pytest.fixture
def send():
    """Sends one body to a server's URL (several, one after the other, with `times`); the last reply."""
    clients = []

    def once(url, timeout_s=5.0, times=1) -> Reply:
        client = RestClient(parse_target(url, "slow"), HEADERS, 4, timeout_s)
        clients.append(client)
        return [client.send(b'{"inputs":[]}') for _ in range(times)][-1]

    yield once
    for client in clients:
        client.close()


def test_a_good_answer_tells_its_version_and_when_it_began(slow_server, send):
    server = slow_server()
    before_ns = time.monotonic_ns()
    reply = send(server.url)
    assert (reply.status, reply.version) == ("ok", "7")
    assert before_ns <= reply.first_byte_ns <= time.monotonic_ns()
    assert server.bodies == [b'{"inputs":[]}']


def test_connections_are_kept_and_used_again(slow_server, send):
    server = slow_server()
    assert send(server.url, times=20).status == "ok"
    assert server.answered == 20


def test_an_http_error_is_named_by_its_status(slow_server, send):
    reply = send(slow_server(status=503).url)
    assert (reply.status, reply.version) == ("HTTP 503", "")


def test_a_server_that_is_too_slow_is_a_timeout(slow_server, send):
    assert send(slow_server(delay_s=0.5).url, timeout_s=0.05) == Reply("timeout", "", None)


def test_a_timeout_does_not_cost_later_requests_their_connection(slow_server, send):
    server = slow_server(delay_s=0.5)
    assert send(server.url, timeout_s=0.02, times=12).status == "timeout"  # three times as many as may be in flight
    server.delay_s = 0.0
    assert send(server.url).status == "ok"


def test_a_connection_that_ends_within_the_body_is_a_failure(slow_server, send):
    assert send(slow_server(cut=True).url).status == "connection closed"


def test_a_refused_connection_is_named(send):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert send(f"http://127.0.0.1:{port}") == Reply("connection refused", "", None)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"hello there, this is no HTTP\r\n\r\n"])
def test_a_server_of_another_kind_is_a_failure(said, send):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        assert send(f"http://127.0.0.1:{listener.getsockname()[1]}").status == "connection closed"
        thread.join()


@given(name=st.text(max_size=200), version=st.text(min_size=1, max_size=20), body=st.binary(max_size=50))
def test_the_version_of_a_grpc_answer_is_the_one_protobuf_reads(name, version, body):
    answer = ModelInferResponse(
        model_name=name, model_version=version, outputs=[{"name": "y"}], raw_output_contents=[body]
    )
    short = 0 < len(name.encode()) < 128
    assert grpc_version(answer.SerializeToString()) == (version if short or not name else "")


@given(st.binary(max_size=300))
def test_the_version_of_any_bytes_is_text(answer):
    assert isinstance(grpc_version(answer), str)
    assert isinstance(rest_version(answer), str)


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (b'{"model_name":"m","model_version":"12","outputs":[]}', "12"),
        (b'{"model_name":"m","outputs":[]}', ""),
        (b'{"outputs":[' + b"1," * 300 + b'],"model_version":"1"}', ""),
        (b"", ""),
    ],
)
def test_the_version_of_a_rest_answer_is_read_from_its_beginning(answer, version):
    assert rest_version(answer) == version
