"""The processor time of processes, and what others used of their cores meanwhile."""

import os
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import psutil

from mlserve.bench.watching.cores import read_cores

__all__ = ["MOST_WAITED", "Counts", "read_counts", "used_s", "waited_s"]

MOST_WAITED = 0.05
"""Where others had the cores for a larger share of the time, it shows in a percentile."""


class Counts(NamedTuple):
    """Seconds so far: `whole_s` of some cores, `busy_s` of it they ran anything; `used_s` processes ran, and `waited_s`
    their threads could have run, but others had their core (0.0 where nobody tells).

    The kernel counts what cores did in hundredths of a second.
    """

    whole_s: float
    busy_s: float
    used_s: float
    waited_s: float

    @property
    def others_s(self) -> float:
        """What anything but the processes used of the cores: below zero, where the kernel's hundredths make it so."""
        return self.busy_s - self.used_s

    def since(self, before: "Counts") -> "Counts":
        """What came after `before`."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


def read_counts(cpus: Collection[int], pids: Collection[int], between: Callable[[], object] | None = None) -> Counts:
    """Of the cores `cpus` and the processes `pids`. `between` is called between one of them and the next: all of them
    take a millisecond, for which whatever else is due would wait.
    """
    counts = [(time.monotonic() * len(cpus), _busy_s(cpus), 0.0, 0.0)]
    for pid in pids:
        if between:
            between()
        ran_s, lingered_s = _told(pid) or (used_s([pid]), 0.0)
        counts.append((0.0, 0.0, ran_s, lingered_s))
    return Counts(*(sum(column) for column in zip(*counts, strict=True)))


def used_s(pids: Collection[int]) -> float:
    """The processor time of the processes `pids` so far: to the nanosecond on Linux, else to a hundredth of a second.

    A thread that has ended takes its time along.
    """
    found = [_told(pid) for pid in pids]
    if all(each is not None for each in found):
        return sum(each[0] for each in found if each is not None)
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def waited_s() -> float:
    """How long threads of this process could have run so far, but others had their core; 0.0 where nobody tells."""
    told = _told(os.getpid())
    return told[1] if told else 0.0


def _busy_s(cpus: Collection[int]) -> float:
    return sum(core.busy_s for number, core in read_cores().items() if number in cpus)


def _told(pid: int) -> tuple[float, float] | None:
    """What the threads of `pid` ran, and how long they waited to, by /proc/PID/task/TID/schedstat (Linux,
    Documentation/scheduler/sched-stats.rst). None where there is no such file.
    """
    ran_ns = lingered_ns = 0
    folder, some = f"/proc/{pid}/task", False
    try:
        for thread in os.listdir(folder):  # noqa: PTH208  # a third of the time of a Path's
            try:
                with open(f"{folder}/{thread}/schedstat", "rb", buffering=0) as file:  # noqa: PTH123
                    ran, lingered, *_ = file.read().split()
            except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
                continue
            ran_ns, lingered_ns, some = ran_ns + int(ran), lingered_ns + int(lingered), True
    except OSError:
        return None
    return (ran_ns / 1e9, lingered_ns / 1e9) if some else None
