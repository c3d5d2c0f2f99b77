"""Requests that wait, each with the same time to wait: one timer for all of them."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from gevent import get_hub

__all__ = ["Deadlines"]

_NS = 1_000_000_000

_Waiting = TypeVar("_Waiting")


class Deadlines(Generic[_Waiting]):
    """What has waited for `timeout_s` is handed to `over`, the oldest first, which must end all of it."""

    __slots__ = ("_due_ns", "_over", "_timeout_ns", "_timer")

    def __init__(self, timeout_s: float, over: Callable[[list[_Waiting]], None]) -> None:
        self._timeout_ns = round(timeout_s * _NS)
        self._over = over
        # A dictionary keeps its order, which is that of the deadlines.
        self._due_ns: dict[_Waiting, int] = {}
        self._timer: Any = None

    def __iter__(self) -> Iterator[_Waiting]:
        return iter(self._due_ns)

    def begin(self, waiting: _Waiting) -> None:
        self._due_ns[waiting] = time.monotonic_ns() + self._timeout_ns
        if self._timer is None:
            self._look_in(self._timeout_ns)

    def end(self, waiting: _Waiting) -> None:
        del self._due_ns[waiting]

    def close(self) -> None:
        self._due_ns.clear()
        if self._timer is not None:
            self._timer.close()

    def _look_in(self, wait_ns: int) -> None:
        self._timer = get_hub().loop.timer(wait_ns / _NS)
        self._timer.start(self._look)

    def _look(self) -> None:
        """Gives up what has waited for too long; then waits for the oldest of what is left."""
        self._timer.close()
        self._timer = None
        now_ns = time.monotonic_ns()
        over: list[_Waiting] = []
        for waiting, due_ns in self._due_ns.items():
            if due_ns > now_ns:
                self._look_in(due_ns - now_ns)
                break
            over.append(waiting)
        if over:
            self._over(over)
