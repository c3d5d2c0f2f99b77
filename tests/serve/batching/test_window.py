"""The laws of `BatchWindow`, over random schedules."""

from collections import defaultdict
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import Overloaded
from mlserve.serve.batching.window import BatchWindow

# What happens next: time passes (s), a request of (rows, key) comes, or the due batches leave.
STEPS = st.lists(
    st.one_of(
        st.floats(0.0, 2.0),
        st.tuples(st.integers(1, 9), st.sampled_from("ab")),
        st.just("pop"),
    ),
    max_size=60,
)


@st.composite
def windows(draw):
    return BatchWindow(draw(st.integers(1, 8)), draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.integers(1, 30)))


class Schedule:
    """Plays steps against a window and keeps what went in and what came out."""

    def __init__(self, window):
        self.window, self.now_s = window, 0.0
        self.pushed = {}  # ticket -> (arrived_s, rows, key), oldest first
        self.batches = []  # (left_s, due_at_s, tickets)
        self._tickets = count()

    def play(self, steps):
        for step in steps:
            if isinstance(step, float):
                self.now_s += step
            elif step == "pop":
                self.pop_due()
            else:
                self.push(*step)

    def push(self, rows, key):
        waiting, ticket = self.window.waiting_rows, next(self._tickets)
        try:
            self.window.push(ticket, rows, self.now_s, key)
        except Overloaded:
            assert waiting
            assert waiting + rows > self.window.max_waiting_rows
        else:
            assert not waiting or waiting + rows <= self.window.max_waiting_rows
            self.pushed[ticket] = (self.now_s, rows, key)

    def pop_due(self):
        due_at_s = self.window.due_at_s
        while batch := self.window.pop(self.now_s):
            self.batches.append((self.now_s, due_at_s, batch))
            due_at_s = self.window.due_at_s
        assert self.window.due_at_s > self.now_s

    def drain(self):
        while self.window.due_at_s < inf:
            self.now_s = max(self.now_s, self.window.due_at_s)
            self.pop_due()


@given(windows(), STEPS)
def test_every_request_leaves_once_and_in_order_of_arrival_within_its_key(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    left = [ticket for _, _, batch in schedule.batches for ticket in batch]
    assert sorted(left) == list(schedule.pushed)
    by_key = defaultdict(list)
    for ticket in left:
        by_key[schedule.pushed[ticket][2]].append(ticket)
    assert all(tickets == sorted(tickets) for tickets in by_key.values())
    assert window.waiting_rows == 0


@given(windows(), STEPS)
def test_a_batch_has_one_key_and_at_most_max_rows_unless_it_is_one_larger_request(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    for _, _, batch in schedule.batches:
        assert len({schedule.pushed[ticket][2] for ticket in batch}) == 1
        rows = sum(schedule.pushed[ticket][1] for ticket in batch)
        assert rows <= window.max_rows or len(batch) == 1


@given(windows(), STEPS)
def test_a_batch_leaves_when_it_is_full_or_its_oldest_has_waited_and_not_before(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    for left_s, due_at_s, batch in schedule.batches:
        assert due_at_s <= left_s
        oldest_s, _, key = schedule.pushed[batch[0]]
        if due_at_s < oldest_s + window.max_delay_s:  # then only because the group was full
            same_key = [rows for _, rows, other in schedule.pushed.values() if other == key]
            assert sum(same_key) >= window.max_rows


@given(windows(), STEPS)
def test_waiting_rows_are_those_pushed_and_not_yet_popped(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    left = {ticket for _, _, batch in schedule.batches for ticket in batch}
    assert window.waiting_rows == sum(rows for ticket, (_, rows, _) in schedule.pushed.items() if ticket not in left)


def test_the_delay_counts_from_the_oldest_request_not_from_the_newest():
    window = BatchWindow(8, max_delay_s=1.0)
    window.push("first", 1, 10.0)
    window.push("second", 1, 10.9)
    assert window.due_at_s == 11.0
    assert window.pop(10.99) == []
    assert window.pop(11.0) == ["first", "second"]


def test_a_full_group_leaves_at_once_and_the_rest_keeps_its_own_delay():
    window = BatchWindow(2, max_delay_s=1.0)
    for name, arrived_s in (("a", 0.0), ("b", 0.1), ("c", 0.2)):
        window.push(name, 1, arrived_s)
    assert window.pop(0.2) == ["a", "b"]
    assert window.pop(0.2) == []
    assert window.due_at_s == pytest.approx(1.2)


def test_of_several_due_groups_the_one_due_first_leaves_first():
    window = BatchWindow(8, max_delay_s=1.0)
    window.push("late", 1, 0.5, "x")
    window.push("early", 1, 0.0, "y")
    assert [window.pop(5.0), window.pop(5.0)] == [["early"], ["late"]]


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits_and_refused_otherwise():
    window = BatchWindow(4, max_waiting_rows=8)
    window.push("huge", 100, 0.0)
    with pytest.raises(Overloaded, match="100 rows wait, the limit is 8"):
        window.push("next", 1, 0.0)
    assert window.pop(0.0) == ["huge"]
    window.push("next", 1, 0.0)
