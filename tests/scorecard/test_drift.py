"""Whether a load wears a server out."""

import math

import numpy as np
import pytest
from scorecard.drift import quarters
from scorecard.driver import Driven, Load
from scorecard.judging import Answered

SECONDS, COUNT = 20.0, 4000


def driven(latency_s):
    """What a load of 20 s found whose requests took `latency_s`, of the instant at which each was due."""
    due_s = np.arange(COUNT) * SECONDS / COUNT
    took_s = np.random.default_rng(0).gamma(4.0, latency_s(due_s) / 4)
    answers = [
        Answered(number, "http", "", due, due, due + took, "ok", "200", "1", "")
        for number, (due, took) in enumerate(zip(due_s.tolist(), took_s.tolist(), strict=True))
    ]
    return Driven(load=Load(per_s=COUNT / SECONDS, seconds=SECONDS), answers=answers, took_s=SECONDS, cpu_share=0.1)


@pytest.mark.parametrize("form", ["short", "seconds"])
@pytest.mark.parametrize(("growth", "exceeds"), [(1.0, False), (1.1, False), (2.0, True), (10.0, True)])
def test_what_lasts_is_drift(form, growth, exceeds):
    found = quarters(driven(lambda due_s: 0.001 * growth ** (due_s / SECONDS)))
    assert found.exceeds(1.2, form) == exceeds
    assert found.interval[0] <= found.ratio <= found.interval[1]


def test_of_nothing_nothing_is_known():
    nothing = Driven(load=Load(per_s=1, seconds=1), answers=[], took_s=1.0, cpu_share=0.0)
    assert math.isnan(quarters(nothing).ratio)
    assert not quarters(nothing).exceeds(1.2, "short")
