"""A TCP connection on gevent's event loop: it never waits, and costs no greenlet.

gevent's own sockets suspend the greenlet that uses them, so each request in flight would need one. The sockets here are
the system's own, and the loop calls back when one of them can be read or written.
"""

import errno
import os
import resource
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import get_hub, monkey

__all__ = ["CLOSED", "UNKNOWN_HOST", "Addresses", "Connection", "allow_many_connections", "resolve", "status_of"]

CLOSED, UNKNOWN_HOST = "connection closed", "unknown host"

Addresses = list[tuple[socket.AddressFamily, Any]]
"""Where a host may be reached, the likeliest first: (family, address of that family)."""

_READABLE, _WRITABLE = 1, 2
_READ_BYTES = 65536
_open_socket: type[socket.socket] = monkey.get_original("socket", "socket")


def resolve(host: str, port: int) -> Addresses:
    """Every TCP address of `host`; none when nobody knows it."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return []
    return [(family, address) for family, _, _, _, address in found]


def allow_many_connections() -> None:
    """Lets this process open as many files as the system lets it ask for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def status_of(error: OSError) -> str:
    """The word for a connection's failure that its requests get as their status."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError):
        return CLOSED
    return (error.strerror or type(error).__name__).lower()


class Connection:
    """Connects at once to the first of `addresses` that accepts, which is then the first for the next connection too.

    What is sent before it is open, or faster than the peer reads, is kept until it can be written. `received` gets the
    bytes of every reading; `closed` is called once, with a status, when the peer closed the connection or it failed,
    and not after `close`. The event loop calls both, never before the call that brought it about has returned.
    `opened` says whether it is; `at_end` whether the peer closed it in good order, having sent all it wanted to.
    """

    __slots__ = (
        "_addresses",
        "_closed",
        "_left",
        "_reading",
        "_received",
        "_socket",
        "_unsent",
        "_writing",
        "at_end",
        "opened",
    )

    def __init__(self, addresses: Addresses, received: Callable[[bytes], None], closed: Callable[[str], None]) -> None:
        self._addresses = addresses
        self._received: Callable[[bytes], None] | None = received
        self._closed: Callable[[str], None] | None = closed
        self._left = list(addresses)
        self._socket: Any = None
        self._reading: Any = None
        self._writing: Any = None
        self._unsent: deque[bytes | memoryview] = deque()
        self.opened = self.at_end = False
        self._connect(UNKNOWN_HOST)

    def send(self, content: bytes | memoryview) -> None:
        """Hands `content` over to be sent; nothing happens on a connection that has ended."""
        if self._unsent or not self.opened:
            if self._closed is not None:
                self._unsent.append(content)
            return
        try:
            sent = self._socket.send(content)
        except OSError as error:
            self._not_sent(content, error)
            return
        if sent < len(content):
            self._keep(memoryview(content)[sent:])

    def close(self) -> None:
        """Ends the connection without a word to its owner."""
        # Its owner and it hold each other no more: the garbage collector, which stops the load, has nothing to do.
        self._received = self._closed = None
        self.opened = False
        self._left = []
        self._unsent.clear()
        self._release()

    def _connect(self, failure: str) -> None:
        """Tries the next address; `failure` is what came of the one before."""
        while self._left:
            family, address = self._left[0]
            try:
                self._socket = _open_socket(family, socket.SOCK_STREAM)
                self._socket.setblocking(False)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                refused = self._socket.connect_ex(address)
                if refused not in {0, errno.EINPROGRESS}:
                    raise OSError(refused, os.strerror(refused))
            except OSError as error:
                failure = status_of(error)
                self._release()
                self._left.pop(0)
                continue
            loop, fd = get_hub().loop, self._socket.fileno()
            self._reading, self._writing = loop.io(fd, _READABLE), loop.io(fd, _WRITABLE)
            self._writing.start(self._connected)
            return
        get_hub().loop.run_callback(self._end, failure)

    def _connected(self) -> None:
        self._writing.stop()
        if refused := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._release()
            self._left.pop(0)
            self._connect(status_of(OSError(refused, os.strerror(refused))))
            return
        used = self._left[0]
        self._addresses.sort(key=used.__ne__)
        self.opened = True
        self._reading.start(self._read)
        if self._unsent:
            self._write()

    def _read(self) -> None:
        try:
            content = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(status_of(error))
            return
        if content and self._received is not None:
            self._received(content)
        else:
            self.at_end = True
            self._end(CLOSED)

    def _write(self) -> None:
        self._writing.stop()
        unsent, self._unsent = self._unsent, deque()
        for content in unsent:
            self.send(content)

    def _not_sent(self, content: bytes | memoryview, error: OSError) -> None:
        if isinstance(error, BlockingIOError):
            self._keep(content)
        elif not isinstance(error, ConnectionError):
            get_hub().loop.run_callback(self._end, status_of(error))
        # A peer that has closed may have answered first: reading finds that, and then that it closed.

    def _keep(self, content: bytes | memoryview) -> None:
        self._unsent.append(content)
        self._writing.start(self._write)

    def _end(self, status: str) -> None:
        closed = self._closed
        if closed is not None:
            self.close()
            closed(status)

    def _release(self) -> None:
        for watcher in (self._reading, self._writing):
            if watcher is not None:
                watcher.close()
        self._reading = self._writing = None
        if self._socket is not None:
            self._socket.close()
        self._socket = None
