"""One run of `mlserve bench`: what is seen while it goes on, and what is told of it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from mlserve.cli.terminal import err, out
from mlserve.errors import RunFileError
from mlserve.units import format_bytes, format_duration, format_rate

if TYPE_CHECKING:
    from mlserve.bench.driver import Subject
    from mlserve.bench.progress import Progress as Moment
    from mlserve.report.measurement import Recorded
    from mlserve.report.summary import Summary
    from mlserve.runs.load import Plan
    from mlserve.runs.run import Run

__all__ = ["document", "keeping_rows", "moment_text", "print_run", "watching"]


@contextmanager
def keeping_rows(directory: Path) -> Iterator[None]:
    """Says where the rows of an interrupted run are."""
    try:
        yield
    except KeyboardInterrupt:
        if _has_rows(directory):
            err.print(f"the rows so far are kept in {directory}; it is no finished run", highlight=False)
        raise


def _has_rows(directory: Path) -> bool:
    from mlserve.runs.samples import read_samples

    try:
        return len(read_samples(directory)) > 0
    except RunFileError:
        return False


@contextmanager
def watching(subject: "Subject", plan: "Plan") -> "Iterator[Any]":
    """A live line on the terminal; yields what draws it."""
    total_s = plan.warm_up_s + plan.duration_s
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=err, transient=True, refresh_per_second=4, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=total_s, figures="")
        said = False

        def show(moment: "Moment") -> None:
            nonlocal said
            if moment.joined < moment.expected:
                bar.update(task, description=f"{moment.joined} of {moment.expected} generators have joined")
                return
            if not said:
                err.print(_announcement(subject, plan), highlight=False)
                said = True
            bar.update(
                task,
                completed=min(max(moment.elapsed_s, 0.0), total_s),
                description=_phase(moment.elapsed_s, plan),
                figures=moment_text(moment),
            )

        yield show


def moment_text(moment: "Moment") -> str:
    """`sent 1,200  done 1,198  in flight 2  p50 1.2 ms  p99 4 ms`, and what goes wrong."""
    faults = {"failed": moment.failed, "dropped": moment.dropped}
    return "  ".join(
        [
            f"sent {moment.sent:,}  done {moment.done:,}  in flight {moment.in_flight:,}",
            f"p50 {format_duration(moment.p50_s)}  p99 {format_duration(moment.p99_s)}",
            *(f"[red]{name} {count:,}[/]" for name, count in faults.items() if count),
        ]
    )


def print_run(recorded: "Recorded") -> None:
    """Everything a person needs to believe the figures, or not to."""
    from mlserve.report.summary import summarize

    run, summary = recorded.run, summarize([recorded])
    out.print(f"[bold]{run.label}[/]", highlight=False)
    for name, text in _facts(run, summary):
        out.print(f"{name:<12}{text}", highlight=False, markup=False, soft_wrap=True)
    for status, count in _failures(recorded).items():
        out.print(f"            {status}: {count:,}", highlight=False, markup=False, style="red")
    out.print(_percentile_table(run, summary))
    for each in summary.percentiles:
        if each.refused:
            out.print(each.refused, style="dim", highlight=False, soft_wrap=True)
    _print_certificate(run)
    out.print(f"run         {recorded.directory}", highlight=False, markup=False, soft_wrap=True)


def document(recorded: "Recorded") -> dict[str, Any]:
    """The run as programs read it: `run.json`, its folder, and the figures."""
    import msgspec

    from mlserve.report.summary import summarize

    run, samples, summary = recorded.run, recorded.samples, summarize([recorded])
    found: dict[str, Any] = msgspec.to_builtins(run)
    energy_j = run.resources.energy_j
    return found | {
        "directory": str(recorded.directory),
        "valid": run.certificate.valid,
        "summary": {
            "offered_per_s": summary.offered_per_s,
            "achieved_per_s": summary.answered_per_s,
            "rows_per_s": summary.rows_per_s,
            "error_rate": summary.error_rate,
            "percentiles": msgspec.to_builtins(summary.percentiles),
            "latency_s": {each.name: each.latency_s for each in summary.percentiles},
            "service_s": {each.name: each.service_s for each in summary.percentiles},
            "dispatch_lag_s": {"p99": summary.dispatch_lag_p99_s},
            "joules_per_1000": 1000 * energy_j / run.counts.ok if energy_j and run.counts.ok else None,
            "versions": dict(Counter(samples.version[samples.ok].tolist())),
        },
    }


def _announcement(subject: "Subject", plan: "Plan") -> str:
    from mlserve.bench.load.shape import shape_name

    pace = f"with {plan.users} users (closed loop)" if plan.closed else f"at {format_rate(plan.rate_per_s)}"
    shape = f", {shape_name(plan.shape)}," if shape_name(plan.shape) else ""
    before = f"after {format_duration(plan.warm_up_s)} of warm-up" if plan.warm_up_s else "without warm-up"
    before = "warm-up is found" if plan.find_warm_up else before
    lasts = format_duration(plan.duration_s)
    return f"loading {subject.model.name} over {plan.protocol} {pace}{shape} for {lasts}; {before}"


def _phase(elapsed_s: float, plan: "Plan") -> str:
    if elapsed_s < 0:
        return "starting"
    if elapsed_s < plan.warm_up_s:
        return "warming up"
    return "measuring" if elapsed_s < plan.warm_up_s + plan.duration_s else "still measuring"


def _facts(run: "Run", summary: "Summary") -> Iterator[tuple[str, str]]:
    counts, window, calibration = run.counts, run.window, run.calibration
    offered, achieved = format_rate(summary.offered_per_s), format_rate(summary.answered_per_s)
    yield "rate", f"achieved {achieved}" if run.plan.closed else f"offered {offered}, achieved {achieved}"
    yield "requests", f"{counts.ok:,} ok, {counts.failed:,} failed, {counts.dropped:,} dropped"
    cut = f"{format_duration(window.start_s)} of warm-up cut" if window.start_s else "no warm-up"
    ended = f"; ended: {run.ended}" if run.ended and run.plan.precision else ""
    yield "measured", f"{format_duration(window.duration_s)}, {cut}{ended}"
    yield "generator", f"{counts.generator_cpu:.0%} of a core"
    if calibration is not None:
        floor = f"{format_duration(calibration.p50_s)}, p99 {format_duration(calibration.p99_s)}"
        load = f"with {run.plan.users} users" if run.plan.closed else "at the same rate"
        yield "null server", f"p50 {floor} {load}: what generator and network cost by themselves"
    servers = [each for each in run.resources.processes if each.role == "server"]
    if servers:
        memory = format_bytes(sum(each.rss_max_bytes for each in servers))
        yield "server", f"{sum(each.cpu for each in servers):.2f} cores, {memory} of memory"
    for device in run.resources.devices:
        power = "" if device.power_w is None else f", {device.power_w:.0f} W"
        yield "device", f"{device.name}: {device.utilization:.0%} busy, {format_bytes(device.memory_max_bytes)}{power}"
    if run.resources.energy_j and counts.ok:
        yield "energy", f"{1000 * run.resources.energy_j / counts.ok:.1f} J per 1,000 requests"


def _failures(recorded: "Recorded") -> dict[str, int]:
    from mlserve.runs.samples import DROPPED, OK

    statuses = Counter(recorded.samples.status.tolist())
    return {status: n for status, n in statuses.most_common() if status not in (OK, DROPPED)}


def _percentile_table(run: "Run", summary: "Summary") -> Table:
    """Response time, which counts from when a request was due, above service time, which counts from its sending."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    known = [each for each in summary.percentiles if not each.refused]
    for each in known:
        table.add_column(each.name, justify="right")
    latency = "latency (closed loop)" if run.plan.closed else "latency"
    table.add_row(latency, *(format_duration(each.latency_s or 0.0) for each in known))
    table.add_row(
        "95% interval",
        *(
            f"{format_duration(each.low_s)} to {format_duration(each.high_s)}"
            if each.low_s is not None and each.high_s is not None
            else "-"
            for each in known
        ),
        style="dim",
    )
    table.add_row("service time", *(format_duration(each.service_s or 0.0) for each in known))
    return table


def _print_certificate(run: "Run") -> None:
    checks, faults = run.certificate.checks, run.certificate.faults
    verdict = f"[bold green]VALID[/], {len(checks)} checks hold"
    if faults:
        verdict = f"[bold red]INVALID[/], {len(faults)} of {len(checks)} checks fail: do not decide by these figures"
    out.print(f"certificate {verdict}", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for check in checks:
        mark = Text("ok", "green") if check.ok else Text("NO", "bold red")
        limit = f"limit: {check.limit}" if check.limit != check.found else ""
        table.add_row("  ", mark, Text(check.name), Text(check.found), Text(limit, "dim"))
    out.print(table)
    for check in faults:
        out.print(f"  [red]{check.name}[/]: {check.found}. {check.advice}", highlight=False, soft_wrap=True)
