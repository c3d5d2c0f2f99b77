"""Over many simulated gates: how often they err, and that they decide. `benchmarks/gating.py --simulated` runs more."""

from collections import Counter

import pytest

from mlserve.report.gating.limits import parse_gate_limits
from mlserve.report.gating.simulated import Rig, simulate_gate

# How often a gate errs does not depend on how many requests its runs have; after how many runs it decides does.
QUICK, LONG_RUNS = Rig(requests=100), Rig(requests=3000)


def ended(limits, slower, rig, gates):
    return [simulate_gate(parse_gate_limits([limits]), slower, rig, seed) for seed in range(gates)]


def verdicts(limits, slower, rig, gates):
    return Counter(one.verdict for one in ended(limits, slower, rig, gates))


def test_the_same_server_fails_in_at_most_one_gate_of_a_hundred_even_without_tolerance():
    gates = ended("p50=0%,p90=0%", 1.0, QUICK, 200)
    assert sum(one.verdict == "fail" for one in gates) <= 2
    assert sum(one.suspected for one in gates) >= 3  # so that it is the fresh runs that keep it from failing


@pytest.mark.parametrize(("limits", "least"), [("p99=0%", 39), ("p99=2%", 38)])
def test_a_p99_that_is_worse_by_five_percent_is_caught_in_the_runs_that_the_gate_asks_for(limits, least):
    assert verdicts(limits, 1.05, LONG_RUNS, 40)["fail"] >= least


def test_a_p99_that_is_worse_by_two_percent_passes_a_limit_of_five():
    found = verdicts("p99=5%", 1.02, LONG_RUNS, 40)
    assert found["pass"] >= 36
    assert not found["fail"]


def test_the_noise_within_runs_makes_no_gate_fail_that_would_not():
    rig = Rig(requests=200, floors=True)
    with_floors = [simulate_gate(parse_gate_limits(["p50=5%"]), 1.1, rig, seed) for seed in range(2)]
    assert all(one.verdict in ("fail", "inconclusive") for one in with_floors)
