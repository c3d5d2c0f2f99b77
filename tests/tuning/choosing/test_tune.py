"""A search in a folder: every run kept, gone on with where it stopped, and its verdict."""

import os
import signal
import subprocess
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
import pytest

from mlserve.errors import BenchError, EngineError, UsageError
from mlserve.report.choice import read_choice
from mlserve.report.measurement import read_runs
from mlserve.runs.load import Plan
from mlserve.runs.production import read_production, write_production
from mlserve.runs.run import Check
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.choose import Pace
from mlserve.tuning.choosing.chosen import evidence_of, production_of
from mlserve.tuning.choosing.record import Search, read_record
from mlserve.tuning.choosing.space import Space
from mlserve.tuning.choosing.tune import Tuning
from mlserve.tuning.ending import has_ended
from mlserve.tuning.prediction.prediction import Prediction
from mlserve.tuning.serving import ServerOptions
from mlserve.tuning.setting import Setting

# What a request takes at each version's server, and what was foretold of its p99.
SERVICE_S = {"slow@1": 0.004, "quick@1": 0.001, "other@1": 0.002}
FORETOLD_S = {"slow@1": 0.010, "quick@1": 0.002, "other@1": 0.0022}
PACE = Pace(budget_s=1e6, short_s=4.0, long_s=8.0, overhead_s=1.0)
SPACE = Space(
    settings=tuple(
        Setting(model=model, variant=model[:-2], options=ServerOptions(threads=1)) for model in sorted(SERVICE_S)
    )
)


def foretells(settings, objective, rate_per_s):
    return [
        Prediction(
            setting=one,
            rate_per_s=rate_per_s or 100.0,
            p50_s=FORETOLD_S[one.model] / 3,
            p99_s=FORETOLD_S[one.model],
            objective_s=FORETOLD_S[one.model],
            mean_batch_rows=1.0,
            utilization=0.3,
            max_rate_per_s=0.9 / SERVICE_S[one.model],
        )
        for one in settings
    ]


class Running(NamedTuple):
    name: str
    pids: tuple[int, ...]


class Servers:
    """Each version's own formula server, beside a process that stands for it. What was run is in `runs`; `stop_at`
    raises at that run, and those `killed`, from 1, lose their process. `faults` are as FormulaServer has them. Runs
    that are made at once are in `at_once_runs`, too; they break down unless there are `turns`.
    """

    def __init__(self, make, stop_at=None, broken=(), killed=(), faults=None, service_s=SERVICE_S, turns=True):
        self._server, self._stop_at, self._broken, self._killed = make(faults=faults), stop_at, broken, killed
        self._service_s, self._turns = service_s, turns
        self.runs, self.at_once_runs, self.foretold, self.opened, self.forgot = [], [], 0, [], []

    @contextmanager
    def opens(self, contender, options):
        if contender.name in self._broken:
            raise EngineError(f"{contender.name} does not load")
        with self._server.opens(contender, options), subprocess.Popen(["sleep", "600"]) as process:
            self.opened.append(contender.name)
            try:
                yield lambda _: Running(contender.name, (process.pid,))
            finally:
                process.kill()

    def one(self, subject_of, plan, folder, label, on_progress, decide):
        if len(self.runs) == self._stop_at:
            (folder / "samples.arrow").write_bytes(b"")
            raise KeyboardInterrupt
        self.runs.append(label)
        if len(self.runs) in self._killed:
            os.kill(subject_of(plan.protocol).pids[0], signal.SIGKILL)
        self._server.service_s = self._service_s[subject_of(plan.protocol).name]
        return self._server.measure(subject_of, plan, folder, label, on_progress, decide)

    def at_once(self, loads, slot_s, on_progress):
        """As if they had taken turns: whoever breaks down ends all."""
        if not self._turns:
            return [BenchError("it broke down") for _ in loads]
        self.at_once_runs.append([load.label for load in loads])
        for load in loads:
            self.one(load.subject_of, load.plan, load.folder, load.label, on_progress, None)
        return [None for _ in loads]

    def forget(self):
        self.forgot.append(len(self.runs))

    def predictor(self, settings):
        self.foretold += 1
        return foretells

    def tuning(self, folder, aim, pace=PACE):
        search = Search(
            models=tuple(sorted(SERVICE_S)),
            protocols=("rest",),
            aim=aim,
            plan=Plan(rate_per_s=1.0, duration_s=1.0, warm_up_s=1.0),
            short_s=pace.short_s,
            long_s=pace.long_s,
        )
        tuning = Tuning(search, pace, folder, self.opens, self)
        tuning.foretell(SPACE, self.predictor, 2, lambda _: None)
        return tuning


@pytest.fixture
def servers(formula_server):
    return lambda **settings: Servers(formula_server, **settings)


@pytest.fixture
def at_100(objective):
    return Aim(objective=objective, goal="latency", rate_per_s=100.0)


def test_the_best_is_confirmed_by_arrivals_of_its_own_and_becomes_a_file_and_a_report(
    tmp_path, servers, quiet, at_100, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    mine = servers()
    tuning = mine.tuning(tmp_path / "out", at_100)
    verdict = tuning.run(quiet)
    assert (verdict.pick.label, verdict.confirmed, verdict.valid) == ("quick rest 1x1 batch 32", True, True)
    assert verdict.runner_up.label.startswith("other")
    assert verdict.flip < 0.05
    assert verdict.pick.low <= verdict.pick.value <= verdict.pick.high
    assert 0 < verdict.near <= verdict.compared
    assert list(verdict.importance) == ["variant"]
    last = tuning.read(tuning.attempts[-1].folder).run.plan
    assert last.seed not in {tuning.read(one.folder).run.plan.seed for one in tuning.attempts[:-1]}
    assert last.duration_s == PACE.long_s
    assert len(read_runs([tmp_path / "out"])) == len(tuning.attempts) == len(mine.runs)
    proof = [tuning.read(one.folder) for one in evidence_of(tuning.attempts, verdict.pick.number)]
    made = production_of(tuning.contest, verdict, proof, tmp_path / "store")
    write_production(tmp_path / "production.toml", made)
    assert read_production(tmp_path / "production.toml") == made
    assert made.serve.models == ("quick@1",)
    assert made.expected.rate_per_s == 100.0
    assert made.expected.p99_low_ms <= made.expected.p99_ms <= made.expected.p99_high_ms
    assert made.evidence.valid


def test_a_search_that_was_cut_short_goes_on_where_it_stopped(tmp_path, servers, quiet, objective):
    aim = Aim(objective=objective)
    whole = servers()
    there = whole.tuning(tmp_path / "whole", aim).run(quiet)
    assert there.pick.label.startswith("quick")
    # Behind such a queue, p99 is 20 ms at a load of about 0.89: see test_search.
    assert there.rate_per_s == pytest.approx(890, rel=0.08)
    first = servers(stop_at=3)
    cut = first.tuning(tmp_path / "cut", aim)
    with pytest.raises(KeyboardInterrupt):
        cut.run(quiet)
    so_far = cut.keep()
    assert not so_far.confirmed
    assert so_far.why == "it was stopped before the best was confirmed"
    assert (so_far.pick is None) == (not any(one.met for one in cut.attempts))
    second = servers()
    verdict = second.tuning(tmp_path / "cut", aim).run(quiet)
    assert first.runs + second.runs == whole.runs
    assert (verdict.pick, verdict.rate_per_s) == (there.pick, there.rate_per_s)
    assert second.foretold == 0
    assert list((tmp_path / "cut").glob("*.interrupted-1"))
    third = servers()
    assert third.tuning(tmp_path / "cut", aim).run(quiet).pick == there.pick
    assert third.runs == []
    with pytest.raises(UsageError, match=r"holds another search: aim\.goal"):
        third.tuning(tmp_path / "cut", msgspec.structs.replace(aim, goal="cost"))


def test_what_a_search_had_confirmed_stays_so_when_it_is_stopped_as_it_goes_on(tmp_path, servers, quiet, objective):
    aim, poor = Aim(objective=objective), msgspec.structs.replace(PACE, budget_s=10.0)
    first = servers().tuning(tmp_path / "out", aim, poor)
    there = first.run(quiet)
    assert (there.confirmed, there.valid) == (True, True)
    early = servers().tuning(tmp_path / "out", aim)  # Ctrl-C comes before it is where it was
    early.attempts.extend(first.attempts[:-1])
    assert early.keep() is None
    assert read_record(tmp_path / "out").verdict == there
    again = servers(stop_at=1)
    tuning = again.tuning(tmp_path / "out", aim)
    with pytest.raises(KeyboardInterrupt):
        tuning.run(quiet)
    assert len(again.runs) == 1
    kept = tuning.keep()
    assert (kept.confirmed, kept.valid, kept.rate_per_s) == (True, True, there.rate_per_s)
    assert kept.pick.label == there.pick.label
    assert has_ended(tmp_path / "out")


def test_what_a_setting_costs_is_its_share_of_the_whole_machine_and_not_of_the_servers_cores(
    tmp_path, servers, objective
):
    mine = servers()
    tuning = mine.tuning(tmp_path / "out", Aim(objective=objective, goal="cost", price_per_h=1.2))
    tuning.foretell(SPACE, mine.predictor, 1, lambda _: None, machine_cores=4)
    assert tuning.contest.cost_at(0, 100.0) == pytest.approx(1.2 / 4 / 3600 * 1000 / 100.0)
    assert read_record(tmp_path / "out").cores == 1
    unpriced = msgspec.structs.replace(tuning.contest, aim=Aim(objective=objective, goal="cost"))
    assert unpriced.cost_at(0, 100.0) == pytest.approx(1000 / 100.0 / 4)  # seconds of the machine


def test_what_cannot_be_served_is_left_behind_with_the_servers_own_words(tmp_path, servers, quiet, at_100):
    mine = servers(broken=["quick@1"])
    verdict = mine.tuning(tmp_path / "out", at_100).run(quiet)
    assert verdict.pick.label.startswith("other")
    failed = next(one for one in verdict.tried if one.state == "failed")
    assert (failed.label[:5], failed.why) == ("quick", "quick@1 does not load")
    again = servers(broken=["quick@1"])
    assert again.tuning(tmp_path / "out", at_100).run(quiet) == verdict


ALIKE = {"service_s": SERVICE_S | {"quick@1": 0.00195}}


def test_the_best_that_are_close_are_measured_at_once_and_that_decides(tmp_path, servers, quiet, at_100):
    mine = servers(**ALIKE)
    tuning = mine.tuning(tmp_path / "out", at_100)
    verdict = tuning.run(quiet)
    assert (verdict.pick.label[:5], verdict.runner_up.label[:5], verdict.confirmed) == ("quick", "other", True)
    first, second = (one for one in tuning.attempts if one.in_turns)
    assert mine.at_once_runs == [[first.folder, second.folder]]
    assert (first.trial.beside, second.trial.beside) == ((second.number,), ())
    assert (first.seconds > 0, second.seconds) == (True, 0.0)  # the first counts the time of both
    assert ["confirm" in mine.runs[number] for number in mine.forgot] == [True]  # it is calibrated by itself
    plans = [tuning.read(one.folder).run.plan for one in (first, second)]
    assert plans[0] == plans[1]
    assert verdict.flip < 0.2
    # What shared the machine is no figure of a setting that had it to itself.
    other = next(one for one in verdict.tried if one.number == second.number)
    alone = next(one for one in tuning.attempts if one.number == second.number and not one.in_turns)
    assert (other.measured, other.value) == (alone.percentile_s, alone.percentile_s)
    assert read_choice(tuning.runs()).runner_up_folders == (alone.folder,)
    again = servers(**ALIKE)
    assert again.tuning(tmp_path / "out", at_100).run(quiet) == verdict
    assert again.runs == []


def test_what_cannot_be_measured_at_once_is_measured_one_by_one(tmp_path, servers, quiet, at_100):
    mine = servers(**ALIKE, turns=False)
    tuning = mine.tuning(tmp_path / "out", at_100)
    verdict = tuning.run(quiet)
    assert (verdict.pick.label[:5], verdict.confirmed) == ("quick", True)
    assert not any(one.in_turns for one in tuning.attempts)
    assert [one.trial.fidelity for one in tuning.attempts].count("long") == 2


def test_two_that_were_cut_short_at_once_are_made_again_at_once(tmp_path, servers, quiet, at_100):
    whole = servers(**ALIKE)
    there = whole.tuning(tmp_path / "whole", at_100).run(quiet)
    together = whole.at_once_runs[0]
    first = servers(**ALIKE, stop_at=whole.runs.index(together[1]))
    with pytest.raises(KeyboardInterrupt):
        first.tuning(tmp_path / "cut", at_100).run(quiet)
    second = servers(**ALIKE)
    found = second.tuning(tmp_path / "cut", at_100).run(quiet)
    assert found.pick == there.pick
    assert second.at_once_runs in ([together], [])


def test_what_cannot_be_timed_is_left_out(tmp_path, servers, at_100):
    mine = servers()
    usual = mine.predictor

    def predictor(settings):
        if settings[0].model == "quick@1":
            raise EngineError("no such engine here")
        return usual(settings)

    mine.predictor = predictor
    tuning = mine.tuning(tmp_path / "out", at_100)
    assert tuning.left_out == {"quick@1 cpu": "no such engine here"}
    assert {one.model for one in tuning.contest.settings} == {"slow@1", "other@1"}


def test_where_nothing_meets_the_objective_the_nearest_is_told_and_what_would_help(tmp_path, servers, quiet, objective):
    impossible = Aim(objective=msgspec.structs.replace(objective, limit_s=0.0015), goal="latency", rate_per_s=400.0)
    verdict = servers().tuning(tmp_path / "out", impossible).run(quiet)
    assert verdict.pick is None
    assert verdict.nearest.startswith("quick rest 1x1 batch 32: p99 ")
    assert "times the limit" in verdict.nearest
    assert verdict.needed.startswith("--slo p99=")
    assert all(one.why for one in verdict.tried)
    assert read_record(tmp_path / "out").verdict == verdict


def test_predictions_made_beside_other_work_are_made_again_until_a_run_rests_on_them(tmp_path, servers, quiet, at_100):
    def tuning(mine, disturbed):
        mine.predictor = lambda _: (
            lambda *asked: [msgspec.structs.replace(one, disturbed=disturbed) for one in foretells(*asked)]
        )
        return mine.tuning(tmp_path / "out", at_100)

    def kept():
        return {one.disturbed for one in read_record(tmp_path / "out").predictions}

    tuning(servers(), 0.3)
    assert kept() == {0.3}
    again = tuning(servers(stop_at=1), 0.2)
    assert kept() == {0.2}
    with pytest.raises(KeyboardInterrupt):
        again.run(quiet)
    tuning(servers(), 0.0)
    assert kept() == {0.2}


def test_a_run_whose_server_was_killed_is_made_again_on_a_fresh_one_and_is_no_slow_one(
    tmp_path, servers, quiet, at_100
):
    mine = servers(killed=[1])
    tuning = mine.tuning(tmp_path / "out", at_100)
    verdict = tuning.run(quiet)
    first, second = tuning.attempts[:2]
    assert (first.failure, first.died) == ("the server ended with signal 9", True)
    assert (second.trial, second.failure) == (first.trial, "")
    assert mine.opened[:2] == ["quick@1", "quick@1"]
    assert verdict.pick.label.startswith("quick")
    assert len(read_runs([tmp_path / "out"])) == len(tuning.attempts) - 1
    again = servers()
    assert again.tuning(tmp_path / "out", at_100).run(quiet) == verdict
    assert again.runs == []


def test_a_setting_whose_server_dies_twice_is_out_with_the_reason(tmp_path, servers, quiet, at_100):
    verdict = servers(killed=[1, 2]).tuning(tmp_path / "out", at_100).run(quiet)
    assert verdict.pick.label.startswith("other")
    quick = next(one for one in verdict.tried if one.label.startswith("quick"))
    assert (quick.state, quick.why) == ("failed", "the server ended with signal 9")


def test_a_pick_whose_fresh_runs_are_all_invalid_stands_as_not_confirmed(tmp_path, servers, quiet, at_100):
    busy = Check(name="other work", ok=False, found="80% of a core", limit="at most 10%", advice="Stop it.")
    tuning = servers(faults=lambda plan: [busy] if plan.duration_s == PACE.long_s else []).tuning(
        tmp_path / "out", at_100
    )
    verdict = tuning.run(quiet)
    assert (verdict.confirmed, verdict.valid) == (False, False)
    assert verdict.why == "its 3 fresh runs were INVALID: other work"
    assert [one.trial.fidelity for one in tuning.attempts[-3:]] == ["confirm"] * 3
    proof = [tuning.read(one.folder) for one in evidence_of(tuning.attempts, verdict.pick.number)]
    assert not production_of(tuning.contest, verdict, proof, tmp_path / "store").evidence.valid
    still = servers(faults=lambda plan: [busy] if plan.duration_s == PACE.long_s else [])
    verdict = still.tuning(tmp_path / "out", at_100).run(quiet)  # asked once more
    assert (verdict.why, len(still.runs)) == ("its 6 fresh runs were INVALID: other work", 3)
    cut = servers(stop_at=0)
    with pytest.raises(KeyboardInterrupt):
        cut.tuning(tmp_path / "out", at_100).run(quiet)
    assert not has_ended(tmp_path / "out")  # it goes on, so that who watches it goes on too
    quieter = servers()
    assert quieter.tuning(tmp_path / "out", at_100).run(quiet).confirmed
    assert len(quieter.runs) == 1
    assert has_ended(tmp_path / "out")


def test_the_file_of_a_search_that_is_damaged_is_refused(tmp_path, servers, quiet, at_100):
    servers().tuning(tmp_path / "out", at_100).run(quiet)
    (tmp_path / "out" / "tune.json").write_text("{")
    with pytest.raises(UsageError, match=r"tune\.json is damaged"):
        servers().tuning(tmp_path / "out", at_100)


def test_a_folder_of_a_run_that_never_began_is_swept_away_and_one_with_rows_is_kept(tmp_path, servers, quiet, at_100):
    servers().tuning(tmp_path / "out", at_100)
    for name in ("001-short-never-began", "002-short-began"):
        (tmp_path / "out" / name).mkdir()
    (tmp_path / "out" / "002-short-began" / "samples.arrow").write_bytes(b"")
    servers().tuning(tmp_path / "out", at_100)
    assert [path.name for path in (tmp_path / "out").glob("00*")] == ["002-short-began"]


def test_the_file_of_another_mlserve_is_refused_as_such(tmp_path, servers, quiet, at_100):
    servers().tuning(tmp_path / "out", at_100).run(quiet)
    path = tmp_path / "out" / "tune.json"
    path.write_text(path.read_text().replace('"cores"', '"kernels"'))
    with pytest.raises(UsageError, match=r"tune\.json is of another mlserve than this one"):
        servers().tuning(tmp_path / "out", at_100)
