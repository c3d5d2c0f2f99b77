"""One question at a time, before the load: over HTTP or gRPC, with errors that say what to do."""

import http.client
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mlserve.bench.target import Target
from mlserve.errors import BenchError

__all__ = ["NotFound", "ask", "call", "parse", "read_page"]

_WAIT_S = 30.0


class NotFound(BenchError):
    """HTTP 404."""


class _Refusal(msgspec.Struct):
    error: str


def ask(target: Target, method: str, path: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The body of the answer. Raises NotFound, or BenchError for every other failure."""
    try:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=_WAIT_S)
        try:
            connection.request(method, path, body, dict(headers))
            reply = connection.getresponse()
            answer = reply.read()
        finally:
            connection.close()
    except TimeoutError as error:
        raise BenchError(f"{target.url} did not answer {path} within {_WAIT_S:g} s; is it busy or stuck?") from error
    except OSError as error:
        raise BenchError(_unreachable(target, error.strerror or str(error))) from error
    except http.client.HTTPException as error:
        raise BenchError(f"{target.url} does not speak HTTP: {error!r}; check the port") from error
    if reply.status != 200:
        kind = NotFound if reply.status == 404 else BenchError
        raise kind(f"{target.url} answered {path} with HTTP {reply.status}: {_reason(answer)}")
    return answer


def call(target: Target, method: str, payload: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The answer to `/package.Service/Method`. Raises BenchError."""
    import grpc

    with grpc.insecure_channel(target.authority, options=[("grpc.max_receive_message_length", -1)]) as channel:
        try:
            answer: bytes = channel.unary_unary(method)(payload, timeout=_WAIT_S, metadata=headers)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise BenchError(_unreachable(target, error.details())) from error
            name = method.rpartition("/")[2]
            raise BenchError(
                f"{target.url} answered {name} with {error.code().name}: {_short(error.details() or '')}"
            ) from error
    return answer


def parse(target: Target, content: bytes, kind: Any, path: str) -> Any:
    """`content` as `kind`. Raises BenchError when it is something else."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(
            f"{target.url} does not speak the Open Inference Protocol (V2): its answer to {path} is "
            f"something else ({error}); check host and port"
        ) from error


def read_page(url: str) -> bytes:
    """One page over plain HTTP. Raises OSError or http.client.HTTPException where there is none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path)
        reply = connection.getresponse()
        if reply.status != 200:
            raise OSError(f"{url} answered with HTTP {reply.status}")
        return reply.read()
    finally:
        connection.close()


def _reason(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _short(answer.decode("utf-8", "replace").strip()) or "it gave no reason"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _unreachable(target: Target, reason: str) -> str:
    return (
        f"{target.url} cannot be reached: {_short(reason)}; check host and port, or start a server with: mlserve serve"
    )
