import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlserve.bench.load.schedule import schedule
from mlserve.bench.load.trace import Kind, read_trace, replay_plan
from mlserve.bench.plan import check_plan
from mlserve.errors import DataFileError, UsageError
from mlserve.runs.load import Plan, Replay, RowShare
from mlserve.runs.trace import FORMAT_VERSION, VERSION_KEY, trace_schema

PLAN = Plan(rate_per_s=500, duration_s=20, warm_up_s=0)


def recorded(path, rows, version=None):
    """A trace of our own: (at_ns, rows, model, shapes, body) of each request."""
    schema = trace_schema("2026-01-01T00:00:00+00:00")
    if version is not None:
        schema = schema.with_metadata({VERSION_KEY: version})
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * 5
    at_ns, counts, models, shapes, bodies = columns
    arrays = [at_ns, counts, models, ["v2_rest"] * len(rows), shapes, [None] * len(rows), bodies]
    pq.write_table(pa.table([pa.array(a, f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema), path)
    return path


ROWS = [
    (300, 2, "m", '{"x":[2,3]}', None),
    (100, 1, "m", '{"x":[1,3]}', b"one"),
    (200, 1, "m", '{"x":[1,3]}', b"two"),
    (400, 1, "m", '{"x":[1,3]}', b"one"),
]


def test_a_recorded_trace_is_read_in_the_order_of_arrival_from_its_first_request(tmp_path):
    trace = read_trace(recorded(tmp_path / "t.parquet", ROWS), "other")
    assert trace.arrivals_ns.tolist() == [0, 100, 200, 300]
    assert [trace.kinds[kind] for kind in trace.kind_of] == [
        Kind(1, {"x": (1, 3)}),
        Kind(1, {"x": (1, 3)}),
        Kind(2, {"x": (2, 3)}),
        Kind(1, {"x": (1, 3)}),
    ]
    assert [trace.bodies[body] if body >= 0 else None for body in trace.body_of] == [b"one", b"two", None, b"one"]
    assert trace.source == "t.parquet"
    assert len(trace.sha256) == 64


def test_of_several_models_the_one_asked_for_is_taken_with_its_bodies_only(tmp_path):
    path = recorded(tmp_path / "t.parquet", [*ROWS, (50, 9, "other", "{}", b"its"), (900, 9, "other", "{}", None)])
    trace = read_trace(path, "other")
    assert (trace.arrivals_ns.tolist(), trace.kinds, trace.bodies) == ([0, 850], (Kind(9),), (b"its",))
    assert len(read_trace(path, "m")) == 4
    with pytest.raises(DataFileError, match="requests for m, other, none for 'third'; choose one with --model"):
        read_trace(path, "third")
    with pytest.raises(DataFileError, match="so say which to send"):
        read_trace(path)


def test_seconds_of_a_log_and_instants_of_iso_8601_are_the_same_trace(tmp_path):
    frame = pd.DataFrame({"timestamp": [1_700_000_000.25, 1_700_000_000.0, 1_700_000_001.5], "rows": [4, 1, 2]})
    frame.to_csv(tmp_path / "seconds.csv", index=False)
    frame["timestamp"] = pd.to_datetime(frame["timestamp"], unit="s", utc=True)
    frame.to_parquet(tmp_path / "iso.parquet")
    lines = [json.dumps({"timestamp": str(at), "rows": n}) for at, n in zip(frame.timestamp, frame.rows, strict=True)]
    (tmp_path / "iso.jsonl").write_text("\n".join(lines))
    for name in ("seconds.csv", "iso.parquet", "iso.jsonl"):
        trace = read_trace(tmp_path / name)
        assert trace.arrivals_ns.tolist() == [0, 250_000_000, 1_500_000_000], name
        assert [trace.kinds[kind].rows for kind in trace.kind_of] == [1, 4, 2]
        assert trace.bodies == ()


def test_times_alone_are_a_trace_of_single_rows(tmp_path):
    (tmp_path / "t.csv").write_text("at_s\n0.5\n0.75\n")
    trace = read_trace(tmp_path / "t.csv", "any")
    assert (trace.arrivals_ns.tolist(), trace.kinds) == ([0, 250_000_000], (Kind(1),))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("when\n1\n", "none of which says when requests arrived"),
        ("at_s\none\n", "does not hold a number in every row"),
        ("at_s,rows\n1,1\n,1\n", "does not hold a number in every row"),
        ("timestamp\nyesterday\n", "no time of ISO 8601"),
        ("timestamp\n1700000000000\n", "which are no seconds"),
        ("at_s,rows\n1,1.5\n", "whole numbers"),
        ("at_s,rows\n1,0\n", "0 rows"),
        ("at_s\n", "holds no rows"),
    ],
)
def test_a_table_that_is_no_trace_is_refused_with_the_reason(tmp_path, content, fault):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataFileError, match=fault):
        read_trace(tmp_path / "t.csv")


def test_a_trace_of_another_format_a_damaged_and_an_empty_one_are_refused(tmp_path):
    newer = str(FORMAT_VERSION + 1).encode()
    with pytest.raises(DataFileError, match=f"format {FORMAT_VERSION + 1}"):
        read_trace(recorded(tmp_path / "newer.parquet", ROWS, newer))
    with pytest.raises(DataFileError, match="holds no requests"):
        read_trace(recorded(tmp_path / "empty.parquet", []))
    with pytest.raises(DataFileError, match="shapes"):
        read_trace(recorded(tmp_path / "shapes.parquet", [(1, 1, "m", '{"x":"wide"}', None)]))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "newer.parquet").read_bytes()[:200])
    with pytest.raises(DataFileError, match="cannot be read as a trace"):
        read_trace(tmp_path / "cut.parquet")
    with pytest.raises(DataFileError, match="cannot be read"):
        read_trace(tmp_path / "none.parquet")


def test_a_replay_has_the_length_the_mean_rate_and_the_rows_of_its_trace(tmp_path):
    trace = read_trace(recorded(tmp_path / "t.parquet", [(at * 10**9, n, "m", "{}", None) for at, n, *_ in
                                                         [(0, 1), (1, 8), (2, 1), (5, 1)]]))  # fmt: skip
    plan = check_plan(replay_plan(PLAN, trace, 2.0))
    assert plan.shape == Replay("t.parquet", trace.sha256, 2.0)
    assert (plan.arrivals, plan.batch_rows) == ("replay", 8)
    assert plan.duration_s == pytest.approx(2.5 * 4 / 3)
    assert plan.rate_per_s * plan.duration_s == pytest.approx(4)
    assert plan.row_mix == (RowShare(1, 0.75), RowShare(8, 0.25))
    due_ns = schedule(plan, trace.arrivals_ns.tobytes())
    assert due_ns.tolist() == [0, 500_000_000, 1_000_000_000, 2_500_000_000]
    assert due_ns[-1] < plan.longest_s * 1e9


def test_requests_that_came_at_once_are_replayed_at_once(tmp_path):
    trace = read_trace(recorded(tmp_path / "t.parquet", [(7, 1, "m", "{}", None)] * 3))
    plan = check_plan(replay_plan(PLAN, trace))
    assert (plan.duration_s, plan.rate_per_s, plan.row_mix) == (1.0, 3.0, ())
    assert schedule(plan, trace.arrivals_ns.tobytes()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), 1e9])
def test_a_speed_that_is_none_is_refused(tmp_path, speed):
    trace = read_trace(recorded(tmp_path / "t.parquet", ROWS))
    with pytest.raises(UsageError, match="--replay-speed"):
        replay_plan(PLAN, trace, speed)
    assert np.isfinite(replay_plan(PLAN, trace, 1.0).rate_per_s)
