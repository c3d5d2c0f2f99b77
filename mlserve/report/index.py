"""What a folder of reports holds, newest first: our own reports, verdicts of gates, and the JSON of any benchmark.

A benchmark's JSON has whatever shape it needs. What is shown of it is what can be told without knowing the shape: the
sentence that the folder's README gives it, the machine, the range of its latencies and rates, and how many of its
outcomes were `right`. A file that cannot be read is an entry that says so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlserve.errors import MlserveError, RunFileError
from mlserve.report.gating.history import HistoryEntry, read_history
from mlserve.report.report import Report, Result
from mlserve.report.saved import decode_report
from mlserve.runs.machine import Machine
from mlserve.runs.run import RUN_FILE
from mlserve.units import format_duration, format_rate, format_ratio

__all__ = ["Entry", "Index", "Point", "Series", "build_index", "report_files"]

Kind = Literal["report", "gate", "benchmark", "unreadable"]

_README = "README.md"
# `| [text](path): what it is | `command` |`
_ROW = re.compile(r"^\|[^|]*\]\((?P<path>[^)]+)\):?(?P<about>[^|]*)\|\s*(?:`(?P<command>[^`|]+)`)?")
_MOST_FIGURES = 4


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `good` is None where it says neither. `page` is the HTML page beside it; "" where there is none.

    `made_at` is ISO 8601, "" where neither the file nor who asked for the index knows.
    """

    path: str
    kind: Kind
    made_at: str
    title: str
    verdict: str = ""
    good: bool | None = None
    figures: tuple[tuple[str, str], ...] = ()
    machine: str = ""
    command: str = ""
    page: str = ""


class Point(msgspec.Struct, frozen=True):
    """p99 of one report, or of one session of a history."""

    made_at: str
    p99_s: float


class Series(msgspec.Struct, frozen=True):
    """p99 of one variant under one load on one machine, oldest first: over the reports that have it, or over the
    sessions that `mlserve gate --append` kept; at least two.
    """

    name: str
    machine: str
    points: tuple[Point, ...]


class Index(msgspec.Struct, frozen=True):
    """Every file, newest first, and what several of them follow over time."""

    entries: tuple[Entry, ...]
    series: tuple[Series, ...]


class _Found(msgspec.Struct, frozen=True):
    """A file as it was read: a report, or any other JSON, or why it is neither."""

    entry: Entry
    report: Report | None = None


def report_files(folder: Path) -> list[Path]:
    """The JSON files in `folder`, however deep, by path: hidden ones and raw runs are none."""
    files = sorted(folder.rglob("*.json"))
    return [
        file
        for file in files
        if file.name != RUN_FILE and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def build_index(folder: Path, dates: Mapping[Path, str]) -> Index:
    """The index of `folder`. `dates` says when a file was made that does not say so itself (ISO 8601)."""
    about = _about(folder)
    found = [_read(folder, path, dates.get(path, ""), about) for path in report_files(folder)]
    histories = [_read_history(folder, path) for path in sorted({file.parent for file in folder.rglob("*.jsonl")})]
    broken = [one for one in histories if isinstance(one, Entry)]
    sessions = [session for one in histories if not isinstance(one, Entry) for session in one]
    entries = sorted([*(one.entry for one in found), *broken], key=lambda entry: entry.made_at, reverse=True)
    return Index(tuple(entries), tuple(_series([one.report for one in found if one.report], sessions)))


def _read_history(folder: Path, path: Path) -> list[HistoryEntry] | Entry:
    """The sessions of the history in `path`; an entry that says why where there are none."""
    try:
        return read_history(path)
    except (OSError, MlserveError) as error:
        name = path.relative_to(folder).as_posix()
        return Entry(path=name, kind="unreadable", made_at="", title=name, verdict=str(error), good=False)


def _about(folder: Path) -> dict[str, tuple[str, str]]:
    """Path below `folder` -> what its README says it is, and the command that makes it."""
    readme = folder / _README
    lines = readme.read_text(encoding="utf-8").splitlines() if readme.is_file() else []
    rows = [row for row in map(_ROW.match, lines) if row]
    return {row["path"]: (row["about"].strip(), row["command"] or "") for row in rows}


def _read(folder: Path, path: Path, made_at: str, about: Mapping[str, tuple[str, str]]) -> _Found:
    name = path.relative_to(folder).as_posix()
    sentence, command = about.get(name, ("", ""))
    blank = Entry(path=name, kind="benchmark", made_at=made_at, title=sentence or name, command=command)
    try:
        content = path.read_bytes()
        document = msgspec.json.decode(content)
        if isinstance(document, dict) and {"recommendation", "results"} <= document.keys():
            report = decode_report(content, path)
            return _Found(_report_entry(blank, report, path), report)
    except (OSError, msgspec.DecodeError, RunFileError) as error:
        return _Found(msgspec.structs.replace(blank, kind="unreadable", verdict=f"cannot be read: {error}", good=False))
    if isinstance(document, dict) and document.get("verdict") in ("pass", "fail", "inconclusive"):
        return _Found(_gate_entry(blank, document))
    return _Found(_benchmark_entry(blank, document))


def _report_entry(blank: Entry, report: Report, path: Path) -> Entry:
    advice = report.recommendation
    page = path.with_suffix(".html")
    models = ", ".join(dict.fromkeys(result.model.name for result in report.results))
    picks = [result for result in report.results if result.recommended and result.valid] or [*report.results]
    return msgspec.structs.replace(
        blank,
        kind="report",
        made_at=report.created_at,
        title=blank.title if blank.title != blank.path else models,
        verdict=advice.headline,
        good=bool(advice.variant) or None,
        figures=tuple((f"p99 of {one.variant}, {one.load}", _p99_words(one)) for one in picks[:_MOST_FIGURES]),
        machine="; ".join(map(_machine_words, report.machines)),
        page=blank.path.removesuffix(".json") + ".html" if page.is_file() else "",
    )


def _p99_words(result: Result) -> str:
    p99 = result.summary.percentile("p99")
    if p99.latency_s is None:
        return p99.refused
    invalid = "" if result.valid else ", INVALID"
    if p99.low_s is None or p99.high_s is None:
        return f"{format_duration(p99.latency_s)}{invalid}"
    interval = f"{format_duration(p99.low_s)} to {format_duration(p99.high_s)}"
    return f"{format_duration(p99.latency_s)} ({interval}){invalid}"


def _gate_entry(blank: Entry, document: dict[str, Any]) -> Entry:
    verdict = str(document["verdict"])
    metrics = [metric for metric in _listed(document.get("metrics")) if isinstance(metric, dict)]
    figures = [
        (str(metric.get("metric", "metric")), f"{metric.get('verdict', '')} {_change(metric)}".strip())
        for metric in metrics
    ]
    return msgspec.structs.replace(
        blank,
        kind="gate",
        made_at=_made_at(document) or blank.made_at,
        verdict=verdict,
        good={"pass": True, "fail": False}.get(verdict),
        figures=tuple(figures[:_MOST_FIGURES]),
        machine=_machine(document),
    )


def _change(metric: dict[str, Any]) -> str:
    difference = metric.get("difference")
    change = difference.get("change") if isinstance(difference, dict) else None
    is_ratio = metric.get("metric") != "error_rate" and metric.get("unit", "ratio") == "ratio"
    return f"({format_ratio(change)})" if is_ratio and isinstance(change, int | float) else ""


def _benchmark_entry(blank: Entry, document: Any) -> Entry:
    leaves = list(_leaves(document))
    right = [value for name, value in leaves if name == "right" and isinstance(value, bool)]
    fields = document if isinstance(document, dict) else {}
    return msgspec.structs.replace(
        blank,
        made_at=_made_at(fields) or blank.made_at,
        verdict=f"{sum(right)} of {len(right)} as they should be" if right else "",
        good=all(right) if right else None,
        figures=tuple(_ranges(leaves)[:_MOST_FIGURES]),
        machine=_machine(fields),
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that holds no others, by the name of the field it stands in."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value


def _ranges(leaves: Sequence[tuple[str, Any]]) -> list[tuple[str, str]]:
    """From the least to the most of every latency and rate, by the name of its field: rates first."""
    numbers: dict[str, list[float]] = {}
    for name, value in leaves:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            numbers.setdefault(name, []).append(value)
    rates = [
        (name.removesuffix("_per_s").replace("_", " "), _range(values, format_rate))
        for name, values in numbers.items()
        if name.endswith("_per_s")
    ]
    latencies = [
        (name.removesuffix("_s").replace("_", " "), _range(values, format_duration))
        for name, values in numbers.items()
        if re.search(r"(?:^|_)p(?:50|99)_s$", name)
    ]
    speeds = [("speed", _range(values, format_ratio)) for name, values in numbers.items() if name == "speed"]
    return rates[:2] + latencies + speeds


def _range(values: Sequence[float], form: Any) -> str:
    least, most = form(min(values)), form(max(values))
    return str(least) if least == most else f"{least} to {most}"


def _made_at(document: dict[str, Any]) -> str:
    told = (document.get(field) for field in ("created_at", "made_at", "started_at"))
    return next((moment for moment in told if isinstance(moment, str)), "")


def _machine(document: dict[str, Any]) -> str:
    machine = document.get("machine")
    if not (isinstance(machine, dict) and isinstance(machine.get("cpu"), str)):
        return ""
    return f"{machine['cpu']}, {_cores(machine['cores'])}" if isinstance(machine.get("cores"), int) else machine["cpu"]


def _machine_words(machine: Machine) -> str:
    return f"{machine.cpu}, {_cores(machine.cores)}"


def _cores(count: int) -> str:
    return f"{count} core{'' if count == 1 else 's'}"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _series(reports: Sequence[Report], sessions: Sequence[HistoryEntry]) -> list[Series]:
    """What has a p99 at two instants at least: the same model, variant and load on the same machine."""
    points: dict[tuple[str, str], dict[str, Point]] = {}
    for name, machine, point in (*_reported(reports), *_remembered(sessions)):
        points.setdefault((name, _machine_words(machine)), {})[point.made_at] = point
    series = [Series(*key, tuple(sorted(of.values(), key=lambda one: one.made_at))) for key, of in points.items()]
    return [one for one in series if len(one.points) > 1]


def _reported(reports: Sequence[Report]) -> Iterator[tuple[str, Machine, Point]]:
    for report in reports:
        for result in report.results:
            p99_s = result.summary.percentile("p99").latency_s
            if result.valid and p99_s is not None:
                name = f"{result.model.name} {result.variant}, {result.load}"
                yield name, report.machines[result.runs[0].machine], Point(report.created_at, p99_s)


def _remembered(sessions: Sequence[HistoryEntry]) -> Iterator[tuple[str, Machine, Point]]:
    for session in sessions:
        if "p99" in session.figures:
            name = f"history: {session.model} {session.variant}, {session.conditions.load}"
            yield name, session.machine, Point(session.at, session.figures["p99"])
