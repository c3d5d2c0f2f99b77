"""The watch over real processes of this machine."""

import os
import subprocess
import sys
import threading
import time

import pyarrow.parquet as pq
import pytest

from mlserve.bench.watching.clock import read_clocks
from mlserve.bench.watching.processes import read_everyone
from mlserve.bench.watching.watch import Sources, watching

# Burns processor time in a child of its own, says so, and ends when its input does.
BUSY = (
    "import subprocess, sys\n"
    "child = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
    "print(child.pid, flush=True)\n"
    "sys.stdin.read()\n"
    "child.kill()\n"
    "child.wait()\n"
)


@pytest.fixture
def busy_server():
    """(pid, pid of its child that burns a core) of a process of ours."""
    server = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield server.pid, int(server.stdout.readline())
    server.communicate()


def test_a_run_is_watched_with_what_the_server_started(busy_server, tmp_path):
    server, child = busy_server
    with watching([server], every_s=0.05) as watch:
        start_s = time.monotonic()
        watch.add_generators([os.getppid()])
        time.sleep(0.4)
        end_s = time.monotonic()
    found = watch.resources(start_s, end_s)
    uses = {use.pid: use for use in found.processes}
    assert {uses[server].role, uses[child].role} == {"server"}
    assert (uses[os.getpid()].role, uses[os.getppid()].role) == ("bench", "generator")
    assert uses[child].cpu > uses[server].cpu
    assert all(use.rss_max_bytes > 100_000 for use in (uses[server], uses[child]))
    assert found.clock_step_s is not None
    watch.write(tmp_path, start_s)
    table = pq.read_table(tmp_path / "resources.parquet")
    assert {"at_s", "pid", "role", "cpu", "rss_bytes"} <= set(table.column_names)
    rows = [row for row in table.to_pylist() if row["pid"] == child]
    assert len(rows) >= 3
    assert rows[0]["at_s"] < 0.0 < rows[-1]["at_s"]
    assert rows[0]["cpu"] is None
    assert max(row["cpu"] for row in rows[1:]) > 0
    assert {"core", "server", "generator", "bench"} <= set(table["role"].to_pylist())


def test_what_the_bench_started_for_itself_is_the_benchs(busy_server):
    with watching(every_s=0.05) as watch:
        start_s = time.monotonic()
        time.sleep(0.1)
        end_s = time.monotonic()
    roles = {use.pid: use.role for use in watch.resources(start_s, end_s).processes}
    assert roles.keys() >= {os.getpid(), *busy_server}
    assert set(roles.values()) == {"bench"}


@pytest.mark.parametrize("step_ns", [0, 30_000_000])
def test_a_clock_that_is_set_meanwhile_is_seen(step_ns):
    """The clock that everybody uses cannot be set here: the watch is given one that steps at its third reading."""
    asked = []

    def clocks():
        asked.append(None)
        reading = read_clocks()
        return type(reading)(reading.monotonic_ns, reading.wall_ns + step_ns * (len(asked) > 2), reading.raw_ns)

    with watching(sources=Sources(clocks=clocks), every_s=0.02) as watch:
        start_s = time.monotonic()
        time.sleep(0.1)
        end_s = time.monotonic()
    step_s = watch.resources(start_s, end_s).clock_step_s
    assert step_s == pytest.approx(step_ns / 1e9, abs=2e-3)


def test_the_watch_stays_off_the_generators_cores_and_ends_with_its_block():
    own = sorted(os.sched_getaffinity(0))
    kept_off, seen = own[-1:], []

    def clocks():
        seen.append((threading.current_thread().name, os.sched_getaffinity(0)))
        return read_clocks()

    with watching(keep_off=kept_off, sources=Sources(clocks=clocks), every_s=0.01):
        time.sleep(0.05)
    cores = [held for name, held in seen if name == "resource watch"]
    assert cores
    assert all(held == (set(own[:-1]) or set(own)) for held in cores)
    assert sorted(os.sched_getaffinity(0)) == own
    assert "resource watch" not in {thread.name for thread in threading.enumerate()}


def test_everyone_on_this_machine_has_a_name():
    everyone = read_everyone()
    assert os.getpid() in everyone.used_s
    assert all(everyone.names[pid] for pid in everyone.used_s)
