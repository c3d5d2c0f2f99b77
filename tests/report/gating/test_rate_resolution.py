"""How near a highest rate must be sought: what is chosen can decide its limit, and what cannot is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.report.gating.decision import live_verdicts
from mlserve.report.gating.figures import RunFigure
from mlserve.report.gating.limits import Limit, parse_gate_limits
from mlserve.report.gating.looks import LOOKS
from mlserve.report.gating.rate_resolution import coarsest_resolution, resolution_for
from mlserve.report.gating.tracks import RatioTrack, rate_floor


def verdict(limit, resolution, noise=0.0):
    """On a server against itself, of as many pairs as a gate ever takes."""
    before = tuple(RunFigure(1000.0 * math.exp(noise * (-1) ** number)) for number in range(LOOKS[-1]))
    after = tuple(RunFigure(1000.0) for _ in before)
    track = RatioTrack(limit=limit, before=before, after=after, between=rate_floor(limit, resolution))
    ((metric,), _) = live_verdicts([track], [], (LOOKS[-1], 0))
    return metric.verdict


@given(st.floats(0.005, 0.6))
def test_a_server_against_itself_is_decided_at_the_resolution_that_is_chosen_and_not_at_one_too_coarse(tolerance):
    limit = Limit("max_rate", tolerance)
    assert verdict(limit, resolution_for([limit])) == "pass"
    assert verdict(limit, resolution_for([limit]), noise=tolerance) == "pass"
    coarsest = coarsest_resolution(limit)
    assert verdict(limit, 0.95 * coarsest) == "pass"
    assert verdict(limit, 1.05 * coarsest) == "inconclusive"
    with pytest.raises(UsageError, match="hide more than half"):
        resolution_for([limit], coarsest)


def test_what_is_said_is_kept_where_it_can_decide_and_refused_with_what_would_do():
    five = parse_gate_limits(["max_rate=5%,p99=10%,max_rate>=800"])
    assert resolution_for(five, 0.02) == 0.02
    with pytest.raises(UsageError, match=r"^max_rate=5% needs --resolution 2\.75% or finer: .*steps of 5% hide"):
        resolution_for(five, 0.05)
    assert resolution_for(five, 0.0275) == 0.0275
    assert resolution_for(five) == pytest.approx(0.0137, abs=1e-4)
    assert resolution_for(parse_gate_limits(["max_rate=20%"]), 0.05) == 0.05
    assert resolution_for(parse_gate_limits(["max_rate=20%"])) == 0.05
    assert resolution_for(parse_gate_limits(["max_rate=0%"])) == 0.002
    for unlimited in ([], parse_gate_limits(["p99=1%,max_rate>=800"])):
        assert resolution_for(unlimited) == 0.05
        assert resolution_for(unlimited, 0.5) == 0.5
