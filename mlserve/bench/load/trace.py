"""Recorded traces, read: what `mlserve record` wrote (see mlserve.runs.trace), and any table with a column of times.

    at_ns         when a request arrived, in nanoseconds since any beginning; or
    at_s          the same in seconds; or
    timestamp     in seconds, such as a log's 1700000000.25, or as ISO 8601 writes it
    rows          rows of input it carried; 1 where there is no such column
    model         the model it asked for; may be missing

A table is csv, parquet or jsonl, its rows in any order. A trace begins with its first request.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlserve.errors import DataFileError, UsageError
from mlserve.model.artifact import sha256_of
from mlserve.model.rows import read_columns
from mlserve.runs.load import Plan, Replay, RowShare
from mlserve.runs.trace import FORMAT_VERSION, SCHEMA, VERSION_KEY

__all__ = ["Kind", "Trace", "read_trace", "replay_plan"]

_MOST_ARRIVALS = 10_000_000
_MOST_BODIES, _MOST_BODY_BYTES = 1024, 64 << 20
_BODIES_AT_ONCE = 256
# Seconds since 1970 are fewer until the year 5138; milliseconds are more since 1973.
_MOST_SECONDS = 1e11

_Ints = npt.NDArray[np.int64]


class Kind(msgspec.Struct, frozen=True):
    """How large a request was: its rows, and its inputs' shapes [rows, ...]; no shapes where the trace has none."""

    rows: int
    shapes: dict[str, tuple[int, ...]] = {}


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """When requests came and what they carried.

    `arrivals_ns` [n] count from the first and are sorted. Arrival i was of `kinds[kind_of[i]]` and had the inputs in
    `bodies[body_of[i]]`, -1 where they were not kept, or there were more than are sent again. `path` is where it lies,
    "" where it was made and not read.
    """

    path: str = ""
    source: str
    sha256: str
    arrivals_ns: _Ints
    kinds: tuple[Kind, ...]
    kind_of: _Ints
    bodies: tuple[bytes, ...]
    body_of: _Ints

    def __len__(self) -> int:
        return len(self.arrivals_ns)


def read_trace(path: Path, model: str = "") -> Trace:
    """The trace in `path`: its requests for `model`, or all of them where it knows of one model only.

    Raises DataFileError when it cannot be read, holds no requests for `model`, or is of another format.
    """
    own = _recorded(path) if path.suffix.lower() == ".parquet" else None
    table = _foreign(path) if own is None else own
    chosen = np.flatnonzero(_of_model(table["model"], model, path))
    if len(chosen) > _MOST_ARRIVALS:
        raise DataFileError(f"{path} holds {len(chosen):,} requests, at most {_MOST_ARRIVALS:,} are sent; cut it")
    at_ns = table["at_ns"].to_numpy()
    chosen = chosen[np.argsort(at_ns[chosen], kind="stable")]
    kinds, kind_of = _kinds(table.take(chosen), path)
    bodies, body_of = ((), np.full(len(table), -1)) if own is None else _bodies(path, len(table), set(chosen.tolist()))
    return Trace(
        path=str(path),
        source=path.name,
        sha256=sha256_of(path),
        arrivals_ns=at_ns[chosen] - at_ns[chosen[0]],
        kinds=kinds,
        kind_of=kind_of,
        bodies=bodies,
        body_of=body_of[chosen],
    )


def replay_plan(plan: Plan, trace: Trace, speed: float = 1.0) -> Plan:
    """`plan` as a replay of `trace`, `speed` times as fast as it was: it has the trace's length, mean rate and rows.

    The measured part ends a mean gap after the last arrival. Raises UsageError for a speed that is none, and for a plan
    that asks for other rows.
    """
    if not 1e-3 <= speed <= 1e3:  # not NaN either
        raise UsageError(f"--replay-speed {speed:g} is out of range; give 0.001 to 1000, 1 for as fast as it was")
    if plan.row_mix:
        raise UsageError("--batch contradicts --replay, which sends as many rows as were recorded; leave one out")
    span_s, count = float(trace.arrivals_ns[-1]) / 1e9 / speed, len(trace)
    duration_s = span_s * count / (count - 1) if span_s else 1.0
    rows = np.array([kind.rows for kind in trace.kinds])[trace.kind_of]
    sizes, counts = np.unique(rows, return_counts=True)
    mix = tuple(RowShare(int(size), n / count) for size, n in zip(sizes, counts.tolist(), strict=True))
    return msgspec.structs.replace(
        plan,
        arrivals="replay",
        shape=Replay(trace.source, trace.sha256, speed),
        rate_per_s=count / duration_s,
        duration_s=duration_s,
        batch_rows=int(sizes[-1]),
        row_mix=mix if len(mix) > 1 else (),
    )


def _recorded(path: Path) -> pa.Table | None:
    """A trace of our own without its bodies; None for a Parquet file of another kind."""
    try:
        file = pq.ParquetFile(path)
        version = (file.schema_arrow.metadata or {}).get(VERSION_KEY)
        if version is None:
            return None
        if version != str(FORMAT_VERSION).encode():
            raise DataFileError(
                f"{path} is a trace of format {version.decode(errors='replace')}, this mlserve reads "
                f"{FORMAT_VERSION}; use the mlserve that wrote it"
            )
        missing = set(SCHEMA.names) - set(file.schema_arrow.names)
        table = file.read([name for name in SCHEMA.names if name not in ("body", "body_hash")])
    except (pa.ArrowException, OSError) as error:
        raise DataFileError(f"{path} cannot be read as a trace: {error}") from error
    if missing or not len(table):
        fault = f"lacks {', '.join(sorted(missing))}" if missing else "holds no requests"
        raise DataFileError(f"{path} is a trace that {fault}; record it again with: mlserve record")
    return table


def _foreign(path: Path) -> pa.Table:
    """A table of another tool in our own columns."""
    columns = read_columns(path)
    times = _times_ns(columns, path)
    rows = columns.get("rows", np.ones(len(times), np.int64))
    models = columns.get("model", np.full(len(times), "", object))
    if rows.dtype.kind not in "iuf" or rows.ndim != 1 or not np.array_equal(rows, np.rint(rows)):
        raise DataFileError(
            f"{path}: the column rows does not hold whole numbers; write how many rows each request has"
        )
    return pa.table(
        {
            "at_ns": pa.array(times),
            "rows": pa.array(rows.astype(np.int64)),
            "model": pa.array([str(model) for model in models], pa.string()),
            "shapes": pa.array(["{}"] * len(times), pa.string()),
        }
    )


def _times_ns(columns: dict[str, Any], path: Path) -> _Ints:
    name = next((name for name in ("at_ns", "at_s", "timestamp") if name in columns), None)
    if name is None:
        raise DataFileError(
            f"{path} has the columns {', '.join(columns)}, none of which says when requests arrived; name one at_s "
            "(seconds), at_ns or timestamp (ISO 8601, or seconds)"
        )
    column = columns[name]
    if name == "timestamp" and column.dtype.kind not in "iuf":
        return _instants_ns(column, path)
    if column.dtype.kind not in "iuf" or column.ndim != 1 or not np.all(np.isfinite(column)):
        raise DataFileError(f"{path}: the column {name} does not hold a number in every row")
    if name == "at_ns":
        return np.asarray(column, np.int64)
    if np.max(np.abs(column)) > _MOST_SECONDS:
        raise DataFileError(
            f"{path}: the column {name} holds {column[0]:g}, which are no seconds; divide, or use at_ns"
        )
    # From the smallest on, for seconds since 1970 lose their microseconds when they are made nanoseconds.
    times: _Ints = np.rint((column - column.min()) * 1e9).astype(np.int64)
    return times


def _instants_ns(column: npt.NDArray[Any], path: Path) -> _Ints:
    import pandas

    try:
        instants = pandas.to_datetime(pandas.Series(column), utc=True, format="ISO8601")
    except (ValueError, TypeError) as error:
        raise DataFileError(f"{path}: the column timestamp is no time of ISO 8601: {error}") from error
    if instants.isna().any():
        raise DataFileError(f"{path}: the column timestamp is empty in row {int(instants.isna().argmax()) + 1}")
    times: _Ints = instants.dt.tz_localize(None).dt.as_unit("ns").to_numpy().astype(np.int64)
    return times


def _of_model(column: pa.ChunkedArray, model: str, path: Path) -> npt.NDArray[np.bool_]:
    names = sorted(column.unique().to_pylist())
    if len(names) == 1:
        return np.ones(len(column), bool)
    chosen: npt.NDArray[np.bool_] = pc.equal(column, model).to_numpy(zero_copy_only=False)
    if not chosen.any():
        asked = f"none for '{model}'" if model else "so say which to send"
        raise DataFileError(f"{path} holds requests for {', '.join(names)}, {asked}; choose one with --model NAME")
    return chosen


def _kinds(table: pa.Table, path: Path) -> tuple[tuple[Kind, ...], _Ints]:
    """The distinct kinds of request, and which of them each is [n]."""
    rows = table["rows"].to_numpy().astype(np.int64)
    if rows.min() < 1:
        raise DataFileError(f"{path} holds a request of {rows.min()} rows; a request has at least one")
    shapes = table["shapes"].combine_chunks().dictionary_encode()
    pairs, kind_of = np.unique(np.stack([shapes.indices.to_numpy(), rows]), axis=1, return_inverse=True)
    texts = shapes.dictionary.to_pylist()
    try:
        kinds = tuple(Kind(int(n), _shapes(texts[text])) for text, n in pairs.T)
    except msgspec.DecodeError as error:
        raise DataFileError(f"{path} is damaged: a request's shapes are not readable ({error})") from error
    return kinds, kind_of.ravel().astype(np.int64)


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = msgspec.json.decode(text, type=dict[str, tuple[int, ...]])
    return shapes


def _bodies(path: Path, count: int, wanted: set[int]) -> tuple[tuple[bytes, ...], _Ints]:
    """The distinct bodies of the `wanted` requests in a trace of our own, as many as are sent again; and which of them
    each request had [count].
    """
    bodies: dict[bytes, int] = {}
    size_bytes = 0
    body_of = np.full(count, -1)
    try:
        batches = pq.ParquetFile(path).iter_batches(_BODIES_AT_ONCE, columns=["body"])
        contents = (body.as_py() for batch in batches for body in batch["body"])
        for position, content in enumerate(contents):
            if content is None or position not in wanted:
                continue
            if content not in bodies and len(bodies) < _MOST_BODIES and size_bytes < _MOST_BODY_BYTES:
                bodies[content] = len(bodies)
                size_bytes += len(content)
            body_of[position] = bodies.get(content, -1)
    except (pa.ArrowException, OSError) as error:
        raise DataFileError(f"{path} cannot be read as a trace: {error}") from error
    return tuple(bodies), body_of
