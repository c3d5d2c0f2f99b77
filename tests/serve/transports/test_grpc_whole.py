"""Which calls go to the fast lane and which go on: each one of the two ways, whole, and headers as they were."""

import itertools
from functools import partial

import pytest
from hpack import Decoder, Encoder, NeverIndexedHeaderTuple
from hypothesis import event, given
from hypothesis import strategies as st

from mlserve.serve.dialects import CALLS
from mlserve.serve.protocols.dialect import InferCall
from mlserve.serve.transports.grpc_asked import read_asked
from mlserve.serve.transports.grpc_inspection import Abuse, Inspection
from mlserve.serve.transports.grpc_whole import WholeCalls
from mlserve.serve.transports.receiving import Receiving
from mlserve.wire import http2_frames as http2
from mlserve.wire.http2_headers import HeaderReader

INFER, PREDICT, *_ = (call for call in CALLS if isinstance(call, InferCall))
LIMIT_BYTES = 40_000
END, END_HEADERS, PRIORITY = http2.END_STREAM, http2.END_HEADERS, http2.PRIORITY

headers = st.fixed_dictionaries(
    {
        ":method": st.just("POST"),
        ":path": st.sampled_from([INFER.path, INFER.path, PREDICT.path, "/other.Service/Call"]),
        "content-type": st.just("application/grpc"),
    },
    optional={
        "grpc-timeout": st.sampled_from(["1S", "250m", "7u", "later"]),
        "authorization": st.sampled_from(["Bearer one", "Bearer two"]),
        "x-api-key": st.just("three"),
        "x-more": st.text("ab", max_size=2),
    },
)
WAYS = ["whole"] * 4 + ["wider"] * 3 + ["two frames", "packed", "padded headers", "priority", "open"]
calls = st.lists(headers, min_size=1, max_size=3).flatmap(
    lambda pool: st.lists(
        st.tuples(
            st.sampled_from(pool),
            st.one_of(st.integers(0, 300), st.integers(15_000, 20_000)).map(bytes),
            st.sampled_from(WAYS),
            st.sampled_from([None] * 9 + [0, 60, 4096]),  # the bytes that the client's table may have from now on
        ),
        min_size=3,
        max_size=20,
    )
)


def looking(room=1000):
    whole = WholeCalls(HeaderReader(partial(read_asked, calls={INFER.path: INFER, PREDICT.path: PREDICT})), LIMIT_BYTES)
    whole.room = room
    return Inspection(LIMIT_BYTES, 100, Receiving(1 << 30), 0.0, whole), whole


def message(payload, packed=0):
    return bytes((packed,)) + len(payload).to_bytes(4) + payload


def frames_of(stream, block, payload, way):
    flags, before = END_HEADERS, b""
    if way == "priority":
        flags, before = flags | PRIORITY, bytes(4) + b"\x0f"
    if way == "padded headers":
        yield http2.frame(http2.HEADERS, flags | http2.PADDED, stream, b"\x03" + block + bytes(3))
    else:
        yield http2.frame(http2.HEADERS, flags, stream, before + block)
    if way == "wider":  # as grpcio's clients do
        yield http2.frame(http2.WINDOW_UPDATE, 0, stream, (5).to_bytes(4))
    content = message(payload, packed=way == "packed")
    size = 1000 if way == "two frames" else http2.FRAME_BYTES
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    for number, piece in enumerate(pieces, 1):
        ends = END if number == len(pieces) and way != "open" else 0
        yield http2.frame(http2.DATA, ends, stream, piece)


@given(calls, st.one_of(st.just(1 << 20), st.integers(1, 4000)), st.booleans())
def test_every_call_goes_one_of_two_ways_with_the_headers_and_the_message_it_had(calls, cut, huffman):
    encoder, sent, content = Encoder(), {}, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    for number, (fields, payload, way, table_bytes) in enumerate(calls):
        stream = 2 * number + 1
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        content += b"".join(frames_of(stream, encoder.encode(list(fields.items()), huffman=huffman), payload, way))
        sent[stream] = fields, message(payload, packed=way == "packed"), way
    looked, whole = looking()
    passed = b"".join(looked.read(content[start : start + cut], 0.0) for start in range(0, len(content), cut))

    decoder, on = Decoder(), {}
    for kind, flags, stream, payload in http2.FrameSplitter().split(passed[len(http2.PREFACE) :]):
        if kind == http2.HEADERS:
            on[stream] = dict(decoder.decode(http2.header_block(flags, payload))), []
        elif kind == http2.DATA:
            on[stream][1].append(payload)
    taken = {call.stream: call for call in whole.found}
    assert on.keys() | taken.keys() == sent.keys()
    assert not on.keys() & taken.keys()
    for stream, (fields, pieces) in on.items():
        assert (fields, b"".join(pieces)) == sent[stream][:2] or stream in [each.stream for each in looked.refusals]
    for stream, (_, asked, payload, granted_bytes) in taken.items():
        fields, content, way = sent[stream]
        event("taken")
        assert way not in ("packed", "padded headers", "open")
        assert granted_bytes == (5 if way == "wider" else 0)
        assert message(payload) == content
        assert asked.call.path == fields[":path"]
        key = fields.get("authorization") or fields.get("x-api-key")
        assert asked.credential == (key and key.encode())
        assert asked.left_s == {"1S": 1.0, "250m": 0.25, "7u": 7e-6, None: None}[fields.get("grpc-timeout")]
    assert looked.newest_stream == max(sent, default=0)
    assert looked.refusals or looked.dropped_bytes == sum(5 + len(call.payload) for call in whole.found)


def same_calls(count, encoder, **more):
    fields = {":method": "POST", ":path": INFER.path, "content-type": "application/grpc", **more}
    for number in range(count):
        yield from frames_of(2 * number + 1, encoder.encode(list(fields.items())), b"abc", "whole")


def test_calls_that_are_alike_are_taken_from_the_third_on():
    looked, whole = looking()
    looked.read(http2.PREFACE + b"".join(same_calls(10, Encoder())), 0.0)
    assert [call.stream for call in whole.found] == list(range(5, 21, 2))
    assert looked.dropped_bytes == 8 * 8


def test_where_there_is_no_room_calls_go_on_and_headers_are_read():
    looked, whole = looking(room=0)
    content = list(same_calls(10, Encoder()))
    looked.read(http2.PREFACE + b"".join(content[:10]), 0.0)
    assert not whole.found
    whole.room = 2
    looked.read(b"".join(content[10:]), 0.0)
    assert [call.stream for call in whole.found] == [11, 13]
    assert whole.room == 0


@pytest.mark.parametrize(("new", "known", "given_up"), [(400, 0, True), (400, 20, True), (20, 20, False)])
def test_headers_that_are_new_too_often_are_given_up_whatever_comes_in_between(new, known, given_up):
    """To read them takes a millisecond for a few hundred bytes."""
    looked, whole = looking(1 << 20)
    encoder, streams = Encoder(), itertools.count(1, 2)
    fields = [(":method", "POST"), (":path", INFER.path), ("content-type", "application/grpc")]
    looked.read(http2.PREFACE, 0.0)

    def ask(block):
        whole.found.clear()
        looked.read(b"".join(frames_of(next(streams), block, b"abc", "whole")), 0.0)
        return bool(whole.found)

    assert [ask(encoder.encode(fields)) for _ in range(3)] == [False, False, True]
    for number in range(new):
        ask(encoder.encode([*fields, NeverIndexedHeaderTuple("x-one", 20 * f"{number:03}")]))
        for _ in range(known):
            ask(encoder.encode(fields))
    assert ask(encoder.encode(fields)) is not given_up


@pytest.mark.parametrize("value", ["\0certificate\0009999999999\0CN:x", "Bearer a\nb", "Bearer \x7f", "Bearer é"])
def test_what_no_field_may_hold_is_left_to_the_server_behind(value):
    fields = {":method": "POST", ":path": INFER.path, "content-type": "application/grpc", "authorization": value}
    calls = {INFER.path: INFER}
    assert read_asked(fields, calls) is None
    assert read_asked({**fields, "authorization": "Bearer right"}, calls).credential == b"Bearer right"
    assert read_asked({**fields, "authorization": "", "x-api-key": ""}, calls).credential == b""
    looked, whole = looking()
    block = Encoder().encode([*list(fields.items())[:3], NeverIndexedHeaderTuple("authorization", value)])
    content = b"".join(frame for number in range(5) for frame in frames_of(2 * number + 1, block, b"abc", "whole"))
    assert looked.read(http2.PREFACE + content, 0.0) == http2.PREFACE + content
    assert not whole.found


def test_a_stream_below_those_that_were_answered_here_is_not_let_past():
    """The server behind has not seen those, and would take it for a new one."""
    looked, whole = looking()
    encoder = Encoder()
    fields = [(":method", "POST"), (":path", INFER.path), ("content-type", "application/grpc")]
    for stream in (1, 3, 1001):
        looked.read(
            (http2.PREFACE if stream == 1 else b"")
            + b"".join(frames_of(stream, encoder.encode(fields), b"abc", "whole")),
            0.0,
        )
    assert [call.stream for call in whole.found] == [1001]
    with pytest.raises(Abuse, match="stream 7, which is not open"):
        looked.read(b"".join(frames_of(7, encoder.encode(fields), b"abc", "open")), 0.0)


@pytest.mark.parametrize("frame", [http2.reset(9, 8), http2.frame(http2.WINDOW_UPDATE, 0, 9, (5).to_bytes(4))])
def test_what_is_said_of_a_stream_that_was_never_there_ends_the_connection(frame):
    looked, _ = looking()
    with pytest.raises(Abuse, match="stream 9"):
        looked.read(http2.PREFACE + frame, 0.0)


def test_headers_that_cannot_be_read_end_it_for_the_connection_and_go_on():
    looked, whole = looking()
    broken = http2.frame(http2.HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")
    content = http2.PREFACE + broken + b"".join(list(same_calls(10, Encoder()))[2:])
    assert looked.read(content, 0.0) == content
    assert not whole.found


def test_a_stream_that_was_there_is_not_answered_again():
    looked, whole = looking()
    content = list(same_calls(4, Encoder()))
    looked.read(http2.PREFACE + b"".join(content), 0.0)
    assert [call.stream for call in whole.found] == [5, 7]
    assert looked.read(content[0] + content[1], 0.0) == content[0]  # the server behind knows that it is over
    with pytest.raises(Abuse, match="stream 5"):
        looked.read(content[4] + content[5], 0.0)
    assert len(whole.found) == 2


def test_what_is_said_of_streams_that_the_server_behind_does_not_have_stays_here():
    looked, _ = looking()
    opened = http2.frame(http2.HEADERS, END_HEADERS, 9, b"\x83")
    for_behind = http2.frame(http2.WINDOW_UPDATE, 0, 9, (5).to_bytes(4)) + http2.reset(9, 8)
    ours = http2.frame(http2.WINDOW_UPDATE, 0, 7, (6).to_bytes(4)) + http2.reset(7, 8) + http2.window_update(70_000)
    settings = http2.frame(http2.SETTINGS, 0, 0, (4).to_bytes(2) + (99).to_bytes(4))
    passed = looked.read(http2.PREFACE + settings + opened + ours + for_behind, 0.0)
    ours = (1).to_bytes(2) + bytes(4) + (5).to_bytes(2) + http2.FRAME_BYTES.to_bytes(4)  # no table, frames of 16 KiB
    assert passed == http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, settings[9:] + ours) + opened + for_behind
    assert looked.told == [
        (http2.SETTINGS, 0, 99),
        (http2.WINDOW_UPDATE, 7, 6),
        (http2.RST_STREAM, 7, 8),
        (http2.WINDOW_UPDATE, 0, 70_000),
        (http2.RST_STREAM, 9, 8),  # what of its answer waits here need not be sent
    ]
