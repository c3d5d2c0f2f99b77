"""V2 over gRPC, by grpcio, tensors raw."""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
from scorecard.judging import Question, Said
from scorecard.known import payload

from mlserve.wire import messages

__all__ = ["INFER", "GrpcWay", "write_message"]

INFER = "/inference.GRPCInferenceService/ModelInfer"
_OPEN_S = 1.0
# grpcio tells nowhere else whose words these are; no server says them of itself.
_MADE_UP = ("CANCELLED", "INTERNAL", "UNAVAILABLE", "UNKNOWN")
_OF_A_CONNECTION = re.compile(
    r"ipv[46]:|recvmsg|sendmsg|socket|goaway|stream removed|rst_stream|failed to connect"
    r"|connection (reset|refused|closed)|broken pipe|transport|endpoint|keepalive|end of (file|stream)|\beof\b",
    re.IGNORECASE,
)


class GrpcWay:
    """One channel of one load."""

    def __init__(
        self, address: str, model: str, headers: Mapping[str, str], timeout_s: float, credentials: Any = None
    ) -> None:
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", "localhost"))
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._infer = self._channel.unary_unary(INFER)
        self._model, self._metadata, self._timeout_s = model, tuple(headers.items()), timeout_s
        self._calls: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Waits for the connection; a server that takes none is found out by the requests."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), _OPEN_S)
        except TimeoutError:
            return

    def send(self, question: Question, done: Callable[[Said], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._call(question, done))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        await self._channel.close()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _call(self, question: Question, done: Callable[[Said], None]) -> None:
        message = write_message(question, self._model)
        try:
            # The client gives up later than the driver, whose word then counts.
            answer = await self._infer(message, metadata=self._metadata, timeout=self._timeout_s + 1)
        except grpc.RpcError as error:
            done(_failed(error))
            return
        done(_said(answer))


def write_message(question: Question, model: str) -> bytes:
    """A ModelInferRequest."""
    request = messages.ModelInferRequest(model_name=model, model_version=question.asked, id=question.id)
    request.inputs.add(name="x", datatype="FP32", shape=[question.rows, 2])
    first = question.number * question.rows
    rows = [payload(first + row) for row in range(question.rows)]
    request.raw_input_contents.append(np.array(rows, np.float32).tobytes())
    return bytes(request.SerializeToString())


def _said(answer: bytes) -> Said:
    try:
        found = messages.ModelInferResponse.FromString(answer)
    except Exception as error:  # protobuf's DecodeError, which it imports from C
        return Said("OK", text=f"{error}: {answer[:100]!r}")
    raw = found.raw_output_contents
    values = np.frombuffer(raw[0], np.float32).tolist() if raw else None
    return Said("OK", found.id, found.model_version, values)


def _failed(error: Any) -> Said:
    """What the server said, or that it said nothing: grpcio makes up a status of its own where a connection breaks."""
    code, details = error.code().name, error.details() or ""
    if code in _MADE_UP and _OF_A_CONNECTION.search(details):
        return Said(fault=f"{code} without an answer from the server: {details}")
    return Said(code, text=details)
