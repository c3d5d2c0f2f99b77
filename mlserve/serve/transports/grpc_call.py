"""An open gRPC call, and its messages, followed through the bytes that come of them.

A message has five bytes before it, whether it is packed and how long it is (gRPC over HTTP/2,
"Length-Prefixed-Message"), so its size is known before any of it is kept; and a packed one is unpacked here, into
nothing, to know what it holds. Pure: bytes in; the caller brings the time.
"""

import zlib

from mlserve.serve.transports.grpc_whole import MESSAGE_PREFIX, is_one_message
from mlserve.serve.transports.receiving import Receiving

__all__ = ["RESOURCE_EXHAUSTED", "TOO_MUCH", "Call", "Unwelcome"]

_PREFIX_BYTES = MESSAGE_PREFIX.size
# deflate makes at most so many bytes of one (zlib's own documentation): below that nothing need be unpacked to know.
_MOST_RATIO = 1032
# zlib finds out itself whether it is gzip or zlib that it unpacks.
_EITHER_WRAPPING = 47

_INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 3, 8
TOO_MUCH = "the server is receiving too much at once; try again later"


class Unwelcome(Exception):
    """A message that ends its call. `code` is a gRPC status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class Call:
    """What is known of a call, for as long as it is open.

    `since_s` is when what is waited for began, the request or a message of a stream; None where nothing is waited for.
    `taken_bytes` are counted in what the server receives, and are the caller's to give back when the call is over.
    """

    __slots__ = (
        "_left_bytes",
        "_most_bytes",
        "_prefix",
        "_receiving",
        "_unpacked_bytes",
        "_unpacking",
        "is_answered",
        "is_sent",
        "since_s",
        "taken_bytes",
    )

    def __init__(self, most_bytes: int, receiving: Receiving, now_s: float) -> None:
        self._most_bytes, self._receiving = most_bytes, receiving
        self.since_s: float | None = now_s
        self.is_answered = self.is_sent = False  # the server has begun to answer; the client has sent all
        self._prefix = b""
        self._left_bytes = self.taken_bytes = self._unpacked_bytes = 0
        self._unpacking: zlib._Decompress | None = None

    def is_all_of(self, data: bytes, start: int, end: int) -> bool:
        """Whether the last bytes of the call are one plain message, which nearly every request is."""
        if self._left_bytes or self._prefix or self.is_sent:
            return False
        return is_one_message(data, start, end, self._most_bytes)

    def read(self, view: memoryview, now_s: float) -> None:
        """Follows the messages through what came of them. Raises Unwelcome at the first that must not go on."""
        while view:
            if self._left_bytes == 0:
                view = self._begin(view, now_s)
                continue
            piece = view[: self._left_bytes]
            view = view[len(piece) :]
            self._left_bytes -= len(piece)
            self._read_piece(piece)
            if self._left_bytes == 0:
                self._end_message()

    def note_answer(self) -> None:
        """The server has begun to answer before the client has sent all: it takes a message at a time."""
        self.is_answered = True
        if not self._left_bytes and not self._prefix:
            self._hand_on()

    def end(self) -> None:
        """The client has sent all."""
        self.is_sent = True
        self._hand_on()

    def _begin(self, view: memoryview, now_s: float) -> memoryview:
        """Reads what is there of a message's five bytes; returns what follows."""
        if self.since_s is None:
            self.since_s = now_s
        wanted = _PREFIX_BYTES - len(self._prefix)
        self._prefix += bytes(view[:wanted])
        if len(self._prefix) < _PREFIX_BYTES:
            return view[wanted:]
        packed, message_bytes = MESSAGE_PREFIX.unpack(self._prefix)
        self._prefix, self._left_bytes = b"", message_bytes
        if message_bytes > self._most_bytes:
            raise Unwelcome(
                RESOURCE_EXHAUSTED,
                f"the message has {message_bytes} bytes, which exceeds the maximum allowed input size of "
                f"{self._most_bytes}",
            )
        if packed and message_bytes * _MOST_RATIO > self._most_bytes:
            self._unpacking, self._unpacked_bytes = zlib.decompressobj(_EITHER_WRAPPING), 0
        if message_bytes == 0:
            self._end_message()
        return view[wanted:]

    def _read_piece(self, piece: memoryview) -> None:
        if not self._receiving.take(len(piece)):
            raise Unwelcome(RESOURCE_EXHAUSTED, TOO_MUCH)
        self.taken_bytes += len(piece)
        if self._unpacking is None:
            return
        try:
            room_bytes = self._most_bytes - self._unpacked_bytes
            self._unpacked_bytes += len(self._unpacking.decompress(piece, room_bytes + 1))
        except zlib.error as error:
            raise Unwelcome(_INVALID_ARGUMENT, "the message is not compressed as its grpc-encoding says") from error
        if self._unpacked_bytes > self._most_bytes:
            raise Unwelcome(
                RESOURCE_EXHAUSTED,
                f"the message has more than {self._most_bytes} bytes once it is unpacked, which exceeds the maximum "
                f"allowed input size of {self._most_bytes}",
            )
        if self._unpacking.unused_data:
            raise Unwelcome(_INVALID_ARGUMENT, "the compressed message goes on behind its end")

    def _end_message(self) -> None:
        self._unpacking = None
        if self.is_answered:  # the server takes a message at a time; else it may keep them until it has all
            self._hand_on()

    def _hand_on(self) -> None:
        """What came is whole: for now nothing more is waited for."""
        self._receiving.release(self.taken_bytes)
        self.taken_bytes, self.since_s = 0, None
