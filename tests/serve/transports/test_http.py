"""HTTP byte by byte: what the fast lane does with connections, and with senders that are slow, large or no HTTP."""

import json
import socket
import threading
from contextlib import suppress

import numpy as np
import pytest

from mlserve.serve.settings import BatchSettings, Limits

ROW = np.linspace(-1, 1, 30, dtype=np.float32)
PATH = "/v2/models/tiny/infer"


def request(row=ROW, *, method="POST", path=PATH, version="1.1", headers=(), body=None, model_input="x"):
    """The bytes of one inference request."""
    if body is None:
        tensor = {"name": model_input, "datatype": "FP32", "shape": [1, len(row)], "data": np.asarray(row).tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
    lines = [f"{method} {path} HTTP/{version}", "host: localhost", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


GET_HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Reader:
    """Reads replies off a connection, one after the other."""

    def __init__(self, connection):
        self.file = connection.makefile("rb")

    def reply(self):
        """`(status, headers, body)`; None when the server has closed the connection."""
        line = self.file.readline()
        if not line:
            return None
        headers = {}
        while (field := self.file.readline().strip()) != b"":
            name, _, value = field.decode().partition(": ")
            headers[name.lower()] = value
        return int(line.split()[1]), headers, self.file.read(int(headers.get("content-length", 0)))

    def answer(self):
        status, _, body = self.reply()
        assert status == 200, body
        return json.loads(body)["outputs"][0]["data"]

    def error(self):
        status, headers, body = self.reply()
        assert headers["content-type"] == "application/json"
        return status, json.loads(body)["error"], headers.get("connection")


@pytest.fixture
def connection(tiny_server):
    with tiny_server.connect() as made:
        yield made


@pytest.fixture
def reader(connection):
    return Reader(connection)


@pytest.fixture
def right(reference):
    """`right(reader, row)`: the next reply is onnxruntime's own answer for `row`."""

    def check(reader, row=ROW):
        np.testing.assert_allclose(reader.answer(), reference([row])[0], rtol=1e-5)

    return check


@pytest.fixture(scope="module")
def strict(serving_settings, tiny_onnx, slow_onnx):
    """A server with small limits and little patience."""
    limits = Limits(max_request_bytes=2000, max_header_bytes=1000, receive_s=1.0, keep_alive_s=2.0, drain_s=10.0)
    with serving_settings(tiny_onnx, slow_onnx, limits=limits, batch=BatchSettings(32, 0.001)) as server:
        yield server


@pytest.fixture
def strict_still_right(strict, right):
    yield
    with strict.connect() as connection:
        connection.sendall(request())
        right(Reader(connection))


# Connections


def test_a_connection_is_kept_for_the_next_request(connection, reader, right):
    for number in range(5):
        connection.sendall(request(ROW * number))
        right(reader, ROW * number)


def test_pipelined_requests_are_answered_in_order(connection, reader, right):
    connection.sendall(b"".join(request(ROW * number) for number in range(200)))
    for number in range(200):
        right(reader, ROW * number)


def test_pipelined_requests_of_both_lanes_are_answered_in_order(connection, reader, right):
    slow_path = request(ROW * 2, path=f"{PATH}?lane=slow")
    connection.sendall(GET_HEALTH + request() + GET_HEALTH + GET_HEALTH + slow_path + request(ROW * 3) + GET_HEALTH)
    assert reader.reply()[2] == b'{"live":true}'
    right(reader)
    assert reader.reply()[2] == reader.reply()[2] == b'{"live":true}'
    right(reader, ROW * 2)
    right(reader, ROW * 3)
    assert reader.reply()[2] == b'{"live":true}'


def test_a_bad_request_among_pipelined_ones_fails_alone_and_in_its_place(connection, reader, right):
    bad = request(model_input="y")
    connection.sendall(request() + bad + request(ROW * 2))
    right(reader)
    assert reader.error()[0] == 400
    right(reader, ROW * 2)


def test_a_bad_request_for_a_model_of_dynamic_shapes_keeps_the_connection(connection, reader, right):
    connection.sendall(request(path="/v2/models/echo/infer") + request())
    status, message, closing = reader.error()
    assert (status, closing) == (400, None)
    assert "unexpected input 'x' for model 'echo'" in message
    right(reader)


def test_a_body_may_come_byte_by_byte(connection, reader, right):
    for byte in request():
        connection.sendall(bytes([byte]))
    right(reader)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_chunked_body_is_put_together(connection, reader, right, size):
    head, _, body = request().partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    connection.sendall(b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", b""]) + framed)
    right(reader)
    connection.sendall(request(ROW * 2))
    right(reader, ROW * 2)


@pytest.mark.parametrize(("version", "headers"), [("1.0", ()), ("1.1", ("connection: close",))])
def test_http_1_0_and_connection_close_end_the_connection_after_the_answer(connection, reader, right, version, headers):
    connection.sendall(request(version=version, headers=headers))
    right(reader)
    assert reader.reply() is None


@pytest.mark.parametrize("path", [PATH, f"{PATH}?lane=slow"])
def test_expect_100_continue_is_answered_before_the_body_is_sent(connection, reader, right, path):
    head, _, body = request(path=path, headers=("expect: 100-continue",)).partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    assert reader.reply()[0] == 100
    connection.sendall(body)
    right(reader)


def test_an_offer_to_upgrade_is_passed_over_and_the_request_answered(connection, reader, right):
    headers = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
    connection.sendall(request(headers=headers))
    right(reader)


@pytest.mark.parametrize("path", [PATH, f"{PATH}?lane=slow"])
def test_a_client_that_sends_no_more_still_gets_its_answer(connection, reader, right, path):
    connection.sendall(request(path=path))
    connection.shutdown(socket.SHUT_WR)
    right(reader)
    assert reader.reply() is None


def test_a_client_that_goes_away_in_the_middle_disturbs_nobody(tiny_server, connection, reader, right):
    whole, slow_path = request(), request(path=f"{PATH}?lane=slow")
    for part in (whole[:20], whole[:-10], whole, slow_path[:-10], slow_path, GET_HEALTH[:5], GET_HEALTH):
        with tiny_server.connect() as other:
            other.sendall(part)
    connection.sendall(whole)
    right(reader)


def test_a_client_that_goes_away_before_its_pipelined_pages_are_there_leaves_no_fault_behind(tiny_server, until):
    """Not the newest request alone must hear of it: an older one may be running."""
    page = request(path=f"{PATH}?lane=slow")
    for _ in range(20):
        with tiny_server.connect() as connection:
            connection.sendall(page * 2 + page[:50])
    until(lambda: tiny_server.request("GET", "/health")[0] == 200)
    assert "Traceback" not in tiny_server.log


def test_headers_of_other_cases_and_spaces_mean_the_same(connection, reader, right):
    connection.sendall(request().replace(b"content-length: ", b"CONTENT-LENGTH:   "))
    right(reader)


# No HTTP


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,  # a TLS hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"POST /v2 HTTP/9.9\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ncontent-length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET http:// HTTP/1.1\r\n\r\n",
        b"GET * HTTP/1.1\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nname: \0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_what_is_no_http_gets_one_clear_refusal_after_the_answers_before_it(tiny_server, right, garbage, before):
    with tiny_server.connect() as connection:
        reader = Reader(connection)
        connection.sendall(b"".join(request(ROW * number) for number in range(before)) + garbage)
        for number in range(before):
            right(reader, ROW * number)
        status, message, closing = reader.error()
        assert (400 <= status < 500, bool(message), closing) == (True, True, "close")
        assert reader.reply() is None
    with tiny_server.connect() as connection:
        connection.sendall(request())
        right(Reader(connection))


def test_what_is_no_http_after_a_page_does_not_disturb_that_page(tiny_server):
    with tiny_server.connect() as connection:
        reader = Reader(connection)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" + b"\0\0\0\0\r\n\r\n")
        status, headers, body = reader.reply()
        assert (status, headers["connection"]) == (200, "close")
        assert b"mlserve_requests" in body
        assert reader.reply() is None


# Sizes


@pytest.mark.parametrize("path", [PATH, "/v2/repository/index", f"{PATH}?lane=slow"])
def test_a_body_said_to_be_too_large_is_refused_before_it_is_sent(strict, strict_still_right, path):
    with strict.connect() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2001\r\n\r\n".encode())
        status, message, closing = Reader(connection).error()
        assert (status, closing) == (413, "close")
        assert "exceeds the maximum allowed input size of 2000" in message


@pytest.mark.parametrize("path", [PATH, "/v2/repository/index", f"{PATH}?lane=slow"])
def test_a_chunked_body_is_refused_when_it_has_grown_too_large(strict, strict_still_right, path):
    with strict.connect() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(21):
            connection.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        reader = Reader(connection)
        # The index reads no body, so it may have answered before there was too much of it.
        assert reader.reply()[0] in ({200, 413} if "index" in path else {413})
        assert reader.reply() is None


def test_a_body_of_just_the_allowed_size_is_taken(strict, right):
    exact = request()
    padding = 2000 - len(exact.partition(b"\r\n\r\n")[2])
    with strict.connect() as connection:
        connection.sendall(request(body=exact.partition(b"\r\n\r\n")[2] + b" " * padding))
        right(Reader(connection))
        connection.sendall(request(body=exact.partition(b"\r\n\r\n")[2] + b" " * (padding + 1)))
        assert Reader(connection).error()[0] == 413


@pytest.mark.parametrize(
    "field", [b"x: " + b"y" * 1100, b"x" * 1100 + b": y", b"\r\n".join(b"x%d: y" % number for number in range(200))]
)
@pytest.mark.parametrize("pieces", [1, 40])
def test_more_headers_than_allowed_are_refused_in_one_piece_or_many(strict, strict_still_right, field, pieces):
    flood = b"GET /health HTTP/1.1\r\n" + field + b"\r\n\r\n"
    with strict.connect() as connection:
        size = -(-len(flood) // pieces)
        with suppress(ConnectionError):  # it was refused already
            for start in range(0, len(flood), size):
                connection.sendall(flood[start : start + size])
        status, message, closing = Reader(connection).error()
        assert (status, closing) == (431, "close")
        assert message == "the headers have more than 1000 bytes"


def test_headers_without_end_are_refused(strict, strict_still_right):
    with strict.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        with suppress(ConnectionError):  # it was refused already
            for _ in range(200):  # more than one read can hold, for the first may hold another request's end, too
                connection.sendall(b"x: " + b"y" * 5000 + b"\r\n")
        assert Reader(connection).error()[0] == 431


def test_a_large_body_before_the_next_request_is_no_header_flood(tiny_server, right):
    """One read may hold the end of a body, and the beginning of the next request's headers."""
    body = request().partition(b"\r\n\r\n")[2] + b" " * 100_000
    with tiny_server.connect() as connection:
        reader = Reader(connection)
        second = request(ROW * 2)
        connection.sendall(request(body=body) + second[:30])
        right(reader)
        connection.sendall(second[30:])
        right(reader, ROW * 2)


@pytest.mark.parametrize("path", [PATH, f"{PATH}?lane=slow"])
@pytest.mark.parametrize("pieces", [1, 200])
@pytest.mark.parametrize("field", [b"x: " + b"y" * 100 + b"\r\n", b"1;" + b"z" * 100 + b"\r\n.\r\n"])
def test_trailers_and_chunk_extensions_without_end_are_refused(strict, strict_still_right, field, pieces, path):
    with strict.connect() as connection:
        head = b"0\r\n" if field.startswith(b"x") else b""
        begun = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode() + head
        reader = Reader(connection)
        with suppress(ConnectionError):  # it was refused already
            for number in range(pieces):  # one read may hold all of them, and the request's beginning, too
                connection.sendall((b"" if number else begun) + field * (200 // pieces))
        assert reader.error()[0] in (400, 413)
        assert reader.reply() is None


# Slow ones


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /",
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\n".encode(),
        request()[:-1],
        request(path=f"{PATH}?lane=slow")[:-1],
        f"POST {PATH} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{{\r\n".encode(),
    ],
)
def test_a_request_that_never_ends_is_cut_off_even_while_bytes_keep_coming(strict, strict_still_right, begun):
    with strict.connect() as connection:
        connection.sendall(begun)
        stop = threading.Event()

        def trickle():
            """One more byte of a header, of a chunk's size or of nothing that would end the request."""
            while not stop.wait(0.2):
                try:
                    if b"\r\n\r\n" not in begun:
                        connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            reader = Reader(connection)
            status, message, closing = reader.error()
            assert (status, closing) == (408, "close")
            assert message == "the request was not complete after 1 s"
            assert reader.reply() is None
        finally:
            stop.set()
            thread.join()


def test_a_connection_that_asks_nothing_is_closed_and_a_busy_one_is_not(strict, right, until):
    with strict.connect() as quiet, strict.connect() as busy:
        reader, quiet_reader = Reader(busy), Reader(quiet)
        quiet.sendall(request())
        right(quiet_reader)
        quiet.settimeout(0.2)

        def closed():
            busy.sendall(request())
            right(reader)
            try:
                return quiet.recv(1) == b""
            except TimeoutError:
                return False

        until(closed)
        busy.sendall(request())
        right(reader)


def test_a_client_that_does_not_read_its_answers_is_cut_off(strict, until):
    """Its answers fill the buffers; then nothing more is read of it, and in the end it is let go."""
    with strict.connect() as connection:
        connection.setblocking(False)  # the socket's own signature
        many, sent = request() * 50, 0

        def gone():
            nonlocal sent
            try:
                for _ in range(100):
                    sent += connection.send(many[sent % len(many) :])
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            return False

        until(gone)


def test_a_request_that_computes_longer_than_the_patience_with_senders_is_answered(strict):
    """Patience is for those who send, not for the model."""
    with strict.connect() as connection:
        body = {"inputs": [{"name": "turns", "datatype": "FP32", "shape": [1, 1], "data": [4000.0]}]}
        connection.sendall(request(path="/v2/models/slow/infer", body=json.dumps(body).encode()))
        assert Reader(connection).answer() == [4000.0]
