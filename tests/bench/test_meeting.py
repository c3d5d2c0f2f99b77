"""Two runs that take turns: when each begins, and what becomes of one whose other breaks down."""

import threading
import time

import pytest

from mlserve.bench.meeting import Meeting, side_by_side
from mlserve.errors import BenchError


def test_all_begin_a_slot_apart_and_know_the_processes_of_the_others():
    begun = {}

    def run(seat):
        begun[seat.number] = seat.arrive([seat.number, 10 + seat.number])

    assert side_by_side(Meeting(0.1, 3), run) == [None, None, None]
    starts_ns = [begun[number][0] for number in range(3)]
    assert [later - starts_ns[0] for later in starts_ns] == [0, 100_000_000, 200_000_000]
    assert starts_ns[0] > time.monotonic_ns() - 60_000_000_000
    assert begun[1][1] == {0, 10, 2, 12}


def test_one_gets_ready_when_the_one_before_it_is():
    order = []

    def run(seat):
        order.append(("begins", seat.number))
        time.sleep(0.05)
        order.append(("is ready", seat.number))
        seat.arrive([])

    side_by_side(Meeting(0.1), run)
    assert order == [("begins", 0), ("is ready", 0), ("begins", 1), ("is ready", 1)]


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("when", ["before it is ready", "while it runs"])
def test_where_one_breaks_down_the_other_ends_and_only_the_cause_is_told(broken, when):
    ended = []

    def run(seat):
        if seat.number == broken and when == "before it is ready":
            raise BenchError("the server has gone")
        seat.arrive([])
        if seat.number == broken:
            raise BenchError("the server has gone")
        for _ in range(200):
            time.sleep(0.01)
            seat.check()
        ended.append(seat.number)

    raised = side_by_side(Meeting(0.1), run)
    assert ended == []
    assert raised[1 - broken] is None
    assert str(raised[broken]) == "the server has gone"


def test_ctrl_c_ends_both(monkeypatch):
    running, ended = threading.Event(), []
    join = threading.Thread.join

    def interrupted(thread, *rest):
        if running.wait(5) and not ended:
            ended.append("asked to")
            raise KeyboardInterrupt
        join(thread, *rest)

    def run(seat):
        seat.arrive([])
        running.set()
        while True:
            time.sleep(0.01)
            seat.check()

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(Meeting(0.1), run)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("run ")]
