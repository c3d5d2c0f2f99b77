"""Asking a server anything, over every protocol it speaks, and hearing what it says to it."""

import http.client
import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

import grpc
from scorecard.server import Endpoints

__all__ = ["CLIENT_CODES", "Asker", "Heard", "connect", "fault_of", "read_reply", "read_to_end", "tell_long"]

_PATIENCE_S = 30.0
_LONGEST_ERROR = 1024
CLIENT_CODES = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "OUT_OF_RANGE",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "UNIMPLEMENTED",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
    }
)
"""What gRPC calls the client's fault, or its limit."""


class Heard(NamedTuple):
    """What came back: HTTP's status or gRPC's code by name, and its body or details. `status` is "" for nothing."""

    status: str
    body: bytes
    took_s: float = 0.0

    @property
    def good(self) -> bool:
        return self.status in ("200", "OK")

    @property
    def server_fault(self) -> bool:
        """Whether the server takes the blame, or says nothing at all. To be busy, or late, is no fault."""
        if self.status.isdigit():
            return self.status[0] == "5" and self.status not in ("503", "504")
        return self.status in ("", "INTERNAL", "UNKNOWN", "DATA_LOSS")


class Asker:
    """A client with one connection of each protocol, opened again when it is closed."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._http: http.client.HTTPConnection | None = None
        self._channel = grpc.insecure_channel(
            endpoints.grpc, [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        if self._http is not None:
            self._http.close()

    def http(
        self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Heard:
        """One request. One that finds the connection closed is sent once more, on a new one."""
        started_s = time.monotonic()
        for _ in range(2):
            fresh = self._http is None
            if self._http is None:
                self._http = http.client.HTTPConnection(self._endpoints.http, timeout=_PATIENCE_S)
            try:
                self._http.request(method, path, body, dict(headers or {}))
                reply = self._http.getresponse()
                found = Heard(str(reply.status), reply.read(), time.monotonic() - started_s)
                if reply.will_close:
                    self._http.close()
                    self._http = None
                return found
            except (http.client.HTTPException, OSError):
                self._http.close()
                self._http = None
                if fresh:
                    break
        return Heard("", b"", time.monotonic() - started_s)

    def grpc(self, method: str, payload: bytes, **options: Any) -> Heard:
        """One unary call of `/service/method`."""
        started_s = time.monotonic()
        try:
            found = self._channel.unary_unary(method)(payload, timeout=_PATIENCE_S, **options)
            return Heard("OK", found, time.monotonic() - started_s)
        except grpc.RpcError as error:
            details = (error.details() or "").encode()
            code = error.code().name
            silent = code == "DEADLINE_EXCEEDED" and details == b"Deadline Exceeded"
            return Heard("" if silent else code, details, time.monotonic() - started_s)


def fault_of(heard: Heard) -> str:
    """What is wrong with the answer to a wrong request; "" for a short refusal that says it is the client's fault."""
    if heard.status == "":
        return "no answer"
    if len(heard.body) > _LONGEST_ERROR:
        return f"{heard.status} with {len(heard.body)} bytes"
    if not heard.status.isdigit():
        return "" if heard.status in CLIENT_CODES and heard.body else f"{heard.status}: {heard.body[:200]!r}"
    return "" if heard.status[0] == "4" and _is_explained(heard.body) else f"{heard.status}: {heard.body[:200]!r}"


def _is_explained(body: bytes) -> bool:
    """Whether the body is an error in the words of one of the dialects."""
    try:
        document = json.loads(body)
    except ValueError:
        return False
    return isinstance(document, dict) and bool(
        document.get("error") or document.get("message") or document.get("errors")
    )


def connect(address: str, timeout_s: float = _PATIENCE_S) -> socket.socket:
    """A connection of bare bytes."""
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def read_to_end(connection: socket.socket, most_bytes: int = 1 << 20) -> bytes:
    """What the server says until it closes, or is silent for as long as the connection waits."""
    found = b""
    with suppress(OSError):
        while len(found) < most_bytes and (piece := connection.recv(65_536)):
            found += piece
    return found


def read_reply(connection: socket.socket) -> bytes:
    """One whole reply over HTTP, or what there is of it when the server closes or is silent."""
    found = b""
    with suppress(OSError):
        while not _is_whole(found) and (piece := connection.recv(65_536)):
            found += piece
    return found


def _is_whole(found: bytes) -> bool:
    head, ended, body = found.lower().partition(b"\r\n\r\n")
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
    return bool(ended) and length.isdigit() and len(body) >= int(length)


def tell_long(text: str, most: int = 300) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
