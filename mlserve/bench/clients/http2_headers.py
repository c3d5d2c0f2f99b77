"""Header blocks of HTTP/2 (HPACK, RFC 7541), written and read with as little work as a load generator can afford."""

from collections.abc import Iterable

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

__all__ = ["Fields", "HeaderReader", "encode_headers"]

Fields = dict[str, str]
"""Header -> value, of which the last counts where there are several. Shared: not to be changed."""

_MOST_REMEMBERED = 512


def encode_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """A header block that touches no table, so that it holds for every stream of every connection."""
    block: bytes = Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in headers], huffman=False)
    return block


class HeaderReader:
    """Reads the header blocks of one connection, in the order they come.

    Where the peer keeps no table, which is what we ask of it, a block's meaning depends on its bytes alone, so each is
    decoded once. Where it does, every block goes through the decoder. Raises hpack.HPACKError for bytes that are none.
    """

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._known: dict[bytes, Fields] = {}

    def read(self, block: bytes) -> Fields:
        """The headers of `block`."""
        known = self._known.get(block)
        if known is not None:
            return known
        without_table = not self._decoder.header_table_size
        fields = {str(name): str(value) for name, value in self._decoder.decode(block)}
        if self._decoder.header_table_size:
            self._known.clear()  # the peer has begun to use its table: what was learnt without it is over
        elif without_table:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[block] = fields
        return fields
