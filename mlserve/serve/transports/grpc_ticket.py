"""One gRPC inference on its way through the batcher; the same for all gRPC transports."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import inf
from typing import Any, Protocol

from mlserve.errors import PayloadTooLarge, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.access import Scope
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.batching.turn import Turn
from mlserve.serve.protocols.dialect import AsyncCall, Call, InferCall, StreamCall
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.transports.room import check_room
from mlserve.serve.transports.server_timing import SERVER_TIMING, server_timing
from mlserve.wire.signature import InferRequest

__all__ = ["Caller", "GrpcTicket", "Trailers", "audited", "check_size", "infer", "retry_trailers", "scope_of"]

Trailers = tuple[tuple[str, str], ...]


class Caller(Protocol):
    """Who waits for the reply; a transport's. `trailers` is metadata that goes after it."""

    def respond(self, payload: bytes, trailers: Trailers = ()) -> None: ...

    def fail(self, error: RequestError) -> None: ...


class GrpcTicket(Ticket):
    """One call of inference on its way through the batcher."""

    __slots__ = ("call", "caller", "model", "parse_s")

    def __init__(
        self,
        call: InferCall,
        caller: Caller,
        model: ServedModel,
        request: InferRequest,
        loop: Any,
        began_s: float,
        left_s: float | None = None,
    ) -> None:
        """`began_s` is `time.perf_counter` before the message was parsed; for `left_s` see `infer`."""
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = model.signature.batch_key(request.inputs), loop
        self.call, self.caller, self.model, self.request = call, caller, model, request
        self.protocol = call.protocol
        self.arrived_s = time.perf_counter()
        self.parse_s = self.arrived_s - began_s
        self.priority = request.priority
        self.deadline_s = self.arrived_s + request.timeout_s if request.timeout_s else inf
        if left_s is not None:
            self.deadline_s = min(self.deadline_s, began_s + left_s)

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        if not self.request.timing:
            self.caller.respond(self.call.encode(self.model, self.request, outputs))
            return
        began_s = time.perf_counter()
        payload = self.call.encode(self.model, self.request, outputs)
        encode_s = time.perf_counter() - began_s
        told = server_timing(self.arrived_s, batch, parse_s=self.parse_s, encode_s=encode_s)
        self.caller.respond(payload, ((SERVER_TIMING, told),))

    def fail(self, error: RequestError) -> None:
        self.caller.fail(error)


def infer(
    service: Service,
    call: InferCall,
    payload: bytes,
    caller: Caller,
    turn: Turn,
    loop: Any = None,
    left_s: float | None = None,
) -> GrpcTicket | None:
    """Puts one call into the transport's turn; None when it failed at once.

    `left_s` is how long the client still waits, None for as long as it takes.
    """
    model = None
    began_s = time.perf_counter()
    try:
        service.check_serving()
        message = call.parse(payload)
        model = call.find(service, message)
        if model.batcher.queues:
            check_room(model.batcher, payload)
        request = call.decode(message, model)
    except RequestError as error:
        if model is not None:
            model.meter.failed(call.protocol, error)
        caller.fail(error)
        return None
    ticket = GrpcTicket(call, caller, model, request, loop, began_s, left_s)
    turn.add(model.batcher, ticket)
    return ticket


def scope_of(call: Call | InferCall | AsyncCall | StreamCall) -> Scope | None:
    """What a key must allow for `call`; None for a public one."""
    return "infer" if isinstance(call, InferCall) else call.scope


def audited(
    service: Service,
    call: Call | InferCall | AsyncCall | StreamCall,
    credential: bytes | None,
    peer: Callable[[], str],
) -> AbstractContextManager[Any]:
    """Tells the audit log of an admin call that is answered inside; of another one, nothing.

    `peer` says from where it came. A socket of this machine's own tells nothing of who called.
    """
    if scope_of(call) != "admin":
        return nullcontext()
    remote, who = peer(), service.access.name_of(credential)
    return service.audit.call(call.path, who=who, remote="" if remote.startswith("unix:") else remote)


def retry_trailers(error: RequestError) -> Trailers:
    """Metadata that says when to come again, in whole seconds as over HTTP; none where nobody knows.

    What gRPC's own retries read (`grpc-retry-pushback-ms`) is a reserved name to pygrpc-native.
    """
    if error.retry_after_s is None:
        return ()
    return (("retry-after", str(max(1, math.ceil(error.retry_after_s)))),)


def check_size(payload: bytes, most_bytes: int) -> None:
    """Raises PayloadTooLarge for a message that is larger than `most_bytes`, as it is or unpacked."""
    if len(payload) > most_bytes:
        raise PayloadTooLarge(
            f"the message has {len(payload)} bytes, which exceeds the maximum allowed input size of {most_bytes}"
        )
