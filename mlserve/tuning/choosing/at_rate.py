"""Which setting to try next at a rate that is given, and when enough is known. Pure.

Short runs go to the setting that is expected to gain most over the best so far, by what is believed of all; where the
two best cannot be told apart, longer runs decide; one of fresh arrivals confirms the winner.
"""

import math
from collections.abc import Sequence

import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.choosing.attempt import Attempt, Fidelity, Trial
from mlserve.tuning.choosing.belief import Belief, Seen, believe, expected_gain, resemblance
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

__all__ = ["believed_latency", "believed_loss", "met_settings", "next_at_rate"]

_WORTH_TRYING = 0.005
"""An expected gain below this share is none: nobody would notice it."""
_CLOSE = 0.02
"""Two settings that differ by less than this share are as good as each other."""
_LITTLE_HOPE, _FEWEST_TRIED = 0.02, 3
_FLIP = 0.2
# What a setting's latency differs by from run to run, and how far beyond the limit a latency without end lies.
_RUN_TO_RUN, _FAR = 0.04, 3.0
# The first measurement tells what a prediction of energy is counted in.
_UNKNOWN_SCALE = 2.0


def next_at_rate(contest: Contest, attempts: Sequence[Attempt], *, hurry: bool) -> Trial | Settled:
    """The run to make after `attempts`, or what they come to. `hurry`: nothing new is begun, the best is confirmed."""
    again = died(attempts) or blamed(attempts)
    if again is not None and not hurry:
        return again
    loss = believed_loss(contest, attempts)
    met = met_settings(attempts)
    found = None if hurry else _untried(contest, attempts, loss, met) or _undecided(contest, attempts, loss, met)
    if found is not None:
        return Trial(number=found[0], rate_per_s=_rate(contest), fidelity=found[1], why=found[2])
    if not met:
        return Settled(number=None, why="nothing meets the objective" if not hurry else SPENT)
    order = loss.mean + 1e-3 * believed_latency(contest, attempts).mean
    # Without time for more, what is confirmed is enough, even where another now looks a little better.
    sure = [number for number in met if is_confirmed(number, _rate(contest), attempts)] if hurry else []
    best = min(sure or met, key=lambda number: (float(order[number]), number))
    return confirming(best, _rate(contest), attempts)


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
    for one in attempts:
        if one.failure or one.blame:
            continue
        endless = one.percentile_s is None
        value = _FAR * contest.aim.objective.limit_s if one.percentile_s is None else one.percentile_s
        seen.append(Seen(one.number, math.log(value), 0.5 if endless else math.hypot(one.error, _RUN_TO_RUN)))
    return believe(contest.log_latency_s(), resemblance(contest.settings), seen)


def believed_loss(contest: Contest, attempts: Sequence[Attempt]) -> Belief:
    """Of the logarithm of what is to be as low as can be."""
    match contest.aim.goal:
        case "cost":
            cores = [float(contest.cores_of(number)) for number in range(len(contest.predictions))]
            return Belief(np.log(cores), np.full(len(cores), 1e-6))
        case "energy":
            seen = [Seen(one.number, math.log(one.joules_a_request), 0.1) for one in attempts if one.joules_a_request]
            return believe(contest.log_energy_j(), resemblance(contest.settings) + _UNKNOWN_SCALE**2, seen)
    return believed_latency(contest, attempts)


def _rate(contest: Contest) -> float:
    assert contest.aim.rate_per_s is not None
    return contest.aim.rate_per_s


def _untried(
    contest: Contest, attempts: Sequence[Attempt], loss: Belief, met: Sequence[int]
) -> tuple[int, Fidelity, str] | None:
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
        return best, "short", "looking for one that meets it"
    if met and gain[best] > _WORTH_TRYING:
        return best, "short", "may be better"
    return None


def _gain(contest: Contest, loss: Belief, hope: Floats, met: Sequence[int]) -> Floats:
    """[n] what a run of each setting is expected to gain; while nothing has met the objective, how likely it does."""
    if not met:
        return hope - 1e-3 * loss.mean
    gain = expected_gain(loss, min(float(loss.mean[number]) for number in met))
    return gain if contest.aim.goal == "latency" else gain * hope


def _undecided(
    contest: Contest, attempts: Sequence[Attempt], loss: Belief, met: Sequence[int]
) -> tuple[int, Fidelity, str] | None:
    """A long run of one of the two best, where they may as well be the other way round."""
    if contest.aim.goal == "cost" or len(met) < 2:
        return None
    first, second = sorted(met, key=lambda number: float(loss.mean[number]))[:2]
    apart = float(loss.mean[second] - loss.mean[first])
    unsure = math.hypot(loss.spread[first], loss.spread[second])
    if apart < _CLOSE or 0.5 * math.erfc(apart / unsure / math.sqrt(2)) < _FLIP:
        return None
    longer = {one.number for one in attempts if one.trial.fidelity != "short"}
    shorter = [number for number in (first, second) if number not in longer and not spoilt(number, attempts)]
    return (shorter[0], "long", "the two best are close") if shorter else None
