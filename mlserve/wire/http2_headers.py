"""Header blocks of HTTP/2 (HPACK, RFC 7541), written and read with as little work as thousands a second allow."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

__all__ = ["Fields", "HeaderReader", "encode_headers"]

Fields = dict[str, str]
"""Header -> value, of which the last counts where there are several."""

Said = TypeVar("Said")

_MOST_REMEMBERED = 512
_UNKNOWN: Any = object()


def encode_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """A header block that touches no table, so that it holds for every stream of every connection."""
    block: bytes = Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in headers], huffman=False)
    return block


class HeaderReader(Generic[Said]):
    """Reads the header blocks of one connection, in the order they come, and has `interpret` say what each means.

    What a block means depends on its bytes and on the table that both ends keep. A peer that keeps none, or whose
    table has what it needs, sends the same bytes for the same headers: a block that leaves the table as it is gets
    decoded once, until another changes the table. `in_vain` blocks in a row were none that was known.
    """

    def __init__(self, interpret: Callable[[Fields], Said]) -> None:
        self._interpret = interpret
        self._decoder = Decoder()
        self._known: dict[bytes, Said] = {}
        self.in_vain = 0

    def read(self, block: bytes) -> Said:
        """What `block` means; shared with the equal ones, so not to be changed. Raises hpack.HPACKError."""
        known: Said = self._known.get(block, _UNKNOWN)
        if known is not _UNKNOWN:
            self.in_vain = 0
            return known
        self.in_vain += 1
        first, before = self._table()
        fields = {str(name): str(value) for name, value in self._decoder.decode(block)}
        said = self._interpret(fields)
        now_first, now = self._table()
        if now_first is not first or now != before:
            self._known.clear()
        else:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[block] = said
        return said

    def _table(self) -> tuple[object, tuple[int, int]]:
        """Its first entry, which is another one whenever something is put in; how many it has, and its size."""
        entries = self._decoder.header_table.dynamic_entries
        return entries[0] if entries else None, (len(entries), self._decoder.header_table_size)
