import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlserve.bench.leash import leashed

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
PARENT = """
import subprocess, sys, time
from mlserve.bench.leash import leashed
child = subprocess.Popen({start}, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def killed_parents_child(start: str) -> int:
    """The process that a parent has started by `start` and left behind when it was killed."""
    code = PARENT.replace("{start}", start.replace("SLEEPER", repr(SLEEPER)))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    return child


def is_gone(pid: int, within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the children of a killed parent")
def test_a_leashed_child_ends_when_its_parent_is_killed():
    assert is_gone(killed_parents_child("leashed(SLEEPER)"), within_s=10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_without_a_leash_lives_on():
    child = killed_parents_child("SLEEPER")
    try:
        assert not is_gone(child, within_s=0.5)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux holds processes to cores")
def test_a_leashed_child_keeps_its_command_and_is_held_to_its_cores():
    core = max(os.sched_getaffinity(0))
    code = "import os, sys; print(sorted(os.sched_getaffinity(0)), sys.argv[1:])"
    child = subprocess.run(leashed([sys.executable, "-c", code, "a b", "--x"], [core]), capture_output=True, text=True)
    assert child.stdout == f"[{core}] ['a b', '--x']\n"
    free = subprocess.run(leashed([sys.executable, "-c", code]), capture_output=True, text=True)
    assert free.stdout == f"{sorted(os.sched_getaffinity(0))} []\n"
