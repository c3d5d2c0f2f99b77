import ctypes
import time

import gevent
import pytest

from mlserve.bench.generator.pacer import SleepPacer, TimerPacer, open_pacer


def open_timer():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "timerfd_create"):
        pytest.skip("this system has no timerfd")
    return TimerPacer(libc)


@pytest.fixture(params=[open_timer, SleepPacer, open_pacer])
def pacer(request):
    opened = request.param()
    yield opened
    opened.close()


def test_it_never_wakes_early(pacer):
    start_ns = time.monotonic_ns()
    for offset_ns in (1, 1000, 50_000, 1_000_000, 3_000_000, 20_000_000):
        pacer.sleep_until(start_ns + offset_ns)
        assert time.monotonic_ns() >= start_ns + offset_ns


def test_an_instant_that_is_over_does_not_wait_for_others(pacer):
    turns = []
    gevent.spawn(turns.append, 1)
    pacer.sleep_until(time.monotonic_ns() - 1)
    assert turns == []


def test_others_run_while_it_waits(pacer):
    turns = []

    def count():
        while True:
            turns.append(1)
            gevent.sleep(0.001)

    counting = gevent.spawn(count)
    pacer.sleep_until(time.monotonic_ns() + 30_000_000)
    counting.kill()
    assert len(turns) > 1
