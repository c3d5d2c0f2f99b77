import os
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from mlserve.bench.driver import run_bench, url_subject
from mlserve.bench.generator.job import Job
from mlserve.bench.generator.process import drive
from mlserve.bench.load.schedule import schedule
from mlserve.bench.target import parse_target
from mlserve.errors import BenchError, UsageError
from mlserve.runs.load import Plan
from mlserve.runs.run import read_run
from mlserve.runs.samples import DROPPED, OK, read_samples

PLAN = Plan(rate_per_s=150, duration_s=1.5, warm_up_s=0.5)


def bench(server, plan, directory: Path, on_progress=lambda _: None):
    directory.mkdir()
    return run_bench(url_subject(parse_target(server.url)), plan, directory, "label", on_progress)


def no_child_is_left() -> bool:
    return not [child for child in psutil.Process(os.getpid()).children() if child.status() != psutil.STATUS_ZOMBIE]


def test_every_arrival_of_the_schedule_is_a_row(slow_server, tmp_path):
    server = slow_server()
    run = bench(server, PLAN, tmp_path / "run")
    table = pq.read_table(tmp_path / "run" / "samples.parquet")
    due_ns = schedule("poisson", 150, 2.0, 0)
    assert np.array_equal(np.sort(table["scheduled_ns"].to_numpy()), due_ns)
    assert np.array_equal(np.sort(table["scheduled_ns"].filter(table["warm_up"]).to_numpy()), due_ns[due_ns < 5e8])
    assert server.answered == len(due_ns) + 1  # the probe
    assert len(set(server.bodies)) > 1
    assert set(table["version"].to_pylist()) == {"7"}
    samples = read_samples(tmp_path / "run")
    assert run.counts.scheduled == run.counts.ok == len(samples) == int((due_ns >= 5e8).sum())
    assert np.all(samples.latency_s >= samples.service_s)
    assert np.all(samples.first_byte_s <= samples.done_s)


def test_the_run_is_written_as_it_is_returned(slow_server, tmp_path):
    run = bench(slow_server(), PLAN, tmp_path / "run")
    assert read_run(tmp_path / "run") == run
    assert (run.model.name, run.model.version, run.label, run.server) == ("slow", "7", "label", None)
    assert run.plan.payload.startswith("synthetic rows")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "samples.parquet"}


def test_progress_ends_at_the_whole_schedule(slow_server, tmp_path):
    moments = []
    bench(slow_server(), PLAN, tmp_path / "run", moments.append)
    assert moments[0].elapsed_s < 0.5
    assert [moment.sent for moment in moments] == sorted(moment.sent for moment in moments)
    last, due = moments[-1], len(schedule("poisson", 150, 2.0, 0))
    assert (last.sent, last.done, last.in_flight) == (due, due, 0)
    assert 0 < last.p50_s <= last.p99_s


def test_a_server_that_is_too_slow_costs_dropped_requests_not_delayed_ones(slow_server, tmp_path):
    plan = Plan(rate_per_s=100, duration_s=1, warm_up_s=0, arrivals="constant", max_in_flight=1)
    run = bench(slow_server(delay_s=0.1), plan, tmp_path / "run")
    samples = read_samples(tmp_path / "run")
    assert run.counts.scheduled == 100
    assert 80 <= run.counts.dropped < 100
    assert run.counts.dropped == int((samples.status == DROPPED).sum())
    assert run.counts.ok + run.counts.dropped == 100
    assert "schedule kept" in [check.name for check in run.certificate.faults]


def test_a_server_that_stops_in_the_middle_costs_failures_not_the_run(slow_server, tmp_path):
    server = slow_server()

    def stop_after_a_second(moment):
        if moment.elapsed_s > 1.0:
            server.stop()

    run = bench(server, PLAN, tmp_path / "run", stop_after_a_second)
    samples = read_samples(tmp_path / "run")
    assert run.counts.ok > 0
    assert run.counts.failed > 0
    assert run.counts.ok + run.counts.failed == run.counts.scheduled
    assert set(samples.status) <= {OK, "connection refused", "connection closed"}
    assert "answered" in [check.name for check in run.certificate.faults]


def test_errors_of_the_server_are_counted_by_their_status(slow_server, tmp_path):
    run = bench(slow_server(status=503, fault_after=1), PLAN, tmp_path / "run")
    assert (run.counts.ok, run.counts.failed) == (0, run.counts.scheduled)
    assert set(read_samples(tmp_path / "run").status) == {"HTTP 503"}


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

    with pytest.raises(KeyboardInterrupt):
        bench(slow_server(), Plan(rate_per_s=150, duration_s=60, warm_up_s=0), tmp_path / "run", interrupt)
    assert 50 < len(read_samples(tmp_path / "run")) < 60 * 150
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"samples.parquet"}
    assert no_child_is_left()


def test_rows_are_on_the_disk_while_the_run_goes_on(slow_server, tmp_path):
    seen = []

    def look(moment):
        if moment.done > 50 and not seen:
            seen.append(len(read_samples(tmp_path / "run")))

    bench(slow_server(), Plan(rate_per_s=150, duration_s=1.5, warm_up_s=0), tmp_path / "run", look)
    assert seen[0] > 0


def test_a_generator_that_breaks_down_says_why(tmp_path):
    job = Job(plan=PLAN, target=parse_target("http://127.0.0.1:9", "m"), bodies=(), headers={}, directory=str(tmp_path))
    with pytest.raises(BenchError, match=r"broke down: ZeroDivisionError.*generator\.log"):
        drive(job, (), lambda _: None)
    assert "Traceback" in (tmp_path / "generator.log").read_text()
    assert no_child_is_left()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux holds processes to cores")
def test_who_follows_the_generator_keeps_off_its_core(slow_server, tmp_path):
    own = os.sched_getaffinity(0)
    core = max(own)
    seen = []
    directory = tmp_path / "run"
    directory.mkdir()
    subject = msgspec.structs.replace(url_subject(parse_target(slow_server().url)), cpus=(core,))
    run_bench(subject, PLAN, directory, "label", lambda _: seen.append(os.sched_getaffinity(0)))
    assert seen
    assert all(held == (own - {core} or own) for held in seen)
    assert os.sched_getaffinity(0) == own


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux holds processes to cores")
def test_without_a_core_for_the_generator_nobody_moves(slow_server, tmp_path):
    own = os.sched_getaffinity(0)
    seen = []
    bench(slow_server(), PLAN, tmp_path / "run", lambda _: seen.append(os.sched_getaffinity(0)))
    assert seen
    assert all(held == own for held in seen)
