"""A gate that goes on: it looks now and then, and believes a suspicion only when fresh runs show it too."""

from pathlib import Path

import msgspec
import pytest

from mlserve.report.gating.decision import decide_pairs
from mlserve.report.gating.figures import KeptFigures, figure_of
from mlserve.report.gating.limits import parse_gate_limits
from mlserve.report.gating.looks import LOOKS
from mlserve.runs.load import Bursts

P90 = parse_gate_limits(["p90=10%"])


@pytest.fixture(scope="module")
def base(side):
    return side(runs=8)


@pytest.fixture(scope="module")
def slow(side, made_runs):
    return side(made_runs.Load(6.0), runs=8, seed=50)


@pytest.fixture(scope="module")
def same(side):
    return side(runs=8, seed=90)


def test_nothing_is_decided_before_the_first_look_and_no_suspicion_is_a_failure(base, slow, pairs_of):
    pairs = pairs_of(base, slow)
    early = decide_pairs(pairs[: LOOKS[0] - 1], P90)
    assert (early.verdict, early.suspected, early.settled) == ("inconclusive", (), False)
    assert early.metrics[-1].difference.low > 1.1  # clear as it is
    suspicion = decide_pairs(pairs[: LOOKS[0]], P90)
    assert (suspicion.verdict, suspicion.suspected, suspicion.settled) == ("inconclusive", ("p90",), False)
    assert suspicion.reasons == ("p90 looks worse than the limit; 4 fresh runs on each side must confirm it",)
    assert suspicion.metrics[-1].was_suspected


def test_fresh_runs_confirm_a_suspicion_or_clear_it(base, slow, same, pairs_of):
    first, again, clean = pairs_of(base, slow)[:4], pairs_of(base, slow)[4:], pairs_of(base, same)
    assert not decide_pairs(first, P90, fresh=again[:2]).settled
    confirmed = decide_pairs(first, P90, fresh=again)
    assert (confirmed.verdict, confirmed.suspected, confirmed.settled) == ("fail", (), True)
    assert confirmed.metrics[-1].confirmed
    assert "4 fresh runs of each side confirm it" in confirmed.reasons[0]
    cleared = decide_pairs(first, P90, fresh=clean)
    assert (cleared.verdict, cleared.suspected, cleared.settled) == ("pass", (), True)
    assert any("p90 looked worse than the limit" in note and "clear it" in note for note in cleared.notes)


def test_the_same_server_passes_without_any_suspicion(base, same, pairs_of):
    result = decide_pairs(pairs_of(base, same), P90)
    assert (result.verdict, result.suspected, result.settled) == ("pass", (), True)
    assert not any(metric.was_suspected for metric in result.metrics)


def test_a_verdict_stands_between_looks_and_more_pairs_do_not_take_it_back(base, same, pairs_of):
    pairs = pairs_of(base, same)
    at_look, between = decide_pairs(pairs[:6], P90), decide_pairs(pairs[:7], P90)
    assert at_look.metrics == between.metrics


def test_the_highest_rate_is_gated_downward(base, same, pairs_of):
    def judged(before, after):
        pairs = pairs_of(base, same)
        rated = [
            type(pair)(pair.baseline, pair.candidate, (before + n % 2, after - n % 3)) for n, pair in enumerate(pairs)
        ]
        return decide_pairs(rated, parse_gate_limits(["max_rate=5%"]))

    assert judged(800.0, 700.0).suspected == ("max_rate",)
    kept = judged(800.0, 820.0)
    assert kept.verdict == "pass"
    metric = kept.metrics[-1]
    assert (metric.sense, metric.limit) == ("at least", 0.95)
    assert 0.95 < metric.difference.low < metric.difference.change < metric.difference.high < 1.1
    unknown = decide_pairs(pairs_of(base, same), parse_gate_limits(["max_rate=5%"]))
    assert "only a live gate seeks it" in unknown.reasons[0]


def test_what_belongs_to_the_model_needs_no_fresh_runs(base, same, pairs_of):
    result = decide_pairs(pairs_of(base, same)[:4], parse_gate_limits(["size<=1MB"]))
    assert (result.verdict, result.suspected) == ("fail", ())


def test_failing_requests_are_suspected_and_confirmed_like_the_rest(side, made_runs, base, pairs_of):
    failing = pairs_of(base, side(made_runs.Load(1.0, failed=0.1), runs=8, seed=7))
    assert decide_pairs(failing[:4], P90).suspected == ("error_rate",)
    assert decide_pairs(failing[:4], P90, fresh=failing[4:]).verdict == "fail"


def test_an_invalid_pair_is_refused(side, made_runs, base, pairs_of):
    pairs = pairs_of(base, side(made_runs.Load(6.0), runs=8, checks=(made_runs.LATE,)))
    result = decide_pairs(pairs, P90)
    assert result.verdict == "inconclusive"
    assert "is INVALID" in result.reasons[0]


def test_figures_that_are_kept_are_those_that_were_drawn(base, slow):
    kept = KeptFigures()
    drawn = [figure_of(P90[0], one) for one in (base.runs[0], slow.runs[0])]
    folders = [msgspec.structs.replace(one.runs[0], directory=Path(name)) for name, one in (("a", base), ("b", slow))]
    asked = [kept(P90[0], one, None) for one in folders]
    assert asked == drawn
    assert drawn[0] != drawn[1]
    again = [kept(P90[0], one, None) for one in folders]
    assert all(one is other for one, other in zip(again, asked, strict=True))
    assert kept(parse_gate_limits(["p50=10%"])[0], folders[0], None) != asked[0]


@pytest.mark.parametrize(("throughout", "verdict"), [(True, "pass"), (False, "inconclusive")])
def test_what_a_machine_does_to_both_of_a_pair_that_takes_turns_is_no_noise(
    side, made_runs, pairs_of, throughout, verdict
):
    """By the same seed both see the same machine, whose pace wanders; runs one after the other are not known to."""
    shape = Bursts(on_s=0.1, off_s=0.1, throughout=throughout)
    base, candidate = (side(made_runs.Load(ms, wander=0.4), shape=shape, seed=3) for ms in (4.0, 4.04))
    result = decide_pairs(pairs_of(base, candidate), parse_gate_limits(["p50=5%"]))
    assert next(one.verdict for one in result.metrics if one.metric == "p50") == verdict
