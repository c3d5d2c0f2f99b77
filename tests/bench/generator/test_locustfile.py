import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import mlserve.bench.generator
from mlserve.bench.generator.job import Tick, write_job
from mlserve.bench.generator.process import Page, drive
from mlserve.bench.load.schedule import schedule
from mlserve.errors import UsageError
from mlserve.runs.load import Plan
from mlserve.runs.samples import read_samples

LOCUSTFILE = Path(mlserve.bench.generator.__file__).with_name("locustfile.py")
COMMAND = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]


def test_locust_sees_every_request_and_one_dispatcher_runs_for_any_number_of_users(slow_server, make_job, tmp_path):
    server = slow_server(status=503, fault_after=20)
    plan = Plan(rate_per_s=100, duration_s=0.5, warm_up_s=0.1)
    write_job(tmp_path / "job", make_job(server, plan))
    done = subprocess.run(
        [*COMMAND, "--mlserve-plan", str(tmp_path / "job"), "--users", "5", "--spawn-rate", "5", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    due = len(schedule(plan))
    (seen,) = json.loads(done.stdout)
    assert (seen["name"], seen["num_requests"], seen["num_failures"]) == ("slow", due, due - 20)
    assert server.answered == due
    assert len(read_samples(tmp_path / "run")) == due


def test_locust_without_a_job_says_what_is_missing(tmp_path):
    done = subprocess.run(COMMAND, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert "--mlserve-plan is missing: this locustfile is started by `mlserve bench`" in done.stderr


class Visitor:
    """Somebody at Locust's page, who looks, asks for more users, and presses stop."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.first, self.last = {}, {}
        self.stopped = False

    def get(self, path: str) -> bytes:
        return urllib.request.urlopen(f"{self.url}{path}", timeout=10).read()

    def post(self, path: str, form: bytes = b"") -> None:
        urllib.request.urlopen(f"{self.url}{path}", form, timeout=10).read()

    def watch(self, message, _) -> None:
        if isinstance(message, Tick) and message.ok > 20 and not self.first:
            self.first = json.loads(self.get("/stats/requests"))
            self.post("/swarm", b"user_count=5&spawn_rate=5")
        elif isinstance(message, Tick) and message.ok > 60 and not self.stopped:
            self.stopped = True
            self.post("/stop")

    def look_back(self) -> None:
        assert b"Locust" in self.get("/")
        self.post("/swarm", b"user_count=1&spawn_rate=1")
        time.sleep(0.5)
        self.last = json.loads(self.get("/stats/requests"))


def test_the_run_can_be_watched_and_cut_short_on_locusts_page(slow_server, make_job, tmp_path):
    server = slow_server()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"page cannot listen at 127.0.0.1:{port} .*in use"):
            drive(
                make_job(server, Plan(rate_per_s=1, duration_s=1, warm_up_s=0)), (), print, page=Page(print, port=port)
            )
    visitor = Visitor(port)
    plan = Plan(rate_per_s=100, duration_s=30, warm_up_s=0)
    finished = drive(make_job(server, plan), (), visitor.watch, page=Page(visitor.look_back, port=port))
    (seen, _) = visitor.first["stats"]
    assert (visitor.first["state"], seen["name"], seen["method"]) in {
        ("running", "slow", "rest"),
        ("spawning", "slow", "rest"),
    }
    assert seen["num_requests"] > 0
    # Neither more users nor a second start have sent anything.
    samples = read_samples(tmp_path / "run")
    due_s = schedule(plan) / 1e9
    sent = int((due_s < finished.end_s).sum())
    assert 0.3 < finished.end_s < 30
    assert sent <= len(samples) == finished.ok == server.answered
    assert samples.scheduled_s[:sent].tolist() == due_s[:sent].tolist()
    with pytest.raises(OSError, match="refused"):
        visitor.get("/")
