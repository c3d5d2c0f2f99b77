"""Processor time, and whose it was."""

import os
import subprocess
import sys
import time

import pytest

from mlserve.bench.cores import own_cores
from mlserve.tuning.prediction.processor import read_counts, waited_s

BURNS = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"
TELLS = """
import os, time
from mlserve.tuning.prediction.processor import used_s

before_s = used_s([os.getpid()]), time.process_time()
while time.process_time() - before_s[1] < 0.05:
    pass
print(used_s([os.getpid()]) - before_s[0], time.process_time() - before_s[1])
"""


def test_the_processor_time_of_a_process_is_what_it_tells_itself():
    # Threads of the tests before it may end in this process, and would take their time along.
    told = subprocess.run([sys.executable, "-c", TELLS], capture_output=True, text=True, check=True, timeout=60).stdout
    used, expected = map(float, told.split())
    assert expected >= 0.05
    assert used == pytest.approx(expected, abs=0.02)


@pytest.mark.skipif(not own_cores(), reason="this system does not tell which cores a process has")
def test_what_others_use_of_the_cores_is_theirs_and_what_we_start_ourselves_is_ours():
    child = subprocess.Popen([sys.executable, "-c", BURNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        ours = [os.getpid()], [os.getpid(), child.pid]
        before = [read_counts(own_cores(), pids) for pids in ours]
        assert child.stdout.readline() == b"burnt\n"
        with_child, without = (
            read_counts(own_cores(), pids).since(each) for pids, each in zip(ours, before, strict=True)
        )
    finally:
        child.communicate(b"\n")
    # The kernel counts a core's time in hundredths of a second, and other tests may run beside.
    assert without.others_s < with_child.others_s <= with_child.whole_s
    assert with_child.others_s - without.others_s == pytest.approx(0.3, abs=0.12)
    assert without.used_s - with_child.used_s == pytest.approx(0.3, abs=0.12)


def test_counts_are_read_a_process_at_a_time():
    between = []
    read_counts(own_cores(), [os.getpid(), os.getppid()], lambda: between.append(1))
    assert len(between) == 2


def test_time_waited_for_a_core_only_grows():
    before = waited_s()
    time.sleep(0.01)
    assert 0 <= before <= waited_s()
