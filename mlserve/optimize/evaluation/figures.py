"""The formulas of metrics, each as a function of how often every row counts.

So the same formula gives the figure of the rows as they are (every row once) and of all samples that a bootstrap
redraws from them, many at a time.
"""

from collections.abc import Callable

import numpy as np

from mlserve.optimize.evaluation.comparison import Numbers
from mlserve.stats import Figure, Floats

__all__ = ["cosines", "macro_auc", "macro_f1", "mean_of_rows", "pair_spearman", "r2", "rms_of_rows", "spearman"]

_MOST_PAIRS = 20_000
_HELD_AT_ONCE = 2_000_000


def mean_of_rows(scores: Floats) -> Figure:
    """The mean of `scores` [rows]."""
    return lambda counts: counts @ scores / counts.sum(1)


def rms_of_rows(squares: Floats) -> Figure:
    """The root of the mean of `squares` [rows]."""
    return lambda counts: np.sqrt(counts @ squares / counts.sum(1))


def r2(found: Floats, truth: Floats) -> Figure:
    """The share of the variance of `truth` [rows, width] that `found` explains, the mean of all outputs.

    An output whose truth does not vary counts 1 where it is met exactly and else 0 (as scikit-learn's `r2_score`).
    """
    squares, centred = (found - truth) ** 2, truth - truth.mean(0)
    centred_squares = centred**2

    def figure(counts: Floats) -> Floats:
        residual, about_mean = counts @ squares, counts @ centred_squares
        total = about_mean - (counts @ centred) ** 2 / counts.sum(1)[:, None]
        varies = total > 1e-12 * np.maximum(about_mean, np.finfo(float).tiny)
        explained = np.where(varies, 1 - residual / np.where(varies, total, 1.0), (residual == 0).astype(float))
        values: Floats = explained.mean(1)
        return values

    return _in_parts(figure, truth.shape[1])


def macro_f1(found: Numbers, truth: Numbers) -> Figure:
    """The mean over the classes that occur of 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979); both [rows]."""
    from scipy.sparse import csr_array

    rows, classes = np.arange(len(truth)), int(max(found.max(), truth.max())) + 1
    one = np.ones(len(truth))
    predicted, actual = (csr_array((one, (side, rows)), shape=(classes, len(truth))) for side in (found, truth))
    agreed = csr_array((one * (found == truth), (truth, rows)), shape=(classes, len(truth)))

    def figure(counts: Floats) -> Floats:
        hits, named = agreed @ counts.T, (predicted + actual) @ counts.T
        occurs = named > 0
        scores = np.where(occurs, 2 * hits / np.where(occurs, named, 1.0), 0.0)
        values: Floats = scores.sum(0) / occurs.sum(0)
        return values

    return figure


def macro_auc(scores: Floats, truth: Numbers) -> Figure:
    """The area under the ROC curve of `scores` [rows, classes]: how often a row of a class is given a higher score for
    it than a row of another, ties counted half (Hanley and McNeil 1982).

    With more than two classes the mean of each against the rest, of probabilities: rows that do not add up to 1 are
    logits. NaN for a sample of one class.
    """
    shares = scores.min() >= 0 and np.allclose(scores.sum(1), 1, atol=0.01)
    if scores.shape[1] == 2:
        return _auc(scores[:, 1] if shares else scores[:, 1] - scores[:, 0], truth == 1)
    probabilities = scores if shares else _softmax(scores)
    one_against_rest = [_auc(probabilities[:, number], truth == number) for number in np.unique(truth)]

    def figure(counts: Floats) -> Floats:
        areas = np.stack([auc(counts) for auc in one_against_rest])
        known = ~np.isnan(areas)
        values: Floats = np.where(
            known.any(0), np.where(known, areas, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.nan
        )
        return values

    return figure


def spearman(found: Floats, truth: Floats) -> Figure:
    """Spearman's rank correlation of `found` and `truth` [rows], ties given their mean rank.

    NaN where `truth` does not vary, 0 where only `found` does not.
    """
    ranks = [_ranks(side) for side in (found, truth)]

    def figure(counts: Floats) -> Floats:
        # Mean ranks add up to n (n + 1) / 2, ties or not.
        middle = (counts.sum(1)[:, None] + 1) / 2
        one, other = (rank(counts) - middle for rank in ranks)
        spread_one, spread_other = (np.sum(counts * side**2, axis=1) for side in (one, other))
        spread = np.sqrt(spread_one * spread_other)
        related = np.sum(counts * one * other, axis=1) / np.where(spread > 0, spread, 1.0)
        values: Floats = np.where(spread_other > 0, np.clip(related, -1, 1), np.nan)
        return values

    return figure


def pair_spearman(found: Floats, expected: Floats) -> Figure:
    """Rank correlation of the cosines of pairs of rows, `found` against `expected`, both [rows, width]: whether a
    search would order its results alike. Of more than 20,000 pairs as many are drawn.
    """
    rng = np.random.default_rng(0)
    first, second = np.triu_indices(len(expected), k=1)
    if len(first) > _MOST_PAIRS:
        chosen = rng.choice(len(first), _MOST_PAIRS, replace=False)
        first, second = first[chosen], second[chosen]
    of_pairs = spearman(*(cosines(side[first], side[second]) for side in (found, expected)))
    return _in_parts(lambda counts: of_pairs(counts[:, first] * counts[:, second]), len(first))


def cosines(one: Floats, other: Floats) -> Floats:
    """The cosine of the angle between the rows of both [rows, width]; 1 for equal rows, 0 for one that is all zero."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = np.all(one == other, axis=1)
    values: Floats = np.where(same, 1.0, np.sum(one * other, axis=1) / np.where(lengths > 0, lengths, 1.0))
    return values


def _in_parts(figure: Figure, numbers: int) -> Figure:
    """`figure`, which holds so many `numbers` a sample at once, given no more samples than memory is for."""
    at_once = max(1, _HELD_AT_ONCE // numbers)

    def in_parts(counts: Floats) -> Floats:
        return np.concatenate([figure(counts[start : start + at_once]) for start in range(0, len(counts), at_once)])

    return in_parts


def _auc(scores: Floats, positive: Numbers) -> Figure:
    order, starts, group_of = _tied_groups(scores)
    ends = np.append(starts[1:], len(scores))
    # Where in the order the group of each positive row begins and ends: rows before are lower, within it equal.
    begins_at, ends_at = starts[group_of[positive]], ends[group_of[positive]]
    negative = (~positive[order]).astype(np.float64)

    def figure(counts: Floats) -> Floats:
        lower = np.zeros((len(counts), len(scores) + 1))
        np.cumsum(counts[:, order] * negative, axis=1, out=lower[:, 1:])
        weights = counts[:, positive]
        won = np.sum(weights * (lower[:, begins_at] + lower[:, ends_at]), axis=1) / 2
        pairs = weights.sum(1) * lower[:, -1]
        values: Floats = np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan)
        return values

    return figure


def _ranks(values: Floats) -> Callable[[Floats], Floats]:
    """The mean rank of every row in each sample: counts [n, rows] -> [n, rows]."""
    order, starts, group_of = _tied_groups(values)

    def ranks(counts: Floats) -> Floats:
        totals = np.add.reduceat(counts[:, order], starts, axis=1)
        of_groups = np.cumsum(totals, axis=1) - totals + (totals + 1) / 2
        return of_groups[:, group_of]

    return ranks


def _tied_groups(values: Floats) -> tuple[Numbers, Numbers, Numbers]:
    """The ascending order of `values` [rows], where each group of equal ones starts in it, and each row's group."""
    _, group_of, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.argsort(group_of, kind="stable"), np.cumsum(sizes) - sizes, group_of


def _softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max(1, keepdims=True))
    shares: Floats = raised / raised.sum(1, keepdims=True)
    return shares
