"""`mlserve bench --tax`: what each protocol costs, as a table."""

import math
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mlserve.cli.terminal import err, out, print_json
from mlserve.units import format_duration, format_rate, format_ratio

if TYPE_CHECKING:
    from mlserve.tuning.opening import Source
    from mlserve.tuning.tax import Split, TaxReport
    from mlserve.tuning.taxing import TaxPlan

__all__ = ["bench_tax"]

_HEADINGS = {"wait": "batch wait", "encode": "reply"}


def bench_tax(plan: "TaxPlan", source: "Source", *, json: bool) -> None:
    """Measures and prints."""
    from mlserve.tuning.taxing import measure_tax

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(f"starting a server for {plan.contender.where}", total=None)
        report = measure_tax(
            plan,
            source,
            lambda number, of: bar.update(task, description=f"round {number} of {of}", completed=number - 1, total=of),
        )
    if json:
        print_json(report)
    else:
        _print(report)


def _print(report: "TaxReport") -> None:
    from mlserve.tuning.tax import PARTS

    pace = f"at {format_rate(report.rate_per_s)}" if report.rate_per_s else "each after the one before (closed loop)"
    rows = f"{report.batch_rows} row{'' if report.batch_rows == 1 else 's'}"
    out.print(f"[bold]{report.model}[/], one request of {rows} at a time, {pace}", highlight=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for part in PARTS:
        table.add_column(_HEADINGS.get(part, part), justify="right")
    for heading in ("total", "tax (95% interval)"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        interval = "" if math.isnan(row.low) else f" ({format_ratio(row.low)} to {format_ratio(row.high)})"
        table.add_row(row.way, *_parts(row.mean), format_ratio(row.tax) + interval)
        median_tax = format_ratio(row.median.total / report.rows[0].median.total)
        table.add_row("  median", *_parts(row.median), median_tax, style="dim")
    out.print(table)
    out.print(
        "client: encoding, decoding and its library's processor time; network: the rest of a request to a server that "
        "answers at once; parse to reply: what the server says; other: what is left.",
        style="dim",
        highlight=False,
    )


def _parts(split: "Split") -> list[str]:
    from mlserve.tuning.tax import PARTS

    return [_signed(getattr(split, part)) for part in (*PARTS, "total")]


def _signed(seconds: float) -> str:
    """A remainder may be below zero: it is a difference of measurements."""
    if not seconds:
        return "-"
    return f"-{format_duration(-seconds)}" if seconds < 0 else format_duration(seconds)
