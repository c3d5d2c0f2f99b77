"""Tails told from few requests at each of several paces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.tuning.prediction.tails import with_shared_tail
from mlserve.tuning.prediction.times import LEVELS, levels_of

TOLD = int(0.95 * LEVELS)
times = st.lists(st.floats(1e-5, 0.1), min_size=20, max_size=60).map(np.array)


def stalled(every_s, whole_s, stalls):
    """Evenly spaced requests of a millisecond each: all that come during a stall (at, for) wait for its end, too."""
    due_s = np.arange(0.0, whole_s, every_s)
    late_s = np.zeros(len(due_s))
    for at_s, for_s in stalls:
        late_s = np.maximum(late_s, np.where((due_s >= at_s) & (due_s < at_s + for_s), at_s + for_s - due_s, 0.0))
    return 0.001 + late_s


@given(st.lists(st.tuples(times, st.floats(1e-4, 0.1)), min_size=1, max_size=4))
def test_what_is_told_stays_and_quantiles_rise(paces):
    found = with_shared_tail([took_s for took_s, _ in paces], [every_s for _, every_s in paces])
    for levels_s, (took_s, _) in zip(found, paces, strict=True):
        assert levels_s[:TOLD] == levels_of(took_s)[:TOLD]
        assert list(levels_s) == sorted(levels_s)
        assert len(levels_s) == LEVELS


def test_stalls_delay_the_same_share_of_requests_at_any_pace():
    """A slow pace hardly meets one: where it was asked without any, it has its part of what the other one met."""
    at = int(0.99 * LEVELS)
    stalls = [(0.1 + 0.2 * place, 0.008) for place in range(40)]  # 4% of 8 seconds
    quick, slow, calm = stalled(0.0007, 8.0, stalls), stalled(0.0121, 8.0, stalls), stalled(0.0121, 8.0, [])
    found = with_shared_tail([quick, slow], [0.0007, 0.0121])
    assert found[0][at] == found[1][at] == pytest.approx(np.quantile(quick, 0.99), rel=0.15)
    found = with_shared_tail([quick, calm], [0.0007, 0.0121])
    assert found[0][at] == found[1][at] == pytest.approx(np.quantile(quick, 0.98), rel=0.25)
    assert levels_of(calm)[at] < 0.25 * found[1][at]


def test_one_slow_answer_of_few_is_not_the_tail_of_all():
    quick, slow = np.full(2000, 0.001), np.array([0.001] * 99 + [0.056])
    found = with_shared_tail([quick, slow], [0.001, 0.01])
    assert found[1][int(0.99 * LEVELS)] == pytest.approx(0.001)
    assert levels_of(slow)[int(0.99 * LEVELS)] > 0.01


def test_a_pace_at_which_most_differ_keeps_that():
    spread = np.linspace(0.001, 0.021, 100)
    found = with_shared_tail([np.full(2000, 0.001), spread], [0.001, 0.01])
    assert found[1][TOLD - 1] == pytest.approx(np.quantile(spread, 0.9475), rel=0.01)
    assert found[1][-1] >= found[1][TOLD - 1]
