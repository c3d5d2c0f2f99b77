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
from mlserve.tuning.choosing.standing import SPENT, Settled, blamed, confirming, died, out_of_contest, refuted
from mlserve.tuning.search import Bracket, Step, bracket_of

__all__ = ["believed_rate", "brackets_of", "held_per_s", "next_climb"]

_WORTH_TRYING = 0.005
_COARSE, _FINE = 1.12, 1.05
_ABOVE = 1.02
"""How much more than the leader a challenger must bear."""
_BELOW_REFUTED = 0.97
_FIRST = 0.9
_FIRST_MOST_PER_S = 10_000.0
"""Half of what one generator holds (docs/benchmarking.md, "Measured"); from there on its own use of its core tells."""
_MOST_CPU, _TELLING_CPU = 0.75, 0.1
"""Of its core a generator may use 80%; below a tenth, what it uses is not that of its requests."""
_MOST_FALLS, _MOST_GIVEN_UP = 6, 3
_MOST_PER_S = 1e6


def next_climb(contest: Contest, attempts: Sequence[Attempt], *, hurry: bool) -> Trial | Settled:
    """The run to make after `attempts`, or what they come to. `hurry`: nothing new is begun, the best is confirmed."""
    brackets = brackets_of(attempts)
    leader = _leader(brackets, contest.handicap(), out_of_contest(attempts))
    # Before any rate was met, one that the generator could not offer gives way to a lower one.
    again = died(attempts) or (blamed(attempts) if leader is not None else None)
    if again is not None and not hurry:
        return again
    belief, handicap = believed_rate(contest, attempts), contest.handicap()
    if leader is None:
        return _first(attempts, belief, handicap, brackets, hurry=hurry)
    if not hurry:
        found = (
            _climb(leader, brackets[leader], belief, attempts, _COARSE)
            or _challenge(leader, brackets, attempts, belief, handicap)
            or _climb(leader, brackets[leader], belief, attempts, _FINE)
        )
        if found is not None:
            return found
    return confirming(leader, brackets[leader].passed_per_s, attempts)


def brackets_of(attempts: Sequence[Attempt]) -> dict[int, Bracket]:
    """Between which rates each setting's highest lies. A rate that the generator could not offer twice is not met, nor
    one that a run was to confirm and did not.
    """
    steps: dict[int, list[Step]] = {}
    for one in attempts:
        if one.failure:
            continue
        mine = steps.setdefault(one.number, [])
        once = [step for step in mine if step.rate_per_s == one.rate_per_s and step.blame]
        blame = one.blame if one.trial.fidelity == "confirm" or not once else ""
        mine.append(Step(rate_per_s=one.rate_per_s, met=one.met, sure=one.sure, blame=blame))
    return {number: _capped(bracket_of(mine), mine, refuted(number, attempts)) for number, mine in steps.items()}


def held_per_s(attempts: Sequence[Attempt]) -> float:
    """What the generator can offer, by the share of its core that runs so far took; infinite while none shows it."""
    telling = [one for one in attempts if one.generator_cpu >= _TELLING_CPU and not one.failure]
    return max((_MOST_CPU * one.rate_per_s / one.generator_cpu for one in telling), default=math.inf)


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


def _capped(bracket: Bracket, steps: Sequence[Step], refuted_per_s: float) -> Bracket:
    """With what is near the lowest rate that was refuted, or above, as failed, whatever short runs said of it: else the
    next one to be confirmed would be a hair below, and refuted as well.
    """
    failed_per_s = _BELOW_REFUTED * refuted_per_s
    if failed_per_s >= bracket.failed_per_s:
        return bracket
    below = [step for step in steps if step.rate_per_s < failed_per_s]
    return Bracket(passed_per_s=bracket_of(below).passed_per_s, failed_per_s=failed_per_s)


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
    falls = {number: _missed_in_a_row(number, attempts) for number in brackets}
    given_up = {number for number, count in falls.items() if count >= _MOST_FALLS} | out_of_contest(attempts)
    left = [number for number in range(len(belief.mean)) if number not in given_up]
    if hurry or not left or len(given_up - out_of_contest(attempts)) >= _MOST_GIVEN_UP:
        return Settled(number=None, why=SPENT if hurry else "no rate meets the objective")
    begun = [number for number in left if number in brackets]
    best = begun[0] if begun else max(left, key=lambda number: float(belief.mean[number] - handicap[number]))
    rate = min(_FIRST * math.exp(belief.mean[best]), _FIRST_MOST_PER_S, held_per_s(attempts))
    if best in brackets:
        lowest = min(one.rate_per_s for one in attempts if one.number == best and not one.failure)
        rate = min(rate, min(lowest, brackets[best].failed_per_s) * 0.85 ** (2 ** falls[best] / 2))
    return _trial(best, rate, "looking for a rate that meets it")


def _missed_in_a_row(number: int, attempts: Sequence[Attempt]) -> int:
    """How many of a setting's runs missed since the last that met the objective, at rates that one had met, if any."""
    mine = [one for one in attempts if one.number == number and not one.failure]
    met = [place for place, one in enumerate(mine) if one.met]
    highest = max((mine[place].rate_per_s for place in met), default=math.inf)
    return sum(one.rate_per_s <= highest for one in mine[met[-1] + 1 if met else 0 :])


def _climb(leader: int, bracket: Bracket, belief: Belief, attempts: Sequence[Attempt], narrow: float) -> Trial | None:
    """The leader between what it met and what it did not; None where these are near enough."""
    passed, failed = bracket.passed_per_s, bracket.failed_per_s
    if math.isinf(failed):
        most = min(_MOST_PER_S, held_per_s(attempts))
        if passed * narrow >= most:
            return None
        believed = math.exp(belief.mean[leader])
        return _trial(leader, min(max(1.15 * passed, 1.03 * believed), 2 * passed, most), "how high it goes")
    middle = _rounded(math.sqrt(passed * failed))
    if failed <= narrow * passed or not passed < middle < failed:
        return None
    return _trial(leader, middle, "how high it goes")


def _challenge(
    leader: int, brackets: dict[int, Bracket], attempts: Sequence[Attempt], belief: Belief, handicap: Floats
) -> Trial | None:
    """Another setting above the leader's rate, whichever is expected to gain most; None where none is worth a run."""
    best = math.log(brackets[leader].passed_per_s) - float(handicap[leader])
    gain = expected_gain(Belief(handicap - belief.mean, belief.covariance), -best)
    needed = np.exp(best + handicap) * _ABOVE
    out, most = out_of_contest(attempts) | {leader}, held_per_s(attempts)
    for number in range(len(gain)):
        beaten = number in brackets and brackets[number].failed_per_s <= needed[number] * 1.01
        if number in out or beaten or needed[number] > most:
            gain[number] = 0.0
    found = int(np.argmax(gain))
    return _trial(found, float(needed[found]), "may bear more") if gain[found] > _WORTH_TRYING else None


def _trial(number: int, rate_per_s: float, why: str) -> Trial:
    return Trial(number=number, rate_per_s=_rounded(max(rate_per_s, 0.5)), fidelity="short", why=why)


def _rounded(rate_per_s: float) -> float:
    return float(f"{rate_per_s:.4g}")
