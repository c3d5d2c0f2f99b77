"""One gRPC inference on its way through the batcher; the same for both gRPC transports."""

import time
from math import inf
from typing import Any, Protocol

from mlserve.errors import PayloadTooLarge, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.access import Scope
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.batching.turn import Turn
from mlserve.serve.protocols.dialect import AsyncCall, Call, InferCall, StreamCall
from mlserve.serve.service import ServedModel, Service
from mlserve.serve.transports.server_timing import SERVER_TIMING, server_timing
from mlserve.wire.signature import InferRequest

__all__ = ["Caller", "GrpcTicket", "Trailers", "check_size", "infer", "scope_of"]

Trailers = tuple[tuple[str, str], ...]


class Caller(Protocol):
    """Who waits for the reply; a transport's. `trailers` is metadata that goes after it."""

    def respond(self, payload: bytes, trailers: Trailers = ()) -> None: ...

    def fail(self, error: RequestError) -> None: ...


class GrpcTicket(Ticket):
    """One call of inference on its way through the batcher."""

    __slots__ = ("call", "caller", "model", "parse_s")

    def __init__(
        self, call: InferCall, caller: Caller, model: ServedModel, request: InferRequest, loop: Any, began_s: float
    ) -> None:
        """`began_s` is `time.perf_counter` before the message was parsed."""
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = model.signature.batch_key(request.inputs), loop
        self.call, self.caller, self.model, self.request = call, caller, model, request
        self.protocol = call.protocol
        self.arrived_s = time.perf_counter()
        self.parse_s = self.arrived_s - began_s
        self.priority = request.priority
        self.deadline_s = self.arrived_s + request.timeout_s if request.timeout_s else inf

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
    service: Service, call: InferCall, payload: bytes, caller: Caller, turn: Turn, loop: Any = None
) -> GrpcTicket | None:
    """Puts one call into the transport's turn; None when it failed at once."""
    model = None
    began_s = time.perf_counter()
    try:
        service.check_serving()
        message = call.parse(payload)
        model = call.find(service, message)
        request = call.decode(message, model)
    except RequestError as error:
        if model is not None:
            model.meter.failed(call.protocol, error)
        caller.fail(error)
        return None
    ticket = GrpcTicket(call, caller, model, request, loop, began_s)
    turn.add(model.batcher, ticket)
    return ticket


def scope_of(call: Call | InferCall | AsyncCall | StreamCall) -> Scope | None:
    """What a key must allow for `call`; None for a public one."""
    return "infer" if isinstance(call, InferCall) else call.scope


def check_size(payload: bytes, most_bytes: int) -> None:
    """Raises PayloadTooLarge for a message that is larger than `most_bytes`, as it is or unpacked."""
    if len(payload) > most_bytes:
        raise PayloadTooLarge(
            f"the message has {len(payload)} bytes, which exceeds the maximum allowed input size of {most_bytes}"
        )
