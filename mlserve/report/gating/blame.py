"""Whose fault it is that a run is INVALID: the machine's, which says nothing of a server, or the server's own. Pure.

What a server does by itself is what a gate is to find, so that it counts: were such runs left out as disturbed ones
are, a candidate that fails would never be seen to. Both sides are treated alike, or a server held against itself would
look worse than itself.
"""

from collections.abc import Sequence

from mlserve.report.gating.evidence import Pair
from mlserve.report.measurement import Recorded
from mlserve.runs.run import Check

__all__ = ["does_not_work", "is_spoilt", "machine_faults", "own_faults", "told_of", "tolerated"]

_ANSWERS = ("answered", "right answers", "schedule kept")
_OWN = frozenset((*_ANSWERS, "rate reached", "steady", "enough samples"))
# Noise fails some requests, but not every second one of the candidate and none of the base beside it.
_MOST_BY_NOISE = 0.5
# A busy server has a bad run now and then, and is judged with it; one that has many does not bear the load.
_MOST_BAD_RUNS = 0.25


def machine_faults(recorded: Recorded) -> list[Check]:
    """What machine, generators or clocks did to a run."""
    return [check for check in recorded.run.certificate.faults if check.name not in _OWN]


def own_faults(recorded: Recorded) -> list[Check]:
    """What the server did: failed or wrong answers, requests that found no room, a rate that was not reached."""
    return [check for check in recorded.run.certificate.faults if check.name in _OWN]


def is_spoilt(pair: Pair) -> bool:
    """Whether a pair says nothing: the machine disturbed one of its runs, or neither server bore the load."""
    sides = (pair.baseline, pair.candidate)
    return any(map(machine_faults, sides)) or all(map(own_faults, sides))


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
