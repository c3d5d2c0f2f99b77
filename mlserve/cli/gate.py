"""`mlserve gate`: did it get worse? Exit 0, 1 or 3 for pass, fail or inconclusive."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlserve.cli.terminal import JsonFlag, ending_well, out, print_json
from mlserve.units import format_duration, format_ratio

if TYPE_CHECKING:
    from mlserve.report.gate import GateResult, MetricVerdict

__all__ = ["gate"]

_EXIT_CODES = {"pass": 0, "fail": 1, "inconclusive": 3}
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


@ending_well
def gate(
    baseline: Annotated[
        Path,
        typer.Argument(
            metavar="BASELINE", help="A run, or a folder with repeats of one measurement.", show_default=False
        ),
    ],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="The same, of what may have become slower.", show_default=False)
    ],
    max_regression: Annotated[
        list[str],
        typer.Option(
            metavar="METRIC=RATIO",
            help="How much worse it may be: p50 to p99.9 and mean latency by a ratio (p99=10%), error_rate by points "
            "(error_rate=0.5%). Repeatable, or with commas.",
            show_default=False,
        ),
    ],
    ignore_differences: Annotated[
        bool, typer.Option("--ignore-differences", help="Compare runs of unlike loads or machines all the same.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Compare a candidate with a baseline. Exit status: 0 pass, 1 fail, 3 inconclusive, 2 misuse.

    It fails only where the difference is beyond the limit and beyond noise, and passes only where it is within the
    limit for all noise can do. Between, more runs are needed. A candidate that fails more requests fails in any case.

    [bold]Examples[/]

      mlserve gate runs/main runs/branch --max-regression p99=10%

      mlserve gate runs/main runs/branch --max-regression p50=5%,p99=10%,error_rate=0.1%
    """
    from mlserve.report.gate import decide, one_measurement, parse_gate_limits
    from mlserve.report.measurement import read_runs

    limits = parse_gate_limits(max_regression)
    before = one_measurement(read_runs([baseline]), "baseline")
    after = one_measurement(read_runs([candidate]), "candidate")
    result = decide(before, after, limits, ignore_differences=ignore_differences)
    if json:
        print_json(result)
    else:
        _print_result(result)
    raise typer.Exit(_EXIT_CODES[result.verdict])


def _print_result(result: "GateResult") -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("metric", no_wrap=True)
    for heading in ("baseline", "candidate", "change", "interval", "at most"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for metric in result.metrics:
        table.add_row(metric.metric, *_figures(metric), Text(metric.verdict, _COLOURS[metric.verdict]))
    out.print(table)
    out.print("the intervals hold together with 95% confidence", style="dim")
    out.print()
    out.print(result.verdict, style=f"bold {_COLOURS[result.verdict]}", highlight=False)
    for sentence in (*result.reasons, *(f"note: {note}" for note in result.notes)):
        out.print(Padding(Text(sentence), (0, 0, 0, 2), expand=False))


def _figures(metric: "MetricVerdict") -> tuple[str, ...]:
    """Baseline, candidate, change, interval, limit: latencies and their ratios, or shares and points between them."""
    found, errors = metric.difference, metric.metric == "error_rate"
    limit = _points(metric.limit) if errors else format_ratio(metric.limit)
    if found is None:
        return "-", "-", "-", "-", limit
    figure, change = (_share, _points) if errors else (format_duration, format_ratio)
    interval = f"{change(found.low).removesuffix(' pt')} to {change(found.high)}"
    return figure(found.baseline), figure(found.candidate), change(found.change), interval, limit


def _share(share: float) -> str:
    return f"{share:.2%}"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} pt"
