"""What a server uses: of each worker its processor time, memory and files; of each model what it took to load."""

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from mlserve import __version__

__all__ = ["LoadCost", "build_family", "measured_load", "process_families"]

_STATM = Path("/proc/self/statm")
_WORKER = ("worker",)


class LoadCost:
    """How long a load took, and by how many bytes the process grew meanwhile (another load at the same time counts)."""

    def __init__(self) -> None:
        self.took_s, self.resident_bytes = 0.0, 0


@contextmanager
def measured_load() -> Iterator[LoadCost]:
    """What the block takes; known once it has ended."""
    cost = LoadCost()
    started_s, before_bytes = time.perf_counter(), _resident_bytes()
    yield cost
    cost.took_s = time.perf_counter() - started_s
    cost.resident_bytes = max(0, _resident_bytes() - before_bytes)


def process_families(process_ids: Sequence[int]) -> list[Metric]:
    """What each worker process uses now, by its process id; one that has just ended is left out."""
    import psutil

    cpu = CounterMetricFamily("mlserve_worker_cpu_seconds", "Processor time, user and system.", labels=_WORKER)
    resident = GaugeMetricFamily("mlserve_worker_resident_bytes", "Resident memory.", labels=_WORKER)
    files = GaugeMetricFamily("mlserve_worker_open_fds", "Open file descriptors.", labels=_WORKER)
    threads = GaugeMetricFamily("mlserve_worker_threads", "Threads.", labels=_WORKER)
    started = GaugeMetricFamily(
        "mlserve_worker_start_time_seconds", "When the worker started, in seconds since 1970.", labels=_WORKER
    )
    families: tuple[CounterMetricFamily | GaugeMetricFamily, ...] = (cpu, resident, files, threads, started)
    for process_id in process_ids:
        try:
            process = psutil.Process(process_id)
            with process.oneshot():
                times = process.cpu_times()
                values = (
                    times.user + times.system,
                    process.memory_info().rss,
                    process.num_fds(),
                    process.num_threads(),
                    process.create_time(),
                )
        except psutil.Error:
            continue
        for family, value in zip(families, values, strict=True):
            family.add_metric((str(process_id),), value)
    return list(families)


@cache
def build_family() -> Metric:
    """Which server this is."""
    family = InfoMetricFamily("mlserve_build", "The server's own version, and Python's.")
    family.add_metric((), {"version": __version__, "python": platform.python_version()})
    return family


def _resident_bytes() -> int:
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return int(psutil.Process().memory_info().rss)
