"""The HTTP/2 connections of a client: a few, each for many requests, and more only where the server asks for it."""

from collections import OrderedDict, deque
from collections.abc import Callable

from mlserve.bench.clients.connection import Addresses
from mlserve.bench.clients.http2_connection import Exchange, Http2Connection
from mlserve.bench.clients.secure_connection import Security

__all__ = ["Http2Pool"]

# One connection's flow control and ordering would couple requests that have nothing to do with each other.
_CONNECTIONS = 4
# What a server that sets a limit should at least allow (RFC 9113, 6.5.2).
_LIKELY_STREAMS = 100


class Http2Pool:
    """Opens its connections at once, and those that are lost again when requests come.

    `ended` is called once for every exchange begun and not cancelled, by the event loop, never before `begin` returns.
    """

    def __init__(
        self,
        addresses: Addresses,
        ended: Callable[[Exchange], None],
        first_stream: int = 1,
        security: Security | None = None,
    ) -> None:
        self._addresses, self._tell, self._first_stream = addresses, ended, first_stream
        self._security = security
        self._ready: deque[Http2Connection] = deque()
        self._opening: set[Http2Connection] = set()
        self._leaving: list[Http2Connection] = []
        self._waiting: OrderedDict[Exchange, None] = OrderedDict()
        self._likely_streams = _LIKELY_STREAMS
        for _ in range(_CONNECTIONS):
            self._open()

    def begin(self, exchange: Exchange) -> None:
        """Sends it on the next connection that takes one more, or has it wait for one."""
        if self._waiting or not self._start(exchange):
            self._waiting[exchange] = None
        if self._waiting or len(self._ready) < _CONNECTIONS:
            self._open_what_is_needed()

    def cancel(self, exchange: Exchange) -> None:
        """Gives it up, wherever it is."""
        if exchange.connection is not None:
            exchange.connection.cancel(exchange)
            self._start_waiting()
        else:
            del self._waiting[exchange]

    def close(self) -> None:
        """Ends every connection."""
        for connection in [*self._ready, *self._opening, *self._leaving]:
            connection.close()

    def ready(self, connection: Http2Connection) -> None:
        """A connection's: see Owner."""
        self._opening.discard(connection)
        if connection not in self._ready:  # it may only have become able to take more
            self._ready.append(connection)
        self._likely_streams = max(1, min(connection.most_streams, _LIKELY_STREAMS))
        self._start_waiting()
        if self._waiting:
            self._open_what_is_needed()

    def ended(self, exchange: Exchange) -> None:
        """A connection's: see Owner."""
        self._tell(exchange)
        if self._waiting:
            self._start_waiting()

    def refused(self, exchange: Exchange) -> None:
        """A connection's: see Owner."""
        self.begin(exchange)

    def lost(self, connection: Http2Connection, status: str) -> None:
        """A connection's: see Owner."""
        self._opening.discard(connection)
        if connection in self._ready:
            self._ready.remove(connection)
        if not status:
            self._leaving = [*(left for left in self._leaving if not left.over), connection]
            if self._waiting:
                self._open_what_is_needed()
        elif not self._ready and not self._opening:  # else those may still serve what waits
            waiting, self._waiting = self._waiting, OrderedDict()
            for exchange in waiting:
                exchange.failure = status
                self._tell(exchange)

    def _start(self, exchange: Exchange) -> bool:
        ready = self._ready
        for _ in range(len(ready)):
            connection = ready[0]
            ready.rotate(-1)
            if connection.is_free:
                connection.begin(exchange)
                return True
        return False

    def _start_waiting(self) -> None:
        while self._waiting and self._start(next(iter(self._waiting))):
            self._waiting.popitem(last=False)

    def _open_what_is_needed(self) -> None:
        opening = len(self._opening)
        if len(self._ready) + opening < _CONNECTIONS or opening * self._likely_streams < len(self._waiting):
            self._open()

    def _open(self) -> None:
        self._opening.add(Http2Connection(self._addresses, self, self._first_stream, self._security))
