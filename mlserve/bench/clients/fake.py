"""A client that is a function: for tests of the dispatcher, and for measuring what it costs by itself."""

from collections.abc import Callable

from mlserve.bench.clients.client import Reply

__all__ = ["FakeClient"]


class FakeClient:
    """Answers with `answer(body)`; keeps the bodies it was given in `bodies`."""

    def __init__(self, answer: Callable[[bytes], Reply]) -> None:
        self._answer = answer
        self.bodies: list[bytes] = []
        self.closed = False

    def send(self, body: bytes) -> Reply:
        self.bodies.append(body)
        return self._answer(body)

    def close(self) -> None:
        self.closed = True
