"""The history of a measurement, one line a session, and a candidate held against where it last stood.

`reports/history` is a folder of `YYYY-MM.jsonl`, so that lines are only ever added and a month is a file.
"""

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from mlserve.errors import UsageError
from mlserve.report.conditions import LOAD_FIELDS, Conditions, differences
from mlserve.report.gating.change_points import LEAST_ENTRIES, change_points
from mlserve.report.gating.decision import Sides, judge_saved
from mlserve.report.gating.estimate import Estimate, Spread
from mlserve.report.gating.evidence import Refused, place_of, value_of
from mlserve.report.gating.figures import figure_of
from mlserve.report.gating.fingerprint import fingerprint_differences
from mlserve.report.gating.limits import ERROR_RATE, Limit
from mlserve.report.gating.result import GateResult
from mlserve.report.gating.tracks import FixedTrack, Track, loss_spread, track_of_sides
from mlserve.report.measurement import Measurement
from mlserve.runs.machine import Machine
from mlserve.runs.percentiles import PERCENTILES, too_few
from mlserve.stats import Floats

__all__ = [
    "HistoryEntry",
    "Level",
    "append_history",
    "comparable",
    "decide_by_history",
    "last_level",
    "levels",
    "read_history",
]

# 1: first format
FORMAT_VERSION = 1

_SAME = (*LOAD_FIELDS, "payload", "generators")


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One session of one measurement: `figures` by metric (seconds, shares, bytes, requests per second), geometric
    means over its `runs` VALID runs; `model` and `variant` are its name, `commit` what it was built
    from, if that was said.
    """

    format_version: int = FORMAT_VERSION
    at: str
    commit: str = ""
    model: str
    variant: str = ""
    conditions: Conditions
    machine: Machine
    runs: int
    figures: dict[str, float]


class Level(NamedTuple):
    """Entries of a history between two changes, and their figures on the scale on which more is worse."""

    entries: Sequence[HistoryEntry]
    places: Floats


def append_history(
    folder: Path, measurement: Measurement, *, commit: str = "", max_rate_per_s: float | None = None
) -> Path | None:
    """Adds a session, and returns the file it was added to; None where the same runs are in there, for counted twice
    they would show that sessions do not differ. Raises UsageError when no run of it is VALID.
    """
    entry = _entry(measurement, commit, max_rate_per_s)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{entry.at[:7]}.jsonl"
    if path.is_file() and any(_is_same(_read_line(path, *line), entry) for line in _lines(path)):
        return None
    with path.open("ab") as file:
        file.write(msgspec.json.encode(entry) + b"\n")
    return path


def _is_same(one: HistoryEntry, other: HistoryEntry) -> bool:
    """Whether both are of the same runs."""
    return (one.at, one.model, one.variant, one.conditions) == (other.at, other.model, other.variant, other.conditions)


def read_history(folder: Path) -> list[HistoryEntry]:
    """All sessions by the time they were made. Raises UsageError when there are none, or for a line that is none."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UsageError(f"{folder} holds no history (*.jsonl); begin one with: mlserve gate RUNS --append {folder}")
    entries = [_read_line(path, number, line) for path in files for number, line in _lines(path)]
    return sorted(entries, key=lambda entry: entry.at)


def comparable(
    history: Sequence[HistoryEntry], candidate: Measurement, ignoring: Collection[str] = ("mlserve",)
) -> list[HistoryEntry]:
    """The sessions of the same model under the same load on a machine like the candidate's, without its own."""
    run = candidate.runs[0].run
    return [
        entry
        for entry in history
        if (entry.model, entry.variant) == (run.model.name, run.model.variant)
        and not differences(entry.conditions, candidate.conditions, _SAME)
        and not fingerprint_differences(entry.machine, run.machine, ignoring=ignoring)
        and entry.at != run.started_at
    ]


def levels(limit: Limit, entries: Sequence[HistoryEntry]) -> list[Level]:
    """The levels that a metric stood on, in time order."""
    known = [entry for entry in entries if limit.metric in entry.figures]
    places = np.array([place_of(limit, entry.figures[limit.metric]) for entry in known], np.float64)
    edges = [0, *change_points(places), len(known)]
    return [Level(known[start:end], places[start:end]) for start, end in pairwise(edges)]


def last_level(limit: Limit, entries: Sequence[HistoryEntry]) -> Level | Refused:
    """Where a metric stood last, if sessions enough show it."""
    last = levels(limit, entries)[-1]
    if len(last.entries) < LEAST_ENTRIES:
        return Refused(
            f"the history holds {len(last.entries)} comparable sessions of {limit.metric}, and {LEAST_ENTRIES} are "
            "the least that show how much sessions differ"
        )
    return last


def decide_by_history(
    history: Sequence[HistoryEntry],
    candidate: Measurement,
    limits: Sequence[Limit],
    *,
    ignoring: Collection[str] = ("mlserve",),
) -> GateResult:
    """The verdict on a session against the sessions since the history last changed: whether a further one of them would
    lie so far off (a prediction interval). What differs as a name in `ignoring` does is compared all the same.
    """
    entries = comparable(history, candidate, ignoring)

    def track(limit: Limit) -> Track:
        return track_of_sides(limit, (), candidate.runs) if limit.absolute else _against_last(limit, entries, candidate)

    notes = [f"{len(entries)} of the {len(history)} sessions in the history are comparable"]
    notes += [note for limit in limits if not limit.absolute for note in _changes(limit, entries)]
    return judge_saved("history", Sides((), candidate.runs, notes), limits, track, None)


def _against_last(limit: Limit, entries: Sequence[HistoryEntry], candidate: Measurement) -> FixedTrack:
    last = last_level(limit, entries)
    if limit.metric == "accuracy" and isinstance(unknown := _accuracy_spread(candidate), Refused):
        last = unknown
    now = _figures(candidate, None).get(limit.metric)
    if isinstance(last, Refused):
        return FixedTrack(limit, last, None, now)
    before = value_of(limit, float(last.places.mean()))
    if now is None:
        return FixedTrack(limit, Refused(f"the candidate's runs do not tell its {limit.metric}"), before, None)
    sessions = len(last.places)
    spread = Spread(float(last.places.var(ddof=1)) * (1 + 1 / sessions), sessions - 1)
    place = place_of(limit, now) - float(last.places.mean())
    return FixedTrack(limit, Estimate(place, spread, _noise(limit, now, candidate)), before, now)


def _noise(limit: Limit, now: float, candidate: Measurement) -> float:
    """What the figure of the candidate's session may err by itself, as the noise within its runs shows it."""
    if limit.metric == ERROR_RATE:
        due = sum(len(one.samples) for one in candidate.believed)
        return math.sqrt(max(now, 1 / due) / due) if due else 0.0
    if limit.metric == "size":
        return 0.0
    if limit.metric == "accuracy":
        spread = _accuracy_spread(candidate)
        return 0.0 if isinstance(spread, Refused) else math.sqrt(spread.variance)
    noise = [figure_of(limit, one).noise for one in candidate.believed]
    return math.sqrt(sum(one**2 for one in noise)) / len(noise)


def _accuracy_spread(candidate: Measurement) -> Spread | Refused:
    accuracy = candidate.model.accuracy
    return loss_spread(accuracy) if accuracy else Refused("the candidate has no measured accuracy")


def _changes(limit: Limit, entries: Sequence[HistoryEntry]) -> list[str]:
    return [
        f"{limit.metric} changed at {after.entries[0].at[:10]}"
        f"{f' ({after.entries[0].commit[:12]})' if after.entries[0].commit else ''}: "
        f"{_times(limit, float(after.places.mean() - before.places.mean()))}"
        for before, after in pairwise(levels(limit, entries))
    ]


def _times(limit: Limit, place: float) -> str:
    change = value_of(limit, place)
    return f"{100 * change:+.2f} points" if limit.in_points else f"{change:.3f} times what it was"


def _entry(measurement: Measurement, commit: str, max_rate_per_s: float | None) -> HistoryEntry:
    first = measurement.runs[0].run
    if not measurement.valid:
        raise UsageError(f"no run of {first.label} is VALID, so it is no part of a history; measure it again")
    return HistoryEntry(
        at=first.started_at,
        commit=commit,
        model=first.model.name,
        variant=first.model.variant,
        conditions=measurement.conditions,
        machine=first.machine,
        runs=len(measurement.believed),
        figures=_figures(measurement, max_rate_per_s),
    )


def _figures(measurement: Measurement, max_rate_per_s: float | None) -> dict[str, float]:
    """Every figure that the VALID runs tell."""
    runs, model = measurement.believed, measurement.runs[0].run.model
    answered = sum(int(one.samples.ok.sum()) for one in runs)
    due = sum(len(one.samples) for one in runs)
    limits = [Limit(name, 0.0, q) for name, q in PERCENTILES.items() if not too_few(name, q, answered)]
    limits += [Limit(name, 0.0) for name in ("mean", "memory", "start_up", "max_rate")]
    found = {limit.metric: [figure_of(limit, one, max_rate_per_s).value for one in runs] for limit in limits}
    figures = {
        name: math.exp(float(np.log(values).mean())) for name, values in found.items() if np.all(np.isfinite(values))
    }
    if due:
        figures[ERROR_RATE] = 1 - answered / due
    if model.size_bytes:
        figures["size"] = float(model.size_bytes)
    if model.accuracy:
        figures["accuracy"] = model.accuracy.value
    return figures


def _lines(path: Path) -> list[tuple[int, bytes]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"the history {path} cannot be read ({error.strerror})") from error
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _read_line(path: Path, number: int, line: bytes) -> HistoryEntry:
    try:
        entry = msgspec.json.decode(line, type=HistoryEntry)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}, line {number} is no session: {error}; mend or delete that line") from error
    if entry.format_version != FORMAT_VERSION:
        raise UsageError(
            f"{path}, line {number} has format {entry.format_version}, this mlserve reads {FORMAT_VERSION}; "
            "use the mlserve that wrote it"
        )
    return entry
