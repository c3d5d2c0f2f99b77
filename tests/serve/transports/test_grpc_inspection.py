"""The guard's eyes, without a socket: what is right goes through untouched, however it is cut; what is not is found."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.serve.transports.grpc_inspection import Abuse, Inspection
from mlserve.serve.transports.receiving import Receiving
from mlserve.wire.http2_frames import FRAME_BYTES, frame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END, END_HEADERS = 1, 4
LIMIT_BYTES = 50_000
METADATA_BYTES = 100
# No table of headers, frames of 16 KiB: what the guard adds to a client's settings.
OUR_SETTINGS = b"\0\1\0\0\0\0\0\5\0\0\x40\0"
RESOURCE_EXHAUSTED, INVALID_ARGUMENT, DEADLINE_EXCEEDED = 8, 3, 4


def inspection(*streams, receiving_bytes=1 << 30):
    """One that has seen a connection begin, and calls on `streams`."""
    made = Inspection(LIMIT_BYTES, METADATA_BYTES, Receiving(receiving_bytes), 0.0)
    begun = PREFACE + b"".join(opening(stream) for stream in streams)
    assert made.read(begun, 0.0) == begun
    return made


def opening(stream, flags=END_HEADERS):
    return frame(HEADERS, flags, stream, b"\x83")


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
            opening(2 * number + 1),
            *frames_of(
                b"".join(message(gzip.compress(one) if packed else one, packed) for one in payloads),
                2 * number + 1,
                size,
            ),
        ]
        for number, (payloads, size, packed) in enumerate(calls)
    ]
    greeting, passed_greeting = PREFACE + frame(SETTINGS, 0, 0), PREFACE + frame(SETTINGS, 0, 0, OUR_SETTINGS)
    content = greeting
    for queue in queues:  # calls begin in the order of their numbers
        content += queue.pop(0)
    while any(queues):
        content += order.choice([queue for queue in queues if queue]).pop(0)
    receiving = Receiving(1 << 30)
    looked = Inspection(LIMIT_BYTES, METADATA_BYTES, receiving, 0.0)
    passed = b"".join(looked.read(content[start : start + cut], 0.0) for start in range(0, len(content), cut))
    assert passed == passed_greeting + content.removeprefix(greeting)
    assert not looked.refusals
    assert receiving.bytes == METADATA_BYTES * len(calls)  # until they are answered
    for number in range(len(calls)):
        looked.note_answer(HEADERS, END_HEADERS | END, 2 * number + 1)
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
    assert is_without_some_data(passed, content)


def is_without_some_data(passed, content):
    """Whether `passed` is `content` up to some frame, with some frames of DATA left out."""
    while passed:
        size = 9 + int.from_bytes(content[:3])
        if passed.startswith(content[:size]) and len(content) >= size:
            passed = passed[size:]
        elif content[3] != DATA:
            return False
        content = content[size:]
    return True


@pytest.mark.parametrize(("size", "refused"), [(LIMIT_BYTES, False), (LIMIT_BYTES + 1, True), (2**32 - 1, True)])
def test_a_message_is_refused_by_what_it_says_of_its_size(size, refused):
    looked = inspection(1, 3)
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
    looked = inspection(1)
    sent = frames_of(message(wrap(b"\0" * (LIMIT_BYTES + extra)), 1), 1, piece)
    passed = b"".join(looked.read(each, 0.0) for each in sent)
    assert [one.code for one in looked.refusals] == [RESOURCE_EXHAUSTED] * extra
    assert (passed == b"".join(sent)) == (not extra)


def test_what_is_not_packed_as_it_says_is_refused():
    noise = bytes(range(256)) * 2
    for content in (noise, gzip.compress(b"a" * 100_0) + noise):
        looked = inspection(1)
        looked.read(frame(DATA, END, 1, message(content, 1)), 0.0)
        assert [one.code for one in looked.refusals] == [INVALID_ARGUMENT]


@pytest.mark.parametrize("answered", [False, True])
def test_a_refusal_says_whether_the_answer_has_begun(answered):
    looked = inspection(1)
    looked.read(frame(DATA, 0, 1, message(b"first")), 0.0)
    if answered:
        looked.note_answer(HEADERS, END_HEADERS, 1)
    looked.read(frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"), 0.0)
    assert [one.answered for one in looked.refusals] == [answered]


def test_unfinished_messages_together_are_counted_and_given_back():
    looked = inspection(1, 3, 5, receiving_bytes=1000 + 3 * METADATA_BYTES)
    for stream in (1, 3):
        looked.read(frame(DATA, 0, stream, b"\0" + (900).to_bytes(4) + b"a" * 600), 0.0)
    assert [(one.stream, one.code) for one in looked.refusals] == [(3, RESOURCE_EXHAUSTED)]
    looked.read(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), 0.0)
    assert looked.read(frame(DATA, 0, 5, b"\0" + (900).to_bytes(4) + b"a" * 600), 0.0)
    looked.close()
    assert looked._receiving.bytes == 0


def test_what_is_refused_by_its_last_bytes_is_given_back_once():
    looked = inspection(1)
    looked.read(frame(DATA, END, 1, message(gzip.compress(b"\0" * (LIMIT_BYTES + 1)), 1)), 0.0)
    assert [one.code for one in looked.refusals] == [RESOURCE_EXHAUSTED]
    assert looked._receiving.bytes == 0


SENT = st.sampled_from(
    [
        b"",
        b"\0",
        b"\0\0\0\0\7abc",
        message(b"whole"),
        message(b"a" * 900),
        message(gzip.compress(b"packed"), 1),
        message(gzip.compress(b"\0" * (LIMIT_BYTES + 1)), 1),
        message(b"not packed", 1),
        b"\0\xff\xff\xff\xff",
    ]
)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), SENT, st.sampled_from([0, END]))))
def test_no_more_is_given_back_than_was_counted(steps):
    looked = inspection(1, 3, receiving_bytes=1500)
    for now_s, (step, number, sent, ended) in enumerate(steps):
        stream = min(2 * number + 1, looked.newest_stream)
        if step == 0:
            looked.read(opening(looked.newest_stream + 2, END_HEADERS | ended), float(now_s))
        elif step == 1:
            looked.read(frame(RST_STREAM, 0, stream, b"\0\0\0\x08"), float(now_s))
        elif step == 2:
            looked.note_answer(HEADERS, END_HEADERS | ended, stream)
        elif step == 3:
            looked.look_at_clock(float(now_s), 10.0, 5.0)
        else:
            looked.read(frame(DATA, ended, stream, sent), float(now_s))
        assert 0 <= looked._receiving.bytes <= 1500
    looked.close()
    assert looked._receiving.bytes == 0


def test_open_calls_count_by_their_metadata_until_they_end():
    looked = inspection(1, 3, receiving_bytes=2 * METADATA_BYTES)
    assert looked.read(opening(5), 0.0) == opening(5)  # the table of headers must not miss any
    assert [(one.stream, one.code) for one in looked.refusals] == [(5, RESOURCE_EXHAUSTED)]
    looked.refusals.clear()
    looked.note_answer(HEADERS, END_HEADERS | END, 1)
    looked.note_answer(RST_STREAM, 0, 3)
    looked.read(opening(7) + opening(9), 0.0)
    assert not looked.refusals
    looked.close()
    assert looked._receiving.bytes == 0


def test_whole_messages_count_until_their_call_is_whole_or_answered():
    """Nobody takes a message of a call that has one only, before it is known to be the only one."""
    for answer, request in ((HEADERS, 0), (None, END)):
        looked = inspection(1)
        looked.read(frame(DATA, 0, 1, message(b"a" * 500)) * 3, 0.0)
        assert looked._receiving.bytes == METADATA_BYTES + 1500
        if answer is not None:
            looked.note_answer(answer, END_HEADERS, 1)
        looked.read(frame(DATA, request, 1, message(b"a" * 500)), 0.0)
        assert looked._receiving.bytes == METADATA_BYTES


def test_what_is_late_is_refused_and_what_comes_slowly_but_in_time_is_not():
    looked = inspection(1, 3)
    looked.note_answer(HEADERS, END_HEADERS, 3)  # a stream
    looked.read(frame(DATA, 0, 1, b"\0" + (9).to_bytes(4) + b"a"), 0.0)
    looked.read(frame(DATA, 0, 3, message(b"whole")), 0.0)  # it waits for its next message
    looked.look_at_clock(29.0, 10.0, 30.0)
    assert not looked.refusals
    looked.look_at_clock(31.0, 10.0, 30.0)
    assert [(one.stream, one.code) for one in looked.refusals] == [(1, DEADLINE_EXCEEDED)]
    looked.read(frame(DATA, 0, 3, b"\0"), 40.0)
    looked.look_at_clock(69.0, 10.0, 30.0)
    assert len(looked.refusals) == 1
    looked.look_at_clock(71.0, 10.0, 30.0)
    assert [(one.stream, one.answered) for one in looked.refusals] == [(1, False), (3, True)]
    looked.read(frame(PING, 0, 0, b"12345678")[:5], 80.0)
    looked.look_at_clock(90.0, 10.0, 30.0)
    with pytest.raises(Abuse, match="not complete after 10 s"):
        looked.look_at_clock(90.1, 10.0, 30.0)


@pytest.mark.parametrize("sent", [b"", b"\0", message(b""), message(b"whole") * 2])
def test_a_call_whose_client_never_says_that_it_is_whole_is_late_unless_it_is_answered(sent):
    looked = inspection(1, 3, 5)
    looked.note_answer(HEADERS, END_HEADERS, 3)
    looked.read(opening(7, END_HEADERS | END), 0.0)  # it is whole: the server may take its time
    looked.read(frame(DATA, END, 5, sent), 0.0)
    if sent:
        looked.read(frame(DATA, 0, 1, sent), 29.0)
    looked.look_at_clock(31.0, 10.0, 30.0)
    assert [(one.stream, one.code) for one in looked.refusals] == [(1, DEADLINE_EXCEEDED)]


def test_headers_without_an_end_end_the_connection():
    looked = inspection()
    looked.read(opening(1, END), 0.0)
    looked.read(frame(CONTINUATION, END_HEADERS, 1, b"\x84"), 9.0)
    looked.read(opening(3, END), 20.0)
    looked.read(frame(CONTINUATION, 0, 3, b"\x84"), 29.0)
    looked.look_at_clock(30.0, 10.0, 30.0)
    with pytest.raises(Abuse, match="headers of a call were not complete after 10 s"):
        looked.look_at_clock(30.1, 10.0, 30.0)


def test_a_connection_is_idle_from_the_end_of_its_last_call():
    looked = inspection()
    assert looked.idle_s(5.0) == 5.0
    looked.read(opening(1, END_HEADERS | END), 20.0)
    for now_s in (30.0, 100.0):
        looked.read(frame(PING, 0, 0, b"12345678"), now_s)
        looked.look_at_clock(now_s, 10.0, 30.0)
    assert looked.idle_s(100.0) == 0.0
    looked.note_answer(HEADERS, END_HEADERS, 1)
    looked.note_answer(DATA, END, 1)
    looked.read(frame(PING, 0, 0, b"12345678"), 150.0)
    looked.look_at_clock(150.0, 10.0, 30.0)
    assert looked.idle_s(150.0) == 50.0
    assert looked.newest_stream == 1


def test_what_comes_for_a_call_that_is_over_is_dropped():
    looked = inspection(1, 3)
    looked.note_answer(HEADERS, END_HEADERS | END, 1)
    rest = frame(DATA, END, 1, message(b"the rest"))
    assert looked.read(rest, 0.0) == b""
    assert looked.dropped_bytes == len(rest) - 9
    whole = frame(DATA, END, 3, message(b"whole"))
    assert looked.read(whole + whole, 0.0) == whole
    assert not looked.refusals


@given(
    st.sampled_from([DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION, 200]),
    st.integers(0, 255),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=50),
)
def test_the_reserved_bit_makes_no_second_call_of_one(kind, flags, stream, payload):
    """Behind, the byte 0 and then ff 00 00 00 05 on one stream would be a message of 4 GB."""
    looked = inspection(1)
    begun = frame(DATA, 0, 1, b"\0")
    assert looked.read(begun, 0.0) == begun
    with pytest.raises(Abuse, match="reserved"):
        looked.read(frame(kind, flags, stream | 1 << 31, payload), 0.0)


def test_whoever_says_nothing_is_let_go():
    with pytest.raises(Abuse):
        Inspection(LIMIT_BYTES, METADATA_BYTES, Receiving(1), 0.0).look_at_clock(10.1, 10.0, 30.0)


@pytest.mark.parametrize(
    ("kind", "flags", "payload"), [(PING, 0, b"12345678"), (SETTINGS, 0, b""), (2, 0, b"\0\0\0\0\1"), (DATA, 0, b"")]
)
def test_a_flood_of_frames_without_a_request_ends_the_connection(kind, flags, payload):
    looked = inspection(1)
    one = frame(kind, flags, 1, payload)
    for second in range(3):  # so many a second are nothing unusual
        passed = frame(SETTINGS, 0, 0, OUR_SETTINGS) if kind == SETTINGS else one
        assert looked.read(one * 1000, float(second)) == passed * 1000
    with pytest.raises(Abuse, match="more than 1000 frames"):
        looked.read(one, 2.9)


def test_a_frame_larger_than_any_that_was_allowed_ends_the_connection():
    looked = inspection(1)
    assert looked.read(frame(DATA, END, 1, message(b"a" * (FRAME_BYTES - 5))), 0.0)
    with pytest.raises(Abuse, match="16385"):
        looked.read(frame(DATA, END, 3, b"a" * (FRAME_BYTES + 1))[:20], 0.0)


def test_padding_is_no_part_of_a_message():
    looked = inspection(1)
    padded = frame(DATA, 0x8 | END, 1, bytes((3,)) + message(b"hello") + b"\0\0\0")
    assert looked.read(padded, 0.0) == padded
    assert not looked.refusals
