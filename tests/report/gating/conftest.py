"""What the tests of the gate share: measurements of repeated runs, made from numbers."""

import pytest

from mlserve.report.gating.evidence import Pair
from mlserve.report.measurement import group

RUNS = 6


@pytest.fixture(scope="session")
def side(made_runs):
    """A measurement of repeated runs, each in a minute of its own: two such sides were taken in turn."""

    def make(load=None, *, runs=RUNS, seed=0, minute=0, duration_s=4.0, **settings):
        load = load or made_runs.Load()
        made = [
            made_runs.record(
                load, seed=seed + number, minute=minute + number, duration_s=duration_s, warm_up_s=0.0, **settings
            )
            for number in range(runs)
        ]
        (measurement,) = group(made)
        return measurement

    return make


@pytest.fixture(scope="session")
def pairs_of():
    """Two sides as pairs of runs."""

    def pairs(before, after, rates=None):
        return [Pair(one, other, rates) for one, other in zip(before.runs, after.runs, strict=True)]

    return pairs
