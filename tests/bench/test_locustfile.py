import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

import mlserve.bench
from mlserve.bench.generator.job import Job, write_job
from mlserve.bench.load.schedule import schedule
from mlserve.bench.target import parse_target
from mlserve.runs.load import Plan

LOCUSTFILE = Path(mlserve.bench.__file__).with_name("locustfile.py")


def run_locust(server, tmp_path, *arguments):
    (tmp_path / "run").mkdir()
    job = Job(
        plan=Plan(rate_per_s=100, duration_s=1, warm_up_s=0.2),
        target=parse_target(server.url, "slow"),
        bodies=(b"{}",),
        headers={},
        directory=str(tmp_path / "run"),
    )
    write_job(tmp_path / "job", job)
    return subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--mlserve-plan", str(tmp_path / "job"), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )


def test_locust_sees_every_request_and_one_dispatcher_runs_for_any_number_of_users(slow_server, tmp_path):
    server = slow_server(status=503, fault_after=50)
    done = run_locust(server, tmp_path, "--headless", "--users", "5", "--spawn-rate", "5", "--json")
    due = len(schedule("poisson", 100, 1.2, 0))
    (seen,) = json.loads(done.stdout)
    assert (seen["name"], seen["num_requests"], seen["num_failures"]) == ("slow", due, due - 50)
    assert server.answered == due
    assert len(pq.read_table(tmp_path / "run" / "samples.parquet")) == due


def test_locust_without_a_job_says_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2
    assert "--mlserve-plan" in done.stderr
