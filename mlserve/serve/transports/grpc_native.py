"""gRPC by pygrpc-native: HTTP/2 and gRPC framing in Rust outside the interpreter lock, calls handed over in batches.

It has no limit for the size of a message, so that a guard listens in its place unless that is declined (grpc_guard.py).

The calls of one hand-over are one turn: they run as one batch. What takes its time or streams goes on to grpcio, which
listens on a Unix socket of this worker's own.
"""

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from mlserve.errors import RequestError
from mlserve.serve.answering import Answering
from mlserve.serve.batching.turn import Turn
from mlserve.serve.life.sockets_folder import make_sockets_folder
from mlserve.serve.protocols.dialect import AsyncCall, Call, InferCall, StreamCall
from mlserve.serve.service import Service
from mlserve.serve.settings import Limits
from mlserve.serve.transports.certificate_mark import CERTIFICATE_FIELD, find_certificate
from mlserve.serve.transports.grpc_fallback import MOST_METADATA_BYTES, MOST_STREAMS, FallbackGrpcServer
from mlserve.serve.transports.grpc_ticket import GrpcTicket, Trailers, audited, check_size, infer, retry_trailers

__all__ = ["NativeGrpcServer"]

_MOST_CALLS_A_TURN = 256
# So often more calls are looked for before what is there runs.
_GLANCES = 2

_log = logging.getLogger("mlserve.serve")


class NativeGrpcServer:
    """Serves on `target` (host:port), sharing the port with the other workers. OSError when it cannot be bound.

    Without a target it serves on a Unix socket of its own, `path`.
    """

    def __init__(
        self,
        service: Service,
        answering: Answering,
        calls: Sequence[Call | InferCall | AsyncCall | StreamCall],
        target: str,
        limits: Limits,
        run_directory: str = "",
    ) -> None:
        self._service, self._limits = service, limits
        self._calls = [call for call in calls if isinstance(call, Call | InferCall)]
        self._turn = Turn()
        self._folder = make_sockets_folder(run_directory)
        self.path = f"{self._folder}/n"
        self._front = NativeGrpcFront(
            target or f"unix:{self.path}",
            [(call.path, False) for call in self._calls],
            io_threads=1,
            reuse_port=True,
            call_details=True,
            max_concurrent_streams=MOST_STREAMS,
            max_metadata_size=MOST_METADATA_BYTES,
        )
        slow = [call for call in calls if isinstance(call, AsyncCall | StreamCall)]
        self._slow = FallbackGrpcServer(service, answering, slow, f"unix:{self._folder}/s", limits)
        self._front.set_fallback(f"{self._folder}/s")
        self._crowded = False
        self._queues = True  # whether a call of the last turn has come to a queue, where its deadline counts
        # Calls that wait in a queue, for their clients to take back.
        self._queued: dict[int, GrpcTicket] = {}
        self._thread = threading.Thread(target=self._receive, name="grpc", daemon=True)

    async def start(self) -> None:
        """Begins to accept calls."""
        await self._slow.start()
        self._front.start()
        self._thread.start()

    async def stop(self) -> None:
        """Closes every connection; a call still unanswered gets UNAVAILABLE."""
        await self._slow.stop()
        await asyncio.to_thread(
            self._front.close
        )  # it waits for last answers to go out, through the guard on this loop
        await asyncio.to_thread(self._thread.join)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _receive(self) -> None:
        while (events := self._next_calls()) is not None:
            self._queues = False
            for event in events:
                kind, call_id, method, payload, *_ = event
                if kind == EVENT_CALL and payload is not None:
                    self._take(call_id, self._calls[method], payload, event)
                elif ticket := self._queued.pop(call_id, None):
                    ticket.model.batcher.drop(ticket)
            self._turn.run()

    def _next_calls(self) -> Sequence[Sequence[Any]] | None:
        """The calls that have come, with details only where keys or deadlines matter: they cost time.

        Where calls came together lately, others are just being read: they get the core for a moment, and are taken
        along. A run of more rows costs hardly more, so that is time well spent.
        """
        plain = self._service.access.open and not self._queues
        receive: Any = self._front.recv_batch if plain else self._front.recv_batch_details
        calls = receive(_MOST_CALLS_A_TURN)
        if calls and (self._crowded or len(calls) > 1):
            for _ in range(_GLANCES):
                os.sched_yield()
                more = receive(_MOST_CALLS_A_TURN, 0)
                if not more:
                    break
                calls += more
            self._crowded = len(calls) > 1
        found: Sequence[Sequence[Any]] | None = calls
        return found

    def _take(self, call_id: int, call: Call | InferCall, payload: bytes, event: Sequence[Any]) -> None:
        caller = _Caller(self._front, call_id, self._queued)
        try:
            if isinstance(call, InferCall):
                if not self._service.access.open:
                    self._service.access.check("infer", _credential(event))
                check_size(payload, self._limits.max_request_bytes)
                ticket = infer(self._service, call, payload, caller, self._turn, left_s=_left_s(event))
                if ticket is not None and ticket.model.batcher.queues:
                    self._queued[call_id], self._queues = ticket, True
            else:
                credential = _credential(event)
                with audited(self._service, call, credential, partial(_peer, event)):
                    self._service.access.check(call.scope, credential)
                    check_size(payload, self._limits.max_request_bytes)
                    message = call.answer(self._service, payload)
                caller.respond(message.SerializeToString())
        except RequestError as error:
            caller.fail(error)
        except Exception:  # one call's bug must not end the thread that serves all
            _log.exception("a gRPC call failed")
            self._front.fail(call_id, 13, "the server made a mistake; its log says which")


def _left_s(event: Sequence[Any]) -> float | None:
    """How long the client still waits, where that is told; the front itself answers a call that is too late."""
    left_s: float | None = event[5][2] if len(event) > 5 and event[5] else None
    return left_s


def _credential(event: Sequence[Any]) -> bytes | None:
    details = event[5] if len(event) > 5 else None  # what `recv_batch_details` adds
    fields = dict(details[0]) if details else {}
    found = fields.get("authorization") or fields.get("x-api-key")
    if found is None:
        return find_certificate(fields.get(CERTIFICATE_FIELD))
    return found.encode() if isinstance(found, str) else found


def _peer(event: Sequence[Any]) -> str:
    details = event[5] if len(event) > 5 else None
    return str(details[1]) if details else ""


class _Caller:
    __slots__ = ("_call_id", "_front", "_queued")

    def __init__(self, front: NativeGrpcFront, call_id: int, queued: dict[int, GrpcTicket]) -> None:
        self._front, self._call_id, self._queued = front, call_id, queued

    def respond(self, payload: bytes, trailers: Trailers = ()) -> None:
        if self._queued:
            self._queued.pop(self._call_id, None)
        self._front.respond(self._call_id, payload, None, trailers or None)

    def fail(self, error: RequestError) -> None:
        if self._queued:
            self._queued.pop(self._call_id, None)
        self._front.fail(self._call_id, error.grpc_code, str(error)[:900], retry_trailers(error) or None)
