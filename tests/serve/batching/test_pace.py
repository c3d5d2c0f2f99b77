"""How fast an engine is, as `Pace` learns it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.serve.batching.pace import Pace

CYCLES = st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 10.0)), max_size=30)


@given(CYCLES)
def test_seconds_a_row_lie_between_the_least_and_the_greatest_and_are_unknown_at_first(cycles):
    pace = Pace(64)
    for count, (rows, cycle_s) in enumerate(cycles, 1):
        pace.kept_busy(rows, cycle_s)
        if count < 3:
            assert pace.row_s == 0.0
        else:
            seen = [took_s / rows for rows, took_s in cycles[:count]]
            assert min(seen) * 0.999 <= pace.row_s <= max(seen) * 1.001


@given(st.integers(1, 64), st.floats(0.0, 1.0), st.floats(0.0, 9.0), CYCLES, st.lists(st.floats(0.0, 20.0), min_size=2))
def test_a_longer_time_never_holds_fewer_rows(max_rows, single_s, full_s, runs, limits_s):
    pace = Pace(max_rows, single_s, full_s)
    for rows, compute_s in runs:
        pace.ran(rows, compute_s)
    most = [pace.most_rows(limit_s) for limit_s in sorted(limits_s)]
    assert most == sorted(most)
    assert all(1 <= rows <= max_rows for rows in most)


def test_a_run_is_cut_to_the_rows_that_fit_into_the_time():
    pace = Pace(32, single_s=0.001, full_s=0.032)
    assert pace.most_rows(0.0085) == 8
    assert pace.most_rows(1e-9) == 1
    for _ in range(30):
        pace.ran(8, 0.016)  # twice as slow as at the warm-up
    assert pace.most_rows(0.0165) == 8


def test_rows_that_cost_next_to_nothing_are_not_left_behind():
    assert Pace(32, single_s=0.005, full_s=0.006).most_rows(0.001) == 32
    assert Pace(32, single_s=0.0, full_s=0.0).most_rows(0.001) == 32


def test_what_a_row_takes_rises_at_once_and_falls_when_it_is_sure():
    pace = Pace(4)
    for _ in range(40):
        pace.kept_busy(4, 0.4)
    for _ in range(5):
        pace.kept_busy(4, 4.0)
    assert pace.row_s > 0.6
    for _ in range(60):
        pace.kept_busy(4, 0.4)
    assert pace.row_s < 0.17  # a stall that is over
    for _ in range(300):
        pace.kept_busy(4, 0.4)
    assert pace.row_s < 0.12


def test_one_lucky_run_lets_nobody_in_who_would_wait_too_long():
    pace = Pace(4)
    for _ in range(40):
        pace.kept_busy(4, 0.4)
    pace.kept_busy(4, 0.1)
    assert pace.row_s > 0.09


@given(st.floats(0.0, 0.02), st.floats(0.2, 5.0))
def test_runs_correct_what_a_disturbed_warm_up_said(growth_s, slowness):
    pace = Pace(8, single_s=0.002, full_s=0.010)  # disturbed: a row more costs 1.1 ms, it seems
    for number in range(600):
        rows = 1 + number % 4
        pace.ran(rows, slowness * (0.002 + growth_s * (rows - 1)))
    fits = 0.010 * slowness
    assert pace.most_rows(fits) == pytest.approx(min(8, 1 + 0.008 / max(growth_s, 1e-9)), abs=1.0)


def test_runs_of_one_size_leave_what_the_warm_up_said_of_the_others():
    pace = Pace(8, single_s=0.002, full_s=0.016)
    for _ in range(2000):
        pace.ran(1, 0.002)
    assert pace.most_rows(0.0081) == 4
