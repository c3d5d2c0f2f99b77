"""A run from end to end, against a server in this process. A run takes seconds to begin, so that tests share one."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from mlserve.bench.cores import own_cores, split_cores
from mlserve.bench.driver import run_bench, url_subject
from mlserve.bench.generator.job import Stop
from mlserve.bench.load.schedule import schedule
from mlserve.bench.target import parse_target
from mlserve.errors import BenchError, RunFileError, UsageError
from mlserve.runs.load import Plan
from mlserve.runs.run import read_run
from mlserve.runs.samples import DROPPED, OK, read_samples

PLAN = Plan(rate_per_s=500, duration_s=0.6, warm_up_s=0.3)


def bench(server, plan, directory: Path, on_progress=lambda _: None, decide=None):
    directory.mkdir()
    return run_bench(url_subject(parse_target(server.url)), plan, directory, "label", on_progress, decide)


def children() -> set[psutil.Process]:
    """Those that live: a test before this one may have left a browser that is about to end."""
    return {child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def held_to():
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@pytest.fixture(scope="module")
def done(new_slow_server, tmp_path_factory):
    """A usual run, what was told of it, and what was seen meanwhile."""
    directory, server, before = tmp_path_factory.mktemp("run"), new_slow_server(), held_to()
    moments, rows, cores = [], [], []

    def look(moment):
        moments.append(moment)
        cores.append(held_to())
        try:
            rows.append(len(read_samples(directory)))
        except RunFileError:  # there are none yet
            rows.append(0)

    try:
        subject = url_subject(parse_target(server.url))
        run = run_bench(subject, PLAN, directory, "label", look)
    finally:
        server.stop()
    return SimpleNamespace(
        run=run, directory=directory, server=server, moments=moments, rows=rows, cores=cores, held=(before, held_to())
    )


def test_every_arrival_of_the_schedule_is_a_row(done):
    table = pq.read_table(done.directory / "samples.parquet")
    due_ns = schedule(PLAN)
    assert np.array_equal(np.sort(table["scheduled_ns"].to_numpy()), due_ns)
    assert done.server.answered == len(due_ns) + 1  # the probe
    assert len(set(done.server.bodies)) > 1
    assert set(table["version"].to_pylist()) == {"7"}


def test_what_was_due_before_the_window_is_warm_up(done):
    run, samples = done.run, read_samples(done.directory, done.run.window)
    assert (run.window.start_s, run.window.end_s) == (0.3, pytest.approx(0.9))
    assert run.counts.scheduled == run.counts.ok == len(samples) == int((schedule(PLAN) >= 3e8).sum())
    assert np.all(samples.latency_s >= samples.service_s)
    assert np.all(samples.first_byte_s <= samples.done_s)


def test_the_run_is_written_as_it_is_returned(done):
    run = done.run
    assert read_run(done.directory) == run
    assert (run.model.name, run.model.version, run.label, run.server) == ("slow", "7", "label", None)
    assert run.plan.payload.startswith("synthetic rows")
    assert run.calibration.requests > 0
    assert run.ended == ""
    assert {process.role for process in run.resources.processes} >= {"generator", "server"}
    files = {path.name for path in done.directory.iterdir()}
    assert files == {"run.json", "samples.parquet", "resources.parquet"}


def test_progress_ends_at_the_whole_schedule_and_rows_come_meanwhile(done):
    assert done.moments[0].elapsed_s < 0.5
    assert [moment.sent for moment in done.moments] == sorted(moment.sent for moment in done.moments)
    last, due = done.moments[-1], len(schedule(PLAN))
    assert (last.sent, last.done, last.in_flight) == (due, due, 0)
    assert 0 < last.p50_s <= last.p99_s
    assert any(0 < count < due for count in done.rows)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux holds processes to cores")
def test_who_follows_the_generator_keeps_off_its_core_meanwhile(done):
    before, after = done.held
    spared = set(split_cores(own_cores())[1])
    assert done.cores
    assert all(held == (before - spared or before) for held in done.cores)
    assert after == before


def test_a_server_that_is_too_slow_costs_dropped_requests_not_delayed_ones(slow_server, tmp_path):
    plan = Plan(rate_per_s=500, duration_s=0.4, warm_up_s=0, arrivals="constant", max_in_flight=1)
    run = bench(slow_server(delay_s=0.05), plan, tmp_path / "run")
    samples = read_samples(tmp_path / "run")
    assert run.counts.scheduled == 200
    assert 185 <= run.counts.dropped < 200
    assert run.counts.dropped == int((samples.status == DROPPED).sum())
    assert run.counts.ok + run.counts.dropped == 200
    assert "schedule kept" in [check.name for check in run.certificate.faults]


def test_what_goes_wrong_with_the_server_costs_failures_by_their_status_and_not_the_run(slow_server, tmp_path):
    server = slow_server(status=503, fault_after=50)

    def stop_it(moment):
        if moment.failed > 50:
            server.stop()

    run = bench(server, PLAN, tmp_path / "run", stop_it)
    statuses = read_samples(tmp_path / "run").status
    assert run.counts.ok + run.counts.failed == run.counts.scheduled
    assert {OK, "HTTP 503", "connection refused"} <= set(statuses)
    assert set(statuses) <= {OK, "HTTP 503", "connection refused", "connection closed"}
    assert (statuses == "HTTP 503").sum() > 50
    assert "answered" in [check.name for check in run.certificate.faults]


def test_whoever_decides_ends_the_run_before_its_time(slow_server, tmp_path):
    seen = []

    def decide(samples, elapsed_s):
        seen.append((len(samples), elapsed_s))
        return Stop(at_s=elapsed_s)

    plan = Plan(rate_per_s=500, duration_s=60, warm_up_s=0)
    run = bench(slow_server(), plan, tmp_path / "run", decide=decide)
    assert len(seen) == 1
    assert seen[0][1] <= run.window.end_s < 60
    assert seen[0][0] <= run.counts.scheduled == int((schedule(plan) < run.window.end_s * 1e9).sum())
    assert run.ended == ""


def test_a_server_that_fails_the_probe_gets_no_load(slow_server, tmp_path):
    server = slow_server(status=503)
    with pytest.raises(BenchError, match="HTTP 503: as asked"):
        bench(server, PLAN, tmp_path / "run")
    assert server.answered == 1
    assert list((tmp_path / "run").iterdir()) == []


def test_a_batch_that_does_not_fit_gets_no_load(slow_server, tmp_path):
    server = slow_server()
    server.metadata["inputs"] = [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]
    with pytest.raises(UsageError, match="--batch 2: model 'slow' takes exactly 1 row"):
        bench(server, Plan(rate_per_s=100, duration_s=1, warm_up_s=0, batch_rows=2), tmp_path / "run")
    assert server.answered == 0


def test_ctrl_c_keeps_the_rows_and_leaves_no_process(slow_server, tmp_path):
    def interrupt(moment):
        if moment.done > 50:
            raise KeyboardInterrupt

    before, server = children(), slow_server()
    with pytest.raises(KeyboardInterrupt):
        bench(server, Plan(rate_per_s=500, duration_s=60, warm_up_s=0), tmp_path / "run", interrupt)
    assert 50 < len(read_samples(tmp_path / "run")) < 60 * 500
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"samples.parquet"}
    assert children() <= before
