"""The processor time of processes, and what others used of their cores meanwhile."""

import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

from mlserve.bench.watching.cores import read_cores

__all__ = ["MOST_WAITED", "Others", "used_s", "waited_s"]

MOST_WAITED = 0.05
"""Where others had the cores for a larger share of the time, it shows in a percentile."""


def used_s(pids: Collection[int]) -> float:
    """The processor time of the processes `pids` so far: to the nanosecond on Linux, else to a hundredth of a second.

    A thread that has ended takes its time along.
    """
    found = [_told(pid, 0) for pid in pids]
    if all(each is not None for each in found):
        return sum(each for each in found if each is not None)
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def waited_s(pids: Collection[int] = ()) -> float:
    """How long threads of the processes `pids`, or of this one, could have run so far, but others had their core; 0.0
    where nobody tells.
    """
    return sum(_told(pid, 1) or 0.0 for pid in pids or (os.getpid(),))


class Others:
    """What anything but the processes `pids` uses of the cores `cpus` from now on; nothing where nobody tells."""

    def __init__(self, cpus: Collection[int], pids: Sequence[int]) -> None:
        self._cpus, self._pids = cpus, pids
        self._began_s, self._busy_s, self._used_s = time.monotonic(), self._read_busy_s(), used_s(pids)

    def share(self) -> float:
        """Of the cores' time so far, from 0 to 1."""
        others_s, whole_s = self.spent()
        return min(max(0.0, others_s / whole_s), 1.0) if whole_s else 0.0

    def spent(self) -> tuple[float, float]:
        """(what others used of the cores' time so far, all of it), in seconds: the kernel counts in hundredths, so that
        the first may be below zero.
        """
        whole_s = (time.monotonic() - self._began_s) * len(self._cpus)
        return self._read_busy_s() - self._busy_s - (used_s(self._pids) - self._used_s), whole_s

    def _read_busy_s(self) -> float:
        return sum(core.busy_s for number, core in read_cores().items() if number in self._cpus)


def _told(pid: int, place: int) -> float | None:
    """A number of /proc/PID/task/TID/schedstat, of all threads: what they ran (0), and how long they waited to (1)
    (Linux, Documentation/scheduler/sched-stats.rst). None where there is no such file.
    """
    told = []
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            told.append(int(path.read_text().split()[place]))
        except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
            continue
        except OSError:
            return None
    return sum(told) / 1e9 if told else None
