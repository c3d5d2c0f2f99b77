"""The search itself, without a server: trial after trial until enough is known or the budget is spent. Pure but for
what makes the runs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median_low

import msgspec

from mlserve.stats import minimum_samples
from mlserve.tuning.choosing.at_rate import comparison_at_rate, next_at_rate
from mlserve.tuning.choosing.attempt import Attempt, Trial
from mlserve.tuning.choosing.climb import next_climb
from mlserve.tuning.choosing.contest import Contest
from mlserve.tuning.choosing.standing import Settled, blamed, died, unconfirmed

__all__ = ["Pace", "choose", "next_trial"]

# Stops a search that would go on for ever, whatever it was asked; as many more may confirm what it found.
_MOST_ATTEMPTS = 500
# Longer ones leave no time for others, and shorter ones have too few requests (1,500 simulated searches of each).
_AT_ONCE = 1.5


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How long runs are, and how long all of them may take together (seconds). `overhead_s` is what a run takes beside
    its load until some have shown it: starting the server, the generators, and calibrating.
    """

    budget_s: float
    short_s: float = 4.0
    long_s: float = 20.0
    warm_up_s: float = 1.0
    overhead_s: float = 8.0

    def duration_s(self, trial: Trial, least_requests: int) -> float:
        """How long to measure. What confirms goes on until so many requests were surely due; others are a little longer
        than planned where the rate is so low that too few would be seen; of those that are made at once, each has its
        part of a time that is a little longer than that of one.
        """
        planned_s = self.short_s if trial.fidelity == "short" else self.long_s
        if trial.beside:
            planned_s = max(self.short_s, _AT_ONCE * planned_s / (1 + len(trial.beside)))
        enough_s = _surely(least_requests) / trial.rate_per_s
        return max(planned_s, enough_s if trial.fidelity == "confirm" else min(enough_s, 2 * planned_s))

    def run_s(self, duration_s: float, attempts: Sequence[Attempt] = ()) -> float:
        """What a run of `duration_s` takes with everything, as those so far tell: the lower half of them, for the first
        over a protocol calibrates the generators.
        """
        found = [one.seconds for one in attempts if one.trial.fidelity == "short" and not one.failure]
        usual_s = max(0.0, median_low(found) - self.short_s - self.warm_up_s) if found else self.overhead_s
        return self.warm_up_s + duration_s + usual_s

    def least_budget_s(self, rate_per_s: float, least_requests: int) -> float:
        """In what one short run at `rate_per_s` and one that confirms it fit; see `affords`."""
        short, confirm = (Trial(number=0, rate_per_s=rate_per_s, fidelity=one) for one in ("short", "confirm"))
        both_s = sum(self.run_s(self.duration_s(one, least_requests)) for one in (short, confirm))
        return both_s - self.run_s(self.long_s)

    def affords(
        self, trial: Trial, attempts: Sequence[Attempt], least_requests: int, then: Trial | None = None
    ) -> bool:
        """Whether `trial` leaves time for what comes `then`, if anything, and to confirm the best. One run is always
        made; what confirms may go over the budget by a long run.
        """
        if not attempts or attempts[-1].trial.beside:  # of runs that are made at once all are there
            return True
        left_s = self.budget_s - sum(one.seconds for one in attempts)
        confirm = msgspec.structs.replace(trial, fidelity="confirm", beside=())
        confirm_s = self.run_s(self.duration_s(confirm, least_requests), attempts)
        if trial.fidelity == "confirm":
            return confirm_s <= left_s + self.run_s(self.long_s, attempts)
        runs_s = sum(
            (1 + len(one.beside)) * self.run_s(self.duration_s(one, least_requests), attempts)
            for one in (trial, then)
            if one is not None
        )
        return runs_s + confirm_s <= left_s


def choose(
    contest: Contest, pace: Pace, attempt: Callable[[Trial, int], Attempt]
) -> Iterator[tuple[list[Attempt], Settled | None]]:
    """Makes one run after the other by `attempt` (a trial and its number, from 0), and yields all so far after each;
    at last with what they come to.
    """
    attempts: list[Attempt] = []
    while True:
        found = next_trial(contest, pace, attempts)
        if isinstance(found, Settled):
            yield attempts, found
            return
        attempts.append(attempt(found, len(attempts)))
        yield attempts, None


def next_trial(contest: Contest, pace: Pace, attempts: Sequence[Attempt]) -> Trial | Settled:
    """The run to make after `attempts`, or what they come to."""
    step = next_climb if contest.seeks_rate else next_at_rate
    least = minimum_samples(contest.aim.objective.percentile)
    found = step(contest, attempts, hurry=False)
    if isinstance(found, Settled):
        return found
    if (comparison := _due_comparison(contest, pace, attempts, found, least)) is not None:
        return comparison
    if not pace.affords(found, attempts, least) or len(attempts) >= _MOST_ATTEMPTS:
        found = step(contest, attempts, hurry=True)
    if isinstance(found, Settled) or (pace.affords(found, attempts, least) and len(attempts) < 2 * _MOST_ATTEMPTS):
        return found
    return unconfirmed(found.number, found.rate_per_s, attempts)


def _due_comparison(
    contest: Contest, pace: Pace, attempts: Sequence[Attempt], found: Trial, least_requests: int
) -> Trial | None:
    """The best and their rivals at once, as many as there is time for, where they are to be compared now, and where
    `found`, a short run, would leave no time for that. None where it would, and where there is nothing to compare.
    """
    if contest.seeks_rate or found.fidelity == "confirm" or (attempts and attempts[-1].trial.beside):
        return None
    if died(attempts) or blamed(attempts):  # it is made again before anything else
        return None
    fewest = comparison_at_rate(contest, attempts, most_rivals=1)
    if fewest is None or not fewest.beside:
        return None
    if found.fidelity == "short" and pace.affords(found, attempts, least_requests, then=fewest):
        return None
    for comparison in (comparison_at_rate(contest, attempts), fewest):
        if comparison is not None and pace.affords(comparison, attempts, least_requests):
            return comparison
    return None


def _surely(requests: int) -> float:
    """How many to expect so that at least `requests` come: four standard deviations of a Poisson count more."""
    return requests + 4 * math.sqrt(requests)
