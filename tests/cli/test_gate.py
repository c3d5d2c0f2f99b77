"""`mlserve gate` as CI runs it: the exit status is the answer. In this process, but where servers are measured."""

import json
import shutil
from xml.etree import ElementTree as ET

import msgspec
import pytest
from typer.testing import CliRunner

from mlserve.cli.gate_wishes import highest_percentile
from mlserve.cli.main import app
from mlserve.report.gating.limits import parse_gate_limits
from mlserve.runs.load import Bursts
from mlserve.runs.run import find_runs, read_run

REPEATS = 6


@pytest.fixture(scope="module")
def runs(made_runs, tmp_path_factory, tiny_onnx):
    """Folders of repeats, all taken in turn, to hold against each other, and two models."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(tiny_onnx, folder / name)
    plenty = {"rate_per_s": 300.0, "duration_s": 4.0, "warm_up_s": 0.0}
    kinds = {
        "main": (made_runs.Load(4.0), {}),
        "same": (made_runs.Load(4.0), {}),
        "slow": (made_runs.Load(8.0), {}),
        "failing": (made_runs.Load(1.0, failed=0.05), {}),
        "invalid": (made_runs.Load(4.0), {"checks": (made_runs.LATE,)}),
        "grpc": (made_runs.Load(4.0), {"protocol": "grpc"}),
    }
    for number, (name, (load, said)) in enumerate(kinds.items()):
        for repeat in range(REPEATS):
            made_runs.save(
                folder / name / str(repeat),
                load,
                seed=100 * number + repeat,
                minute=len(kinds) * repeat + number,
                **(plenty | said),
            )
    made_runs.save(folder / "one" / "run", made_runs.Load(4.0), minute=1, **plenty)
    return folder


@pytest.fixture
def gate(monkeypatch, tmp_path, runs):
    """Runs `mlserve gate ARGUMENTS...` where the runs are, as if at home and not in CI."""
    monkeypatch.chdir(runs)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_SHA"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["gate", *map(str, arguments)])


def flat(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("candidate", "status", "verdict", "reason"),
    [
        ("same", 0, "pass", ""),
        ("slow", 1, "fail", "p50 is worse than the limit, and by more than noise"),
        ("failing", 1, "fail", "error_rate is worse than the limit"),
        ("one", 3, "inconclusive", "p50 is unknown: one run says nothing of how much runs differ"),
        ("invalid", 3, "inconclusive", "is INVALID: generator on time"),
    ],
)
def test_the_exit_status_is_the_verdict_and_the_reason_is_said(gate, candidate, status, verdict, reason):
    done = gate("main", candidate, "--max-regression", "p50=20%")
    assert done.exit_code == status, done.output
    assert verdict in done.stdout.splitlines()
    assert reason in flat(done.stdout)
    assert done.stderr == ""


def test_several_limits_are_all_shown(gate):
    options = ["--max-regression", "p50=10%,p99=10%", "--limit", "error_rate=5%", "--slo", "p90=5s"]
    done = gate("main", "slow", *options)
    assert done.exit_code == 1
    lines = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:5]}
    assert lines == {"error_rate": "pass", "p50": "fail", "p99": "fail", "p90": "pass"}


def test_an_objective_alone_is_a_limit_and_the_same_bound_beside_it_is_no_other(gate):
    assert gate("main", "same", "--slo", "p50=1ms").exit_code == 1
    assert gate("main", "same", "--slo", "p50=1s", "--limit", "p50<=1000ms").exit_code == 0


def test_its_json_says_the_same(gate):
    done = gate("main", "slow", "--max-regression", "p50=10%", "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document["verdict"] == "fail"
    assert [metric["metric"] for metric in document["metrics"]] == ["error_rate", "p50"]
    assert document["metrics"][1]["difference"]["low"] > document["metrics"][1]["limit"] == 1.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main", "grpc", "--limit", "p99=10%"], "cannot be compared: protocol rest against grpc"),
        (["main", "same", "--limit", "p42x=10%"], "'p42x' cannot be gated; use a latency percentile"),
        (["main", "same", "--limit", "p99"], "'p99' is no limit"),
        (["main", "same", "--limit", "p99=5"], "'5' would be 500%; did you mean 5%?"),
        (["main", "main", "--limit", "p99=10%"], "main is given twice"),
        (["runs/main", "runs/branch", "--limit", "p99=10%"], "there is no runs/main"),
        (
            ["a.onnx", "b.onnx", "--limit", "p99=9%", "--rps", "50", "--duration", "1s"],
            "50 requests a run, and p99 takes 459",
        ),
        (["main", "same"], "nothing is limited; give --max-regression"),
        (
            ["main", "same", "--limit", "p50=9%", "--slo", "p99<=50ms"],
            "that is no percentile from p50 on; write one such",
        ),
        (["main", "--against", "slow", "--limit", "p50=9%", "--slo", "p99"], "'p99' is no limit; write NAME=VALUE"),
        (
            ["main", "same", "--limit", "p90<=1s", "--slo", "p90=5s"],
            "--slo p90=5s and the limit p90<=1000ms contradict each other",
        ),
        (["--limit", "p99=10%"], "nothing was named to compare"),
        (["main", "--limit", "p99=10%"], "main is compared with nothing; give CANDIDATE"),
        (["main", "nothing", "--limit", "p99=10%"], "nothing holds no run, and main does"),
        (["main", ".", "--limit", "p99=10%"], ". holds no run, and main does"),
        (["main", "same", "--limit", "p99=10%", "--rps", "5"], "--rps says how to measure, and main was measured"),
        (["main", "same", "--limit", "p99=10%", "--badge", "b.png"], "--badge b.png is of no known kind"),
        (["main", "same", "--limit", "p99=10%", "--junit", "main"], "--junit main is a folder"),
        (["main", "same", "--limit", "p99=10%", "--against", "slow"], "two are given; leave same out"),
        (["main", "--limit", "p99=10%", "--against", "gone"], "there is no gone; begin a history with"),
        (["main", "--limit", "p99=10%", "--against", "is gone"], "mlserve gate RUNS --append 'is gone', or"),
        (
            ["main", "--limit", "p99=9%", "--against", "slow", "--may-differ", "cpus"],
            "'cpus' is nothing that is compared",
        ),
        (["main", "--limit", "p99=9%", "--against", "slow", "--history", "gone"], "gone holds no history"),
        (["main", "--limit", "p99=9%", "--against", "slow", "--ignore-differences"], "name what --may-differ"),
        (["main", "same", "--limit", "p99=9%", "--history", "gone"], "name them with --against"),
        (["a.onnx", "b.onnx", "--limit", "p99=9%", "--may-differ", "cpu"], "made before, and these are not"),
        (["a.toml", "b.toml", "--limit", "p99=9%", "--threads", "2"], "a.toml cannot be read"),
        (["http://127.0.0.1:1", "gone.onnx", "--limit", "p99=9%"], "gone.onnx cannot be read"),
        (
            ["main", "same", "--limit", "p99=10%", "--calibration", "gone.json"],
            "the calibration gone.json cannot be read",
        ),
        (["main", "same", "--config", "gone.toml"], "gone.toml cannot be read"),
        (["a.onnx", "b.onnx", "--limit", "p99=10%", "--base-python", "gone"], "there is no interpreter gone"),
        (["a.onnx", "b.onnx", "--limit", "start_up=9%", "--keep-servers"], "leave out --keep-servers"),
        (["a.onnx", "b.onnx", "--limit", "max_rate=9%"], "give it with --slo p99=50ms"),
        (["a.onnx", "b.onnx", "--calibrate", "--limit", "p99=9%"], "leave b.onnx out"),
        (["a.onnx", "--calibrate", "--junit", "x.xml", "--limit", "p99=9%"], "no verdict that --junit could tell"),
        (["a.onnx", "--calibrate", "--times", "1", "--limit", "p99=9%"], "--times 1 is out of range"),
        (
            ["http://127.0.0.1:1", "http://127.0.0.1:2", "--threads", "2", "--limit", "p99=9%"],
            "runs already, and is not set by us",
        ),
    ],
)
def test_misuse_ends_with_two_and_the_reason(gate, runs, arguments, message):
    done = gate(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stdout == ""
    assert not (runs / "runs").exists()


def test_unlike_runs_are_compared_where_that_is_wanted(gate):
    done = gate("main", "grpc", "--max-regression", "p50=20%", "--ignore-differences")
    assert done.exit_code == 0, done.output
    assert "note: compared although they differ: protocol rest against grpc" in flat(done.stdout)


def test_a_file_says_what_flags_say_and_flags_win_over_it(gate, tmp_path):
    file = tmp_path / "gate.toml"
    file.write_text('base = "main"\ncandidate = "slow"\nlimits = ["p50=20%"]\n')
    assert gate("--config", file).exit_code == 1
    assert gate("main", "same", "--config", file).exit_code == 0
    assert gate("--config", file, "--max-regression", "p50=900%").exit_code == 0
    file.write_text('base = "main"\ncandidate = "same"\nlimits = ["p50=90%"]\n[load]\nslo = "p50=1ms"\n')
    assert gate("--config", file).exit_code == 1
    file.write_text('base = "main"\ncandidate = "same"\nlimits = ["p50=90%"]\n[load]\nslo = "p50<=1ms"\n')
    assert gate("--config", file).exit_code == 2
    file.write_text('mode = "absolute"\nbase = "main"\ncandidate = "slow"\nlimits = ["p50<=1ms"]\n')
    assert gate("--config", file).exit_code == 1


def test_ci_gets_junit_a_badge_and_a_comment(gate, tmp_path):
    wanted = {"junit": "gate.xml", "badge": "badge.svg", "comment": "comment.md"}
    flags = [word for name, file in wanted.items() for word in (f"--{name}", tmp_path / "new" / file)]
    assert gate("main", "slow", "--limit", "p50=10%", *flags).exit_code == 1
    suite = ET.parse(tmp_path / "new" / "gate.xml").getroot().find("testsuite")
    assert (suite.get("failures"), suite.get("tests")) == ("2", "3")
    assert "latency gate: fail" in (tmp_path / "new" / "badge.svg").read_text()
    assert "mlserve gate: fail" in (tmp_path / "new" / "comment.md").read_text()
    assert gate("main", "same", "--limit", "p50=20%", "--badge", tmp_path / "badge.json").exit_code == 0
    assert json.loads((tmp_path / "badge.json").read_text())["message"] == "pass"


def test_ci_gets_its_files_where_the_gate_ends_by_an_error_too(gate, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    wanted = {"junit": "gate.xml", "badge": "badge.svg", "comment": "comment.md"}
    flags = [word for name, file in wanted.items() for word in (f"--{name}", tmp_path / file)]
    done = gate("http://127.0.0.1:1", "http://127.0.0.1:2", "--limit", "p50=5%", "--rps", "50", *flags)
    assert done.exit_code == 2, done.output
    suite = ET.parse(tmp_path / "gate.xml").getroot().find("testsuite")
    assert (suite.get("errors"), suite.get("failures"), suite.get("tests")) == ("1", "0", "1")
    assert "127.0.0.1:1" in suite.find("testcase/error").get("message") + suite.find("testcase/error").text
    assert "latency gate: error" in (tmp_path / "badge.svg").read_text()
    assert "mlserve gate: error" in (tmp_path / "comment.md").read_text()
    assert "::error title=mlserve gate%3A error::" in done.stderr


def test_of_a_report_with_several_variants_the_one_that_matches_is_taken(gate, runs, tmp_path):
    report = tmp_path / "report.json"
    folders = [*find_runs(runs / "grpc"), *find_runs(runs / "main")]
    report.write_text(json.dumps({"results": [{"runs": [{"directory": str(folder)} for folder in folders]}]}))
    done = gate("slow", "--against", report, "--limit", "p50<=1ms")
    assert done.exit_code == 1, done.output
    candidate = gate("slow", "--against", runs / "grpc", "--limit", "p50<=1ms")
    assert (candidate.exit_code, "protocol grpc against rest" in candidate.stderr) == (2, True)


def test_github_gets_annotations_and_a_summary_and_stdout_stays_json(gate, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("# before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    done = gate("main", "slow", "--limit", "p50=10%", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["verdict"] == "fail"
    assert done.stderr.startswith("::error title=mlserve gate%3A fail::")
    assert summary.read_text().startswith("# before\n<!-- mlserve gate -->")
    assert "| p50 |" in summary.read_text()


def test_runs_are_held_against_those_of_another_day(gate):
    """All were made at one time here; `decide_against` has its own tests of what differs between days."""
    done = gate("slow", "--against", "main", "--limit", "p50<=1ms")
    assert done.exit_code == 1
    assert gate("slow", "--against", "main", "--limit", "p50<=1s").exit_code == 0


def test_what_may_differ_of_the_machines_is_said(gate, runs, tmp_path, made_runs):
    machine = msgspec.structs.replace(made_runs.MACHINE, packages=made_runs.MACHINE.packages | {"numpy": "9.9"})
    newer = tmp_path / "newer"
    for repeat in range(REPEATS):
        said = {"rate_per_s": 300.0, "duration_s": 4.0, "warm_up_s": 0.0, "machine": machine}
        made_runs.save(newer / str(repeat), made_runs.Load(4.0), seed=repeat, minute=1000 + repeat, **said)
    history = tmp_path / "history"
    for folder in find_runs(runs / "main"):
        assert gate(folder, "--append", history).exit_code == 0
    asked = [newer, "--against", "main", "--history", history, "--limit", "p50=50%"]
    refused = gate(*asked)
    assert refused.exit_code == 3
    assert "numpy 2.3.0 against 9.9" in flat(refused.stdout) or "numpy none against 9.9" in flat(refused.stdout)
    assert gate(*asked, "--may-differ", "numpy,onnxruntime").exit_code == 0
    assert gate(newer, "--against", history, "--limit", "p50=50%", "--may-differ", "numpy").exit_code == 0


def test_a_report_of_another_day_names_its_runs(gate, runs, tmp_path):
    report = tmp_path / "report.json"
    directories = [{"directory": str(folder)} for folder in find_runs(runs / "main")]
    report.write_text(json.dumps({"results": [{"runs": directories}]}))
    assert gate("slow", "--against", report, "--limit", "p50<=1ms").exit_code == 1
    report.write_text(json.dumps({"results": [{"runs": [{"directory": "gone"}]}]}))
    done = gate("slow", "--against", report, "--limit", "p50<=1ms")
    assert (done.exit_code, "names the run gone, which is not there" in done.stderr) == (2, True)
    report.write_text(json.dumps({"format_version": 3, "results": [{"runs": directories}]}))
    done = gate("slow", "--against", report, "--limit", "p50<=1ms")
    assert (done.exit_code, "report.json has format 3, this mlserve reads 1 to 2" in flat(done.stderr)) == (2, True)


def test_the_runs_of_a_report_are_found_beside_it_from_any_working_directory(gate, runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "main", tmp_path / "nightly" / "runs" / "main")
    report = tmp_path / "nightly" / "report" / "report.json"
    report.parent.mkdir()
    directories = [{"directory": f"runs/main/{folder.name}"} for folder in find_runs(runs / "main")]
    report.write_text(json.dumps({"format_version": 2, "results": [{"runs": directories}]}))
    done = gate("slow", "--against", report, "--limit", "p50<=1ms")
    assert done.exit_code == 1, done.output


def test_runs_that_are_named_win_over_those_of_a_file_with_a_history(gate, runs, tmp_path):
    history = tmp_path / "history"
    for folder in find_runs(runs / "main"):
        assert gate(folder, "--append", history).exit_code == 0
    file = tmp_path / "gate.toml"
    file.write_text(f'mode = "history"\nhistory = "{history}"\ncandidate = "slow"\nlimits = ["p50<=20ms"]\n')
    judged = {folder: gate(*folder, "--config", file, "--json") for folder in ((), ("same",))}
    runs_of = {folder: json.loads(done.stdout)["candidate_runs"] for folder, done in judged.items()}
    assert all(run.startswith("slow/") for run in runs_of[()])
    assert all(run.startswith("same/") for run in runs_of["same",])
    two = gate("same", "slow", "--config", file)
    assert (two.exit_code, "two are given; leave slow out" in flat(two.stderr)) == (2, True)
    against = json.loads(gate("same", "--config", file, "--against", "main", "--json").stdout)
    assert all(run.startswith("same/") for run in against["candidate_runs"])
    assert all(run.startswith("main/") for run in against["baseline_runs"])
    assert len(against["baseline_runs"]) == REPEATS


def test_a_history_is_begun_added_to_and_held_against(gate, runs, tmp_path):
    history = tmp_path / "history"
    for folder in find_runs(runs / "main"):
        assert gate(folder, "--append", history, "--commit", "abc").exit_code == 0
    lines = [line for file in history.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == REPEATS
    assert gate(runs / "slow" / "0", "--against", history, "--append", history, "--limit", "p50=20%").exit_code == 1
    assert sum(len(file.read_text().splitlines()) for file in history.glob("*.jsonl")) == REPEATS
    done = gate(runs / "same" / "0", "--against", history, "--append", history, "--limit", "p50=50%")
    assert done.exit_code in {0, 3}
    assert sum(len(file.read_text().splitlines()) for file in history.glob("*.jsonl")) == REPEATS + 1


def test_runs_that_are_not_valid_have_a_verdict_and_are_not_added(gate, runs, tmp_path):
    history = tmp_path / "history"
    for folder in find_runs(runs / "main"):
        assert gate(folder, "--append", history).exit_code == 0
    before = [file.read_text() for file in history.glob("*.jsonl")]
    done = gate("invalid", "--against", history, "--append", history, "--limit", "p50=50%,size<=900MB")
    assert done.exit_code == 3, done.output
    assert "inconclusive" in done.stdout.splitlines()
    assert flat(done.stderr) == f"not added to {history}: no run of invalid is VALID; measure again"
    assert [file.read_text() for file in history.glob("*.jsonl")] == before


def test_a_production_toml_is_served_as_it_says_or_refused(gate, tmp_path):
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    for file, more in ((old, ""), (new, "grpc_transport = 'grpcio'\n")):
        file.write_text(f'format_version = 1\n[serve]\nmodels = ["tiny@1"]\nstore = "models"\n{more}')
    for store, there in (([], "models"), (["--store", "others"], "others")):
        done = gate(old, old, "--limit", "p50=5%", *store)
        assert (done.exit_code, there in done.stderr) == (2, True), done.output
    (tmp_path / "gate.toml").write_text(f'base = "{old}"\ncandidate = "{old}"\nlimits = ["p50=5%"]\nstore = "others"\n')
    assert "others" in gate("--config", tmp_path / "gate.toml").stderr
    done = gate(new, new, "--limit", "p50=5%")
    assert 'new.toml: serve.grpc_transport = "grpcio" would change what is measured' in flat(done.stderr)


def test_servers_take_turns_and_the_runs_are_kept(gate, tiny_onnx, tmp_path):
    """From the command line to real servers and back: what it found in so short a time is another question."""
    load = ["--rps", "200", "--duration", "0.4s", "--warm-up", "0"]
    done = gate(
        *(tiny_onnx, tiny_onnx, "--limit", "p50=900%", "--budget", "1s", *load),
        *("--out", tmp_path / "out", "--junit", tmp_path / "gate.xml"),
    )
    assert done.exit_code == 3, done.output
    assert "enough samples" not in done.output  # for a p50, which alone is limited, there are
    made = {folder.name for folder in find_runs(tmp_path / "out")}
    assert any(name.startswith("01-base") for name in made)
    assert any(name.startswith("01-candidate") for name in made)
    runs = [read_run(folder) for folder in find_runs(tmp_path / "out")]
    assert all(isinstance(run.plan.shape, Bursts) and run.counts.scheduled >= 80 for run in runs)
    beside = [sum(process.role == "beside" for process in run.resources.processes) for run in runs]
    assert all(count >= 2 for count in beside)  # the other's server and its generator
    assert ET.parse(tmp_path / "gate.xml").getroot().find("testsuite").get("failures") == "0"
    assert "inconclusive" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("limits", "highest"),
    [("p50=5%,p99.9=9%,p95=5%", "p99.9"), ("p99<=50ms,p50=5%", "p99"), ("memory=5%,p10=5%", "p50")],
)
def test_a_run_must_hold_what_the_highest_percentile_that_is_limited_takes(limits, highest):
    assert highest_percentile(parse_gate_limits([limits])) == highest
