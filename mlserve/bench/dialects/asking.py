"""One question at a time, before the load: over HTTP or gRPC, with errors that say what to do."""

import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from mlserve.bench.target import Header, Target
from mlserve.bench.trust import Trust
from mlserve.errors import BenchError, InvalidRequest

if TYPE_CHECKING:
    import grpc

__all__ = ["NotFound", "RefusedError", "ask", "call", "parse", "read_page", "reading"]

_WAIT_S = 30.0
_PAGE_WAIT_S = 5.0
# V2's and TensorFlow Serving's; TorchServe's and MLflow's; FastAPI's.
_REASONS = ("error", "message", "detail")


class RefusedError(BenchError):
    """An answer that is an error: a status of HTTP, or of gRPC."""


class NotFound(RefusedError):
    """HTTP 404."""


def ask(target: Target, method: str, path: str, body: bytes = b"", headers: tuple[Header, ...] = ()) -> bytes:
    """The body of the answer. Raises NotFound, RefusedError for another status, or BenchError where none comes."""
    try:
        connection = _open(target.host, target.port, _WAIT_S, target.trust)
        try:
            connection.request(method, path, body, dict(target.with_headers(headers)))
            reply = connection.getresponse()
            answer = reply.read()
        finally:
            connection.close()
    except TimeoutError as error:
        raise BenchError(f"{target.url} did not answer {path} within {_WAIT_S:g} s; is it busy or stuck?") from error
    except ConnectionRefusedError as error:
        raise BenchError(_unreachable(target, error.strerror or str(error))) from error
    except (ssl.SSLError, ConnectionError) as error:  # a server may just hang up on who shows no certificate
        raise BenchError(_cut(target, str(error))) from error
    except OSError as error:
        raise BenchError(_unreachable(target, error.strerror or str(error))) from error
    except http.client.HTTPException as error:
        raise BenchError(f"{target.url} does not speak HTTP: {error!r}; check the port") from error
    if reply.status != 200:
        kind = NotFound if reply.status == 404 else RefusedError
        raise kind(f"{target.url} answered {path} with HTTP {reply.status}: {_reason(answer)}")
    return answer


def call(target: Target, method: str, payload: bytes, headers: tuple[Header, ...] = ()) -> bytes:
    """The answer to `/package.Service/Method`. Raises RefusedError, or BenchError where no answer comes."""
    import grpc

    with _channel(target) as channel:
        try:
            answer: bytes = channel.unary_unary(method)(payload, timeout=_WAIT_S, metadata=target.with_headers(headers))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise BenchError(_cut(target, error.details())) from error
            name = method.rpartition("/")[2]
            raise RefusedError(
                f"{target.url} answered {name} with {error.code().name}: {_short(error.details() or '')}"
            ) from error
    return answer


def parse(target: Target, content: bytes, kind: Any, path: str, protocol: str) -> Any:
    """`content` as `kind`, numbers written as texts included. Raises BenchError when it is something else."""
    try:
        return msgspec.json.decode(content, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BenchError(
            f"{target.url} does not speak {protocol}: its answer to {path} is something else ({error}); "
            "check host and port"
        ) from error


@contextmanager
def reading(advice: str = "") -> Iterator[None]:
    """What is wrong with an answer becomes a BenchError, with `advice` at its end."""
    try:
        yield
    except InvalidRequest as error:
        raise BenchError(f"the answer cannot be read: {error}{advice}") from error


def read_page(url: str, headers: tuple[Header, ...] = (), trust: Trust | None = None) -> bytes:
    """One page over HTTP, by `trust` where it is over TLS. Raises OSError or http.client.HTTPException where there is
    none.
    """
    parts = urlsplit(url)
    secure = (trust or Trust()) if parts.scheme == "https" else None
    connection = _open(parts.hostname or "", parts.port, _PAGE_WAIT_S, secure)
    try:
        connection.request("GET", parts.path, headers=dict(headers))
        reply = connection.getresponse()
        if reply.status != 200:
            raise OSError(f"{url} answered with HTTP {reply.status}")
        return reply.read()
    finally:
        connection.close()


def _open(host: str, port: int | None, wait_s: float, trust: Trust | None) -> http.client.HTTPConnection:
    if trust is None:
        return http.client.HTTPConnection(host, port, timeout=wait_s)
    return http.client.HTTPSConnection(host, port, timeout=wait_s, context=trust.context())


def _channel(target: Target) -> "grpc.Channel":
    import grpc

    options = [("grpc.max_receive_message_length", -1)]
    if target.trust is None:
        return grpc.insecure_channel(target.authority, options)
    credentials = grpc.ssl_channel_credentials(target.trust.authorities, *target.trust.own)
    return grpc.secure_channel(target.authority, credentials, options)


def _reason(answer: bytes) -> str:
    """What a server says is wrong, under the names that the protocols have for it; else the answer itself."""
    try:
        said = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = None
    reason = next((said[name] for name in _REASONS if name in said), None) if isinstance(said, dict) else None
    return _short(reason if isinstance(reason, str) else answer.decode("utf-8", "replace")) or "it gave no reason"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _cut(target: Target, reason: str) -> str:
    if target.trust is None or "refused" in reason:
        return _unreachable(target, reason)
    return (
        f"there is no TLS with {target.url}: {_short(reason)}; name the authority of its certificate, or that itself, "
        "with --ca-file, and your own with --client-cert and --client-key, if it asks for one; without TLS it is "
        f"{target.url.replace('s://', '://', 1)}"
    )


def _unreachable(target: Target, reason: str) -> str:
    return (
        f"{target.url} cannot be reached: {_short(reason)}; check host and port, or start a server with: mlserve serve"
    )
