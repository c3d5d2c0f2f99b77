"""A client that asks on and on without waiting for answers is not read on and on."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

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
