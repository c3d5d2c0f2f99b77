"""Heads of requests that have been read before: a client sends the same one time and again, down to the byte.

The parser reads a head once; a request that begins with the same bytes means the same, and is not parsed. That halves
the price of a small request.
"""

from typing import NamedTuple

__all__ = ["Head", "Heads"]

# So many heads are remembered, of at most so many bytes each.
_MOST_HEADS, _LONGEST_BYTES = 1024, 2048
_END = b"\r\n\r\n"


class Head(NamedTuple):
    """What a head says: of a request for inference by HTTP/1.1 whose connection is kept, with a body of `body_bytes`.

    `noted` are the headers that are looked at, beside the `credential`; neither they nor `headers` are changed by those
    who use them.
    """

    url: bytes
    headers: list[tuple[bytes, bytes]]
    noted: dict[bytes, bytes]
    body_bytes: int
    credential: bytes | None = None


class Heads:
    """Remembers heads by their bytes, up to and with the empty line. `passing` names headers that make one unique."""

    def __init__(self, passing: frozenset[bytes]) -> None:
        self._passing = passing
        self._heads: dict[bytes, Head] = {}
        self.find = self._heads.get

    def keep(self, request: bytes, head: Head) -> None:
        """Remembers the head of `request`, if that is one whole request and nothing else.

        Chunks make it longer than its head and body, and so it is passed over.
        """
        end = request.find(_END) + len(_END)
        if len(request) - end == head.body_bytes and end <= _LONGEST_BYTES and self._passing.isdisjoint(head.noted):
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            self._heads[request[:end]] = head
