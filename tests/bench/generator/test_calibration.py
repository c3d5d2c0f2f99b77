import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.clients.client import Reply, Request
from mlserve.bench.clients.fake import FakeClient
from mlserve.bench.generator.calibration import calibrate, calibration_of, calibration_plan, combine
from mlserve.bench.generator.generator import Share, open_client
from mlserve.bench.generator.job import Address, Job
from mlserve.bench.null_server.opening import open_null_server
from mlserve.errors import BenchError
from mlserve.runs.load import Flat, Plan, Ramp, Spikes
from mlserve.runs.run import Calibration
from mlserve.runs.samples import DROPPED, Sample

MS = 1_000_000
PLAN = Plan(rate_per_s=500, duration_s=60, warm_up_s=5)
ADDRESS = Address("grpc", "far.invalid", 1, "/a.B/C")


@pytest.fixture
def job(tmp_path):
    return Job(
        plan=msgspec.structs.replace(PLAN, arrivals="constant", protocol="grpc"),
        name="m",
        address=ADDRESS,
        requests=(Request(b"a"), Request(b"b")),
        order=(0, 1),
        directory=str(tmp_path),
        null_server=msgspec.structs.replace(ADDRESS, host="null.invalid"),
    )


def row(scheduled_ms, latency_ms=1.0, lag_ms=0.1, status="ok"):
    due_ns = round(scheduled_ms * MS)
    sent_ns, done_ns = due_ns + round(lag_ms * MS), due_ns + round(latency_ms * MS)
    return Sample(due_ns, sent_ns, None, done_ns, 1, 0, status, "")


# Which load


@given(
    rate_per_s=st.floats(0.001, 1e5),
    arrivals=st.sampled_from(["poisson", "constant", "replay"]),
    shape=st.sampled_from([Flat(), Ramp(9000), Spikes(factor=50, length_s=1, every_s=2)]),
    generators=st.integers(1, 8),
    timeout_s=st.floats(0.1, 100),
)
def test_a_load_is_calibrated_at_its_rate_for_a_bounded_time(rate_per_s, arrivals, shape, generators, timeout_s):
    plan = msgspec.structs.replace(
        PLAN,
        rate_per_s=rate_per_s,
        arrivals=arrivals,
        shape=shape,
        timeout_s=timeout_s,
        precision=0.01,
        max_duration_s=600,
        find_warm_up=True,
    )
    found = calibration_plan(plan, generators)
    assert found.rate_per_s == max(rate_per_s, 10 * generators)
    assert found.arrivals == ("poisson" if arrivals == "replay" else arrivals)
    assert found.shape == Flat()
    assert (found.warm_up_s, found.longest_s) == (0.5, 0.5 + found.duration_s)
    assert 1 <= found.duration_s <= 5
    expected = found.rate_per_s * found.duration_s / generators
    assert found.duration_s == 5 or expected >= 459.99
    assert found.timeout_s <= min(5, timeout_s)
    assert not found.precision
    assert not found.find_warm_up


def test_a_closed_loop_is_calibrated_with_its_users():
    plan = msgspec.structs.replace(PLAN, rate_per_s=0, arrivals="closed", users=7)
    found = calibration_plan(plan, 2)
    assert (found.closed, found.users, found.rate_per_s, found.duration_s) == (True, 7, 0, 1)


# What its rows say


def test_only_good_answers_after_the_warm_up_count():
    plan = calibration_plan(PLAN, 1)
    counted = [row(500), row(600, latency_ms=3, lag_ms=0.5), row(1400, latency_ms=2)]
    others = [
        row(499, latency_ms=90),
        row(700, latency_ms=90, status="HTTP 503"),
        Sample(800 * MS, None, None, None, 1, 0, DROPPED, ""),
    ]
    assert calibration_of([*others, *counted], plan) == Calibration(
        requests=3, p50_s=0.002, p99_s=0.003, lag_p99_s=0.0005, achieved_per_s=3.0
    )


@pytest.mark.parametrize(("count", "p99_ms"), [(1, 1), (458, 458), (459, 455), (1000, 990)])
def test_p99_is_exact_and_with_too_few_samples_the_largest_seen(count, p99_ms):
    rows = [row(500 + number / 10, latency_ms=number + 1, lag_ms=(number + 1) / 10) for number in range(count)]
    found = calibration_of(reversed(rows), calibration_plan(PLAN, 1))
    assert found.p99_s == pytest.approx(p99_ms / 1e3)
    assert found.lag_p99_s == pytest.approx(p99_ms / 1e4)


@pytest.mark.parametrize("rows", [[], [row(100)], [row(600, status="connection refused")]])
def test_a_null_server_that_answers_nothing_is_a_fault(rows):
    with pytest.raises(BenchError, match="answered nothing"):
        calibration_of(rows, calibration_plan(PLAN, 1))


# The whole


def test_a_generator_sends_its_share_of_the_requests_to_the_null_server(job):
    clients = []

    def opens(address, trial):
        assert address == job.null_server
        assert trial.requests == job.requests
        clients.append(FakeClient(lambda _: Reply("ok")))
        return clients[-1]

    job = msgspec.structs.replace(job, plan=msgspec.structs.replace(job.plan, rate_per_s=1000))
    found = calibrate(job, Share(1, 2), opens)
    (client,) = clients
    assert client.closed
    assert client.sent == [1] * 750  # every second one of them, for a second and the warm-up
    assert (found.requests, found.achieved_per_s) == (500, 500)
    assert 0 <= found.lag_p99_s <= found.p99_s


def test_the_real_null_server_is_answered_by_and_timed(job):
    with open_null_server(ADDRESS, b"answer") as null_server:
        found = calibrate(msgspec.structs.replace(job, null_server=null_server), Share(), open_client)
    assert (found.requests, found.achieved_per_s) == (500, 500)
    assert 0 < found.p50_s <= found.p99_s
    assert found.lag_p99_s <= found.p99_s


TIMES = st.floats(0, 10)
CALIBRATIONS = st.builds(
    Calibration, requests=st.integers(1, 1000), p50_s=TIMES, p99_s=TIMES, lag_p99_s=TIMES, achieved_per_s=TIMES
)


@given(st.lists(CALIBRATIONS, min_size=1, max_size=5))
def test_generators_together_have_the_sum_of_rates_and_the_worst_of_times(each):
    found = combine(each)
    assert found.requests == sum(one.requests for one in each)
    assert found.achieved_per_s == pytest.approx(sum(one.achieved_per_s for one in each))
    for name in ("p50_s", "p99_s", "lag_p99_s"):
        assert getattr(found, name) == max(getattr(one, name) for one in each)
    assert combine([found]) == found
