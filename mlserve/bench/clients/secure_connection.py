"""TLS over a connection that never waits: what comes and goes is turned into plain bytes, and back, in memory."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from mlserve.bench.clients.connection import CLOSED, Addresses, Connection

__all__ = ["SecureConnection", "Security", "open_connection"]

_READ_BYTES = 65536


class Security(NamedTuple):
    """How a connection is secured, and the name that the server's certificate has to be for."""

    context: ssl.SSLContext
    host: str


def open_connection(
    addresses: Addresses, received: Callable[[bytes], None], closed: Callable[[str], None], security: Security | None
) -> "Connection | SecureConnection":
    """A new connection; see Connection."""
    if security is None:
        return Connection(addresses, received, closed)
    return SecureConnection(addresses, received, closed, security)


class SecureConnection:
    """As a Connection, but over TLS. `closed` tells `tls: ` and why, where the peers do not trust each other."""

    __slots__ = ("_closed", "_incoming", "_outgoing", "_received", "_tcp", "_tls", "_unsent", "at_end", "opened")

    def __init__(
        self,
        addresses: Addresses,
        received: Callable[[bytes], None],
        closed: Callable[[str], None],
        security: Security,
    ) -> None:
        self._received: Callable[[bytes], None] | None = received
        self._closed: Callable[[str], None] | None = closed
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = security.context.wrap_bio(self._incoming, self._outgoing, server_hostname=security.host)
        self._unsent: list[bytes | memoryview] = []
        self.opened = self.at_end = False
        self._tcp = Connection(addresses, self._take, self._end)
        self._shake_hands()

    def send(self, content: bytes | memoryview) -> None:
        """Hands `content` over to be sent; nothing happens on a connection that has ended."""
        if self.opened:
            self._tls.write(content)
            self._flush()
        elif self._closed is not None:
            self._unsent.append(content)

    def close(self) -> None:
        """Ends the connection without a word to its owner."""
        if self.opened:
            with suppress(ssl.SSLError):  # the peer has not said goodbye yet
                self._tls.unwrap()
            self._flush()
        self._received = self._closed = None
        self.opened = False
        self._unsent = []
        self._tcp.close()

    def _take(self, content: bytes) -> None:
        self._incoming.write(content)
        try:
            if not self.opened:
                self._shake_hands()
            if self.opened:
                self._read()
        except ssl.SSLError as error:
            self._flush()  # the peer hears why
            self._end(_status_of(error))

    def _shake_hands(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self.opened = True
        self._flush()
        if self.opened:
            unsent, self._unsent = self._unsent, []
            for content in unsent:
                self.send(content)

    def _read(self) -> None:
        with suppress(ssl.SSLWantReadError):
            while self._received is not None:
                try:
                    content = self._tls.read(_READ_BYTES)
                except ssl.SSLZeroReturnError:
                    content = b""
                if not content:
                    self.at_end = True
                    self._end(CLOSED)
                    return
                self._received(content)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.send(self._outgoing.read())

    def _end(self, status: str) -> None:
        closed = self._closed
        if closed is not None:
            self.opened = False  # nothing more is said
            self.close()
            closed(status)


def _status_of(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: {error.verify_message}"
    return f"tls: {(error.reason or 'broken').lower().replace('_', ' ')}"
