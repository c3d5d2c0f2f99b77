"""The way back: whatever the windows, every frame arrives once, in order, and never more than the client lets come."""

import asyncio

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from mlserve.serve.transports.grpc_ending import ending, trailers_of
from mlserve.serve.transports.grpc_inspection import Abuse, Inspection
from mlserve.serve.transports.grpc_way_back import WayBack
from mlserve.serve.transports.receiving import Receiving
from mlserve.wire import http2_frames as http2

ENDS = http2.END_HEADERS | http2.END_STREAM


class Wire(asyncio.Transport):
    """One side of a connection, and what was written to it."""

    def __init__(self):
        super().__init__()
        self.written, self.reads = b"", True

    def write(self, data):
        self.written += data

    def is_closing(self):
        return False

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True


def way_back():
    client, behind = Wire(), Wire()
    back = WayBack(client, Inspection(1 << 20, 100, Receiving(1 << 30), 0.0), lambda **_: None)
    back.connection_made(behind)
    return back, client, behind


def settle(back, first_bytes):
    """The client says where its streams' windows begin, and the server behind that it has heard it."""
    back.settle(first_bytes)
    back.data_received(http2.frame(http2.SETTINGS, http2.ACK, 0))


class Client:
    """Reads what comes, and counts what it has let come."""

    def __init__(self, first_bytes=http2.WINDOW_BYTES):
        self.window, self.first_bytes = http2.WINDOW_BYTES, first_bytes
        self.splitter, self.decoder = http2.FrameSplitter(), Decoder()
        self.heads, self.content, self.streams, self.read_bytes = {}, {}, {}, 0

    def read(self, written):
        for kind, flags, stream, payload in self.splitter.split(written[self.read_bytes :]):
            if kind == http2.HEADERS:
                fields = dict(self.decoder.decode(payload))
                self.heads.setdefault(stream, []).append(fields)
                assert bool(flags & http2.END_STREAM) == ("grpc-status" in fields)
            elif kind == http2.DATA:
                assert len(self.heads[stream]) == 1
                self.window -= len(payload)
                self.content[stream] = self.content.get(stream, b"") + payload
                if stream % 4 == 1:  # our own answer; the server behind sees to its streams' windows itself
                    self.streams[stream] = self.streams.get(stream, self.first_bytes) - len(payload)
                    assert self.streams[stream] >= 0
            assert self.window >= 0
        self.read_bytes = len(written)


def message(number, size):
    return b"\0" + size.to_bytes(4) + bytes([number + 1]) * size


def answer_from_behind(stream, content):
    pieces = [content[start : start + http2.FRAME_BYTES] for start in range(0, len(content), http2.FRAME_BYTES)]
    data = b"".join(http2.frame(http2.DATA, 0, stream, piece) for piece in pieces)
    return http2.frame(http2.HEADERS, http2.END_HEADERS, stream, b"\x88") + data + ending(stream, 0, "", answered=True)


sizes = st.one_of(st.integers(0, 200), st.integers(16_000, 17_000), st.integers(60_000, 140_000))


@given(
    answers=st.lists(st.tuples(st.booleans(), sizes), min_size=1, max_size=8),
    first_bytes=st.sampled_from([0, 100, 65_535, 1 << 30]),
    cut=st.integers(1, 40_000),
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 80_000)), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_all_arrives_within_the_windows(answers, first_bytes, cut, steps, order):
    """Answers of our own, and of the server behind, cut anywhere, while the client opens its windows bit by bit."""
    back, wire, behind = way_back()
    client = Client(first_bytes)
    settle(back, first_bytes)
    wanted = {4 * number + (1 if own else 3): message(number, size) for number, (own, size) in enumerate(answers)}
    ours = [(stream, content[5:]) for stream, content in wanted.items() if stream % 4 == 1]
    content = b"".join(answer_from_behind(stream, wanted[stream]) for stream in wanted if stream % 4 == 3)
    doing = [("read", content[start : start + cut]) for start in range(0, len(content), cut)]
    events = [*doing[::-1]], [("answer", each) for each in ours[::-1]], [("widen", each) for each in steps]
    while any(events):
        kind, what = order.choice([each for each in events if each]).pop()
        if kind == "read":
            back.data_received(what)
        elif kind == "answer":
            back.answer(what[0], what[1], trailers_of(), 0)
        else:
            stream = 0 if what[0] % 2 else 4 * (what[0] // 2) + 1
            if stream == 0:
                client.window += what[1]
            elif stream in client.heads:
                client.streams[stream] = client.streams.get(stream, first_bytes) + what[1]
            if stream == 0 or stream in client.heads:
                back.widen(stream, what[1])
        client.read(wire.written)
    client.window += 10_000_000
    back.widen(0, 10_000_000)
    for stream, _ in ours:
        client.streams[stream] = client.streams.get(stream, first_bytes) + 10_000_000
        back.widen(stream, 10_000_000)
    client.read(wire.written)
    assert client.content == wanted
    assert {stream: heads[-1]["grpc-status"] for stream, heads in client.heads.items()} == dict.fromkeys(wanted, "0")
    assert not back.held_bytes
    assert behind.reads


def test_what_is_no_part_of_an_answer_does_not_wait_for_the_window():
    """Clients look by it whether the server lives, and may have to send before they read."""
    back, wire, behind = way_back()
    head, data = http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"), http2.frame(http2.DATA, 0, 3, bytes(10_000))
    others = [
        http2.frame(http2.PING, http2.ACK, 0, bytes(8)),
        http2.window_update(9),
        http2.frame(http2.WINDOW_UPDATE, 0, 3, (5).to_bytes(4)),
        http2.frame(http2.HEADERS, http2.END_HEADERS, 7, b"\x88"),
        http2.reset(7, 8),
    ]
    back.data_received(head + 8 * data)
    written = wire.written
    assert len(written) < 66_000
    back.data_received(b"".join(others) + data + ending(3, 0, "", answered=True))
    back.put_in(b"own")
    assert wire.written == written + b"".join(others) + b"own"
    assert behind.reads
    back.widen(0, 100_000)
    client = Client()
    client.window += 100_000
    client.read((wire.written).replace(b"own", b""))
    assert client.content == {3: bytes(90_000)}
    assert client.heads[3][-1]["grpc-status"] == "0"


def test_settings_wait_for_what_was_sent_before_they_hold_and_pings_do_not_wait_for_them():
    back, wire, _ = way_back()
    back.settle(100)
    back.data_received(http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"))
    back.data_received(5 * http2.frame(http2.DATA, 0, 3, bytes(http2.FRAME_BYTES)))
    ack, ping = http2.frame(http2.SETTINGS, http2.ACK, 0), http2.frame(http2.PING, http2.ACK, 0, bytes(8))
    before = len(wire.written)
    back.data_received(ack + ping)
    assert wire.written[before:] == ping
    back.widen(0, 100_000)
    assert wire.written.endswith(ack)


def test_the_server_behind_waits_when_too_much_waits_for_the_client():
    back, _, behind = way_back()
    back.data_received(http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"))
    for _ in range(70):
        back.data_received(http2.frame(http2.DATA, 0, 3, bytes(http2.FRAME_BYTES)))
    assert not behind.reads
    back.be_full(full=True)
    back.widen(0, 1_000_000)
    assert not behind.reads  # now the client's buffer is full
    back.be_full(full=False)
    assert behind.reads


def test_own_answers_come_after_those_that_wait_for_the_connections_window():
    """Else many small ones of ours would use it up for ever."""
    back, wire, _ = way_back()
    back.data_received(http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"))
    back.data_received(5 * http2.frame(http2.DATA, 0, 3, bytes(http2.FRAME_BYTES)))
    back.answer(1, b"ours", trailers_of(), 0)
    assert b"ours" not in wire.written
    back.widen(0, 10_000)
    assert b"ours" not in wire.written
    back.widen(0, 10_000)
    assert wire.written.endswith(http2.frame(http2.HEADERS, ENDS, 1, trailers_of()))
    assert not back.held_bytes


def test_no_lane_until_the_settings_hold_and_the_server_behind_has_sent_headers_since():
    back, _, _ = way_back()
    head = http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88")
    assert not back.may_begin
    back.settle(-1)
    back.data_received(http2.frame(http2.SETTINGS, 0, 0) + head)
    assert not back.may_begin
    back.data_received(http2.frame(http2.SETTINGS, http2.ACK, 0))
    assert not back.may_begin
    back.data_received(head)
    assert back.may_begin
    settle(back, 5)
    assert not back.may_begin


def test_headers_in_several_frames_stay_together():
    back, wire, _ = way_back()
    headers = http2.frame(http2.HEADERS, 0, 3, b"\x88"), http2.frame(http2.CONTINUATION, http2.END_HEADERS, 3, b"\x88")
    back.data_received(headers[0])
    back.put_in(b"own")
    back.data_received(headers[1][:4])
    back.put_in(b"own")
    back.data_received(headers[1][4:])
    assert wire.written == b"ownown" + b"".join(headers)


def test_an_answer_that_is_given_up_is_not_sent_any_more():
    back, wire, _ = way_back()
    back.data_received(http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"))
    back.data_received(5 * http2.frame(http2.DATA, 0, 3, bytes(http2.FRAME_BYTES)))
    back.answer(1, b"ours", trailers_of(), 0)
    back.forget(3)
    assert wire.written.endswith(http2.frame(http2.HEADERS, ENDS, 1, trailers_of())) or back.held_bytes
    back.widen(0, 100)
    assert wire.written.endswith(http2.frame(http2.HEADERS, ENDS, 1, trailers_of()))
    assert not back.held_bytes


def test_the_server_behind_gets_its_endless_window_again():
    back, _, behind = way_back()
    back.open_wide()
    assert behind.written == http2.window_update((1 << 31) - 1 - 65_535)
    back.widen(0, (1 << 31) - 1 - 65_535)
    content = http2.frame(http2.DATA, 0, 3, bytes(http2.FRAME_BYTES)) * 1024
    for _ in range(64):
        back.data_received(content)
        back.widen(0, 1024 * http2.FRAME_BYTES)
        back._client.written = b""
    assert behind.written.endswith(http2.window_update(1 << 30))


def test_a_client_may_let_more_or_less_come_of_an_answer_that_waits():
    back, wire, _ = way_back()
    settle(back, 10)
    back.answer(1, bytes(100), trailers_of(), 0)
    assert back.held_bytes == 95
    settle(back, 0)
    back.widen(1, 20)
    assert back.held_bytes == 85
    back.answer(5, bytes(10), trailers_of(), 15)  # its window was widened before it was there
    assert back.held_bytes == 85
    back.forget(1)
    assert not back.held_bytes
    client = Client(10)
    client.streams = {1: 1000, 5: 1000}
    client.read(wire.written)
    assert {stream: len(content) for stream, content in client.content.items()} == {1: 20, 5: 15}
    assert len(client.heads[1]) == 1


def test_of_many_answers_that_wait_any_may_be_given_up():
    back, wire, _ = way_back()
    back.data_received(http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"))
    back.data_received(4 * http2.frame(http2.DATA, 0, 3, bytes(http2.FRAME_BYTES)))
    for number in range(1, 100):
        back.answer(4 * number + 1, bytes([number]) * 10, trailers_of(), 0)
    assert back.held == 100
    for number in range(1, 100, 2):
        back.forget(4 * number + 1)
    back.widen(0, 5000)
    client = Client()
    client.window += 5000
    client.read(wire.written)
    answered = {stream: content[5:] for stream, content in client.content.items() if stream != 3}
    assert answered == {4 * number + 1: bytes([number]) * 10 for number in range(2, 100, 2)}
    assert (back.held, back.held_bytes) == (0, 0)


def test_what_waits_is_sent_when_the_server_behind_has_ended_and_then_the_connection_closes():
    back, wire, _ = way_back()
    closed, wire.close = [], lambda: closed.append(len(wire.written))
    back.data_received(http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"))
    back.data_received(5 * http2.frame(http2.DATA, 0, 3, bytes(http2.FRAME_BYTES)))
    back.connection_lost(None)
    assert not closed
    back.widen(0, 20_000)
    assert closed == [len(wire.written)]
    client = Client()
    client.window += 20_000
    client.read(wire.written)
    assert client.content == {3: bytes(5 * http2.FRAME_BYTES)}


def test_windows_hold_from_their_acknowledgement_on():
    back, wire, _ = way_back()
    settle(back, 0)
    back.answer(1, bytes(10), trailers_of(), 0)
    back.settle(100)
    head, ack = http2.frame(http2.HEADERS, http2.END_HEADERS, 3, b"\x88"), http2.frame(http2.SETTINGS, http2.ACK, 0)
    before = len(wire.written)
    back.data_received(head + ack + head)
    assert wire.written[before:].startswith(head + ack + head + http2.frame(http2.DATA, 0, 1, bytes(15))[:9])
    assert back.may_begin
    assert not back.held_bytes


def test_our_own_frames_come_between_whole_ones():
    back, wire, _ = way_back()
    frame = http2.frame(http2.DATA, 0, 3, bytes(100))
    back.data_received(frame + frame[:50])
    back.put_in(b"own")
    back.data_received(frame[50:] + frame[:5])
    back.put_in(b"more")
    back.data_received(frame[5:])
    assert wire.written == frame + b"own" + frame + b"more" + frame


@pytest.mark.parametrize(("stream", "more_bytes"), [(0, 0), (1, 0), (0, (1 << 31) - 65_535)])
def test_windows_that_are_none_end_the_connection(stream, more_bytes):
    back, _, _ = way_back()
    with pytest.raises(Abuse):
        back.widen(stream, more_bytes)


def test_a_status_says_what_it_has_to_in_any_words():
    fields = dict(Decoder().decode(ending(7, 3, "100% of ü\n", [("retry-after", "1")])[9:]))
    assert fields == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "3",
        "grpc-message": "100%25 of %C3%BC%0A",
        "retry-after": "1",
    }
