"""Runs that lie there: pass, fail, inconclusive, each where it must be, and no failure out of noise."""

import msgspec
import pytest

from mlserve.errors import UsageError
from mlserve.report.gating.decision import decide
from mlserve.report.gating.likeness import one_measurement
from mlserve.report.gating.limits import Limit, parse_gate_limits
from mlserve.report.measurement import group

P90 = parse_gate_limits(["p90=10%"])
P50 = parse_gate_limits(["p50=10%"])


@pytest.fixture(scope="module")
def base(side):
    return side()


@pytest.fixture(scope="module")
def same(side):
    return side(seed=50)


@pytest.fixture(scope="module")
def slow(side, made_runs):
    return side(made_runs.Load(6.0), seed=90)


def found(result, metric):
    return next(one for one in result.metrics if one.metric == metric)


def test_slower_fails_and_the_other_way_round_passes(base, slow):
    worse, better = decide(base, slow, P90), decide(slow, base, P90)
    assert worse.verdict == "fail"
    assert worse.reasons == ("p90 is worse than the limit, and by more than noise",)
    assert better.verdict == "pass"
    assert better.reasons == ()
    there, back = found(worse, "p90").difference, found(better, "p90").difference
    assert there.change == pytest.approx(1 / back.change)
    assert there.candidate / there.baseline == pytest.approx(there.change)
    assert there.low > 1.1


def test_the_same_server_measured_twice_passes_and_nothing_is_promised_that_was_not_confirmed(base, same):
    result = decide(base, same, P90)
    assert result.verdict == "pass"
    assert result.settled
    assert not any(metric.confirmed for metric in result.metrics)


def test_a_measurement_never_fails_against_itself(base):
    assert decide(base, base, parse_gate_limits(["p50=0%,p90=0%,mean=0%"])).verdict != "fail"


def test_one_run_of_each_side_is_no_evidence_however_slow_it_is(side, made_runs):
    result = decide(side(runs=1), side(made_runs.Load(40.0), runs=1), P90)
    assert result.verdict == "inconclusive"
    assert found(result, "p90").more_runs == 3
    assert "one run says nothing of how much runs differ; about 3 more runs like these" in result.reasons[0]


def test_too_few_answers_for_the_percentile_are_inconclusive_and_the_number_of_runs_it_takes_is_named(side):
    few, other = side(runs=4, duration_s=1.0), side(runs=4, duration_s=1.0, seed=9)
    metric = found(decide(few, other, parse_gate_limits(["p99=10%"])), "p99")
    assert metric.difference is None
    assert metric.more_runs == 4
    assert metric.reason.startswith("p99 is unknown: baseline: p99 needs 459 answered requests, there are")
    assert found(decide(few, other, P50), "p50").difference is not None


def test_as_many_more_runs_as_it_says_about_decide(side, made_runs):
    noisy = made_runs.Load(spread=1.0)
    question = found(decide(side(noisy, runs=4), side(noisy, runs=4, seed=40), P50), "p50")
    assert question.verdict == "inconclusive"
    assert f"about {question.more_runs} more run" in question.reason
    runs = 4 + question.more_runs
    assert runs < 60
    assert found(decide(side(noisy, runs=2 * runs), side(noisy, runs=2 * runs, seed=400), P50), "p50").verdict == "pass"


def test_a_difference_at_the_limit_is_not_promised_to_be_decided(side, made_runs):
    # The same seeds on both sides, so that the candidate is just as much slower as is allowed.
    question = found(decide(side(runs=4), side(made_runs.Load(4.4), runs=4), P50), "p50")
    assert question.verdict == "inconclusive"
    assert question.more_runs is None
    assert "unlikely to decide" in question.reason


def test_one_failed_limit_fails_and_one_open_limit_leaves_it_open(base, slow, same):
    assert decide(base, slow, parse_gate_limits(["p50=300%", "p90=10%"])).verdict == "fail"
    result = decide(base, same, parse_gate_limits(["p50=300%", "p90=0.01%"]))
    assert [metric.verdict for metric in result.metrics] == ["pass", "pass", "inconclusive"]
    assert result.verdict == "inconclusive"


def test_runs_that_differ_by_themselves_are_weaker_evidence_than_their_requests_are(side, made_runs):
    """The candidate's runs have levels of their own, far apart: every request of it is slower, and yet it is open."""
    levels = [
        made_runs.record(made_runs.Load(median), seed=n, minute=n, duration_s=4.0, warm_up_s=0.0)
        for n, median in enumerate((4.3, 9.0, 4.4, 12.0))
    ]
    assert decide(side(runs=4), group(levels)[0], P50).verdict == "inconclusive"
    assert decide(side(runs=4), side(made_runs.Load(7.0), runs=4), P50).verdict == "fail"


def test_sides_with_unequal_numbers_of_runs_are_compared_as_they_are(side, made_runs):
    result = decide(side(runs=5), side(made_runs.Load(8.0), runs=7, seed=30), P90)
    assert result.verdict == "fail"
    assert any("not taken in turn" in note for note in result.notes)


def test_it_says_when_runs_were_not_taken_in_turn(side, base, same):
    later = side(seed=5, minute=30)
    assert any("not taken in turn" in note for note in decide(base, later, P50).notes)
    assert decide(base, same, P50).notes == ()


# Limits of the candidate alone, and of what is no latency.


@pytest.mark.parametrize(("bound", "verdict"), [("20ms", "pass"), ("1ms", "fail")])
def test_a_bound_holds_the_candidate_alone(base, same, bound, verdict):
    result = decide(base, same, parse_gate_limits([f"p90<={bound}"]))
    assert result.verdict == verdict
    metric = found(result, "p90")
    assert metric.absolute
    assert metric.unit == "s"
    assert metric.difference.baseline is None
    assert metric.difference.change == pytest.approx(metric.difference.candidate)


def with_runs(measurement, change):
    """The measurement, each of whose runs `change(run)` replaces fields of."""
    runs = tuple(
        msgspec.structs.replace(one, run=msgspec.structs.replace(one.run, **change(one.run)))
        for one in measurement.runs
    )
    return msgspec.structs.replace(measurement, runs=runs, model=runs[0].run.model)


def starting(measurement, seconds):
    steps = iter(range(100))
    return with_runs(measurement, lambda _: {"start_up_s": seconds * (1 + next(steps) % 3 / 200)})


def test_start_up_is_gated_where_it_is_known(base, same):
    limits = parse_gate_limits(["start_up=20%"])
    assert decide(starting(base, 1.0), starting(same, 1.5), limits).verdict == "fail"
    assert decide(starting(base, 1.0), starting(same, 1.0), limits).verdict == "pass"
    assert "let mlserve start it" in decide(base, same, limits).reasons[0]


def using(measurement, rss_bytes):
    from mlserve.runs.resources import ProcessUse, Resources

    def use(role, pid, size):
        return ProcessUse(role=role, pid=pid, cpu=0.5, rss_max_bytes=size)

    steps = iter(range(100))
    return with_runs(
        measurement,
        lambda _: {
            "resources": Resources(
                processes=(
                    use("server", 1, rss_bytes // 2 + next(steps) % 2),
                    use("server", 2, rss_bytes // 2),
                    use("generator", 3, 10**9),
                )
            )
        },
    )


def test_memory_is_what_all_processes_of_the_server_used(base, same):
    limits = parse_gate_limits(["memory=10%"])
    result = decide(using(base, 100_000_000), using(same, 150_000_000), limits)
    assert result.verdict == "fail"
    assert found(result, "memory").difference.candidate == pytest.approx(150_000_000, rel=1e-6)
    assert decide(using(base, 100_000_000), using(same, 101_000_000), limits).verdict == "pass"
    assert "is not known" in decide(base, same, limits).reasons[0]


def modelled(measurement, **changes):
    return with_runs(measurement, lambda run: {"model": msgspec.structs.replace(run.model, **changes)})


def test_size_is_exact_and_equal_sizes_keep_a_limit_of_nothing(base, same):
    limits = parse_gate_limits(["size=0%"])
    assert decide(base, same, limits).verdict == "pass"
    result = decide(base, modelled(same, size_bytes=90_400_001), limits)
    assert result.verdict == "fail"
    assert found(result, "size").confirmed
    assert decide(base, modelled(same, size_bytes=None), limits).verdict == "inconclusive"


def test_accuracy_is_judged_by_points_and_by_the_interval_of_its_loss(base, same, made_runs):
    def lossy(low, loss, high):
        accuracy = msgspec.structs.replace(made_runs.INT8_ACCURACY, loss=loss, loss_low=low, loss_high=high)
        return modelled(same, accuracy=accuracy, sha256="b" * 64, variant="int8")

    limits = parse_gate_limits(["accuracy=1%"])
    assert decide(base, lossy(0.001, 0.002, 0.003), limits).verdict == "pass"
    assert decide(base, lossy(0.018, 0.02, 0.022), limits).verdict == "fail"
    open_result = decide(base, lossy(-0.02, 0.005, 0.03), limits)
    assert open_result.verdict == "inconclusive"
    assert found(open_result, "accuracy").difference.change == pytest.approx(-0.005)
    assert "has no interval" in decide(base, lossy(None, 0.002, None), limits).reasons[0]
    assert decide(base, same, limits).verdict == "pass"  # the same file


# Requests that were not answered.


def test_more_failures_fail_a_candidate_however_fast_it_is(side, made_runs, base):
    result = decide(base, side(made_runs.Load(1.0, failed=0.1), seed=1), P90)
    assert result.verdict == "fail"
    assert [metric.verdict for metric in result.metrics] == ["fail", "pass"]
    assert decide(base, side(made_runs.Load(1.0), seed=1), P90).verdict == "pass"
    assert found(decide(base, side(made_runs.Load(1.0, dropped=0.1)), P90), "error_rate").verdict == "fail"


def test_failures_count_though_they_made_the_run_invalid(side, made_runs, base):
    answered = msgspec.structs.replace(made_runs.LATE, name="answered", found="10% of the requests sent failed")
    result = decide(base, side(made_runs.Load(failed=0.1), checks=(answered,)), P90)
    assert result.verdict == "fail"
    assert [(metric.metric, metric.verdict) for metric in result.metrics] == [
        ("error_rate", "fail"),
        ("p90", "inconclusive"),
    ]
    assert "in runs that are INVALID" in result.metrics[1].reason


def test_a_limit_on_failures_can_be_tighter_or_looser(side, made_runs, base):
    failing = side(made_runs.Load(failed=0.1), seed=1)
    assert decide(base, failing, parse_gate_limits(["error_rate=30%"])).verdict == "pass"
    assert decide(base, failing, parse_gate_limits(["error_rate=0.01%"])).verdict == "fail"
    assert decide(base, failing, parse_gate_limits(["error_rate<=30%"])).verdict == "fail"  # the guard holds as well
    assert decide(failing, failing, parse_gate_limits(["error_rate<=1%"])).verdict == "fail"
    none_seen = decide(base, base, parse_gate_limits(["error_rate=0.01%"]))
    assert none_seen.verdict == "inconclusive"  # none seen is not none possible


def test_no_failures_among_few_requests_are_enough_where_no_limit_asks_for_more(side):
    few = side(duration_s=1.0, runs=4)
    assert found(decide(few, few, P50), "error_rate").verdict == "pass"
    assert found(decide(few, few, (Limit("error_rate", 0.01),)), "error_rate").verdict == "inconclusive"


# What may not be compared.


@pytest.mark.parametrize("which", ["baseline", "candidate"])
def test_an_invalid_run_leaves_it_open_whatever_the_figures_say(base, slow, side, made_runs, which):
    sides = {"baseline": base, "candidate": slow}
    sides[which] = side(checks=(made_runs.ENOUGH, made_runs.LATE))
    result = decide(*sides.values(), P90)
    assert result.verdict == "inconclusive"
    assert result.metrics[1].reason == "p90 is unknown: runs that it would rest on are INVALID"
    assert f"{which} minilm-fp32-rest-60rps" in result.reasons[0]
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
def test_unlike_loads_are_refused_unless_that_is_wanted(base, side, changes, difference):
    other = side(runs=4, **changes)
    with pytest.raises(UsageError, match=f"cannot be compared: {difference}.*--ignore-differences"):
        decide(base, other, P50)
    assert f"compared although they differ: {difference}" in decide(base, other, P50, ignore_differences=True).notes


def test_other_settings_and_software_are_what_a_gate_is_for_but_are_named(base, side, made_runs):
    tuned = msgspec.structs.replace(made_runs.SERVER, max_delay_ms=2.0, engine="openvino")
    newer = msgspec.structs.replace(made_runs.MACHINE, packages={**made_runs.MACHINE.packages, "onnxruntime": "2.0"})
    notes = decide(base, side(server=tuned, machine=newer), P50).notes
    assert "the server's settings differ: max delay ms 0 against 2" in notes
    assert "the server's settings differ: engine default against openvino" in notes
    assert "the software differs: onnxruntime 1.23.0 against 2.0" in notes


def test_errors_of_runs_that_the_other_side_has_no_partner_for_count_too(side, made_runs):
    clean, failing = side(runs=3), side(made_runs.Load(dropped=0.1), runs=9, minute=20, seed=20)
    mixed = msgspec.structs.replace(clean, runs=(*side(runs=3, minute=10, seed=10).runs, *failing.runs))
    metric = found(decide(clean, mixed, parse_gate_limits(["error_rate=0.5%"])), "error_rate")
    assert metric.verdict == "fail"
    assert metric.difference.candidate == pytest.approx(0.75 * 0.1, abs=0.02)


def test_a_side_must_be_one_measurement(made_runs):
    runs = [made_runs.record(made_runs.Load(), protocol=protocol, duration_s=1.0) for protocol in ("rest", "grpc")]
    with pytest.raises(UsageError, match=r"the baseline mixes 2 measurements \(protocol rest against grpc\)"):
        one_measurement(runs, "baseline")
    runs = [
        made_runs.record(made_runs.Load(), model=model, duration_s=1.0) for model in (made_runs.FP32, made_runs.INT8)
    ]
    with pytest.raises(UsageError, match="minilm@1 fp32 against minilm@2 int8"):
        one_measurement(runs, "candidate")
    assert len(one_measurement(runs[:1], "baseline").runs) == 1


def test_the_result_is_plain_data(base, slow):
    result = decide(base, slow, parse_gate_limits(["p90=10%,p90<=1ms,size=0%"]))
    assert msgspec.json.decode(msgspec.json.encode(result), type=type(result)) == result


def test_it_is_said_where_errors_pass_only_because_nobody_limited_them(side):
    told = "nobody limited error_rate"
    few, limits = (side(runs=1), side(runs=1, seed=9)), ["p50<=1s"]
    unasked = decide(*few, parse_gate_limits(limits))
    assert unasked.metrics[0].difference.high > unasked.metrics[0].limit
    assert any(told in note for note in unasked.notes)
    asked = decide(*few, parse_gate_limits([*limits, "error_rate=50%"]))
    assert asked.metrics[0].verdict == "pass"
    assert not any(told in note for note in asked.notes)
