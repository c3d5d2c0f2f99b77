"""`mlserve bench --find-max`: what is seen while the search goes on, the rate it found, and the curve."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from mlserve.cli.bench_sweep import Line, many_runs, percentile_text
from mlserve.cli.scatter import Dot, scatter
from mlserve.cli.terminal import out, print_json
from mlserve.units import format_duration, format_rate

if TYPE_CHECKING:
    from mlserve.bench.progress import Progress as Moment
    from mlserve.runs.load import Plan
    from mlserve.tuning.curve import Curve
    from mlserve.tuning.find_max import Found, Quest, StepRun
    from mlserve.tuning.opening import Opens

__all__ = ["bench_max"]

_CURVE_FILE = "curve.json"


def bench_max(quest: "Quest", opens: "Opens", directory: Path, *, json: bool) -> None:
    """Searches into `directory`, tells of it, and exits with 1 when no rate was found."""
    from mlserve.tuning.curve import curve_of
    from mlserve.tuning.find_max import find_max

    with many_runs(directory) as line:
        found = find_max(quest, directory, opens, _Watching(line))
    curve = curve_of([one.recorded for one in (*found.steps, *found.points)], quest.objective.percentile)
    document = _document(quest, found, curve, directory)
    _write(directory, document)
    if json:
        print_json(document)
    else:
        _print(quest, found, curve, directory)
    if not found.passed_per_s:
        raise typer.Exit(1)


class _Watching:
    """What the search tells, on the terminal."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def begins(self, purpose: str, plan: "Plan") -> None:
        pace = f"{plan.users} users in a closed loop" if plan.closed else format_rate(plan.rate_per_s)
        self._line.show(f"{purpose}: {pace}")

    def moves(self, progress: "Moment") -> None:
        self._line.moves(progress)

    def ends(self, step: "StepRun") -> None:
        if not step.verdict.enough:
            self._line.say(f"{format_rate(step.rate_per_s)} does not tell: {step.verdict.why}", "yellow")
            return
        verdict = "meets it" if step.verdict.met else "does not meet it"
        sure = "" if step.verdict.sure else ", not proven"
        text = f"{format_rate(step.rate_per_s)} {verdict}{sure}: {step.verdict.why}"
        self._line.say(f"{text}; no evidence: {step.blame}" if step.blame else text, "yellow" if step.blame else "")


def _print(quest: "Quest", found: "Found", curve: "Curve", directory: Path) -> None:
    out.print(f"[bold]{quest.contender.name}[/], {quest.objective.words}", highlight=False)
    if found.passed_per_s:
        out.print(f"highest rate  [bold]{format_rate(found.passed_per_s)}[/] {_range(found)}", highlight=False)
        valid = sum(recorded.run.certificate.valid for recorded in found.best)
        certificate = f"VALID {valid} of {len(found.best)} runs" if valid else "INVALID: do not decide by this rate"
        out.print(f"certificate   {certificate}", highlight=False, style="" if valid else "red")
    else:
        out.print("highest rate  [red]none was found[/]", highlight=False)
    out.print(f"search        {len(found.steps)} steps; {found.why}", highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"knee          {format_rate(curve.knee_per_s)}, where throughput over latency is greatest", highlight=False
    )
    out.print(_table(quest, curve))
    drawing = _drawing(quest, curve)
    if drawing:
        out.print(drawing, highlight=False, markup=False)
    out.print(f"runs          {directory}", highlight=False, markup=False, soft_wrap=True)


def _range(found: "Found") -> str:
    if math.isinf(found.failed_per_s):
        return "and no rate failed"
    confirmed = "confirmed" if found.confirmed else "not confirmed"
    return f"passed, {format_rate(found.failed_per_s)} failed ({confirmed})"


def _table(quest: "Quest", curve: "Curve") -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("rate", "answered", "p50 (95% interval)", "p99 (95% interval)", "errors", "certificate", ""):
        table.add_column(heading, justify="left" if heading in ("certificate", "") else "right")
    for point in curve.points:
        late = point.percentile_s is None or point.percentile_s > quest.objective.limit_s
        table.add_row(
            format_rate(point.rate_per_s),
            format_rate(point.answered_per_s),
            percentile_text(point.p50),
            percentile_text(point.p99),
            f"{point.error_rate:.2%}",
            "VALID" if point.valid else "INVALID",
            "knee" if point.rate_per_s == curve.knee_per_s else "",
            style="dim" if late else "",
        )
    return table


def _drawing(quest: "Quest", curve: "Curve") -> str:
    """Latency at the objective's percentile over the rate, on a logarithmic scale, with the limit."""
    dots = [
        Dot("o", point.rate_per_s, math.log10(1000 * point.percentile_s))
        for point in curve.points
        if point.percentile_s
    ]
    if len(dots) < 2:
        return ""
    limit = math.log10(1000 * quest.objective.limit_s)
    low, high = min(dot.x for dot in dots), max(dot.x for dot in dots)
    line = [Dot("-", low + (high - low) * part / 55, limit) for part in range(56)]
    title = f"log10 of {quest.objective.name} in ms; ---: the limit, {format_duration(quest.objective.limit_s)}"
    return scatter([*dots, *line], "requests/s", title)


def _document(quest: "Quest", found: "Found", curve: "Curve", directory: Path) -> dict[str, Any]:
    import msgspec

    return {
        "format_version": 1,
        "directory": str(directory),
        "target": quest.contender.name,
        "objective": msgspec.to_builtins(quest.objective),
        "rate_per_s": found.passed_per_s or None,
        "failed_per_s": None if math.isinf(found.failed_per_s) else found.failed_per_s,
        "confirmed": found.confirmed,
        "valid": bool(found.best) and any(recorded.run.certificate.valid for recorded in found.best),
        "end": found.end,
        "why": found.why,
        "steps": [
            {
                "directory": str(step.recorded.directory),
                "rate_per_s": step.rate_per_s,
                "met": step.verdict.met,
                "sure": step.verdict.sure,
                "why": step.verdict.why,
                "blame": step.blame,
                "valid": step.recorded.run.certificate.valid,
            }
            for step in found.steps
        ],
        "curve": msgspec.to_builtins(curve.points),
        "knee_per_s": curve.knee_per_s or None,
        "knee_rule": "greatest throughput over mean latency (Kleinrock 1979)",
    }


def _write(directory: Path, document: dict[str, Any]) -> None:
    import msgspec

    partial = directory / f"{_CURVE_FILE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    partial.rename(directory / _CURVE_FILE)
