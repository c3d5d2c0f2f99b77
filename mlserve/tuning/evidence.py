"""Whether requests so far show that an objective is met, or missed: MLPerf LoadGen's binomial rule, applied to as many
requests as there are independent ones. Pure functions of arrays.

LoadGen asks how likely a system that only just misses its percentile would show so few requests over the limit, and
stops when that is at most 1% (early stopping, c = 0.99, d = 0). The rule holds for independent requests; behind one
queue they are not, so both counts are divided by how many requests are worth one.
"""

import math

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.errors import UsageError
from mlserve.stats import Floats, minimum_samples, quantile
from mlserve.units import format_duration, parse_duration_s, parse_fraction, parse_limits

__all__ = [
    "LEAST_REQUESTS",
    "Evidence",
    "Objective",
    "Requests",
    "Verdict",
    "conclude",
    "effective_samples",
    "look",
    "parse_slo",
    "weigh",
]

DOUBT = 0.01
"""How likely at most a verdict that claims proof is wrong."""

LEAST_REQUESTS = 300
"""Fewer prove nothing: one stall may be in all of them. It takes more to show that a high percentile is met."""

_BLOCKS = 20
_FEWEST_BLOCKS = 10
# Beyond this correlation between neighbours the blocks are in effect one.
_MOST_CORRELATION = 0.95
_GROWTH, _GROWTH_FLOOR_S = 2.0, 1e-3


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """`percentile` of all requests (0.99) are answered well within `limit_s` of being due, and at most the share
    `max_errors` of them fails.
    """

    percentile: float
    limit_s: float
    max_errors: float

    @property
    def name(self) -> str:
        """`p99`."""
        return f"p{100 * self.percentile:.10g}"

    @property
    def text(self) -> str:
        """`p99=50ms`, as `--slo` takes it."""
        return f"{self.name}={1000 * self.limit_s:g}ms"

    @property
    def words(self) -> str:
        """`p99 within 50.0 ms, at most 0.1% errors`."""
        return f"{self.name} within {format_duration(self.limit_s)}, at most {100 * self.max_errors:.3g}% errors"


class Requests(msgspec.Struct, frozen=True):
    """Requests in the order they were due: when (seconds), their latency (infinite where there was no good answer),
    and which failed. One that was due but is neither answered nor failed yet has only the infinite latency.
    """

    due_s: Floats
    latency_s: Floats
    failed: npt.NDArray[np.bool_]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What requests say of an objective.

    `effective` is how many independent requests they are worth. `chance_missed` is how likely a system that only just
    misses the percentile shows so few requests over the limit, and `chance_met` how likely one that only just meets
    it, in percentile and errors, shows so many. `growing`: latency rose all the time, as in a queue without end.
    """

    requests: int
    over: int
    failed: int
    effective: float
    found_s: float
    chance_missed: float
    chance_met: float
    growing: bool


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the objective is met. `sure`: the evidence proves it; otherwise it is what the figures say as such.

    `enough`: there were requests enough to say either; without them nothing may be decided by `met`.
    """

    met: bool
    sure: bool
    why: str
    enough: bool = True


def parse_slo(text: str, max_errors: str = "0.1%") -> Objective:
    """`"p99=50ms"`, `"0.1%"` -> the objective. Raises UsageError for any other form."""
    limits = parse_limits(text, "p99=50ms")
    name, value = next(iter(limits.items()))
    if len(limits) > 1:
        raise UsageError(f"--slo {text}: give one percentile, such as p99=50ms")
    try:
        percentile = float(name.removeprefix("p")) / 100 if name.startswith("p") else math.nan
    except ValueError:
        percentile = math.nan
    if not 0.5 <= percentile < 1:
        raise UsageError(f"--slo {name}: that is no percentile from p50 on; write one such as p99=50ms or p99.9=100ms")
    errors = parse_fraction(max_errors)
    if errors >= 1:
        raise UsageError(f"--errors {max_errors} allows every request to fail; give less than 100%")
    return Objective(percentile=percentile, limit_s=parse_duration_s(value), max_errors=errors)


def weigh(requests: Requests, objective: Objective) -> Evidence:
    """What `requests` say."""
    count = len(requests.due_s)
    over = requests.latency_s > objective.limit_s
    blocks = _block_numbers(requests.due_s)
    level = np.log(np.clip(requests.latency_s, 1e-9, _ceiling_s(requests, objective)))
    # Requests over the limit that are there show how they come together; of those that are not, the latency tells.
    over_worth = effective_samples(over.astype(np.float64), blocks)
    effective = min(effective_samples(level, blocks), over_worth)
    overs, failures = float(over.sum()), float(requests.failed.sum())
    failed_worth = effective_samples(requests.failed.astype(np.float64), blocks)
    allowed = 1 - objective.percentile
    return Evidence(
        requests=count,
        over=int(overs),
        failed=int(failures),
        effective=effective,
        found_s=quantile(requests.latency_s, objective.percentile),
        chance_missed=_at_most(overs, count, effective, allowed),
        chance_met=min(
            _at_least(overs, count, over_worth, allowed),
            _at_least(failures, count, failed_worth, objective.max_errors),
        ),
        growing=_growing(requests),
    )


def look(evidence: Evidence, objective: Objective, number: int) -> Verdict | None:
    """The verdict at the `number`-th look, from 1, where it is sure; None to go on.

    A run that is looked at again and again would some time look lucky: each look may only err by its own share of
    `DOUBT`, 1/2, 1/6, 1/12, ... of it, which add up to the whole.
    """
    doubt = DOUBT / (number * (number + 1))
    if evidence.chance_met <= doubt:
        return Verdict(met=False, sure=True, why=_why(evidence, objective))
    if evidence.chance_missed <= doubt and _clean(evidence, objective):
        return Verdict(met=True, sure=True, why=_why(evidence, objective))
    return None


def conclude(evidence: Evidence, objective: Objective) -> Verdict:
    """The verdict on a run that is over: where the evidence proves nothing, what the figures say as they are.

    A run that was ended early, by a proven miss, has requests enough for that, however many the percentile takes.
    """
    few = evidence.over <= (1 - objective.percentile) * evidence.requests
    met = evidence.requests > 0 and few and _clean(evidence, objective)
    proven = (evidence.chance_missed if met else evidence.chance_met) <= DOUBT
    needed = minimum_samples(objective.percentile)
    enough = evidence.requests >= needed or (proven and not met and evidence.requests >= LEAST_REQUESTS)
    short = "" if enough else f"; too few to tell, {objective.name} takes {needed:,}"
    return Verdict(met=met, sure=proven and enough, why=_why(evidence, objective) + short, enough=enough)


def effective_samples(values: Floats, block_of: npt.NDArray[np.int64]) -> float:
    """How many independent values `values` [n], in time order, are worth; from 1 to n.

    The variance of independent values over that of their mean, which the spread of the means of blocks shows, times
    (1 + r) / (1 - r) for the correlation r that neighbouring blocks still have (the method of batch means: Law,
    Simulation Modeling and Analysis, section 9.5.3; r after Kendall 1954). Constant values are worth n: they show no
    correlation.
    """
    count = len(values)
    edges = np.flatnonzero(np.diff(block_of)) + 1
    if count < 2 or not float(np.ptp(values)):
        return float(count)
    if len(edges) + 1 < _FEWEST_BLOCKS:
        return 1.0
    sizes = np.diff([0, *edges, count])
    means = np.add.reduceat(values, [0, *edges]) / sizes
    spread = means - values.mean()
    between = float((sizes * spread**2).sum()) / (len(means) - 1)  # n times the variance of the mean
    lagged = float(spread[1:] @ spread[:-1]) / max(float(spread @ spread), 1e-300)
    r = min(max(lagged + (1 + 4 * max(lagged, 0.0)) / len(means), 0.0), _MOST_CORRELATION) if lagged > 0 else 0.0
    worth = float(values.var()) / max(between * (1 + r) / (1 - r), 1e-300)
    return float(np.clip(count * worth, 1.0, count))


def _block_numbers(due_s: Floats) -> npt.NDArray[np.int64]:
    if not len(due_s):
        return np.empty(0, np.int64)
    start, length = due_s[0], max(float(due_s[-1] - due_s[0]), 1e-9)
    numbers: npt.NDArray[np.int64] = ((due_s - start) / length * _BLOCKS).astype(np.int64)
    return np.clip(numbers, 0, _BLOCKS - 1)


def _ceiling_s(requests: Requests, objective: Objective) -> float:
    """What stands for an infinite latency where logarithms are taken: longer than any seen."""
    finite = requests.latency_s[np.isfinite(requests.latency_s)]
    return 2 * max(objective.limit_s, float(finite.max(initial=0.0)))


def _at_most(ones: float, count: int, effective: float, share: float) -> float:
    """P(X <= t) for X ~ Binomial(n, share), of the effective n and t; by the incomplete beta function, for they need
    not be whole (Abramowitz and Stegun 26.5.24).
    """
    from scipy.special import betainc

    if not count:
        return 1.0
    n, t = effective, ones * effective / count
    return float(betainc(n - t, t + 1, 1 - share)) if t < n else 1.0


def _at_least(ones: float, count: int, effective: float, share: float) -> float:
    """P(X >= t), likewise."""
    from scipy.special import betainc

    if not count or not ones:
        return 1.0
    if not share:
        return 0.0
    n, t = effective, ones * effective / count
    return float(betainc(t, n - t + 1, share))


def _growing(requests: Requests) -> bool:
    """Whether the median latency rose from each third to the next, to twice the first's and by a millisecond.

    So it is where requests arrive faster than they are served, however far the limit still is; see the certificate's
    check of steadiness for how often that errs.
    """
    thirds = np.array_split(requests.latency_s, 3)
    if len(thirds[0]) < minimum_samples(0.5):
        return False
    first, second, last = (quantile(third, 0.5) for third in thirds)
    return first < second < last and last > max(_GROWTH * first, first + _GROWTH_FLOOR_S)


def _clean(evidence: Evidence, objective: Objective) -> bool:
    return not evidence.growing and evidence.failed <= objective.max_errors * evidence.requests


def _why(evidence: Evidence, objective: Objective) -> str:
    """`12 of 20,000 requests over 50.0 ms, worth 1,480 independent ones`."""
    words = (
        f"{evidence.over:,} of {evidence.requests:,} requests over {format_duration(objective.limit_s)}, "
        f"worth {evidence.effective:,.0f} independent ones"
    )
    if evidence.failed:
        words += f"; {evidence.failed:,} failed"
    return f"{words}; the queue grows" if evidence.growing else words
