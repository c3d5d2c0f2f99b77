"""Pass, fail, inconclusive: each where it must be, and no failure out of noise."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import UsageError
from mlserve.report.gate import Limit, decide, judge, one_measurement, parse_gate_limits
from mlserve.report.measurement import group

P99 = parse_gate_limits(["p99=10%"])
P50 = parse_gate_limits(["p50=10%"])


@pytest.fixture(scope="module")
def side(made_runs):
    """A measurement of `runs` repeats of a load."""

    def make(load=None, *, runs=1, seed=0, **settings):
        load = load or made_runs.Load()
        made = [made_runs.record(load, seed=seed + number, minute=number, **settings) for number in range(runs)]
        (measurement,) = group(made)
        return measurement

    return make


@pytest.fixture(scope="module")
def plenty(side, made_runs):
    """A long run of a server with this median, in which nothing is left to chance."""

    def make(median_ms, seed=0, **settings):
        return side(made_runs.Load(median_ms), seed=seed, rate_per_s=300.0, duration_s=20.0, **settings)

    return make


# The rule itself.

ends = st.floats(0.01, 100)


@given(ends, ends, ends)
def test_a_verdict_follows_from_where_the_interval_lies(one, other, limit):
    low, high = sorted((one, other))
    verdict = judge(low, high, limit)
    assert (verdict == "fail") == (low > limit)
    assert (verdict == "pass") == (high <= limit)


@given(ends, ends, ends, ends)
def test_a_looser_limit_never_makes_the_verdict_worse(one, other, limit, looser):
    low, high = sorted((one, other))
    tight, loose = sorted((limit, looser))
    order = ["pass", "inconclusive", "fail"]
    assert order.index(judge(low, high, loose)) <= order.index(judge(low, high, tight))


def test_an_unknown_interval_says_nothing():
    assert judge(float("nan"), float("nan"), 1.0) == "inconclusive"


# Limits as they are typed.


def test_limits_are_read_from_repeated_and_comma_separated_options():
    assert parse_gate_limits(["p99=10%,p50=0.05", "p99.9=0", "mean=1%", "error_rate=0.5%"]) == (
        Limit("p99", 0.1, 0.99),
        Limit("p50", 0.05, 0.5),
        Limit("p99.9", 0.0, 0.999),
        Limit("mean", 0.01),
        Limit("error_rate", 0.005),
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["p42x=10%"], "'p42x' cannot be gated; use a latency percentile such as p50, p99 or p99.9, mean, or error"),
        (["p0=10%"], "'p0' cannot be gated"),
        (["p100=10%"], "'p100' cannot be gated"),
        (["throughput=10%"], "'throughput' cannot be gated.*the rate of an open-loop load is set"),
        (["p99"], "'p99' is no limit"),
        (["p99=ten"], "'ten' is no ratio"),
        (["p99=-1%"], "'-1%' is no ratio"),
        (["p99=10%", "p99=5%"], "limits p99 twice"),
        (["p99=10%,p99=5%"], "limits p99 twice"),
        ([], "nothing is limited"),
    ],
)
def test_a_limit_that_cannot_be_held_is_refused_with_what_can(texts, message):
    with pytest.raises(UsageError, match=message):
        parse_gate_limits(texts)


# What is decided.


def test_twice_as_slow_fails_and_the_other_way_round_passes(plenty):
    before, after = plenty(4.0), plenty(8.0, seed=1)
    worse, better = decide(before, after, P99), decide(after, before, P99)
    assert worse.verdict == "fail"
    assert worse.reasons == ("p99 is worse than the limit, and by more than noise",)
    assert better.verdict == "pass"
    assert better.reasons == ()
    # Symmetric: one way round the ratio and its interval are the other's reciprocals, up to the random draws.
    there, back = worse.metrics[1].difference, better.metrics[1].difference
    assert there.change == pytest.approx(1 / back.change)
    assert there.low == pytest.approx(1 / back.high, rel=0.03)
    assert there.high == pytest.approx(1 / back.low, rel=0.03)


def test_the_same_server_measured_twice_passes_with_enough_data(plenty):
    result = decide(plenty(4.0), plenty(4.0, seed=1), P99)
    assert result.verdict == "pass"
    assert result.metrics[1].difference.change == pytest.approx(1, abs=0.05)


@given(
    latencies_ms=st.lists(st.floats(0.001, 1e4), min_size=40, max_size=200),
    tolerance=st.sampled_from(["0%", "10%"]),
    metric=st.sampled_from(["p50", "p90", "mean"]),
)
def test_a_run_never_fails_against_itself(made_runs, latencies_ms, tolerance, metric):
    class Given(made_runs.Load):
        def _latency_s(self, rng, due_s, total_s):
            return np.resize(latencies_ms, len(due_s)) / 1000

    (measurement,) = group([made_runs.record(Given(), duration_s=5.0)])
    assert decide(measurement, measurement, parse_gate_limits([f"{metric}={tolerance}"])).verdict != "fail"


def test_little_and_noisy_data_is_inconclusive(side, made_runs):
    noisy = made_runs.Load(spread=1.0, wander=0.5)
    result = decide(side(noisy), side(noisy, seed=1), P99)
    assert result.verdict == "inconclusive"
    assert "p99 may lie on either side of the limit" in result.reasons[0]


def test_too_few_answers_for_the_percentile_are_inconclusive_and_the_number_of_runs_it_takes_is_named(side):
    result = decide(side(duration_s=5.0), side(duration_s=5.0, seed=1), P99)
    metric = result.metrics[1]
    assert result.verdict == metric.verdict == "inconclusive"
    assert metric.difference is None
    assert metric.more_runs == 1
    assert result.reasons[0].startswith("p99 is unknown: baseline: p99 needs 459 answered requests, there are")
    assert decide(side(duration_s=5.0), side(duration_s=5.0, seed=1), P50).metrics[1].difference is not None


def test_as_many_more_runs_as_it_says_decide(side, made_runs):
    # The same seeds on both sides: the candidate is 1.04 times as slow whatever the draw.
    before, slower = made_runs.Load(4.0, spread=0.8), made_runs.Load(4.16, spread=0.8)
    open_question = decide(side(before), side(slower), P50)
    assert open_question.verdict == "inconclusive"
    more_runs = open_question.metrics[1].more_runs
    assert f"about {more_runs} more run" in open_question.reasons[0]
    half, twice = max(1, more_runs // 2), 2 * (1 + more_runs)
    assert decide(side(before, runs=half), side(slower, runs=half), P50).verdict == "inconclusive"
    assert decide(side(before, runs=twice), side(slower, runs=twice), P50).verdict == "pass"


def test_a_difference_at_the_limit_is_not_promised_to_be_decided(side, made_runs):
    at_limit = decide(side(), side(made_runs.Load(4.4), seed=0), P50).metrics[1]
    assert at_limit.verdict == "inconclusive"
    assert at_limit.more_runs is None
    assert "unlikely to decide" in at_limit.reason


def test_one_failed_limit_fails_and_one_open_limit_leaves_it_open(plenty, side, made_runs):
    both = parse_gate_limits(["p50=300%", "p99=10%"])
    result = decide(plenty(4.0), plenty(8.0, seed=1), both)
    assert [metric.verdict for metric in result.metrics] == ["pass", "pass", "fail"]
    assert result.verdict == "fail"
    noisy = made_runs.Load(spread=1.0, wander=0.5)
    result = decide(side(noisy), side(noisy, seed=1), both)
    assert [metric.verdict for metric in result.metrics] == ["pass", "pass", "inconclusive"]
    assert result.verdict == "inconclusive"


def test_every_further_limit_takes_a_wider_interval(plenty):
    before, after = plenty(4.0), plenty(4.2, seed=1)
    alone = decide(before, after, P99).metrics[1].difference
    one_of_four = decide(before, after, parse_gate_limits(["p99=10%,p50=10%,p90=10%,mean=10%"])).metrics[1].difference
    assert (alone.confidence, one_of_four.confidence) == (0.95, 0.9875)
    assert one_of_four.low < alone.low < alone.high < one_of_four.high


# Requests that were not answered.


def test_more_failures_fail_a_candidate_however_fast_it_is(side, made_runs):
    quick_but_failing = side(made_runs.Load(1.0, failed=0.05), seed=1)
    quick = side(made_runs.Load(1.0), seed=1)
    result = decide(side(), quick_but_failing, P99)
    assert result.verdict == "fail"
    assert [metric.verdict for metric in result.metrics] == ["fail", "pass"]
    assert "error_rate" in result.reasons[0]
    assert decide(side(), quick, P99).verdict == "pass"


def test_dropped_requests_are_failures(side, made_runs):
    assert decide(side(), side(made_runs.Load(1.0, dropped=0.05)), P99).metrics[0].verdict == "fail"


def test_failures_count_though_they_made_the_run_invalid(side, made_runs):
    answered = msgspec.structs.replace(made_runs.LATE, name="answered", found="5.0% of the requests sent failed")
    result = decide(side(), side(made_runs.Load(failed=0.05), checks=(answered,)), P99)
    assert result.verdict == "fail"
    assert len(result.reasons) == 2


def test_a_run_that_failed_and_is_invalid_for_it_is_not_hidden_by_a_good_one(side, made_runs):
    good = made_runs.record(made_runs.Load())
    spoilt = made_runs.record(made_runs.Load(failed=0.2), checks=(made_runs.LATE,), minute=1)
    (mixed,) = group([good, spoilt])
    errors = decide(side(), mixed, P99).metrics[0]
    assert errors.difference.candidate > 0.08
    assert errors.verdict == "inconclusive"  # one of two runs: another pair might have been two good ones
    assert decide(side(), group([good])[0], P99).metrics[0].verdict == "pass"


def test_as_many_failures_as_before_are_no_regression(side, made_runs):
    failing = made_runs.Load(failed=0.05)
    assert decide(side(failing, runs=3), side(failing, runs=3, seed=9), P50).metrics[0].verdict != "fail"


def test_a_limit_on_failures_can_be_tighter_or_looser(side, made_runs):
    before, after = side(), side(made_runs.Load(failed=0.05), seed=1)
    limits = {tolerance: parse_gate_limits([f"error_rate={tolerance}"]) for tolerance in ("0.01%", "20%")}
    assert decide(before, after, limits["20%"]).verdict == "pass"
    assert decide(before, after, limits["0.01%"]).verdict == "fail"
    assert decide(before, before, limits["0.01%"]).verdict == "inconclusive"  # none seen is not none possible


def test_no_failures_among_few_requests_are_enough_where_no_limit_asks_for_more(side):
    few = side(duration_s=1.0, warm_up_s=0.0)
    assert decide(few, few, P50).metrics[0].verdict == "pass"


# What may not be compared.


@pytest.mark.parametrize("which", ["baseline", "candidate"])
def test_an_invalid_run_leaves_it_open_whatever_the_figures_say(plenty, made_runs, which):
    sides = {"baseline": plenty(4.0), "candidate": plenty(8.0, seed=1)}
    assert decide(*sides.values(), P99).verdict == "fail"
    sides[which] = plenty(4.0, checks=(made_runs.ENOUGH, made_runs.LATE))
    result = decide(*sides.values(), P99)
    assert result.verdict == "inconclusive"
    assert [metric.metric for metric in result.metrics] == ["error_rate"]
    assert f"{which} minilm-fp32-rest-300rps" in result.reasons[0]
    assert "is INVALID: generator on time: p99 of requests left 9.10 ms late" in result.reasons[0]
    assert "Stop other work" in result.reasons[0]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"rate_per_s": 80.0}, "rate per s 60 against 80"),
        ({"protocol": "grpc"}, "protocol rest against grpc"),
        ({"batch_rows": 8}, "batch rows 1 against 8"),
        ({"arrivals": "constant"}, "arrivals poisson against constant"),
    ],
)
def test_unlike_loads_are_refused_unless_that_is_wanted(side, changes, difference):
    with pytest.raises(UsageError, match=f"cannot be compared: {difference}.*--ignore-differences"):
        decide(side(), side(**changes), P50)
    result = decide(side(), side(**changes), P50, ignore_differences=True)
    assert f"compared although they differ: {difference}" in result.notes


def test_unlike_machines_are_refused(side, made_runs):
    other = msgspec.structs.replace(made_runs.MACHINE, cpu="another", cores=64)
    with pytest.raises(UsageError, match="cpu AMD EPYC 9B14 against another; cores 2 against 64"):
        decide(side(), side(machine=other), P50)


def test_other_settings_and_software_are_what_a_gate_is_for_but_are_named(side, made_runs):
    tuned = msgspec.structs.replace(made_runs.SERVER, max_delay_ms=2.0)
    newer = msgspec.structs.replace(made_runs.MACHINE, packages={**made_runs.MACHINE.packages, "onnxruntime": "2.0"})
    notes = decide(side(), side(server=tuned, machine=newer), P50).notes
    assert "the server's settings differ: max delay ms 0 against 2" in notes
    assert "the software differs: onnxruntime 1.23.0 against 2.0" in notes


def test_a_side_must_be_one_measurement(made_runs):
    runs = [made_runs.record(made_runs.Load(), protocol=protocol) for protocol in ("rest", "grpc")]
    with pytest.raises(UsageError, match=r"the baseline mixes 2 measurements \(protocol rest against grpc\)"):
        one_measurement(runs, "baseline")
    runs = [made_runs.record(made_runs.Load(), model=model) for model in (made_runs.FP32, made_runs.INT8)]
    with pytest.raises(UsageError, match="minilm@1 fp32 against minilm@2 int8"):
        one_measurement(runs, "candidate")
    assert len(one_measurement(runs[:1], "baseline").runs) == 1


def test_it_says_what_single_runs_and_runs_not_taken_in_turn_leave_out(side, made_runs):
    def late(load, minute):
        made = [made_runs.record(load, seed=number, minute=minute + number) for number in range(2)]
        return group(made)[0]

    alone = decide(side(), side(seed=1), P50).notes
    in_turn = decide(side(runs=2), side(runs=2, seed=5), P50).notes
    one_after_the_other = decide(side(runs=2), late(made_runs.Load(), 30), P50).notes
    assert any("one run only" in note for note in alone)
    assert in_turn == ()
    assert any("not taken in turn" in note for note in one_after_the_other)


def test_the_result_is_plain_data(plenty):
    result = decide(plenty(4.0), plenty(8.0, seed=1), P99)
    assert msgspec.json.decode(msgspec.json.encode(result), type=type(result)) == result


# Calibration: two measurements of one server, its latencies correlated in time as a queue makes them.

PAIRS = 100


@pytest.fixture(scope="module", params=[0.05, 0.5, 2.0], ids=lambda memory_s: f"remembering {memory_s} s")
def pairs_of_the_same(request, made_runs):
    load = made_runs.Load(wander=0.3, spread=0.3, memory_s=request.param)
    runs = [made_runs.record(load, seed=seed, warm_up_s=0.0, duration_s=12.0) for seed in range(2 * PAIRS)]
    measurements = [group([run])[0] for run in runs]
    return list(zip(measurements[::2], measurements[1::2], strict=True))


@pytest.mark.parametrize("metric", ["p50", "p99"])
def test_the_same_server_rarely_fails(pairs_of_the_same, metric):
    """At no tolerance a 95% interval fails one in 40 of such pairs by its making; at 10%, next to none may fail."""
    limits = parse_gate_limits([f"{metric}=0%"])
    results = [decide(before, after, limits) for before, after in pairs_of_the_same]
    found = [result.metrics[1].difference for result in results]
    assert [result.verdict for result in results].count("fail") <= 0.06 * PAIRS
    assert [judge(one.low, one.high, 1.1) for one in found].count("fail") <= 0.02 * PAIRS
