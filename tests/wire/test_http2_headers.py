import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given
from hypothesis import strategies as st

from mlserve.wire.http2_headers import HeaderReader, encode_headers

NAMES = st.sampled_from([":status", "content-type", "grpc-status", "grpc-message", "server-timing", "x-one", "x-two"])
HEADERS = st.lists(st.tuples(NAMES, st.text("abc;=. 012", max_size=30)), max_size=6)


@given(HEADERS)
def test_a_written_block_says_the_same_on_any_stream_of_any_connection(headers):
    block = encode_headers(headers)
    decoder = Decoder()
    for _ in range(2):
        assert [(str(name), str(value)) for name, value in decoder.decode(block)] == headers
    assert not decoder.header_table.dynamic_entries


@given(st.lists(st.tuples(HEADERS, st.sampled_from([None, 0, 64, 4096]), st.booleans()), max_size=12))
def test_blocks_are_read_as_hpack_reads_them_whether_a_table_is_kept_or_not(blocks):
    """A server may use its table, give it up, and take it up again; the same bytes then mean something else."""
    encoder, reader, decoder = Encoder(), HeaderReader(dict), Decoder()
    for headers, table_bytes, huffman in blocks:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        block = encoder.encode(headers, huffman=huffman)
        assert reader.read(block) == dict(decoder.decode(block)) == dict(headers)


def test_a_block_is_read_once_where_no_table_is_kept():
    encoder, reader = Encoder(), HeaderReader(dict)
    encoder.header_table_size = 0
    encoder.encode([])  # says so
    reader.read(b"\x20")
    block = encoder.encode([(":status", "200"), ("content-type", "application/grpc")])
    assert reader.read(block) is reader.read(block)
    for number in range(5000):  # what it remembers has an end, and reading goes on beyond it
        assert reader.read(encoder.encode([("server-timing", str(number))])) == {"server-timing": str(number)}


def test_a_block_that_leaves_the_table_as_it_is_is_read_once_until_the_table_changes():
    encoder, reader = Encoder(), HeaderReader(dict)
    same, others = [("grpc-status", "0")], [("x-one", "1")]
    first = reader.read(encoder.encode(same))  # goes into the table
    block = encoder.encode(same)
    assert len(block) == 1
    again = reader.read(block)
    assert again is not first
    assert not reader.knew
    assert reader.read(block) is again
    assert reader.knew
    reader.read(encoder.encode(others))
    assert reader.read(block) == dict(others)  # the table's first entry is another one now
    assert reader.read(encoder.encode(same)) == dict(same)


@given(st.binary(max_size=60))
def test_any_bytes_are_headers_or_a_fault_of_hpack(block):
    reader = HeaderReader(dict)
    try:
        assert all(isinstance(value, str) for value in reader.read(block).values())
    except HPACKError:
        with pytest.raises(HPACKError):
            Decoder().decode(block)
