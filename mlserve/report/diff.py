"""Two reports, and what changed between them: what was measured, under which conditions, how far each figure moved.

Nothing is decided here: `mlserve gate` decides. Where the rows of both sides are there, the intervals are those of the
ratio over redrawn stretches of the runs, and hold together with 95% (Bonferroni). Where only reports are, a ratio lies
between the quotients of the ends of the two 95% intervals with at least 90% (again Bonferroni, of two).
"""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from mlserve.errors import RunFileError
from mlserve.report.comparison import (
    Difference,
    Refusal,
    compare_errors,
    compare_mean,
    compare_percentile,
    confidence_of_each,
)
from mlserve.report.conditions import shown, words
from mlserve.report.measurement import Measurement, group, read_runs
from mlserve.report.report import Report, Result, RunResult, build_report
from mlserve.report.saved import REPORT_FILE, read_report
from mlserve.report.summary import PERCENTILES
from mlserve.runs.run import find_runs
from mlserve.units import format_bytes

__all__ = ["Change", "Diff", "FigureChange", "ResultDiff", "Side", "diff", "read_side"]

# 1: first format
FORMAT_VERSION = 1

Finding = Literal["better", "worse", "no difference shown", "not compared"]
Unit = Literal["s", "share", "per_s", "bytes"]

_PERCENTILES = ("p50", "p95", "p99", "p99.9")
_COMPARED_BY_ROWS = len(_PERCENTILES) + 2  # and the mean, and the errors
_MAX_ACCURACY_LOSS = 0.01
_OF_ENDS = 0.9
_NO_ROWS = "no rows on both sides"
# Of a model: what the figures show, and the address, which differs whenever the port was free to be chosen.
_NO_CONDITION = ("url", "size_bytes", "accuracy")


class Side(msgspec.Struct, frozen=True):
    """One side of a diff. `measurements` have the rows, by the folder of their first run; empty for a saved report."""

    name: str
    report: Report
    measurements: dict[str, Measurement]


class Change(msgspec.Struct, frozen=True):
    """Something that is not the same on both sides, in words."""

    name: str
    before: str
    after: str


class FigureChange(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of both sides, in `unit`. `change` is after over before; for a share it is after minus before.

    `low` and `high` bound it with `confidence`. Where there is no interval, `remark` says why.
    """

    name: str
    unit: Unit
    before: float | None
    after: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    finding: Finding = "not compared"
    remark: str = ""


class ResultDiff(msgspec.Struct, frozen=True, kw_only=True):
    """One variant under one load, on both sides. `conditions` are those in which it alone differs."""

    variant: str
    load: str
    conditions: tuple[Change, ...]
    certificate: Change
    figures: tuple[FigureChange, ...]


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that changed. `pick` is what is recommended; `conditions` are those in which every result differs;
    `only_before` and `only_after` name results that have no counterpart.
    """

    format_version: int = FORMAT_VERSION
    before: str
    after: str
    pick: Change
    conditions: tuple[Change, ...]
    results: tuple[ResultDiff, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]


def read_side(path: Path) -> Side:
    """The runs that `path` holds, else the report there: a `report.json`, or a folder with one.

    Raises RunFileError when there is neither, or when it cannot be read.
    """
    if path.is_file():
        return Side(str(path), read_report(path), {})
    try:
        find_runs(path)
    except RunFileError as none:
        if (path / REPORT_FILE).is_file():
            return Side(str(path), read_report(path / REPORT_FILE), {})
        raise RunFileError(f"{path} holds neither runs nor a {REPORT_FILE}; give a folder that has them") from none
    runs = read_runs([path])
    report = build_report(runs, max_accuracy_loss=_MAX_ACCURACY_LOSS, created_at=runs[-1].run.started_at)
    confirming = report.choice.confirming if report.choice else ()
    return Side(str(path), report, {str(one.runs[0].directory): one for one in group(runs, confirming)})


def diff(before: Side, after: Side) -> Diff:
    """What changed from `before` to `after`."""
    pairs, alone, others = _pairs(before.report.results, after.report.results)
    confidence = confidence_of_each(_COMPARED_BY_ROWS * len(pairs))
    results = [_result_diff(before, one, after, other, confidence) for one, other in pairs]
    shared = [change for change in (results[0].conditions if results else ()) if _in_all(change, results)]
    return Diff(
        before=before.name,
        after=after.name,
        pick=Change("pick", before.report.recommendation.headline, after.report.recommendation.headline),
        conditions=tuple(shared),
        results=tuple(
            msgspec.structs.replace(one, conditions=tuple(c for c in one.conditions if c not in shared))
            for one in results
        ),
        only_before=tuple(f"{one.variant}, {one.load}" for one in alone),
        only_after=tuple(f"{one.variant}, {one.load}" for one in others),
    )


def _in_all(change: Change, results: Sequence[ResultDiff]) -> bool:
    return all(change in one.conditions for one in results)


def _pairs(
    before: Sequence[Result], after: Sequence[Result]
) -> tuple[list[tuple[Result, Result]], list[Result], list[Result]]:
    """Results that are each other's counterpart, and those of either side that have none.

    The most exact likeness goes first; one that fits several is none. What is left, one on each side, is a pair too:
    then just these two were to be compared.
    """
    mine, theirs = list(before), list(after)
    pairs: list[tuple[Result, Result]] = []
    likenesses: list[Callable[[Result], Hashable]] = [
        lambda one: (one.model.name, one.model.variant, one.model.version, one.model.sha256, one.load),
        lambda one: (one.model.name, one.model.variant, one.model.version, one.load),
        lambda one: (one.model.name, one.model.variant, one.load),
        lambda one: (one.model.name, one.model.variant, one.load.partition("; ")[0]),
        lambda one: (one.model.variant, one.load.partition("; ")[0]),
        lambda one: one.load.partition("; ")[0],
    ]
    for likeness in likenesses:
        found = {likeness(one): one for one in mine if [likeness(other) for other in mine].count(likeness(one)) == 1}
        for other in list(theirs):
            key = likeness(other)
            if key in found and [likeness(one) for one in theirs].count(key) == 1:
                pairs.append((found[key], other))
                mine.remove(found[key])
                theirs.remove(other)
    if len(mine) == len(theirs) == 1:
        pairs.append((mine.pop(), theirs.pop()))
    return sorted(pairs, key=lambda pair: before.index(pair[0])), mine, theirs


def _result_diff(before: Side, one: Result, after: Side, other: Result, confidence: float) -> ResultDiff:
    facts, others = _facts(before.report, one), _facts(after.report, other)
    changes = [
        Change(name, facts.get(name, "none"), others.get(name, "none"))
        for name in dict.fromkeys([*facts, *others])
        if facts.get(name) != others.get(name)
    ]
    return ResultDiff(
        variant=_both(one.variant, other.variant),
        load=_both(one.load, other.load),
        conditions=tuple(changes),
        certificate=Change(
            "certificate", _certificate(before.report.counted(one)), _certificate(after.report.counted(other))
        ),
        figures=tuple(_figures(before, one, after, other, confidence)),
    )


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _facts(report: Report, result: Result) -> dict[str, str]:
    """What `result` was measured under, in words: model, load, server, machine, packages."""
    run = result.runs[0]
    machine = msgspec.structs.asdict(report.machines[run.machine])
    packages, gpus, memory = machine.pop("packages"), machine.pop("gpus"), machine.pop("memory_bytes")
    model = {name: value for name, value in msgspec.structs.asdict(result.model).items() if name not in _NO_CONDITION}
    server = msgspec.structs.asdict(run.server) if run.server else {"": "not started by the bench"}
    facts = {
        **{f"model {words(name)}": value for name, value in model.items()},
        **{f"load {words(name)}": value for name, value in msgspec.structs.asdict(run.plan).items()},
        **{f"server {words(name)}".strip(): value for name, value in server.items()},
        **{f"machine {words(name)}": value for name, value in machine.items()},
        "machine memory": format_bytes(memory),
        "machine GPUs": tuple(gpu.name for gpu in gpus),
        **{f"package {name}": version for name, version in packages.items()},
        "mlserve of the report": report.mlserve,
        "runs": len(result.runs),
    }
    return {name: _shown(value) for name, value in facts.items()}


def _shown(value: Any) -> str:
    if isinstance(value, msgspec.Struct) or (isinstance(value, tuple) and any(map(_is_value, value))):
        return msgspec.json.encode(value).decode()
    return shown(value) or "not said"


def _is_value(value: object) -> bool:
    return isinstance(value, msgspec.Struct)


def _certificate(counted: Sequence[RunResult]) -> str:
    valid = sum(run.valid for run in counted)
    faults = dict.fromkeys(check.name for run in counted for check in run.certificate.faults)
    told = f": {', '.join(faults)}" if faults else ""
    return f"{'VALID' if valid else 'INVALID'} ({valid} of {len(counted)} runs){told}"


def _figures(before: Side, one: Result, after: Side, other: Result, confidence: float) -> list[FigureChange]:
    """Latencies and errors with an interval where there can be one; what is counted or was measured once without."""
    invalid = [side.name for side, result in ((before, one), (after, other)) if not result.valid]
    remark = f"{' and '.join(invalid)}: INVALID" if invalid else ""
    rows = _rows(before, one), _rows(after, other)
    figures = [_percentile(name, one, other, rows, confidence, remark) for name in _PERCENTILES]
    summary, summaries = one.summary, other.summary
    mean = FigureChange(name="mean", unit="s", before=summary.mean_s, after=summaries.mean_s)
    errors = FigureChange(name="error rate", unit="share", before=summary.error_rate, after=summaries.error_rate)
    if rows[0] and rows[1]:
        mean = _found(mean, compare_mean(rows[0], rows[1], confidence), remark)
        # INVALID runs too: that a request was not answered is seen, whatever the clocks are worth.
        errors = _found(errors, compare_errors(rows[0], rows[1], confidence), "")
    else:
        mean, errors = (msgspec.structs.replace(_plain(one), remark=_NO_ROWS) for one in (mean, errors))
    return [figure for figure in (*figures, mean, errors, *_counted(one, other)) if _known(figure)]


def _rows(side: Side, result: Result) -> Measurement | None:
    return side.measurements.get(result.runs[0].directory)


def _percentile(
    name: str,
    one: Result,
    other: Result,
    rows: tuple[Measurement | None, Measurement | None],
    confidence: float,
    remark: str,
) -> FigureChange:
    ours, theirs = one.summary.percentile(name), other.summary.percentile(name)
    figure = FigureChange(name=name, unit="s", before=ours.latency_s, after=theirs.latency_s)
    if rows[0] and rows[1]:
        return _found(figure, compare_percentile(name, PERCENTILES[name], rows[0], rows[1], confidence), remark)
    if ours.low_s and ours.high_s and theirs.low_s and theirs.high_s and ours.latency_s and theirs.latency_s:
        ends = Difference(
            baseline=ours.latency_s,
            candidate=theirs.latency_s,
            change=theirs.latency_s / ours.latency_s,
            low=theirs.low_s / ours.high_s,
            high=theirs.high_s / ours.low_s,
            confidence=_OF_ENDS,
        )
        return _found(figure, ends, remark)
    return msgspec.structs.replace(_plain(figure), remark=ours.refused or theirs.refused or "no interval")


def _found(figure: FigureChange, found: Difference | Refusal, remark: str) -> FigureChange:
    """`figure` with the interval, and what it shows; with neither where `remark` says why not."""
    if remark or isinstance(found, Refusal):
        return msgspec.structs.replace(_plain(figure), remark=remark or getattr(found, "reason", ""))
    same = 0.0 if figure.unit == "share" else 1.0
    finding: Finding = (
        "no difference shown" if found.low <= same <= found.high else "better" if found.high < same else "worse"
    )
    return msgspec.structs.replace(
        figure,
        change=found.change,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        finding=finding,
    )


def _plain(figure: FigureChange) -> FigureChange:
    """`figure` with its change alone."""
    before, after = figure.before, figure.after
    if before is None or after is None or (figure.unit != "share" and not before):
        return figure
    return msgspec.structs.replace(figure, change=after - before if figure.unit == "share" else after / before)


def _counted(one: Result, other: Result) -> list[FigureChange]:
    accuracies = [result.model.accuracy for result in (one, other)]
    ours, theirs = (found.value if found else None for found in accuracies)
    metric = next((found.metric for found in accuracies if found), "accuracy")
    return [
        _plain(
            FigureChange(
                name="answered",
                unit="per_s",
                before=one.summary.answered_per_s,
                after=other.summary.answered_per_s,
                remark="no interval",
            )
        ),
        _plain(
            FigureChange(
                name="size",
                unit="bytes",
                before=one.model.size_bytes,
                after=other.model.size_bytes,
                remark="counted",
            )
        ),
        _plain(FigureChange(name=metric, unit="share", before=ours, after=theirs, remark="measured once")),
    ]


def _known(figure: FigureChange) -> bool:
    return figure.before is not None or figure.after is not None
