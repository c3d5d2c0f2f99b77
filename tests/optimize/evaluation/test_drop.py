"""How sure a loss is, and what is kept for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.model.artifact import Accuracy
from mlserve.optimize.evaluation.comparison import Comparison
from mlserve.optimize.evaluation.drop import holds, measure_drop, parse_max_drop
from mlserve.optimize.evaluation.metrics import parse_metric


def drop_of(name, found, expected, labels=None):
    compared = Comparison(found, expected, "test rows", labels)
    metric = parse_metric(name)
    return measure_drop(metric, metric.figures(compared), compared)


def one_hot(classes, count=10):
    return np.eye(count, dtype=np.float32)[classes]


def flipped(rows, lost, won=0):
    """Found, expected and labels of `rows` rows: of 80 in 100 that the reference has right, `lost` are lost."""
    labels = np.arange(rows) % 10
    right = np.arange(rows) < 0.8 * rows
    expected = one_hot(np.where(right, labels, (labels + 1) % 10))
    kept = right.copy()
    kept[:lost] = False
    kept[rows - won :] = True
    return one_hot(np.where(kept, labels, (labels + 1) % 10)), expected, labels


def test_a_loss_is_in_points_and_within_its_interval():
    drop = drop_of("accuracy", *flipped(1000, 20, 5))
    assert (drop.best, drop.value, drop.loss) == pytest.approx((0.8, 0.785, 0.015))
    assert drop.low < drop.loss < drop.high
    assert drop.high - drop.loss == pytest.approx(1.96 * np.sqrt(0.025 / 1000), rel=0.15)


def test_both_sides_are_redrawn_by_the_same_rows():
    """Unpaired, 80% of 1,000 rows are uncertain by 3.5 points; paired, only the 2 that changed are."""
    drop = drop_of("accuracy", *flipped(1000, 1, 1))
    assert drop.high - drop.low < 0.02


@pytest.mark.parametrize("rows", [30, 300, 3000])
def test_no_change_seen_is_not_no_change_possible(rows):
    drop = drop_of("accuracy", *flipped(rows, 0))
    assert (drop.loss, drop.low, drop.high) == (0, -3 / rows, 3 / rows)


def test_agreement_cannot_be_gained():
    found, expected, _ = flipped(300, 0)
    drop = drop_of("accuracy", found, expected)
    assert (drop.low, drop.high) == (0, 3 / 300)


def test_the_reference_itself_has_lost_nothing():
    _, expected, labels = flipped(300, 0)
    drop = drop_of("accuracy", expected, expected, labels)
    assert (drop.loss, drop.low, drop.high) == (0, 0, 0)


def test_f1_rests_on_its_smallest_class():
    labels = np.repeat([0, 1], [290, 10])
    answers = one_hot(labels, 2)
    drop = drop_of("f1", answers.copy(), answers, labels)
    assert drop.high == 3 / 20


def test_an_error_is_lost_relative_to_the_references():
    truth = np.random.default_rng(0).standard_normal(400)
    noise = np.random.default_rng(1).standard_normal(400)
    drop = drop_of("mae", (truth + 1.1 * noise)[:, None], (truth + noise)[:, None], truth)
    assert drop.loss == pytest.approx(0.1)
    assert drop.low == pytest.approx(0.1) == drop.high  # every row's error grew by a tenth
    rmse = drop_of("rmse", (truth + 2 * noise)[:, None], (truth + noise)[:, None], truth)
    assert rmse.loss == pytest.approx(1.0)


def test_an_error_without_labels_is_relative_to_knowing_nothing():
    expected = np.random.default_rng(0).standard_normal((400, 3))
    nothing = np.broadcast_to(expected.mean(0), expected.shape)
    assert drop_of("rmse", nothing, expected).loss == pytest.approx(1)
    assert drop_of("mae", nothing, expected).loss == pytest.approx(1)
    little = drop_of("rmse", expected + 0.01 * np.random.default_rng(1).standard_normal((400, 3)), expected)
    assert 0 < little.low < little.loss < little.high < 0.02


def test_an_error_where_nothing_varies_is_a_finite_loss():
    drop = drop_of("mae", np.full((5, 1), 1.5), np.ones((5, 1)), np.ones(5))
    assert (drop.loss, drop.low, drop.high) == (0.5, 0.5, 0.5)


def test_one_row_says_nothing_of_others():
    drop = drop_of("accuracy", *flipped(1, 0))
    assert (drop.loss, drop.low, drop.high) == (0, None, None)


def test_rows_without_a_second_class_are_left_out_of_the_bootstrap():
    labels = np.array([0, 0, 0, 0, 1])
    scores = np.random.default_rng(0).random((5, 1)).astype(np.float32)
    drop = drop_of("auc", scores[::-1].copy(), scores, labels)
    assert np.isfinite([drop.low, drop.high]).all()


@pytest.mark.parametrize(("rows", "share", "churn"), [(100, 0.02, 0.0), (200, 0.05, 0.03), (220, 0.01, 0.004)])
def test_the_interval_holds_the_true_loss_as_often_as_it_says(rows, share, churn):
    """Rows flip with known probabilities, so the true loss is known: `share` of right answers lost, `churn` won."""
    rng = np.random.default_rng(5)
    held, above = 0, 0
    labels = np.arange(rows) % 10
    for _ in range(200):
        draw = rng.random(rows)
        right = np.where(draw < share, 0, np.where(draw > 1 - churn, 2, 1))
        expected = one_hot(np.where(right == 2, (labels + 1) % 10, labels))
        found = one_hot(np.where(right == 0, (labels + 1) % 10, labels))
        drop = drop_of("accuracy", found, expected, labels)
        held += drop.low <= share - churn <= drop.high
        above += share - churn > drop.high
    assert held >= 186  # 95% of 200 is 190; fewer than 186 would be a chance of 2%
    assert above <= 11  # it is the upper bound that keeps a variant out: 2.5% are 5


def test_the_interval_is_the_same_every_time():
    sides = flipped(200, 3)
    assert drop_of("accuracy", *sides) == drop_of("accuracy", *sides)


@pytest.mark.parametrize(
    ("text", "value"), [("1%", 0.01), ("0.01", 0.01), ("0.5%", 0.005), ("0", 0.0), (" 2 % ".strip(), 0.02)]
)
def test_a_limit_is_a_percentage_or_a_fraction(text, value):
    assert parse_max_drop(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["1", "100%", "150%", "-1%", "one", "", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"1%|10%"):
        parse_max_drop(text)


def accuracy(loss, low, high, rows=300):
    return Accuracy("accuracy", 0.9 - loss, loss, rows, "test rows", "fp32", loss_low=low, loss_high=high)


def test_a_variant_is_kept_up_to_its_limit_and_not_beyond():
    assert holds(accuracy(0.002, -0.001, 0.01), 0.01).kept
    assert holds(accuracy(0.9 - 0.8, 0.0, 0.9 - 0.8), 0.1).kept
    assert not holds(accuracy(0.002, -0.001, 0.0101), 0.01).kept


def test_a_loss_above_the_limit_is_told_with_its_interval():
    verdict = holds(accuracy(0.02, 0.012, 0.031), 0.01)
    assert not verdict.kept
    assert verdict.reason == "accuracy drops by 2% on 300 rows (95% interval 1.2% to 3.1%), more than the 1% allowed"
    assert verdict.rows_needed == 0


def test_small_figures_keep_their_digits_and_none_is_less_than_nothing():
    reason = holds(accuracy(-1e-9, -0.000123, 0.0000211), 0.01).reason
    assert reason == "accuracy drops by 0% on 300 rows, by 0.0021% at most (95%): within the 1% allowed"


def test_an_error_grows_where_a_score_drops():
    grown = Accuracy("rmse", 2.0, 0.1, 300, "test rows", "fp32", loss_low=0.05, loss_high=0.15)
    assert holds(grown, 0.01).reason.startswith("rmse grows by 10%")


def test_a_wide_interval_says_how_many_rows_would_decide():
    verdict = holds(accuracy(0.002, -0.01, 0.018), 0.01)
    assert not verdict.kept
    assert verdict.rows_needed == 1200  # half the width takes four times the rows
    assert "about 1,200 rows would decide" in verdict.reason
    unchanged = holds(accuracy(0.0, -3 / 150, 3 / 150, rows=150), 0.01)
    assert unchanged.rows_needed == 300
    assert "no number of rows" in holds(accuracy(0.01, 0.0, 0.02), 0.01).reason


def test_as_many_rows_as_were_asked_for_do_decide():
    first = drop_of("accuracy", *flipped(400, 2))
    asked = holds(accuracy(first.loss, first.low, first.high, 400), 0.01).rows_needed
    assert asked > 400
    more = drop_of("accuracy", *flipped(asked, round(asked * 2 / 400)))
    assert holds(accuracy(more.loss, more.low, more.high, asked), 0.0105).kept


def test_without_an_interval_nothing_is_kept():
    verdict = holds(accuracy(0.0, None, None, rows=1), 0.01)
    assert not verdict.kept
    assert "on 1 row, which are too few" in verdict.reason


@given(st.floats(-0.5, 0.5), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.9), st.integers(2, 10_000))
def test_a_variant_is_kept_exactly_if_its_upper_bound_is_within_the_limit(loss, below, above, limit, rows):
    verdict = holds(accuracy(loss, loss - below, loss + above, rows), limit)
    assert verdict.kept == (loss + above <= limit + 1e-12)
    assert verdict.rows_needed >= 0
    assert not (verdict.kept and verdict.rows_needed)
