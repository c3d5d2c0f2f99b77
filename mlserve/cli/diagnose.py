"""`mlserve diagnose`: why a model is (not) fast, and what to try next."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, out, print_json, steps
from mlserve.errors import UsageError
from mlserve.units import format_bytes, format_duration, format_rate, format_ratio

if TYPE_CHECKING:
    from mlserve.optimize.diagnose.diagnosis import Diagnosis, OperatorTable
    from mlserve.optimize.diagnose.facts import Facts, Profile
    from mlserve.optimize.diagnose.finding import Finding

__all__ = ["diagnose"]

_MOST_THREADS = 1024
_MOST_ROWS = 4096
_MOST_OPERATORS = 10
_SLOWEST = 8


@ending_well
def diagnose(
    ref: Annotated[
        str,
        typer.Argument(metavar="NAME[@VERSION|@ALIAS] | FILE.onnx", help="The model to look at.", show_default=False),
    ],
    store: StoreOption = Path("store"),
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_THREADS, help="Threads of one run; by default the cores.")
    ] = None,
    batch_rows: Annotated[str, typer.Option(help="Batch sizes to measure, e.g. 1,32.")] = "1,32",
    data: Annotated[
        Path | None, typer.Option(help="Rows to run: npz, npy, csv, parquet, jsonl or txt; made up if omitted.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="NAME@VERSION to compare with; by default what the model was made from.")
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Say why a model is (not) fast: time by operator, what limits it, threads, precision; and what to try next.

    [bold]Examples[/]

      mlserve diagnose minilm

      mlserve diagnose minilm@2 --against minilm@1 --data sentences.txt

      mlserve diagnose model.onnx --threads 1 --batch-rows 1,8,64
    """
    from mlserve.optimize.diagnose.diagnosis import Question
    from mlserve.optimize.diagnose.diagnosis import diagnose as answer
    from mlserve.runs.machine import usable_cores

    question = Question(
        ref=ref,
        store=store,
        device=device,
        threads=threads or usable_cores(),
        batch_rows=_batch_rows(batch_rows),
        data=data,
        against=against,
    )
    with steps("diagnose") as on_step:
        found = answer(question, on_step)
    if json:
        print_json(found)
    else:
        _print(found)


def _batch_rows(text: str) -> tuple[int, ...]:
    """`"1,32"` -> `(1, 32)`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 4 and 1 <= int(part) <= _MOST_ROWS for part in parts):
        raise UsageError(f"--batch-rows {text!r} cannot be read; give numbers from 1 to {_MOST_ROWS}, such as 1,32")
    return tuple(map(int, parts))


def _print(found: "Diagnosis") -> None:
    facts = found.facts
    _print_subject(facts)
    _print_runs(facts)
    for table in found.operators:
        _print_operators(table)
    _print_slowest(facts.profiles[-1])
    _print_threads(facts)
    _print_notes(facts)
    _print_findings(facts, found.findings)


def _print_subject(facts: "Facts") -> None:
    subject, machine, conditions = facts.subject, facts.machine, facts.conditions
    runs_on = f"{subject.engine} {subject.compute_type}".strip()
    out.print(
        f"[bold]{escape(subject.ref)}[/]  {subject.variant}  {format_bytes(subject.size_bytes)}  {runs_on} on "
        f"{conditions.device}, {conditions.threads} threads",
        highlight=False,
    )
    about = [f"{machine.cpu}, {machine.cores} cores; instruction sets: {' '.join(machine.cpu_flags) or 'not told'}"]
    if facts.peaks:
        peaks = facts.peaks
        int8 = f", int8 {peaks.int8_ops_per_s / 1e9:,.0f} GOP/s" if peaks.int8_ops_per_s else ""
        about.append(
            f"measured peaks, {conditions.threads} threads: float32 {peaks.fp32_flops_per_s / 1e9:,.0f} GFLOP/s{int8}, "
            f"memory {format_bytes(peaks.bytes_per_s)}/s"
        )
    about.append(f"run on {conditions.rows_source}; loaded in {format_duration(facts.open_s)}")
    for line in about:
        out.print(line, style="dim", highlight=False, markup=False)


def _print_runs(facts: "Facts") -> None:
    from mlserve.optimize.diagnose.roofline import roof_s

    table = Table(title="one run", title_justify="left")
    headings = ["rows", "first run", "p50", "rows/s", "GFLOP/s", "of roof"]
    if facts.against:
        headings.insert(3, facts.against.ref)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for timing, profile in zip(facts.timings, facts.profiles, strict=True):
        cells = [
            f"{timing.batch_rows}",
            format_duration(timing.first_run_s),
            format_duration(timing.p50_s),
            format_rate(timing.batch_rows / timing.p50_s),
            f"{profile.flops / timing.p50_s / 1e9:,.1f}" if profile.flops else "-",
            f"{roof_s(profile.operations, facts.peaks) / timing.p50_s:.0%}" if facts.peaks else "-",
        ]
        if timing.against_p50_s:
            ratio = format_ratio(timing.against_p50_s / timing.p50_s)
            cells.insert(3, f"{format_duration(timing.against_p50_s)} ({ratio})")
        table.add_row(*cells)
    out.print(table)
    for profile in facts.profiles:
        _print_precision(profile)


def _print_precision(profile: "Profile") -> None:
    """One line on int8, and on what turning numbers into other types and moving them costs."""
    from mlserve.optimize.diagnose.work import CONVERTING, MOVING, is_quantized

    integer = [operation for operation in profile.operations if is_quantized(operation)]
    converting = [operation for operation in profile.operations if operation.operator in CONVERTING]
    moving = [operation for operation in profile.operations if operation.operator in MOVING]
    out.print(
        f"{profile.batch_rows} row(s): int8 does {profile.work_share(integer):.0%} of the work in "
        f"{profile.time_share(integer):.0%} of the time; {profile.time_share(converting):.0%} goes into quantizing, "
        f"dequantizing and casts, {profile.time_share(moving):.0%} into moving (transposes, reorders, copies)",
        style="dim",
        highlight=False,
    )


def _print_operators(table: "OperatorTable") -> None:
    shown = Table(title=f"time by operator, {table.batch_rows} row(s)", title_justify="left")
    shown.add_column("operator", overflow="fold")
    shown.add_column("precision", no_wrap=True)
    for heading in ("nodes", "time", "share", "GFLOP/s"):
        shown.add_column(heading, justify="right", no_wrap=True)
    shown.add_column("limit", no_wrap=True)
    for row in islice(table.operators, _MOST_OPERATORS):
        shown.add_row(
            row.operator,
            row.precision,
            f"{row.count}",
            format_duration(row.self_s),
            f"{row.share:.1%}",
            f"{row.flops_per_s / 1e9:,.1f}" if row.flops else "-",
            row.bound or "-",
        )
    rest = table.operators[_MOST_OPERATORS:]
    if rest:
        self_s, share = sum(row.self_s for row in rest), sum(row.share for row in rest)
        shown.add_row(f"{len(rest)} more", "", f"{sum(r.count for r in rest)}", format_duration(self_s), f"{share:.1%}")
    out.print(shown)


def _print_slowest(profile: "Profile") -> None:
    table = Table(title=f"slowest nodes, {profile.batch_rows} row(s)", title_justify="left")
    for heading in ("node", "operator", "gives"):
        table.add_column(heading, overflow="fold")
    for heading in ("time", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for operation in sorted(profile.operations, key=lambda operation: -operation.self_s)[:_SLOWEST]:
        table.add_row(
            escape(operation.name),
            operation.operator,
            escape(str(operation.outputs[0])) if operation.outputs else "",
            format_duration(operation.self_s),
            f"{profile.time_share([operation]):.1%}",
        )
    out.print(table)


def _print_threads(facts: "Facts") -> None:
    if not facts.threads:
        return
    one_s = facts.threads[0].p50_s
    table = Table(title=f"threads, {facts.timings[-1].batch_rows} row(s)", title_justify="left")
    for heading in ("threads", "p50", "against 1"):
        table.add_column(heading, justify="right")
    for timing in facts.threads:
        beyond = " (beyond the cores)" if timing.threads > facts.machine.cores else ""
        table.add_row(f"{timing.threads}{beyond}", format_duration(timing.p50_s), format_ratio(one_s / timing.p50_s))
    out.print(table)


def _print_notes(facts: "Facts") -> None:
    from mlserve.optimize.diagnose.machine_findings import BUSY

    notes = [note for profile in facts.profiles for note in profile.notes]
    load, cores = facts.conditions.load, facts.machine.cores
    if load > BUSY * cores:
        notes.append(
            f"other programs were busy too ({load:.1f} processes for {cores} cores): times and peaks are rough, look "
            "again when the machine is idle"
        )
    for note in dict.fromkeys(notes):
        err.print(f"[yellow]note:[/] {escape(note)}", highlight=False)


def _print_findings(facts: "Facts", findings: "tuple[Finding, ...]") -> None:
    if not findings:
        out.print("nothing stands out: no finding applies to what was measured", style="green")
    for number, finding in enumerate(findings, 1):
        timing = facts.timing(finding.batch_rows)
        limit = f"{finding.saves_at_most:.0%} of a run"
        if timing:
            limit += f" of {finding.batch_rows} row(s), {format_duration(finding.saves_at_most * timing.p50_s)}"
        out.print(f"\n[bold yellow]{number}. {escape(finding.title)}[/]  [dim]({finding.name})[/]", highlight=False)
        told = Table.grid(padding=(0, 1))
        told.add_row("   seen:", escape(finding.seen))
        told.add_row("   why: ", escape(finding.why))
        out.print(told, highlight=False)
        for command in finding.commands:
            out.print(f"   try:  {command}", style="bold", highlight=False, markup=False, soft_wrap=True)
        out.print(f"   saves at most {limit} (an upper bound)", style="dim", highlight=False, markup=False)
