"""The laws of `BatchWindow`, over random schedules."""

from collections import defaultdict
from itertools import count
from math import inf
from typing import NamedTuple
from weakref import WeakSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import DeadlineExceeded, Overloaded
from mlserve.serve.batching.window import DEFAULT_PRIORITY, LOWEST_PRIORITY, BatchWindow

# What happens next: time passes (s), a request of (rows, key, priority, time limit) comes, the oldest goes away, what
# is due leaves, or a row turns out to take (s) in a busy engine, and its present run (s).
STEPS = st.lists(
    st.one_of(
        st.floats(0.0, 2.0),
        st.tuples(
            st.integers(1, 9),
            st.sampled_from("ab"),
            st.sampled_from([0, 0, 1, 2, 3, 1 << 62]),
            st.sampled_from([inf, inf, 0.0, 0.7, 3.0]),
        ),
        st.just("drop"),
        st.just("pop"),
        st.tuples(st.sampled_from([0.0, 0.1, 0.5, 2.0]), st.sampled_from([0.0, 1.0])),
    ),
    max_size=60,
)


@st.composite
def windows(draw):
    return BatchWindow(
        draw(st.integers(1, 8)),
        draw(st.sampled_from([0.0, 0.5, 1.0])),
        draw(st.integers(1, 30)),
        draw(st.sampled_from([inf, inf, 1.0, 6.0])),
    )


class Pushed(NamedTuple):
    arrived_s: float
    rows: int
    key: str
    level: int
    deadline_s: float


class Schedule:
    """Plays steps against a window and keeps what went in and what came out."""

    def __init__(self, window):
        self.window, self.now_s = window, 0.0
        self.pushed = {}  # ticket -> Pushed, oldest first
        self.batches = []  # (left_s, due_at_s, tickets, what had waited)
        self.expired = {}  # ticket -> when
        self.dropped, self.displaced = [], []
        self._tickets = count()

    @property
    def waiting(self):
        gone = {ticket for _, _, batch, _ in self.batches for ticket in batch}
        gone |= {*self.dropped, *self.expired, *self.displaced}
        return [ticket for ticket in self.pushed if ticket not in gone]

    def play(self, steps):
        for step in steps:
            if isinstance(step, float):
                self.now_s += step
            elif step == "pop":
                self.pop_due()
            elif step == "drop":
                self.drop_oldest()
            elif len(step) == 2:
                self.window.row_s, self.window.busy_until_s = step[0], self.now_s + step[1]
            else:
                self.push(*step)

    def push(self, rows, key, priority, limit_s):
        waiting, ticket, limit = self.window.waiting_rows, next(self._tickets), self.window.most_waiting_rows
        level = min(priority, LOWEST_PRIORITY) or DEFAULT_PRIORITY
        before = {each: self.pushed[each] for each in self.waiting}
        as_high = sum(found.rows for found in before.values() if found.level <= level)
        begins_s = max(self.now_s, self.window.busy_until_s)
        begins_s += as_high // self.window.max_rows * self.window.max_rows * self.window.row_s
        in_time = not self.window.row_s or begins_s <= self.now_s + limit_s or limit_s == 0
        try:
            displaced = self.window.push(ticket, rows, self.now_s, key, priority, self.now_s + limit_s)
        except Overloaded as error:
            wait_s = error.retry_after_s
            assert in_time
            assert as_high
            assert waiting - as_high < min(rows, waiting + rows - limit)  # those below it would not have made room
            assert wait_s >= max(1.0, as_high * self.window.row_s)
            assert self.waiting == list(before)
        except DeadlineExceeded:
            assert not in_time
        else:
            assert in_time
            assert not waiting or self.window.waiting_rows <= max(limit, waiting) or not as_high
            self.pushed[ticket] = Pushed(self.now_s, rows, key, level, self.now_s + limit_s)
            self.check_displaced(displaced, rows, level, limit, before)
        assert self.window.waiting_rows == sum(self.pushed[each].rows for each in self.waiting)

    def check_displaced(self, displaced, rows, level, limit, before):
        """The newest of the lowest levels, and no more of them than it takes."""
        self.displaced += displaced
        waiting = sum(found.rows for found in before.values())
        missing = min(rows, waiting + rows - limit) if waiting else 0
        worst_first = sorted(before, key=lambda each: (-before[each].level, -before[each].arrived_s))
        ranks = [(before[each].level, before[each].arrived_s) for each in displaced]
        assert ranks == [(before[each].level, before[each].arrived_s) for each in worst_first[: len(displaced)]]
        assert all(before[each].level > level for each in displaced)
        if displaced:
            assert sum(before[each].rows for each in displaced[:-1]) < missing

    def pop_due(self):
        self.expire()
        due_at_s, before = self.window.due_at_s, self.waiting
        while batch := self.window.pop(self.now_s):
            self.batches.append((self.now_s, due_at_s, batch, before))
            due_at_s, before = self.window.due_at_s, self.waiting
        assert self.window.due_at_s > self.now_s

    def expire(self):
        for ticket in self.window.expire(self.now_s):
            assert ticket in self.waiting
            self.expired[ticket] = self.now_s
        assert self.window.deadline_s > self.now_s

    def drop_oldest(self):
        for ticket in self.waiting[:1]:
            found = self.pushed[ticket]
            assert self.window.drop(ticket, found.key, found.level)
            self.dropped.append(ticket)
            assert not self.window.drop(ticket, found.key, found.level)

    def drain(self):
        while self.window.due_at_s < inf:
            self.now_s = max(self.now_s, self.window.due_at_s)
            self.pop_due()
        self.expire()


@given(windows(), STEPS)
def test_every_request_leaves_once_and_in_order_of_arrival_within_its_key_and_priority(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    popped = [ticket for _, _, batch, _ in schedule.batches for ticket in batch]
    assert sorted([*popped, *schedule.dropped, *schedule.expired, *schedule.displaced]) == list(schedule.pushed)
    by_level = defaultdict(list)
    for ticket in popped:
        found = schedule.pushed[ticket]
        by_level[found.key, found.level].append(ticket)
    assert all(tickets == sorted(tickets) for tickets in by_level.values())
    assert window.waiting_rows == 0


@given(windows(), STEPS)
def test_no_request_leaves_while_a_more_urgent_one_of_its_key_stays_behind(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    for _, _, batch, before in schedule.batches:
        levels = [schedule.pushed[ticket].level for ticket in batch]
        assert levels == sorted(levels)
        key = schedule.pushed[batch[0]].key
        behind = [
            schedule.pushed[each].level for each in before if schedule.pushed[each].key == key and each not in batch
        ]
        assert all(level >= levels[-1] for level in behind)


@given(windows(), STEPS)
def test_a_request_is_popped_before_its_deadline_and_expires_at_or_after_it(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    for left_s, _, batch, _ in schedule.batches:
        assert all(left_s < schedule.pushed[ticket].deadline_s for ticket in batch)
    for ticket, expired_s in schedule.expired.items():
        assert expired_s >= schedule.pushed[ticket].deadline_s


@given(windows(), STEPS)
def test_of_several_due_batches_the_one_with_the_most_urgent_request_leaves_first(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    for left_s, _, batch, before in schedule.batches:
        first = schedule.pushed[batch[0]]
        for key in {schedule.pushed[ticket].key for ticket in before} - {first.key}:
            others = [found for ticket in before if (found := schedule.pushed[ticket]).key == key]
            due_at_s = min(found.arrived_s for found in others)
            if sum(found.rows for found in others) < window.max_rows:
                due_at_s += window.max_delay_s
            if due_at_s <= left_s:
                assert first.level <= min(found.level for found in others)


@given(windows(), STEPS)
def test_a_batch_has_one_key_and_at_most_max_rows_unless_it_is_one_larger_request(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    for _, _, batch, _ in schedule.batches:
        assert len({schedule.pushed[ticket].key for ticket in batch}) == 1
        rows = sum(schedule.pushed[ticket].rows for ticket in batch)
        assert rows <= window.max_rows or len(batch) == 1


@given(windows(), STEPS)
def test_a_batch_leaves_when_it_is_full_or_its_oldest_has_waited_and_not_before(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    schedule.drain()
    for left_s, _, batch, before in schedule.batches:
        key = schedule.pushed[batch[0]].key
        same_key = [found for ticket in before if (found := schedule.pushed[ticket]).key == key]
        oldest_s = min(found.arrived_s for found in same_key)
        assert oldest_s <= left_s
        if left_s < oldest_s + window.max_delay_s:  # then only because the group was full
            assert sum(found.rows for found in same_key) >= window.max_rows


@given(windows(), STEPS)
def test_waiting_rows_are_those_pushed_and_not_yet_gone(window, steps):
    schedule = Schedule(window)
    schedule.play(steps)
    assert window.waiting_rows == sum(schedule.pushed[ticket].rows for ticket in schedule.waiting)


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


def test_of_several_due_groups_the_one_with_the_most_urgent_request_leaves_first():
    window = BatchWindow(8)
    window.push("earlier", 1, 0.0, "x")
    window.push("urgent", 1, 1.0, "y", 1)
    assert [window.pop(2.0), window.pop(2.0)] == [["urgent"], ["earlier"]]


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits_and_refused_otherwise():
    window = BatchWindow(4, max_waiting_rows=8)
    window.push("huge", 100, 0.0)
    with pytest.raises(Overloaded, match="100 rows wait, the limit is 8"):
        window.push("next", 1, 0.0)
    assert window.pop(0.0) == ["huge"]
    window.push("next", 1, 0.0)


def test_priority_1_comes_first_and_none_is_as_good_as_the_default():
    window = BatchWindow(1)
    for name, priority in (("late", 9), ("plain", 0), ("default", DEFAULT_PRIORITY), ("urgent", 1)):
        window.push(name, 1, 0.0, None, priority)
    assert [window.pop(0.0)[0] for _ in range(4)] == ["urgent", "plain", "default", "late"]


def test_the_oldest_request_s_delay_counts_for_its_batch_even_if_more_urgent_ones_fill_it():
    window = BatchWindow(2, max_delay_s=1.0)
    window.push("old", 1, 0.0, None, 3)
    assert window.due_at_s == 1.0
    window.push("urgent", 2, 0.9, None, 1)
    assert window.pop(0.9) == ["urgent"]
    assert window.pop(1.0) == ["old"]


def test_expired_rows_free_their_place_and_the_deadlines_of_those_that_left_are_forgotten():
    window = BatchWindow(4, max_delay_s=100.0, max_waiting_rows=2)
    window.push("brief", 2, 0.0, None, 0, 5.0)
    assert window.deadline_s == 5.0
    with pytest.raises(Overloaded):
        window.push("refused", 1, 4.9)
    assert window.expire(4.9) == []
    assert window.expire(5.0) == ["brief"]
    window.push("next", 2, 5.0)
    assert window.deadline_s == inf


class Held:
    """A ticket that can be seen to go."""


@pytest.mark.parametrize("leave", ["pop", "drop", "expire", "give way"])
def test_what_left_is_not_kept_however_far_its_deadline_is(leave):
    window, kept = BatchWindow(4, max_waiting_rows=60), WeakSet()
    for _ in range(60):
        ticket = Held()
        kept.add(ticket)
        window.push(ticket, 1, 0.0, None, 5, 1e9)
        if leave == "drop":
            assert window.drop(ticket, None, 5)
    del ticket
    if leave == "pop":
        while window.pop(1.0):
            pass
    elif leave == "expire":
        assert len(window.expire(1e9)) == 60
    elif leave == "give way":
        assert len(window.push("urgent", 60, 1.0, None, 1, 1e9)) == 60
    assert not kept


def test_deadlines_are_kept_for_hardly_more_than_wait_however_many_rows_those_have():
    window = BatchWindow(1, max_waiting_rows=1 << 20)
    window.push("waits", 1 << 19, 0.0)
    for number in range(1000):
        window.push(number, 1, 0.0, None, 0, 1e9)
        assert window.drop(number)
        assert len(window._deadlines) <= 64 + 2


@given(st.lists(st.tuples(st.floats(0.1, 10.0), st.booleans()), max_size=300), st.floats(0.0, 11.0))
def test_whoever_waits_past_its_deadline_expires_however_many_have_left(requests, later_s):
    window = BatchWindow(1)
    for number, (limit_s, leaves) in enumerate(requests):
        window.push(number, 1, 0.0, None, 0, limit_s)
        assert not leaves or window.drop(number)
    left = [number for number, (_, leaves) in enumerate(requests) if not leaves]
    late = [number for number in left if requests[number][0] <= later_s]
    assert window.expire(later_s) == sorted(late, key=lambda number: requests[number][0])
    assert window.waiting_rows == len(left) - len(late)
    assert window.deadline_s > later_s


@given(windows(), STEPS, st.integers(1, 9))
def test_a_batch_is_as_small_as_is_asked_for_and_nobody_is_left_behind(window, steps, most_rows):
    schedule = Schedule(window)
    schedule.play(step for step in steps if step != "pop")
    schedule.expire()
    waiting, popped = schedule.waiting, []
    while window.due_at_s < inf:
        schedule.now_s = max(schedule.now_s, window.due_at_s)
        batch = window.pop(schedule.now_s, most_rows)
        rows = [schedule.pushed[ticket].rows for ticket in batch]
        assert sum(rows) <= min(most_rows, window.max_rows) or len(batch) == 1
        popped += [*batch, *window.expire(schedule.now_s)]
    assert sorted([*popped, *window.expire(inf)]) == waiting


def test_what_may_wait_is_what_takes_no_longer_than_the_limit_as_soon_as_that_is_known():
    window = BatchWindow(4, max_wait_s=2.0)
    for number in range(50):
        window.push(number, 1, 0.0)
    assert window.most_waiting_rows == 4096
    window.row_s = 0.1
    assert window.most_waiting_rows == 18  # with a tenth to spare, should the machine slow down
    with pytest.raises(
        Overloaded, match=r"50 rows wait, the limit is 1\.8 s of work, and these take about 5 s"
    ) as refused:
        window.push("refused", 1, 0.0)
    assert refused.value.retry_after_s == 5
    window.row_s = 0.0001
    window.push("taken", 1, 0.0)


def test_an_urgent_request_takes_the_place_of_the_newest_of_the_lowest_priority_and_of_no_equal_one():
    window = BatchWindow(1, max_waiting_rows=4)
    for number, priority in enumerate([2, 9, 3, 9]):
        assert not window.push(f"{priority}, {number}", 1, number, None, priority)
    assert window.push("first", 1, 5.0, None, 1) == ["9, 3"]
    assert window.push("second", 2, 5.0, None, 1) == ["9, 1", "3, 2"]
    with pytest.raises(Overloaded):
        window.push("an equal", 1, 5.0, None, 2)
    with pytest.raises(Overloaded):  # the one below it has one row, and one is not enough
        window.push("third", 2, 5.0, None, 1)
    assert window.waiting_rows == 4
    assert [window.pop(9.0)[0] for _ in range(3)] == ["first", "second", "2, 0"]


def test_there_is_room_for_nobody_only_where_nothing_less_urgent_waits():
    window = BatchWindow(1, max_waiting_rows=2)
    window.check_room()
    window.push("plain", 1, 0.0)
    window.push("patient", 1, 0.0, None, 5)
    window.check_room()
    assert window.push("urgent", 1, 0.0, None, 1) == ["patient"]
    with pytest.raises(Overloaded, match="2 rows wait, the limit is 2"):
        window.check_room()


def test_who_cannot_begin_in_time_is_told_so_at_once_and_only_those_as_urgent_count():
    window = BatchWindow(2)
    for number in range(4):
        window.push(number, 1, 0.0)
    window.push("unknown", 1, 0.0, deadline_s=1e-3)  # nobody knows how long the others take
    window.row_s, window.busy_until_s = 1.0, 10.0
    with pytest.raises(DeadlineExceeded, match=r"could begin in 14 s, and it waits for 13.9 s at most"):
        window.push("late", 1, 0.0, None, 0, 13.9)
    window.push("in time", 1, 0.0, None, 0, 14.1)
    window.push("urgent", 1, 0.0, None, 1, 10.1)
    with pytest.raises(DeadlineExceeded):
        window.push("urgent, but the run goes on", 1, 0.0, None, 1, 9.9)
