"""What the charts draw: a measurement's distribution and its course, as few points as show them."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.report.stalls import Stall, find_stalls
from mlserve.stats import Floats, minimum_samples, quantile

__all__ = ["Distribution", "Timeline", "WarmUp", "distribution", "timeline"]

_POINTS_A_DECADE = 24
_DEEPEST = 5  # decades: p99.999
_MOST_STRETCHES = 60
# In a stretch with fewer answers the p99 would be its slowest answer.
_ANSWERS_A_STRETCH = 100


class Distribution(msgspec.Struct, frozen=True):
    """Latency by quantile: `latency_s[i]` at `q[i]`, from 0 as far as there are samples for the claim."""

    q: tuple[float, ...]
    latency_s: tuple[float, ...]


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """The measured part in stretches of `stretch_s`, repeats laid over each other; each is told by its middle `at_s`.

    Latencies belong to the stretch their request was due in, None where none of those was answered; `answered_per_s`
    counts answers when they came. `warm_up` is the course before it, at negative instants; `stalls` are when nothing
    was answered though requests were due.
    """

    stretch_s: float
    at_s: tuple[float, ...]
    p50_s: tuple[float | None, ...]
    p99_s: tuple[float | None, ...]
    offered_per_s: tuple[float, ...]
    answered_per_s: tuple[float, ...]
    warm_up: "WarmUp | None" = None
    stalls: tuple[Stall, ...] = ()


class WarmUp(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of the requests that were due before the measured part, which no figure counts: as in `Timeline`."""

    at_s: tuple[float, ...]
    p50_s: tuple[float | None, ...]
    p99_s: tuple[float | None, ...]


def distribution(runs: Sequence[Recorded]) -> Distribution:
    """The latencies of `runs` taken together."""
    latency_s = np.sort(np.concatenate([one.samples.latency_s for one in runs]))
    tails = np.logspace(0, -_DEEPEST, _DEEPEST * _POINTS_A_DECADE + 1)
    quantiles = [q for q in (1 - tails).tolist() if len(latency_s) and (q == 0 or minimum_samples(q) <= len(latency_s))]
    return Distribution(tuple(quantiles), tuple(quantile(latency_s, q) for q in quantiles))


def timeline(runs: Sequence[Recorded]) -> Timeline:
    """The course of `runs`, repeats of one plan."""
    latency_s = np.concatenate([one.samples.latency_s for one in runs])
    duration_s = max(one.run.window.duration_s for one in runs)
    # By what was planned, not by what came, where there was a plan: so the results of one load have the same stretches.
    expected = sum(one.run.plan.rate_per_s * one.run.window.duration_s or len(one.samples) for one in runs)
    stretches = max(1, min(_MOST_STRETCHES, math.floor(expected / _ANSWERS_A_STRETCH), math.floor(duration_s)))
    stretch_s = duration_s / stretches
    stretch_of = np.floor(np.concatenate([one.due_s[one.samples.ok] for one in runs]) / stretch_s)
    latencies_s = [latency_s[stretch_of == number] for number in range(stretches)]
    return Timeline(
        stretch_s=stretch_s,
        at_s=tuple((number + 0.5) * stretch_s for number in range(stretches)),
        p50_s=tuple(_known(quantile(values, 0.5)) for values in latencies_s),
        p99_s=tuple(_known(quantile(values, 0.99)) for values in latencies_s),
        offered_per_s=_rate([one.due_s for one in runs], stretches, stretch_s),
        answered_per_s=_rate([one.answered_at_s for one in runs], stretches, stretch_s),
        warm_up=_warm_up(runs, stretch_s),
        stalls=find_stalls(runs),
    )


def _warm_up(runs: Sequence[Recorded], stretch_s: float) -> WarmUp | None:
    """The course before the measured part, in stretches as long as its own, or one shorter one."""
    read = [(one.warm_up, one.run.window.start_s) for one in runs if one.warm_up is not None]
    longest_s = max((start_s for _, start_s in read), default=0.0)
    if not longest_s:
        return None
    stretches = max(1, min(_MOST_STRETCHES, math.floor(longest_s / stretch_s)))
    edges_s = np.linspace(-longest_s, 0.0, stretches + 1)
    latency_s = np.concatenate([rows.latency_s for rows, _ in read])
    stretch_of = np.digitize(np.concatenate([(rows.scheduled_s - start_s)[rows.ok] for rows, start_s in read]), edges_s)
    latencies_s = [latency_s[stretch_of == number + 1] for number in range(stretches)]
    return WarmUp(
        at_s=tuple(((edges_s[:-1] + edges_s[1:]) / 2).tolist()),
        p50_s=tuple(_known(quantile(values, 0.5)) for values in latencies_s),
        p99_s=tuple(_known(quantile(values, 0.99)) for values in latencies_s),
    )


def _rate(at_s: Sequence[Floats], stretches: int, stretch_s: float) -> tuple[float, ...]:
    """How many of `at_s` fall into each stretch, a second and a run."""
    counts, _ = np.histogram(np.concatenate(at_s), bins=stretches, range=(0.0, stretches * stretch_s))
    return tuple((counts / (stretch_s * len(at_s))).tolist())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
