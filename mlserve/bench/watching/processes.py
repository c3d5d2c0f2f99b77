"""What each process used: the server's, with all that it started, the generators', those of a run beside this one, and
the bench's own, which are this one and what it started for itself.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec
import psutil

__all__ = ["Crowd", "Everyone", "ProcessReading", "Role", "read_everyone"]

Role = Literal["server", "generator", "beside", "bench"]

# Looking for children means looking at every process of the machine.
_LOOK_AGAIN_AFTER = 4


class ProcessReading(msgspec.Struct, frozen=True):
    """One process at one instant: seconds of processor time since it began, user and system, its resident memory, and
    the cores it may run on, empty for all.
    """

    pid: int
    role: Role
    cpu_s: float
    rss_bytes: int
    cpus: tuple[int, ...] = ()


class Everyone(msgspec.Struct, frozen=True):
    """Every process of the machine at an instant of the monotonic clock, by pid: seconds of processor time since it
    began, and its name, which it may change.
    """

    at_s: float
    used_s: Mapping[int, float]
    names: Mapping[int, str]


class Crowd:
    """The processes of a run, to be read again and again. One that has ended is missing from then on."""

    def __init__(self, server_pids: Iterable[int] = ()) -> None:
        self._roots = list(_alive(server_pids))
        self._generators: list[psutil.Process] = []
        self._beside_roots: list[psutil.Process] = []
        self._beside: list[psutil.Process] = []
        self._us = psutil.Process()
        self._servers: list[psutil.Process] = []
        self._bench: list[psutil.Process] = []
        self._looked = 0

    def add_generators(self, pids: Iterable[int]) -> None:
        """Counts the processes `pids` among the generators from now on."""
        self._generators += _alive(pids)

    def add_beside(self, pids: Iterable[int]) -> None:
        """Counts the processes `pids`, and what they start, as those of a run beside this one."""
        self._beside_roots += _alive(pids)
        self._beside = [process for root in self._beside_roots for process in _with_children(root)]

    def read(self) -> list[ProcessReading]:
        """Every process as of now. A server's supervisor may start workers at any time: they are found in time."""
        if self._looked % _LOOK_AGAIN_AFTER == 0:
            self._servers = [process for root in self._roots for process in _with_children(root)]
            self._beside = [process for root in list(self._beside_roots) for process in _with_children(root)]
            self._bench = _with_children(self._us)
        self._looked += 1
        # A process belongs to one role only: the first that names it.
        members: dict[int, tuple[Role, psutil.Process]] = {}
        for role, processes in self._by_role():
            for process in processes:
                members.setdefault(process.pid, (role, process))
        return [reading for role, process in members.values() if (reading := _read(process, role)) is not None]

    def _by_role(self) -> Iterator[tuple[Role, list[psutil.Process]]]:
        # A copy, because the thread that reads is not the one that adds.
        yield "generator", list(self._generators)
        yield "server", self._servers
        yield "beside", self._beside
        yield "bench", self._bench


def read_everyone() -> Everyone:
    """Every process that this one may look at."""
    at_s, used_s, names = time.monotonic(), {}, {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                used = process.cpu_times()
                used_s[process.pid], names[process.pid] = used.user + used.system, process.name()
        except psutil.Error:  # it has ended, or is none of our business
            continue
    return Everyone(at_s, used_s, names)


def _alive(pids: Iterable[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        try:
            yield psutil.Process(pid)
        except psutil.Error:  # it has ended already
            continue


def _with_children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _read(process: psutil.Process, role: Role) -> ProcessReading | None:
    try:
        with process.oneshot():
            used, memory = process.cpu_times(), process.memory_info()
            cpus = tuple(sorted(process.cpu_affinity() or ())) if hasattr(process, "cpu_affinity") else ()
    except psutil.Error:
        return None
    everywhere = len(cpus) == os.cpu_count()
    return ProcessReading(process.pid, role, used.user + used.system, memory.rss, () if everywhere else cpus)
