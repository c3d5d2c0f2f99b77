"""The search for the highest rate that meets an objective: which rate to try, from what came of those before. Pure.

Doubling or halving from the start until one rate passes and one fails; then the middle of the two, of their logarithms,
until they are near enough; then both ends once more. Where an end's runs contradict each other, a third decides.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = ["Bracket", "End", "Step", "Try", "bracket_of", "is_confirmed", "next_try"]

_HALVINGS = 10
_MOST_STEPS = 40
_VOTES = 2

End = Literal["found", "nothing passes", "runs too short", "nothing fails", "spoilt", "undecided"]
"""Why a search ended. "runs too short": nothing passes down to the lowest rate of which a run tells anything. "spoilt":
a rate was tried twice, and neither run was evidence. "undecided": it took too many steps; what it had found stands.
"""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one rate. `blame` says why the run is no evidence, "" where it is."""

    rate_per_s: float
    met: bool
    sure: bool
    blame: str = ""


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """The rate to try next; `confirming`: it decided an end, and is run again."""

    rate_per_s: float
    confirming: bool = False


class Bracket(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate that passed below the lowest that failed, 0.0 and infinity where there is none."""

    passed_per_s: float
    failed_per_s: float


def bracket_of(steps: Sequence[Step]) -> Bracket:
    """What `steps` say. The verdict on a rate is that of most of its runs; one more where they are even decides."""
    votes = _votes(steps)
    failed = min((rate for rate, vote in votes.items() if vote <= 0), default=math.inf)
    passed = max((rate for rate, vote in votes.items() if vote > 0 and rate < failed), default=0.0)
    return Bracket(passed_per_s=passed, failed_per_s=failed)


def next_try(
    steps: Sequence[Step], start_per_s: float, resolution: float, *, most_per_s: float, least_per_s: float = 0.0
) -> Try | End:
    """The rate to try after `steps`, or why there is none.

    `resolution` 0.05: the rate found is within 5% of the true one. Half of that is how far the rate found and the
    lowest that failed may be apart, the other half is left to chance. No rate above `most_per_s` is tried, and none
    below `least_per_s`, of which a run holds too few requests. A step that was no evidence is tried once more.
    """
    if len(steps) >= _MOST_STEPS:
        return "undecided"
    if steps and steps[-1].blame:
        rate = steps[-1].rate_per_s
        spoilt = len(steps) >= 2 and bool(steps[-2].blame) and steps[-2].rate_per_s == rate
        return "spoilt" if spoilt else Try(rate_per_s=rate)
    evidence = [step for step in steps if not step.blame]
    if not evidence:
        return Try(rate_per_s=_rounded(min(max(start_per_s, least_per_s), most_per_s)))
    bracket = bracket_of(evidence)
    if math.isinf(bracket.failed_per_s):
        return _higher(bracket, most_per_s)
    if not bracket.passed_per_s:
        return _lower(bracket, start_per_s, _rounded(least_per_s))
    return _between(bracket, resolution) or _unconfirmed(bracket, evidence) or "found"


def _higher(bracket: Bracket, most_per_s: float) -> Try | End:
    if bracket.passed_per_s >= most_per_s:
        return "nothing fails"
    return Try(rate_per_s=_rounded(min(2 * bracket.passed_per_s, most_per_s)))


def _lower(bracket: Bracket, start_per_s: float, least_per_s: float) -> Try | End:
    if bracket.failed_per_s <= least_per_s:
        return "runs too short"
    if bracket.failed_per_s < start_per_s / 2**_HALVINGS:
        return "nothing passes"
    return Try(rate_per_s=max(_rounded(bracket.failed_per_s / 2), least_per_s))


def _between(bracket: Bracket, resolution: float) -> Try | None:
    """The middle of the bracket; None where it is narrow enough, or nothing is between its ends."""
    middle = _rounded(math.sqrt(bracket.passed_per_s * bracket.failed_per_s))
    narrow = bracket.failed_per_s <= (1 + resolution / 2) * bracket.passed_per_s
    inside = bracket.passed_per_s < middle < bracket.failed_per_s
    return Try(rate_per_s=middle) if inside and not narrow else None


def _unconfirmed(bracket: Bracket, steps: Sequence[Step]) -> Try | None:
    """The end that is to be run again."""
    for rate in (bracket.passed_per_s, bracket.failed_per_s):
        if not is_confirmed(steps, rate):
            return Try(rate_per_s=rate, confirming=True)
    return None


def is_confirmed(steps: Sequence[Step], rate_per_s: float) -> bool:
    """Whether two runs of a rate have said the same, and most say so."""
    said = [step.met for step in steps if step.rate_per_s == rate_per_s and not step.blame]
    met, missed = said.count(True), said.count(False)
    return max(met, missed) >= _VOTES and met != missed


def _votes(steps: Sequence[Step]) -> dict[float, int]:
    """Runs that passed minus runs that failed, by rate; the last run decides where they are even."""
    votes: dict[float, int] = {}
    for step in steps:
        if not step.blame:
            votes[step.rate_per_s] = votes.get(step.rate_per_s, 0) + (1 if step.met else -1)
    return votes


def _rounded(rate_per_s: float) -> float:
    """To four digits, so that folders and tables are readable."""
    return float(f"{rate_per_s:.4g}")
