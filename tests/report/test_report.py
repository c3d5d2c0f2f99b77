"""The report as a value: results in the order they are read, and commands that make the runs again."""

import shlex

import msgspec

from mlserve.report.command import bench_command
from mlserve.report.report import build_report


def test_results_of_one_load_stand_together_and_variants_keep_their_order(demo_report):
    assert [(result.load, result.variant) for result in demo_report.results] == [
        ("60 requests/s over REST", "fp32"),
        ("60 requests/s over REST", "int8"),
        ("60 requests/s over gRPC", "fp32"),
        ("60 requests/s over gRPC", "int8"),
    ]
    assert [result.recommended for result in demo_report.results] == [False, True, False, True]
    assert all(len(result.runs) == 2 for result in demo_report.results)
    assert len(demo_report.machines) == 1


def test_the_figures_of_a_result_are_those_of_its_valid_runs(made_runs):
    def report_on(*runs):
        return build_report(runs, max_accuracy_loss=0.01, created_at="2026-11-21T13:00:00+00:00").results[0]

    good = made_runs.record(made_runs.Load(4.0))
    spoilt = made_runs.record(made_runs.Load(400.0), checks=(made_runs.LATE,), minute=1)
    both, alone, invalid = report_on(good, spoilt), report_on(good), report_on(spoilt)
    assert both.summary == alone.summary
    assert [run.valid for run in both.runs] == [True, False]
    assert both.valid
    assert not invalid.valid
    assert invalid.summary.percentile("p50").latency_s > 0.1


def test_the_command_says_all_that_the_plan_says(made_runs):
    run = made_runs.record(made_runs.Load(), protocol="grpc", batch_rows=8, seed=3).run
    words = shlex.split(bench_command(run))
    assert words[:3] == ["mlserve", "bench", "minilm@1"]
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags["--protocol"] == "grpc"
    assert flags["--rps"] == "60"
    assert flags["--duration"] == "20s"
    assert flags["--batch"] == "8"
    assert flags["--data"] == "sentences.txt"
    assert flags["--threads"] == "1"


def test_the_command_for_a_server_that_was_not_ours_names_its_address_and_sets_nothing(made_runs):
    run = made_runs.record(made_runs.Load(), server=None, payload="synthetic rows (seed 0), 32 bodies").run
    words = shlex.split(bench_command(run))
    assert words[2] == "http://127.0.0.1:40001"
    assert not {"--workers", "--device", "--data"} & set(words)


def test_a_command_is_one_line_of_shell_whatever_the_names_are(made_runs):
    evil = msgspec.structs.replace(made_runs.FP32, name="a; rm -rf /\n`id`", url="http://h/$(id)")
    for server in (made_runs.SERVER, None):
        words = shlex.split(bench_command(made_runs.record(made_runs.Load(), model=evil, server=server).run))
        assert words[2] in ("a; rm -rf /\n`id`@1", "http://h/$(id)")
