"""One gRPC inference on its way through the batcher; the same for both gRPC transports."""

import time
from typing import Any, Protocol

from mlserve.errors import RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.batching.turn import Turn
from mlserve.serve.protocols.dialect import InferCall
from mlserve.serve.service import ServedModel, Service
from mlserve.wire.signature import InferRequest

__all__ = ["Caller", "GrpcTicket", "infer"]


class Caller(Protocol):
    """Who waits for the reply; a transport's."""

    def respond(self, payload: bytes) -> None: ...

    def fail(self, error: RequestError) -> None: ...


class GrpcTicket(Ticket):
    """One call of inference on its way through the batcher."""

    __slots__ = ("call", "caller", "model", "request")

    def __init__(self, call: InferCall, caller: Caller, model: ServedModel, request: InferRequest, loop: Any) -> None:
        self.inputs, self.rows = request.inputs, request.rows
        self.key, self.loop = model.signature.batch_key(request.inputs), loop
        self.call, self.caller, self.model, self.request = call, caller, model, request
        self.protocol = call.protocol
        self.arrived_s = time.perf_counter()

    def answer(self, outputs: Tensors, batch: Batch) -> None:
        self.caller.respond(self.call.encode(self.model, self.request, outputs))

    def fail(self, error: RequestError) -> None:
        self.caller.fail(error)


def infer(service: Service, call: InferCall, payload: bytes, caller: Caller, turn: Turn, loop: Any = None) -> None:
    """Puts one call into the transport's turn, or fails it at once."""
    model = None
    try:
        service.check_serving()
        message = call.parse(payload)
        model = call.find(service, message)
        request = call.decode(message, model)
    except RequestError as error:
        if model is not None:
            model.meter.failed(call.protocol, error)
        caller.fail(error)
        return
    turn.add(model.batcher, GrpcTicket(call, caller, model, request, loop))
