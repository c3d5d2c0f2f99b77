"""What is believed of every setting: what was foretold, corrected by what was measured of it and of those like it.
Pure.

The error of a prediction, as a logarithm, is a sum of parts that settings share: one of all, one of those of the same
version and engine, one of each protocol, and so on, and one of its own; each part is normal with a spread that is known
beforehand. Given some measurements the rest follows (Gaussian process regression: Rasmussen and Williams 2006, 2.2).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlserve.stats import Floats
from mlserve.tuning.setting import Setting

__all__ = ["MOMENT", "Belief", "Seen", "believe", "expected_gain", "resemblance"]

# By how much, as a share, predictions err together, and what a knob's value adds to that.
_ALL, _OWN = 0.25, 0.15
MOMENT = 0.04
"""By how much, as a share, a latency differs from run to run, whatever is measured: runs made at once share that."""
# How many measurements the spreads that are known beforehand are worth.
_TRUST = 2.0
_SPREADS: Mapping[str, float] = {
    "model": 0.15,
    "protocol": 0.10,
    "processes": 0.10,
    "max_batch_rows": 0.06,
    "max_delay_ms": 0.05,
}


class Seen(NamedTuple):
    """A measurement of setting `number`: a logarithm, and its standard error.

    Those with the same `moment` err together by `common` beside that; None for a measurement that shares it with none.
    """

    number: int
    value: float
    error: float
    common: float = 0.0
    moment: int | None = None


class Belief(NamedTuple):
    """Of logarithms: their mean [n] and their covariance [n, n]."""

    mean: Floats
    covariance: Floats

    @property
    def spread(self) -> Floats:
        """[n] standard deviations."""
        found: Floats = np.sqrt(np.maximum(np.diag(self.covariance), 1e-8))
        return found

    def over(self, number: int) -> "Belief":
        """How much each lies above `number`."""
        shared = self.covariance[number]
        covariance = self.covariance - shared[:, None] - shared[None, :] + shared[number]
        return Belief(self.mean - self.mean[number], covariance)

    def below(self, limit: float) -> Floats:
        """[n] the probability to be below `limit`."""
        from scipy.special import ndtr

        found: Floats = ndtr((limit - self.mean) / self.spread)
        return found


def resemblance(settings: Sequence[Setting]) -> Floats:
    """[n, n] the covariance of the predictions' errors."""
    columns: dict[str, list[Hashable]] = {
        "model": [(one.model, one.options.engine, one.options.device) for one in settings],
        "protocol": [one.protocol for one in settings],
        "processes": [(one.options.workers, one.options.threads) for one in settings],
        "max_batch_rows": [one.options.max_batch_rows for one in settings],
        "max_delay_ms": [one.options.max_delay_ms for one in settings],
    }
    shared = np.full((len(settings), len(settings)), _ALL**2)
    for name, column in columns.items():
        kinds = list(dict.fromkeys(column))
        codes = np.array([kinds.index(value) for value in column])
        shared += _SPREADS[name] ** 2 * (codes[:, None] == codes[None, :])
    return shared + _OWN**2 * np.eye(len(settings))


def believe(foretold: Floats, covariance: Floats, seen: Sequence[Seen]) -> Belief:
    """What `seen` makes of what was `foretold` [n]."""
    if not seen:
        return Belief(foretold, covariance)
    numbers = [one.number for one in seen]
    surprise = np.array([one.value for one in seen]) - foretold[numbers]
    noisy = covariance[np.ix_(numbers, numbers)] + _errors(seen)
    weights = np.linalg.solve(noisy, covariance[numbers])
    mean = foretold + weights.T @ surprise
    left = covariance - weights.T @ covariance[numbers]
    # Predictions may be worse than they use to be, which what was seen tells: one factor for all spreads.
    misfit = float(surprise @ np.linalg.solve(noisy, surprise))
    factor = max(1.0, (_TRUST + misfit) / (_TRUST + len(seen)))
    return Belief(mean, factor * left)


def _errors(seen: Sequence[Seen]) -> Floats:
    """[s, s] the covariance of the measurements' errors."""
    moments = [-1 - place if one.moment is None else one.moment for place, one in enumerate(seen)]
    together = np.equal.outer(moments, moments)
    common = np.array([one.common for one in seen])
    errors: Floats = together * np.outer(common, common) + np.diag([one.error**2 for one in seen])
    return errors


def expected_gain(belief: Belief, best: float) -> Floats:
    """[n] by how much each is expected to fall below `best`, nothing where it does not (expected improvement:
    Jones, Schonlau and Welch 1998).
    """
    from scipy.special import ndtr

    ahead = (best - belief.mean) / belief.spread
    gain: Floats = belief.spread * (ahead * ndtr(ahead) + np.exp(-(ahead**2) / 2) / math.sqrt(2 * math.pi))
    return gain
