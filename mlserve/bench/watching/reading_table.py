"""Readings as a file: `resources.parquet`, one row for each process, core and GPU of each reading.

at_s          double   since the run's first instant; negative before it
role          string   "server", "generator", "bench", "core" or "gpu"
pid           int32    of a process
number        int32    of a core or a GPU
cpu           double   cores that a process used, or the busy share of a core, since the reading before; null at first
steal         double   share of a core's time that a hypervisor gave to others, since the reading before
rss_bytes     int64    of a process
utilization   double   of a GPU, as its driver says
memory_bytes  int64    in use on a GPU
power_w       double   of a GPU
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlserve.bench.watching.usage import Reading
from mlserve.runs.resources import RESOURCES_FILE

__all__ = ["write_readings"]

_SCHEMA = pa.schema(
    [
        pa.field("at_s", pa.float64(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("pid", pa.int32()),
        pa.field("number", pa.int32()),
        pa.field("cpu", pa.float64()),
        pa.field("steal", pa.float64()),
        pa.field("rss_bytes", pa.int64()),
        pa.field("utilization", pa.float64()),
        pa.field("memory_bytes", pa.int64()),
        pa.field("power_w", pa.float64()),
    ]
)


def write_readings(directory: Path, readings: Sequence[Reading], first_s: float) -> None:
    """Writes `readings` to `directory`, their times counted from `first_s`."""
    rows: list[dict[str, Any]] = []
    before: Reading | None = None
    for reading in readings:
        at_s = reading.at_s - first_s
        rows += [{"at_s": at_s, **row} for row in (*_processes(reading, before), *_cores(reading, before))]
        rows += [
            {
                "at_s": at_s,
                "role": "gpu",
                "number": gpu.number,
                "utilization": gpu.utilization,
                "memory_bytes": gpu.memory_bytes,
                "power_w": gpu.power_w,
            }
            for gpu in reading.gpus
        ]
        before = reading
    partial = directory / f"{RESOURCES_FILE}.partial"
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), partial, compression="zstd")
    partial.rename(directory / RESOURCES_FILE)


def _processes(reading: Reading, before: Reading | None) -> Iterator[dict[str, Any]]:
    known = {process.pid: process.cpu_s for process in before.processes} if before else {}
    for process in reading.processes:
        grown_s = process.cpu_s - known[process.pid] if process.pid in known else None
        yield {
            "role": process.role,
            "pid": process.pid,
            "cpu": None if grown_s is None or before is None else grown_s / (reading.at_s - before.at_s),
            "rss_bytes": process.rss_bytes,
        }


def _cores(reading: Reading, before: Reading | None) -> Iterator[dict[str, Any]]:
    for number, core in reading.cores.items():
        row: dict[str, Any] = {"role": "core", "number": number}
        was = before.cores.get(number) if before else None
        if was is not None and core.total_s > was.total_s:
            there_s = core.total_s - was.total_s
            row |= {"cpu": (core.busy_s - was.busy_s) / there_s, "steal": (core.steal_s - was.steal_s) / there_s}
        yield row
