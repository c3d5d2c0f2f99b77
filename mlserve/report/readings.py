"""What server, generators and GPUs used, reading after reading, as the bench wrote it beside a run.

    at_s     role                                cpu     rss_bytes  utilization  memory_bytes
    double   "server", "generator", "gpu", ...   double  int64      double       int64

One row for each process and GPU of each reading; a reading's rows of one role are added up here.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlserve.errors import RunFileError
from mlserve.runs.resources import RESOURCES_FILE
from mlserve.stats import Floats

__all__ = ["Readings", "Series", "binned", "read_readings"]

_COLUMNS = ["at_s", "role", "cpu", "rss_bytes", "utilization", "memory_bytes"]


class Series(msgspec.Struct, frozen=True):
    """Values [n] at instants [n], seconds since the run's first instant, in time order."""

    at_s: Floats
    values: Floats


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """Of all processes of a role together: cores used, memory resident; of all GPUs, mean utilization, memory used."""

    server_cores: Series
    generator_cores: Series
    server_bytes: Series
    gpu_utilization: Series
    gpu_bytes: Series


def read_readings(directory: Path) -> Readings | None:
    """The readings of the run in `directory`, None where it has none. Raises RunFileError if they cannot be read."""
    path = directory / RESOURCES_FILE
    if not path.is_file():
        return None
    try:
        table = pq.ParquetFile(path).read(columns=_COLUMNS)
    except (pa.ArrowException, OSError) as error:
        raise RunFileError(f"{path} is damaged: {error}; delete it to report without it") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise RunFileError(f"{path} has no column {', '.join(missing)}; delete it to report without it")
    return Readings(
        server_cores=_series(table, "server", "cpu"),
        generator_cores=_series(table, "generator", "cpu"),
        server_bytes=_series(table, "server", "rss_bytes"),
        gpu_utilization=_series(table, "gpu", "utilization", mean=True),
        gpu_bytes=_series(table, "gpu", "memory_bytes"),
    )


def _series(table: pa.Table, role: str, column: str, *, mean: bool = False) -> Series:
    rows = np.asarray(table["role"].to_numpy(zero_copy_only=False) == role)
    at_s = np.asarray(table["at_s"].to_numpy(zero_copy_only=False), dtype=np.float64)[rows]
    values = np.asarray(table[column].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)[rows]
    known = ~np.isnan(values)
    instants, numbers = np.unique(at_s[known], return_inverse=True)
    sums: Floats = np.bincount(numbers, values[known], minlength=len(instants)).astype(np.float64)
    return Series(instants, sums / np.bincount(numbers, minlength=len(instants)) if mean else sums)


def binned(series: Sequence[tuple[Series, float]], edges_s: Floats) -> tuple[float | None, ...]:
    """The mean of several series in each of the bins between `edges_s` [n + 1]: [n], None where there is no value.
    Each series comes with the instant that is its 0.
    """
    at_s = np.concatenate([one.at_s - start_s for one, start_s in series] or [np.empty(0)])
    values = np.concatenate([one.values for one, _ in series] or [np.empty(0)])
    counts, _ = np.histogram(at_s, bins=edges_s)
    sums, _ = np.histogram(at_s, bins=edges_s, weights=values)
    return tuple(
        float(total / count) if count else None for total, count in zip(sums.tolist(), counts.tolist(), strict=True)
    )
