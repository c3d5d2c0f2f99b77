"""The client against a peer that says exactly what a test wants, over real sockets."""

import gzip
import socket
import struct
import threading
import time
from contextlib import suppress
from queue import Queue

import gevent
import pytest
from hpack import Decoder, Encoder

from mlserve.bench.clients.client import Request
from mlserve.bench.clients.grpc import GrpcClient
from mlserve.bench.clients.http2_connection import Exchange, PreparedRequest
from mlserve.bench.clients.http2_pool import Http2Pool
from mlserve.wire import http2_frames as http2

PREFACE_BYTES = 24
REFUSED_STREAM = 7
GOOD = ((":status", "200"), ("content-type", "application/grpc"))
FINE = (("grpc-status", "0"),)


def message(content=b"fine"):
    return b"\0" + struct.pack(">I", len(content)) + content


class Line:
    """One connection of the peer, after its greeting."""

    def __init__(self, connection, settings, *, acknowledge):
        self._connection, self._splitter = connection, http2.FrameSplitter(1 << 20)
        self._frames, self._decoder = [], Decoder()
        self.encoder = Encoder()
        self.encoder.header_table_size = 0
        while len(self._read(PREFACE_BYTES)) < PREFACE_BYTES:
            pass
        self.say(http2.frame(http2.SETTINGS, 0, 0, settings_of(settings)))
        if acknowledge:
            self.acknowledge()

    def acknowledge(self):
        self.say(http2.frame(http2.SETTINGS, http2.ACK, 0))

    def _read(self, size):
        more = self._connection.recv(size, socket.MSG_WAITALL if size == PREFACE_BYTES else 0)
        if not more:
            raise ConnectionError
        return more

    def say(self, *frames):
        self._connection.sendall(b"".join(frames))

    def frame(self, *kinds):
        """The next frame, or the next of one of `kinds`."""
        while True:
            while not self._frames:
                self._frames = self._splitter.split(self._read(65536))
            found = self._frames.pop(0)
            if not kinds or found[0] in kinds:
                return found

    def request(self):
        """The next request: (stream, headers, body)."""
        _, flags, stream, block = self.frame(http2.HEADERS)
        while not flags & http2.END_HEADERS:
            _, flags, _, more = self.frame(http2.CONTINUATION)
            block += more
        headers, body, flags = dict(self._decoder.decode(block)), b"", 0
        while not flags & http2.END_STREAM:
            _, flags, same, part = self.frame(http2.DATA)
            assert same == stream
            body += part
        return stream, headers, body

    def headers(self, stream, headers, flags=0):
        return http2.frame(http2.HEADERS, http2.END_HEADERS | flags, stream, self.encoder.encode(headers))

    def answer(self, stream, content=b"fine"):
        self.say(
            self.headers(stream, GOOD),
            http2.frame(http2.DATA, 0, stream, message(content)),
            self.headers(stream, FINE, http2.END_STREAM),
        )


def settings_of(settings):
    return b"".join(struct.pack(">HI", name, value) for name, value in settings.items())


class Peer:
    """`play(line, number)` is called for each connection, in a thread of its own; what it raises fails the test."""

    def __init__(self, play, settings, *, acknowledge):
        self._play, self._settings, self._acknowledge = play, settings, acknowledge
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.connections, self.faults = 0, []
        self._open, self._threads = [], []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection, self.connections)))
            self.connections += 1
            self._threads[-1].start()

    def _serve(self, connection, number):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            try:
                self._play(Line(connection, self._settings, acknowledge=self._acknowledge), number)
            except OSError:
                pass  # the client has gone
            except BaseException as error:
                self.faults.append(error)

    def stop(self):
        if self._listener.fileno() < 0:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        assert not self.faults, self.faults


@pytest.fixture
def peer():
    peers = []

    def start(play, settings=None, *, acknowledge=True) -> Peer:
        peers.append(Peer(play, settings or {}, acknowledge=acknowledge))
        return peers[-1]

    yield start
    for each in peers:
        each.stop()


@pytest.fixture
def connect():
    clients = []

    def to(peer, *bodies, timeout_s=5.0) -> GrpcClient:
        requests = [Request(body) for body in bodies or [b"hello"]]
        clients.append(GrpcClient("127.0.0.1", peer.port, "/a.B/C", requests, timeout_s))
        return clients[-1]

    yield to
    for client in clients:
        client.close()


def answering(line, _):
    while True:
        stream, _, body = line.request()
        line.answer(stream, body[5:])


def replying(*frames_of):
    """A peer's play: answers every request with the frames that the functions (line, stream) -> bytes make."""

    def play(line, _):
        while True:
            stream, _, _ = line.request()
            line.say(*(make(line, stream) for make in frames_of))

    return play


def head(line, stream):
    return line.headers(stream, GOOD)


def data(content, flags=0):
    return lambda _, stream: http2.frame(http2.DATA, flags, stream, content)


def trailers(*fields, flags=http2.END_STREAM):
    return lambda line, stream: line.headers(stream, fields, flags)


# What is sent


def test_nothing_is_asked_before_the_server_has_agreed_to_the_settings(peer, connect, ask):
    agreed_ns = Queue()

    def play(line, number):
        time.sleep(0.05)
        line.say(http2.frame(http2.PING, 0, 0, b"is it on"))
        assert line.frame(http2.HEADERS, http2.PING) == (http2.PING, http2.ACK, 0, b"is it on")
        agreed_ns.put(time.monotonic_ns())
        line.acknowledge()
        answering(line, number)

    (reply,) = ask(connect(peer(play, acknowledge=False)), 0)
    assert reply.status == "ok"
    assert reply.first_byte_ns > agreed_ns.get()


def test_a_request_is_a_post_with_its_path_deadline_metadata_and_message(peer, connect, ask):
    seen = Queue()

    def play(line, _):
        stream, headers, body = line.request()
        seen.put((headers, body))
        line.answer(stream)

    server = peer(play)
    client = GrpcClient("127.0.0.1", server.port, "/a.B/C", [Request(b"hello", (("X-Key", "k"),))], 2.5)
    assert ask(client, 0)[0].status == "ok"
    client.close()
    assert seen.get() == (
        {
            ":method": "POST",
            ":scheme": "http",
            ":path": "/a.B/C",
            ":authority": f"127.0.0.1:{server.port}",
            "te": "trailers",
            "content-type": "application/grpc",
            "user-agent": "mlserve-bench",
            "grpc-timeout": "2500m",
            "x-key": "k",
        },
        message(b"hello"),
    )


def test_a_deadline_has_no_more_than_eight_digits(peer, connect, ask):
    seen = Queue()

    def play(line, _):
        stream, headers, _ = line.request()
        seen.put(headers["grpc-timeout"])
        line.answer(stream)

    server = peer(play)
    assert [ask(connect(server, timeout_s=timeout_s), 0)[0].status for timeout_s in (200_000, 1e10)] == ["ok", "ok"]
    assert sorted(seen.queue) == ["200000S", "99999999S"]


def test_streams_have_odd_numbers_and_are_spread_over_four_connections(peer, connect, ask_in_turn):
    seen = Queue()

    def play(line, number):
        while True:
            stream, _, _ = line.request()
            seen.put((number, stream))
            line.answer(stream)

    server = peer(play)
    client = connect(server)
    ask_in_turn(client, 0)
    gevent.sleep(0.1)  # the other connections have opened, too
    seen.queue.clear()
    assert {reply.status for reply in ask_in_turn(client, *[0] * 8)} == {"ok"}
    assert server.connections == 4
    assert sorted(number for number, _ in seen.queue) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {stream % 2 for _, stream in seen.queue} == {1}


def test_a_body_waits_for_the_streams_window_and_for_a_later_setting(peer, connect, ask):
    body, parts = bytes(range(100)), Queue()

    def play(line, number):
        _, _, stream, _ = line.frame(http2.HEADERS)
        parts.put(line.frame(http2.DATA)[1:])
        line.say(http2.frame(http2.WINDOW_UPDATE, 0, stream, (20).to_bytes(4)))
        parts.put(line.frame(http2.DATA)[1:])
        line.say(http2.frame(http2.SETTINGS, 0, 0, settings_of({http2.INITIAL_WINDOW_SIZE: 1000})))
        parts.put(line.frame(http2.DATA)[1:])
        line.answer(stream)

    client = connect(peer(play, {http2.INITIAL_WINDOW_SIZE: 30}), body)
    assert ask(client, 0)[0].status == "ok"
    whole = message(body)
    assert list(parts.queue) == [(0, 1, whole[:30]), (0, 1, whole[30:50]), (http2.END_STREAM, 1, whole[50:])]


def test_bodies_share_their_connections_window(peer, connect, ask):
    """It is 65,535 bytes until the peer allows more, whatever each stream's is."""
    taken_bytes = Queue()

    def play(line, _):
        taken, ended = 0, []
        while len(ended) < 2:
            _, flags, stream, payload = line.frame(http2.DATA)
            taken += len(payload)
            ended += [stream] * (flags & http2.END_STREAM)
            if taken % http2.WINDOW_BYTES == 0:
                line.say(http2.frame(http2.PING, 0, 0, b"anymore?"))
                assert line.frame(http2.DATA, http2.PING)[0] == http2.PING  # no more comes before it is allowed
                line.say(http2.window_update(http2.WINDOW_BYTES))
        taken_bytes.put(taken)
        for stream in ended:
            line.answer(stream)

    server = peer(play, {http2.INITIAL_WINDOW_SIZE: 1 << 20})
    client = connect(server, bytes(100_000))
    gevent.sleep(0.1)
    assert {reply.status for reply in ask(client, *[0] * 8)} == {"ok"}
    assert list(taken_bytes.queue) == [200_010] * 4


@pytest.mark.parametrize("frame_bytes", [16_384, 30_000])
def test_frames_are_as_large_as_the_peer_takes(peer, connect, ask, frame_bytes):
    sizes = Queue()

    def play(line, _):
        flags = 0
        while not flags & http2.END_STREAM:
            _, flags, stream, payload = line.frame(http2.DATA)
            sizes.put(len(payload))
        line.answer(stream)

    client = connect(peer(play, {http2.MAX_FRAME_SIZE: frame_bytes}), bytes(40_000))
    assert ask(client, 0)[0].status == "ok"
    assert max(sizes.queue) == frame_bytes
    assert sum(sizes.queue) == 40_005


def test_metadata_that_no_frame_holds_goes_on_in_another(peer, ask):
    seen = Queue()

    def play(line, _):
        stream, headers, _ = line.request()
        seen.put(headers["x-long"])
        line.answer(stream)

    client = GrpcClient("127.0.0.1", peer(play).port, "/a/b", [Request(b"", (("x-long", "l" * 20_000),))], 5.0)
    assert ask(client, 0)[0].status == "ok"
    client.close()
    assert seen.get() == "l" * 20_000


# What comes back


def split_headers(line, stream):
    block = line.encoder.encode(GOOD)
    return b"".join(
        (
            http2.frame(http2.HEADERS, 0, stream, block[:3]),
            http2.frame(http2.CONTINUATION, 0, stream, block[3:5]),
            http2.frame(http2.CONTINUATION, http2.END_HEADERS, stream, block[5:]),
        )
    )


def padded_headers(line, stream):
    flags = http2.END_HEADERS | http2.PADDED | http2.PRIORITY
    return http2.frame(http2.HEADERS, flags, stream, b"\x07" + b"prior" + line.encoder.encode(GOOD) + bytes(7))


def with_table(line, stream):
    if not line.encoder.header_table_size:
        line.encoder.header_table_size = 4096  # what every peer has before it is told otherwise
    return line.headers(stream, (*GOOD, ("x-my-own", "value")))


def informing(line, stream):
    return line.headers(stream, ((":status", "100"),)) + head(line, stream)


def encoded(encoding):
    return lambda line, stream: line.headers(stream, (*GOOD, ("grpc-encoding", encoding)))


def packed(content):
    body = gzip.compress(content)
    return b"\1" + len(body).to_bytes(4) + body


FINE_TRAILERS = trailers(*FINE)
WHOLE = data(message())


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        ([head, WHOLE, FINE_TRAILERS], "ok"),
        ([head, data(message()[:2]), data(b""), data(message()[2:]), FINE_TRAILERS], "ok"),
        ([split_headers, WHOLE, FINE_TRAILERS], "ok"),
        ([padded_headers, data(b"\x03" + message() + bytes(3), http2.PADDED), FINE_TRAILERS], "ok"),
        ([with_table, WHOLE, FINE_TRAILERS], "ok"),
        ([informing, WHOLE, FINE_TRAILERS], "ok"),
        ([encoded("gzip"), data(packed(b"fine")), FINE_TRAILERS], "ok"),
        ([encoded("gzip"), data(packed(b"fine")[:-1] + b"?"), FINE_TRAILERS], "broken answer"),
        ([encoded("gzip"), data(b"\1\0\0\0\0"), FINE_TRAILERS], "broken answer"),
        ([encoded("snappy"), data(packed(b"fine")), FINE_TRAILERS], "compressed answer"),
        ([head, data(packed(b"fine")), FINE_TRAILERS], "compressed answer"),
        ([head, data(message()[:-1]), FINE_TRAILERS], "broken answer"),
        ([head, data(message() * 2), FINE_TRAILERS], "broken answer"),
        ([head, FINE_TRAILERS], "broken answer"),
        ([data(message(), http2.END_STREAM)], "broken answer"),
        ([head, data(message(), http2.END_STREAM)], "UNKNOWN"),
        ([head, WHOLE, trailers(("grpc-status", "14"))], "UNAVAILABLE"),
        ([trailers(*GOOD, ("grpc-status", "5"), ("grpc-message", "no such model"))], "NOT_FOUND"),
        ([trailers(*GOOD, ("grpc-status", "99"))], "UNKNOWN"),
        ([trailers((":status", "502"))], "HTTP 502"),
        ([trailers((":status", "503"), ("grpc-status", "0"))], "HTTP 503"),
        ([lambda _, stream: http2.reset(stream, 8)], "CANCELLED"),
        ([lambda _, stream: http2.reset(stream, 2)], "INTERNAL"),
        ([head, lambda _, stream: http2.reset(stream, 11)], "RESOURCE_EXHAUSTED"),
    ],
)
def test_an_answer_is_read_for_what_it_is(peer, connect, ask_in_turn, frames, status):
    replies = ask_in_turn(connect(peer(replying(*frames))), *[0] * 5)
    assert {(reply.status, reply.content) for reply in replies} == {(status, b"fine" if status == "ok" else b"")}


def test_the_servers_timing_is_in_the_headers_or_behind_the_answer(peer, connect, ask):
    timing = ("server-timing", "queue;dur=0.1")
    ahead = replying(lambda line, stream: line.headers(stream, (*GOOD, timing)), WHOLE, FINE_TRAILERS)
    behind = replying(head, WHOLE, trailers(*FINE, timing))
    assert [ask(connect(peer(play)), 0)[0].timing for play in (ahead, behind, answering)] == [timing[1], timing[1], ""]


def test_an_answer_to_half_a_request_is_taken_and_the_rest_not_sent(peer, connect, ask):
    seen = Queue()

    def play(line, _):
        _, _, stream, _ = line.frame(http2.HEADERS)
        line.say(line.headers(stream, (*GOOD, ("grpc-status", "8")), http2.END_STREAM))
        seen.put(line.frame(http2.RST_STREAM)[2:])

    server = peer(play, {http2.INITIAL_WINDOW_SIZE: 10})
    assert ask(connect(server, bytes(1000)), 0)[0].status == "RESOURCE_EXHAUSTED"
    gevent.sleep(0.05)
    assert seen.get(timeout=5) == (1, bytes(4))


def test_the_window_is_opened_again_as_answers_come(peer, connect, ask):
    """Or a long run would stand still after 2 GiB of answers on a connection."""
    part, allowed = bytes(1 << 14), Queue()

    def play(line, _):
        stream, _, _ = line.request()
        whole = message(part * 1024)
        line.say(head(line, stream))
        for start in range(0, len(whole), len(part)):
            line.say(http2.frame(http2.DATA, 0, stream, whole[start : start + len(part)]))
        line.say(FINE_TRAILERS(line, stream))
        allowed.put(int.from_bytes(line.frame(http2.WINDOW_UPDATE)[3]))

    (reply,) = ask(connect(peer(play)), 0)
    assert len(reply.content) == 1 << 24
    gevent.sleep(0.05)
    assert allowed.get(timeout=5) == 1 << 24


# When the server will not have it


@pytest.mark.parametrize(("refusals", "status", "tries"), [(1, "ok", 2), (9, "UNAVAILABLE", 2), (0, "ok", 1)])
def test_a_refused_request_is_sent_once_more(peer, connect, ask, refusals, status, tries):
    seen = Queue()

    def play(line, _):
        while True:
            stream, _, _ = line.request()
            seen.put(stream)
            if len(seen.queue) <= refusals:
                line.say(http2.reset(stream, REFUSED_STREAM))
            else:
                line.answer(stream)

    assert ask(connect(peer(play)), 0)[0].status == status
    assert len(seen.queue) == tries


def test_a_goodbye_lets_answers_come_and_sends_the_rest_on_another_connection(peer, connect, ask):
    """The connection that is asked first says it will answer one request only, does so, and is then done with."""
    seen = Queue()

    def play(line, _):
        stream, _, body = line.request()
        seen.put("asked")
        if len(seen.queue) > 1:
            line.answer(stream, body[5:])
            answering(line, _)
        line.request()
        line.say(http2.frame(http2.GOAWAY, 0, 0, stream.to_bytes(4) + bytes(4)))
        time.sleep(0.05)
        line.answer(stream, body[5:])
        asked = 0
        with suppress(ConnectionError):  # the client closes it
            while line.frame(http2.HEADERS):
                asked += 1
        seen.put(f"asked {asked} more")

    server = peer(play)
    replies = ask(connect(server, b"a", b"b"), *[0, 1] * 4)  # whichever connection is ready first gets them all
    assert [(reply.status, reply.content) for reply in replies] == [("ok", b"a"), ("ok", b"b")] * 4
    gevent.sleep(0.05)
    server.stop()
    assert "asked 6 more" in seen.queue  # which had left by then
    assert seen.queue.count("asked") > 1


def test_no_connection_has_more_requests_than_its_server_takes(peer, connect, ask):
    def play(line, _):
        while True:
            _, _, stream, _ = line.frame(http2.HEADERS)
            line.frame(http2.DATA)
            line.say(http2.frame(http2.PING, 0, 0, b"any more"))
            assert line.frame(http2.HEADERS, http2.PING)[0] == http2.PING  # and no second request
            time.sleep(0.02)
            line.answer(stream)

    server = peer(play, {http2.MAX_CONCURRENT_STREAMS: 1})
    assert {reply.status for reply in ask(connect(server), *[0] * 40)} == {"ok"}
    assert 4 < server.connections <= 44


def test_requests_that_wait_go_out_when_the_server_takes_more(peer, connect, ask):
    def play(line, number):
        time.sleep(0.02)
        line.say(http2.frame(http2.SETTINGS, 0, 0, settings_of({http2.MAX_CONCURRENT_STREAMS: 5})))
        answering(line, number)

    server = peer(play, {http2.MAX_CONCURRENT_STREAMS: 0})
    assert {reply.status for reply in ask(connect(server), *[0] * 10)} == {"ok"}


def test_streams_that_run_out_are_no_end(peer):
    seen = Queue()

    def play(line, number):
        while True:
            stream, _, _ = line.request()
            seen.put((number, stream))
            line.answer(stream)

    addresses = [(socket.AF_INET, ("127.0.0.1", peer(play).port))]
    ended = []
    pool = Http2Pool(addresses, ended.append, first_stream=2**31 - 3)
    request = PreparedRequest(Encoder().encode([(":path", "/")]), message())
    for _ in range(30):
        pool.begin(Exchange(request, print))
        gevent.sleep(0.005)
    deadline_s = time.monotonic() + 5
    while len(ended) < 30 and time.monotonic() < deadline_s:
        gevent.sleep(0.005)
    pool.close()
    assert [exchange.failure for exchange in ended] == [None] * 30
    assert {stream for _, stream in seen.queue} == {2**31 - 3, 2**31 - 1}
    assert len(set(seen.queue)) == 30


# When time is up, and when nothing is right


def test_a_request_that_is_given_up_is_cancelled_and_its_late_answer_ignored(peer, connect, ask_in_turn):
    asked, cancelled = Queue(), Queue()

    def play(line, number):
        stream, _, _ = line.request()
        asked.put(number)
        if len(asked.queue) == 1:
            cancelled.put(line.frame(http2.RST_STREAM)[2:])
        line.answer(stream)
        answering(line, number)

    client = connect(peer(play), timeout_s=0.4)
    began_s = time.monotonic()
    replies = ask_in_turn(client, *[0] * 9)
    assert [reply.status for reply in replies] == ["DEADLINE_EXCEEDED"] + ["ok"] * 8
    assert time.monotonic() - began_s >= 0.4
    assert list(cancelled.queue) == [(1, (8).to_bytes(4))]


def test_what_waits_for_a_connection_is_given_up_in_time_too(connect, ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        client = GrpcClient("127.0.0.1", port, "/a/b", [Request(b"")], 0.05)
        assert [reply.status for reply in ask(client, 0, 0, 0)] == ["DEADLINE_EXCEEDED"] * 3
        client.close()


def wrong(*frames):
    return lambda line, _: (line.request(), line.say(*frames), line.frame())


@pytest.mark.parametrize(
    "play",
    [
        wrong(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        wrong(http2.frame(http2.PUSH_PROMISE, 0, 1, bytes(4))),
        wrong(http2.frame(http2.CONTINUATION, 0, 1, b"")),
        wrong(http2.frame(http2.HEADERS, 0, 1, b"\x88"), http2.frame(http2.PING, 0, 0, bytes(8))),
        wrong(http2.frame(http2.HEADERS, 0, 1, b"\x88"), *[http2.frame(9, 0, 1, bytes(16_384))] * 17),
        wrong(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff\xff")),
        wrong(http2.frame(http2.DATA, http2.PADDED, 1, b"\x09")),
        wrong(http2.frame(http2.RST_STREAM, 0, 1, b"")),
        wrong(http2.frame(http2.SETTINGS, 0, 0, b"abc")),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection_and_its_requests(peer, connect, ask, play):
    assert [reply.status for reply in ask(connect(peer(play)), 0)] == ["not HTTP/2"]


def test_what_is_allowed_and_means_nothing_here_ends_nothing(peer, connect, ask):
    unknown = http2.frame(200, 0xFF, 1, b"anything")
    priority = http2.frame(2, 0, 1, bytes(5))
    late = http2.frame(http2.DATA, http2.END_STREAM, 99, b"for nobody")
    window = http2.frame(http2.WINDOW_UPDATE, 0, 77, (5).to_bytes(4))

    def play(line, number):
        line.say(unknown, priority, late, window, http2.reset(55, 1), http2.frame(http2.PING, http2.ACK, 0, bytes(8)))
        answering(line, number)

    assert ask(connect(peer(play)), 0)[0].status == "ok"


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", http2.frame(http2.PING, 0, 0, bytes(8))])
def test_a_server_that_does_not_begin_with_settings_is_none(connect, ask, said):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak():
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(said)
                        connection.recv(65536)

        thread = threading.Thread(target=speak)
        thread.start()
        client = GrpcClient("127.0.0.1", listener.getsockname()[1], "/a/b", [Request(b"")], 5.0)
        assert [reply.status for reply in ask(client, 0, 0)] == ["not HTTP/2"] * 2
        client.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_connection_that_ends_in_the_middle_ends_its_requests_and_later_ones_have_another(peer, connect, ask_in_turn):
    asked = Queue()

    def play(line, number):
        stream, _, _ = line.request()
        asked.put(number)
        if len(asked.queue) == 1:
            line.say(head(line, stream), http2.frame(http2.DATA, 0, stream, message()[:3]))
            return
        line.answer(stream)
        answering(line, number)

    replies = ask_in_turn(connect(peer(play)), *[0] * 9)
    assert [reply.status for reply in replies] == ["connection closed"] + ["ok"] * 8
