"""What one replica bears, read from saved runs: a search, a sweep, a report, a production.toml."""

import json

import msgspec
import pytest

from mlserve.errors import RunFileError, UsageError
from mlserve.report.capacity import Bears
from mlserve.report.report import Report
from mlserve.report.saved import newest_format
from mlserve.runs.load import Plan
from mlserve.runs.naming import named_runs
from mlserve.runs.production import Evidence, Expected, Production, ServeChoice, serve_digest, write_production
from mlserve.runs.run import Check, read_run, write_run
from mlserve.tuning.bearing import replicas_of
from mlserve.tuning.evidence import parse_slo
from mlserve.tuning.find_max import Quest, find_max
from mlserve.tuning.opening import Contender

OBJECTIVE = parse_slo("p99=20ms")
INVALID = Check(name="steady", ok=False, found="", limit="", advice="")
LATE = Check(name="generator on time", ok=False, found="", limit="", advice="")


@pytest.fixture
def measured(formula_server, tmp_path):
    """Puts one run of a server that takes 1 ms a request into a folder, for each rate; the folder."""

    def measure(*rates_per_s, folder="sweep", seconds=20.0, **settings):
        server = formula_server(**settings)
        for number, rate_per_s in enumerate(rates_per_s):
            place = tmp_path / folder / f"{number}-{rate_per_s:g}"
            place.mkdir(parents=True)
            plan = Plan(rate_per_s=float(rate_per_s), duration_s=seconds, warm_up_s=0.5, seed=number)
            server.measure(lambda _: Contender("m", "m"), plan, place, "m", None, None)
        return tmp_path / folder

    return measure


def test_a_search_says_what_is_proven_met_and_missed(formula_server, quiet, tmp_path):
    quest = Quest(
        contender=Contender("m", "m"),
        plan=Plan(rate_per_s=1.0, duration_s=6.0, warm_up_s=0.5),
        objective=OBJECTIVE,
        start_per_s=800.0,
        resolution=0.2,
    )
    server = formula_server()
    found = find_max(quest, tmp_path / "max", server.opens, quiet, server.measure)
    (replica,) = replicas_of(tmp_path / "max", OBJECTIVE)
    assert replica.bears.missed_per_s == found.failed_per_s
    assert replica.bears.met_per_s == found.passed_per_s
    assert 0.5 * found.passed_per_s <= replica.bears.safe_per_s <= found.passed_per_s
    assert replica.rows == 1.0
    assert len(replica.runs) == len(named_runs(tmp_path / "max"))


def test_a_sweep_says_it_for_another_objective_than_it_was_made_for(measured):
    folder = measured(200, 500, 950, 1200)
    (replica,) = replicas_of(folder, OBJECTIVE)
    assert replica.bears == Bears(safe_per_s=500.0, met_per_s=500.0, missed_per_s=950.0)
    (strict,) = replicas_of(folder, parse_slo("p99=1.5ms"))
    assert strict.bears is None
    assert "not even 200/s keeps p99 within 1.50 ms" in strict.lacking


def test_one_slow_run_is_a_lower_bound_and_a_short_one_proves_nothing(measured):
    (replica,) = replicas_of(measured(100), OBJECTIVE)
    assert replica.bears == Bears(safe_per_s=100.0, met_per_s=100.0, missed_per_s=None)
    (short,) = replicas_of(measured(100, folder="short", seconds=2.0), OBJECTIVE)
    assert short.bears is None
    assert "too short for p99, which takes 459" in short.lacking


def test_an_invalid_run_shows_no_rate_that_is_met_but_one_that_is_missed(measured):
    folder = measured(200, 1200, faults=lambda plan: [INVALID] if plan.rate_per_s > 1000 else [])
    (replica,) = replicas_of(folder, OBJECTIVE)
    assert replica.bears == Bears(safe_per_s=200.0, met_per_s=200.0, missed_per_s=1200.0)
    folder = measured(200, 1200, folder="other", faults=lambda plan: [INVALID] if plan.rate_per_s < 1000 else [])
    (replica,) = replicas_of(folder, OBJECTIVE)
    assert replica.bears is None
    folder = measured(200, 1200, folder="late", faults=lambda _: [LATE])
    (replica,) = replicas_of(folder, OBJECTIVE)
    assert "none of its 2 runs can be believed, INVALID by generator on time" in replica.lacking


def test_runs_that_contradict_one_another_are_a_miss_and_no_lack_of_time(measured):
    folder = measured(200, 1200)
    for place in folder.iterdir():
        run = read_run(place)
        write_run(place, msgspec.structs.replace(run, plan=msgspec.structs.replace(run.plan, rate_per_s=200.0)))
    (replica,) = replicas_of(folder, OBJECTIVE)
    assert replica.bears is None
    assert "not even 200/s keeps" in replica.lacking


def test_of_a_server_that_ran_already_no_machine_is_claimed(measured):
    folder = measured(200)
    for place in folder.iterdir():
        write_run(place, msgspec.structs.replace(read_run(place), server=None))
    (replica,) = replicas_of(folder, OBJECTIVE)
    assert replica.how.startswith("a server that ran already, asked from ")
    assert any("on a machine like its own, which no run names" in caveat for caveat in replica.caveats)


def test_settings_are_kept_apart_and_what_has_no_rate_is_left_out(measured):
    folder = measured(200, 500)
    for place in sorted(folder.iterdir())[:1]:
        run = read_run(place)
        server = msgspec.structs.replace(run.server, max_batch_rows=1)
        write_run(place, msgspec.structs.replace(run, server=server))
    one, other = replicas_of(folder, OBJECTIVE)
    assert (one.bears.met_per_s, other.bears.met_per_s) == (200.0, 500.0)
    assert "batches of 1" in one.how
    for place in folder.iterdir():
        run = read_run(place)
        plan = msgspec.structs.replace(run.plan, arrivals="closed", users=4, rate_per_s=0.0)
        write_run(place, msgspec.structs.replace(run, plan=plan))
    with pytest.raises(UsageError, match="no open-loop run at a steady rate"):
        replicas_of(folder, OBJECTIVE)


def test_other_requests_and_another_file_under_the_same_name_are_kept_apart(measured):
    folder = measured(200, 300, 400)
    alike, other_rows, other_file = sorted(folder.iterdir())
    run = read_run(other_rows)
    plan = msgspec.structs.replace(run.plan, payload="rows.txt (sha256 0), 4 bodies")
    write_run(other_rows, msgspec.structs.replace(run, plan=plan))
    run = read_run(other_file)
    write_run(other_file, msgspec.structs.replace(run, model=msgspec.structs.replace(run.model, sha256="f" * 64)))
    assert [each.bears.met_per_s for each in replicas_of(folder, OBJECTIVE)] == [200.0, 300.0, 400.0]
    assert replicas_of(other_rows, OBJECTIVE)[0].what.endswith(", rows.txt (sha256 0), 4 bodies")
    assert replicas_of(alike, OBJECTIVE)[0].bears.met_per_s == 200.0


def production(runs, *, valid=True, **expected):
    usual = {"protocol": "rest", "rate_per_s": 300.0, "batch_rows": 4, "p50_ms": 1.0, "p99_ms": 8.0}
    return Production(
        serve=ServeChoice(models=("m@1",)),
        expected=Expected(**usual, **expected),
        evidence=Evidence(runs=runs, valid=valid, cpu="x", cores=2, mlserve="0", measured_at="now"),
    )


def test_a_production_file_means_its_runs_and_without_them_itself(measured, tmp_path):
    folder = measured(200, 500, 950)
    path = tmp_path / "production.toml"
    names = tuple(f"sweep/{place.name}" for place in sorted(folder.iterdir())[:2])
    write_production(path, production(names))
    assert [each.resolve() for each in named_runs(path)] == sorted(folder.iterdir())[:2]
    (replica,) = replicas_of(path, OBJECTIVE)
    assert replica.bears == Bears(safe_per_s=500.0, met_per_s=500.0, missed_per_s=None)
    figures = {"p99_low_ms": 7.0, "p99_high_ms": 9.0, "slo": "p99=20ms", "max_rate_per_s": 700.0}
    write_production(path, production(("gone",), **figures))
    (promised,) = replicas_of(path, OBJECTIVE)
    assert promised.bears == Bears(safe_per_s=300.0, met_per_s=700.0, missed_per_s=None)
    assert promised.rows == 4.0
    (near,) = replicas_of(path, parse_slo("p99=8.5ms"))
    assert near.bears == Bears(safe_per_s=300.0, met_per_s=300.0, missed_per_s=None, proven=False)
    (other,) = replicas_of(path, parse_slo("p99=7.5ms"))
    assert other.bears is None
    write_production(path, production(("gone",), **figures | {"slo": "as fast as can be"}))
    (promised,) = replicas_of(path, OBJECTIVE)
    assert promised.bears == Bears(safe_per_s=300.0, met_per_s=300.0, missed_per_s=None)
    write_production(path, production(("gone",), valid=False, **figures))
    (invalid,) = replicas_of(path, OBJECTIVE)
    assert "INVALID" in invalid.lacking


def test_a_report_means_the_runs_that_it_shows_in_the_order_they_were_made(measured, tmp_path):
    folder = measured(200, 500)
    report = tmp_path / "report" / "report.json"
    report.parent.mkdir()
    shown = [{"directory": f"sweep/{place.name}"} for place in folder.iterdir()]
    for format_version in (1, newest_format(Report)):
        content = {"format_version": format_version, "results": [{"runs": shown}, {"runs": shown}]}
        report.write_text(json.dumps(content))
        assert {each.resolve() for each in named_runs(report)} == set(folder.iterdir())
    assert len(named_runs(report.parent)) == 2
    (run,) = named_runs(folder / "0-200" / "run.json")
    assert run == folder / "0-200"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        ("{", "names no runs"),
        ('{"results": []}', "names no runs"),
        ('{"results": [{"runs": [{"directory": "gone"}]}]}', "names the run gone, which is not there"),
        (
            '{"format_version": 3, "results": [{"runs": []}]}',
            "has format 3, this mlserve reads 1 to 2; use the mlserve",
        ),
    ],
)
def test_what_names_no_runs_is_refused(tmp_path, content, message):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunFileError, match=message):
        named_runs(path)
    with pytest.raises(RunFileError, match=r"holds no run|names no run|names the run|has format"):
        named_runs(tmp_path)


def test_a_production_file_of_a_search_means_all_that_was_measured_of_its_setting(measured, tmp_path):
    folder = measured(500, 800, 950, 1200)
    confirmed, _, _, other = sorted(folder.iterdir())
    run = read_run(other)
    write_run(other, msgspec.structs.replace(run, server=msgspec.structs.replace(run.server, max_batch_rows=1)))
    path = folder / "production.toml"
    write_production(path, production((f"sweep/{confirmed.name}",)))
    assert replicas_of(path, OBJECTIVE)[0].bears == Bears(safe_per_s=500.0, met_per_s=500.0, missed_per_s=None)
    (folder / "tune.json").write_text("{}")
    for named in (path, folder):
        (replica,) = replicas_of(named, OBJECTIVE)
        assert replica.bears.missed_per_s == 950.0
        assert 500.0 <= replica.bears.safe_per_s <= replica.bears.met_per_s < 950.0
        assert len(replica.runs) == 3
    assert named_runs(path) == [tmp_path / "sweep" / confirmed.name]  # bench --like makes the one run again


def test_of_a_file_whose_runs_are_gone_nothing_is_promised_once_its_settings_were_changed(tmp_path):
    path = tmp_path / "production.toml"
    made = production(("gone",), p99_low_ms=7.0, p99_high_ms=9.0)
    evidence = msgspec.structs.replace(made.evidence, serve_sha256=serve_digest(made.serve))
    made = msgspec.structs.replace(made, evidence=evidence)
    write_production(path, made)
    assert replicas_of(path, OBJECTIVE)[0].bears is not None
    write_production(path, msgspec.structs.replace(made, serve=msgspec.structs.replace(made.serve, workers=2)))
    (edited,) = replicas_of(path, OBJECTIVE)
    assert edited.bears is None
    assert "other settings than its [serve] has by now" in edited.lacking
