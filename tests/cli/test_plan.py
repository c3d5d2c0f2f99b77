"""`mlserve plan` as a user types it, on saved runs: no server, no load."""

import json

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from mlserve.cli.plan import plan
from mlserve.runs.run import read_run, write_run


@pytest.fixture(scope="module")
def report(made_runs, tmp_path_factory):
    """A folder of three runs of one server, of which the fastest is too slow."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, (rate_per_s, median_ms) in enumerate([(60.0, 4.0), (120.0, 5.0), (240.0, 40.0)]):
        made_runs.save(
            folder / str(number), made_runs.Load(median_ms), rate_per_s=rate_per_s, batch_rows=4, duration_s=20.0
        )
        run = read_run(folder / str(number))
        resources = msgspec.structs.replace(run.resources, energy_j=20.0 * (10 + rate_per_s / 10), energy_of=("cpu",))
        write_run(folder / str(number), msgspec.structs.replace(run, resources=resources))
    return folder


@pytest.fixture
def asked(monkeypatch):
    """`mlserve plan ARGUMENTS...`: its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    app = typer.Typer()
    app.command()(plan)

    def run(*arguments):
        done = CliRunner().invoke(app, [str(each) for each in arguments])
        return done.exit_code, done.stdout, done.stderr

    return run


def test_people_get_replicas_their_interval_cost_energy_and_what_is_assumed(asked, report):
    code, text, _ = asked("--report", report, "--rps", 1200, "--slo", "p99=20ms", "--price", "$1.20/h")
    assert code == 0
    lines = {line.split()[0]: line for line in reversed(text.splitlines()) if line}
    assert "11 replicas for 1,200/s, p99 within 20.0 ms" in text
    assert "120/s proven, 120/s met, 240/s missed" in lines["bears"]
    assert "10 bear the peak, 1 may be lost; 11 likely do, fewer than 6 cannot" in lines["replicas"]
    assert (
        "$13.20 an hour, 11 whole machines at $1.20; $0.000764 ($0.000417 to $0.000764) for 1,000 inferences"
        in lines["cost"]
    )
    assert "J for 1,000 inferences" in lines["energy"]
    assert "all the time, for no --mean-rps was given" in text
    assert "each replica has a whole machine of its own" in text
    assert "a replica uses 1 core of the 2 of its machine, as the one that was measured" in text


def test_programs_get_it_whole(asked, report):
    code, text, _ = asked(
        *("--report", report, "--rps", 1200, "--mean-rps", 600, "--slo", "p99=20ms", "--zones", 3, "--json")
    )
    assert code == 0
    document = json.loads(text)
    (found,) = document["plans"]
    assert found["bears"]["safe_per_s"] == 120.0
    assert found["safe"]["replicas"] == 15
    assert found["demand"]["rows"] == 4.0
    assert found["safe"]["cost_per_h"] is None
    assert found["lower_bound"] is False
    # 15 replicas at 40/s each, slower than any run: as at 60/s, 16 W
    assert found["joules_per_1000"]["mean"] == pytest.approx(15 * 16 / (600 * 4) * 1000)
    assert len(found["runs"]) == 3


def test_a_report_that_shows_no_end_is_called_a_lower_bound(asked, report):
    code, text, _ = asked("--report", report / "0", "--rps", 12000, "--slo", "p99=20ms", "--spare", 0)
    assert code == 0
    assert "200 replicas for 12,000/s" in text
    assert "60.0/s is only a lower bound of what one bears, for no run shows a rate that it misses" in text


def test_energy_that_nobody_measured_is_said_to_be_unknown(asked, made_runs, tmp_path):
    made_runs.save(tmp_path / "run", made_runs.Load(4.0), rate_per_s=60.0, duration_s=20.0)
    code, text, _ = asked("--report", tmp_path, "--rps", 1200, "--slo", "p99=20ms")
    assert code == 0
    assert "energy      not known" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rps 0 --slo p99=20ms", "--rps 0 is no load"),
        ("--rps nan --slo p99=20ms", "--rps nan is no load"),
        ("--rps 1e300 --slo p99=20ms", "--rps 1e+300 is no load; give a number above 0, and at most 1e+09"),
        ("--rps 10 --mean-rps 20 --slo p99=20ms", "--mean-rps 20 is above --rps 10"),
        ("--rps 10 --slo fast", "'fast' is no limit"),
        ("--rps 10 --slo p99=20ms --zones 1", "--zones 1"),
        ("--rps 10 --slo p99=20ms --price cheap", "--price 'cheap'"),
        ("--rps 10 --slo p99=20ms --price 1.20", "--price '1.20'"),
        ("--rps 10 --slo p99=1ms", "not even 60/s keeps p99 within 1.00 ms"),
        ("--rps 10 --slo p99.99=20ms", "too short for p99.99"),
    ],
)
def test_what_cannot_be_planned_is_told_in_one_line(asked, report, arguments, message):
    code, text, complaint = asked("--report", report, *arguments.split())
    assert (code, text) == (2, "")
    (line,) = complaint.splitlines()
    assert message in line


def test_a_path_without_runs_is_told(asked, tmp_path):
    code, _, complaint = asked("--report", tmp_path, "--rps", 10, "--slo", "p99=20ms")
    assert code == 2
    assert "holds no run" in complaint
