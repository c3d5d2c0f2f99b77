"""The live gate: in which order it measures, when it ends, what it keeps, and what it does not believe at once."""

from itertools import combinations

import msgspec
import pytest

from mlserve.errors import BenchError, EngineError, UsageError
from mlserve.report.measurement import read_runs
from mlserve.runs.load import Bursts
from mlserve.runs.run import Check
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.gating.calibrating import gate_against_itself
from mlserve.tuning.gating.live import run_gate

NOBODY_ELSE = Check(name="other work", ok=False, found="1.2 cores", limit="0.1 cores", advice="Stop it.")
A_DAY_S = 86_400.0


def run(asked, folder, servers, told, budget_s=A_DAY_S, **said):
    return run_gate(asked, folder, servers.opens, told, budget_s, runs=servers, **said)


def test_a_server_against_itself_passes_and_is_measured_a_b_b_a(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.004, noise=0.001)
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert (result.verdict, result.settled) == ("pass", True)
    names = [name for name, _ in servers.runs]
    assert names[:8] == [
        "01-base", "01-candidate", "02-candidate", "02-base",
        "03-base", "03-candidate", "04-candidate", "04-base",
    ]  # fmt: skip
    assert len(read_runs([tmp_path / "out"])) == len(names)
    assert servers.opened == [name.replace("candidate", "branch").replace("base", "main")[3:] + "@1" for name in names]
    assert servers.most_open == 1


def test_both_runs_of_a_pair_have_one_schedule_and_no_two_pairs_share_one(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.005, noise=0.001)
    run(live_gate(), tmp_path / "out", servers, told)
    seeds = {}
    for name, seed in servers.runs:
        seeds.setdefault(seed, []).append(name.rpartition("-")[0])
    assert all(len(pair) == 2 and len(set(pair)) == 1 for pair in seeds.values())


def test_a_slower_candidate_fails_only_when_fresh_runs_have_confirmed_it(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.006, noise=0.001)
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert (result.verdict, result.settled) == ("fail", True)
    p50 = next(one for one in result.metrics if one.metric == "p50")
    assert p50.confirmed
    assert p50.difference.change == pytest.approx(1.5, rel=0.1)
    suspicion = next(number for number, one in enumerate(told.results) if one.suspected)
    assert told.results[suspicion].verdict != "fail"
    fresh = [name for name, _ in servers.runs if name.startswith("fresh-")]
    assert len(fresh) >= 4
    assert [name for name, _ in servers.runs][-len(fresh) :] == fresh


class AnotherWhenAfresh:
    """The runs of `first`, and where they confirm those of `second`."""

    def __init__(self, first, second):
        self._first, self._second = first, second

    def one(self, subject_of, plan, where, *rest):
        servers = self._second if where.name.startswith("fresh-") else self._first
        return servers.one(subject_of, plan, where, *rest)


def test_a_suspicion_that_fresh_runs_do_not_bear_out_is_no_failure(tmp_path, two_servers, live_gate, told):
    """The candidate is slow until somebody looks twice."""
    first, second = two_servers(0.004, 0.006, noise=0.001), two_servers(0.004, 0.004, noise=0.001)
    folder, asked = tmp_path / "out", live_gate()
    result = run_gate(asked, folder, first.opens, told, A_DAY_S, runs=AnotherWhenAfresh(first, second))
    assert any(one.suspected for one in told.results)
    assert second.runs
    assert all(name.startswith("fresh-") for name, _ in second.runs)
    assert result.verdict != "fail"


def test_it_ends_when_another_block_would_not_fit_into_the_budget(tmp_path, two_servers, live_gate, told, clock):
    servers = two_servers(0.004, 0.0041, noise=0.1)
    result = run(live_gate("p50=1%"), tmp_path / "out", servers, told, budget_s=18.0, now_s=clock)
    assert (result.verdict, result.settled) == ("inconclusive", False)
    assert told.courses[-1].spent_s <= 18.0
    assert 1 < len(told.results) < 8
    longer = two_servers(0.004, 0.0041, noise=0.1)
    run(live_gate("p50=1%"), tmp_path / "longer", longer, told, budget_s=36.0, now_s=clock)
    assert len(longer.runs) > len(servers.runs)


def test_a_gate_that_was_cut_short_goes_on_where_it_stopped(tmp_path, two_servers, live_gate, told):
    folder, asked = tmp_path / "out", live_gate()
    first = two_servers(0.004, 0.004, noise=0.001, broken={"02-base": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(asked, folder, first, told)
    assert [name for name, _ in first.runs] == ["01-base", "01-candidate", "02-candidate"]
    second = two_servers(0.004, 0.004, noise=0.001)
    result = run(asked, folder, second, told)
    assert result.verdict == "pass"
    assert second.runs[0][0] == "02-base"
    third = two_servers(0.004, 0.004)
    again = run(asked, folder, third, told)
    assert result.notes[-1] == f"1 pair was made by an earlier call, and read from {folder}"
    assert again.notes[-1].endswith(f"pairs were made by an earlier call, and read from {folder}")
    without = [msgspec.structs.replace(each, notes=each.notes[:-1]) for each in (again, result)]
    assert msgspec.json.encode(without[0]) == msgspec.json.encode(without[1])
    assert (third.runs, third.opened) == ([], [])


def test_another_gate_in_the_same_folder_is_refused_by_what_differs(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.004, noise=0.001)
    run(live_gate(), tmp_path / "out", servers, told)
    with pytest.raises(UsageError, match=r"holds another gate: --max-regression .* there, .* now"):
        run(live_gate("p99=5%"), tmp_path / "out", servers, told)
    asked = live_gate()
    rebuilt = msgspec.structs.replace(asked, candidate=msgspec.structs.replace(asked.candidate, content="ab" * 32))
    with pytest.raises(UsageError, match=r"candidate: the content of the model, .* not set there, ab.* now"):
        run(rebuilt, tmp_path / "out", servers, told)


def test_a_pair_that_somebody_disturbed_is_taken_again_and_does_not_count(tmp_path, two_servers, live_gate, told):
    servers = two_servers(
        0.004, 0.004, noise=0.001, faults=lambda name: [NOBODY_ELSE] if name == "02-candidate" else []
    )
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert result.verdict == "pass"
    names = [name for name, _ in servers.runs]
    assert names[2:5] == ["02-candidate", "02-candidate-again2", "02-base-again2"]
    assert not any("02-candidate" in run and "again" not in run for run in result.candidate_runs)
    assert len({seed for _, seed in servers.runs[2:5]}) == 2


def test_no_rate_of_the_candidate_that_meets_the_objective_is_a_bound_from_above(
    tmp_path, two_servers, live_gate, told
):
    plan = msgspec.structs.replace(live_gate().plan, duration_s=2.0, rate_per_s=100.0)
    said = {"plan": plan, "objective": parse_slo("p90=20ms"), "resolution": 0.2}
    servers = two_servers(0.004, 0.03, noise=0.0)
    result = run(live_gate("max_rate=10%", **said), tmp_path / "out", servers, told)
    rate = next(one for one in result.metrics if one.metric == "max_rate")
    assert (result.verdict, rate.verdict, rate.difference.low) == ("fail", "fail", 0.0)
    # Each pair's search has arrivals of its own, those that confirm as well.
    searches = [
        {one.run.plan.seed for one in read_runs([folder])} for folder in sorted((tmp_path / "out").glob("*-base-max"))
    ]
    assert len(searches) >= 5
    assert all(one.isdisjoint(other) for one, other in combinations(searches, 2))
    turned = two_servers(0.03, 0.004, noise=0.0)
    result = run(live_gate("max_rate=10%", **said), tmp_path / "turned", turned, told, budget_s=0.0)
    assert "not even the base met the objective" in " ".join(result.reasons)


def test_servers_that_stay_up_are_judged_as_the_processes_they_are(tmp_path, two_servers, live_gate, told):
    result = run(live_gate(keep_servers=True), tmp_path / "out", two_servers(0.004, 0.006, noise=0.001), told)
    p50 = next(one for one in result.metrics if one.metric == "p50")
    assert (result.verdict, result.about, p50.confirmed) == ("fail", "processes", False)
    fresh = run(live_gate(), tmp_path / "fresh", two_servers(0.004, 0.006, noise=0.001), told)
    assert (fresh.verdict, fresh.about) == ("fail", "servers")


def test_a_load_that_never_holds_what_a_percentile_takes_is_refused(tmp_path, two_servers, live_gate, told):
    plan = msgspec.structs.replace(live_gate().plan, percentile=0.99)
    with pytest.raises(UsageError, match=r"50 requests/s for 4 s are 200 requests a run, and p99 takes 459"):
        run(live_gate("p99=5%", plan=plan), tmp_path / "out", two_servers(0.004, 0.004), told)


def test_a_machine_that_is_always_disturbed_decides_nothing_and_does_not_go_on(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.006, faults=lambda _: [NOBODY_ELSE])
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert result.verdict == "inconclusive"
    assert any("other work" in reason for reason in result.reasons)
    assert len(servers.runs) == 6  # the base five times, and the candidate the last time
    assert len(told.results) == 1


def test_servers_stay_up_where_that_is_wanted_and_are_started_again_to_confirm(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.006, noise=0.001)
    result = run(live_gate(keep_servers=True), tmp_path / "out", servers, told)
    assert result.verdict == "fail"
    assert servers.most_open == 2
    assert servers.opened == ["main@1", "branch@1"] * 2


def test_a_candidate_that_does_not_start_where_the_base_does_fails(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.004, broken={"branch@1": EngineError("there is no CUDA device")})
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert (result.verdict, result.settled) == ("fail", True)
    assert result.broken == "candidate (branch@1): there is no CUDA device"
    assert "another start confirms it" in result.reasons[0]
    assert [name for name, _ in servers.runs] == ["01-base", "01-base-again2"]  # the base works still


def test_a_base_that_does_not_start_is_an_error_that_names_it(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.004, broken={"main@1": EngineError("there is no CUDA device")})
    with pytest.raises(BenchError, match=r"^base \(main@1\): there is no CUDA device"):
        run(live_gate(), tmp_path / "out", servers, told)
    assert servers.runs == []


def test_what_was_asked_wrongly_is_no_fault_of_the_candidate(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.004, broken={"branch@1": UsageError("--data has no column x")})
    with pytest.raises(UsageError, match=r"^candidate \(branch@1\): --data has no column x"):
        run(live_gate(), tmp_path / "out", servers, told)


def test_a_candidate_that_breaks_only_once_is_measured_on(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.004, noise=0.001, broken={"02-candidate": BenchError("connection refused")})
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert (result.verdict, result.broken) == ("pass", "")
    names = [name for name, _ in servers.runs]
    assert names[2:6] == ["02-base-again2", "02-candidate-again2", "03-base", "03-candidate"]


@pytest.mark.parametrize("said", [{}, {"slot_s": 0.2}])
def test_two_hiccups_apart_are_no_start_that_confirms_another(tmp_path, two_servers, live_gate, told, said):
    broken = {folder: BenchError(f"{folder} is gone") for folder in ("02-candidate", "04-candidate")}
    servers = two_servers(0.004, 0.004, noise=0.001, broken=broken)
    result = run(live_gate(**said), tmp_path / "out", servers, told)
    assert (result.verdict, result.broken) == ("pass", "")
    assert [note for note in result.notes if "gone" in note] == [
        f"candidate (branch@1): {folder} is gone; it worked when it was started again" for folder in broken
    ]


class GoneOnceASearch:
    """Runs of which the candidate's first in each search for its highest rate breaks down."""

    def __init__(self, servers):
        self._servers, self._seen = servers, set()

    def one(self, subject_of, plan, folder, *rest):
        search = folder.parent.name
        if search.endswith("candidate-max") and search not in self._seen:
            self._seen.add(search)
            raise BenchError("it has gone")
        return self._servers.one(subject_of, plan, folder, *rest)


def test_a_hiccup_in_every_search_for_the_highest_rate_is_no_failure_either(tmp_path, two_servers, live_gate, told):
    plan = msgspec.structs.replace(live_gate().plan, duration_s=2.0, rate_per_s=100.0)
    asked = live_gate("max_rate=50%", plan=plan, objective=parse_slo("p90=20ms"), resolution=0.2)
    servers = two_servers(0.004, 0.004, noise=0.0)
    result = run_gate(asked, tmp_path / "out", servers.opens, told, A_DAY_S, runs=GoneOnceASearch(servers))
    assert (result.verdict, result.broken) == ("pass", "")
    assert sum("it has gone; it worked when" in note for note in result.notes) == len(result.candidate_runs) > 1


def test_a_candidate_whose_requests_fail_in_their_own_runs_fails(tmp_path, two_servers, live_gate, told):
    """Its runs are INVALID by its own doing, which is what a gate is to find."""
    failing = Check(name="answered", ok=False, found="10% failed", limit="at most 1%", advice="Look into its log.")
    servers = two_servers(
        0.004,
        0.004,
        noise=0.001,
        failed={"branch@1": 0.1},
        faults=lambda name: [failing] if "candidate" in name else [],
    )
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert (result.verdict, result.broken) == ("fail", "")
    found = {one.metric: one.verdict for one in result.metrics}
    assert found == {"error_rate": "fail", "p50": "inconclusive"}
    assert not any("again" in name for name, _ in servers.runs)
    assert any("INVALID by its own doing" in reason for reason in result.reasons)
    assert len([name for name, _ in servers.runs if name.startswith("fresh-")]) >= 8


def test_a_candidate_that_hardly_answers_fails_as_soon_as_another_start_shows_it(
    tmp_path, two_servers, live_gate, told
):
    servers = two_servers(0.004, 0.004, failed={"branch@1": 0.97}, faults=lambda _: [NOBODY_ELSE])
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert (result.verdict, len(servers.runs)) == ("fail", 8)  # on however busy a machine
    assert "requests failed, where the base answered its own" in result.broken
    again = two_servers(0.004, 0.004)
    assert run(live_gate(), tmp_path / "out", again, told).broken == result.broken
    assert again.runs == []


def test_a_gate_that_ended_by_disturbed_runs_goes_on_with_new_ones(tmp_path, two_servers, live_gate, told):
    busy = two_servers(0.004, 0.004, noise=0.001, faults=lambda _: [NOBODY_ELSE])
    assert run(live_gate(), tmp_path / "out", busy, told).verdict == "inconclusive"
    quiet = two_servers(0.004, 0.004, noise=0.001)
    result = run(live_gate(), tmp_path / "out", quiet, told)
    assert result.verdict == "pass"
    assert [name for name, _ in quiet.runs][:3] == ["01-base-again6", "01-candidate-again6", "02-candidate"]
    assert not any("INVALID" in reason for reason in result.reasons)


def test_where_neither_side_bears_the_load_nothing_is_decided(tmp_path, two_servers, live_gate, told):
    slow = Check(name="rate reached", ok=False, found="20/s", limit="at least 47/s", advice="Lower --rps.")
    servers = two_servers(0.004, 0.006, noise=0.001, faults=lambda _: [slow])
    result = run(live_gate(), tmp_path / "out", servers, told)
    assert (result.verdict, len(told.results)) == ("inconclusive", 1)
    p50 = next(one for one in result.metrics if one.metric == "p50")
    assert p50.reason == "p50 is unknown: no pair of runs can be believed"


def test_the_highest_rate_is_sought_in_every_pair_where_it_is_limited(tmp_path, two_servers, live_gate, told):
    plan = live_gate().plan
    asked = live_gate(
        "max_rate=10%",
        plan=msgspec.structs.replace(plan, duration_s=2.0, rate_per_s=100.0),
        objective=parse_slo("p90=20ms"),
        resolution=0.2,
    )
    servers = two_servers(0.004, 0.008, noise=0.0)
    result = run(asked, tmp_path / "out", servers, told)
    rate = next(one for one in result.metrics if one.metric == "max_rate")
    assert rate.difference.change == pytest.approx(0.5, rel=0.4)
    assert result.verdict == "fail"
    assert (tmp_path / "out" / "01-base-max" / "max.json").is_file()


@pytest.mark.parametrize(
    ("limits", "said", "message"),
    [
        (["max_rate=10%"], {}, "give it with --slo p99=50ms"),
        (["start_up=10%"], {"keep_servers": True}, "leave out --keep-servers"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_measured(
    tmp_path, two_servers, live_gate, told, limits, said, message
):
    servers = two_servers(0.004, 0.004)
    with pytest.raises(UsageError, match=message):
        run(live_gate(*limits, **said), tmp_path / "out", servers, told)
    assert servers.runs == []
    assert not (tmp_path / "out").exists()


def test_gates_of_a_server_against_itself_have_each_schedules_of_their_own(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.004, noise=0.001)
    results = gate_against_itself(
        live_gate(), 3, tmp_path / "out", lambda gate, folder: run(gate, folder, servers, told)
    )
    assert [result.verdict for result in results] == ["pass"] * 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gate-01", "gate-02", "gate-03"]
    assert len({seed for _, seed in servers.runs}) == len(servers.runs) / 2


def test_both_runs_of_a_pair_take_turns_by_one_schedule(tmp_path, two_servers, live_gate, told):
    servers = two_servers(0.004, 0.006, noise=0.001)
    result = run(live_gate(slot_s=0.2), tmp_path / "out", servers, told)
    assert (result.verdict, result.settled) == ("fail", True)
    assert servers.most_open == 2
    assert [name for name, _ in servers.runs][:4] == ["01-base", "01-candidate", "02-candidate", "02-base"]
    assert all(len(sides) == 2 for sides, _, _ in told.began)
    (shape,) = {each.run.plan.shape for each in read_runs([tmp_path / "out"])}
    assert isinstance(shape, Bursts)
    assert (shape.on_s, shape.off_s, shape.throughout) == (pytest.approx(0.18), pytest.approx(0.22), True)


def test_a_pair_of_which_one_run_is_missing_is_measured_again_whole(tmp_path, two_servers, live_gate, told):
    folder, asked = tmp_path / "out", live_gate(slot_s=0.2)
    first = two_servers(0.004, 0.004, noise=0.001, broken={"02-base": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(asked, folder, first, told)
    (folder / "01-base" / "run.json").unlink()
    second = two_servers(0.004, 0.004, noise=0.001)
    result = run(asked, folder, second, told)
    assert result.verdict == "pass"
    assert [name for name, _ in second.runs][:4] == ["01-base", "01-candidate", "02-candidate", "02-base"]


@pytest.mark.parametrize("name", ["main@1", "01-base"])
def test_a_base_that_breaks_while_turns_are_taken_is_named(tmp_path, two_servers, live_gate, told, name):
    servers = two_servers(0.004, 0.004, broken={name: BenchError("it has gone")})
    with pytest.raises(BenchError, match=r"base \(main@1\): it has gone"):
        run(live_gate(slot_s=0.2), tmp_path / "out", servers, told)


def test_a_candidate_that_breaks_while_turns_are_taken_fails_when_it_does_so_twice(
    tmp_path, two_servers, live_gate, told
):
    broken = {folder: BenchError("it has gone") for folder in ("02-candidate", "02-candidate-again2")}
    result = run(live_gate(slot_s=0.2), tmp_path / "out", two_servers(0.004, 0.004, broken=broken), told)
    assert result.verdict == "fail"
    assert "it has gone" in " ".join(result.reasons)
