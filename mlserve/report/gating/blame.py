"""Whose fault it is that a run is INVALID: the machine's, which says nothing of a server, or the server's own. Pure.

What a server does by itself is what a gate is to find, so that it counts: were such runs left out as disturbed ones
are, a candidate that fails would never be seen to. Both sides are treated alike, or a server held against itself would
look worse than itself.

What a machine does to two runs that take turns, it does to both. Their figures are then worse than the servers are, and
the ratio of them is not, so that steal and other work are borne there: how uncertain they make the ratio is in its
interval. What would make two servers look more alike than they are is not: a generator late by a part of what it
measures.
"""

from collections.abc import Sequence

from mlserve.report.gating.evidence import Pair
from mlserve.report.gating.limits import Limit
from mlserve.report.measurement import Recorded
from mlserve.runs.run import Check
from mlserve.stats import quantile

__all__ = ["borne", "does_not_work", "is_spoilt", "machine_faults", "own_faults", "told_of", "tolerated"]

_ANSWERS = ("answered", "right answers", "schedule kept")
_OWN = frozenset((*_ANSWERS, "rate reached", "steady", "enough samples"))
# Noise fails some requests, but not every second one of the candidate and none of the base beside it.
_MOST_BY_NOISE = 0.5
# A busy server has a bad run now and then, and is judged with it; one that has many does not bear the load.
_MOST_BAD_RUNS = 0.25
# Of the cores' time, what others may have beside two runs that take turns.
_MOST_SHARED = 0.25
# Of the latency, what the generator may add to both sides: by so much of it their ratio is nearer to 1.
_MOST_LATE, _MOST_COST = 0.1, 0.2
_MEDIAN = 0.5


def machine_faults(recorded: Recorded) -> list[Check]:
    """What machine, generators or clocks did to a run."""
    return [check for check in recorded.run.certificate.faults if check.name not in _OWN]


def own_faults(recorded: Recorded) -> list[Check]:
    """What the server did: failed or wrong answers, requests that found no room, a rate that was not reached."""
    return [check for check in recorded.run.certificate.faults if check.name in _OWN]


def is_spoilt(pair: Pair, limits: Sequence[Limit]) -> bool:
    """Whether a pair says nothing of `limits`: the machine disturbed one of its runs beyond what turns bear, or neither
    server bore its load.
    """
    disturbed = any(len(machine_faults(side)) > len(_borne(pair, side, limits)) for side in _sides(pair))
    return disturbed or all(map(own_faults, _sides(pair)))


def borne(pairs: Sequence[Pair], limits: Sequence[Limit]) -> str:
    """What `pairs` count in spite of, in a sentence; "" for nothing."""
    names = [{check.name for side in _sides(pair) for check in _borne(pair, side, limits)} for pair in pairs]
    disturbed = [each for each in names if each]
    if not disturbed:
        return ""
    return (
        f"the machine disturbed {len(disturbed)} of {len(pairs)} pairs ({', '.join(sorted(set().union(*disturbed)))}); "
        "their sides took turns and had it alike, so that they count, and what it scatters is in the intervals"
    )


def _sides(pair: Pair) -> tuple[Recorded, Recorded]:
    return pair.baseline, pair.candidate


def _borne(pair: Pair, recorded: Recorded, limits: Sequence[Limit]) -> list[Check]:
    """The machine's faults of one side of `pair` that leave the ratios of `limits` as they are."""
    latencies = [limit for limit in limits if limit.is_latency]
    if not pair.in_turns or any(limit.absolute for limit in latencies):
        return []
    q = max((1.0 if limit.q is None else limit.q for limit in latencies), default=0.0)
    return [check for check in machine_faults(recorded) if _is_borne(check, recorded, q)]


def _is_borne(check: Check, recorded: Recorded, q: float) -> bool:
    """Whether what `check` found does not move ratios of quantiles up to `q`: 1.0 for a mean, 0.0 for no latency."""
    run, samples = recorded.run, recorded.samples
    if not len(samples.latency_s):
        return False
    match check.name:
        case "steal":
            return (run.resources.steal or 0.0) <= _MOST_SHARED
        case "other work":
            return (run.resources.others_cpu or 0.0) <= _MOST_SHARED * run.resources.cores_in_use
        case "generator on time":
            punctual = q < 1 and quantile(samples.dispatch_lag_s, q) <= _MOST_LATE * quantile(samples.latency_s, q)
            return punctual or not q
        case "calibration latency":
            cost_s = run.calibration.p50_s if run.calibration else float("inf")
            return q <= _MEDIAN and cost_s <= _MOST_COST * quantile(samples.latency_s, _MEDIAN)
    return False


def does_not_work(pair: Pair) -> str:
    """How the candidate failed at least half of its requests where the base answered its own; "" where it did not.

    No machine is so disturbed that it does this to one of the two, so that whatever else is INVALID does not matter.
    """
    failed = ~pair.candidate.samples.ok
    base_fails = any(check.name in _ANSWERS for check in own_faults(pair.baseline))
    if base_fails or not len(failed) or not bool(pair.baseline.samples.ok.any()) or failed.mean() < _MOST_BY_NOISE:
        return ""
    return f"{int(failed.sum())} of {len(failed)} requests failed, where the base answered its own"


def tolerated(bad: int, runs: int) -> bool:
    """Whether `bad` runs of `runs` are few enough for a server that bears its load."""
    return bad <= _MOST_BAD_RUNS * runs


def told_of(bad: Sequence[Recorded], runs: int, side: str, other: str) -> str:
    """The runs that only one side had faults of its own in, in a sentence."""
    check = own_faults(bad[0])[0]
    return (
        f"in {len(bad)} of {runs} {'pair' if runs == 1 else 'pairs'} the {side}'s run is INVALID by its own doing, and "
        f"the {other}'s is not ({check.name}: {check.found}, limit: {check.limit}); that counts as it is"
    )
