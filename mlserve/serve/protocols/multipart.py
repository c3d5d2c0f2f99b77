"""A form with a file in it (`multipart/form-data`, what `curl -F data=@kitten.jpg` sends): the one part that is meant.

Nothing is written to disk: a part is a slice of the body that is held already.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mlserve.errors import InvalidRequest

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

__all__ = ["MULTIPART", "Part", "read_part"]

MULTIPART = "multipart/form-data"

_MOST_PARTS = 64
_MOST_HEADERS, _MOST_HEADER_BYTES = 8, 1024

# A client's broken form is told to the client; the log is not for clients to fill.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class Part(NamedTuple):
    """What stands under a name, and the content type its sender gave it (empty for none)."""

    body: bytes
    content_type: bytes


def read_part(body: bytes, content_type: bytes, names: Sequence[str]) -> Part:
    """The one part of `body` with one of `names`.

    Raises InvalidRequest for a body that is no form, and for none or several such parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest(f"the content type '{MULTIPART}' lacks its boundary")
    # The parser stops at every line that begins as the boundary does, and a body may be made of nothing else.
    if body.count(b"--" + boundary) > _MOST_PARTS + 1:
        raise InvalidRequest(f"the form has more than {_MOST_PARTS} parts, or its boundary is too common a word")
    found = _Parts([name.encode() for name in names])
    try:
        parser = MultipartParser(
            boundary,
            found.callbacks(),
            max_header_count=_MOST_HEADERS,
            max_header_size=_MOST_HEADER_BYTES,
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest("the body is no multipart form, or its headers are too long") from error
    if len(found.parts) != 1 or not found.ended:
        listed = " or ".join(f"'{name}'" for name in names)
        raise InvalidRequest(f"the form has {len(found.parts)} parts named {listed}, expected one")
    return found.parts[0]


class _Parts:
    """Gathers the parts that are wanted while the parser goes over the body."""

    def __init__(self, names: list[bytes]) -> None:
        self._names = names
        self.parts: list[Part] = []
        self.ended = False
        self._field, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._slices: list[bytes] = []
        self._wanted = False

    def callbacks(self) -> "MultipartCallbacks":
        """What the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
            "on_end": self._on_end,
        }

    def _begin(self) -> None:
        self._headers, self._slices, self._wanted = {}, [], False

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _on_headers(self) -> None:
        name = parse_options_header(self._headers.get(b"content-disposition"))[1].get(b"name")
        self._wanted = name in self._names

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._slices.append(data[start:end])

    def _end(self) -> None:
        if self._wanted:
            self.parts.append(Part(b"".join(self._slices), self._headers.get(b"content-type", b"")))

    def _on_end(self) -> None:
        self.ended = True
