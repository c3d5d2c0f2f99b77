"""Processor time, and whose it was."""

import os
import subprocess
import sys
import time

import pytest

from mlserve.bench.cores import own_cores
from mlserve.tuning.prediction.processor import Others, used_s, waited_s

BURNS = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"


def test_the_processor_time_of_a_process_is_what_it_tells_itself():
    before = used_s([os.getpid()]), time.process_time()
    while time.process_time() - before[1] < 0.05:
        pass
    assert used_s([os.getpid()]) - before[0] == pytest.approx(time.process_time() - before[1], abs=0.02)


@pytest.mark.skipif(not own_cores(), reason="this system does not tell which cores a process has")
def test_what_others_use_of_the_cores_is_theirs_and_what_we_start_ourselves_is_ours():
    child = subprocess.Popen([sys.executable, "-c", BURNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        with_child = Others(own_cores(), [os.getpid()])
        without = Others(own_cores(), [os.getpid(), child.pid])
        began_s = time.monotonic()
        assert child.stdout.readline() == b"burnt\n"
        whole_s = (time.monotonic() - began_s) * len(own_cores())
        told = with_child.share(), without.share()
    finally:
        child.communicate(b"\n")
    # The kernel counts a core's time in hundredths of a second, and other tests may run beside.
    assert 0 <= told[1] < told[0] <= 1
    assert (told[0] - told[1]) * whole_s == pytest.approx(0.3, abs=0.12)


def test_time_waited_for_a_core_only_grows():
    before = waited_s()
    time.sleep(0.01)
    assert 0 <= before <= waited_s()
