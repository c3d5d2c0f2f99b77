"""The highest rate that meets an objective, with its runs in a folder, and the curve that they show."""

import math

import pytest

from mlserve.errors import UsageError
from mlserve.report.measurement import read_runs
from mlserve.runs.load import Plan, Ramp
from mlserve.runs.run import Check
from mlserve.tuning.curve import curve_of
from mlserve.tuning.evidence import Objective
from mlserve.tuning.find_max import Judge, Quest, find_max, judged, step_plan
from mlserve.tuning.measuring import measure_run, read_recorded
from mlserve.tuning.opening import Contender, Source, opener
from mlserve.tuning.serving import ServerOptions

MODEL = Contender("minilm@1", "minilm@1")
# Of a queue whose service takes 1 ms: see test_search.
TRUTH_PER_S = 775.0
LATE = Check(name="generator on time", ok=False, found="9 ms", limit="1 ms", advice="")
BUSY = Check(name="steal", ok=False, found="30%", limit="5%", advice="")


def quest(**changes):
    usual = {
        "contender": MODEL,
        "plan": Plan(rate_per_s=1.0, duration_s=8.0, warm_up_s=1.0),
        "objective": Objective(percentile=0.99, limit_s=0.01, max_errors=0.001),
        "resolution": 0.1,
        "curve": False,
    }
    return Quest(**(usual | changes))


def search(asked, folder, server, watcher):
    return find_max(asked, folder, server.opens, watcher, server.measure)


def test_the_rate_is_found_from_nothing_and_its_runs_are_a_report(tmp_path, formula_server, quiet):
    server = formula_server()
    found = search(quest(curve=True), tmp_path / "out", server, quiet)
    assert found.end == "found"
    assert found.confirmed
    assert found.passed_per_s == pytest.approx(TRUTH_PER_S, rel=0.1)
    assert found.passed_per_s < found.failed_per_s <= 1.05 * found.passed_per_s * 1.001
    assert len(found.best) >= 2
    names = [name for name, _ in server.runs]
    assert names[0] == "estimate"
    assert names[1] == "step-01-750rps"  # three quarters of what a closed loop reaches, 1,000 a second
    assert sum(name.startswith("curve-") for name in names) == len(found.points) == 5
    assert len({plan.seed for _, plan in server.runs[1:]}) == len(server.runs) - 1
    assert len(read_runs([tmp_path / "out"])) == len(names)
    assert len(server.opened) == 1
    curve = curve_of([one.recorded for one in (*found.steps, *found.points)], 0.99)
    rates = [point.rate_per_s for point in curve.points]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.1 * found.passed_per_s, rel=0.01)
    # Power of such a queue is greatest at a load of 2 - sqrt(2), flat around it (Kleinrock 1979).
    assert curve.knee_per_s == pytest.approx(1000 * (2 - math.sqrt(2)), rel=0.3)
    assert curve.points[-1].percentile_s > 0.01


def test_a_search_that_was_cut_short_goes_on_where_it_stopped(tmp_path, formula_server, quiet):
    asked = quest(start_per_s=700.0)
    whole = formula_server()
    found = search(asked, tmp_path / "whole", whole, quiet)
    first = formula_server(broken={whole.runs[3][0]: KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        search(asked, tmp_path / "cut", first, quiet)
    second = formula_server()
    again = search(asked, tmp_path / "cut", second, quiet)
    assert [name for name, _ in (*first.runs[:-1], *second.runs)] == [name for name, _ in whole.runs]
    assert (again.passed_per_s, again.failed_per_s) == (found.passed_per_s, found.failed_per_s)
    third = formula_server()
    assert search(asked, tmp_path / "cut", third, quiet).passed_per_s == found.passed_per_s
    assert (third.runs, third.opened) == ([], [])
    with pytest.raises(UsageError, match=r"holds another max: --slo p99=10ms there, p99=1000ms now; --errors 0\.1%"):
        search(quest(start_per_s=700.0, objective=Objective(percentile=0.99, limit_s=1.0, max_errors=0.0)),
               tmp_path / "cut", third, quiet)  # fmt: skip


def test_steps_end_as_soon_as_they_prove_something(tmp_path, formula_server, quiet):
    found = search(quest(start_per_s=3000.0), tmp_path / "out", formula_server(), quiet)
    first = found.steps[0]
    assert (first.verdict.met, first.verdict.sure) == (False, True)
    assert first.recorded.run.window.duration_s < 4
    assert found.passed_per_s == pytest.approx(TRUTH_PER_S, rel=0.12)


def test_where_the_generator_is_the_limit_the_search_says_so(tmp_path, formula_server, quiet):
    server = formula_server(faults=lambda plan: [LATE] if plan.rate_per_s > 300 else [])
    found = search(quest(start_per_s=200.0), tmp_path / "out", server, quiet)
    assert found.end == "spoilt"
    assert found.why.startswith("the generator cannot offer more than 200/s: use --workers (generator on time: 9 ms")
    assert [one.rate_per_s for one in found.steps] == [200.0, 400.0, 400.0]
    assert found.passed_per_s == 200.0
    assert math.isinf(found.failed_per_s)
    assert not found.confirmed


def test_where_the_machine_is_not_quiet_nothing_is_believed(tmp_path, formula_server, quiet):
    found = search(quest(start_per_s=200.0), tmp_path / "out", formula_server(faults=lambda _: [BUSY]), quiet)
    assert found.why == "no run at 200/s can be believed: steal: 30%, limit: 5%"
    assert found.passed_per_s == 0.0


def test_one_spoilt_run_is_only_repeated(tmp_path, formula_server, quiet):
    spoilt = []

    def faults(plan):
        spoilt.append(plan.seed)
        return [LATE] if len(spoilt) == 2 else []

    found = search(quest(start_per_s=700.0), tmp_path / "out", formula_server(faults=faults), quiet)
    assert found.end == "found"
    assert [bool(one.blame) for one in found.steps].count(True) == 1
    assert found.steps[1].rate_per_s == found.steps[2].rate_per_s


def test_a_start_so_slow_that_a_run_holds_hardly_a_request_decides_nothing(tmp_path, formula_server, quiet):
    short = Plan(rate_per_s=1.0, duration_s=2.0, warm_up_s=0.0)
    found = search(quest(plan=short, start_per_s=0.5), tmp_path / "out", formula_server(), quiet)
    assert found.end == "found"
    assert found.passed_per_s == pytest.approx(TRUTH_PER_S, rel=0.2)
    assert min(len(one.recorded.samples) for one in found.steps) >= 459
    slow = search(quest(plan=short), tmp_path / "slow", formula_server(service_s=0.02), quiet)
    assert (slow.end, slow.passed_per_s) == ("runs too short", 0.0)
    assert slow.why.startswith(
        "even 261.6/s does not meet the objective, and runs of 2 s at a lower rate are too short"
    )


def test_a_finished_step_of_too_few_requests_is_no_evidence(tmp_path, formula_server, quiet):
    asked = quest(plan=Plan(rate_per_s=0.5, duration_s=2.0, warm_up_s=0.0))
    for rate_per_s, enough in ((0.5, False), (0.001, False), (500.0, True)):
        folder = tmp_path / f"{rate_per_s}"
        folder.mkdir()
        plan = step_plan(asked, rate_per_s, 0)
        formula_server().measure(lambda _: MODEL, plan, folder, "step", quiet.moves, None)
        step = judged(asked, read_recorded(folder))
        assert (step.verdict.enough, step.step.blame == "") == (enough, enough)
    assert step.blame == ""


def test_only_a_steady_open_loop_is_searched(tmp_path, formula_server, quiet):
    for plan in (
        Plan(rate_per_s=0.0, duration_s=8.0, warm_up_s=1.0, arrivals="closed", users=4),
        Plan(rate_per_s=10.0, duration_s=8.0, warm_up_s=1.0, shape=Ramp(20.0)),
    ):
        with pytest.raises(UsageError, match="searches a steady rate of an open loop"):
            search(quest(plan=plan), tmp_path / "out", formula_server(), quiet)


def test_a_real_run_is_ended_by_the_evidence_and_kept(tiny_onnx, tmp_path):
    """A limit that no server meets is proven to be missed long before the half minute that the run might take."""
    asked = quest(objective=Objective(percentile=0.9, limit_s=1e-6, max_errors=0.5))
    plan = Plan(rate_per_s=400.0, duration_s=30.0, warm_up_s=0.5, percentile=0.9)
    judge = Judge(asked.objective, plan)
    with opener(Source(store=tmp_path))(Contender(str(tiny_onnx), "tiny"), ServerOptions()) as subject_of:
        folder = tmp_path / "step"
        folder.mkdir()
        measure_run(subject_of, plan, folder, "step", lambda _: None, judge)
    recorded = read_recorded(folder)
    assert (judge.verdict.met, judge.verdict.sure) == (False, True)
    assert recorded.run.window.duration_s < 25
    assert len(recorded.samples) > 300
    assert not judged(asked, recorded).verdict.met
