"""What part of a run is measured, and when enough of it was seen. Pure: the caller brings the rows and the time."""

import math
from typing import Literal

import msgspec
import numpy as np

from mlserve.bench.measuring.warm_up import WarmUp, find_warm_up
from mlserve.runs.load import Plan
from mlserve.runs.percentiles import confidence_of, latency_blocks, looks_s
from mlserve.runs.samples import Samples
from mlserve.runs.window import Window
from mlserve.stats import Blocks, Interval, bootstrap_interval, minimum_samples, quantile, quantile_of
from mlserve.units import format_duration

__all__ = ["Decision", "decide", "measured_part"]

# The word to stop must reach the generators before the instant that it names.
_LEAD_S = 1.0
# A row is written up to this long after its request was answered.
_WRITTEN_S = 0.5
# An interval of more is hardly better, and takes longer than a look may.
_MOST_VALUES = 300_000
_RESAMPLES = 1000


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a run goes on, and why. To "stop" is final: what is due from `at_s` on is not sent.

    `window` is what was measured so far, `warm_up` what was found where the plan asks for it. `value_s` is the plan's
    percentile, between `low_s` and `high_s` with 95% confidence for all looks together; `wide` is by which share of it
    the farther of the two is away. NaN where there is no precision asked for, or nothing known yet. Before `again_s`
    nothing can change.
    """

    action: Literal["go on", "stop"]
    at_s: float
    reason: str
    window: Window
    warm_up: WarmUp | None = None
    value_s: float = math.nan
    low_s: float = math.nan
    high_s: float = math.nan
    wide: float = math.nan
    again_s: float = 0.0


def measured_part(samples: Samples, plan: Plan, end_s: float) -> tuple[WarmUp, Window]:
    """What was found of a start-up, and the measured part, of a run of which all rows due before `end_s` are there.

    Where the plan does not ask for it to be found, its own `warm_up_s` is cut, and what was found tells whether that
    was enough.
    """
    warm_up = find_warm_up(samples, end_s / 2, end_s)
    start_s = max(plan.warm_up_s, warm_up.end_s) if plan.find_warm_up else plan.warm_up_s
    return warm_up, Window(start_s, max(start_s, end_s))


def decide(samples: Samples, elapsed_s: float, plan: Plan) -> Decision:
    """Whether the run may end, `elapsed_s` after its first instant. `samples` are all its rows, warm-up included.

    Without a precision it ends when the plan's duration was measured, from where the start-up ended. With one, it goes
    on until the interval of the plan's percentile is narrow enough at two looks in a row, or `max_duration_s` were
    measured. Looks come at fixed amounts of measured time (percentiles.looks_s), however often this is called, and at
    the confidence of percentiles.confidence_of: who looks at an interval again and again, and stops when it happens to
    be narrow, stops too early.
    """
    settled_s = _settled(samples, elapsed_s, plan)
    warm_up, window = measured_part(samples, plan, settled_s)
    so_far = Decision(
        action="go on",
        at_s=math.inf,
        reason=f"{format_duration(max(window.duration_s, 0.0))} of {format_duration(plan.duration_s)} measured",
        window=window,
        warm_up=warm_up if plan.find_warm_up else None,
    )
    looks = looks_s(plan)
    most_s = looks[-1] if plan.precision else plan.duration_s
    end_s = window.start_s + most_s
    looked = bool(plan.precision) and window.duration_s >= plan.duration_s
    if looked:
        so_far = _look(so_far, samples, elapsed_s, plan, [look_s for look_s in looks if look_s <= window.duration_s])
    if so_far.action == "stop" or elapsed_s < end_s - _LEAD_S:
        ahead_s = [look_s for look_s in looks if look_s > window.duration_s and look_s >= plan.duration_s]
        next_s = window.start_s + ahead_s[0] + elapsed_s - settled_s if plan.precision and ahead_s else math.inf
        return msgspec.structs.replace(so_far, again_s=min(next_s, end_s - _LEAD_S))
    reason = f"{format_duration(most_s)} measured"
    if plan.precision:
        reason += ", the time limit" + (f"; {so_far.reason}" if looked else "")
    return msgspec.structs.replace(so_far, action="stop", at_s=max(end_s, elapsed_s), reason=reason)


def _settled(samples: Samples, elapsed_s: float, plan: Plan) -> float:
    """The instant before which every request that was due seems to have its row: as long before the latest answer as
    any took so far.
    """
    done_s = samples.done_s[~np.isnan(samples.done_s)]
    if not len(done_s):
        return 0.0
    longest_s = min(plan.timeout_s, float(np.nanmax(samples.done_s - samples.scheduled_s)))
    return max(0.0, min(elapsed_s - _WRITTEN_S, float(done_s.max())) - longest_s)


def _look(so_far: Decision, samples: Samples, elapsed_s: float, plan: Plan, looks: list[float]) -> Decision:
    """`so_far` with the interval at the last of `looks`, which are over; to stop if it is narrow there and before."""
    start_s, name = so_far.window.start_s, f"p{plan.percentile * 100:g}"
    last = latency_blocks(samples, Window(start_s, start_s + looks[-1]))
    needed, found = minimum_samples(plan.percentile), sum(len(block) for block in last)
    if found < needed:
        return msgspec.structs.replace(so_far, reason=f"{name} needs {needed:,} answers, there are {found:,}")
    value_s, (low_s, high_s), wide = _interval(last, plan)
    stop = wide <= plan.precision
    if stop:
        before = latency_blocks(samples, Window(start_s, start_s + looks[-2]))
        enough = sum(len(block) for block in before) >= needed
        stop = enough and _interval(before, plan)[2] <= plan.precision
    return msgspec.structs.replace(
        so_far,
        action="stop" if stop else "go on",
        at_s=elapsed_s if stop else math.inf,
        reason=f"{name} is {format_duration(value_s)} within {wide:.2%}, {plan.precision:.2%} was asked for",
        value_s=value_s,
        low_s=low_s,
        high_s=high_s,
        wide=wide,
    )


def _interval(blocks: Blocks, plan: Plan) -> tuple[float, Interval, float]:
    """The plan's percentile, its interval, and by which share of it the farther end is away; of many values, of as many
    as are evidence enough, which widens the interval if anything.
    """
    step = math.ceil(sum(len(block) for block in blocks) / _MOST_VALUES)
    value_s = quantile(np.concatenate(blocks), plan.percentile)
    low_s, high_s = bootstrap_interval(
        [[block[::step] for block in blocks]],
        quantile_of(plan.percentile),
        confidence=confidence_of(plan),
        resamples=_RESAMPLES,
    )
    wide = max(high_s - value_s, value_s - low_s) / value_s
    return value_s, (low_s, high_s), math.inf if math.isnan(wide) else wide
