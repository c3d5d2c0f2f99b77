"""`mlserve bench`: load as production makes it, raw rows, and whether the figures may be believed."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, out, print_json
from mlserve.errors import UsageError
from mlserve.units import format_duration, format_rate, parse_duration_s

if TYPE_CHECKING:
    from mlserve.bench.driver import Subject
    from mlserve.bench.progress import Progress as Moment
    from mlserve.runs.load import Plan, Protocol
    from mlserve.runs.run import Run
    from mlserve.runs.samples import Samples
    from mlserve.runs.window import Window
    from mlserve.tuning.serving import Served, ServerOptions

__all__ = ["bench"]

_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@ending_well
def bench(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL | NAME[@VERSION|@ALIAS] | FILE.onnx]",
            help="What to load: a running server, or a model that is served for as long as it takes; "
            "the store's only model if omitted.",
            show_default=False,
        ),
    ] = None,
    rps: Annotated[float, typer.Option(help="Requests a second.")] = 500.0,
    duration: Annotated[str, typer.Option(help="How long to measure.")] = "20s",
    warm_up: Annotated[str, typer.Option(help="The same load before it, left out of every figure.")] = "3s",
    protocol: Annotated[
        str | None, typer.Option(help="rest or grpc; a URL's scheme says it.", show_default="rest")
    ] = None,
    arrivals: Annotated[str, typer.Option(help="poisson (independent users) or constant.")] = "poisson",
    batch: Annotated[int, typer.Option(help="Rows in each request.")] = 1,
    data: Annotated[
        Path | None,
        typer.Option(help="Rows to send: npz, npy, csv, parquet, jsonl or txt; made-up rows if omitted."),
    ] = None,
    model: Annotated[str, typer.Option(help="The model, where a URL names none.", show_default=False)] = "",
    seed: Annotated[int, typer.Option(help="Of the schedule and of made-up rows.")] = 0,
    max_in_flight: Annotated[
        int, typer.Option(help="Requests that may wait at once; one due beyond that is dropped and counted.")
    ] = 1024,
    timeout: Annotated[str, typer.Option(help="After which a request has failed.")] = "10s",
    directory: Annotated[
        Path | None, typer.Option("--out", help="Folder for the run.", show_default="a new one in runs/")
    ] = None,
    label: Annotated[str, typer.Option(help="What reports call the run.", show_default=False)] = "",
    store: StoreOption = Path("store"),
    workers: Annotated[int | None, typer.Option(help="The server's processes.", show_default="1")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads one model run uses.", show_default="the server's cores over its workers")
    ] = None,
    max_batch_rows: Annotated[
        int | None, typer.Option(help="Most rows the server runs together.", show_default="32")
    ] = None,
    max_delay_ms: Annotated[
        float | None, typer.Option(help="How long a request may wait to share a batch.", show_default="0")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cpu")] = None,
    json: JsonFlag = False,
) -> None:
    """Load a model server at a fixed rate (open loop), whether or not it keeps up.

    Latency counts from the instant a request was due. Every request is one row of samples.parquet; run.json beside it
    says what was asked, what came of it, and whether the figures may be believed. The server settings (--workers to
    --device) are for a model that bench serves itself.

    [bold]Examples[/]

      mlserve bench minilm@candidate --rps 200 --data sentences.txt

      mlserve bench model.onnx --protocol grpc --rps 1000 --duration 1m

      mlserve bench http://127.0.0.1:8000 --rps 500 --out runs/today
    """
    from mlserve.bench.driver import run_bench
    from mlserve.bench.plan import check_arrivals, check_plan
    from mlserve.bench.run_directory import default_directory, default_label, run_directory
    from mlserve.bench.target import check_protocol
    from mlserve.runs.load import Plan
    from mlserve.runs.samples import read_samples

    options = _server_options(target, workers, threads, max_batch_rows, max_delay_ms, device)
    plan = check_plan(
        Plan(
            rate_per_s=rps,
            duration_s=parse_duration_s(duration),
            warm_up_s=_parse_warm_up_s(warm_up),
            arrivals=check_arrivals(arrivals),
            protocol=_protocol_of(target) if protocol is None else check_protocol(protocol),
            batch_rows=batch,
            seed=seed,
            max_in_flight=max_in_flight,
            timeout_s=parse_duration_s(timeout),
        )
    )
    with ExitStack() as stack:
        if directory is not None:
            stack.enter_context(run_directory(directory))
        subject = stack.enter_context(_open_subject(target, plan, store, model, data, options))
        if directory is None:
            directory = default_directory(subject.model, plan, datetime.now(UTC))
            stack.enter_context(run_directory(directory))
        name = label or default_label(subject.model, plan)
        with _keeping_rows(directory), _watching(subject, plan) as show:
            run = run_bench(subject, plan, directory, name, show)
    samples = read_samples(directory, run.window)
    if json:
        print_json(_document(run, samples, directory))
    else:
        _print_run(run, samples, directory)
    if not run.counts.ok:
        raise typer.Exit(1)


def _server_options(
    target: str | None,
    workers: int | None,
    threads: int | None,
    max_batch_rows: int | None,
    max_delay_ms: float | None,
    device: str | None,
) -> "ServerOptions":
    """What was said of the server. Raises UsageError where the server is not ours to set, or cannot be set so."""
    import msgspec

    from mlserve.bench.target import is_url
    from mlserve.tuning.serving import ServerOptions

    settings: dict[str, int | float | str | None] = {
        "workers": workers,
        "threads": threads,
        "max_batch_rows": max_batch_rows,
        "max_delay_ms": max_delay_ms,
        "device": device,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if given and target is not None and is_url(target):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{flags}: {target} runs already; set it where it was started, or give a model's name")
    for name in ("workers", "threads", "max_batch_rows"):
        if given.get(name, 1) < 1:  # type: ignore[operator]  # these three are integers
            raise UsageError(f"--{name.replace('_', '-')} {given[name]} cannot be used; give 1 or more")
    if max_delay_ms is not None and not 0 <= max_delay_ms < math.inf:
        raise UsageError(f"--max-delay-ms {max_delay_ms} cannot be used; give 0 or more")
    return msgspec.convert(given, ServerOptions)


def _protocol_of(target: str | None) -> "Protocol":
    from mlserve.bench.target import is_url, parse_target

    return parse_target(target).protocol if target is not None and is_url(target) else "rest"


def _parse_warm_up_s(text: str) -> float:
    """A duration, of which zero is one here."""
    return 0.0 if text.strip() in ("0", "0s", "0ms") else parse_duration_s(text)


@contextmanager
def _open_subject(
    target: str | None, plan: "Plan", store: Path, model: str, data: Path | None, options: "ServerOptions"
) -> "Iterator[Subject]":
    """What `target` means; a model is served for as long as the block lasts."""
    from mlserve.bench.driver import url_subject
    from mlserve.bench.target import is_url, parse_target
    from mlserve.model.onnx_file import inspect_onnx
    from mlserve.model.store import Store
    from mlserve.tuning.serving import artifact_subject, file_subject

    if target is not None and is_url(target):
        yield url_subject(parse_target(target, model, plan.protocol), data)
        return
    if model:
        raise UsageError(f"--model {model} is for a URL that names no model; give the model alone: {model}")
    if target is not None and (target.endswith(".onnx") or Path(target).is_file()):
        path = Path(target).resolve()
        inspect_onnx(path)
        with _served(str(path), store, options) as served:
            yield file_subject(served, path, plan.protocol, data)
        return
    artifact = Store(store).resolve(target or _only_model(store))
    with _served(artifact.ref, store, options) as served:
        yield artifact_subject(served, artifact, plan.protocol, data)


@contextmanager
def _served(ref: str, store: Path, options: "ServerOptions") -> "Iterator[Served]":
    """`serving`, with something to look at while the server starts."""
    from mlserve.tuning.serving import serving

    with ExitStack() as stack:
        with err.status(f"starting a server for {ref}"):
            served = stack.enter_context(serving(ref, store, options))
        yield served


def _only_model(store: Path) -> str:
    from mlserve.model.store import Store

    names = Store(store).names()
    if len(names) != 1:
        held = f"holds {', '.join(names)}" if names else "holds no model"
        raise UsageError(f"nothing was named to load, and the store {store} {held}; give a NAME, a FILE.onnx or a URL")
    return names[0]


@contextmanager
def _keeping_rows(directory: Path) -> Iterator[None]:
    """Says where the rows of an interrupted run are."""
    try:
        yield
    except KeyboardInterrupt:
        if any(directory.glob("samples.*")):
            err.print(f"the rows so far are kept in {directory}; it is no finished run", highlight=False)
        raise


@contextmanager
def _watching(subject: "Subject", plan: "Plan") -> "Iterator[Any]":
    """A live line on the terminal; yields what draws it."""
    total_s = plan.warm_up_s + plan.duration_s
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=err, transient=True, refresh_per_second=4, disable=not err.is_terminal) as bar:
        task = bar.add_task("starting", total=total_s, figures="")
        said = False

        def show(moment: "Moment") -> None:
            nonlocal said
            if not said:
                err.print(_announcement(subject, plan), highlight=False)
                said = True
            bar.update(
                task,
                completed=min(max(moment.elapsed_s, 0.0), total_s),
                description=_phase(moment.elapsed_s, plan),
                figures=_figures(moment),
            )

        yield show


def _figures(moment: "Moment") -> str:
    faults = {"failed": moment.failed, "dropped": moment.dropped}
    return "  ".join(
        [
            f"sent {moment.sent:,}  done {moment.done:,}  in flight {moment.in_flight:,}",
            f"p50 {format_duration(moment.p50_s)}  p99 {format_duration(moment.p99_s)}",
            *(f"[red]{name} {count:,}[/]" for name, count in faults.items() if count),
        ]
    )


def _announcement(subject: "Subject", plan: "Plan") -> str:
    return (
        f"loading {subject.model.name} over {plan.protocol} at {format_rate(plan.rate_per_s)} for "
        f"{format_duration(plan.duration_s)} after {format_duration(plan.warm_up_s)} of warm-up"
    )


def _phase(elapsed_s: float, plan: "Plan") -> str:
    if elapsed_s < 0:
        return "starting"
    if elapsed_s < plan.warm_up_s:
        return "warming up"
    return "measuring" if elapsed_s < plan.warm_up_s + plan.duration_s else "last answers"


def _achieved_per_s(samples: "Samples", window: "Window") -> float:
    """Good answers a second, from the first instant of the measured part to the last answer, if that is later."""
    if not samples.ok.any():
        return 0.0
    return float(samples.ok.sum()) / max(window.duration_s, float(samples.done_s[samples.ok].max()) - window.start_s)


def _quantile_s(values: Any, q: float) -> float | None:
    """None where there are too few values to claim it."""
    from mlserve.stats import minimum_samples, quantile

    return quantile(values, q) if len(values) >= minimum_samples(q) else None


def _document(run: "Run", samples: "Samples", directory: Path) -> dict[str, Any]:
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(run)
    kinds = {"latency_s": samples.latency_s, "service_s": samples.service_s, "dispatch_lag_s": samples.dispatch_lag_s}
    return document | {
        "directory": str(directory),
        "valid": run.certificate.valid,
        "summary": {
            "offered_per_s": run.counts.scheduled / run.window.duration_s,
            "achieved_per_s": _achieved_per_s(samples, run.window),
            **{kind: {p: _quantile_s(values, q) for p, q in _QUANTILES.items()} for kind, values in kinds.items()},
        },
    }


def _print_run(run: "Run", samples: "Samples", directory: Path) -> None:
    counts = run.counts
    offered, achieved = counts.scheduled / run.plan.duration_s, _achieved_per_s(samples, run.window)
    out.print(f"[bold]{run.label}[/]", highlight=False)
    out.print(f"rate        offered {format_rate(offered)}, achieved {format_rate(achieved)}", highlight=False)
    out.print(f"requests    {counts.ok:,} ok, {counts.failed:,} failed, {counts.dropped:,} dropped", highlight=False)
    for status, count in _failures(samples).items():
        out.print(f"            {status}: {count:,}", highlight=False, markup=False, style="red")
    out.print(f"generator   {counts.generator_cpu:.0%} of a core", highlight=False)
    out.print(_quantile_table(samples))
    _print_certificate(run)
    out.print(f"run         {directory}", highlight=False, markup=False, soft_wrap=True)


def _print_certificate(run: "Run") -> None:
    checks, faults = run.certificate.checks, run.certificate.faults
    verdict = f"[bold green]VALID[/], {len(checks)} checks hold"
    if faults:
        verdict = f"[bold red]INVALID[/], {len(faults)} of {len(checks)} checks fail: do not decide by these figures"
    out.print(f"certificate {verdict}", highlight=False)
    for check in faults:
        out.print(
            f"  [red]{check.name}[/]: {check.found}, limit: {check.limit}. {check.advice}",
            highlight=False,
            soft_wrap=True,
        )


def _quantile_table(samples: "Samples") -> Table:
    """Response time, which counts from when a request was due, above service time, which counts from its sending."""
    from mlserve.stats import minimum_samples

    table = Table("", *_QUANTILES)
    for kind, values in (("latency", samples.latency_s), ("service time", samples.service_s)):
        found = {p: _quantile_s(values, q) for p, q in _QUANTILES.items()}
        table.add_row(kind, *("-" if value is None else format_duration(value) for value in found.values()))
    refused = [f"{p} needs {minimum_samples(q)}" for p, q in _QUANTILES.items() if _too_few(samples, q)]
    if refused:
        table.caption = f"{len(samples.latency_s)} answers: {', '.join(refused)}"
    return table


def _too_few(samples: "Samples", q: float) -> bool:
    return _quantile_s(samples.latency_s, q) is None


def _failures(samples: "Samples") -> dict[str, int]:
    from collections import Counter

    from mlserve.runs.samples import DROPPED, OK

    return {status: n for status, n in Counter(samples.status).most_common() if status not in (OK, DROPPED)}
