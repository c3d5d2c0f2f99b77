"""Which setting to try next at a rate that is given, and when enough is known. Pure.

Short runs go to the setting that is expected to gain most over the best so far, by what is believed of all; where the
best cannot be told apart, longer runs of them decide, made at once in turns; one of fresh arrivals confirms the winner.
"""

import math
from collections.abc import Sequence

import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.choosing.attempt import Attempt, Fidelity, Trial
from mlserve.tuning.choosing.belief import MOMENT, Belief, Seen, believe, expected_gain, resemblance
from mlserve.tuning.choosing.contest import Contest
from mlserve.tuning.choosing.standing import (
    SPENT,
    Settled,
    blamed,
    confirming,
    died,
    is_confirmed,
    out_of_contest,
    refuted,
    spoilt,
    voice_of,
)

__all__ = ["believed_latency", "believed_loss", "comparison_at_rate", "met_settings", "next_at_rate"]

_WORTH_TRYING = 0.005
"""An expected gain below this share is none: nobody would notice it."""
_LITTLE_HOPE, _FEWEST_TRIED = 0.02, 3
# Requests queue less where loads take turns, so that such runs tell how settings compare, and little else.
_IN_TURNS = 0.15
# How far beyond the limit a latency without end lies.
_FAR = 3.0
# The first measurement tells what a prediction of energy is counted in.
_UNKNOWN_SCALE = 2.0


def next_at_rate(contest: Contest, attempts: Sequence[Attempt], *, hurry: bool) -> Trial | Settled:
    """The run to make after `attempts`, or what they come to. `hurry`: nothing new is begun, the best is confirmed."""
    if attempts and (beside := attempts[-1].trial.next_beside) is not None:
        return beside
    again = died(attempts) or blamed(attempts)
    if again is not None and not hurry:
        return again
    loss = believed_loss(contest, attempts)
    met = met_settings(attempts)
    found = None if hurry else _untried(contest, attempts, loss, met) or comparison_at_rate(contest, attempts)
    if found is not None:
        return found
    if not met:
        return Settled(number=None, why="nothing meets the objective" if not hurry else SPENT)
    order = loss.mean + 1e-3 * believed_latency(contest, attempts).mean
    # Without time for more, what is confirmed is enough, even where another now looks a little better.
    sure = [number for number in met if is_confirmed(number, _rate(contest), attempts)] if hurry else []
    best = min(sure or met, key=lambda number: (float(order[number]), number))
    return confirming(best, _rate(contest), attempts)


def comparison_at_rate(contest: Contest, attempts: Sequence[Attempt], most_rivals: int = 2) -> Trial | None:
    """Long runs of the best and of those that may as well be better, `most_rivals` at most, each of which has one: for
    the latency, where what tells them apart is less than what a machine differs by from run to run, at once. None where
    nothing is to be compared.
    """
    loss = believed_loss(contest, attempts)
    met = met_settings(attempts)
    fit = sorted((one for one in met if not spoilt(one, attempts)), key=lambda number: float(loss.mean[number]))
    if contest.aim.goal == "cost" or len(fit) < 2:
        return None
    best, *others = fit
    gain = expected_gain(loss.over(best), 0.0)
    rivals = [number for number in others if gain[number] > _WORTH_TRYING][:most_rivals]
    longer = {one.number for one in attempts if one.trial.fidelity != "short"}
    new = [number for number in (best, *rivals) if number not in longer]
    if not set(new) & set(rivals):
        return None
    if contest.aim.goal == "latency":
        return _trial(contest, best, "long", "the best are close", beside=tuple(rivals))
    return _trial(contest, new[0], "long", "the best are close")


def met_settings(attempts: Sequence[Attempt]) -> list[int]:
    """The settings whose best run so far met the objective, unless those that were to confirm it say otherwise."""
    last: dict[int, Attempt] = {}
    for one in attempts:
        if not one.failure and not one.blame:
            held = last.get(one.number)
            if held is None or one.requests >= held.requests:
                last[one.number] = one
    out = out_of_contest(attempts)
    confirmed = {one.number for one in attempts if one.trial.fidelity == "confirm" and voice_of(one) == "met"}
    return [
        number
        for number, one in last.items()
        if (one.met or number in confirmed) and number not in out and math.isinf(refuted(number, attempts))
    ]


def believed_latency(contest: Contest, attempts: Sequence[Attempt]) -> Belief:
    """Of the logarithm of the objective's percentile at the aim's rate."""
    seen = []
    moment = 0
    for place, one in enumerate(attempts):
        moment = moment if one.in_turns and place and attempts[place - 1].trial.beside else place
        if one.failure or one.blame:
            continue
        if one.percentile_s is None:
            seen.append(Seen(one.number, math.log(_FAR * contest.aim.objective.limit_s), 0.5))
        else:
            common = _IN_TURNS if one.in_turns else MOMENT
            seen.append(Seen(one.number, math.log(one.percentile_s), one.error, common, moment))
    return believe(contest.log_latency_s(), resemblance(contest.settings), seen)


def believed_loss(contest: Contest, attempts: Sequence[Attempt]) -> Belief:
    """Of the logarithm of what is to be as low as can be."""
    match contest.aim.goal:
        case "cost":
            cores = [float(contest.cores_of(number)) for number in range(len(contest.predictions))]
            return Belief(np.log(cores), 1e-12 * np.eye(len(cores)))
        case "energy":
            seen = [Seen(one.number, math.log(one.joules_a_request), 0.1) for one in attempts if one.joules_a_request]
            return believe(contest.log_energy_j(), resemblance(contest.settings) + _UNKNOWN_SCALE**2, seen)
    return believed_latency(contest, attempts)


def _rate(contest: Contest) -> float:
    assert contest.aim.rate_per_s is not None
    return contest.aim.rate_per_s


def _untried(contest: Contest, attempts: Sequence[Attempt], loss: Belief, met: Sequence[int]) -> Trial | None:
    """A short run of the setting that promises most."""
    tried = {one.number for one in attempts}
    left = np.array([number not in tried for number in range(len(contest.predictions))])
    if not left.any():
        return None
    hope = believed_latency(contest, attempts).below(math.log(contest.aim.objective.limit_s))
    gain = _gain(contest, loss, hope, met)
    gain[~left] = -1.0
    best = int(np.argmax(gain))
    if not met and (hope[best] >= _LITTLE_HOPE or len(tried) < _FEWEST_TRIED):
        return _trial(contest, best, "short", "looking for one that meets it")
    if met and gain[best] > _WORTH_TRYING:
        return _trial(contest, best, "short", "may be better")
    return None


def _gain(contest: Contest, loss: Belief, hope: Floats, met: Sequence[int]) -> Floats:
    """[n] what a run of each setting is expected to gain; while nothing has met the objective, how likely it does."""
    if not met:
        return hope - 1e-3 * loss.mean
    gain = expected_gain(loss, min(float(loss.mean[number]) for number in met))
    return gain if contest.aim.goal == "latency" else gain * hope


def _trial(contest: Contest, number: int, fidelity: Fidelity, why: str, beside: tuple[int, ...] = ()) -> Trial:
    return Trial(number=number, rate_per_s=_rate(contest), fidelity=fidelity, why=why, beside=beside)
