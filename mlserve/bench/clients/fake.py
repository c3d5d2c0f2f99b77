"""A client that is a function: for tests of the dispatcher, and for measuring what it costs by itself."""

from collections.abc import Callable

import gevent

from mlserve.bench.clients.client import Answered, Reply

__all__ = ["FakeClient"]


class FakeClient:
    """Answers with `answer(number)`, which may wait; keeps the numbers it was given in `sent`."""

    def __init__(self, answer: Callable[[int], Reply]) -> None:
        self._answer = answer
        self.sent: list[int] = []
        self.closed = False

    def send(self, number: int, answered: Answered) -> None:
        self.sent.append(number)
        gevent.spawn(lambda: answered(self._answer(number)))

    def close(self) -> None:
        self.closed = True
