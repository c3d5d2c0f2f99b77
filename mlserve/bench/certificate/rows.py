"""What the rows themselves show: was the load made, was it answered, and is it enough and steady enough to speak of?"""

from collections import Counter

import numpy as np

from mlserve.bench.certificate.facts import Facts
from mlserve.bench.measuring.steadiness import drift
from mlserve.bench.payload.expected import WRONG_ANSWER
from mlserve.runs.load import Bursts, Flat, Plan, Spikes
from mlserve.runs.run import Check
from mlserve.runs.samples import DROPPED, OK, Samples
from mlserve.runs.window import Window
from mlserve.stats import Floats, minimum_samples, quantile
from mlserve.units import format_duration, format_rate

__all__ = [
    "answered",
    "answered_right",
    "closed_loop",
    "enough_samples",
    "rate_reached",
    "schedule_kept",
    "steady",
    "warmed_up",
]

_LEAST_RATE = 0.95
_EDGE = 0.05
_WARMING_SHARE, _WARMING_FLOOR_S = 0.1, 1e-4


def closed_loop(plan: Plan) -> Check | None:
    """The label of a closed loop. It holds: such a run measures a peak throughput, and is valid as that."""
    if not plan.closed:
        return None
    return Check(
        name="closed loop",
        ok=True,
        found=f"{plan.users} users, each waiting for its answer",
        limit="fit for a peak throughput only",
        advice="Its latencies are not those of production, which does not wait: measure them with --rps.",
    )


def schedule_kept(samples: Samples, plan: Plan) -> Check | None:
    """Every request that was due was sent: a dropped one is a latency that is missing from the figures."""
    if plan.closed:
        return None
    dropped = int(np.sum(samples.status == DROPPED))
    return Check(
        name="schedule kept",
        ok=dropped == 0,
        found=f"{dropped} of {len(samples)} requests dropped",
        limit="none",
        advice=f"{plan.max_in_flight} requests were waiting already: lower --rps, or raise --max-in-flight.",
    )


def rate_reached(samples: Samples, plan: Plan, window: Window) -> Check | None:
    """Answers came at 95% of the rate at which requests were due, or more.

    Where a server does less than it is asked, its answers take longer to come than the requests took to be due, by
    just that factor. Both are timed from their first twentieth to their last, so that a slow but steady server is not
    blamed for the answers that are still out at the end, nor for a few that never came.
    """
    answered = samples.done_s[samples.status != DROPPED]
    if plan.closed or len(answered) < minimum_samples(0.9):
        return None
    due_s, done_s = _span_s(samples.scheduled_s), _span_s(answered)
    share = len(answered) / len(samples) * min(1.0, due_s / done_s if done_s else 1.0)
    offered_per_s = len(samples) / window.duration_s
    return Check(
        name="rate reached",
        ok=share >= _LEAST_RATE,
        found=f"{format_rate(share * offered_per_s)} answered of {format_rate(offered_per_s)} offered ({share:.1%})",
        limit=f"at least {_LEAST_RATE:.0%}",
        advice="The server cannot do more than that: lower --rps, or search its limit with --find-max.",
    )


def answered(samples: Samples, plan: Plan) -> Check:
    """No more of the requests that were sent failed than the plan allows."""
    failures = Counter(samples.status[(samples.status != OK) & (samples.status != DROPPED)].tolist())
    sent = int(np.sum(samples.status != DROPPED))
    share = failures.total() / sent if sent else 1.0
    mostly = f", mostly {failures.most_common(1)[0][0]}" if failures else ""
    return Check(
        name="answered",
        ok=share <= plan.max_errors,
        found=f"{share:.1%} of the requests sent failed{mostly}",
        limit=f"at most {plan.max_errors:.2g}" if plan.max_errors < 1e-3 else f"at most {plan.max_errors:.1%}",
        advice="Look into the server's log for the failures, or lower --rps.",
    )


def enough_samples(samples: Samples, plan: Plan) -> Check:
    """As many answers as a claim about the percentile asked for needs (stats.minimum_samples)."""
    needed, found = minimum_samples(plan.percentile), int(np.sum(samples.ok))
    return Check(
        name="enough samples",
        ok=found >= needed,
        found=f"{found} answers",
        limit=f"at least {needed} for p{100 * plan.percentile:g}",
        advice="Measure for longer (--duration), or at a higher --rps.",
    )


def answered_right(samples: Samples, plan: Plan) -> Check | None:
    """No answer was wrong: what a server that mixes answers up, or computes nonsense under load, takes says nothing."""
    if not plan.check_answers:
        return None
    wrong = int(np.sum(samples.status == WRONG_ANSWER))
    return Check(
        name="right answers",
        ok=wrong == 0,
        found=f"{wrong} of {wrong + int(np.sum(samples.ok))} answers differ from what was expected",
        limit="none",
        advice="Ask the model the same rows one by one, and look for what requests share in the server.",
    )


def warmed_up(samples: Samples, plan: Plan, window: Window, facts: Facts) -> Check | None:
    """The start-up was over when measuring began, or what of it was measured does not matter: without it the median
    and the percentile claimed are the same within a tenth, or a tenth of a millisecond.

    A load that changes by itself hides it. Where requests went on to get quicker, nobody knows the figures without it.
    """
    warm_up = facts.warm_up
    if warm_up is None or not samples.ok.any() or not _even(plan, window):
        return None
    warm = samples.scheduled_s[samples.ok] >= warm_up.end_s
    changes = {q: _change(samples.latency_s, samples.latency_s[warm], q) for q in (0.5, plan.percentile)}
    q, (with_it_s, without_s) = max(changes.items(), key=lambda item: abs(item[1][0] / item[1][1] - 1))
    cut = f"the first {format_duration(window.start_s)} were cut" if window.start_s else "nothing was cut"
    figures = f"p{100 * q:g} {format_duration(with_it_s)}, without it {format_duration(without_s)}"
    return Check(
        name="warm-up",
        ok=warm_up.over and all(_alike(*change) for change in changes.values()),
        found=f"{warm_up.reason}; {cut}" + ("" if warm.all() else f"; {figures}"),
        limit=f"cut, or within {_WARMING_SHARE:.0%} or {format_duration(_WARMING_FLOOR_S)}",
        advice="Cut more of the beginning: lengthen --warm-up.",
    )


def _change(latency_s: Floats, warm_s: Floats, q: float) -> tuple[float, float]:
    """A percentile of all answers, and of those after the start-up; of all twice, where none came after it."""
    return quantile(latency_s, q), quantile(warm_s if len(warm_s) else latency_s, q)


def _alike(with_it_s: float, without_s: float) -> bool:
    return abs(with_it_s - without_s) <= max(_WARMING_SHARE * without_s, _WARMING_FLOOR_S)


def steady(samples: Samples, plan: Plan, window: Window) -> Check | None:
    """Nothing drifts: see `measuring.steadiness.drift`.

    A load that is meant to differ from third to third says nothing of the server: none is made of a ramp.
    """
    found = drift(samples, window, closed=plan.closed) if _even(plan, window) else None
    if found is None:
        return None
    return Check(
        name="steady",
        ok=found.steady,
        found=found.found,
        limit="within a factor of 2, or 1 ms, and no trend",
        advice=(
            "The server did not keep up, or was still warming up: lower --rps, or lengthen --warm-up and --duration."
        ),
    )


def _even(plan: Plan, window: Window) -> bool:
    """Whether every third of the run is asked the same."""
    third_s = window.duration_s / 3
    match plan.shape:
        case Flat():
            return plan.arrivals != "replay"
        case Spikes(every_s=period_s):
            return period_s <= third_s
        case Bursts(on_s=on_s, off_s=off_s):
            return on_s + off_s <= third_s
        case _:
            return False


def _span_s(instants_s: Floats) -> float:
    return quantile(instants_s, 1 - _EDGE) - quantile(instants_s, _EDGE)
