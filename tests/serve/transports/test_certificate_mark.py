"""The field that tells a gRPC server behind a socket of a certificate: each block of headers gets it, and no more."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.serve.transports.certificate_mark import CERTIFICATE_FIELD, CertificateMark, find_certificate

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, CONTINUATION, END_HEADERS, END_STREAM = 1, 9, 4, 1


@pytest.fixture
def mark():
    made = CertificateMark(b"who")
    yield made
    made.close()


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def frames(data):
    while data:
        end = 9 + int.from_bytes(data[:3])
        yield data[3], data[4], int.from_bytes(data[5:9]), data[9:end]
        data = data[end:]


def test_a_token_stands_for_the_certificate_until_the_connection_ends(mark):
    assert find_certificate(mark._token) == b"who"
    assert find_certificate(None) is find_certificate("") is find_certificate("0" * 32) is None
    mark.close()
    assert find_certificate(mark._token) is None


def test_two_connections_have_different_tokens():
    assert len({CertificateMark(b"")._token for _ in range(100)}) == 100


def test_the_field_is_read_as_one_more_of_the_block_and_the_table_stays_in_step(mark):
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    fields = [(":method", "POST"), (":path", "/a/B"), ("user-agent", "me")]
    sent = PREFACE + frame(HEADERS, END_HEADERS | END_STREAM, 1, encoder.encode(fields))
    sent += frame(HEADERS, END_HEADERS, 3, encoder.encode([*fields, ("x", "y")]))
    passed = list(frames(mark.mark(sent).removeprefix(PREFACE)))
    assert [(kind, flags, stream) for kind, flags, stream, _ in passed] == [
        (HEADERS, END_STREAM, 1),
        (CONTINUATION, END_HEADERS, 1),
        (HEADERS, 0, 3),
        (CONTINUATION, END_HEADERS, 3),
    ]
    own = (CERTIFICATE_FIELD, mark._token)
    assert decoder.decode(passed[0][3] + passed[1][3]) == [*fields, own]
    assert decoder.decode(passed[2][3] + passed[3][3]) == [*fields, ("x", "y"), own]
    assert own not in decoder.header_table.dynamic_entries


PAYLOADS = st.binary(max_size=40)
FRAMES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), PAYLOADS), max_size=12)


@given(FRAMES, st.lists(st.integers(1, 30), min_size=1))
def test_whatever_the_frames_and_however_they_are_cut(sent, cuts):
    mark = CertificateMark(b"who")
    data, passed, number = PREFACE + b"".join(frame(*each) for each in sent), b"", 0
    while data:
        size = cuts[number % len(cuts)]
        passed += mark.mark(data[:size])
        data, number = data[size:], number + 1
    mark.close()
    expected = []
    for kind, flags, stream, payload in sent:
        ends = kind in (HEADERS, CONTINUATION) and flags & END_HEADERS
        expected.append((kind, flags & ~END_HEADERS if ends else flags, stream, payload))
        if ends:
            expected.append((CONTINUATION, END_HEADERS, stream, mark._field))
    assert list(frames(passed.removeprefix(PREFACE))) == expected
