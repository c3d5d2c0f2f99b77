"""Limits as they are typed."""

import pytest

from mlserve.errors import UsageError
from mlserve.report.gating.limits import Limit, parse_gate_limits


def test_limits_are_read_from_repeated_and_comma_separated_options():
    assert parse_gate_limits(["p99=10%,p50=0.05", "p99.9=0", "mean=1%", "error_rate=0.5%", "max_rate=5%"]) == (
        Limit("p99", 0.1, 0.99),
        Limit("p50", 0.05, 0.5),
        Limit("p99.9", 0.0, 0.999),
        Limit("mean", 0.01),
        Limit("error_rate", 0.005),
        Limit("max_rate", 0.05),
    )


def test_a_bound_of_the_candidate_alone_has_the_unit_of_its_metric():
    texts = [
        "p99<=50ms, error_rate<=0.1%",
        "max_rate>=800",
        "memory<=500MB,size<=1.5GiB",
        "start_up <= 2s",
        "accuracy>=90%",
    ]
    bounds = {limit.metric: (limit.tolerance, limit.sense) for limit in parse_gate_limits(texts) if limit.absolute}
    assert bounds == {
        "p99": (0.05, "at most"),
        "error_rate": (0.001, "at most"),
        "max_rate": (800.0, "at least"),
        "memory": (5e8, "at most"),
        "size": (1.5 * 2**30, "at most"),
        "start_up": (2.0, "at most"),
        "accuracy": (0.9, "at least"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "p99=10%",
        "p99.9=0%",
        "error_rate=0.5%",
        "max_rate=2.5%",
        "p99<=50ms",
        "mean<=0.25ms",
        "error_rate<=0.1%",
        "max_rate>=812.5",
        "memory<=1610.612736MB",
        "start_up<=2000ms",
        "accuracy>=90%",
    ],
)
def test_a_limit_is_written_as_it_is_read(text):
    (limit,) = parse_gate_limits([text])
    assert limit.text == text


def test_a_metric_may_be_limited_by_a_change_and_by_a_bound():
    assert [limit.absolute for limit in parse_gate_limits(["p99=5%,p99<=50ms"])] == [False, True]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["p42x=10%"], "'p42x' cannot be gated; use a latency percentile such as p50, p99 or p99.9, or one of mean"),
        (["p0=10%"], "'p0' cannot be gated"),
        (["p100=10%"], "'p100' cannot be gated"),
        (["throughput=10%"], "'throughput' cannot be gated.*the rate of an open-loop load is set"),
        (["p99"], "'p99' is no limit; write NAME=VALUE.*p99<=50ms"),
        (["p99==5%"], "'p99==5%' is no limit"),
        (["p99=ten"], "'ten' is no ratio"),
        (["p99=-1%"], "'-1%' is no ratio"),
        (["p99=10%", "p99=5%"], "limits p99 twice"),
        (["p99<=10ms,p99<=5ms"], "limits p99 twice"),
        (["p99>=50ms"], "bounds p99 from its good side; write p99<=50ms"),
        (["max_rate<=50"], "bounds max_rate from its good side; write max_rate>=50"),
        (["p99<=fast"], "'fast' is no duration"),
        (["memory<=lots"], "'lots' is no size"),
        (["memory<=5PB"], "'5PB' is no size"),
        (["max_rate>=fast"], "max_rate>=fast: that is no rate"),
        (["max_rate=100%"], "lets it fall to nothing"),
        ([], "nothing is limited"),
    ],
)
def test_a_limit_that_cannot_be_held_is_refused_with_what_can(texts, message):
    with pytest.raises(UsageError, match=message):
        parse_gate_limits(texts)
