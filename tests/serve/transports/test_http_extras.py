"""What a request may ask for beyond its answer, in both lanes: packed bodies, deadlines, where time went, its id."""

import gzip
import json
import re
import select
import signal
import socket
import struct
import time
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from mlserve.serve.settings import BatchSettings, Limits

ROW = np.linspace(-1, 1, 30, dtype=np.float32)
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [float(value) for value in ROW]}]}
).encode()
LIMIT_BYTES = 4 << 20
LANES = ["/v2/models/tiny/infer", "/v2/models/tiny/infer?lane=slow"]
PACKERS = {"gzip": gzip.compress, "deflate": zlib.compress}
TIME = r"dur=\d+\.\d{3}"
FINER = f"(, parse;{TIME}, wait;{TIME}, encode;{TIME})?"
SPLIT = re.compile(rf'queue;{TIME}, compute;{TIME}{FINER}, batch;desc="(?P<rows>\d+) rows?"')


@pytest.fixture(scope="module")
def server(serving_settings, tiny_onnx, slow_onnx):
    limits = Limits(max_request_bytes=LIMIT_BYTES)
    with serving_settings(tiny_onnx, slow_onnx, limits=limits, batch=BatchSettings(max_rows=1)) as made:
        for _ in range(3):  # its warm-up is short; now it is known to need a thread of its own
            made.infer("slow", {"turns": ("FP32", [[100.0]])})
        yield made


@pytest.fixture
def still_right(server, reference):
    """After the test the plain request is still answered rightly: the negative control of every bad one."""
    yield
    status, _, body = server.request("POST", LANES[0], BODY)
    assert status == 200
    check(body, reference)


def check(body, reference):
    np.testing.assert_allclose(json.loads(body)["outputs"][0]["data"], reference([ROW])[0], rtol=1e-5)


def padded(size_bytes):
    """The request, with so many bytes of JSON's own white space behind it."""
    return BODY + b" " * (size_bytes - len(BODY))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("coding", PACKERS)
@pytest.mark.parametrize("size_bytes", [len(BODY), 2 << 20, LIMIT_BYTES])
def test_a_packed_body_means_what_it_holds(server, reference, lane, coding, size_bytes):
    packed = PACKERS[coding](padded(size_bytes))
    status, _, body = server.request("POST", lane, packed, {"content-encoding": coding})
    assert status == 200, body
    check(body, reference)


@pytest.mark.parametrize("lane", [*LANES, "/v1/predict"])
@pytest.mark.parametrize(
    ("packed", "coding", "status"),
    [
        (gzip.compress(padded(LIMIT_BYTES + 1)), "gzip", 413),
        (gzip.compress(b" " * (256 << 20)), "gzip", 413),
        (zlib.compress(b" " * (64 << 20)), "deflate", 413),
        (gzip.compress(BODY)[:-4], "gzip", 400),
        (BODY, "gzip", 400),
        (BODY, "deflate", 400),
        (BODY, "br", 415),
        (gzip.compress(gzip.compress(BODY)), "gzip, gzip", 415),
    ],
)
def test_what_cannot_be_unpacked_is_refused_and_costs_little(server, still_right, lane, packed, coding, status):
    found, _, body = server.request("POST", lane, packed, {"content-encoding": coding})
    assert found == status, body
    assert json.loads(body)["error"]
    assert peak_bytes(server) < (600 << 20)


def peak_bytes(server):
    status = Path(f"/proc/{server.workers[0]}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) << 10


def test_pipelined_requests_are_answered_in_order_though_one_is_unpacked_elsewhere(server, reference):
    packed = gzip.compress(padded(LIMIT_BYTES))
    with server.connect() as connection:
        for body, coding in ((BODY, "identity"), (packed, "gzip"), (BODY, "identity")):
            head = f"POST {LANES[0]} HTTP/1.1\r\nhost: x\r\ncontent-encoding: {coding}\r\nx-request-id: {len(body)}\r\n"
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        reader = Reader(connection)
        for body in (BODY, packed, BODY):
            _, headers, answer = reader.reply()
            assert headers["x-request-id"] == str(len(body))
            check(answer, reference)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_packs_requests_and_takes_packed_replies(server, reference, coding, binary):
    client = triton.InferenceServerClient(server.http)
    rows = np.tile(ROW, (1000, 1))
    tensor = triton.InferInput("x", rows.shape, "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    answer = client.infer(
        "tiny",
        [tensor],
        outputs=[triton.InferRequestedOutput("scores", binary_data=binary)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_allclose(answer.as_numpy("scores"), reference(rows), rtol=1e-5)
    client.close()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("rows", [3, 1500, 5000])
def test_a_reply_is_packed_for_who_takes_it_so_if_it_is_long(server, reference, lane, rows):
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 30], "data": np.tile(ROW, rows).tolist()}
    request = json.dumps({"inputs": [tensor]})
    status, plain_headers, plain = server.request("POST", lane, request)
    assert status == 200
    assert "content-encoding" not in plain_headers
    status, headers, packed = server.request("POST", lane, request, {"accept-encoding": "gzip, deflate"})
    assert status == 200
    if rows == 3:
        assert "content-encoding" not in headers
        assert packed == plain
    else:
        assert (headers["content-encoding"], headers["vary"]) == ("gzip", "accept-encoding")
        assert gzip.decompress(packed) == plain
        assert len(packed) < len(plain) / 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/tiny:predict", {"instances": [ROW.tolist()]}),
        ("/v1/predict", {"model": "tiny", "rows": [ROW.tolist()]}),
        ("/predictions/tiny", [ROW.tolist()]),
    ],
)
def test_other_dialects_take_packed_bodies(server, path, body):
    request = json.dumps(body).encode()
    status, _, plain = server.request("POST", path, request)
    assert status == 200, plain
    for _ in range(2):  # the first may teach the fast lane its path
        status, _, answer = server.request("POST", path, gzip.compress(request), {"content-encoding": "gzip"})
        assert (status, answer) == (200, plain)


def test_pages_are_packed_too(server):
    status, headers, body = server.request("GET", "/openapi.json", None, {"accept-encoding": "deflate"})
    assert (status, headers["content-encoding"]) == (200, "deflate")
    assert json.loads(zlib.decompress(body))["openapi"]


@pytest.mark.parametrize("lane", LANES)
def test_where_the_time_went_is_told_to_who_asks(server, lane):
    _, headers, _ = server.request("POST", lane, BODY, {"mlserve-timing": "1"})
    split = SPLIT.fullmatch(headers["server-timing"])
    assert split["rows"] == "1"
    assert bool(split[1]) == (lane == LANES[0])  # the slow lane knows no more than queue and compute
    wished = json.dumps({**json.loads(BODY), "parameters": {"timing": True}})
    _, headers, _ = server.request("POST", lane, wished)
    assert SPLIT.fullmatch(headers["server-timing"])
    _, headers, _ = server.request("POST", lane, BODY)
    assert "server-timing" not in headers


def test_pages_that_infer_tell_it_too(server):
    rows = {"model": "tiny", "rows": [ROW.tolist()] * 3}
    status, headers, body = server.request("POST", "/v1/predict", json.dumps(rows), {"mlserve-timing": "1"})
    assert status == 200, body
    assert SPLIT.fullmatch(headers["server-timing"])["rows"] == "3"


@pytest.mark.parametrize("lane", [*LANES, "/v1/predict"])
def test_a_request_s_id_comes_back_unless_it_is_a_book(server, lane):
    for identity, echoed in (("one-two", "one-two"), ("x" * 128, "x" * 128), ("x" * 129, None)):
        _, headers, _ = server.request("POST", lane, BODY, {"x-request-id": identity})
        assert headers.get("x-request-id") == echoed
    _, headers, _ = server.request("POST", lane, b"{", {"x-request-id": "wrong"})
    assert headers.get("x-request-id", "wrong") == "wrong"


# Waiting


class Reader:
    """Reads replies off a connection, one after the other."""

    def __init__(self, connection):
        self.file = connection.makefile("rb")

    def reply(self):
        """`(status, headers, body)`."""
        status = int(self.file.readline().split()[1])
        headers = {}
        while (field := self.file.readline().strip()) != b"":
            name, _, value = field.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, self.file.read(int(headers["content-length"]))

    def answer(self):
        """`(status, document)`."""
        status, _, body = self.reply()
        return status, json.loads(body)


def slow_request(turns, **parameters):
    tensor = {"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [turns]}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return f"POST /v2/models/slow/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def answer_of(turns):
    output = {"name": "same", "datatype": "FP32", "shape": [1, 1], "data": [turns]}
    return 200, {"model_name": "slow", "model_version": "1", "outputs": [output]}


@contextmanager
def busy(server, until):
    """While the model computes a request for a second or so. Gives a reader of that request's connection."""
    batches = server.counted("mlserve_batches_total", model="slow")
    with server.connect() as connection:
        reader = Reader(connection)
        connection.sendall(slow_request(1.0) + slow_request(1000.0))
        assert reader.answer() == answer_of(1.0)
        until(lambda: server.counted("mlserve_batches_total", model="slow") == batches + 1)
        yield reader
        assert reader.answer() == answer_of(1000.0)


def test_a_request_past_its_deadline_is_told_while_the_model_runs(server, until):
    with server.connect() as connection:
        reader = Reader(connection)
        with busy(server, until):
            batches = server.counted("mlserve_batches_total", model="slow")
            connection.sendall(slow_request(2.0, timeout=50_000))
            status, document = reader.answer()
            assert status == 504
            assert "Request timeout expired" in document["error"]
            assert server.counted("mlserve_batches_total", model="slow") == batches  # it still runs
        connection.sendall(slow_request(3.0, timeout=30_000_000))
        assert reader.answer() == answer_of(3.0)


def test_the_more_urgent_request_is_answered_first(server, until):
    with ExitStack() as stack:
        connections = {number: stack.enter_context(server.connect()) for number in (3, 0, 1)}
        with busy(server, until):
            for priority, connection in connections.items():
                connection.sendall(slow_request(100.0, priority=priority))
                time.sleep(0.02)
        answered = []
        while waiting := [each for each in connections.values() if each not in answered]:
            answered += select.select(waiting, [], [], 30)[0]
        assert answered == [connections[priority] for priority in (1, 0, 3)]


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_went_away_costs_no_run(server, until, reset):
    with busy(server, until):
        batches = server.counted("mlserve_batches_total", model="slow")
        for _ in range(20):
            gone = server.connect()
            gone.sendall(slow_request(5.0))
            time.sleep(0.005)
            if reset:
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            gone.close()
        with server.connect() as last:
            last.sendall(slow_request(6.0))
            assert Reader(last).answer() == answer_of(6.0)
    until(lambda: server.counted("mlserve_batches_total", model="slow") == batches + 2)


def graphql_request(turns):
    query = f'{{ a: predict(model: "slow", rows: [[{turns}]]) {{ predictions }} }}'
    body = json.dumps({"query": query}).encode()
    head = f"POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_a_client_of_graphql_that_went_away_costs_no_run(server, until):
    pytest.importorskip("graphql")
    with server.connect() as connection:
        reader = Reader(connection)
        connection.sendall(graphql_request(2.0))  # the library is imported
        assert reader.answer() == (200, {"data": {"a": {"predictions": [[2.0]]}}})
        with busy(server, until):
            batches = server.counted("mlserve_batches_total", model="slow")
            for _ in range(10):
                with server.connect() as gone:
                    gone.sendall(graphql_request(5.0))
                    time.sleep(0.02)
            connection.sendall(graphql_request(6.0))
            assert reader.answer() == (200, {"data": {"a": {"predictions": [[6.0]]}}})
        until(lambda: server.counted("mlserve_batches_total", model="slow") == batches + 2)


def test_a_client_that_closes_its_half_is_told_that_its_queued_request_is_dropped(server, until):
    with busy(server, until), server.connect() as connection:
        connection.sendall(slow_request(5.0))
        time.sleep(0.02)
        connection.shutdown(socket.SHUT_WR)
        status, document = Reader(connection).answer()
        assert status == 503
        assert "keep it open" in document["error"]


def test_a_draining_server_answers_what_is_unpacked_elsewhere(serving_settings, tiny_onnx, reference):
    packed = gzip.compress(padded(32 << 20))
    with serving_settings(tiny_onnx) as draining, draining.connect() as connection:
        head = f"POST {LANES[0]} HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n"
        connection.sendall(head.encode() + packed)
        time.sleep(0.03)
        draining.process.send_signal(signal.SIGTERM)
        status, _, body = Reader(connection).reply()
        assert status in (200, 503)
        if status == 200:
            check(body, reference)
