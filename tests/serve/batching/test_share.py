"""Who is next on a device that several models share."""

import threading
import time
from math import inf

import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.serve.batching.share import DeviceShare, device_share


class Wanting(threading.Thread):
    """Asks for a turn, and notes when it got one."""

    def __init__(self, share, turns, order):
        super().__init__(daemon=True)
        self.share, self.turns, self.order = share, turns, order
        self.limit_s = None
        self.start()
        deadline_s = time.monotonic() + 10
        while not (turns.waiting or self.limit_s is not None):
            assert time.monotonic() < deadline_s
            time.sleep(0.001)

    def run(self):
        self.limit_s = self.share.take(self.turns)
        self.order.append(self.turns)


@pytest.fixture
def share():
    return DeviceShare()


def run(share, turns, used_s):
    share.take(turns)
    share.give(turns, used_s)


def test_a_model_alone_never_waits_and_may_run_as_long_as_it_likes(share):
    alone = share.join(1.0)
    assert share.take(alone) == inf
    share.give(alone, 1.0)
    quiet = share.join(1.0)  # another one that is never asked
    assert share.take(alone) == inf
    share.give(alone, 1.0)
    quiet.end()
    alone.end()


def test_of_those_who_wait_the_one_that_used_the_device_least_is_next(share):
    much, little, holder = share.join(60.0), share.join(60.0), share.join(60.0)
    for turns, used_s in ((much, 5.0), (little, 1.0), (holder, 3.0)):
        run(share, turns, 0.0)
        turns.used_s = used_s
    share.take(holder)
    order = []
    waiting = [Wanting(share, turns, order) for turns in (much, little)]
    assert order == []
    share.give(holder, 1.0)
    waiting[1].join(10)
    assert order == [little]
    share.give(little, 1.0)
    waiting[0].join(10)
    assert order == [little, much]
    assert waiting[0].limit_s == 60.0


def test_the_limit_is_the_shortest_run_of_those_who_use_the_device_too(share):
    long, short, quiet = share.join(3.0), share.join(0.5), share.join(0.1)
    run(share, long, 1.0)
    run(share, short, 1.0)
    assert share.take(long) == 0.5
    share.give(long, 1.0)
    quiet.end()


def test_nobody_waits_much_longer_than_its_own_runs_take(share):
    endless, brief = share.join(100.0), share.join(0.02)
    share.take(endless)
    endless.ended_s = time.perf_counter()  # it runs again and again
    started_s = time.perf_counter()
    share.take(brief)
    assert 0.03 <= time.perf_counter() - started_s < 5.0
    share.give(brief, 0.02)
    share.give(endless, 100.0)


def test_one_that_was_quiet_has_saved_up_nothing(share):
    busy, quiet = share.join(1.0), share.join(1.0)
    busy.used_s, busy.ended_s = 100.0, time.perf_counter()
    share.take(quiet)
    share.give(quiet, 1.0)
    assert quiet.used_s == 101.0


def test_as_many_run_side_by_side_as_there_are_slots():
    share = DeviceShare(2)
    members = [share.join(60.0) for _ in range(3)]
    for turns in members:
        run(share, turns, 0.0)
    share.take(members[0])
    share.take(members[1])
    order = []
    third = Wanting(share, members[2], order)
    assert order == []
    share.give(members[0], 1.0)
    third.join(10)
    assert order == [members[2]]


def test_models_of_one_cpu_share_it_and_an_accelerator_shares_by_itself():
    assert device_share(EngineSettings(threads=2), 1) is device_share(EngineSettings(threads=2), 1)
    assert device_share(EngineSettings("cuda"), 1) is None


def test_one_that_nobody_asks_any_more_is_soon_out_of_the_way(share):
    """A version that another has replaced."""
    steady, replaced = share.join(0.002), share.join(0.001)
    now_s = 1000.0
    for _ in range(400):
        now_s += 0.003
        replaced.ran(0.001, now_s)
    assert replaced.is_busy(now_s + 0.003)
    assert not replaced.is_busy(now_s + 0.1)
    steady.ran(0.002, now_s)
    assert steady.is_busy(now_s + 4.9)  # nobody knows yet how often it is asked
    assert not steady.is_busy(now_s + 5.1)


def test_one_asked_now_and_then_is_expected_again(share):
    turns = share.join(0.002)
    for second in range(200):
        for request in range(3):  # a burst a second
            turns.ran(0.002, second + 0.01 * request)
    assert turns.is_busy(199 + 1.5)
    assert not turns.is_busy(199 + 3.0)
