"""The plainest client of each transport: one connection, one request at a time, nothing beside it."""

import socket
from typing import Any, Protocol

import httptools

from mlserve.bench.clients.client import Request
from mlserve.bench.generator.job import Address
from mlserve.errors import BenchError
from mlserve.serve.transports.server_timing import SERVER_TIMING

__all__ = ["PlainClient", "open_plain_client"]

_WAIT_S = 30.0
_READ_BYTES = 1 << 18


class PlainClient(Protocol):
    """Asks and waits. Raises BenchError when there is no good answer."""

    def ask(self, request: Request) -> tuple[bytes, str]:
        """The answer, and its `server-timing`, "" without one."""
        ...

    def close(self) -> None: ...


def open_plain_client(address: Address) -> PlainClient:
    """A client that is connected to `address`."""
    return _PlainGrpc(address) if address.transport == "grpc" else _PlainHttp(address)


class _PlainHttp:
    """A socket, and a parser in C. The parser calls the `on_` methods."""

    def __init__(self, address: Address) -> None:
        self._address = address
        try:
            self._socket = socket.create_connection((address.host, address.port), _WAIT_S)
        except OSError as error:
            raise BenchError(f"{address.host}:{address.port} cannot be reached: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: Request) -> tuple[bytes, str]:
        head = self._head(request)
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._timing, self._complete = b"", False
        try:
            self._socket.sendall(head + request.body)
            while not self._complete:
                data = self._socket.recv(_READ_BYTES)
                if not data:
                    raise BenchError(f"{self._address.path} was not answered: the connection was closed")
                self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as error:
            raise BenchError(f"{self._address.path} was not answered: {error}") from error
        body, status = b"".join(self._body), self._parser.get_status_code()
        if status != 200:
            raise BenchError(
                f"{self._address.path} was answered with HTTP {status}: {body[:300].decode(errors='replace')}"
            )
        return body, self._timing.decode("latin-1")

    def close(self) -> None:
        self._socket.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == SERVER_TIMING.encode():
            self._timing = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._complete = True

    def _head(self, request: Request) -> bytes:
        fields = {"host": f"{self._address.host}:{self._address.port}", "content-length": len(request.body)}
        lines = [f"{name}: {value}\r\n" for name, value in (*fields.items(), *request.headers)]
        return f"POST {self._address.path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode()


class _PlainGrpc:
    """grpcio's blocking call."""

    def __init__(self, address: Address) -> None:
        import grpc

        self._failed: Any = grpc.RpcError
        self._path = address.path
        self._channel = grpc.insecure_channel(
            f"{address.host}:{address.port}",
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self._call = self._channel.unary_unary(address.path)

    def ask(self, request: Request) -> tuple[bytes, str]:
        try:
            answer, call = self._call.with_call(request.body, timeout=_WAIT_S, metadata=request.headers)
        except self._failed as error:
            raise BenchError(f"{self._path} was answered with {error.code().name}: {error.details()}") from error
        told = dict(call.trailing_metadata() or ())
        return answer, str(told.get(SERVER_TIMING, ""))

    def close(self) -> None:
        self._channel.close()
