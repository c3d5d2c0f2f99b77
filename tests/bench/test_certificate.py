import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.bench.certificate.certificate import Facts, certify
from mlserve.runs.load import Plan
from mlserve.runs.samples import DROPPED, OK, SCHEMA, Samples

PLAN = Plan(rate_per_s=100, duration_s=10, warm_up_s=1)
FACTS = Facts(generator_cpu=0.3, ok=1000, failed=0)


def make_samples(latency_s=0.010, lag_s=0.0001, status=None, n=1000):
    """One request each 10 ms after a second of warm-up; `latency_s` and `lag_s` are numbers or arrays [n]."""
    scheduled = np.round(1e9 + np.arange(n) * 1e7).astype(np.int64)
    status = np.full(n, OK, object) if status is None else status
    gone = status == DROPPED
    sent = scheduled + np.round(np.broadcast_to(lag_s, n) * 1e9).astype(np.int64)
    done = scheduled + np.round(np.broadcast_to(latency_s, n) * 1e9).astype(np.int64)
    columns = [
        pa.array(scheduled),
        pa.array(sent, mask=gone),
        pa.nulls(n, pa.int64()),
        pa.array(done, mask=gone),
        pa.array(np.ones(n, np.int32)),
        pa.array(status, pa.string()),
        pa.array([""] * n),
        pa.array(np.zeros(n, bool)),
    ]
    return Samples(pa.Table.from_arrays(columns, schema=SCHEMA))


def with_status(count, status, n=1000):
    column = np.full(n, OK, object)
    column[:count] = status
    return column


def faults(samples, plan=PLAN, facts=FACTS):
    return [check.name for check in certify(samples, plan, facts).faults]


def names(samples, plan=PLAN, facts=FACTS):
    return [check.name for check in certify(samples, plan, facts).checks]


def test_a_sound_run_is_valid():
    assert faults(make_samples()) == []
    assert certify(make_samples(), PLAN, FACTS).valid


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        (make_samples(status=with_status(1, DROPPED)), "schedule kept"),
        (make_samples(status=with_status(11, "HTTP 503")), "answered"),
        (make_samples(n=458), "enough samples"),
        (make_samples(lag_s=0.002), "generator on time"),
        (make_samples(latency_s=np.linspace(0.001, 1.0, 1000)), "steady"),
        (make_samples(latency_s=np.linspace(1.0, 0.001, 1000)), "steady"),
    ],
)
def test_each_fault_of_the_rows_is_found(samples, fault):
    assert fault in faults(samples)


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        (make_samples(status=with_status(10, "HTTP 503")), "answered"),
        (make_samples(n=459), "enough samples"),
        (make_samples(lag_s=0.000_999), "generator on time"),
        (make_samples(lag_s=0.002, latency_s=0.021), "generator on time"),
    ],
)
def test_what_is_just_within_the_limit_passes(samples, fault):
    assert fault not in faults(samples)


def test_small_changes_of_small_latencies_are_steady():
    assert "steady" not in faults(make_samples(latency_s=np.linspace(0.0001, 0.0009, 1000)))
    assert "steady" not in faults(make_samples(latency_s=np.linspace(0.010, 0.015, 1000)))


def test_a_busy_generator_is_a_fault():
    assert faults(make_samples(), facts=Facts(generator_cpu=0.81, ok=1000, failed=0)) == ["generator CPU"]
    assert faults(make_samples(), facts=Facts(generator_cpu=0.80, ok=1000, failed=0)) == []


@pytest.mark.parametrize(
    ("counted", "failed", "agree"),
    [(1000, 0, True), (999, 0, False), (1001, 0, False), (1003, 3, True), (1004, 3, False), (997, 3, False)],
)
def test_the_server_must_have_counted_the_same(counted, failed, agree):
    facts = Facts(generator_cpu=0.3, ok=1000, failed=failed, counted_ok=counted)
    assert faults(make_samples(), facts=facts) == ([] if agree else ["server counters"])


def test_a_check_without_evidence_is_left_out_instead_of_passing():
    assert not {"server counters", "device"} & set(names(make_samples()))
    known = Facts(generator_cpu=0.3, ok=1000, failed=0, counted_ok=1000, device="cpu")
    assert {"server counters", "device"} <= set(names(make_samples(), facts=known))


def test_a_run_in_which_nothing_was_answered_is_invalid_and_claims_no_latency():
    samples = make_samples(status=with_status(1000, "connection refused"))
    assert {"answered", "enough samples"} <= set(faults(samples))
    assert not {"steady", "generator on time"} & set(names(samples))


def test_a_run_in_which_everything_was_dropped_is_invalid():
    assert {"schedule kept", "answered", "enough samples"} <= set(
        faults(make_samples(status=with_status(1000, DROPPED)))
    )


@pytest.mark.parametrize("overload", [1.02, 1.5, 3.0])
def test_a_queue_that_grows_is_never_steady(overload):
    """Arrivals at `overload` times what one server can do (Lindley's recursion, constant times)."""
    arrival_s = np.arange(1000) * 0.01
    finished_s = (np.arange(1000) + 1) * 0.01 * overload
    assert "steady" in faults(make_samples(latency_s=finished_s - arrival_s))


@pytest.mark.parametrize(("load", "least", "most"), [(0.3, 0.0, 0.0), (0.5, 0.0, 0.02), (1.3, 0.98, 1.0)])
def test_random_queues_are_unsteady_when_they_are_overloaded_and_hardly_ever_else(load, least, most):
    """M/M/1: exponential gaps of 10 ms on average, exponential service times of `load` times that."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(100):
        gaps_s, service_s = rng.exponential(0.01, 1000), rng.exponential(0.01 * load, 1000)
        walk = np.concatenate([[0.0], np.cumsum(service_s[:-1] - gaps_s[1:])])
        waits_s = walk - np.minimum.accumulate(walk)  # Lindley's recursion
        alarms += "steady" in faults(make_samples(latency_s=waits_s + service_s))
    assert least <= alarms / 100 <= most


@given(
    st.integers(0, 1000),
    st.sampled_from(["HTTP 500", DROPPED, "timeout"]),
    st.floats(0, 1),
    st.floats(1e-5, 2),
    st.none() | st.integers(0, 2000),
)
@settings(deadline=None)
def test_every_check_says_what_it_found_and_what_to_do(count, status, cpu, latency_s, counted):
    samples = make_samples(latency_s=latency_s, status=with_status(count, status))
    facts = Facts(generator_cpu=cpu, ok=1000 - count, failed=0, counted_ok=counted)
    certificate = certify(samples, PLAN, facts)
    for check in certificate.checks:
        assert check.found
        assert check.limit
        assert check.advice.endswith(".")
    assert len({check.name for check in certificate.checks}) == len(certificate.checks)
    assert msgspec.json.decode(msgspec.json.encode(certificate), type=type(certificate)) == certificate
