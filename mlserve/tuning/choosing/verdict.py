"""What a search found, and how sure that is. Pure functions of its attempts and of the runs they left."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlserve.report.choice import NEAR, Tried, Verdict
from mlserve.tuning.choosing.at_rate import believed_latency, believed_loss, met_settings
from mlserve.tuning.choosing.attempt import Attempt
from mlserve.tuning.choosing.belief import Belief
from mlserve.tuning.choosing.climb import believed_rate, brackets_of
from mlserve.tuning.choosing.contest import Contest, label_of
from mlserve.tuning.choosing.standing import SPENT, Settled, is_confirmed, out_of_contest, proof_of
from mlserve.tuning.choosing.words import blamed_words, missed_words, needed_words, unmeasured_words

if TYPE_CHECKING:
    from mlserve.stats import Floats

__all__ = ["best_so_far", "chance_of_flip", "conclude_search", "importance"]

# The variance of logarithms that differ by 1%.
_ALIKE = 1e-4


def conclude_search(contest: Contest, attempts: Sequence[Attempt], settled: Settled | None) -> Verdict:
    """What `attempts` come to; `settled` is None where the search was cut short."""
    settled = settled or _cut_short(contest, attempts)
    belief = believed_rate(contest, attempts) if contest.seeks_rate else believed_latency(contest, attempts)
    pick = settled.number
    tried = [_tried(contest, attempts, number, pick) for number in dict.fromkeys(one.number for one in attempts)]
    order = sorted(tried, key=lambda one: _place(contest, one))
    chosen = next((one for one in order if one.number == pick), None)
    runner_up = next((one for one in order if one.state == "met"), None) if chosen else None
    pairs = [(one.predicted, one.measured) for one in tried if one.predicted and one.measured]
    proof = proof_of(attempts, pick)
    last = proof[-1] if proof else None
    return Verdict(
        pick=chosen,
        confirmed=settled.confirmed,
        valid=settled.confirmed and last is not None and last.valid,
        rate_per_s=last.rate_per_s if last else 0.0,
        figure=_figure(contest),
        why=settled.why,
        runner_up=runner_up,
        flip=chance_of_flip(contest, attempts, chosen.number, runner_up.number) if chosen and runner_up else None,
        tried=tuple(order),
        untried=unmeasured_words(contest, attempts, belief),
        importance=importance(contest.knobs(), belief),
        near=sum(abs(found / said - 1) <= NEAR for said, found in pairs),
        compared=len(pairs),
        nearest="" if chosen else missed_words(contest, attempts),
        needed="" if chosen else needed_words(contest, attempts, spent=settled.why == SPENT),
    )


def importance(knobs: Mapping[str, Sequence[str]], belief: Belief) -> dict[str, float]:
    """The share of the variance over all settings that each knob explains by itself, the greatest first: the variance
    of its values' means over the whole (first-order effects: Sobol 1993). What knobs do together is in none of them.
    Empty where all settings are alike.
    """
    whole = float(belief.mean.var())
    if whole < _ALIKE:
        return {}
    found = {}
    for name, column in knobs.items():
        values = np.array(column)
        means: Floats = np.zeros(len(values))
        for value in set(column):
            means[values == value] = belief.mean[values == value].mean()
        found[name] = float(means.var()) / whole
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def chance_of_flip(contest: Contest, attempts: Sequence[Attempt], pick: int, other: int) -> float | None:
    """How likely `other` is better than `pick`, by what is believed of both: what was foretold weighs as little as it
    is known badly, runs that were made at once tell most, and none counts more for having been chosen by.

    None where the cost at a rate is the goal: that is known, not measured.
    """
    if contest.seeks_rate:
        belief, sign = believed_rate(contest, attempts), -1.0
        offset = contest.handicap()
    elif contest.aim.goal == "cost":
        return None
    else:
        belief, sign, offset = believed_loss(contest, attempts), 1.0, np.zeros(len(contest.predictions))
    over = belief.over(pick)
    ahead = sign * float(over.mean[other] - offset[other] + offset[pick])
    return 0.5 * math.erfc(ahead / float(over.spread[other]) / math.sqrt(2))


def best_so_far(contest: Contest, attempts: Sequence[Attempt]) -> int | None:
    """The setting that leads, confirmed or not; None where nothing met the objective yet."""
    if contest.seeks_rate:
        handicap = contest.handicap()
        brackets, out = brackets_of(attempts), out_of_contest(attempts)
        passed = {at: one.passed_per_s for at, one in brackets.items() if one.passed_per_s and at not in out}
        return max(passed, key=lambda number: math.log(passed[number]) - float(handicap[number]), default=None)
    loss = believed_loss(contest, attempts)
    return min(met_settings(attempts), key=lambda number: float(loss.mean[number]), default=None)


def _cut_short(contest: Contest, attempts: Sequence[Attempt]) -> Settled:
    """What a search that was stopped has: the best that fresh runs confirmed, for what was proven stays so, however
    much better another looks by now; else the best so far.
    """
    sure = {}
    for number in {one.number for one in attempts} - out_of_contest(attempts):
        proof = proof_of(attempts, number)
        if proof and is_confirmed(number, proof[-1].rate_per_s, attempts):
            sure[number] = proof[-1].rate_per_s
    if not sure:
        return Settled(number=best_so_far(contest, attempts), why="it was stopped before the best was confirmed")
    if contest.seeks_rate:
        handicap = contest.handicap()
        best = max(sure, key=lambda number: math.log(sure[number]) - float(handicap[number]))
    else:
        loss = believed_loss(contest, attempts)
        best = min(sure, key=lambda number: float(loss.mean[number]))
    why = "confirmed by a fresh run; the search was stopped as it went on"
    return Settled(number=best, rate_per_s=sure[best], confirmed=True, why=why)


def _tried(contest: Contest, attempts: Sequence[Attempt], number: int, pick: int | None) -> Tried:
    mine = [one for one in attempts if one.number == number]
    label = label_of(contest.settings[number], contest.settings)
    proof = proof_of(attempts, number)
    last = proof[-1] if proof else None
    ran = [one for one in mine if not one.failure]
    prediction = contest.predictions[number]
    if not ran:
        return Tried(number=number, label=label, state="failed", why=mine[-1].failure)
    bracket = brackets_of(mine).get(number)
    if contest.seeks_rate:
        whole = bracket is not None and bracket.passed_per_s and bracket.failed_per_s < math.inf
        measured = math.sqrt(bracket.passed_per_s * bracket.failed_per_s) if bracket and whole else None
        predicted: float | None = prediction.max_rate_per_s
    else:
        by_itself = [one for one in ran if not one.in_turns] or ran
        measured = next((one.percentile_s for one in reversed(by_itself) if one.percentile_s), None)
        predicted = prediction.objective_s if math.isfinite(prediction.objective_s) else None
    if contest.seeks_rate:
        met = last is not None and bracket is not None and bracket.passed_per_s > 0
    else:
        met = last is not None and number in met_settings(attempts)
    value = _value(contest, last, mine, picked=number == pick) if last and met else (None, None, None)
    why = "" if number == pick else _why(contest, mine, met=met)
    return Tried(
        number=number,
        label=label,
        state="picked" if number == pick else "met" if met else "missed",
        why=why,
        value=value[0],
        low=value[1],
        high=value[2],
        predicted=predicted,
        measured=measured,
        runs=len(ran),
    )


def _value(
    contest: Contest, last: Attempt, mine: Sequence[Attempt], *, picked: bool
) -> tuple[float | None, float | None, float | None]:
    """What counts of it, and its interval. Of the pick that is what `last` proved, though a shorter run went higher."""
    number = last.number
    match contest.aim.goal:
        case "latency":
            return last.percentile_s, last.low_s, last.high_s
        case "energy":
            return last.joules_a_request, None, None
        case "cost" if not contest.seeks_rate:
            return contest.cost_at(number, last.rate_per_s), None, None
    bracket = brackets_of(mine)[number]
    passed, failed = bracket.passed_per_s, bracket.failed_per_s
    passed = min(passed, last.rate_per_s) if picked else passed
    if contest.aim.goal == "cost" and passed:
        low = contest.cost_at(number, failed) if failed < math.inf else None
        return contest.cost_at(number, passed), low, contest.cost_at(number, passed)
    if contest.aim.goal == "goodput":
        return last.good_per_s, None, None
    return passed or last.rate_per_s, passed or None, failed if failed < math.inf else None


def _why(contest: Contest, mine: Sequence[Attempt], *, met: bool) -> str:
    last = mine[-1]
    if last.failure:
        return last.failure
    if met:
        return "met the objective; another is better"
    missed = [one for one in mine if not one.met and not one.failure and not one.blame]
    if missed:
        fresh = [one for one in missed if one.trial.fidelity == "confirm"]
        words = missed_words(contest, fresh or missed, with_label=False)
        return f"a fresh run did not confirm it: {words}" if fresh else words
    return blamed_words(last) if last.blame else "met the objective; no VALID run confirmed it"


def _place(contest: Contest, one: Tried) -> tuple[int, float]:
    """The pick first, then those that met the objective, the best first."""
    if one.value is None:
        return ({"picked": 0, "met": 1, "missed": 2, "failed": 3}[one.state], one.measured or math.inf)
    highest = contest.aim.goal in ("throughput", "goodput")
    return (0 if one.state == "picked" else 1, -one.value if highest else one.value)


def _figure(contest: Contest) -> str:
    return {
        "throughput": "requests/s",
        "goodput": "good answers/s",
        "latency": contest.aim.objective.name,
        "cost": "price of 1,000" if contest.aim.price_per_h is not None else "machine seconds for 1,000",
        "energy": "J a request",
    }[contest.aim.goal]
