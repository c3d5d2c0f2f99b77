"""What a search chose, read from the files that the search itself writes."""

import shutil

import msgspec
import pytest

from mlserve.errors import RunFileError
from mlserve.report.choice import read_choice
from mlserve.report.diff import Side, diff
from mlserve.report.measurement import read_runs
from mlserve.report.render.charts import chart_groups
from mlserve.report.render.figures import highlights, knob_shares, rows
from mlserve.report.render.tables import result_table
from mlserve.report.report import Report, build_report
from mlserve.report.slo import Slo
from mlserve.report.usage import Usage

WHEN = "2026-11-21T13:00:00+00:00"


@pytest.fixture(scope="module")
def search_report(search_folder):
    return build_report(read_runs([search_folder]), max_accuracy_loss=0.01, created_at=WHEN)


def test_the_pick_stands_on_top_with_its_runner_up_and_the_chance_that_their_order_flips(search_report):
    assert search_report.recommendation.headline == "Serve int8 rest 1x1 batch 4"
    sentence = search_report.verdict.sentence
    assert sentence.startswith("int8 rest 1x1 batch 4 keeps p99 within 20.0 ms at 60.0/s: 4.65 ms (4.33 ms to 5.03 ms)")
    assert "the runner-up is int4 rest 1x1 batch 8" in sentence
    assert sentence.endswith("with a probability of 3%.")
    assert search_report.verdict.meets
    assert [one.variant for one in search_report.results if one.recommended] == ["int8"]
    assert search_report.recommendation.next_step.endswith("/production.toml")


def test_the_searchs_objective_is_judged_by_unless_another_is_given(search_report, search_folder):
    assert search_report.slo.words == "p99 within 20.0 ms, at most 0.1% errors"
    other = msgspec.structs.replace(search_report.slo, limit_s=0.001)
    runs = read_runs([search_folder])
    assert build_report(runs, max_accuracy_loss=0.01, created_at=WHEN, slo=other).slo == other


@pytest.fixture(scope="module")
def misled(made_search, made_runs, tmp_path_factory):
    """A search whose short run of the pick was thrice as slow as the run that confirmed it."""
    folder = made_search.save_search(tmp_path_factory.mktemp("misled") / "tune", made_runs)
    (short,) = folder.glob("*-short-int8")
    found = read_runs([short])[0].run
    shutil.rmtree(short)
    made_runs.save(short, made_runs.Load(9.0), model=found.model, server=found.server)
    return folder


def test_the_figures_of_the_pick_are_those_of_the_run_alone_that_confirmed_it(misled):
    report = build_report(read_runs([misled]), max_accuracy_loss=0.01, created_at=WHEN)
    (picked,) = [one for one in report.results if one.recommended]
    short, confirming = picked.runs
    assert short.directory.endswith("-short-int8")
    assert picked.summary == confirming.summary != short.summary
    assert picked.distribution.latency_s[-1] < short.summary.percentile("p50").latency_s
    p99 = next(row for row in rows(report) if row.recommended).p99
    assert highlights(report)[0].value == p99
    table = result_table(report)
    assert table[table["recommended"]][["runs", "valid_runs"]].to_numpy().tolist() == [[1, 1]]


def test_a_diff_certifies_a_pick_by_the_run_that_confirmed_it(misled):
    report = build_report(read_runs([misled]), max_accuracy_loss=0.01, created_at=WHEN)
    found = diff(Side("A", report, {}), Side("B", report, {}))
    told = {one.variant: one.certificate.after for one in found.results}
    assert told["int8"] == "VALID (1 of 1 runs)"


def test_another_objective_is_judged_by_the_run_that_confirmed_the_pick(misled):
    runs = read_runs([misled])
    report = build_report(runs, max_accuracy_loss=0.01, created_at=WHEN, slo=Slo(limit_s=0.01))
    assert report.verdict.meets
    assert " keeps p99 within 10.0 ms" in report.verdict.sentence


def test_runs_of_a_pick_that_none_confirmed_count_alike(made_search, made_runs, tmp_path):
    folder = made_search.save_search(tmp_path / "tune", made_runs, confirmed=False, valid=False)
    report = build_report(read_runs([folder]), max_accuracy_loss=0.01, created_at=WHEN)
    result = next(one for one in report.results if one.variant == "int8")
    assert result.summary.scheduled == sum(run.summary.scheduled for run in result.runs)


def test_a_part_of_a_searchs_runs_and_runs_of_no_search_have_no_choice(search_folder, demo_runs):
    runs = read_runs([search_folder])
    assert read_choice(runs) is not None
    assert read_choice(runs[1:]) is None
    assert read_choice(read_runs([demo_runs])) is None
    assert read_choice([*runs, *read_runs([demo_runs])]) is None


def test_a_search_without_a_pick_says_what_came_nearest_and_what_would_help(made_search, made_runs, tmp_path):
    nothing = {"pick": None, "confirmed": False, "valid": False, "runner_up": None, "flip": None}
    folder = made_search.save_search(
        tmp_path / "tune", made_runs, **nothing, nearest="int8: p99 31 ms", needed="a faster model"
    )
    report = build_report(read_runs([folder]), max_accuracy_loss=0.01, created_at=WHEN)
    assert report.recommendation.headline == "Nothing is shown to keep p99 within 20.0 ms"
    assert "int8: p99 31 ms" in report.recommendation.reason
    assert report.recommendation.caveats[0] == "What would help: a faster model."
    assert report.verdict is None
    assert not any(one.recommended for one in report.results)


def test_a_damaged_search_file_is_named(made_search, made_runs, tmp_path):
    folder = made_search.save_search(tmp_path / "tune", made_runs)
    runs = read_runs([folder])
    (folder / "tune.json").write_text("{")
    with pytest.raises(RunFileError, match=r"tune\.json is damaged"):
        read_choice(runs)


def test_a_search_of_a_newer_mlserve_is_said_to_be_one(made_search, made_runs, tmp_path):
    folder = made_search.save_search(tmp_path / "tune", made_runs)
    runs = read_runs([folder])
    assert read_choice(runs) is not None
    file = folder / "tune.json"
    file.write_bytes(msgspec.json.encode(msgspec.json.decode(file.read_bytes()) | {"format_version": 2}))
    with pytest.raises(RunFileError, match=r"tune\.json has format 2, and this mlserve reads 1"):
        read_choice(runs)


def test_predictions_are_drawn_against_what_was_measured_in_the_colour_of_how_near_they_came(search_report):
    group = next(one for one in chart_groups(search_report) if one.title == "Prediction against measurement")
    rows = list(group.charts[0].spec["datasets"].values())[-1]
    assert [row["kind"] for row in rows] == ["the pick", "within the band", "farther off", "within the band"]
    assert "3 of 4" in group.note


def test_settings_of_one_rate_are_weighed_against_each_other_in_one_chart(search_report):
    group = next(one for one in chart_groups(search_report) if one.title == "Speed against accuracy")
    assert len(group.charts) == 1
    assert group.charts[0].title == "Every setting that was measured at 60.0/s"


def test_knobs_are_called_by_their_names_and_those_that_explain_nothing_left_out(search_report):
    assert knob_shares(search_report.choice) == [("variant", 0.61), ("largest batch", 0.22), ("protocol", 0.04)]


@pytest.mark.parametrize(
    ("goal", "price_per_h", "words"),
    [
        ("throughput", None, "keeps p99 within 20.0 ms up to 812/s."),
        ("goodput", None, "keeps p99 within 20.0 ms and gives 812/s good answers at 60.0/s."),
        ("cost", 1.2, "keeps p99 within 20.0 ms at 60.0/s, for 812 a thousand requests."),
        ("cost", None, "keeps p99 within 20.0 ms at 60.0/s, for 812 s of a machine a thousand requests."),
        ("energy", None, "keeps p99 within 20.0 ms at 60.0/s, with 812 J a request."),
    ],
)
def test_the_sentence_speaks_of_what_was_sought(search_report, goal, price_per_h, words):
    pick = msgspec.structs.replace(search_report.choice.pick, value=812.0, low=None, high=None)
    choice = msgspec.structs.replace(
        search_report.choice, goal=goal, price_per_h=price_per_h, pick=pick, runner_up=None
    )
    assert choice.sentence == f"int8 rest 1x1 batch 4 {words}"


def test_what_an_older_mlserve_counted_in_hours_is_told_in_seconds_too(search_report):
    choice = msgspec.structs.replace(
        search_report.choice, goal="cost", price_per_h=None, figure="machine hours for 1,000"
    )
    assert choice.write(0.5) == "1.8e+03 s of a machine"


def test_the_price_that_goes_by_cpu_time_is_called_so_as_that_of_the_search_goes_by_cores(search_report):
    unknown = dict.fromkeys(("generator_cores", "server_bytes", "gpu_utilization", "gpu_bytes"), (None,))
    used = Usage(at_s=(0.5,), server_cores=(0.4,), **unknown)
    results = tuple(msgspec.structs.replace(one, usage=used) for one in search_report.results)
    priced = msgspec.structs.replace(search_report.choice, price_per_h=3.6)
    groups = chart_groups(msgspec.structs.replace(search_report, results=results, choice=priced))
    group = next(one for one in groups if one.title == "Speed against cost")
    assert "price of 1,000 requests, by CPU time used" in str(group.charts[0].spec)


def test_a_report_of_a_search_is_read_back_as_it_was_written(search_report):
    assert msgspec.json.decode(msgspec.json.encode(search_report), type=Report) == search_report
