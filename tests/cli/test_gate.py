"""`mlserve gate` as CI runs it: the exit status is the answer."""

import json

import pytest


@pytest.fixture(scope="module")
def runs(made_runs, tmp_path_factory):
    """Runs to hold against each other, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs")
    plenty = {"rate_per_s": 300.0}
    made_runs.save(folder / "main", made_runs.Load(4.0), **plenty)
    made_runs.save(folder / "same", made_runs.Load(4.0), seed=1, minute=1, **plenty)
    made_runs.save(folder / "slow", made_runs.Load(8.0), seed=2, minute=2, **plenty)
    made_runs.save(folder / "near", made_runs.Load(4.4), seed=3, minute=3, **plenty)
    made_runs.save(folder / "failing", made_runs.Load(1.0, failed=0.05), seed=4, minute=4, **plenty)
    made_runs.save(folder / "invalid", made_runs.Load(4.0), checks=(made_runs.LATE,), minute=5, **plenty)
    made_runs.save(folder / "grpc", made_runs.Load(4.0), protocol="grpc", minute=6, **plenty)
    made_runs.save(folder / "short", made_runs.Load(4.0), duration_s=1.0, minute=7, **plenty)
    return folder


@pytest.mark.parametrize(
    ("candidate", "status", "verdict", "reason"),
    [
        ("same", 0, "pass", ""),
        ("slow", 1, "fail", "p99 is worse than the limit, and by more than noise"),
        ("failing", 1, "fail", "error_rate is worse than the limit"),
        ("near", 3, "inconclusive", "p99 may lie on either side of the limit"),
        ("short", 3, "inconclusive", "p99 needs 459 answered requests"),
        ("invalid", 3, "inconclusive", "is INVALID: generator on time"),
    ],
)
def test_the_exit_status_is_the_verdict_and_the_reason_is_said(mlserve, runs, candidate, status, verdict, reason):
    done = mlserve("gate", runs / "main", runs / candidate, "--max-regression", "p99=10%")
    assert done.returncode == status, done.stdout + done.stderr
    assert verdict in done.stdout.splitlines()
    assert reason in " ".join(done.stdout.split())
    assert done.stderr == ""


def test_several_limits_are_all_shown(mlserve, runs):
    options = ["--max-regression", "p50=10%,p99=10%", "--max-regression", "error_rate=1%"]
    done = mlserve("gate", runs / "main", runs / "slow", *options)
    assert done.returncode == 1
    lines = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:4]}
    assert (lines["error_rate"], lines["p50"], lines["p99"]) == ("pass", "fail", "fail")


def test_its_json_says_the_same(mlserve, runs):
    done = mlserve("gate", runs / "main", runs / "slow", "--max-regression", "p99=10%", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["format_version"] == 1
    assert document["verdict"] == "fail"
    assert [metric["metric"] for metric in document["metrics"]] == ["error_rate", "p99"]
    assert document["metrics"][1]["difference"]["low"] > document["metrics"][1]["limit"] == 1.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main", "grpc", "--max-regression", "p99=10%"], "cannot be compared: protocol rest against grpc"),
        (["main", "same", "--max-regression", "p42x=10%"], "'p42x' cannot be gated; use a latency percentile"),
        (["main", "same", "--max-regression", "p99"], "'p99' is no limit"),
        (["main", "same"], "Missing option '--max-regression'"),
        (["main", "--max-regression", "p99=10%"], "Missing argument 'CANDIDATE'"),
        (["main", "nothing", "--max-regression", "p99=10%"], "nothing holds no run"),
        (["main", ".", "--max-regression", "p99=10%"], "the candidate mixes"),
    ],
)
def test_misuse_ends_with_two_and_the_reason(mlserve, runs, arguments, message):
    done = mlserve("gate", *arguments, cwd=runs)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unlike_runs_are_compared_where_that_is_wanted(mlserve, runs):
    done = mlserve("gate", runs / "main", runs / "grpc", "--max-regression", "p99=10%", "--ignore-differences")
    assert done.returncode == 0
    assert "note: compared although they differ: protocol rest against grpc" in done.stdout
