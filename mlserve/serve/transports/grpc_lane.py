"""The fast lane of gRPC: a call that came whole is answered by the event loop, where its bytes were read.

Behind the guard pygrpc-native would read it again, on a thread of its own, and hand it over to another. That costs more
than the answer of a small model. What takes several reads, streams, or asks for anything else goes there all the same.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial

from mlserve.errors import DeadlineExceeded, NotServing, RequestError
from mlserve.serve.batching.turn import LoopTurn
from mlserve.serve.protocols.dialect import Call, InferCall
from mlserve.serve.service import Service
from mlserve.serve.transports.grpc_asked import Asked, read_asked
from mlserve.serve.transports.grpc_ending import ending, trailers_of
from mlserve.serve.transports.grpc_fallback import MOST_METADATA_BYTES, MOST_STREAMS
from mlserve.serve.transports.grpc_ticket import GrpcTicket, Trailers, infer, retry_trailers
from mlserve.serve.transports.grpc_way_back import WayBack
from mlserve.serve.transports.grpc_whole import Whole
from mlserve.wire.http2_headers import HeaderReader

__all__ = ["GrpcLane", "LaneCalls"]

_INTERNAL = 13
# Clients have few; every connection may remember so many.
_MOST_KNOWN = 16
# Of answers that a client does not let come, as much is kept before further calls go the long way, where they wait.
_MOST_HELD_BYTES = 1 << 20

_log = logging.getLogger("mlserve.serve")


class GrpcLane:
    """What one worker can answer so: those of `calls` that infer. `turn` is its event loop's."""

    def __init__(self, service: Service, turn: LoopTurn, calls: Iterable[Call | InferCall]) -> None:
        self.service, self.turn = service, turn
        self._calls = {call.path: call for call in calls if isinstance(call, InferCall)}

    def reader(self) -> HeaderReader[Asked | None]:
        """What reads the headers of one connection."""
        return HeaderReader(partial(read_asked, calls=self._calls), _MOST_KNOWN, MOST_METADATA_BYTES)


class LaneCalls:
    """The calls of one connection, `open` until they are answered. `certificate` is what their client has shown."""

    def __init__(self, lane: GrpcLane, back: WayBack, certificate: bytes | None) -> None:
        self._lane, self._certificate = lane, certificate
        self.back = back
        self.open: dict[int, _Caller] = {}

    @property
    def room(self) -> int:
        """How many more may come. The first word is the server's behind."""
        back = self.back
        if not back.may_begin or back.held_bytes > _MOST_HELD_BYTES:
            return 0
        return MOST_STREAMS - len(self.open) - back.held

    def take(self, whole: Whole) -> None:
        """Answers a call, now or later."""
        service, turn = self._lane.service, self._lane.turn
        stream, asked, payload, granted_bytes = whole
        self.open[stream] = caller = _Caller(self, stream, granted_bytes)
        try:
            if not service.access.open:
                credential = self._certificate if asked.credential is None else asked.credential
                service.access.check("infer", credential)
            ticket = infer(service, asked.call, payload, caller, turn, turn.loop, asked.left_s)
        except RequestError as error:
            caller.fail(error)
        except Exception:  # one call's bug must not end the connection
            _log.exception("a gRPC call failed")
            caller.end(ending(stream, _INTERNAL, "the server made a mistake; its log says which"))
        else:
            caller.ticket = ticket
            if ticket is not None and asked.left_s is not None and ticket.model.batcher.queues:
                caller.alarm = turn.loop.call_later(asked.left_s, caller.be_late)

    def widen(self, stream: int, more_bytes: int) -> None:
        """The client lets more come, of the connection's answers (0) or of one."""
        if stream and (caller := self.open.get(stream)) is not None:
            caller.granted_bytes += more_bytes
        self.back.widen(stream, more_bytes)

    def drop(self, stream: int) -> None:
        """Forgets a call that its client has given up."""
        self.back.forget(stream)
        caller = self.open.pop(stream, None)
        if caller is not None:
            caller.give_up()

    def take_back(self, ticket: GrpcTicket) -> None:
        """Lets what nobody waits for run no more, if it does not yet."""
        batcher = ticket.model.batcher
        if not self._lane.turn.take_back(batcher, ticket):
            batcher.drop(ticket)

    def abandon(self) -> None:
        """Tells those that are not answered yet that the server stops."""
        for caller in list(self.open.values()):
            caller.fail(NotServing("the server stopped before this call was answered; send it again"))

    def close(self) -> None:
        """Forgets all calls: their client is gone."""
        for stream in list(self.open):
            self.drop(stream)


class _Caller:
    """Who waits for the answer to a call."""

    __slots__ = ("_calls", "_stream", "alarm", "granted_bytes", "ticket")

    def __init__(self, calls: LaneCalls, stream: int, granted_bytes: int) -> None:
        self._calls, self._stream, self.granted_bytes = calls, stream, granted_bytes
        self.ticket: GrpcTicket | None = None
        self.alarm: asyncio.TimerHandle | None = None

    def respond(self, payload: bytes, trailers: Trailers = ()) -> None:
        if self._is_waited_for():
            more = trailers_of(trailers)
            self._calls.back.answer(self._stream, payload, more, self.granted_bytes)

    def fail(self, error: RequestError) -> None:
        self.end(ending(self._stream, error.grpc_code, str(error)[:900], retry_trailers(error)))

    def end(self, frames: bytes) -> None:
        """Ends the call with what is not an answer."""
        if self._is_waited_for():
            self._calls.back.put_in(frames)

    def be_late(self) -> None:
        """Fails a call that runs still when its client's time is over; the batcher does it for those that wait."""
        self.fail(DeadlineExceeded("Request timeout expired: the client's deadline has passed"))

    def give_up(self) -> None:
        """Takes a call back that waits for its run."""
        if self.alarm is not None:
            self.alarm.cancel()
        if self.ticket is not None:
            self._calls.take_back(self.ticket)

    def _is_waited_for(self) -> bool:
        if self.alarm is not None:
            self.alarm.cancel()
        return self._calls.open.pop(self._stream, None) is not None
