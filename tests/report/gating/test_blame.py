"""Of the pairs that a machine disturbed, which count all the same: those that took turns, as far as ratios go."""

import msgspec
import pytest

from mlserve.report.gating.blame import borne, is_spoilt
from mlserve.report.gating.decision import decide_pairs
from mlserve.report.gating.evidence import Pair
from mlserve.report.gating.limits import parse_gate_limits
from mlserve.runs.load import Bursts
from mlserve.runs.resources import Resources
from mlserve.runs.run import Calibration, Check

IN_TURNS = Bursts(on_s=0.09, off_s=0.11, throughout=True)
P50, P99 = parse_gate_limits(["p50=5%"]), parse_gate_limits(["p99=5%"])


def fault(name):
    return Check(name=name, ok=False, found="too much", limit="less", advice="Stop it.")


@pytest.fixture
def disturbed(made_runs):
    """A pair whose runs have the faults `names`, made by so much."""

    def make(*names, shape=IN_TURNS, ratio=1.0, seed=0, steal=0.03, others_cpu=0.3, cost_s=0.0003, late_s=0.0):
        resources = Resources(steal=steal, others_cpu=others_cpu, cores_in_use=2)
        sides = []
        for number, scale in enumerate((1.0, ratio)):
            one = made_runs.record(
                made_runs.Load(4.0 * scale, spread=0.05),
                checks=tuple(map(fault, names)),
                seed=2 * seed + number,
                minute=2 * seed + number,
                shape=shape,
                warm_up_s=0.0,
                duration_s=20.0,
            )
            run = msgspec.structs.replace(
                one.run,
                resources=resources,
                calibration=Calibration(
                    requests=600, achieved_per_s=60.0, p50_s=cost_s, p99_s=10 * cost_s, lag_p99_s=0.001
                ),
            )
            one.samples.sent_s += late_s
            sides.append(msgspec.structs.replace(one, run=run))
        return Pair(*sides)

    return make


@pytest.mark.parametrize("name", ["steal", "other work", "generator on time", "calibration latency"])
def test_what_both_sides_had_in_turns_leaves_their_medians_comparable(disturbed, name):
    assert not is_spoilt(disturbed(name), P50)
    assert f"disturbed 1 of 2 pairs ({name})" in borne([disturbed(name), disturbed()], P50)


@pytest.mark.parametrize("name", ["steal", "other work", "generator on time", "calibration latency"])
def test_one_run_after_the_other_is_spoilt_by_it(disturbed, made_runs, name):
    """The negative control: each saw a machine of its own."""
    assert is_spoilt(disturbed(name, shape=made_runs.make_plan().shape), P50)


def test_a_figure_that_is_limited_by_itself_is_the_machines_too(disturbed):
    assert is_spoilt(disturbed("steal"), parse_gate_limits(["p50=5%", "p99<=50ms"]))
    assert not is_spoilt(disturbed("steal"), parse_gate_limits(["p50=5%", "p99=50%"]))


def test_what_takes_more_than_a_quarter_of_the_cores_is_not_borne(disturbed):
    assert is_spoilt(disturbed("steal", steal=0.26), P50)
    assert is_spoilt(disturbed("other work", others_cpu=0.51), P50)
    assert not is_spoilt(disturbed("other work", others_cpu=0.49), P50)


def test_what_the_generator_adds_to_both_sides_would_make_them_look_alike(disturbed):
    assert is_spoilt(disturbed("generator on time", late_s=0.0005), P50)
    assert is_spoilt(disturbed("calibration latency", cost_s=0.001), P50)
    assert is_spoilt(disturbed("calibration latency"), P99)


@pytest.mark.parametrize("name", ["own cores", "clock", "calibration rate", "generator CPU"])
def test_other_faults_are_never_borne(disturbed, name):
    assert is_spoilt(disturbed("steal", name), P50)
    assert borne([disturbed(name)], P50) == ""


def test_memory_is_what_it_is_on_a_busy_machine(disturbed):
    assert not is_spoilt(disturbed("generator on time", late_s=0.0005), parse_gate_limits(["memory=5%"]))


def test_a_gate_decides_on_a_disturbed_machine_and_says_so(disturbed):
    same = decide_pairs([disturbed("steal", seed=seed) for seed in range(8)], P50)
    assert same.verdict == "pass"
    assert "had it alike" in " ".join(same.notes)
    slower = [disturbed("steal", ratio=1.2, seed=seed) for seed in range(16)]
    assert decide_pairs(slower[:8], P50, fresh=slower[8:]).verdict == "fail"
