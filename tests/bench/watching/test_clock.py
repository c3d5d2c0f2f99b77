import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.watching.clock import ClockReading, monotonic_rate, read_clocks, wall_step_s

S = 1_000_000_000
NOW = 1_790_000_000 * S


def readings(offsets_ns, raw_per_monotonic=1.0):
    """One reading each second; the wall clock is ahead of where it began by each of `offsets_ns`."""
    return [
        ClockReading(at * S, NOW + at * S + ahead, round(at * S * raw_per_monotonic))
        for at, ahead in enumerate(offsets_ns)
    ]


@pytest.mark.parametrize("step_ns", [-3 * S, -7_000_000, 0, 40_000, 3600 * S])
def test_a_step_of_the_wall_clock_is_found_with_its_size(step_ns):
    assert wall_step_s(readings([0, 0, step_ns, step_ns])) == abs(step_ns) / S


def test_a_step_that_was_taken_back_is_found():
    assert wall_step_s(readings([0, 2 * S, 0])) == 2
    assert wall_step_s(readings([0, 0, 0])) == 0


@given(st.lists(st.integers(-(10**12), 10**12), min_size=2, max_size=20))
def test_a_step_is_the_whole_range_of_the_differences(offsets_ns):
    assert wall_step_s(readings(offsets_ns)) == (max(offsets_ns) - min(offsets_ns)) / 1e9


def test_a_clock_that_is_bent_shows_against_the_hardwares_counter():
    assert monotonic_rate(readings([0] * 4, raw_per_monotonic=1 / 1.01)) == pytest.approx(0.01, abs=1e-8)
    assert monotonic_rate(readings([0] * 4)) == 0


def test_too_little_says_nothing():
    assert wall_step_s(readings([0])) is None
    assert monotonic_rate(readings([0])) is None
    short = [ClockReading(at, NOW + at, at) for at in (0, S // 10)]
    assert monotonic_rate(short) is None
    assert monotonic_rate([ClockReading(at * S, NOW) for at in range(3)]) is None


def test_this_machines_clocks_go_on():
    first, second = read_clocks(), read_clocks()
    assert first.monotonic_ns < second.monotonic_ns
    assert first.wall_ns > 1_500_000_000 * S
