"""The fewest layers that must stay in higher precision for a variant to hold its accuracy. Pure: the caller makes and
measures the variants.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import msgspec

__all__ = ["Restored", "Trial", "restore_accuracy"]

Make = Callable[[tuple[str, ...]], "Trial | None"]
"""(nodes kept in higher precision) -> what came of it; None where nothing would be left to make lower."""


class Trial(msgspec.Struct, frozen=True):
    """One variant that was made and measured: a point of the trade-off curve.

    `kept` are the nodes left in higher precision, `holds` is the verdict on its accuracy.
    """

    kept: tuple[str, ...]
    holds: bool
    loss: float
    loss_high: float
    size_bytes: int
    p50_s: tuple[float, ...] = ()


class Restored(msgspec.Struct, frozen=True):
    """Every trial, by how many nodes were kept, and of those that hold the one that keeps the fewest: None if none.

    `exhausted` says that trials ran out before it was sure that fewer would not do.
    """

    trials: tuple[Trial, ...]
    winner: Trial | None
    exhausted: bool

    @property
    def monotone(self) -> bool:
        """Whether more kept nodes never lost more: what the search takes for granted to need few trials.

        Where it is not so, fewer nodes than the winner's might do too. That the winner holds is measured in any case.
        """
        losses = [trial.loss for trial in self.trials]
        return all(later <= earlier for earlier, later in itertools.pairwise(losses))


def restore_accuracy(failed: Trial, ranking: Sequence[str], make: Make, *, max_trials: int = 12) -> Restored:
    """Keeps the most sensitive nodes in higher precision, as few of `ranking` (most sensitive first) as hold.

    `failed` is the variant that keeps none and does not hold. Numbers of kept nodes grow by a constant factor, two or
    as much more as half of `max_trials` needs to reach all but one node; then the gap between the last that failed and
    the first that held is halved until it is closed or `max_trials` variants were made.

    Trials that are judged on the same rows make the winner's interval a little too good: it is the one of several that
    held. Measured again on rows that took no part in the search it would not be.
    """
    search = _Search(failed, tuple(ranking), make, max_trials)
    fewest, enough = 0, len(ranking)
    for number in _gallop(len(ranking) - 1, max_trials):
        if search.spent:
            break
        if search.is_enough(number):
            enough = number
            break
        fewest = number
    while enough - fewest > 1 and not search.spent:
        middle = (fewest + enough) // 2
        if search.is_enough(middle):
            enough = middle
        else:
            fewest = middle
    trials = tuple(search.trials[number] for number in sorted(search.trials))
    winner = next((trial for trial in trials if trial.holds), None)
    return Restored(trials, winner, exhausted=enough - fewest > 1)


class _Search:
    def __init__(self, failed: Trial, ranking: tuple[str, ...], make: Make, max_trials: int) -> None:
        self.trials = {len(failed.kept): failed}
        self._ranking, self._make, self._left = ranking, make, max_trials

    @property
    def spent(self) -> bool:
        return self._left <= 0

    def is_enough(self, number: int) -> bool:
        """Whether the variant that keeps the first `number` nodes holds, or cannot be made as nothing would be left."""
        self._left -= 1
        trial = self._make(self._ranking[:number])
        if trial is None:
            return True
        self.trials[number] = trial
        return trial.holds


def _gallop(most: int, max_trials: int) -> list[int]:
    """1 to `most` by a constant factor of two or more, in at most half of `max_trials` steps."""
    if most < 1:
        return []
    steps = min(max(2, max_trials // 2), math.ceil(math.log2(most)) + 1)
    if steps == 1 or most == 1:
        return [1]
    factor = most ** (1 / (steps - 1))
    return sorted({min(most, max(number, round(factor**number))) for number in range(1, steps)} | {1, most})
