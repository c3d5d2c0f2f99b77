"""Two runs that load one machine in turns, some hundredths of a second each: they begin at instants that they agree on,
and each knows that what the other uses is no stranger's work.

What a machine does by itself changes within a second: two runs one after the other each see another machine, and two in
such turns see the same. (p50 of a model of 1 ms at 200 requests/s for 3 s, halved in turns A B B A: the ratio of the
halves had a standard deviation of 8.7% with turns of 1.5 s, 5.6% with 0.25 s, 3.0% with 0.1 s.)
"""

import threading
import time
from collections.abc import Callable, Iterable

from mlserve.errors import BenchError

__all__ = ["Meeting", "Seat", "side_by_side"]

# From the moment that both are ready until the first request is due.
_LEAD_NS = 300_000_000
# What the other may take to be ready: to make its requests, start its generator and calibrate it.
_PATIENCE_S = 120.0
_POLL_S = 0.1


class _Left(BenchError):
    """This run ends because the other one has."""


class Meeting:
    """Of `parties` runs, of which number k begins `k * slot_s` after the first."""

    def __init__(self, slot_s: float, parties: int = 2) -> None:
        self._slot_ns = round(slot_s * 1e9)
        self._pids: list[frozenset[int]] = [frozenset()] * parties
        self._ready = [threading.Event() for _ in range(parties)]
        self._together = threading.Barrier(parties, self._agree)
        self._start_ns = 0

    @property
    def seats(self) -> "list[Seat]":
        """The place of each."""
        return [Seat(self, number) for number in range(len(self._ready))]

    def wait_for_turn(self, number: int) -> None:
        """Until all before that one are ready. Raises BenchError where it was called off."""
        for ready in self._ready[:number]:
            while not ready.wait(_POLL_S):
                self.check()

    def call_off(self) -> None:
        """Ends both: whoever waits, and whoever runs and asks."""
        self._together.abort()

    def arrive(self, number: int, pids: Iterable[int]) -> tuple[int, frozenset[int]]:
        """Waits until all are ready: the first instant of this one, of `time.monotonic_ns`, and the processes of the
        others. Raises BenchError where the other does not come.
        """
        self._pids[number] = frozenset(pids)
        self._ready[number].set()
        try:
            self._together.wait(_PATIENCE_S)
        except threading.BrokenBarrierError as error:
            raise _Left("the run beside this one did not begin") from error
        others = frozenset().union(*(own for place, own in enumerate(self._pids) if place != number))
        return self._start_ns + number * self._slot_ns, others

    def check(self) -> None:
        """Raises BenchError where it was called off."""
        if self._together.broken:
            raise _Left("the run beside this one broke down")

    def _agree(self) -> None:
        self._start_ns = time.monotonic_ns() + _LEAD_NS


class Seat:
    """One run's place in a meeting."""

    def __init__(self, meeting: Meeting, number: int) -> None:
        self._meeting, self.number = meeting, number

    def wait_for_turn(self) -> None:
        """See Meeting.wait_for_turn."""
        self._meeting.wait_for_turn(self.number)

    def arrive(self, pids: Iterable[int]) -> tuple[int, frozenset[int]]:
        """See Meeting.arrive."""
        return self._meeting.arrive(self.number, pids)

    def check(self) -> None:
        """See Meeting.check."""
        self._meeting.check()


def side_by_side(meeting: Meeting, run: Callable[[Seat], None]) -> list[BaseException | None]:
    """Makes the run of every seat, each in a thread of its own, and returns what each of them raised.

    One begins to get ready when the one before it is: what either measures then, the other does not disturb. Where one
    breaks down, the others are ended. Ctrl-C here ends them all.
    """
    raised: list[BaseException | None] = [None for _ in meeting.seats]

    def make(seat: Seat) -> None:
        try:
            seat.wait_for_turn()
            run(seat)
        except BaseException as error:  # handed to whoever asked for the run
            raised[seat.number] = error
            meeting.call_off()

    threads = [threading.Thread(target=make, args=(seat,), name=f"run {seat.number}") for seat in meeting.seats]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        meeting.call_off()
        for thread in threads:
            thread.join()
        raise
    causes = [error for error in raised if error is not None and not isinstance(error, _Left)]
    return [None if isinstance(error, _Left) and causes else error for error in raised]
