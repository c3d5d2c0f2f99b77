"""The watch over a run: a thread that takes readings from before the load until after it."""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlserve.bench.watching.clock import Clocks, read_clocks
from mlserve.bench.watching.cores import PROC, read_cores
from mlserve.bench.watching.energy import read_energy
from mlserve.bench.watching.gpus import Gpus, load_nvml
from mlserve.bench.watching.processes import Crowd, Everyone, read_everyone
from mlserve.bench.watching.reading_table import write_readings
from mlserve.bench.watching.usage import Reading, busiest_others, resources_between
from mlserve.runs.machine import SYS, read_governor
from mlserve.runs.resources import Resources

__all__ = ["THIS_MACHINE", "ResourceWatch", "Sources", "watching"]

_EVERY_S = 0.5


class Sources(msgspec.Struct, frozen=True):
    """Where readings come from."""

    proc: Path = PROC
    sys: Path = SYS
    clocks: Clocks = read_clocks


THIS_MACHINE = Sources()


@contextmanager
def watching(
    server_pids: Iterable[int] = (),
    keep_off: Sequence[int] = (),
    sources: Sources = THIS_MACHINE,
    every_s: float = _EVERY_S,
) -> Iterator["ResourceWatch"]:
    """Takes readings every `every_s` as long as the block runs, and once at either end.

    `server_pids` are the server's processes on this machine; what they start counts with them. The thread stays off the
    cores `keep_off`, which are the generators', unless there are no others.
    """
    watch = ResourceWatch(server_pids, keep_off, sources, every_s)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


class ResourceWatch:
    """See `watching`. What it found may be asked for while it runs and afterwards."""

    def __init__(self, server_pids: Iterable[int], keep_off: Sequence[int], sources: Sources, every_s: float) -> None:
        self._keep_off, self._sources, self._every_s = keep_off, sources, every_s
        self.server_pids = tuple(server_pids)
        self._crowd, self._gpus = Crowd(self.server_pids), Gpus(load_nvml())
        self._readings: list[Reading] = []
        self._before: Everyone | None = None
        self._after: Everyone | None = None
        self._looking = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_reading, name="resource watch", daemon=True)

    def start(self) -> None:
        """Takes the first reading, and goes on in the background."""
        self.look()
        self._thread.start()

    def add_generators(self, pids: Iterable[int]) -> None:
        """Says which processes the generators are, as soon as they are there and before the load begins."""
        self._crowd.add_generators(pids)
        self._before = read_everyone()
        self.look()

    def add_beside(self, pids: Iterable[int]) -> None:
        """Says which processes, with all that they started, belong to a run that takes turns with this one."""
        self._crowd.add_beside(pids)

    def look(self) -> None:
        """Takes a reading now. Whoever knows that the generators are about to end has them looked at once more."""
        with self._looking:
            self._readings.append(self._read())

    def stop(self) -> None:
        """Takes the last reading. A second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        self.look()
        self._after = read_everyone()
        self._gpus.close()

    def resources(self, start_s: float, end_s: float) -> Resources:
        """What was used from `start_s` to `end_s`, instants of `time.monotonic()`."""
        readings = tuple(self._readings)
        found = resources_between(readings, start_s, end_s)
        ours = {process.pid for reading in readings for process in reading.processes}
        others = busiest_others(self._before, self._after, ours) if self._before and self._after else ()
        cpus = {cpu for process in found.processes for cpu in process.cpus}
        return msgspec.structs.replace(
            found, processes=(*found.processes, *others), governor=read_governor(cpus, self._sources.sys)
        )

    def write(self, directory: Path, first_s: float) -> None:
        """Writes the readings to `resources.parquet`, their times counted from the run's first instant, `first_s` of
        `time.monotonic()`.
        """
        write_readings(directory, tuple(self._readings), first_s)

    def _keep_reading(self) -> None:
        self._leave_cores()
        while not self._ended.wait(self._every_s):
            self.look()

    def _leave_cores(self) -> None:
        """On Linux this binds the calling thread alone."""
        if not hasattr(os, "sched_setaffinity"):
            return
        left = os.sched_getaffinity(0) - set(self._keep_off)
        if left:
            os.sched_setaffinity(0, left)

    def _read(self) -> Reading:
        sources = self._sources
        return Reading(
            at_s=time.monotonic(),
            clocks=sources.clocks(),
            processes=tuple(self._crowd.read()),
            cores=read_cores(sources.proc),
            gpus=tuple(self._gpus.read()),
            energy=read_energy(sources.sys),
        )
