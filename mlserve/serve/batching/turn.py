"""What one turn of a transport received together, and therefore runs together."""

import asyncio

from mlserve.serve.batching.batcher import Batcher, Ticket

__all__ = ["LoopTurn", "Turn"]


class Turn:
    """The requests of one turn, by batcher; `run` submits them all.

    Batching is the transport's job too: what has arrived together runs together, without waiting for more.
    """

    def __init__(self) -> None:
        self._received: dict[Batcher, list[Ticket]] = {}

    def add(self, batcher: Batcher, ticket: Ticket) -> None:
        """Keeps `ticket` for `run`."""
        tickets = self._received.get(batcher)
        if tickets is None:
            self._received[batcher] = [ticket]
        else:
            tickets.append(ticket)

    def take_back(self, batcher: Batcher, ticket: Ticket) -> bool:
        """Keeps `ticket` no longer, because its client has gone; False when it was submitted."""
        tickets = self._received.get(batcher, [])
        if ticket not in tickets:
            return False
        tickets.remove(ticket)
        if not tickets:
            del self._received[batcher]
        return True

    def run(self) -> None:
        """Submits what was added since the last run."""
        received, self._received = self._received, {}
        for batcher, tickets in received.items():
            batcher.submit(tickets)


class LoopTurn(Turn):
    """The turn of an event loop: what arrives before the loop polls again. `run` is called by the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop

    def add(self, batcher: Batcher, ticket: Ticket) -> None:
        received = self._received
        if not received:
            self.loop.call_soon(self.run)
        tickets = received.get(batcher)
        if tickets is None:
            received[batcher] = [ticket]
        else:
            tickets.append(ticket)
