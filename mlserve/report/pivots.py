"""Tables of results that differ in one thing: CPU against GPU, batch sizes, precisions. Pure functions of a report."""

import re
from collections.abc import Callable, Sequence

import msgspec

from mlserve.report.conditions import Conditions, protocol_words, words
from mlserve.report.report import Report, Result
from mlserve.report.verdict import judged_percentile

__all__ = ["Cell", "Pivot", "PivotRow", "pivots"]

_MOST_COLUMNS = 8
_COMPARED = "p99"  # what recommendations compare
_VARIANTS = "variant"
_TITLES = {
    _VARIANTS: "Variants",
    "device": "CPU against GPU",
    "engine": "Engines",
    "compute_type": "Compute types",
    "batch_rows": "Rows a request",
    "max_batch_rows": "Largest batches",
    "max_delay_ms": "Batching delays (ms)",
    "workers": "Workers",
    "threads": "Threads",
    "protocol": "Protocols",
    "rate_per_s": "Rates (requests/s)",
}
_UNMATCHED = {"protocol": ("payload",), "batch_rows": ("payload", "row_mix")}


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One latency (seconds), and how many times that of the row's first known one. `best` is the lowest of a row, where
    it is shown to be lower than every other: its interval ends below theirs, or the comparison of their runs says so.
    """

    latency_s: float | None
    ratio: float | None
    valid: bool
    best: bool


class PivotRow(msgspec.Struct, frozen=True):
    """What is alike along the row, and its cells, one a column; None where nothing was measured."""

    name: str
    cells: tuple[Cell | None, ...]


class Pivot(msgspec.Struct, frozen=True, kw_only=True):
    """One table: latencies at `percentile` by what differs."""

    title: str
    percentile: str
    columns: tuple[str, ...]
    rows: tuple[PivotRow, ...]


def pivots(report: Report) -> list[Pivot]:
    """A table for each thing in which alone at least two results differ; variants first."""
    known = [one for one in report.results if one.conditions is not None]
    made = [_table(report, _VARIANTS, known, lambda one: one.variant, lambda one: ("", one.load))]
    made += [
        _table(report, field, known, _value_of(field), _rest_of(field))
        for field in _TITLES
        if field in Conditions.__struct_fields__
    ]
    return [table for table in made if table is not None]


def _value_of(field: str) -> Callable[[Result], str]:
    def value(result: Result) -> str:
        found = getattr(result.conditions, field)
        if field == "protocol":
            return protocol_words(found)
        return f"{found:,g}" if isinstance(found, int | float) else str(found or "")

    return value


def _rest_of(field: str) -> Callable[[Result], tuple[str, object]]:
    def rest(result: Result) -> tuple[str, object]:
        conditions = result.conditions
        if conditions is None:
            return result.variant, None
        ignored = {field, *_UNMATCHED.get(field, ())}
        others = [getattr(conditions, name) for name in Conditions.__struct_fields__ if name not in ignored]
        return result.variant, tuple(others)

    return rest


def _table(
    report: Report,
    field: str,
    results: Sequence[Result],
    column_of: Callable[[Result], str],
    row_of: Callable[[Result], tuple[str, object]],
) -> Pivot | None:
    grid: dict[tuple[str, object], dict[str, Result]] = {}
    for result in results:
        if column_of(result):
            grid.setdefault(row_of(result), {}).setdefault(column_of(result), result)
    rows = [cells for cells in grid.values() if len(cells) > 1]
    columns = sorted({column for cells in rows for column in cells}, key=_numeric)
    if field == _VARIANTS:
        columns = list(dict.fromkeys(one.variant for one in results if any(one.variant in cells for cells in rows)))
    if not 2 <= len(columns) <= _MOST_COLUMNS:
        return None
    percentile = judged_percentile(report.slo)
    return Pivot(
        title=_TITLES[field],
        percentile=percentile,
        columns=tuple(columns),
        rows=tuple(_row(report, field, cells, columns) for cells in rows),
    )


def _numeric(text: str) -> tuple[float, str]:
    try:
        return float(text.replace(",", "")), text
    except ValueError:
        return 0.0, text


def _row(report: Report, field: str, results: dict[str, Result], columns: Sequence[str]) -> PivotRow:
    percentile = judged_percentile(report.slo)
    latencies = {column: one.summary.percentile(percentile).latency_s for column, one in results.items()}
    first = next((latencies[column] for column in columns if latencies.get(column)), None)
    best = _shown_best(report, list(results.values()), percentile)
    cells = tuple(
        Cell(
            latency_s=(latency_s := latencies[column]),
            ratio=latency_s / first if latency_s is not None and first else None,
            valid=results[column].valid,
            best=results[column] is best,
        )
        if column in results
        else None
        for column in columns
    )
    shown = next(results[column] for column in columns if column in results)
    return PivotRow(shown.load if field == _VARIANTS else f"{shown.variant}, {_without(field, shown.load)}", cells)


def _shown_best(report: Report, results: Sequence[Result], percentile: str) -> Result | None:
    """Of the VALID ones; None where no difference is shown."""
    known = [one for one in results if one.valid and one.summary.percentile(percentile).latency_s is not None]
    if len(known) < 2:
        return None
    best, *others = sorted(known, key=lambda one: one.summary.percentile(percentile).latency_s or 0.0)
    return best if all(_told_apart(report, best, other, percentile) for other in others) else None


def _told_apart(report: Report, lower: Result, higher: Result, percentile: str) -> bool:
    high_s, low_s = lower.summary.percentile(percentile).high_s, higher.summary.percentile(percentile).low_s
    if high_s is not None and low_s is not None and high_s < low_s:
        return True
    compared = {(one.load, one.variant, one.reference): one.finding for one in report.recommendation.comparisons}
    return (
        percentile == _COMPARED
        and lower.load == higher.load
        and (
            compared.get((lower.load, lower.variant, higher.variant)) == "faster"
            or compared.get((lower.load, higher.variant, lower.variant)) == "slower"
        )
    )


def _without(field: str, load: str) -> str:
    """`load` without what it says of `field`: that is in the columns."""
    clauses = [clause for clause in load.split("; ") if not clause.startswith(f"{words(field)} ")]
    if field == "protocol":
        clauses[0] = clauses[0].partition(" over ")[0]
    elif field == "rate_per_s":
        clauses[0] = clauses[0].partition(" requests/s ")[2] or clauses[0]
    elif field == "batch_rows":
        clauses[0] = re.sub(r" of [\d,]+ rows", "", clauses[0])
    return "; ".join(clauses)
