"""Header blocks of HTTP/2 (HPACK, RFC 7541), written and read with as little work as thousands a second allow."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from hpack import Decoder, Encoder, NeverIndexedHeaderTuple

__all__ = ["Fields", "HeaderReader", "encode_headers"]

Fields = dict[str, str]
"""Header -> value, of which the last counts where there are several."""

Said = TypeVar("Said")

logging.getLogger("hpack").setLevel(logging.WARNING)  # below, it tells headers as they are, keys and all

_UNKNOWN: Any = object()


def encode_headers(headers: Iterable[tuple[str, str]]) -> bytes:
    """A header block that touches no table, so that it holds for every stream of every connection."""
    block: bytes = Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in headers], huffman=False)
    return block


class HeaderReader(Generic[Said]):
    """Reads the header blocks of one connection, in the order they come, and has `interpret` say what each means.

    What a block means depends on its bytes and on the table that both ends keep. A peer that keeps none, or whose
    table has what it needs, sends the same bytes for the same headers: a block that leaves the table as it is gets
    decoded once, until another changes the table. At most `most_known` are remembered. `knew` says whether the last one
    was; headers of more than `most_bytes`, with 32 for each, are an error.
    """

    def __init__(self, interpret: Callable[[Fields], Said], most_known: int = 512, most_bytes: int = 1 << 16) -> None:
        self._interpret, self._most_known = interpret, most_known
        self._decoder = Decoder(most_bytes)
        self._known: dict[bytes, Said] = {}
        self.knew = False

    def read(self, block: bytes) -> Said:
        """What `block` means; shared with the equal ones, so not to be changed. Raises hpack.HPACKError."""
        known: Said = self._known.get(block, _UNKNOWN)
        if known is not _UNKNOWN:
            self.knew = True
            return known
        self.knew = False
        first, before = self._table()
        fields = {str(name): str(value) for name, value in self._decoder.decode(block)}
        said = self._interpret(fields)
        now_first, now = self._table()
        if now_first is not first or now != before:
            self._known.clear()
        else:
            if len(self._known) >= self._most_known:
                self._known.clear()
            self._known[block] = said
        return said

    def _table(self) -> tuple[object, tuple[int, int]]:
        """Its first entry, which is another one whenever something is put in; how many it has, and its size."""
        entries = self._decoder.header_table.dynamic_entries
        return entries[0] if entries else None, (len(entries), self._decoder.header_table_size)
