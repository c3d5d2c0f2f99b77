"""A client that asks on and on without waiting for answers is not read on and on."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from mlserve.serve.settings import Limits
from mlserve.serve.transports.http_replying import MOST_UNANSWERED

ASKED, PADDING_BYTES, TURNS = 300, 16_000, 3.0


@pytest.fixture(scope="module")
def slow_server(serving_settings, slow_onnx):
    with serving_settings(slow_onnx) as server:
        yield server


def request():
    inputs = [{"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [TURNS]}]
    body = json.dumps({"inputs": inputs, "parameters": {"padding": "x" * PADDING_BYTES}})
    return f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: here\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


def test_it_is_read_no_further_and_then_all_is_answered(slow_server):
    with slow_server.connect() as connection, ThreadPoolExecutor(1) as threads:
        sending = threads.submit(connection.sendall, request() * ASKED)
        waiting, received = [], b""
        while received.count(b"HTTP/1.1 200") < ASKED:
            received += connection.recv(1 << 20)
            waiting.append(slow_server.counted("mlserve_waiting_rows"))
        sending.result()
    assert max(waiting) < 3 * MOST_UNANSWERED


# Pages: what the application answers, which reads on by itself


KEEP_ALIVE_S = 1.0


@pytest.fixture(scope="module")
def impatient_server(serving_settings, tiny_onnx):
    with serving_settings(tiny_onnx, limits=Limits(keep_alive_s=KEEP_ALIVE_S)) as server:
        yield server


def page(path):
    return f"GET {path} HTTP/1.1\r\nhost: here\r\n\r\n".encode()


def everything(connection):
    """What comes until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


@pytest.mark.parametrize(("more", "closed"), [(0, False), (1, True), (150, True)])
def test_of_pages_so_many_wait_and_where_more_are_asked_for_the_last_answer_ends_it(slow_server, more, closed):
    most = MOST_UNANSWERED + 1  # the first one does not wait
    with slow_server.connect() as connection:
        connection.sendall(page("/health") * (most + more))
        received = b""
        while received.count(b"HTTP/1.1 200") < most:
            received += connection.recv(1 << 20)
        if not closed:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        received += everything(connection)
    assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 200") == (most if closed else most + 1)
    assert received.count(b"connection: close") == 1
    assert received.rfind(b"HTTP/1.1 200") < received.find(b"connection: close")


@pytest.fixture
def hungry(impatient_server):
    """A connection that has asked for more pages than fit between server and client, which it does not read."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", impatient_server.http_port))
        connection.sendall(page("/docs") * MOST_UNANSWERED)
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
        yield connection


def is_open(server, connection):
    """Whether the worker has its end of `connection`."""
    here = connection.getsockname()[1]
    return here in {each.raddr.port for each in psutil.Process(server.workers[0]).net_connections("tcp") if each.raddr}


def test_who_takes_nothing_of_its_pages_is_cut(impatient_server, hungry, until):
    until(lambda: is_open(impatient_server, hungry))
    until(lambda: not is_open(impatient_server, hungry), 10.0)


def test_who_takes_them_slowly_gets_all(hungry):
    """The control."""
    received = b""
    for _ in range(30):
        received += hungry.recv(1 << 16)
        time.sleep(KEEP_ALIVE_S / 10)
    received += everything(hungry)
    assert received.count(b"HTTP/1.1 200") == MOST_UNANSWERED + 1
