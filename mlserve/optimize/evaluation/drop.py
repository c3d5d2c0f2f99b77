"""How much of a metric was lost against the reference, how sure that is, and whether it is little enough."""

import math

import msgspec
import numpy as np

from mlserve.errors import UsageError
from mlserve.model.artifact import Accuracy
from mlserve.optimize.evaluation.comparison import Comparison
from mlserve.optimize.evaluation.metrics import Figures, Metric, is_error
from mlserve.stats import Figure, Floats, Interval, flip_interval, row_interval
from mlserve.units import parse_fraction

__all__ = ["Drop", "Verdict", "holds", "measure_drop", "parse_max_drop"]

_FEWEST_RESAMPLES = 200
# Beyond these many redrawn rows, or additions for them, fewer samples are drawn: seconds, not minutes.
_MOST_REDRAWN_ROWS = 100_000_000
_MOST_WORK = 4_000_000_000
# What rounding adds to a difference of two shares must not fail a variant that is exactly at its limit.
_ROUNDING = 1e-12


class Drop(msgspec.Struct, frozen=True):
    """`value` of the variant and `best` of the reference, the `loss` between them and its 95% interval.

    The interval is None where rows are too few or too much alike to tell.
    """

    value: float
    best: float
    loss: float
    low: float | None
    high: float | None


class Verdict(msgspec.Struct, frozen=True):
    """Whether a variant is kept, and why in words.

    `rows_needed` is about how many rows would decide where these do not; 0 where they do, or where none would.
    """

    kept: bool
    reason: str
    rows_needed: int = 0


def parse_max_drop(text: str) -> float:
    """`"1%"` -> 0.01, `"0.005"` -> 0.005. Raises UsageError for no ratio, or one that would allow everything."""
    try:
        value = parse_fraction(text)
    except UsageError as error:
        raise UsageError(f"--max-drop {error}") from error
    if value >= 1:
        raise UsageError(f"--max-drop {text} would allow all to be lost; write a percentage such as 1%")
    return value


def measure_drop(metric: Metric, figures: Figures, comparison: Comparison, *, seed: int = 0) -> Drop:
    """What the variant loses, with a bootstrap interval: both sides' answers are redrawn by the same rows.

    So what makes a row hard for both cancels out. An interval of redrawn rows takes "no change seen" for "no change
    possible"; for shares of rows it is therefore widened to one that does not (`mlserve.stats.flip_interval`), and a
    metric of decisions of which none changed may lose 3 / `figures.fewest_rows`. Quantities that are equal in every
    row say no such thing: a variant that computes them otherwise would differ everywhere.
    """
    rows = len(comparison)
    loss_of = _loss(metric, figures, comparison)
    once = np.ones((1, rows))
    value, best, loss = (float(figure(once)[0]) for figure in (figures.found, figures.best, loss_of))
    if comparison.found is comparison.expected:  # the reference itself, which has lost nothing
        return Drop(value, best, 0.0, 0.0, 0.0)
    low, high = row_interval(loss_of, rows, resamples=_resamples(metric, comparison), seed=seed)
    if math.isnan(low):
        return Drop(value, best, loss, None, None)
    for wider_low, wider_high in _counted(figures, rows):
        low, high = min(low, wider_low), max(high, wider_high)
    if comparison.labels is None:  # nobody agrees with the reference more than it does itself
        low = max(low, 0.0)
    return Drop(value, best, loss, min(low, loss), max(high, loss))


def holds(accuracy: Accuracy, max_drop: float) -> Verdict:
    """Whether `accuracy` has lost at most `max_drop`: not only as measured, but up to the upper bound of its interval.

    A variant whose interval reaches beyond the limit is not kept even where the measured loss is below it.
    """
    name, limit = accuracy.metric, f"the {_percent(max_drop)} allowed"
    rows = f"{accuracy.rows} row{'s' * (accuracy.rows != 1)}"
    measured = f"{name} {'grows' if is_error(name) else 'drops'} by {_percent(accuracy.loss)} on {rows}"
    if accuracy.loss_low is None or accuracy.loss_high is None:
        return Verdict(False, f"{measured}, which are too few or too much alike to tell; give more with --data")
    if accuracy.loss_high <= max_drop + _ROUNDING:
        return Verdict(True, f"{measured}, by {_percent(accuracy.loss_high)} at most (95%): within {limit}")
    if accuracy.loss > max_drop + _ROUNDING:
        interval = f"95% interval {_percent(accuracy.loss_low)} to {_percent(accuracy.loss_high)}"
        return Verdict(False, f"{measured} ({interval}), more than {limit}")
    needed = _rows_needed(accuracy, max_drop)
    advice = f"about {needed:,} rows would decide" if needed else "no number of rows would decide so close a case"
    doubt = f"it may be {_percent(accuracy.loss_high)} (95%), more than {limit}"
    return Verdict(False, f"{measured}, but {doubt}; {advice}", needed)


def _resamples(metric: Metric, comparison: Comparison) -> int:
    rows = len(comparison)
    affordable = min(_MOST_REDRAWN_ROWS // rows, _MOST_WORK // max(rows * comparison.width * metric.work, 1))
    return min(metric.resamples, max(_FEWEST_RESAMPLES, affordable))


def _loss(metric: Metric, figures: Figures, comparison: Comparison) -> Figure:
    best = float(figures.best(np.ones((1, len(comparison))))[0])
    if not metric.lower_is_better and comparison.labels is None:  # the reference agrees with itself in every sample
        return lambda counts: best - figures.found(counts)
    if not metric.lower_is_better:
        return lambda counts: figures.best(counts) - figures.found(counts)
    if best > 0:
        return lambda counts: _growth(figures.found(counts), figures.best(counts))
    unskilled = _unskilled_error(metric, comparison)
    return lambda counts: figures.found(counts) / unskilled


def _growth(found: Floats, best: Floats) -> Floats:
    """How much larger an error became; NaN for a sample in which the reference makes none."""
    growth: Floats = np.where(best > 0, found / np.where(best > 0, best, 1.0) - 1, np.nan)
    return growth


def _unskilled_error(metric: Metric, comparison: Comparison) -> float:
    """The error of always answering the mean: the scale of an error where the reference makes none to compare with.

    1.0, so that the loss is the error itself, where the truth never varies.
    """
    _, _, truth = comparison.quantities()
    always_the_mean = np.broadcast_to(truth.mean(0), truth.shape)
    guessing = msgspec.structs.replace(comparison, found=always_the_mean, expected=truth, labels=None)
    return float(metric.figures(guessing).found(np.ones((1, len(truth))))[0]) or 1.0


def _counted(figures: Figures, rows: int) -> list[Interval]:
    """Intervals that know how few rows changed."""
    intervals = []
    if figures.hits is not None:
        found, best = figures.hits
        intervals.append(flip_interval(int((best > found).sum()), int((found > best).sum()), rows))
    if figures.fewest_rows:
        intervals.append((-3 / figures.fewest_rows, 3 / figures.fewest_rows))
    return intervals


def _rows_needed(accuracy: Accuracy, max_drop: float) -> int:
    """About how many rows like these bring the upper bound to `max_drop` if the loss stays as measured; 0: none would.

    An interval narrows with the root of the number of rows; one that only says that no row changed, with the number.
    """
    assert accuracy.loss_high is not None
    room = max_drop - accuracy.loss
    if room <= _ROUNDING:
        return 0
    excess = (accuracy.loss_high - accuracy.loss) / room
    unchanged = accuracy.loss == 0 and accuracy.loss_high * accuracy.rows <= 3 + _ROUNDING
    return math.ceil(accuracy.rows * (excess if unchanged else excess**2) - 1e-6)


def _percent(share: float) -> str:
    """Three digits of it, four decimals at most: `21.4%`, `0.5%`, `0.0123%`."""
    digits = round(float(f"{100 * share:.3g}"), 4) + 0.0  # which makes -0.0 zero
    return f"{digits:.4f}".rstrip("0").rstrip(".") + "%"
