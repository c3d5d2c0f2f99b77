"""The sockets at which workers let HTTP clients in, one for each worker, which outlive it.

A socket that is closed resets who is connecting to it at that moment. So the supervisor makes them, every worker
inherits all of them, and when a worker dies the others let in who comes to its door, until its successor does.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

__all__ = ["MOST_DOORS", "Doors", "bound", "open_doors"]

MOST_DOORS = 64
"""So many workers' absences fit into a number that they share."""

_log = logging.getLogger("mlserve.serve")


@contextmanager
def open_doors(address: tuple[str, int], workers: int) -> Iterator[tuple[int, ...]]:
    """The descriptors of a door for each of `workers`, at `address`, where none listens yet.

    None for a worker that is alone, as nobody could stand in for it, and for more than share the news of who is away.
    """
    with ExitStack() as stack:
        count = workers if 1 < workers <= MOST_DOORS else 0
        yield tuple(stack.enter_context(bound(*address)).fileno() for _ in range(count))


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

    async def stand_in(self, away: int, let_in: Callable[[socket.socket], Awaitable[asyncio.Server]]) -> None:
        """Lets clients in by `let_in` at the doors of the workers that are `away`, a bit each, and at no others'."""
        for number, door in enumerate(self._doors):
            is_away = number != self._own and bool(away >> number & 1)
            if is_away and number not in self._standing_in:
                try:
                    self._standing_in[number] = await let_in(door.dup())
                except OSError as error:  # no file to be had: who comes there waits for the successor
                    _log.warning("nobody stands in for a worker that ended: %s", error.strerror)
            elif not is_away and number in self._standing_in:
                self._standing_in.pop(number).close()

    def shut(self) -> None:
        """Lets nobody in at the doors that it serves, whoever else has a copy, until one listens there anew."""
        for server in self._standing_in.values():
            server.close()
        for number in (self._own, *self._standing_in):
            with suppress(OSError):  # nobody listens
                self._doors[number].shutdown(socket.SHUT_RDWR)
        for door in self._doors:
            door.close()
        self._standing_in.clear()
