"""The guard's eyes, without a socket: what is right goes through untouched, however it is cut; what is not is found."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.serve.transports.grpc_inspection import FRAME_BYTES, Abuse, Inspection, frame
from mlserve.serve.transports.receiving import Receiving

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0, 1, 3, 4, 6
END = 1
LIMIT_BYTES = 50_000
RESOURCE_EXHAUSTED, INVALID_ARGUMENT, DEADLINE_EXCEEDED = 8, 3, 4


def inspection(receiving_bytes=1 << 30):
    made = Inspection(LIMIT_BYTES, Receiving(receiving_bytes), 0.0)
    assert made.read(PREFACE, 0.0) == PREFACE
    return made


def message(payload, packed=0):
    return bytes((packed,)) + len(payload).to_bytes(4) + payload


def frames_of(content, stream, *sizes, ended=True):
    """`content` as DATA in frames of `sizes`, again and again."""
    found, position, turn = [], 0, 0
    while position < len(content):
        size = sizes[turn % len(sizes)]
        found.append(frame(DATA, 0, stream, content[position : position + size]))
        position, turn = position + size, turn + 1
    if ended:
        found.append(frame(DATA, END, stream, b""))
    return found


PAYLOADS = st.lists(st.integers(0, 3000).map(bytes), min_size=1, max_size=4)


@given(
    calls=st.lists(st.tuples(PAYLOADS, st.integers(1, 5000), st.booleans()), min_size=1, max_size=4),
    cut=st.integers(1, 4000),
    order=st.randoms(use_true_random=False),
)
def test_what_is_right_goes_through_byte_for_byte(calls, cut, order):
    """Calls of several messages, plain and packed, their frames mixed and the bytes cut anywhere."""
    queues = [
        [
            frame(HEADERS, 4, 2 * number + 1, b"\x83"),
            *frames_of(
                b"".join(message(gzip.compress(one) if packed else one, packed) for one in payloads),
                2 * number + 1,
                size,
            ),
        ]
        for number, (payloads, size, packed) in enumerate(calls)
    ]
    content = PREFACE + frame(SETTINGS, 0, 0)
    while any(queues):
        content += order.choice([queue for queue in queues if queue]).pop(0)
    receiving = Receiving(1 << 30)
    looked = Inspection(LIMIT_BYTES, receiving, 0.0)
    passed = b"".join(looked.read(content[start : start + cut], 0.0) for start in range(0, len(content), cut))
    assert passed == content
    assert not looked.refusals
    assert receiving.bytes == 0


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_passed_on_or_end_the_connection(content, cut):
    looked = inspection()
    passed = b""
    try:
        for start in range(0, len(content), cut):
            passed += looked.read(content[start : start + cut], 0.0)
    except Abuse:
        return
    assert looked.refusals or content.startswith(passed)


@pytest.mark.parametrize(("size", "refused"), [(LIMIT_BYTES, False), (LIMIT_BYTES + 1, True), (2**32 - 1, True)])
def test_a_message_is_refused_by_what_it_says_of_its_size(size, refused):
    looked = inspection()
    begun = frame(DATA, 0, 1, b"\0" + size.to_bytes(4) + b"a")
    assert looked.read(begun, 0.0) == (b"" if refused else begun)
    assert [one.code for one in looked.refusals] == [RESOURCE_EXHAUSTED] * refused
    # What more of it comes is dropped, and what else comes is not.
    other = frame(DATA, END, 3, message(b"other"))
    more = frame(DATA, 0, 1, b"a" * 100)
    assert looked.read(more + other, 0.0) == (other if refused else more + other)
    assert looked.dropped_bytes == (106 if refused else 0)


@pytest.mark.parametrize("wrap", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("piece", [1, 7, FRAME_BYTES])
def test_a_packed_message_is_refused_by_what_it_unpacks_to(wrap, extra, piece):
    looked = inspection()
    sent = frames_of(message(wrap(b"\0" * (LIMIT_BYTES + extra)), 1), 1, piece)
    passed = b"".join(looked.read(each, 0.0) for each in sent)
    assert [one.code for one in looked.refusals] == [RESOURCE_EXHAUSTED] * extra
    assert (passed == b"".join(sent)) == (not extra)


def test_what_is_not_packed_as_it_says_is_refused():
    noise = bytes(range(256)) * 2
    for content in (noise, gzip.compress(b"a" * 100_0) + noise):
        looked = inspection()
        looked.read(frame(DATA, END, 1, message(content, 1)), 0.0)
        assert [one.code for one in looked.refusals] == [INVALID_ARGUMENT]


def test_a_later_message_of_a_stream_is_refused_as_one_whose_answer_may_have_begun():
    looked = inspection()
    looked.read(frame(DATA, 0, 1, message(b"first")), 0.0)
    looked.read(frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"), 0.0)
    assert [one.answered for one in looked.refusals] == [True]


def test_unfinished_messages_together_are_counted_and_given_back():
    looked = inspection(receiving_bytes=1000)
    for stream in (1, 3):
        looked.read(frame(DATA, 0, stream, b"\0" + (900).to_bytes(4) + b"a" * 600), 0.0)
    assert [(one.stream, one.code) for one in looked.refusals] == [(3, RESOURCE_EXHAUSTED)]
    looked.read(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), 0.0)
    assert looked.read(frame(DATA, 0, 5, b"\0" + (900).to_bytes(4) + b"a" * 600), 0.0)
    looked.close()
    assert looked._receiving.bytes == 0


def test_what_is_late_is_refused_and_what_comes_slowly_but_in_time_is_not():
    looked = inspection()
    looked.read(frame(DATA, 0, 1, b"\0" + (9).to_bytes(4) + b"a"), 0.0)
    looked.read(frame(DATA, 0, 3, message(b"whole")), 0.0)  # a stream that waits for its next message
    looked.look_at_clock(29.0, 10.0, 30.0)
    assert not looked.refusals
    looked.look_at_clock(31.0, 10.0, 30.0)
    assert [(one.stream, one.code) for one in looked.refusals] == [(1, DEADLINE_EXCEEDED)]
    looked.read(frame(PING, 0, 0, b"12345678")[:5], 40.0)
    looked.look_at_clock(50.0, 10.0, 30.0)
    with pytest.raises(Abuse, match="not complete after 10 s"):
        looked.look_at_clock(50.1, 10.0, 30.0)


def test_whoever_says_nothing_is_let_go():
    with pytest.raises(Abuse):
        Inspection(LIMIT_BYTES, Receiving(1), 0.0).look_at_clock(10.1, 10.0, 30.0)


@pytest.mark.parametrize(
    ("kind", "flags", "payload"), [(PING, 0, b"12345678"), (SETTINGS, 0, b""), (2, 0, b"\0\0\0\0\1"), (DATA, 0, b"")]
)
def test_a_flood_of_frames_without_a_request_ends_the_connection(kind, flags, payload):
    looked = inspection()
    one = frame(kind, flags, 1, payload)
    for second in range(3):  # so many a second are nothing unusual
        assert looked.read(one * 1000, float(second)) == one * 1000
    with pytest.raises(Abuse, match="more than 1000 frames"):
        looked.read(one, 2.9)


def test_a_frame_larger_than_any_that_was_allowed_ends_the_connection():
    looked = inspection()
    assert looked.read(frame(DATA, END, 1, message(b"a" * (FRAME_BYTES - 5))), 0.0)
    with pytest.raises(Abuse, match="16385"):
        looked.read(frame(DATA, END, 3, b"a" * (FRAME_BYTES + 1))[:20], 0.0)


def test_padding_is_no_part_of_a_message():
    looked = inspection()
    padded = frame(DATA, 0x8 | END, 1, bytes((3,)) + message(b"hello") + b"\0\0\0")
    assert looked.read(padded, 0.0) == padded
    assert not looked.refusals
