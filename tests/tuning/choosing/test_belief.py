"""Predictions corrected by what was measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.tuning.choosing.belief import Belief, Seen, believe, expected_gain, resemblance
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

SETTINGS = [
    Setting(model=model, variant=model, options=ServerOptions(threads=1, max_batch_rows=rows), protocol=protocol)
    for model in ("a", "b")
    for protocol in ("rest", "grpc")
    for rows in (1, 32)
]
FORETOLD = np.log(np.arange(1.0, 9.0))


def test_without_measurements_what_was_foretold_stands():
    belief = believe(FORETOLD, resemblance(SETTINGS), [])
    assert belief.mean == pytest.approx(FORETOLD)


def test_an_error_is_learned_for_all_and_most_for_those_alike():
    belief = believe(FORETOLD, resemblance(SETTINGS), [Seen(0, FORETOLD[0] + 0.4, 0.02)])
    moved = belief.mean - FORETOLD
    assert moved[0] == pytest.approx(0.4, abs=0.05)
    assert moved[1] > moved[7] > 0  # the same version and protocol; neither
    assert belief.spread[0] < belief.spread[1] < belief.spread[7]


def test_measurements_of_one_moment_tell_what_lies_between_their_settings_and_little_of_their_level():
    seen = [Seen(0, FORETOLD[0] + 0.3, 0.01, 0.2, 7), Seen(4, FORETOLD[4] + 0.2, 0.01, 0.2, 7)]
    together = believe(FORETOLD, resemblance(SETTINGS), seen)
    apart = believe(FORETOLD, resemblance(SETTINGS), [one._replace(moment=None) for one in seen])
    assert together.over(0).mean[4] == pytest.approx(FORETOLD[4] - FORETOLD[0] - 0.1, abs=0.01)
    assert together.over(0).spread[4] < 0.02
    assert apart.over(0).spread[4] > 0.1
    assert together.spread[0] > 0.1


def test_what_lies_between_two_is_what_their_covariance_says():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    belief = Belief(np.array([0.0, 1.0, -1.0]), root @ root.T)
    drawn = rng.multivariate_normal(belief.mean, belief.covariance, 200_000)
    between = drawn - drawn[:, [1]]
    assert belief.over(1).mean == pytest.approx(between.mean(axis=0), abs=0.03)
    assert belief.over(1).spread == pytest.approx(between.std(axis=0), abs=0.03)


@given(st.lists(st.tuples(st.integers(0, 7), st.floats(-3, 3)), min_size=1, max_size=12))
def test_measurements_never_make_anything_less_known_than_their_surprise_explains(seen):
    belief = believe(FORETOLD, resemblance(SETTINGS), [Seen(number, value, 0.05) for number, value in seen])
    assert np.isfinite(belief.mean).all()
    assert (belief.spread > 0).all()


def test_predictions_that_prove_bad_are_trusted_less():
    near = believe(FORETOLD, resemblance(SETTINGS), [Seen(number, FORETOLD[number], 0.02) for number in (0, 5)])
    far = [Seen(0, FORETOLD[0] + 1.5, 0.02), Seen(5, FORETOLD[5] - 1.5, 0.02)]
    assert believe(FORETOLD, resemblance(SETTINGS), far).spread[3] > 1.5 * near.spread[3]


def test_the_expected_gain_is_that_of_a_simulation():
    belief = Belief(np.array([0.0, 1.0, -1.0]), np.diag([1.0, 0.25, 0.04]))
    drawn = np.random.default_rng(0).normal(belief.mean, belief.spread, (200_000, 3))
    assert expected_gain(belief, 0.3) == pytest.approx(np.maximum(0.3 - drawn, 0).mean(axis=0), abs=0.01)
    assert belief.below(0.3) == pytest.approx((drawn < 0.3).mean(axis=0), abs=0.01)
