import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from mlserve.bench.generator.job import Stop, Tick, write_job
from mlserve.bench.generator.process import drive
from mlserve.bench.load.schedule import schedule
from mlserve.runs.load import Plan
from mlserve.runs.samples import read_samples

PARENT = """
import sys
from pathlib import Path
from mlserve.bench.generator.job import Tick, read_job
from mlserve.bench.generator.process import drive
def heed(message, command):
    if isinstance(message, Tick) and message.ok > 20:
        print("going", flush=True)
drive(read_job(Path(sys.argv[1])), (), heed)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they end when they next look at their pipe")
@pytest.mark.parametrize(("blow", "generators"), [(signal.SIGKILL, 2), (signal.SIGTERM, 1)])
def test_no_generator_outlives_whoever_started_it(slow_server, make_job, tmp_path, are_gone, blow, generators):
    plan = Plan(rate_per_s=100, duration_s=60, warm_up_s=0, generators=generators)
    write_job(tmp_path / "job", make_job(slow_server(), plan))
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "job")], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"going\n"
        children = [child.pid for child in psutil.Process(parent.pid).children(recursive=True)]
        parent.send_signal(blow)
    assert len(children) == (1 if generators == 1 else 1 + generators)
    assert are_gone(children)
    assert len(read_samples(tmp_path / "run")) > 20


@pytest.mark.parametrize("generators", [1, 2])
def test_a_run_is_stopped_at_an_instant_that_all_can_keep(slow_server, make_job, tmp_path, generators):
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    asked, held = [], {}

    def stop(message, command):
        if isinstance(message, Tick) and message.ok > 20 and not asked:
            asked.append(message.elapsed_s)
            held.update(held_to())
            command(Stop(at_s=0.01))  # which is over

    plan = Plan(rate_per_s=100, duration_s=60, warm_up_s=0, generators=generators)
    finished = drive(make_job(slow_server(), plan), cores, stop)
    assert asked[0] < finished.end_s < 30
    due_s = schedule(plan) / 1e9
    samples = read_samples(tmp_path / "run")
    due = int((due_s < finished.end_s).sum())
    assert samples.scheduled_s[:due].tolist() == due_s[:due].tolist()
    assert finished.ok == len(samples)
    if cores:  # of several, each has a core of its own while there are enough
        assert held == ({} if generators == 1 else {0: [cores[0]], 1: [cores[-1]]})


def held_to() -> dict[int, list[int]]:
    """The cores of each generator that knows its number."""
    numbers = {child: re.search(r"--mlserve-number (\d+)", " ".join(child.cmdline())) for child in children()}
    return {int(number[1]): child.cpu_affinity() for child, number in numbers.items() if number}


def children() -> list[psutil.Process]:
    return psutil.Process().children()
