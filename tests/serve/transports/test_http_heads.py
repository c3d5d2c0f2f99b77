"""Heads that were read before: which are remembered, and that a known one means what it meant, byte for byte."""

import http.client
import json

import msgspec
import numpy as np
import pytest

from mlserve.serve.access import digest
from mlserve.serve.transports.http_heads import Head, Heads

ROW = np.linspace(-1, 1, 30, dtype=np.float32)
PATH = "/v2/models/tiny/infer"


def request(row=ROW, *headers, path=PATH, pad=800):
    """One request; all have bodies of one length, so that their heads are the same."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [float(value) for value in row]}
    body = json.dumps({"inputs": [tensor]}).encode().ljust(pad)
    lines = [f"POST {path} HTTP/1.1", "host: x", *headers, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.fixture
def connection(tiny_server):
    with tiny_server.connect() as made:
        yield made


@pytest.fixture
def reader(connection):
    return connection.makefile("rb")


def reply(reader):
    """`(status, headers, body)`."""
    status = int(reader.readline().split()[1])
    headers = http.client.parse_headers(reader)
    return status, headers, reader.read(int(headers["content-length"]))


def check(reader, reference, row=ROW):
    status, _, body = reply(reader)
    assert status == 200, body
    np.testing.assert_allclose(json.loads(body)["outputs"][0]["data"], reference([row])[0], rtol=1e-4)


def test_the_same_head_again_gets_the_answer_of_its_own_body(connection, reader, reference):
    for number in range(5):
        connection.sendall(request(ROW * number))
        check(reader, reference, ROW * number)


def test_a_known_head_may_come_in_pieces_and_with_others_behind_it(connection, reader, reference):
    whole = request()
    for _ in range(2):
        connection.sendall(whole)
        check(reader, reference)
    for cut in (1, whole.index(b"\r\n\r\n"), whole.index(b"\r\n\r\n") + 4, len(whole) - 1):
        connection.sendall(whole[:cut])
        connection.sendall(whole[cut:] + request(ROW * 2)[: len(whole) // 2])
        check(reader, reference)
        connection.sendall(request(ROW * 2)[len(whole) // 2 :])
        check(reader, reference, ROW * 2)
    connection.sendall(whole * 3 + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" + request(ROW * 3))
    for _ in range(3):
        check(reader, reference)
    assert reply(reader)[2] == b'{"live":true}'
    check(reader, reference, ROW * 3)


def test_a_known_head_waits_for_the_page_before_it(connection, reader, reference):
    connection.sendall(request())
    check(reader, reference)
    for _ in range(3):
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        connection.sendall(request())
        assert b"mlserve_requests" in reply(reader)[2]
        check(reader, reference)


def test_a_bad_body_behind_a_known_head_is_told_and_the_connection_stays(connection, reader, reference):
    good = request()
    bad = good.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + b"{".ljust(800)
    for _ in range(2):
        connection.sendall(good)
        check(reader, reference)
        connection.sendall(bad)
        assert reply(reader)[0] == 400


@pytest.mark.parametrize("header", ["connection: close", "x-request-id: one", "mlserve-timing: 1"])
def test_what_a_head_asks_for_is_done_every_time(tiny_server, reference, header):
    for number in range(3):
        with tiny_server.connect() as connection:
            reader = connection.makefile("rb")
            connection.sendall(request(ROW * number, header))
            status, headers, _ = reply(reader)
            assert status == 200
            if header.startswith("connection"):
                assert headers["connection"] == "close"
                assert reader.read() == b""
            elif header.startswith("x-"):
                assert headers["x-request-id"] == "one"
            else:
                assert headers["server-timing"]


def test_a_known_head_asks_for_its_key_every_time(serving_settings, tiny_onnx, tmp_path, until, reference):
    path = tmp_path / "keys.json"

    def allow(*secrets):
        keys = [{"name": s, "sha256": digest(s.encode()), "scopes": ["infer"], "expires_at": ""} for s in secrets]
        fresh = tmp_path / "fresh.json"
        fresh.write_bytes(msgspec.json.encode({"format_version": 1, "keys": keys}))
        fresh.chmod(0o600)
        fresh.rename(path)

    def status_with(secret):
        with server.connect() as connection:
            connection.sendall(request(ROW, f"authorization: Bearer {secret}"))
            return reply(connection.makefile("rb"))[0]

    allow("first")
    with serving_settings(tiny_onnx, keys_file=str(path)) as server:
        for _ in range(3):
            assert status_with("first") == 200
            assert status_with("other") == 401
        allow("other")
        until(lambda: status_with("first") == 401)
        assert status_with("other") == 200


# What is remembered


def head_of(whole, noted=None):
    return Head(b"/", [], noted or {}, len(whole.partition(b"\r\n\r\n")[2]))


def test_only_one_whole_request_is_remembered_and_by_all_of_its_head():
    heads = Heads(frozenset([b"x-request-id"]))
    whole = b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"
    heads.keep(whole, head_of(whole))
    assert heads.find(whole[:-3]) == head_of(whole)
    assert heads.find(whole[:-4]) is None
    others = {
        "more behind it": (whole + b"GET", head_of(whole)),
        "in chunks": (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", head_of(whole)),
        "an id of its own": (b"POST /a HTTP/1.1\r\n\r\n", Head(b"/a", [], {b"x-request-id": b"1"}, 0)),
        "a long one": (b"POST /a HTTP/1.1\r\nx: " + b"y" * 3000 + b"\r\n\r\n", Head(b"/a", [], {}, 0)),
    }
    for name, (read, head) in others.items():
        fresh = Heads(frozenset([b"x-request-id"]))
        fresh.keep(read, head)
        assert fresh.find(read[: read.index(b"\r\n\r\n") + 4]) is None, name


def test_memory_is_bounded():
    heads, kept = Heads(frozenset()), 0
    wholes = [b"POST /%d HTTP/1.1\r\n\r\n" % number for number in range(5000)]
    for whole in wholes:
        heads.keep(whole, head_of(whole))
    kept = sum(heads.find(whole) is not None for whole in wholes)
    assert 0 < kept <= 1024
    assert heads.find(wholes[-1]) is not None
