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


@pytest.mark.parametrize("ahead_ns", [-1_000_000_000, 0, 5_000_000])
def test_a_call_comes_once_and_from_the_event_loop(pacer, ahead_ns):
    calls = []
    instant_ns = time.monotonic_ns() + ahead_ns
    pacer.call_at(instant_ns, lambda: calls.append(time.monotonic_ns()))
    assert calls == []
    gevent.sleep(0.05)
    assert len(calls) == 1
    assert calls[0] >= instant_ns


def test_a_later_wish_replaces_the_one_before(pacer):
    calls = []
    pacer.call_at(time.monotonic_ns() + 5_000_000, lambda: calls.append("first"))
    pacer.call_at(time.monotonic_ns() + 10_000_000, lambda: calls.append("second"))
    gevent.sleep(0.05)
    assert calls == ["second"]


def test_what_is_called_may_ask_for_the_next_call(pacer):
    calls = []

    def again():
        calls.append(1)
        if len(calls) < 5:
            pacer.call_at(time.monotonic_ns() + 1_000_000, again)

    pacer.call_at(time.monotonic_ns(), again)
    gevent.sleep(0.1)
    assert len(calls) == 5
