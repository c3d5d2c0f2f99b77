"""Which waiting requests run together, and when. Pure: the caller brings the time."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from heapq import heapify, heappop, heappush
from math import ceil, inf
from typing import Generic, TypeVar

from mlserve.errors import DeadlineExceeded, Overloaded

__all__ = ["DEFAULT_PRIORITY", "LOWEST_PRIORITY", "BatchWindow"]

DEFAULT_PRIORITY = 2
"""The level of a request that names none: one level is above it, for what is urgent; all others are below."""

LOWEST_PRIORITY = 100
"""The last level; larger numbers are the same. Each level costs time."""

# The share of the longest wait that is filled: a shared machine may be a tenth slower while somebody waits.
_HEADROOM = 0.9
# So many more deadlines may be of requests that left than of such as wait, until their heap is made anew.
_MOST_STALE = 64

T = TypeVar("T", bound=Hashable)


class BatchWindow(Generic[T]):
    """Requests that wait to run, grouped by `key`: only requests with equal keys (shapes) can share a batch.

    A batch is due when its group is full (`max_rows`) or when its oldest request has waited `max_delay_s`. Within a
    group priority 1 comes first, larger numbers later up to `LOWEST_PRIORITY`, 0 means `DEFAULT_PRIORITY`. A ticket is
    pushed once.

    Who runs the batches says how fast that goes: `row_s` is the time a row takes while many wait, `busy_until_s` when
    the present run should end; 0.0 is unknown, and then nobody is refused for the time that others will take.
    **Laws**, for any sequence of calls with time that does not run backwards:

    * every ticket pushed leaves exactly once: by `pop`, by `expire`, by `drop`, or displaced by `push`;
    * within its group and its priority tickets leave by `pop` in the order of arrival;
    * no ticket leaves by `pop` while one of a higher priority waits in its group, unless as a batch-mate of it;
    * a ticket leaves by `pop` before its deadline, and by `expire` at or after it;
    * a batch has at most `max_rows` rows, and at most as many as `pop` asks for, unless it is one request that alone
      has more;
    * no batch leaves before it is due; of several due ones the one with the most urgent request leaves first, of
      equally urgent ones the one due first;
    * at most `max_waiting_rows` rows wait, and no more are let in than take `max_wait_s`; a request that finds nobody
      waiting is never refused;
    * a request is refused room only if those of its own priority and above leave none, and displaced are only requests
      of a lower priority than the one let in: of the lowest the newest first, and no more than it takes;
    * nobody is let in whose deadline passes before its run could begin.
    """

    def __init__(
        self, max_rows: int, max_delay_s: float = 0.0, max_waiting_rows: int = 4096, max_wait_s: float = inf
    ) -> None:
        self.max_rows, self.max_delay_s, self.max_waiting_rows = max_rows, max_delay_s, max_waiting_rows
        self.max_wait_s = max_wait_s
        self.waiting_rows = 0
        self.row_s = self.busy_until_s = 0.0
        # How many rows wait on each level; levels on which none do may be missing.
        self._level_rows: dict[int, int] = {}
        self._groups: dict[Hashable, _Group[T]] = {}
        # (deadline_s, number), the earliest first. Some have left: hence numbers, which keep nobody's tensors alive.
        self._deadlines: list[tuple[float, int]] = []
        # Those with a deadline that wait, by number: (ticket, key, level).
        self._timed: dict[int, tuple[T, Hashable, int]] = {}
        self._numbered = 0
        self._late: list[T] = []

    def push(
        self, ticket: T, rows: int, now_s: float, key: Hashable = None, priority: int = 0, deadline_s: float = inf
    ) -> Sequence[T]:
        """Lets `ticket` wait until `deadline_s`; gives the tickets that had to leave for it, which wait no more.

        Raises Overloaded where there is no room for it, DeadlineExceeded where its run cannot begin in time.
        """
        level = _level(priority)
        if deadline_s != inf:
            self._check_deadline(level, now_s, deadline_s)
        displaced: Sequence[T] = ()
        if self.waiting_rows and self.waiting_rows + rows > self.most_waiting_rows:
            displaced = self._make_room(rows, level)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        waiting = group.levels.get(level)
        if waiting is None:
            waiting = group.levels[level] = OrderedDict()
        number = 0 if deadline_s == inf else self._keep_deadline(deadline_s, ticket, key, level)
        waiting[ticket] = (now_s, rows, number)
        group.rows += rows
        self.waiting_rows += rows
        self._level_rows[level] = self._level_rows.get(level, 0) + rows
        return displaced

    @property
    def most_waiting_rows(self) -> int:
        """How many rows may wait, going by what they take at present."""
        promised_s = _HEADROOM * self.max_wait_s
        if self.row_s * self.max_waiting_rows <= promised_s:
            return self.max_waiting_rows
        return max(1, int(promised_s / self.row_s))

    def wait_s(self, priority: int = 0) -> float:
        """How long those that wait and would run before another request of `priority` take; 0.0 if unknown."""
        return self._rows_before(_level(priority)) * self.row_s

    def check_room(self) -> None:
        """Raises Overloaded where not even one row of the default priority finds room."""
        if self.waiting_rows and self.waiting_rows >= self.most_waiting_rows:
            self._find_room(1, DEFAULT_PRIORITY)

    @property
    def due_at_s(self) -> float:
        """When the next batch may leave; `inf` when nothing waits."""
        return min((self._due_at_s(group) for group in self._groups.values()), default=inf)

    @property
    def deadline_s(self) -> float:
        """No request waits whose deadline is before this; `inf` when none has one."""
        return -inf if self._late else self._deadlines[0][0] if self._deadlines else inf

    def pop(self, now_s: float, most_rows: int | None = None) -> list[T]:
        """The batch that is due and comes first, its most urgent and oldest request first; empty when none is due.

        It has at most `most_rows` rows, where that is less than usual.
        """
        if self._deadlines:
            self._bury(now_s)
        first, key = (inf, inf), None
        for candidate, group in self._groups.items():
            due_at_s = self._due_at_s(group)
            if due_at_s <= now_s and (rank := (min(group.levels), due_at_s)) < first:
                first, key = rank, candidate
        return [] if first[1] == inf else self._take(key, min(self.max_rows, most_rows or self.max_rows))

    def expire(self, now_s: float) -> list[T]:
        """The tickets whose deadline has passed, the earliest first; they wait no more."""
        if self._deadlines:
            self._bury(now_s)
        late, self._late = self._late, []
        return late

    def drop(self, ticket: T, key: Hashable = None, priority: int = 0) -> bool:
        """Takes `ticket` out, because nobody wants its answer any more; False when it does not wait."""
        group = self._groups.get(key)
        level = _level(priority)
        waiting = None if group is None else group.levels.get(level)
        if group is None or waiting is None or ticket not in waiting:
            return False
        _, rows, number = waiting.pop(ticket)
        self._forget(key, group, level, rows, number)
        return True

    def _rows_before(self, level: int) -> int:
        return sum([rows for each, rows in self._level_rows.items() if each <= level])

    def _check_deadline(self, level: int, now_s: float, deadline_s: float) -> None:
        """Raises DeadlineExceeded where the batches before would take too long."""
        if self.row_s and now_s < deadline_s:
            rows_before = self._rows_before(level) // self.max_rows * self.max_rows
            begins_s = max(now_s, self.busy_until_s) + rows_before * self.row_s
            if begins_s > deadline_s:
                raise DeadlineExceeded(
                    f"Request timeout expired: its run could begin in {begins_s - now_s:.3g} s, and it waits for "
                    f"{deadline_s - now_s:.3g} s at most"
                )

    def _find_room(self, rows: int, level: int) -> tuple[int, list[int]]:
        """How many rows must give way to `rows` rows, and the levels below `level` that do, the lowest first.

        Never more than come, even where too many wait already. Raises Overloaded where that is not enough.
        """
        missing = min(rows, self.waiting_rows + rows - self.most_waiting_rows)
        lower = [each for each in sorted(self._level_rows, reverse=True) if each > level]
        before = self._rows_before(level)
        if before and self.waiting_rows - before < missing:
            raise self._overloaded(before * self.row_s)
        return missing, lower

    def _make_room(self, rows: int, level: int) -> list[T]:
        """Takes out the newest of the lowest levels until `rows` rows have room. Raises Overloaded."""
        displaced = list[T]()
        missing, lower = self._find_room(rows, level)
        left_rows = self.waiting_rows - missing
        for lowest in lower:
            while self._level_rows[lowest] and self.waiting_rows > left_rows:
                groups = [(key, group) for key, group in self._groups.items() if lowest in group.levels]
                newest = [(next(reversed(group.levels[lowest].items())), key) for key, group in groups]
                (ticket, _), key = max(newest, key=lambda each: each[0][1][0])
                self.drop(ticket, key, lowest)
                displaced.append(ticket)
        return displaced

    def _overloaded(self, wait_s: float) -> Overloaded:
        taken_s = self.waiting_rows * self.row_s
        limit = f"{self.max_waiting_rows}"
        if self.most_waiting_rows < self.max_waiting_rows:
            limit = f"{_HEADROOM * self.max_wait_s:g} s of work, and these take about {taken_s:.3g} s"
        return Overloaded(
            f"Exceeds maximum queue size: {self.waiting_rows} rows wait, the limit is {limit}; retry later",
            float(max(1, ceil(wait_s))),
        )

    def _due_at_s(self, group: "_Group[T]") -> float:
        arrived_s = min([next(iter(waiting.values()))[0] for waiting in group.levels.values()])
        return arrived_s if group.rows >= self.max_rows else arrived_s + self.max_delay_s

    def _take(self, key: Hashable, most_rows: int) -> list[T]:
        group, batch, taken = self._groups[key], list[T](), 0
        for level in sorted(group.levels):
            waiting = group.levels[level]
            while waiting:
                ticket, (_, rows, number) = next(iter(waiting.items()))
                if batch and taken + rows > most_rows:
                    return batch
                del waiting[ticket]
                batch.append(ticket)
                taken += rows
                self._forget(key, group, level, rows, number)
        return batch

    def _forget(self, key: Hashable, group: "_Group[T]", level: int, rows: int, number: int) -> None:
        if number:
            del self._timed[number]
        group.rows -= rows
        self.waiting_rows -= rows
        self._level_rows[level] -= rows
        if not group.levels[level]:
            del group.levels[level]
            if not group.levels:
                del self._groups[key]

    def _keep_deadline(self, deadline_s: float, ticket: T, key: Hashable, level: int) -> int:
        """The number that the ticket goes by until it leaves; no ticket has 0."""
        self._numbered += 1
        self._timed[self._numbered] = (ticket, key, level)
        heappush(self._deadlines, (deadline_s, self._numbered))
        if len(self._deadlines) > _MOST_STALE + 2 * len(self._timed):
            self._deadlines = [each for each in self._deadlines if each[1] in self._timed]
            heapify(self._deadlines)
        return self._numbered

    def _bury(self, now_s: float) -> None:
        """Takes out what is past its deadline, for `expire` to give."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            found = self._timed.get(heappop(self._deadlines)[1])
            if found is not None:
                self.drop(*found)
                self._late.append(found[0])


def _level(priority: int) -> int:
    return min(priority, LOWEST_PRIORITY) if priority else DEFAULT_PRIORITY


class _Group(Generic[T]):
    """The requests of one key by priority, oldest first, and how many rows they hold together.

    `levels` holds no empty ones: priority -> ticket -> (arrived_s, rows, number); only those with a deadline have a
    number, others have 0.
    """

    __slots__ = ("levels", "rows")

    def __init__(self) -> None:
        self.levels: dict[int, OrderedDict[T, tuple[float, int, int]]] = {}
        self.rows = 0
