"""`mlserve bench --sweep`: what is seen while a sweep goes on, and its table."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from mlserve.cli.bench_one import moment_text
from mlserve.cli.terminal import err, out, print_json
from mlserve.units import format_duration, format_rate

if TYPE_CHECKING:
    from mlserve.bench.progress import Progress as Moment
    from mlserve.report.measurement import Recorded
    from mlserve.report.summary import Percentile
    from mlserve.tuning.grid import Sweep, Turn
    from mlserve.tuning.opening import Opens
    from mlserve.tuning.sweep import CellResult, Course, Outcome

__all__ = ["Line", "bench_sweep", "many_runs", "percentile_text", "run_text"]


def bench_sweep(sweep: "Sweep", opens: "Opens", directory: Path, *, json: bool) -> None:
    """Runs `sweep` into `directory`, tells of it, and exits with 1 when every cell failed."""
    from mlserve.tuning.sweep import run_sweep

    with many_runs(directory) as line:
        results = run_sweep(sweep, directory, opens, _Watching(line))
    if json:
        print_json(_document(results, directory))
    else:
        _print(results, directory)
    if not any(result.runs for result in results):
        raise typer.Exit(1)


@contextmanager
def many_runs(directory: Path) -> Iterator["Line"]:
    """One live line for many runs, of which nobody else writes into `directory`; says how to go on where it is cut
    short.
    """
    from mlserve.bench.run_directory import own_directory

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.fields[figures]}"))
    bar = Progress(*columns, console=err, transient=True, refresh_per_second=4, disable=not err.is_terminal)
    with own_directory(directory), bar:
        try:
            yield Line(bar)
        except KeyboardInterrupt:
            bar.stop()
            err.print(_kept_words(directory), highlight=False, markup=False, soft_wrap=True)
            raise


def _kept_words(directory: Path) -> str:
    """What an interrupted command left, and how to go on with it."""
    from mlserve.runs.run import RUN_FILE

    place = shlex.quote(str(directory))
    if not any(directory.glob(f"*/{RUN_FILE}")):
        return f"no run was finished; the same command with --out {place} begins where it stopped"
    return f"the finished runs are kept in {directory}; the same command goes on with them, with --out {place}"


class Line:
    """The live line, and lines above it that stay."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None, figures="")

    def show(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """What is going on, and how much of it is done."""
        self._bar.update(self._task, description=what, completed=done, total=total, figures="")

    def moves(self, moment: "Moment") -> None:
        """The present run's figures."""
        self._bar.update(self._task, figures=moment_text(moment))

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        err.print(text, highlight=False, markup=False, soft_wrap=True, style=style)


class _Watching:
    """What a sweep tells, on the terminal."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def begins(self, turn: "Turn", course: "Course") -> None:
        left = f"{format_duration(course.left_s)} left" if course.left_s else ""
        self._line.show(
            f"{course.done} of {course.total} runs, {left}: {turn.cell.label}, round {turn.round}",
            course.done,
            course.total,
        )

    def moves(self, turn: "Turn", progress: "Moment") -> None:
        self._line.moves(progress)

    def ends(self, outcome: "Outcome", recorded: "Recorded | None", course: "Course") -> None:
        name = f"{course.done}/{course.total} {outcome.turn.cell.label}, round {outcome.turn.round}"
        if recorded is None:
            self._line.say(f"{name}: failed: {outcome.reason}", "red")
            return
        self._line.say(f"{name}: {run_text(recorded)}", "" if recorded.run.certificate.valid else "yellow")


def percentile_text(percentile: "Percentile") -> str:
    """`4.05 ms (3.90 ms to 4.21 ms)`; "-" where there are too few answers for it."""
    if percentile.latency_s is None:
        return "-"
    found = format_duration(percentile.latency_s)
    if percentile.low_s is None or percentile.high_s is None:
        return found
    return f"{found} ({format_duration(percentile.low_s)} to {format_duration(percentile.high_s)})"


def run_text(recorded: "Recorded") -> str:
    """`98.2/s, p50 1.20 ms, p99 3.40 ms, VALID`."""
    from mlserve.stats import minimum_samples, quantile

    latency_s, window = recorded.samples.latency_s, recorded.run.window
    words = [format_rate(len(latency_s) / window.duration_s)]
    words += [
        f"{name} {format_duration(quantile(latency_s, q))}"
        for name, q in (("p50", 0.5), ("p99", 0.99))
        if len(latency_s) >= minimum_samples(q)
    ]
    faults = recorded.run.certificate.faults
    return ", ".join([*words, f"INVALID ({', '.join(check.name for check in faults)})" if faults else "VALID"])


def _print(results: "Sequence[CellResult]", directory: Path) -> None:
    table = Table(box=None, pad_edge=False)
    for name, _ in results[0].cell.values or (("model", ""),):
        table.add_column(name.replace("_", " "))
    for heading in ("offered", "answered", "p50 (95% interval)", "p99 (95% interval)", "errors", "certificate"):
        table.add_column(heading, justify="left" if heading == "certificate" else "right")
    for result in results:
        values = [value for _, value in result.cell.values] or [result.cell.contender.name]
        table.add_row(*values, *_figures(result))
    out.print(table)
    for reason in dict.fromkeys(result.reason for result in results if result.reason):
        labels = ", ".join(result.cell.label for result in results if result.reason == reason)
        out.print(f"{labels} failed: {reason}", style="red", highlight=False, markup=False, soft_wrap=True)
    out.print(f"runs        {directory}   (mlserve report {directory})", highlight=False, markup=False, soft_wrap=True)


def _figures(result: "CellResult") -> list[str]:
    if result.summary is None:
        return ["-", "-", "-", "-", "-", "failed"]
    summary, runs = result.summary, result.runs
    valid = sum(recorded.run.certificate.valid for recorded in runs)
    closed = runs[0].run.plan.closed
    return [
        "closed loop" if closed else format_rate(summary.offered_per_s),
        format_rate(summary.answered_per_s),
        percentile_text(summary.percentile("p50")),
        percentile_text(summary.percentile("p99")),
        f"{summary.error_rate:.2%}",
        f"VALID {valid} of {len(runs)}" if valid else "INVALID",
    ]


def _document(results: "Sequence[CellResult]", directory: Path) -> dict[str, Any]:
    import msgspec

    return {
        "format_version": 1,
        "directory": str(directory),
        "cells": [
            {
                "label": result.cell.label,
                "target": result.cell.contender.name,
                "values": dict(result.cell.values),
                "plan": msgspec.to_builtins(result.cell.plan),
                "options": msgspec.to_builtins(result.cell.options),
                "valid": result.valid,
                "reason": result.reason,
                "summary": msgspec.to_builtins(result.summary),
                "runs": [
                    {
                        "directory": str(recorded.directory),
                        "valid": recorded.run.certificate.valid,
                        "faults": [check.name for check in recorded.run.certificate.faults],
                    }
                    for recorded in result.runs
                ],
            }
            for result in results
        ],
    }
