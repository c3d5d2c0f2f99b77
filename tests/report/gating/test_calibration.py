"""Gates of a server against itself: what they say of a machine, and that it is heeded."""

import re

import msgspec
import pytest

from mlserve.errors import UsageError
from mlserve.report.gating.absolute import decide_against
from mlserve.report.gating.calibration import Calibrated, calibrate, read_calibration, unfit, write_calibration
from mlserve.report.gating.decision import decide_pairs
from mlserve.report.gating.limits import parse_gate_limits
from mlserve.report.gating.result import Finding, GateResult, MetricVerdict

P50 = parse_gate_limits(["p50=5%"])


def gate(change, *, spread=0.01, verdict="pass", suspected=False):
    """The result of a gate of a server against itself."""
    found = Finding(baseline=1.0, candidate=change, change=change, low=change - 0.03, high=change + 0.03, spread=spread)
    metric = MetricVerdict(
        metric="p50", difference=found, limit=1.05, verdict=verdict, pairs=8, was_suspected=suspected
    )
    return GateResult(verdict=verdict, reasons=(), metrics=(metric,), notes=(), baseline_runs=(), candidate_runs=())


AGREEING = [gate(change) for change in (1.0, 1.01, 0.99, 1.005, 0.995, 1.012, 0.99, 1.0)]
APART = [gate(change) for change in (1.1, 0.9, 1.12, 0.95, 1.08, 0.91, 1.0, 1.05)]


def test_the_false_alarm_rate_has_an_interval_and_is_told_in_words(made_runs):
    alarms = calibrate(
        [*AGREEING, gate(1.2, verdict="fail", suspected=True), gate(1.0, suspected=True)], made_runs.MACHINE
    ).false_alarms
    assert (alarms.gates, alarms.failed, alarms.suspected) == (10, 1, 2)
    assert (alarms.low, alarms.high) == pytest.approx((0.0025, 0.4450), abs=1e-4)  # Clopper and Pearson's 1 of 10
    assert (
        alarms.words
        == "1 of 10 gates of a server against itself failed (95% interval 0.3% to 44.5%), 2 raised a suspicion"
    )


def test_gates_that_agree_as_their_runs_do_add_no_doubt_and_gates_that_do_not_add_theirs(made_runs):
    assert calibrate(AGREEING, made_runs.MACHINE).between("p50").variance == 0
    lasting = calibrate(APART, made_runs.MACHINE).between("p50")
    assert lasting.variance**0.5 == pytest.approx(0.08, rel=0.25)
    assert lasting.df == 8
    assert calibrate(APART, made_runs.MACHINE).one_pair("p50").variance == pytest.approx(8 * 0.01**2)
    assert calibrate(APART, made_runs.MACHINE).one_pair("p99") is None


def test_a_calibration_is_read_as_it_was_written(tmp_path, made_runs):
    path = tmp_path / "gate" / "calibration.json"
    calibration = calibrate(APART, made_runs.MACHINE)
    write_calibration(path, calibration)
    assert read_calibration(path) == calibration
    for text, message in (
        (b"{", "is damaged"),
        (path.read_bytes().replace(b'"format_version": 1', b'"format_version": 9'), "has format 9"),
    ):
        path.write_bytes(text)
        with pytest.raises(UsageError, match=message):
            read_calibration(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_calibration(tmp_path / "none.json")


def test_one_gate_calibrates_nothing(made_runs):
    with pytest.raises(UsageError, match=r"1 gates .* calibrate nothing"):
        calibrate(AGREEING[:1], made_runs.MACHINE)


def test_what_gates_differ_by_on_this_machine_is_no_regression(side, made_runs, pairs_of):
    pairs = pairs_of(side(runs=8), side(made_runs.Load(4.4), runs=8, seed=60))
    assert decide_pairs(pairs, P50).suspected == ("p50",)
    result = decide_pairs(pairs, P50, calibration=calibrate(APART, made_runs.MACHINE))
    assert (result.verdict, result.suspected) == ("inconclusive", ())
    assert result.false_alarms.gates == 8
    assert decide_pairs(pairs, P50, calibration=calibrate(AGREEING, made_runs.MACHINE)).suspected == ("p50",)


def test_a_calibration_of_another_machine_is_not_used_and_that_is_said(side, made_runs, pairs_of):
    elsewhere = msgspec.structs.replace(made_runs.MACHINE, cores=64)
    pairs = pairs_of(side(runs=8), side(made_runs.Load(4.4), runs=8, seed=60))
    result = decide_pairs(pairs, P50, calibration=calibrate(APART, elsewhere))
    assert result.suspected == ("p50",)
    assert result.false_alarms is None
    assert any("cores 64 against 2" in note for note in result.notes)


@pytest.mark.parametrize(("median_ms", "times"), [(4.0, r"1\.0\d\d|0\.9\d\d"), (8.0, r"[12]\.[90]\d\d")])
def test_what_runs_of_one_day_differ_by_says_nothing_of_another_day(side, made_runs, median_ms, times):
    """Twice as slow is told, and is no verdict: the machine itself may be so on another day. A bound decides."""
    calibration = calibrate(AGREEING, made_runs.MACHINE)
    candidate = side(made_runs.Load(median_ms), runs=1, minute=90, seed=5)
    result = decide_against(side(runs=1), candidate, P50, calibration=calibration)
    assert result.verdict == "inconclusive"
    (reason,) = result.reasons
    assert re.search(rf"p50 is unknown: it was found at ({times}) times the baseline's, but how much sessions", reason)
    assert "runs or a calibration of one day do not show it; keep a history" in reason
    assert "nothing shows how much sessions of the same server differ" in result.notes
    repeated = side(made_runs.Load(median_ms), minute=90, seed=5)
    bound = decide_against(side(), repeated, parse_gate_limits(["p50<=6ms"]), calibration=calibration)
    assert bound.verdict == ("pass" if median_ms == 4.0 else "fail")


def test_a_percentile_that_the_runs_do_not_hold_is_not_told_either(side):
    p999 = parse_gate_limits(["p99.9=5%"])
    (reason,) = decide_against(side(runs=1), side(runs=1, minute=90, seed=5), p999).reasons
    assert "p99.9 is unknown: how much sessions" in reason


def test_a_calibration_of_another_model_load_or_way_of_serving_is_not_used(made_runs, side, pairs_of):
    base, other = side(), side(seed=40)

    def of(**said):
        usual = {"model": base.model.name, "conditions": base.conditions, "duration_s": 4.0, "limits": P50}
        return calibrate(APART, made_runs.MACHINE, Calibrated(**(usual | said)))

    assert unfit(of(), base) == ""
    assert "is of another model (vit against minilm)" in unfit(of(model="vit"), base)
    faster = msgspec.structs.replace(base.conditions, rate_per_s=300.0)
    assert "is of another load" in unfit(of(conditions=faster), base)
    assert "runs of 9 s against 4 s" in unfit(of(duration_s=9.0), base)
    assert "were kept up" in unfit(of(kept=True), base)
    assert unfit(of(kept=True), base, kept=True) == ""
    pairs = pairs_of(base, other)
    refused = decide_pairs(pairs, P50, calibration=of(model="vit"))
    assert refused.false_alarms is None
    assert any("is of another model" in note for note in refused.notes)
    assert decide_pairs(pairs, P50, calibration=of()).false_alarms is not None


def test_servers_that_stay_up_are_judged_by_what_processes_differ_by_where_that_is_known(made_runs, side, pairs_of):
    base, slow = side(), side(made_runs.Load(5.0), seed=40)
    pairs, one = pairs_of(base, slow), side()
    kept = Calibrated(model=one.model.name, conditions=one.conditions, duration_s=4.0, limits=P50, kept=True)
    unknown = decide_pairs(pairs, P50, kept=True)
    assert (unknown.about, unknown.suspected) == ("processes", ("p50",))
    known = decide_pairs(pairs, P50, kept=True, calibration=calibrate(APART, made_runs.MACHINE, kept))
    assert (known.about, known.suspected) == ("servers", ())  # processes differ by 8%: half a gate of noise


def test_highest_rates_and_memory_that_agree_exactly_are_not_known_exactly(side, pairs_of, made_runs):
    base, same = side(), side(seed=40)
    rated = pairs_of(base, same, (1000.0, 910.0))
    rate = decide_pairs(rated, parse_gate_limits(["max_rate=10%"])).metrics[-1]
    assert rate.verdict == "inconclusive"
    assert rate.difference.low < 0.9
    assert rate.difference.high > 0.91
    fine = decide_pairs(rated, parse_gate_limits(["max_rate=10%"]), resolution=0.002).metrics[-1]
    assert fine.verdict == "pass"
    memory = decide_pairs(pairs_of(base, base), parse_gate_limits(["memory=5%"])).metrics[-1]
    assert memory.difference is None or memory.difference.low < 1.0 < memory.difference.high
