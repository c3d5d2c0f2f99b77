"""Packed bodies: what goes in comes out, no more than is allowed comes out, and whatever is wrong is told."""

import asyncio
import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import InvalidRequest, PayloadTooLarge, UnsupportedContent
from mlserve.serve.compression import coding_taken, is_packed, pack_at_once, unpack, unpack_at_once

MEGABYTE = 1 << 20


def bare_deflate(body):
    packing = zlib.compressobj(wbits=-15)
    return packing.compress(body) + packing.flush()


PACKERS = {
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b" X-GZIP ", gzip.compress),
    "deflate": (b"deflate", zlib.compress),
    "bare deflate": (b"deflate", bare_deflate),
    "two members": (b"gzip", lambda body: gzip.compress(body[:7]) + gzip.compress(body[7:])),
}


@pytest.mark.parametrize("way", PACKERS)
@given(body=st.binary(max_size=2000))
def test_what_was_packed_is_unpacked(way, body):
    encoding, packer = PACKERS[way]
    assert is_packed(encoding)
    assert unpack_at_once(packer(body), encoding, 2000) == body


@pytest.mark.parametrize("way", PACKERS)
def test_the_limit_is_that_of_the_unpacked_body_to_the_byte(way):
    encoding, packer = PACKERS[way]
    assert unpack_at_once(packer(b"x" * 1000), encoding, 1000) == b"x" * 1000
    with pytest.raises(PayloadTooLarge, match="exceeds the maximum allowed input size of 1000"):
        unpack_at_once(packer(b"x" * 1001), encoding, 1000)


@pytest.mark.parametrize("members", [1, 50])
def test_a_bomb_costs_no_more_than_the_limit(members):
    limit = 200 << 10
    bomb = gzip.compress(b"\0" * (64 * MEGABYTE // members)) * members
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            unpack_at_once(bomb, b"gzip", limit)
        assert tracemalloc.get_traced_memory()[1] < 3 * limit + (256 << 10)
    finally:
        tracemalloc.stop()


def test_a_large_body_is_left_to_another_thread():
    assert unpack_at_once(gzip.compress(b"x" * MEGABYTE), b"gzip", 8 * MEGABYTE) is None
    assert unpack_at_once(b"x" * MEGABYTE, b"gzip", 8 * MEGABYTE) is None
    assert unpack_at_once(gzip.compress(b"x" * 1000), b"gzip", 8 * MEGABYTE) == b"x" * 1000


WHOLE = gzip.compress(b"a body of some length", mtime=0)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"", b"gzip"),
        (b"no gzip", b"gzip"),
        (WHOLE[:-1], b"gzip"),
        (WHOLE[:5], b"gzip"),
        (WHOLE + b"more", b"gzip"),
        (WHOLE[:-5] + b"12345", b"gzip"),
        (b"", b"deflate"),
        (WHOLE, b"deflate"),
        (zlib.compress(b"body")[:-1], b"deflate"),
        (zlib.compress(b"body") + b"more", b"deflate"),
        (gzip.compress(b"", mtime=0) * 2000, b"gzip"),
    ],
)
def test_a_bad_stream_is_an_invalid_request(body, encoding):
    with pytest.raises(InvalidRequest):
        unpack_at_once(body, encoding, 1000)


def test_other_codings_are_unsupported_and_none_is_none():
    assert not any(map(is_packed, (None, b"", b"identity", b"Identity")))
    for encoding in (b"br", b"gzip, gzip", b"zstd", b"gzip;q=1"):
        with pytest.raises(UnsupportedContent, match="send gzip, deflate, or the body as it is"):
            is_packed(encoding)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"gzip, deflate, br", b"gzip"),
        (b"deflate", b"deflate"),
        (b"GZIP;Q=0.5 , deflate ; q=0.9", b"deflate"),
        (b"gzip;q=0, deflate;q=0", None),
        (b"gzip;q=0.000", None),
        (b"gzip;q=nonsense", None),
        (b"identity", None),
        (b"br", None),
        (b"", None),
    ],
)
def test_a_reply_is_packed_as_the_client_says(accept, coding):
    assert coding_taken(accept) == coding


def test_a_reply_is_packed_where_it_is_worth_it():
    text = b"[0.123456789, 0.987654321]" * 1000
    packed, fields = pack_at_once(text, b"gzip")
    assert gzip.decompress(packed) == text
    assert b"content-encoding: gzip\r\n" in fields
    assert zlib.decompress(pack_at_once(text, b"deflate")[0]) == text
    assert pack_at_once(text, b"identity") == pack_at_once(text, None) == (text, b"")
    assert pack_at_once(text[:1000], b"gzip") == (text[:1000], b"")
    noise = random.Random(0).randbytes(30_000)
    assert pack_at_once(noise, b"gzip") == (noise, b"")
    assert pack_at_once(text * 10, b"gzip") is None


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
@pytest.mark.parametrize("content", [bytes, random.Random(0).randbytes], ids=["zeros", "noise"])
def test_a_body_of_just_the_allowed_size_is_unpacked_in_pieces_and_one_byte_more_is_not(size, content):
    body = content(size)
    packed = gzip.compress(body)
    assert asyncio.run(unpack(packed, b"gzip", size)) == body
    with pytest.raises(PayloadTooLarge):
        asyncio.run(unpack(packed, b"gzip", size - 1))
    with pytest.raises(InvalidRequest, match="ends too early"):
        asyncio.run(unpack(packed[:-1], b"gzip", size))


def test_a_bomb_takes_no_more_memory_than_what_is_allowed():
    limit = 8 << 20
    packed = gzip.compress(bytes(4 * limit))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            asyncio.run(unpack(packed, b"gzip", limit))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit + (3 << 20)
