import gc
import resource
import socket
import time

import gevent
import pytest
from gevent import get_hub

from mlserve.bench.clients.client import Reply, Request
from mlserve.bench.clients.connection import Connection
from mlserve.bench.clients.http import HttpClient

PATH = "/v2/models/slow/infer"
RESET, IGNORED = "reset", "ignored"
REQUESTS = (Request(b'{"inputs":[]}', (("content-type", "application/json"),)), Request(b"second"))


def answer(body=b"fine", status=b"200 OK", headers=b""):
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, headers, len(body), body)


@pytest.fixture
def connect():
    """A client of a server, or of a port; all are closed with the test."""
    clients = []

    def to(server, timeout_s=5.0, requests=REQUESTS, host="127.0.0.1") -> HttpClient:
        port = server if isinstance(server, int) else server.port
        clients.append(HttpClient(host, port, PATH, requests, timeout_s))
        return clients[-1]

    yield to
    for client in clients:
        client.close()


def test_a_good_answer_has_its_body_and_tells_when_it_began(slow_server, connect, ask):
    server = slow_server()
    before_ns = time.monotonic_ns()
    (reply,) = ask(connect(server), 0)
    assert (reply.status, reply.timing) == ("ok", "")
    assert reply.content.startswith(b'{"model_name":"slow","model_version":"7"')
    assert before_ns <= reply.first_byte_ns <= time.monotonic_ns()
    assert server.bodies == [b'{"inputs":[]}']


def test_what_goes_out_is_one_plain_request(scripted, connect, ask_in_turn):
    server = scripted([answer(), answer()])
    ask_in_turn(connect(server), 0, 1)
    host = b"127.0.0.1:%d" % server.port
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: " + host + b"\r\n"
    assert server.requests == [
        (head + b"Content-Length: 13\r\ncontent-type: application/json\r\n\r\n", b'{"inputs":[]}'),
        (head + b"Content-Length: 6\r\n\r\n", b"second"),
    ]


def test_a_header_of_the_requests_own_stands_for_the_clients(scripted, connect, ask):
    server = scripted([answer()])
    ask(connect(server, requests=(Request(b"", (("host", "model.example"),)),)), 0)
    assert server.requests[0][0].lower().count(b"host:") == 1
    assert b"host: model.example\r\n" in server.requests[0][0]


def test_connections_are_kept_and_as_many_as_are_needed_at_once(scripted, connect, ask_in_turn, ask):
    server = scripted([answer()] * 20)
    client = connect(server)
    assert {reply.status for reply in ask_in_turn(client, *[0] * 10)} == {"ok"}
    assert server.connections == 1
    assert {reply.status for reply in ask(client, 0, 0, 0)} == {"ok"}
    assert server.connections == 3
    assert {reply.status for reply in ask_in_turn(client, 0, 0, 0)} == {"ok"}
    assert server.connections == 3


def test_an_http_error_is_named_by_its_status_and_costs_no_connection(scripted, connect, ask_in_turn):
    server = scripted([answer(b"busy", b"503 Service Unavailable"), answer()])
    failed, good = ask_in_turn(connect(server), 0, 0)
    assert (failed.status, failed.content, good.status) == ("HTTP 503", b"busy", "ok")
    assert server.connections == 1


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ([bytes([byte]) for byte in answer(b"bytes")], b"bytes"),
        (answer(b""), b""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"after 100"), b"after 100"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, answer(b"later")], b"later"),
        (b"\r\n" + answer(b"a line before"), b"a line before"),
        (answer(b"x" * 200_000), b"x" * 200_000),
    ],
    ids=["byte by byte", "empty", "chunked", "100", "100, then", "empty line", "large"],
)
def test_an_answer_of_any_form_is_read_and_the_connection_kept(said, content, scripted, connect, ask_in_turn):
    server = scripted([said, answer(b"next")])
    first, second = ask_in_turn(connect(server), 0, 0)
    assert (first.status, first.content) == ("ok", content)
    assert (second.status, second.content) == ("ok", b"next")
    assert server.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        answer(headers=b"Connection: close\r\n"),
        b"HTTP/1.1 200 OK\r\n\r\nfine",
        b"HTTP/1.0 200 OK\r\n\r\nfine",
        b"HTTP/1.0 200 OK\r\ncontent-length: 4\r\n\r\nfine",
        answer() + b"HTTP/1.1 200 OK\r\n",
        answer() + b"and more",
    ],
    ids=["close", "to the end", "1.0 to the end", "1.0", "a second answer", "surplus"],
)
def test_an_answer_that_ends_its_connection_is_good_and_the_next_goes_elsewhere(said, scripted, connect, ask_in_turn):
    server = scripted([said], [answer(b"elsewhere")])
    first, second = ask_in_turn(connect(server), 0, 0)
    assert (first.status, first.content) == ("ok", b"fine")
    assert (second.status, second.content) == ("ok", b"elsewhere")
    assert server.connections == 2


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nfine",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        [b"HTTP/1.1 200 OK\r\n\r\nfine", 0.02, RESET],
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
        RESET,
    ],
    ids=[
        "nothing",
        "half a head",
        "half a body",
        "half of chunks",
        "reset",
        "only an announcement",
        "reset first",
    ],
)
def test_what_is_no_whole_answer_is_a_failure(said, scripted, connect, ask):
    server = scripted([said], [answer()])
    client = connect(server)
    assert ask(client, 0)[0].status == "connection closed"
    assert ask(client, 0)[0].status == "ok"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "said",
    [
        b"hello there, this is no HTTP\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    ],
)
def test_what_is_no_answer_of_http_is_called_so(said, scripted, connect, ask):
    client = connect(scripted([said], [answer()]))
    assert ask(client, 0)[0].status == "no HTTP answer"
    assert ask(client, 0)[0].status == "ok"


@pytest.mark.parametrize("parting", [[], [RESET], [b""]], ids=["closed", "reset at the next", "closed at the next"])
def test_a_request_on_a_connection_that_the_server_has_left_is_sent_again_on_a_new_one(
    parting, scripted, connect, ask_in_turn
):
    server = scripted([answer(b"1"), *parting], [answer(b"2")])
    client = connect(server)
    assert [reply.content for reply in ask_in_turn(client, 0, 0)] == [b"1", b"2"]
    assert server.connections == 2


def test_a_request_is_sent_again_once_and_not_when_its_answer_had_begun(scripted, connect, ask_in_turn):
    server = scripted([answer(b"1"), RESET], [RESET], [answer(b"3"), b"HTTP/1.1 200"], [answer(b"4")])
    client = connect(server)
    statuses = [reply.status for reply in ask_in_turn(client, 0, 0, 0, 0, 0)]
    assert statuses == ["ok", "connection closed", "ok", "connection closed", "ok"]
    assert len(server.requests) == 6


def test_an_idle_connection_that_ends_or_speaks_unasked_is_left(scripted, connect, ask):
    server = scripted(
        [answer(b"1")], [[answer(b"2"), 0.02, answer(b"", b"408 Request Timeout")], IGNORED], [answer(b"3")]
    )
    client = connect(server)
    for content in (b"1", b"2", b"3"):
        assert ask(client, 0)[0].content == content
        gevent.sleep(0.05)
    assert len(server.requests) == server.connections == 3


def test_a_server_that_is_too_slow_is_a_timeout_and_its_late_answer_nobodys(slow_server, connect, ask):
    server = slow_server(delay_s=0.2)
    client = connect(server, timeout_s=0.05)
    before_s = time.monotonic()
    assert ask(client, 0, 0) == [Reply("timeout")] * 2
    assert time.monotonic() - before_s >= 0.05
    server.delay_s = 0.0
    gevent.sleep(0.2)
    assert ask(client, 0)[0].status == "ok"


def test_each_request_has_the_whole_timeout_for_itself(slow_server, connect):
    server = slow_server(delay_s=30.0)
    client = connect(server, timeout_s=0.1)
    waited_s = []

    def send():
        sent_s = time.monotonic()
        client.send(0, lambda _: waited_s.append(time.monotonic() - sent_s))

    for number in range(4):
        gevent.spawn_later(0.03 * number, send)
    gevent.sleep(0.6)
    assert len(waited_s) == 4
    assert min(waited_s) >= 0.1
    server.delay_s = 0.0


def test_an_answer_in_time_is_not_a_timeout(slow_server, connect, ask):
    client = connect(slow_server(delay_s=0.02), timeout_s=5.0)
    assert {reply.status for reply in ask(client, *[0] * 50)} == {"ok"}


def test_a_timeout_counts_from_sending_also_where_a_request_was_sent_again(scripted, connect, ask_in_turn):
    client = connect(scripted([answer(), RESET], [IGNORED, IGNORED]), timeout_s=0.1)
    assert [reply.status for reply in ask_in_turn(client, 0, 0)] == ["ok", "timeout"]


def test_a_refused_connection_is_named(unused_port, connect, ask):
    assert ask(connect(unused_port), 0, 0) == [Reply("connection refused")] * 2


def test_a_host_that_nobody_knows_is_named(connect, ask):
    assert ask(connect(1, host="no host at all"), 0) == [Reply("unknown host")]
    assert ask(connect(1, host="a" * 70), 0) == [Reply("unknown host")]


def test_without_a_file_left_for_a_connection_the_request_fails_and_says_so(scripted, connect, ask):
    server = scripted([answer()])
    client = connect(server)
    get_hub()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits[0] == limits[1], "the client asked for all it can have"
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        (failed,) = ask(client, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert failed == Reply("too many open files")
    assert ask(client, 0)[0].status == "ok"


def test_a_server_timing_header_of_any_case_is_handed_on(scripted, connect, ask_in_turn):
    said = [
        answer(headers=b"X-Other: 1\r\n%s: compute;dur=1.5\r\n" % name) for name in (b"server-timing", b"Server-Timing")
    ]
    client = connect(scripted([*said, answer()]))
    assert [reply.timing for reply in ask_in_turn(client, 0, 0, 0)] == ["compute;dur=1.5", "compute;dur=1.5", ""]


def test_a_body_larger_than_the_system_takes_at_once_arrives_whole(scripted, connect, ask_in_turn):
    body = bytes(range(256)) * 20_000
    server = scripted([answer()] * 2)
    client = connect(server, requests=(Request(body),))
    assert [reply.status for reply in ask_in_turn(client, 0, 0)] == ["ok", "ok"]
    assert [received == body for _, received in server.requests] == [True, True]


def test_a_server_at_an_ipv6_address_is_reached_and_named_in_brackets(scripted, connect, ask):
    server = scripted([answer()], family=socket.AF_INET6)
    assert ask(connect(server, host="::1"), 0)[0].status == "ok"
    assert b"Host: [::1]:%d\r\n" % server.port in server.requests[0][0]


def test_a_name_with_several_addresses_is_tried_at_each(scripted, connect, monkeypatch, ask):
    server = scripted([answer()] * 2)

    def several(host, port, **_):
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    assert {reply.status for reply in ask(connect(server, host="both"), 0, 0)} == {"ok"}


def test_a_connection_that_has_ended_leaves_nothing_to_the_garbage_collector(scripted, connect, ask_in_turn):
    client = connect(scripted([answer(headers=b"Connection: close\r\n")]))
    gc.collect()
    gc.disable()
    try:
        assert {reply.status for reply in ask_in_turn(client, *[0] * 20)} == {"ok"}
        assert sum(type(each) is Connection for each in gc.get_objects()) <= 1
    finally:
        gc.enable()
    assert ask_in_turn(client, 0)[0].status == "ok"


def test_nothing_is_answered_after_close(slow_server, connect):
    client = connect(slow_server(delay_s=0.05), timeout_s=0.1)
    replies = []
    client.send(0, replies.append)
    gevent.sleep(0.01)
    client.close()
    gevent.sleep(0.15)
    assert replies == []
