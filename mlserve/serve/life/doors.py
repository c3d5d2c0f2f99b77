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
        self._standing_in: dict[int, asyncio.Server] = {}

    def own(self) -> socket.socket:
        """The worker's own."""
        return self._doors[self._own].dup()

    async def stand_in(self, away: int, let_in: Callable[[socket.socket], Awaitable[asyncio.Server]]) -> bool:
        """Lets clients in by `let_in` at the doors of the workers that are `away`, a bit each, and at no others'.

        Whether it could: without files to be had, who comes there waits.
        """
        all_open = True
        for number, door in enumerate(self._doors):
            is_away = number != self._own and bool(away >> number & 1)
            if is_away and number not in self._standing_in:
                try:
                    self._standing_in[number] = await let_in(door.dup())
                except OSError as error:
                    all_open = False
                    _log.warning("nobody stands in for a worker that ended: %s", error.strerror)
            elif not is_away and number in self._standing_in:
                self._standing_in.pop(number).close()
        return all_open

    def leave(self) -> None:
        """Shuts its own, and stands in for nobody any more: at those doors others may let clients in."""
        for server in self._standing_in.values():
            server.close()
        self._standing_in.clear()
        shut(self._doors[self._own])
        for door in self._doors:
            door.close()
