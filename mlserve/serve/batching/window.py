"""Which waiting requests run together, and when. Pure: the caller brings the time."""

from collections import deque
from collections.abc import Hashable
from math import inf
from typing import Generic, TypeVar

from mlserve.errors import Overloaded

__all__ = ["BatchWindow"]

T = TypeVar("T")


class BatchWindow(Generic[T]):
    """Requests that wait to run, grouped by `key`: only requests with equal keys (shapes) can share a batch.

    A batch is due when its group is full (`max_rows`) or when its oldest request has waited `max_delay_s`.
    **Laws**, for any sequence of calls with time that does not run backwards:

    * every ticket pushed leaves exactly once, and within its group in the order of arrival;
    * a batch has at most `max_rows` rows, unless it is one request that alone has more;
    * no batch leaves before it is due, and of several due ones the one due first leaves first;
    * at most `max_waiting_rows` rows wait; a request alone is never refused.
    """

    def __init__(self, max_rows: int, max_delay_s: float = 0.0, max_waiting_rows: int = 4096) -> None:
        self.max_rows, self.max_delay_s, self.max_waiting_rows = max_rows, max_delay_s, max_waiting_rows
        self.waiting_rows = 0
        self._groups: dict[Hashable, _Group[T]] = {}

    def push(self, ticket: T, rows: int, now_s: float, key: Hashable = None) -> None:
        """Lets `ticket` wait. Raises Overloaded when too many rows wait already."""
        if self.waiting_rows and self.waiting_rows + rows > self.max_waiting_rows:
            raise Overloaded(
                f"Exceeds maximum queue size: {self.waiting_rows} rows wait, the limit is {self.max_waiting_rows}; "
                "retry later"
            )
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        group.waiting.append((now_s, rows, ticket))
        group.rows += rows
        self.waiting_rows += rows

    @property
    def due_at_s(self) -> float:
        """When the next batch may leave; `inf` when nothing waits."""
        return min((self._due_at_s(group) for group in self._groups.values()), default=inf)

    def pop(self, now_s: float) -> list[T]:
        """The batch due first, oldest request first; empty when none is due."""
        key, due_at_s = None, inf
        for candidate, group in self._groups.items():
            candidate_at_s = self._due_at_s(group)
            if candidate_at_s < due_at_s:
                key, due_at_s = candidate, candidate_at_s
        if now_s < due_at_s:
            return []
        return self._take(key)

    def _due_at_s(self, group: "_Group[T]") -> float:
        arrived_s = group.waiting[0][0]
        return arrived_s if group.rows >= self.max_rows else arrived_s + self.max_delay_s

    def _take(self, key: Hashable) -> list[T]:
        group = self._groups[key]
        waiting, taken = group.waiting, 0
        batch: list[T] = []
        while waiting and (not batch or taken + waiting[0][1] <= self.max_rows):
            _, rows, ticket = waiting.popleft()
            batch.append(ticket)
            taken += rows
        group.rows -= taken
        self.waiting_rows -= taken
        if not waiting:
            del self._groups[key]
        return batch


class _Group(Generic[T]):
    """The requests of one key, oldest first, and how many rows they hold together."""

    __slots__ = ("rows", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, int, T]] = deque()
        self.rows = 0
