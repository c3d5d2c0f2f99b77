"""Which setting to try next, and at which rate, where the highest rate is sought; and when enough is known. Pure.

One setting leads: that with the highest rate at which a run met the objective. Every other is tried once a little above
that rate, those that promise most first. Whoever does not bear it is out of the race with one run, which ends as
soon as the evidence does; whoever does, leads and climbs on.
"""

import math
from collections.abc import Sequence

import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.choosing.attempt import Attempt, Trial
from mlserve.tuning.choosing.belief import Belief, Seen, believe, expected_gain, resemblance
from mlserve.tuning.choosing.contest import Contest
from mlserve.tuning.choosing.standing import Settled, blamed, confirming, out_of_contest
from mlserve.tuning.search import Bracket, Step, bracket_of

__all__ = ["believed_rate", "brackets_of", "next_climb"]

_WORTH_TRYING = 0.005
_COARSE, _FINE = 1.12, 1.05
_ABOVE = 1.02
"""How much more than the leader a challenger must bear."""
_FIRST = 0.9
_MOST_FALLS, _MOST_GIVEN_UP = 6, 3
_MOST_PER_S = 1e6


def next_climb(contest: Contest, attempts: Sequence[Attempt], *, hurry: bool) -> Trial | Settled:
    """The run to make after `attempts`, or what they come to. `hurry`: nothing new is begun, the best is confirmed."""
    again = blamed(attempts)
    if again is not None and not hurry:
        return again
    brackets = brackets_of(attempts)
    belief = believed_rate(contest, attempts)
    handicap = contest.handicap()
    leader = _leader(brackets, handicap, out_of_contest(attempts))
    if leader is None:
        return _first(attempts, belief, handicap, brackets, hurry=hurry)
    if not hurry:
        found = (
            _climb(leader, brackets[leader], belief, _COARSE)
            or _challenge(leader, brackets, attempts, belief, handicap)
            or _climb(leader, brackets[leader], belief, _FINE)
        )
        if found is not None:
            return found
    return confirming(leader, brackets[leader].passed_per_s, attempts, hurry=hurry)


def brackets_of(attempts: Sequence[Attempt]) -> dict[int, Bracket]:
    """Between which rates each setting's highest lies. A rate that the generator could not offer twice is not met."""
    steps: dict[int, list[Step]] = {}
    for one in attempts:
        if one.failure:
            continue
        mine = steps.setdefault(one.number, [])
        once = [step for step in mine if step.rate_per_s == one.rate_per_s and step.blame]
        mine.append(Step(rate_per_s=one.rate_per_s, met=one.met, sure=one.sure, blame="" if once else one.blame))
    return {number: bracket_of(mine) for number, mine in steps.items()}


def believed_rate(contest: Contest, attempts: Sequence[Attempt]) -> Belief:
    """Of the logarithm of each setting's highest rate. Where only one end of it is known, what was foretold stands
    unless it lies beyond that end.
    """
    foretold, covariance = contest.log_rate_per_s(), resemblance(contest.settings)
    brackets = brackets_of(attempts)
    whole = {number: one for number, one in brackets.items() if one.passed_per_s and one.failed_per_s < math.inf}
    seen = [_middle(number, one) for number, one in whole.items()]
    belief = believe(foretold, covariance, seen)
    for number, one in brackets.items():
        if math.isinf(one.failed_per_s) and one.passed_per_s and belief.mean[number] < math.log(one.passed_per_s):
            seen.append(Seen(number, math.log(one.passed_per_s) + 0.05, 0.08))
        if not one.passed_per_s and one.failed_per_s < math.exp(belief.mean[number]):
            seen.append(Seen(number, math.log(one.failed_per_s) - 0.10, 0.10))
    return believe(foretold, covariance, seen)


def _middle(number: int, bracket: Bracket) -> Seen:
    """Anywhere between the two ends is as likely as anywhere else; chance moves the ends a little."""
    low, high = math.log(bracket.passed_per_s), math.log(bracket.failed_per_s)
    return Seen(number, (low + high) / 2, math.hypot((high - low) / math.sqrt(12), 0.02))


def _leader(brackets: dict[int, Bracket], handicap: Floats, out: set[int]) -> int | None:
    passed = {number: one.passed_per_s for number, one in brackets.items() if one.passed_per_s and number not in out}
    return max(passed, key=lambda number: math.log(passed[number]) - float(handicap[number]), default=None)


def _first(
    attempts: Sequence[Attempt], belief: Belief, handicap: Floats, brackets: dict[int, Bracket], *, hurry: bool
) -> Trial | Settled:
    """While no rate was met: the most promising setting, at ever lower rates; then another."""
    falls = {number: sum(one.number == number for one in attempts) for number in brackets}
    given_up = {number for number, count in falls.items() if count >= _MOST_FALLS} | out_of_contest(attempts)
    left = [number for number in range(len(belief.mean)) if number not in given_up]
    if hurry or not left or len(given_up - out_of_contest(attempts)) >= _MOST_GIVEN_UP:
        return Settled(number=None, why="the budget is spent" if hurry else "no rate meets the objective")
    begun = [number for number in left if number in brackets]
    best = begun[0] if begun else max(left, key=lambda number: float(belief.mean[number] - handicap[number]))
    rate = _FIRST * math.exp(belief.mean[best])
    if best in brackets:
        rate = min(rate, brackets[best].failed_per_s * 0.85 ** (2 ** falls[best] / 2))
    return _trial(best, rate, "looking for a rate that meets it")


def _climb(leader: int, bracket: Bracket, belief: Belief, narrow: float) -> Trial | None:
    """The leader between what it met and what it did not; None where these are near enough."""
    passed, failed = bracket.passed_per_s, bracket.failed_per_s
    if math.isinf(failed):
        if passed >= _MOST_PER_S:
            return None
        believed = math.exp(belief.mean[leader])
        return _trial(leader, min(max(1.15 * passed, 1.03 * believed), 2 * passed, _MOST_PER_S), "how high it goes")
    middle = _rounded(math.sqrt(passed * failed))
    if failed <= narrow * passed or not passed < middle < failed:
        return None
    return _trial(leader, middle, "how high it goes")


def _challenge(
    leader: int, brackets: dict[int, Bracket], attempts: Sequence[Attempt], belief: Belief, handicap: Floats
) -> Trial | None:
    """Another setting above the leader's rate, whichever is expected to gain most; None where none is worth a run."""
    best = math.log(brackets[leader].passed_per_s) - float(handicap[leader])
    gain = expected_gain(Belief(handicap - belief.mean, belief.spread), -best)
    needed = np.exp(best + handicap) * _ABOVE
    out = out_of_contest(attempts) | {leader}
    for number in range(len(gain)):
        beaten = number in brackets and brackets[number].failed_per_s <= needed[number] * 1.01
        if number in out or beaten:
            gain[number] = 0.0
    found = int(np.argmax(gain))
    return _trial(found, float(needed[found]), "may bear more") if gain[found] > _WORTH_TRYING else None


def _trial(number: int, rate_per_s: float, why: str) -> Trial:
    return Trial(number=number, rate_per_s=_rounded(max(rate_per_s, 0.5)), fidelity="short", why=why)


def _rounded(rate_per_s: float) -> float:
    return float(f"{rate_per_s:.4g}")
