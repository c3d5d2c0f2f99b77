"""Errors over looks and metrics: all of them together are what was allowed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from mlserve.report.gating.estimate import Estimate, Spread, of_pairs, of_two_sides
from mlserve.report.gating.looks import LOOKS, holm, looks_up_to, one_look, spent_over

chances = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def crossings(level, *, runs=20_000):
    """How often a mean of independent values looks too high at some look: with a known spread, and Student's."""
    values = np.random.default_rng(5).standard_normal((runs, LOOKS[-1]))
    known, student = np.zeros(runs, bool), np.zeros(runs, bool)
    for look in LOOKS:
        mean, spread = values[:, :look].mean(1), values[:, :look].std(1, ddof=1)
        known |= mean * math.sqrt(look) > norm.isf(level)
        student |= mean / spread * math.sqrt(look) > t.isf(level, look - 1)
    return known.mean(), student.mean()


def test_all_looks_together_err_as_often_as_was_allowed():
    known, student = crossings(spent_over(LOOKS, 0.05)(1))
    assert known == pytest.approx(0.05, abs=0.005)
    assert student == pytest.approx(0.05, abs=0.008)


def test_looking_again_and_again_at_the_full_level_errs_far_more_often():
    """The control of the test above."""
    assert min(crossings(0.05)) > 0.12


def test_a_single_look_has_the_whole_error_and_more_hypotheses_share_it():
    assert spent_over((4,), 0.05)(1) == one_look(0.05)(1) == 0.05
    assert one_look(0.05)(5) == pytest.approx(0.01)
    assert spent_over(LOOKS, 0.05)(5) < spent_over(LOOKS, 0.05)(1) < 0.05


def test_the_looks_that_were_taken():
    assert looks_up_to(3) == []
    assert looks_up_to(7) == [4, 6]


def test_holm_gives_the_share_of_what_is_rejected_to_the_others():
    """Three hypotheses: 0.05 / 3, then 0.05 / 2, and from the first that stands all share its level."""
    assert holm([0.02, 0.001, 0.9], one_look(0.05)) == pytest.approx([0.025, 0.05 / 3, 0.05])
    assert holm([0.9, 0.04, 0.001], one_look(0.05)) == pytest.approx([0.025, 0.025, 0.05 / 3])


@given(chances)
def test_holm_rejects_all_that_bonferroni_does_and_in_the_order_of_their_chances(found):
    held = holm(found, one_look(0.05))
    rejected = [chance <= level for chance, level in zip(found, held, strict=True)]
    assert all(done for done, chance in zip(rejected, found, strict=True) if chance <= 0.05 / len(found))
    kept = [chance for done, chance in zip(rejected, found, strict=True) if not done]
    assert all(chance < min(kept, default=math.inf) for done, chance in zip(rejected, found, strict=True) if done)


# Estimates.

places = st.lists(st.floats(-1, 1), min_size=2, max_size=12)


@given(places, st.floats(0, 0.5), st.floats(-1, 1), st.floats(1e-4, 0.4))
def test_a_chance_is_below_a_level_just_where_the_bound_clears_the_limit(values, noise, limit, level):
    found = of_pairs(np.array(values), np.full(len(values), noise))
    low, high = found.bounds(level, level)
    for end, chance, clear in (
        (low, found.chance_beyond(limit), low > limit),
        (high, found.chance_within(limit), high < limit),
    ):
        if abs(end - limit) > 1e-6:
            assert (chance < level) == clear


@given(places, st.floats(0, 0.5))
def test_the_noise_within_runs_only_ever_widens(values, noise):
    alone = of_pairs(np.array(values), np.zeros(len(values))).bounds(0.025, 0.025)
    noisy = of_pairs(np.array(values), np.full(len(values), noise)).bounds(0.025, 0.025)
    assert noisy[0] <= alone[0] <= alone[1] <= noisy[1]


def test_two_pairs_that_agree_by_chance_prove_nothing_against_the_noise_within_them():
    agreeing, noise = np.array([0.05, 0.0500001]), np.array([0.05, 0.05])
    assert of_pairs(agreeing, np.zeros(2)).chance_beyond(0.0) < 0.001
    assert of_pairs(agreeing, noise).chance_beyond(0.0) > 0.05


def test_the_interval_of_pairs_is_students_and_that_of_two_sides_welchs():
    values = np.array([0.01, 0.03, 0.02, 0.05])
    reach = t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert of_pairs(values, np.zeros(4)).bounds(0.025, 0.025) == pytest.approx(
        (values.mean() - reach, values.mean() + reach)
    )
    from scipy.stats import ttest_ind

    before = np.array([0.0, 0.02, -0.01])
    low, high = ttest_ind(values, before, equal_var=False).confidence_interval(0.95)
    assert of_two_sides(before, values, 0.0).bounds(0.025, 0.025) == pytest.approx((low, high))


def test_one_run_is_no_evidence():
    assert of_pairs(np.array([0.1]), np.zeros(1)) is None
    assert of_two_sides(np.array([0.1]), np.array([0.1, 0.2]), 0.0) is None


def test_a_figure_without_doubt_keeps_a_limit_that_it_is_equal_to():
    same = Estimate(0.0, Spread(0.0, math.inf))
    assert (same.chance_within(0.0), same.chance_beyond(0.0)) == (0.0, 1.0)
    assert same.chance_beyond(-0.1) == 0.0


def test_more_runs_narrow_all_but_what_lasts():
    found = Estimate(0.0, Spread(0.04, 3.0), 0.1, Spread(0.01, 20.0))
    assert found.after(1e9).deviation == pytest.approx(0.1)
    assert found.after(4).deviation < found.deviation
