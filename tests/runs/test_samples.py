"""Raw rows: what is appended is what is read, from a finished run and from one that was killed."""

import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlserve.errors import RunFileError
from mlserve.runs.samples import DROPPED, OK, SCHEMA, Sample, SampleWriter, read_samples
from mlserve.runs.window import WHOLE, Window

STAMPS = st.integers(0, 10**12)
SAMPLES = st.lists(
    st.builds(
        Sample,
        STAMPS,
        st.none() | STAMPS,
        st.none() | STAMPS,
        st.none() | STAMPS,
        st.integers(1, 100),
        st.integers(0, 1000),
        st.sampled_from([OK, DROPPED, "HTTP 503"]),
        st.text(max_size=5),
        st.none() | STAMPS,
        st.none() | STAMPS,
        st.none() | st.integers(1, 64),
        st.integers(0, 7),
    ),
    max_size=20,
)


def seconds(stamps):
    return np.array([np.nan if stamp is None else stamp / 1e9 for stamp in stamps], float)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    batches=st.lists(SAMPLES, max_size=4),
    window=st.just(WHOLE) | st.builds(Window, st.floats(0, 500), st.floats(0, 999)),
)
def test_what_is_appended_is_what_is_read_of_the_measured_part_as_it_was_due(tmp_path_factory, batches, window):
    folder = tmp_path_factory.mktemp("run")
    with SampleWriter(folder) as writer:
        for batch in batches:
            writer.append(batch)
    assert [path.name for path in folder.iterdir()] == ["samples.parquet"]
    rows = sorted((row for batch in batches for row in batch), key=lambda row: row.scheduled_ns)
    measured = [row for row in rows if window.start_s <= row.scheduled_ns / 1e9 < window.end_s]
    samples = read_samples(folder, window)
    assert len(samples) == len(measured)
    for name in ("status", "version", "rows", "body", "generator"):
        assert getattr(samples, name).tolist() == [getattr(row, name) for row in measured]
    for name in ("scheduled", "sent", "first_byte", "done", "queue", "compute"):
        stamps = [getattr(row, f"{name}_ns") for row in measured]
        np.testing.assert_array_equal(getattr(samples, f"{name}_s"), seconds(stamps))


def sample(scheduled_ns, sent_ns, done_ns, status=OK):
    return Sample(scheduled_ns, sent_ns, None, done_ns, 1, 0, status, "1")


def test_latency_counts_from_the_schedule_and_service_from_sending(tmp_path):
    with SampleWriter(tmp_path) as writer:
        writer.append(
            [
                sample(0, 10**9, 3 * 10**9),
                sample(10**9, None, None, DROPPED),
                sample(2 * 10**9, 2 * 10**9, 9 * 10**9, "HTTP 503"),
                sample(3 * 10**9, 3 * 10**9, 4 * 10**9),
            ]
        )
    samples = read_samples(tmp_path, Window(0.0, 3.0))
    assert samples.latency_s.tolist() == [3.0]
    assert samples.service_s.tolist() == [2.0]
    assert samples.dispatch_lag_s.tolist() == [1.0, 0.0]
    assert samples.ok.tolist() == [True, False, False]


_WRITE_AND_HANG = """
import sys, time
from pathlib import Path
from mlserve.runs.samples import Sample, SampleWriter
with SampleWriter(Path(sys.argv[1])) as writer:
    for number in range(3):
        writer.append([Sample(number, number, None, number, 1, 0, "ok", "1")])
    print("written", flush=True)
    time.sleep(60)
"""


def test_what_was_appended_survives_the_death_of_the_process(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", _WRITE_AND_HANG, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert len(read_samples(tmp_path)) == 3
    stream = tmp_path / "samples.arrow"
    os.truncate(stream, stream.stat().st_size - 10)
    assert len(read_samples(tmp_path)) == 2


@pytest.mark.parametrize("name", ["samples.parquet", "samples.arrow"])
def test_rows_that_cannot_be_read_are_named(tmp_path, name):
    with pytest.raises(RunFileError, match="holds no samples"):
        read_samples(tmp_path)
    (tmp_path / name).write_bytes(b"" if name == "samples.arrow" else b"PAR1")
    with pytest.raises(RunFileError, match="are damaged"):
        read_samples(tmp_path)


def test_a_run_cut_short_before_its_first_answer_has_no_rows(tmp_path):
    writer = SampleWriter(tmp_path)
    assert len(read_samples(tmp_path)) == 0
    with writer:
        writer.append([Sample(1, 2, None, 3, 1, 0, OK, "1")])
    assert len(read_samples(tmp_path)) == 1


def test_the_rows_of_a_run_of_format_1_are_read_without_what_it_did_not_keep(tmp_path):
    first = ["scheduled_ns", "sent_ns", "first_byte_ns", "done_ns", "rows", "status", "version"]
    table = pa.Table.from_pylist([sample(1, 2, 3)._asdict(), sample(2, None, None, DROPPED)._asdict()], SCHEMA)
    pq.write_table(table.select(first).append_column("warm_up", pa.array([True, False])), tmp_path / "samples.parquet")
    samples = read_samples(tmp_path)
    assert samples.status.tolist() == [OK, DROPPED]
    assert samples.body.tolist() == samples.generator.tolist() == [0, 0]
    assert np.isnan(samples.queue_s).all()
