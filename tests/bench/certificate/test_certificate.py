import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlserve.bench.certificate.facts import Facts
from mlserve.runs.load import Bursts, Ramp, Spikes, Steps
from mlserve.runs.resources import Resources
from mlserve.runs.samples import DROPPED
from mlserve.runs.window import Window

NOTHING = Facts(generator_cpus=(0.3,), ok=1000, failed=0)


def test_a_dropped_request_is_a_fault(clean, make_samples, with_status):
    assert clean.with_(samples=make_samples(status=with_status(1, DROPPED))).faults == ["schedule kept"]


@pytest.mark.parametrize("latency_s", [np.linspace(0.001, 1.0, 1000), np.linspace(1.0, 0.001, 1000)])
def test_a_latency_that_wanders_is_a_fault(clean, make_samples, latency_s):
    assert "steady" in clean.with_(samples=make_samples(latency_s=latency_s)).faults


def test_small_changes_of_small_latencies_are_steady(clean, make_samples):
    assert clean.with_(samples=make_samples(latency_s=np.linspace(0.0002, 0.0009, 1000))).faults == []
    assert clean.with_(samples=make_samples(latency_s=np.linspace(0.010, 0.011, 1000))).faults == []
    assert clean.with_(samples=make_samples(latency_s=np.linspace(0.010, 0.015, 1000))).faults == ["steady"]


@pytest.mark.parametrize(("lag_s", "faults"), [(0.0020, []), (0.0022, ["generator on time"])])
def test_lateness_may_be_a_tenth_of_the_latency_claimed(clean, make_samples, lag_s, faults):
    assert clean.with_(samples=make_samples(lag_s=lag_s, latency_s=0.021)).faults == faults


def test_lateness_is_judged_at_the_percentile_claimed_or_p99(clean, make_samples):
    due_s = 1 + np.arange(10_000) * 0.001
    lag_s = np.where(np.arange(10_000) % 200 == 0, 0.005, 0.0001)  # one in 200: between p99 and p99.9
    run = clean.with_(samples=make_samples(due_s=due_s, lag_s=lag_s))
    assert run.faults == []
    assert run.with_(plan={"percentile": 0.5}).faults == []
    assert run.with_(plan={"percentile": 0.999}).faults == ["generator on time"]
    often_s = np.where(np.arange(10_000) % 50 == 0, 0.005, 0.0001)
    often = clean.with_(samples=make_samples(due_s=due_s, lag_s=often_s))
    assert often.with_(plan={"percentile": 0.5}).faults == ["generator on time"]


def test_a_check_without_evidence_is_left_out_instead_of_passing(clean):
    bare = clean.with_(facts=NOTHING)
    assert list(bare.checks) == [
        "schedule kept",
        "rate reached",
        "answered",
        "enough samples",
        "steady",
        "generator on time",
        "generator CPU",
    ]


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"provider": "somebody's engine"}, "execution provider"),
        ({"device": ""}, "execution provider"),
        ({"precision": ""}, "precision"),
        ({"variant": "pruned", "compute_type": ""}, "precision"),
        ({"counted_ok": None}, "server counters"),
        ({"calibration": None}, "calibration rate"),
        ({"warm_up": None}, "warm-up"),
        ({"machine": None}, "machine known"),
        ({"resources": {"others_cpu": None}}, "other work"),
        ({"resources": {"processes": ()}}, "own cores"),
        ({"resources": {"steal": None}}, "steal"),
        ({"resources": {"clock_step_s": None}}, "clock"),
    ],
)
def test_what_nobody_told_is_not_judged(clean, facts, name):
    assert name in clean.checks
    without = clean.with_(**facts)
    assert name not in without.checks
    assert without.faults == []


def test_cores_that_were_only_told_are_judged_too(clean):
    told = clean.with_(facts=msgspec.structs.replace(clean.facts, resources=Resources(), generator_cores=(1,)))
    assert "own cores" not in told.checks
    assert told.with_(server_cpus=(0, 1)).faults == ["own cores"]
    apart = told.with_(server_cpus=(0, 2, 3))
    assert apart.faults == []
    assert apart.checks["own cores"].found == "server on cores 0, 2-3, generator on core 1"


def test_a_closed_loop_is_labelled_and_not_judged_by_a_schedule_it_has_not(clean, make_samples):
    closed = clean.with_(
        samples=make_samples(lag_s=0.002),
        plan={"arrivals": "closed", "rate_per_s": 0.0, "users": 4},
    )
    assert closed.faults == []
    label = closed.checks["closed loop"]
    assert "4 users" in label.found
    assert "peak throughput only" in label.limit
    schedule = {"schedule kept", "rate reached", "generator on time", "calibration rate", "calibration latency"}
    assert not schedule & set(closed.checks)
    assert schedule <= set(clean.checks)
    assert "closed loop" not in clean.checks


@pytest.mark.parametrize(
    ("change", "judged"),
    [
        ({"shape": Ramp(to_per_s=200)}, False),
        ({"shape": Steps(rates_per_s=(50, 100))}, False),
        ({"arrivals": "replay"}, False),
        ({"shape": Spikes(factor=2, length_s=0.5, every_s=3)}, True),
        ({"shape": Spikes(factor=2, length_s=0.5, every_s=4)}, False),
        ({"shape": Bursts(on_s=1, off_s=2)}, True),
        ({"shape": Bursts(on_s=1, off_s=3)}, False),
        ({}, True),
    ],
)
def test_only_a_load_that_is_the_same_in_each_third_is_judged_by_them(clean, change, judged):
    assert ("steady" in clean.with_(plan=change).checks) == judged


@pytest.mark.parametrize(
    ("others_cpu", "duration_s", "faults"), [(0.12, 10, ["other work"]), (0.12, 1, []), (0.2, 1, ["other work"])]
)
def test_a_short_run_is_given_the_scatter_of_its_few_ticks(clean, others_cpu, duration_s, faults):
    run = clean.with_(resources={"others_cpu": others_cpu}, window=Window(1.0, 1.0 + duration_s))
    assert [name for name in run.faults if name == "other work"] == faults


def test_a_run_in_which_nothing_was_answered_is_invalid_and_claims_no_latency(clean, make_samples, with_status):
    run = clean.with_(samples=make_samples(status=with_status(1000, "connection refused")))
    assert {"answered", "enough samples"} <= set(run.faults)
    assert not {"steady", "generator on time", "calibration latency"} & set(run.checks)


def test_a_run_in_which_everything_was_dropped_is_invalid(clean, make_samples, with_status):
    run = clean.with_(samples=make_samples(status=with_status(1000, DROPPED)))
    assert {"schedule kept", "answered", "enough samples"} <= set(run.faults)


@pytest.mark.parametrize("overload", [1.02, 1.5, 3.0])
def test_a_queue_that_grows_is_never_steady(clean, make_samples, overload):
    """Arrivals at `overload` times what one server can do (Lindley's recursion, constant times)."""
    arrival_s = np.arange(1000) * 0.01
    finished_s = (np.arange(1000) + 1) * 0.01 * overload
    run = clean.with_(samples=make_samples(latency_s=finished_s - arrival_s))
    assert "steady" in run.faults
    assert ("rate reached" in run.faults) == (overload > 1 / 0.95)


@pytest.mark.parametrize(
    ("load", "unsteady", "short"),
    [
        (0.3, (0.0, 0.0), (0.0, 0.0)),
        (0.5, (0.0, 0.02), (0.0, 0.0)),
        (0.8, (0.0, 0.3), (0.0, 0.02)),
        (1.3, (0.98, 1.0), (0.98, 1.0)),
    ],
)
def test_random_queues_are_found_out_when_they_are_overloaded_and_hardly_ever_else(
    clean, make_samples, load, unsteady, short
):
    """M/M/1: exponential gaps of 10 ms on average, exponential service times of `load` times that."""
    rng = np.random.default_rng(0)
    faults = []
    for _ in range(50):
        gaps_s, service_s = rng.exponential(0.01, 1000), rng.exponential(0.01 * load, 1000)
        walk = np.concatenate([[0.0], np.cumsum(service_s[:-1] - gaps_s[1:])])
        waits_s = walk - np.minimum.accumulate(walk)  # Lindley's recursion
        due_s = 1 + np.cumsum(gaps_s) * 9.99 / gaps_s.sum()
        faults += clean.with_(samples=make_samples(latency_s=waits_s + service_s, due_s=due_s)).faults
    for name, (least, most) in (("steady", unsteady), ("rate reached", short)):
        assert least <= faults.count(name) / 50 <= most, name


@given(
    st.integers(0, 1000),
    st.sampled_from(["HTTP 500", DROPPED, "timeout"]),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
    st.floats(1e-5, 2),
    st.none() | st.integers(0, 2000),
    st.sampled_from(["poisson", "closed"]),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_check_says_what_it_found_and_what_to_do(
    clean, make_samples, with_status, count, status, cpus, latency_s, counted, arrivals
):
    run = clean.with_(
        samples=make_samples(latency_s=latency_s, status=with_status(count, status)),
        plan={"arrivals": arrivals},
        generator_cpus=tuple(cpus),
        ok=1000 - count,
        counted_ok=counted,
    )
    certificate = run.certificate()
    for check in certificate.checks:
        assert check.found
        assert check.limit
        assert check.advice.endswith(".")
    assert len({check.name for check in certificate.checks}) == len(certificate.checks)
    assert msgspec.json.decode(msgspec.json.encode(certificate), type=type(certificate)) == certificate
