"""What a gRPC client sends, looked through frame by frame: how large its messages are, and how long its calls take.

Headers are read only to find the calls that need not go on, for they came whole and can be answered here; of the others
they are the business of the server behind. So nothing tells a stream from a call of one message but its answer, which
only a stream is given before its client has sent all. Pure: bytes in, bytes out; the caller brings the time.
"""

from typing import NamedTuple

from mlserve.serve.transports.grpc_call import RESOURCE_EXHAUSTED, TOO_MUCH, Call, Unwelcome
from mlserve.serve.transports.grpc_whole import MESSAGE_PREFIX, WholeCalls
from mlserve.serve.transports.receiving import Receiving
from mlserve.wire.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    FRAME_HEAD,
    HEAD_BYTES,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Error,
    frame,
    read_settings,
    uint32,
)

__all__ = ["Abuse", "Inspection", "Refusal", "Told"]

_PRIORITY = 2
_LAST_STREAM = 0x7FFF_FFFF
_PREFIX_BYTES = MESSAGE_PREFIX.size
_OUR_SETTINGS = b"".join(
    name.to_bytes(2) + value.to_bytes(4) for name, value in ((HEADER_TABLE_SIZE, 0), (MAX_FRAME_SIZE, FRAME_BYTES))
)
_MOST_SETTINGS_BYTES = 1024
# Frames that ask for work and carry no request. So many may come in a second.
_MOST_IDLE_FRAMES = 1000
_DEADLINE_EXCEEDED = 4  # the gRPC status


class Abuse(Exception):
    """The client breaks the protocol, or wears the server out by keeping to it: its connection ends."""


class Refusal(NamedTuple):
    """A call that ends here. `code` is a gRPC status. `answered`: the server behind has begun to answer."""

    stream: int
    code: int
    message: str
    answered: bool


class Told(NamedTuple):
    """What a client says of answers: WINDOW_UPDATE; RST_STREAM; or SETTINGS, whose `number` is where the windows of
    streams begin, -1 where they do not say.
    """

    kind: int
    stream: int
    number: int


class Inspection:
    """One connection's. `refusals` are those that `read` and `look_at_clock` have found, for the caller to take.

    An open call counts as `metadata_bytes`, and its messages count until they are known to be handed on.

    What is found by `whole` does not go on. What is `told` of answers is for the caller to take, too.
    """

    def __init__(
        self,
        most_message_bytes: int,
        metadata_bytes: int,
        receiving: Receiving,
        now_s: float,
        whole: WholeCalls | None = None,
    ) -> None:
        self._most_bytes, self._metadata_bytes, self._receiving = most_message_bytes, metadata_bytes, receiving
        self._rest = b""
        self._since_s = self._busy_s = now_s  # when what is not complete began; when a call was open last
        self._block_since_s: float | None = None  # when the headers began that are not complete
        self._greeted = self.has_greeted = False  # a client's first bytes are there; its settings are, too
        self.whole = whole
        self._calls: dict[int, Call] = {}
        self._idle_frames, self._second_s = 0, now_s
        self.newest_stream = self._newest_behind = 0  # of all; of those that went on
        self.refusals: list[Refusal] = []
        self.told: list[Told] = []
        self.dropped_bytes = 0
        self._instead = b""

    def read(self, data: bytes, now_s: float) -> bytes:
        """What of `data` goes on to the server behind: whole frames. Raises Abuse.

        `dropped_bytes` grows by those of DATA that do not go on: nobody else will make room for more of them. Nor does
        go on what is said of the connection's window, and of streams that are not open there.
        """
        if self._rest:
            data = self._rest + data
        else:
            self._since_s = now_s
        size, position, kept = len(data), 0, 0
        if not self._greeted:
            self._greeted = _is_greeting(data)
            position = len(PREFACE) if self._greeted else size
        pieces: list[bytes] = []
        while size - position >= HEAD_BYTES:
            high, low, kind, flags, stream = FRAME_HEAD.unpack_from(data, position)
            length = high << 8 | low
            if length > FRAME_BYTES or stream > _LAST_STREAM:
                raise _breach(length, stream)
            end = position + HEAD_BYTES + length
            if end > size:
                break
            after = self._look_at(kind, flags, stream, data, position + HEAD_BYTES, end, now_s)
            if after < 0:
                break
            if after:
                pieces += (data[kept:position], self._instead)
                kept, end, self._instead = after, after, b""
            position = end
        if not self._greeted:
            position = 0
        elif position:
            self._since_s = now_s
        self._rest = data[position:]
        pieces.append(data[kept:position])
        return b"".join(pieces) if kept else pieces[0]

    def look_at_clock(self, now_s: float, head_s: float, request_s: float) -> None:
        """Refuses what was begun `request_s` ago and is not whole: a request, or a message of an answered stream.

        Raises Abuse for a frame or headers begun `head_s` ago.
        """
        if (self._rest or not self._greeted) and now_s - self._since_s > head_s:
            raise Abuse(f"a frame was not complete after {head_s:g} s")
        if self._block_since_s is not None and now_s - self._block_since_s > head_s:
            raise Abuse(f"the headers of a call were not complete after {head_s:g} s")
        if self._calls:
            self._busy_s = now_s
        late = [
            stream
            for stream, call in self._calls.items()
            if call.since_s is not None and now_s - call.since_s > request_s
        ]
        for stream in late:
            self._refuse(stream, _DEADLINE_EXCEEDED, f"the request was not complete after {request_s:g} s")

    def idle_s(self, now_s: float) -> float:
        """How long no call has been open, going by what began and by what `look_at_clock` saw."""
        return now_s - self._busy_s

    def note_answer(self, kind: int, flags: int, stream: int) -> None:
        """Looks at a frame of the server's, on its way to the client: whether it begins an answer, or ends a call."""
        if kind == RST_STREAM or (kind <= HEADERS and flags & END_STREAM):
            self._forget(stream)
        elif kind == HEADERS and (call := self._calls.get(stream)) is not None:
            call.note_answer()

    def close(self) -> None:
        """Gives back what was counted."""
        for stream in list(self._calls):
            self._forget(stream)

    @property
    def in_headers(self) -> bool:
        """Whether headers have gone on in part: only their rest may come next."""
        return self._block_since_s is not None

    def touch(self, now_s: float) -> None:
        """Notes that a call is open which is answered here."""
        self._busy_s = now_s

    def _look_at(self, kind: int, flags: int, stream: int, data: bytes, start: int, end: int, now_s: float) -> int:
        """Looks at a frame, whose payload is from `start` to `end`. 0: it goes on; else where that begins which comes
        behind it and what else does not; -1: more has to come first.
        """
        if kind == DATA:
            if self._goes_on(stream, flags, data, start, end, now_s):
                return 0
            self.dropped_bytes += end - start
            return end
        if kind == HEADERS and self.whole is not None:
            after = self.whole.take(stream, flags, data, start, end, is_new=stream > self.newest_stream)
            if after > 0:
                self.newest_stream, self._busy_s = stream, now_s
                self.dropped_bytes += _PREFIX_BYTES + len(self.whole.found[-1].payload)
            if after:
                return after
        is_behind = stream in self._calls
        if not is_behind and self._is_misplaced(kind, stream):
            raise Abuse(f"a frame of stream {stream}, which is not open")
        if kind == RST_STREAM or (kind == WINDOW_UPDATE and not is_behind):
            self._tell(kind, stream, data[start:end])
            if not is_behind:
                return end
        self._note(kind, flags, stream, now_s)
        return self._read_settings(data[start:end], end) if kind == SETTINGS and not flags & ACK else 0

    def _is_misplaced(self, kind: int, stream: int) -> bool:
        """Whether the server behind would take a stream for a new one that was answered here, or is of nobody."""
        if kind == HEADERS:
            return self._newest_behind < stream <= self.newest_stream
        return stream > self.newest_stream and kind in (WINDOW_UPDATE, RST_STREAM)

    def _read_settings(self, payload: bytes, end: int) -> int:
        """Takes up a client's settings; behind, they go on with ours at their end, which count.

        No table for what comes back: frames of different streams may overtake one another on their way.
        """
        if len(payload) > _MOST_SETTINGS_BYTES:
            raise Abuse(f"settings of {len(payload)} bytes")
        self.has_greeted = True
        self._tell(SETTINGS, 0, payload)
        self._instead = frame(SETTINGS, 0, 0, payload + _OUR_SETTINGS)
        if self.whole is not None:
            self.whole.room = 0  # until they hold
        return end

    def _note(self, kind: int, flags: int, stream: int, now_s: float) -> None:
        """Takes note of a frame that is not DATA."""
        if kind in (PING, SETTINGS, _PRIORITY):
            self._count_idle(now_s)
        elif kind == RST_STREAM:
            self._forget(stream)
        elif kind == HEADERS:
            if stream > self.newest_stream:
                self._open(stream, now_s)
            if flags & END_STREAM and (call := self._calls.get(stream)) is not None:
                call.end()
            if not flags & END_HEADERS:
                self._block_since_s = now_s
        elif kind == CONTINUATION and flags & END_HEADERS:
            self._block_since_s = None

    def _tell(self, kind: int, stream: int, payload: bytes) -> None:
        try:
            number = read_settings(payload).get(INITIAL_WINDOW_SIZE, -1) if kind == SETTINGS else uint32(payload)
        except Http2Error as error:
            raise Abuse(str(error)) from error
        self.told.append(Told(kind, stream, number))

    def _open(self, stream: int, now_s: float) -> None:
        self.newest_stream, self._newest_behind, self._busy_s = stream, stream, now_s
        if self._receiving.take(self._metadata_bytes):
            self._calls[stream] = Call(self._most_bytes, self._receiving, now_s)
        else:
            self._refuse(stream, RESOURCE_EXHAUSTED, TOO_MUCH)

    def _goes_on(self, stream: int, flags: int, data: bytes, start: int, end: int, now_s: float) -> bool:
        """Whether a frame of DATA may go on; a call that is refused by it is in `refusals` then.

        What comes for a call that is over does not.
        """
        call = self._calls.get(stream)
        if flags != END_STREAM or call is None or not call.is_all_of(data, start, end):
            payload = memoryview(data)[start:end]
            if flags & PADDED:
                padding = payload[0] if payload else 0
                payload = payload[1 : len(payload) - padding]
            if not payload and not flags & END_STREAM:
                self._count_idle(now_s)
            if call is None or call.is_sent:
                return False
            try:
                call.read(payload, now_s)
            except Unwelcome as unwelcome:
                self._refuse(stream, unwelcome.code, unwelcome.message)
                return False
        if flags & END_STREAM:
            call.end()
        return True

    def _refuse(self, stream: int, code: int, message: str) -> None:
        call = self._calls.get(stream)
        self._forget(stream)
        self.refusals.append(Refusal(stream, code, message, call is not None and call.is_answered))

    def _forget(self, stream: int) -> None:
        call = self._calls.pop(stream, None)
        if call is not None:
            self._receiving.release(self._metadata_bytes + call.taken_bytes)

    def _count_idle(self, now_s: float) -> None:
        if now_s - self._second_s >= 1:
            self._idle_frames, self._second_s = 0, now_s
        self._idle_frames += 1
        if self._idle_frames > _MOST_IDLE_FRAMES:
            raise Abuse(f"more than {_MOST_IDLE_FRAMES} frames in a second that carry no request")


def _breach(length: int, stream: int) -> Abuse:
    """What is wrong with the head of a frame."""
    if length > FRAME_BYTES:
        return Abuse(f"a frame of {length} bytes, where {FRAME_BYTES} are allowed")
    # The server behind ignores that bit (RFC 9113, 4.1): what are two calls here would be one there.
    return Abuse(f"a frame of stream {stream}, where {_LAST_STREAM} is the last: the first bit is reserved")


def _is_greeting(data: bytes) -> bool:
    """Whether a client's first word is complete. Raises Abuse for another one."""
    if not PREFACE.startswith(data[: len(PREFACE)]):
        raise Abuse("this is not HTTP/2")
    return len(data) >= len(PREFACE)
