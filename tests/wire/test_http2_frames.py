import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.wire import http2_frames as http2
from mlserve.wire.http2_frames import FRAME_BYTES, FrameSplitter, Http2Error

FRAMES = st.tuples(
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**31 - 1),
    st.one_of(st.binary(max_size=40), st.integers(0, FRAME_BYTES).map(bytes)),
)


@given(frames=st.lists(FRAMES, max_size=8), data=st.data())
def test_frames_are_the_same_however_their_bytes_come(frames, data):
    content = b"".join(http2.frame(*frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=20)))
    splitter = FrameSplitter()
    parts = [content[start:end] for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert [frame for part in parts for frame in splitter.split(part)] == frames


def test_the_reserved_bit_of_a_streams_number_is_passed_over():
    whole = bytearray(http2.frame(http2.DATA, 0, 5, b"x"))
    whole[5] |= 0x80
    assert FrameSplitter().split(bytes(whole)) == [(http2.DATA, 0, 5, b"x")]


def test_a_frame_larger_than_was_allowed_is_a_fault_as_soon_as_its_length_is_known():
    largest = http2.frame(http2.DATA, 0, 1, bytes(FRAME_BYTES))
    assert len(FrameSplitter().split(largest)) == 1
    with pytest.raises(Http2Error, match="16385 bytes"):
        FrameSplitter().split(http2.frame(http2.DATA, 0, 1, bytes(FRAME_BYTES + 1))[:9])


def test_what_another_protocol_says_is_a_fault():
    with pytest.raises(Http2Error):
        FrameSplitter().split(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@given(st.binary(max_size=50), st.integers(0, 255))
def test_padding_is_taken_off(content, padding):
    padded = bytes([padding]) + content + bytes(padding)
    assert http2.payload_of(http2.PADDED, padded) == content
    assert http2.payload_of(0, content) == content
    assert http2.header_block(
        http2.PADDED | http2.PRIORITY, bytes([padding]) + b"prior" + content + bytes(padding)
    ) == (content)


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abc"])
def test_more_padding_than_frame_is_a_fault(payload):
    with pytest.raises(Http2Error, match="padding"):
        http2.payload_of(http2.PADDED, payload)


@given(st.integers(1, 4 * FRAME_BYTES))
def test_a_block_of_headers_is_cut_into_frames_that_hold_it(size):
    block = bytes(number % 251 for number in range(size))
    frames = FrameSplitter().split(b"".join(http2.header_frames(block, 3)))
    assert b"".join(payload for _, _, _, payload in frames) == block
    assert [kind for kind, _, _, _ in frames] == [http2.HEADERS] + [http2.CONTINUATION] * (len(frames) - 1)
    assert [flags for _, flags, _, _ in frames] == [0] * (len(frames) - 1) + [http2.END_HEADERS]


def test_the_greeting_is_the_preface_the_settings_and_a_larger_window():
    greeting = http2.greeting()
    assert greeting.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    settings, window = FrameSplitter().split(greeting[24:])
    assert settings[:3] == (http2.SETTINGS, 0, 0)
    assert http2.read_settings(settings[3]) == {1: 0, 2: 0, 4: 2**31 - 1}
    assert window[:3] == (http2.WINDOW_UPDATE, 0, 0)
    assert http2.uint32(window[3]) + http2.WINDOW_BYTES == 2**31 - 1


@pytest.mark.parametrize("read", [http2.read_settings, http2.uint32])
def test_a_payload_of_another_length_is_a_fault(read):
    with pytest.raises(Http2Error):
        read(b"abc")
