"""One verdict, one voice: headline, pill, sentences and next step of a report never contradict each other."""

import shutil

import msgspec
import pytest

from mlserve.report.measurement import read_runs
from mlserve.report.render.charts import chart_groups
from mlserve.report.render.figures import highlights
from mlserve.report.render.markdown import render_markdown
from mlserve.report.render.promise import kept, promise
from mlserve.report.report import build_report
from mlserve.report.slo import Slo
from mlserve.runs.run import Certificate

WHEN = "2026-11-21T13:00:00+00:00"
LOAD = "at 60 requests/s over REST"

# No run of these has the 4,603 answers that p99.9 needs.
SLOS = {
    "met": Slo(limit_s=0.05),
    "missed": Slo(limit_s=0.001),
    "unknown": Slo(percentile=0.999, limit_s=0.05),
    "none": None,
}
TOO_FEW = "p99.9 needs 4,603 answered requests"

# What was measured, what of it is VALID, the objective; headline, pill, how the sentence begins.
COMPARED = [
    ("pick", "all", "none", "Serve int8", "", "int8 answers 99% of the requests within 7.12 ms"),
    ("pick", "all", "met", "Serve int8", "kept", f"int8 keeps p99 within 50.0 ms {LOAD}: "),
    ("pick", "all", "missed", "int8 misses the SLO", "missed", f"int8 misses p99 within 1.00 ms {LOAD}: "),
    ("pick", "all", "unknown", "int8 is not shown to keep the SLO", "not shown", "int8 is not shown to keep p99.9"),
    ("pick", "fp32", "none", "fp32, measured", "", "fp32 answers 99% of the requests within"),
    ("pick", "fp32", "met", "fp32 keeps the SLO", "kept", f"fp32 keeps p99 within 50.0 ms {LOAD}: "),
    ("pick", "fp32", "missed", "fp32 misses the SLO", "missed", f"fp32 misses p99 within 1.00 ms {LOAD}: "),
    ("pick", "nothing", "none", "No recommendation", "", ""),
    ("pick", "nothing", "met", "No recommendation", "not shown", ""),
    ("pick", "nothing", "missed", "No recommendation", "not shown", ""),
    ("pick", "nothing", "unknown", "No recommendation", "not shown", ""),
    ("no difference", "all", "none", "Keep fp32", "", "fp32 answers 99% of the requests within"),
    ("no difference", "all", "met", "Keep fp32", "kept", f"fp32 keeps p99 within 50.0 ms {LOAD}: "),
    ("no difference", "all", "missed", "fp32 misses the SLO", "missed", f"fp32 misses p99 within 1.00 ms {LOAD}: "),
    ("no difference", "all", "unknown", "fp32 is not shown to keep the SLO", "not shown", "fp32 is not shown to keep"),
    ("one", "all", "none", "fp32, measured", "", "fp32 answers 99% of the requests within"),
    ("one", "all", "met", "fp32 keeps the SLO", "kept", f"fp32 keeps p99 within 50.0 ms {LOAD}: "),
    ("one", "all", "missed", "fp32 misses the SLO", "missed", f"fp32 misses p99 within 1.00 ms {LOAD}: "),
    ("one", "all", "unknown", "fp32 is not shown to keep the SLO", "not shown", "fp32 is not shown to keep p99.9"),
    ("one", "nothing", "met", "No recommendation", "not shown", ""),
    ("two models", "all", "none", "No recommendation", "", ""),
    ("two models", "all", "met", "No recommendation", "kept", ""),
    ("two models", "all", "missed", "No recommendation", "missed", ""),
    ("two models", "all", "unknown", "No recommendation", "not shown", ""),
]


@pytest.fixture(scope="module")
def measured(made_runs):
    """What was measured, and what of it is VALID -> its runs."""
    other = msgspec.structs.replace(made_runs.INT8, name="resnet")
    kinds = {
        "pick": ((made_runs.FP32, 8.0), (made_runs.INT8, 4.0)),
        "no difference": ((made_runs.FP32, 4.0), (made_runs.INT8, 4.0)),
        "one": ((made_runs.FP32, 4.0),),
        "two models": ((made_runs.FP32, 4.0), (other, 4.0)),
    }

    def runs(kind, valid):
        return [
            made_runs.record(
                made_runs.Load(median_ms),
                model=model,
                seed=number,
                minute=number,
                duration_s=10.0,
                checks=(made_runs.ENOUGH,) if valid in ("all", model.variant) else (made_runs.LATE,),
            )
            for number, (model, median_ms) in enumerate(kinds[kind])
        ]

    return runs


def reported(runs, slo):
    return build_report(runs, max_accuracy_loss=0.01, created_at=WHEN, slo=slo)


def contradictions(report):
    """What the report says that cannot stand beside its pill."""
    advice, pill = report.recommendation, kept(report) if report.slo else ""
    said = " ".join(
        [advice.headline, advice.reason, *advice.caveats, report.verdict.sentence if report.verdict else ""]
    )
    against = {
        "": (),
        "kept": ("misses", "not shown", "do not decide"),
        "missed": ("Serve ", "Keep ", " keeps the SLO", "not shown"),
        "not shown": ("Serve ", "Keep ", " keeps ", "misses", "confirmed it"),
    }[pill]
    found = [words for words in against if words in said]
    if pill in ("missed", "not shown"):
        found += [advice.next_step] if advice.next_step else []
        found += [advice.variant] if advice.variant else []
        found += [one.variant for one in report.results if one.recommended]
    return found


@pytest.mark.parametrize(("kind", "valid", "slo", "headline", "pill", "sentence"), COMPARED)
def test_compared_variants_are_spoken_of_in_one_voice(measured, kind, valid, slo, headline, pill, sentence):
    report = reported(measured(kind, valid), SLOS[slo])
    assert report.recommendation.headline == headline
    assert promise(report) == (f"SLO {pill}: {SLOS[slo].words}" if pill else "")
    spoken = report.verdict.sentence if report.verdict else ""
    assert spoken.startswith(sentence)
    assert bool(spoken) == bool(sentence)
    assert (slo == "unknown" and bool(spoken)) == (TOO_FEW in spoken)
    assert contradictions(report) == []
    assert bool(report.recommendation.next_step) == headline.startswith(("Serve", "Keep"))


def test_results_of_which_some_keep_the_objective_are_said_to_be_mixed(made_runs):
    other = msgspec.structs.replace(made_runs.INT8, name="resnet")
    runs = [made_runs.record(made_runs.Load(4.0)), made_runs.record(made_runs.Load(90.0), model=other)]
    assert kept(reported(runs, SLOS["met"])) == "kept by some"


def test_too_many_failed_requests_miss_the_objective_though_the_percentile_is_unknown(made_runs):
    failing = reported([made_runs.record(made_runs.Load(4.0, failed=0.2))], SLOS["unknown"])
    assert promise(failing).startswith("SLO missed")
    assert "of the requests failed, of 0.1% allowed" in failing.verdict.sentence
    assert promise(reported([made_runs.record(made_runs.Load(4.0))], SLOS["unknown"])).startswith("SLO not shown")


def test_an_interval_on_both_sides_of_the_limit_is_a_doubt_either_way(made_runs):
    runs = [made_runs.record(made_runs.Load(4.0))]
    found = reported(runs, None).results[0].summary.percentile("p99")
    for limit_s, doubted in ((found.low_s, False), (found.latency_s, True), (found.high_s, False)):
        for nudge in (0.999, 1.001):
            sentence = reported(runs, Slo(limit_s=limit_s * nudge)).verdict.sentence
            outside = (limit_s == found.low_s and nudge < 1) or (limit_s == found.high_s and nudge > 1)
            assert ("not beyond doubt" in sentence) == (doubted or not outside)


NO_PICK = {"pick": None, "confirmed": False, "valid": False, "runner_up": None, "flip": None}
OPEN = {"confirmed": False, "valid": False, "why": "the budget is spent"}
PICK = "int8 rest 1x1 batch 4"

# Verdict of the search, whether its runs are VALID, the report's own objective; headline, pill, sentence, reason.
SEARCHED = [
    ({}, True, None, f"Serve {PICK}", "kept", f"{PICK} keeps p99 within 20.0 ms", "A fresh run confirmed it"),
    ({}, True, "met", f"Serve {PICK}", "kept", f"{PICK} keeps p99 within 50.0 ms", "The search confirmed it for p99"),
    ({}, True, "missed", f"{PICK} misses the SLO", "missed", f"{PICK} misses p99 within 1.00 ms", "The search"),
    ({}, False, None, f"{PICK} is not shown to keep the SLO", "not shown", f"{PICK} promises most", "No VALID run"),
    (OPEN, True, None, f"{PICK} is not shown to keep the SLO", "not shown", f"{PICK} kept, in one run,", "It was not"),
    (OPEN, False, None, f"{PICK} is not shown to keep the SLO", "not shown", f"{PICK} promises most", "No VALID run"),
    (NO_PICK, True, None, "Nothing is shown to keep p99 within 20.0 ms", "not shown", "", "4 of 4"),
    (NO_PICK | {"all": "missed"}, True, None, "Nothing that was tried keeps p99 within 20.0 ms", "missed", "", "4 of"),
    (NO_PICK | {"all": "missed"}, False, None, "Nothing is shown to keep p99 within 20.0 ms", "not shown", "", "4 of"),
    (NO_PICK | {"tried": []}, True, None, "Nothing was measured", "not shown", "", "0 of 4"),
]


@pytest.fixture(scope="module")
def searched(search_folder):
    return read_runs([search_folder])


def as_found(runs, folder, changes, *, valid, late):
    """The same search by its first three runs, which prove the pick, with `changes` in its verdict, and of INVALID
    runs where it is not to be `valid`.
    """
    runs = runs[:3]
    for name in ("search.json", "tune.json"):
        shutil.copy(runs[0].directory.parent / name, folder / name)
    record = msgspec.json.decode((folder / "tune.json").read_bytes())
    record["attempts"] = record["attempts"][: len(runs)]
    state = changes.get("all")
    record["verdict"] |= {name: value for name, value in changes.items() if name != "all"}
    if state:
        record["verdict"]["tried"] = [one | {"state": state} for one in record["verdict"]["tried"]]
    (folder / "tune.json").write_bytes(msgspec.json.encode(record))
    replace = msgspec.structs.replace
    certificate = Certificate((late,))
    return [
        replace(
            one,
            directory=folder / one.directory.name,
            run=one.run if valid else replace(one.run, certificate=certificate),
        )
        for one in runs
    ]


@pytest.mark.parametrize(("changes", "valid", "slo", "headline", "pill", "sentence", "reason"), SEARCHED)
def test_a_search_is_spoken_of_in_one_voice(
    searched, made_runs, tmp_path, changes, valid, slo, headline, pill, sentence, reason
):
    runs = as_found(searched, tmp_path, changes, valid=valid, late=made_runs.LATE)
    report = reported(runs, SLOS[slo] if slo else None)
    assert report.recommendation.headline == headline
    assert kept(report) == pill
    spoken = report.verdict.sentence if report.verdict else ""
    assert spoken.startswith(sentence)
    assert bool(spoken) == bool(sentence)
    assert report.recommendation.reason.startswith(reason)
    assert contradictions(report) == []
    assert bool(report.recommendation.next_step) == headline.startswith("Serve")


def test_what_is_not_shown_is_called_the_pick_nowhere_and_none_of_its_figures_stands_on_top(
    searched, made_runs, tmp_path
):
    shown = reported(searched, None)
    assert "(the pick)" in render_markdown(shown)
    assert highlights(shown)
    report = reported(as_found(searched, tmp_path, OPEN, valid=False, late=made_runs.LATE), None)
    assert "(the pick)" not in render_markdown(report)
    assert highlights(report) == []
    group = next(one for one in chart_groups(report) if one.title == "Prediction against measurement")
    assert "the pick" not in [key.name for key in group.charts[0].legend]
