"""A sweep: what is kept, what goes on, what fails, and what `mlserve report` makes of the folder."""

import json

import pytest

from mlserve.errors import BenchError, EngineError, UsageError
from mlserve.report.measurement import group, read_runs
from mlserve.report.names import Names
from mlserve.runs.load import Plan
from mlserve.tuning.ending import has_ended
from mlserve.tuning.grid import Sweep, parse_sweep
from mlserve.tuning.opening import Contender
from mlserve.tuning.sweep import run_sweep

MODEL = Contender("minilm@1", "minilm@1")
PLAN = Plan(rate_per_s=100.0, duration_s=6.0, warm_up_s=0.5)


def sweep(*axes, contenders=(MODEL,), repeats=1):
    return Sweep(contenders=contenders, axes=parse_sweep(axes), plan=PLAN, repeats=repeats)


def run(asked, folder, server, watcher):
    return run_sweep(asked, folder, server.opens, watcher, server.measure)


def test_every_cell_is_measured_in_every_round_and_the_folder_is_a_report(tmp_path, formula_server, quiet):
    server = formula_server()
    asked = sweep("rps=50,100", "users=4", "threads=1,2", repeats=2)
    results = run(asked, tmp_path / "out", server, quiet)
    assert [(result.cell.label, len(result.runs), result.reason) for result in results] == [
        (label, 2, "")
        for label in (
            "threads1-50rps", "threads1-100rps", "threads1-4users",
            "threads2-50rps", "threads2-100rps", "threads2-4users",
        )
    ]  # fmt: skip
    assert results[1].summary.answered == pytest.approx(2 * 6 * 100, rel=0.2)
    measurements = group(read_runs([tmp_path / "out"]))
    names = Names([one.identity for one in measurements], [one.conditions for one in measurements])
    assert {names.load(one.conditions) for one in measurements} == {
        "50 requests/s over REST", "100 requests/s over REST", "closed loop of 4 users over REST",
    }  # fmt: skip
    assert all(len(one.runs) == 4 for one in measurements)  # the formula's settings are always the same
    assert server.still_open == 0
    assert len(server.opened) <= 4


def test_the_watcher_is_told_how_much_is_done_and_how_long_the_rest_takes(tmp_path, formula_server, quiet):
    run(sweep("batch=1,2,4"), tmp_path / "out", formula_server(), quiet)
    courses = [course for *_, course in quiet.of("begins")] + [quiet.of("ends")[-1][-1]]
    assert [(course.done, course.total) for course in courses] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    left_s = [course.left_s for course in courses]
    assert left_s == sorted(left_s, reverse=True)
    assert left_s[-1] == 0.0
    assert left_s[1] >= 2 * 6.5


def test_a_sweep_that_was_cut_short_goes_on_where_it_stopped(tmp_path, formula_server, quiet):
    asked, folder = sweep("batch=1,2,4", repeats=2), tmp_path / "out"
    first = formula_server(broken={"batch2": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        run(asked, folder, first, quiet)
    cut = first.runs[-1][0]
    (folder / cut / "samples.arrow").write_bytes(b"half a row")
    assert not has_ended(folder)
    second = formula_server()
    results = run(asked, folder, second, quiet)
    assert has_ended(folder)
    assert all(len(result.runs) == 2 for result in results)
    assert {name for name, _ in first.runs[:-1]} | {name for name, _ in second.runs} == {
        f"batch{rows}-{number}" for rows in (1, 2, 4) for number in (1, 2)
    }
    assert not {name for name, _ in first.runs[:-1]} & {name for name, _ in second.runs}
    assert (folder / f"{cut}.interrupted-1" / "samples.arrow").read_bytes() == b"half a row"
    again = formula_server()
    assert run(asked, folder, again, quiet)[0].summary == results[0].summary
    assert (again.runs, again.opened) == ([], [])


def test_another_sweep_in_the_same_folder_is_refused_by_what_differs(tmp_path, formula_server, quiet):
    run(sweep("batch=1,2"), tmp_path / "out", formula_server(), quiet)
    with pytest.raises(UsageError, match=r"holds another sweep: --sweep batch=1,2 there, batch=1,4 now"):
        run(sweep("batch=1,4"), tmp_path / "out", formula_server(), quiet)


def test_a_cell_that_fails_is_recorded_with_its_reason_and_the_others_go_on(tmp_path, formula_server, quiet):
    server = formula_server(broken={"batch2": BenchError("the generator broke down")})
    good, bad = run(sweep("batch=1,2", repeats=2), tmp_path / "out", server, quiet)
    assert (len(good.runs), good.reason) == (2, "")
    assert (bad.runs, bad.summary, bad.reason) == ((), None, "the generator broke down")
    assert sum(name.startswith("batch2") for name, _ in server.runs) == 1  # not tried again in the second round
    (record,) = (tmp_path / "out").glob("*/failure.json")
    assert json.loads(record.read_text()) == {"reason": "the generator broke down"}
    assert len(read_runs([tmp_path / "out"])) == 2
    assert has_ended(tmp_path / "out")
    mended = run(sweep("batch=1,2", repeats=2), tmp_path / "out", formula_server(), quiet)
    assert [len(result.runs) for result in mended] == [2, 2]
    assert not list((tmp_path / "out").glob("*/failure.json"))


def test_a_server_that_does_not_start_fails_its_own_cells_only(tmp_path, formula_server, quiet):
    broken = Contender("broken@1", "broken@1")
    server = formula_server(broken={"broken@1": EngineError("there is no CUDA device")})
    results = run(sweep("batch=1,2", contenders=(MODEL, broken)), tmp_path / "out", server, quiet)
    assert [(len(result.runs), result.reason) for result in results] == [
        (1, ""),
        (1, ""),
        (0, "there is no CUDA device"),
        (0, "there is no CUDA device"),
    ]
    assert sorted(outcome.reason for outcome, *_ in quiet.of("ends")) == ["", ""] + ["there is no CUDA device"] * 2
