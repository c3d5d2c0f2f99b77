"""The sockets at which workers let HTTP clients in, one for each worker, which outlive it.

A socket that is closed resets who is connecting to it at that moment. So the supervisor makes them, every worker
inherits all of them, and when a worker dies the others let in who comes to its door, until its successor does.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

__all__ = ["MOST_DOORS", "Doors", "bound", "open_doors", "shut"]

MOST_DOORS = 64
"""So many workers' absences fit into a number that they share."""

_log = logging.getLogger("mlserve.serve")


@contextmanager
def open_doors(address: tuple[str, int], workers: int) -> Iterator[list[socket.socket]]:
    """A door for each of `workers`, at `address`, where none listens yet.

    None for a worker that is alone, as nobody could stand in for it, for more than share the news of who is away, and
    beyond Linux, where the system does not choose a door for each client by chance.
    """
    with ExitStack() as stack:
        count = workers if sys.platform == "linux" and 1 < workers <= MOST_DOORS else 0
        yield [stack.enter_context(bound(*address)) for _ in range(count)]


def shut(door: socket.socket) -> None:
    """Lets nobody in there any more, whoever has a copy, until one listens anew; nothing where none listens now.

    Who came to one that was shut twice would be let in to a connection that is shut as well.
    """
    with suppress(OSError):
        if door.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            door.shutdown(socket.SHUT_RDWR)


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address that other sockets of this user may share."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, port))
    return found


class Doors:
    """All of them as a worker has them, whose own is number `own`. Those at which it lets clients in are copies."""

    def __init__(self, descriptors: Iterable[int], own: int) -> None:
        self._doors = [socket.socket(fileno=each) for each in descriptors]
        for each in self._doors:
            each.set_inheritable(False)
        self._own = own
        self._listener: socket.socket | None = None
        self._standing_in: dict[int, tuple[socket.socket, asyncio.Server]] = {}
        self._told = False

    def own(self) -> socket.socket:
        """The worker's own, to listen at."""
        self._listener = self._doors[self._own].dup()
        return self._listener

    @property
    def lost(self) -> bool:
        """Whether the event loop has closed the worker's own: it does so, and says nothing, where it cannot accept."""
        return self._listener is not None and self._listener.fileno() < 0

    async def stand_in(self, away: int, let_in: Callable[[socket.socket], Awaitable[asyncio.Server]]) -> None:
        """Lets clients in by `let_in` at the doors of the workers that are `away`, a bit each, and at no others'.

        Without files to be had, who comes there waits until this is called again; that is told once.
        """
        all_open = True
        # Those that the event loop has closed are opened again.
        self._standing_in = {number: pair for number, pair in self._standing_in.items() if pair[0].fileno() >= 0}
        for number, door in enumerate(self._doors):
            is_away = number != self._own and bool(away >> number & 1)
            if is_away and number not in self._standing_in:
                try:
                    listener = door.dup()
                    self._standing_in[number] = listener, await let_in(listener)
                except OSError as error:
                    all_open = False
                    if not self._told:
                        _log.warning("nobody stands in for a worker that ended: %s", error.strerror)
                    self._told = True
            elif not is_away and number in self._standing_in:
                self._standing_in.pop(number)[1].close()
        self._told = self._told and not all_open

    def leave(self) -> None:
        """Shuts its own, and stands in for nobody any more: at those doors others may let clients in."""
        for _, server in self._standing_in.values():
            server.close()
        self._standing_in.clear()
        shut(self._doors[self._own])
        for door in self._doors:
            door.close()
