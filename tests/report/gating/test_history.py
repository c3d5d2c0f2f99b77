"""Against other sessions: a committed baseline, a history, and how much sessions differ."""

import msgspec
import numpy as np
import pytest

from mlserve.errors import UsageError
from mlserve.model.artifact import Accuracy
from mlserve.report.gating.absolute import decide_against
from mlserve.report.gating.change_points import change_points
from mlserve.report.gating.fingerprint import fingerprint_differences
from mlserve.report.gating.history import append_history, decide_by_history, read_history
from mlserve.report.gating.limits import parse_gate_limits

P50 = parse_gate_limits(["p50=10%"])


@pytest.fixture(scope="module")
def session(side, made_runs):
    """A session of two runs, in an hour of its own."""

    def make(median_ms=4.0, hour=0, **settings):
        return side(made_runs.Load(median_ms), runs=2, seed=10 * hour, minute=60 * hour, **settings)

    return make


@pytest.fixture(scope="module")
def history(tmp_path_factory, session):
    """Eight sessions, 1% apart, in a folder."""
    folder = tmp_path_factory.mktemp("history") / "reports"
    for hour in range(8):
        append_history(folder, session(4.0 * (1 + hour % 2 / 100), hour), commit=f"{hour:040d}")
    return folder


# Change points.


def level(mean, count, seed):
    return mean + 0.02 * np.random.default_rng(seed).standard_normal(count)


def test_a_history_that_changed_its_level_changed_where_it_did():
    steps = np.concatenate([level(0.0, 14, 1), level(0.1, 12, 2), level(-0.05, 10, 3)])
    assert change_points(steps) == [14, 26]
    assert change_points(level(0.0, 36, 4)) == []


def test_one_entry_that_is_off_and_too_few_entries_are_no_change():
    off = level(0.0, 20, 5)
    off[9] = 0.5
    assert change_points(off) == []
    assert change_points(np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])) == []
    assert change_points(np.zeros(20)) == []


@pytest.mark.parametrize(("before", "after"), [(4, 4), (5, 5), (4, 6)])
def test_a_clear_step_is_found_in_few_sessions_too(before, after):
    """Eight or ten have so few orders that the rarest of them is no rarer than 1%."""
    noise = np.random.default_rng(before).normal(0.0, 0.01, before + after)
    assert change_points(noise + np.repeat([0.0, 0.1], [before, after])) == [before]
    assert change_points(noise) == []


def test_the_same_history_has_the_same_changes_every_time():
    steps = np.concatenate([level(0.0, 9, 6), level(0.06, 9, 7)])
    assert change_points(steps) == change_points(steps) != []


# Sessions in a file.


def test_sessions_are_read_as_they_were_added(history):
    entries = read_history(history)
    assert [entry.commit[-1] for entry in entries] == list("01234567")
    assert [path.name for path in history.iterdir()] == ["2026-11.jsonl"]
    assert entries[0].runs == 2
    assert entries[0].figures["p50"] == pytest.approx(0.004, rel=0.05)
    assert {"p50", "p90", "mean", "error_rate", "size"} <= set(entries[0].figures)
    assert "memory" not in entries[0].figures


def test_a_line_that_is_no_session_is_named_and_an_empty_history_too(tmp_path, history):
    with pytest.raises(UsageError, match="holds no history"):
        read_history(tmp_path)
    text = (history / "2026-11.jsonl").read_bytes()
    path = tmp_path / "2026-11.jsonl"
    for broken, message in (
        (b"{}", "line 9 is no session"),
        (b"\xff", "line 9 is no session"),
        (text.splitlines()[0].replace(b'"format_version":1', b'"format_version":7'), "line 9 has format 7"),
    ):
        path.write_bytes(text + broken + b"\n")
        with pytest.raises(UsageError, match=message):
            read_history(tmp_path)


def test_the_same_runs_are_added_once(tmp_path, session):
    first, second = session(hour=0), session(hour=1)
    assert append_history(tmp_path, first) == append_history(tmp_path, second) == tmp_path / "2026-11.jsonl"
    assert append_history(tmp_path, first, commit="abc") is None
    assert len(read_history(tmp_path)) == 2


def test_an_invalid_session_is_no_part_of_a_history(tmp_path, session, made_runs):
    with pytest.raises(UsageError, match=r"no run of .* is VALID"):
        append_history(tmp_path, session(checks=(made_runs.LATE,)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("median_ms", "verdict"), [(4.02, "pass"), (6.0, "fail"), (2.0, "pass")])
def test_a_session_is_held_against_where_the_history_stood_last(history, session, median_ms, verdict):
    result = decide_by_history(read_history(history), session(median_ms, 30), P50)
    assert result.verdict == verdict
    assert result.mode == "history"
    assert result.notes[0] == "8 of the 8 sessions in the history are comparable"


def test_only_what_came_after_the_last_change_counts_and_the_change_is_named(tmp_path, session):
    for hour in range(12):
        append_history(tmp_path, session((4.0 if hour < 6 else 8.0) * (1 + hour % 2 / 100), hour), commit=f"abc{hour}")
    result = decide_by_history(read_history(tmp_path), session(8.1, 30), P50)
    assert result.verdict == "pass"
    assert any(note.startswith("p50 changed at 2026-11-21 (abc6): ") for note in result.notes)
    assert result.metrics[-1].difference.baseline == pytest.approx(0.008, rel=0.03)


def test_sessions_of_other_loads_models_and_machines_are_left_out(history, session, made_runs):
    entries = read_history(history)
    elsewhere = msgspec.structs.replace(made_runs.MACHINE, cpu="another")
    for settings in ({"machine": elsewhere}, {"protocol": "grpc"}, {"model": made_runs.INT8}):
        result = decide_by_history(entries, session(6.0, 30, **settings), P50)
        assert result.verdict == "inconclusive"
        assert result.notes[0].startswith("0 of the 8")
        assert "the history holds 0 comparable sessions" in result.reasons[-1]


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [("size<=100MB", "pass"), ("size<=1B", "fail"), ("accuracy>=50%", "pass"), ("accuracy>=99%", "fail")],
)
def test_bounds_of_the_model_are_decided_by_it_alone(history, session, made_runs, limit, verdict):
    measured = Accuracy("accuracy", 0.9, 0.01, 1000, "rows.npz", "fp32", loss_low=0.0, loss_high=0.02)
    model = msgspec.structs.replace(made_runs.FP32, size_bytes=90_000_000, accuracy=measured)
    result = decide_by_history(read_history(history), session(4.02, 30, model=model), parse_gate_limits([limit]))
    found = result.metrics[-1]
    assert (found.metric, found.verdict) == (limit.partition("<=")[0].partition(">=")[0], verdict)
    assert found.difference.baseline is None


# A committed baseline.


def test_a_baseline_of_another_session_needs_to_know_how_much_sessions_differ(session, history):
    unknown = decide_against(session(), session(8.0, 40), P50)
    assert unknown.verdict == "inconclusive"
    assert "how much sessions of the same server differ is not known, and runs" in unknown.reasons[0]
    entries = read_history(history)
    assert decide_against(session(), session(8.0, 40), P50, history=entries).verdict == "fail"
    kept = decide_against(session(), session(4.02, 40), P50, history=entries)
    assert kept.verdict == "pass"
    assert any("as the 7 comparable entries of the history do" in note for note in kept.notes) or any(
        "as the 8 comparable entries of the history do" in note for note in kept.notes
    )


def test_what_differs_of_the_machines_is_named_and_decides_nothing_but_bounds(session, history, made_runs):
    other = msgspec.structs.replace(
        made_runs.MACHINE, governor="powersave", packages={"onnxruntime": "2.0", "mlserve": "0.1.0"}
    )
    limits = parse_gate_limits(["p50=10%,p50<=50ms"])
    result = decide_against(session(), session(8.0, 40, machine=other), limits, history=read_history(history))
    assert [metric.verdict for metric in result.metrics] == ["inconclusive", "inconclusive", "pass"]
    assert "governor unknown against powersave; onnxruntime 1.23.0 against 2.0" in result.reasons[1]


def test_whoever_gates_new_software_says_so(made_runs):
    newer = msgspec.structs.replace(
        made_runs.MACHINE, python="3.14.0", packages={**made_runs.MACHINE.packages, "mlserve": "9"}
    )
    assert fingerprint_differences(made_runs.MACHINE, newer) == [
        "python 3.11.9 against 3.14.0",
        "mlserve 0.1.0 against 9",
    ]
    assert fingerprint_differences(made_runs.MACHINE, newer, ignoring=("mlserve", "python")) == []
    assert fingerprint_differences(made_runs.MACHINE, newer, software=False) == []


def test_unlike_loads_are_refused(session):
    with pytest.raises(UsageError, match="bench --like"):
        decide_against(session(), session(4.0, 1, rate_per_s=80.0), P50)
