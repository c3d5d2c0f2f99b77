import math
import os
import time

import gevent
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.bench.clients.client import Reply, Request
from mlserve.bench.clients.fake import FakeClient
from mlserve.bench.generator.calibration import calibrate, combine
from mlserve.bench.generator.generator import Share, open_client
from mlserve.bench.generator.job import Address, Job
from mlserve.bench.null_server.opening import open_null_server
from mlserve.errors import BenchError
from mlserve.runs.load import Plan, Spikes
from mlserve.runs.run import Calibration

NULL = Address("http", "127.0.0.1", 1, "/null")
PLAN = Plan(rate_per_s=200, duration_s=60, warm_up_s=5, timeout_s=10)


@pytest.fixture
def trial(tmp_path):
    """Calibrates a plan against a function that answers; the calibration, the numbers sent, and for how long."""

    def run(plan, answer=lambda _: Reply("ok"), share=Share(), **job):
        clients = []

        def opens(address, job):
            assert address == NULL
            assert job.plan.timeout_s <= 5
            clients.append(FakeClient(answer))
            return clients[-1]

        job = Job(
            **{"plan": plan, "name": "m", "address": Address("http", "real.invalid", 80, "/"), "null_server": NULL}
            | {"requests": (Request(b"a"), Request(b"b")), "order": (0, 1), "directory": str(tmp_path)}
            | job
        )
        began_s = time.monotonic()
        found = calibrate(job, share, opens)
        (client,) = clients
        assert client.closed
        assert not os.listdir(tmp_path)
        return found, client.sent, time.monotonic() - began_s

    return run


def test_the_runs_requests_go_to_the_null_server_at_the_runs_rate_for_a_while(trial):
    found, sent, took_s = trial(PLAN)
    assert abs(found.requests - 300) < 5 * math.sqrt(300)
    assert found.achieved_per_s == pytest.approx(found.requests / 1.5)
    assert found.requests < len(sent) < found.requests + 200  # with half a second of warm-up
    assert abs(sent.count(0) - sent.count(1)) <= 1
    assert took_s < 10
    assert 0 <= found.p50_s <= found.p99_s < 1
    assert 0 <= found.lag_p99_s <= found.p99_s


def test_what_the_null_server_takes_is_in_the_times(trial):
    def answer(_):
        gevent.sleep(0.1)
        return Reply("ok")

    found, _, _ = trial(PLAN, answer)
    assert 0.1 <= found.p50_s <= found.p99_s
    assert found.lag_p99_s < found.p50_s


def test_warm_up_is_not_counted(trial):
    began_s = time.monotonic()

    def answer(_):
        if time.monotonic() < began_s + 0.3:
            gevent.sleep(0.3)
        return Reply("ok")

    assert trial(PLAN, answer)[0].p50_s < 0.1


def test_failures_and_what_was_dropped_are_not_counted_and_lower_the_rate(trial):
    numbers = iter(range(10_000))
    found, sent, _ = trial(PLAN, lambda _: Reply("ok" if next(numbers) % 2 else "HTTP 503"))
    assert found.achieved_per_s == pytest.approx(100, rel=0.3)
    assert found.requests < len(sent) / 2 + 50


def test_each_of_several_generators_sends_its_share(trial):
    plan = msgspec.structs.replace(PLAN, rate_per_s=600, arrivals="constant", generators=2)
    found, sent, _ = trial(plan, share=Share(1, 2))
    assert (found.requests, found.achieved_per_s) == (300, 300)
    assert set(sent) == {1}


def test_a_closed_loop_keeps_its_users_busy(trial):
    in_flight, most = 0, 0

    def answer(_):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        gevent.sleep(0.01)
        in_flight -= 1
        return Reply("ok")

    plan = msgspec.structs.replace(PLAN, rate_per_s=0, arrivals="closed", users=7)
    found, _, _ = trial(plan, answer)
    assert most == 7
    assert 0 < found.achieved_per_s <= 700
    assert found.p50_s >= 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"arrivals": "replay"},
        {"shape": Spikes(factor=50, length_s=1, every_s=2)},
        {"precision": 0.01, "max_duration_s": 600, "find_warm_up": True},
        {"check_answers": True},
    ],
)
def test_every_plan_is_calibrated_at_its_rate(trial, changes):
    plan = msgspec.structs.replace(PLAN, rate_per_s=400, **changes)
    found, _, took_s = trial(plan, trace_ns=bytes(8), expected=(b"other", b"answers"))
    assert abs(found.achieved_per_s - 400) < 100
    assert took_s < 10


def test_a_low_rate_is_bounded_in_time_and_its_p99_the_largest_seen(trial):
    numbers = iter(range(10_000))

    def answer(_):
        if next(numbers) == 30:
            gevent.sleep(0.3)
        return Reply("ok")

    plan = msgspec.structs.replace(PLAN, rate_per_s=0.01, arrivals="constant")
    found, _, took_s = trial(plan, answer)
    assert found.requests == 50
    assert found.p99_s >= 0.3 > found.p50_s
    assert took_s < 12


def test_a_null_server_that_answers_nothing_well_is_a_fault(trial):
    with pytest.raises(BenchError, match="answered nothing"):
        trial(PLAN, lambda _: Reply("connection refused"))


def test_against_the_real_null_server(tmp_path):
    address = Address("grpc", "far.invalid", 1, "/a.B/C")
    plan = msgspec.structs.replace(PLAN, protocol="grpc", arrivals="constant", rate_per_s=300)
    with open_null_server(address, b"answer") as null_server:
        job = Job(
            plan=plan,
            name="m",
            address=address,
            requests=(Request(b"hello"),),
            order=(0,),
            directory=str(tmp_path),
            null_server=null_server,
        )
        found = calibrate(job, Share(), open_client)
    assert (found.requests, found.achieved_per_s) == (300, 300)
    assert 0 < found.p50_s <= found.p99_s


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
