"""One request is one row. Rows reach the disk as they come; every figure is derived from them afterwards.

    scheduled_ns   int64    when the schedule wanted the request sent, since the run's first instant
    sent_ns        int64    when it was handed to the connection; null if it was dropped
    first_byte_ns  int64    when the answer began; null where the client cannot tell
    done_ns        int64    when the answer was complete or the failure known; null if it was dropped
    rows           int32    rows of input it carried
    body           int32    which of the run's request bodies it was
    status         string   "ok", "dropped" (too many were in flight), or what went wrong: "HTTP 503", "UNAVAILABLE"
    version        string   the model version that answered; "" where it did not say
    queue_ns       int64    from its arrival at the server until its run began, by the server; null if it does not say
    compute_ns     int64    how long its run took, by the server; null if it does not say
    batch_rows     int32    rows that were run together with its own, and they; null where the server does not say
    generator      int16    which of the generators sent it

**Law:** latency is `done_ns - scheduled_ns`. What a client waits because the generator or the server was late counts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mlserve.errors import RunFileError
from mlserve.runs.streams import read_stream
from mlserve.runs.window import WHOLE, Window

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["DROPPED", "OK", "SCHEMA", "Sample", "SampleWriter", "Samples", "read_samples"]

OK, DROPPED = "ok", "dropped"

_PARQUET, _STREAM = "samples.parquet", "samples.arrow"

SCHEMA = pa.schema(
    [
        pa.field("scheduled_ns", pa.int64(), nullable=False),
        pa.field("sent_ns", pa.int64()),
        pa.field("first_byte_ns", pa.int64()),
        pa.field("done_ns", pa.int64()),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("body", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("queue_ns", pa.int64()),
        pa.field("compute_ns", pa.int64()),
        pa.field("batch_rows", pa.int32()),
        pa.field("generator", pa.int16(), nullable=False),
    ]
)


class Sample(NamedTuple):
    """One request, its columns in the order of `SCHEMA`."""

    scheduled_ns: int
    sent_ns: int | None
    first_byte_ns: int | None
    done_ns: int | None
    rows: int
    body: int
    status: str
    version: str
    queue_ns: int | None = None
    compute_ns: int | None = None
    batch_rows: int | None = None
    generator: int = 0


class SampleWriter:
    """Appends rows to `samples.arrow`; leaving the block turns it into `samples.parquet`.

    What was appended survives a crash: `read_samples` reads a stream that was never finished.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = (directory / _STREAM).open("wb")
        self._stream = pa.ipc.new_stream(self._file, SCHEMA)
        # The schema goes out with the first batch: an empty one, so that a run cut short at once can be read too.
        self._stream.write_batch(pa.RecordBatch.from_pylist([], SCHEMA))
        self._file.flush()

    def append(self, samples: Iterable[Sample]) -> None:
        """Writes `samples` through to the file."""
        columns = list(zip(*samples, strict=True))
        if not columns:
            return
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self._stream.close()
        self._file.close()
        partial = self._directory / f"{_PARQUET}.partial"
        pq.write_table(read_stream(self._directory / _STREAM, SCHEMA), partial, compression="zstd")
        partial.rename(self._directory / _PARQUET)
        (self._directory / _STREAM).unlink()


class Samples:
    """The rows of a run that were due in `window`, as arrays, in the order in which they were due.

    `status` [n] of every request that was due; `scheduled_s` [n] since the run's first instant. The times beside them
    are seconds too, NaN where the request has none; so are `queue_s` and `compute_s`, the server's own words.
    """

    def __init__(self, table: pa.Table, window: Window = WHOLE) -> None:
        due_s = _seconds(table["scheduled_ns"])
        measured = table.take(np.flatnonzero((due_s >= window.start_s) & (due_s < window.end_s)))
        measured = measured.take(np.argsort(measured["scheduled_ns"].to_numpy(), kind="stable"))
        self.status: npt.NDArray[np.object_] = measured["status"].to_numpy(zero_copy_only=False).astype(object)
        self.version: npt.NDArray[np.object_] = measured["version"].to_numpy(zero_copy_only=False).astype(object)
        self.ok: npt.NDArray[np.bool_] = self.status == OK
        self.rows: npt.NDArray[np.int64] = measured["rows"].to_numpy().astype(np.int64)
        self.body: npt.NDArray[np.int64] = measured["body"].to_numpy().astype(np.int64)
        self.generator: npt.NDArray[np.int64] = measured["generator"].to_numpy().astype(np.int64)
        self.scheduled_s = _seconds(measured["scheduled_ns"])
        self.sent_s = _seconds(measured["sent_ns"])
        self.first_byte_s = _seconds(measured["first_byte_ns"])
        self.done_s = _seconds(measured["done_ns"])
        self.queue_s = _seconds(measured["queue_ns"])
        self.compute_s = _seconds(measured["compute_ns"])

    def __len__(self) -> int:
        return len(self.status)

    @property
    def latency_s(self) -> npt.NDArray[np.float64]:
        """From the scheduled instant to the whole answer, of the requests that were answered well, as they were due."""
        return (self.done_s - self.scheduled_s)[self.ok]

    @property
    def service_s(self) -> npt.NDArray[np.float64]:
        """From sending to the whole answer, of the same requests: what a closed-loop tool would report."""
        return (self.done_s - self.sent_s)[self.ok]

    @property
    def dispatch_lag_s(self) -> npt.NDArray[np.float64]:
        """How late the generator itself was, of every request it sent."""
        lag: npt.NDArray[np.float64] = self.sent_s - self.scheduled_s
        return lag[~np.isnan(lag)]


def read_samples(directory: Path, window: Window = WHOLE) -> Samples:
    """The rows of a run that were due in `window`: of a finished one, or what an interrupted one had written.

    Raises RunFileError when there are none or they cannot be read.
    """
    try:
        if (directory / _PARQUET).is_file():
            table = pq.ParquetFile(directory / _PARQUET).read()
        elif (directory / _STREAM).is_file():
            table = read_stream(directory / _STREAM, SCHEMA)
        else:
            raise RunFileError(f"{directory} holds no samples ({_PARQUET}); give a folder that mlserve bench wrote")
        return Samples(_completed(table).select(SCHEMA.names), window)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunFileError(f"the samples of {directory} are damaged: {error}; run the bench again") from error


def _completed(table: pa.Table) -> pa.Table:
    """`table` with the columns that format 1 did not have."""
    if "body" in table.column_names:
        return table
    for field in SCHEMA:
        if field.name not in table.column_names:
            column = pa.nulls(len(table), field.type) if field.nullable else pa.array(np.zeros(len(table)), field.type)
            table = table.append_column(field, column)
    return table


def _seconds(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    seconds: npt.NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy() / 1e9
    return seconds
