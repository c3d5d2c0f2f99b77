"""`mlserve bench`: load as production makes it, raw rows, and whether the figures may be believed."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from mlserve.cli import bench_flags as flag
from mlserve.cli.bench_kinds import check_flags, check_many, given_flags
from mlserve.cli.bench_source import PayloadFlags, make_contenders, make_moved, make_source, protocol_of, with_trace
from mlserve.cli.bench_wishes import Asked, make_plan, parse_address, server_options, with_cores
from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, is_said, print_json
from mlserve.errors import UsageError
from mlserve.units import parse_fraction

if TYPE_CHECKING:
    from mlserve.bench.driver import Crew
    from mlserve.runs.load import Plan
    from mlserve.tuning.opening import Contender, Source, SubjectOf
    from mlserve.tuning.serving import ServerOptions

__all__ = ["bench"]


@ending_well
def bench(
    context: typer.Context,
    what: flag.What = None,
    rps: flag.Rps = None,
    users: flag.Users = None,
    arrivals: flag.Arrivals = None,
    shape: flag.Shape = "flat",
    scenario: flag.Scenario = "",
    replay: flag.Replay = None,
    replay_speed: flag.ReplaySpeed = 1.0,
    seed: flag.Seed = 0,
    max_in_flight: flag.MaxInFlight = 1024,
    timeout: flag.Timeout = "10s",
    protocol: flag.Protocol = None,
    batch: flag.Batch = None,
    data: flag.Data = None,
    lengths: flag.Lengths = "",
    image_sizes: flag.ImageSizes = "",
    model: flag.Model = "",
    inputs: flag.Inputs = "",
    template: flag.Template = "",
    answer: flag.Answer = "",
    headers: flag.Headers = None,
    ca_file: flag.CaFile = None,
    client_cert: flag.ClientCert = None,
    client_key: flag.ClientKey = None,
    metrics: flag.Metrics = "",
    check: flag.Check = False,
    expected: flag.Expected = None,
    duration: flag.Duration = "20s",
    warm_up: flag.WarmUp = "auto",
    precision: flag.Precision = "",
    max_duration: flag.MaxDuration = None,
    percentile: flag.Percentile = "p99",
    errors: flag.Errors = None,
    server_timing: flag.ServerTiming = "sampled",
    workers: flag.Workers = 1,
    master: flag.Master = "",
    join: flag.Join = "",
    web: flag.Web = False,
    web_port: flag.WebPort = 8089,
    locustfile: flag.Locustfile = None,
    server_workers: flag.ServerWorkers = None,
    threads: flag.Threads = None,
    max_batch_rows: flag.MaxBatchRows = None,
    max_delay_ms: flag.MaxDelayMs = None,
    device: flag.Device = None,
    engine: flag.Engine = None,
    compute_type: flag.ComputeType = None,
    sweep: flag.Sweep = None,
    targets: flag.Targets = None,
    repeats: flag.Repeats = 1,
    find_max: flag.FindMax = False,
    slo: flag.Slo = "",
    resolution: flag.Resolution = "5%",
    tax: flag.Tax = False,
    like: flag.Like = None,
    directory: flag.Directory = None,
    label: flag.Label = "",
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Load a model server as production would, and say whether the figures may be believed.

    Requests leave when a schedule says, whether or not the server keeps up (open loop); latency counts from the instant
    a request was due. Every request is one row of samples.parquet; run.json beside it says what was asked, what came of
    it, and whether it may be believed.

    [bold]Examples[/]

      mlserve bench minilm@candidate --rps 200 --data sentences.txt

      mlserve bench model.onnx --protocol grpc --rps 1000 --precision 5%

      mlserve bench minilm --find-max --slo p99=50ms

      mlserve bench minilm --sweep batch=1,8,32 protocol=rest,grpc --repeats 3

      mlserve bench --like runs/monday --out runs/tuesday

      mlserve bench --target ours=http://127.0.0.1:8000 --target triton=http://127.0.0.1:9000 --model minilm --rps 200
    """
    given = given_flags(context)
    check_flags(given)
    if join:
        _join(join)
        return
    if like is not None:
        from mlserve.bench.trust import read_trust
        from mlserve.cli.bench_like import bench_like

        places = {"data": data, "expected": expected, "inputs": inputs, "trace": replay, "locustfile": locustfile}
        elsewhere = store if is_said(context, "store") else None
        trust = read_trust(ca_file, client_cert, client_key)
        moved = make_moved(_split_axes(what, None)[0], elsewhere, places, headers, trust)
        bench_like(like, moved, directory, label, json=json)
        return
    where, axes = _split_axes(what, sweep)
    options = server_options(
        {
            "workers": server_workers,
            "threads": threads,
            "max_batch_rows": max_batch_rows,
            "max_delay_ms": max_delay_ms,
            "device": device,
            "engine": engine,
            "compute_type": compute_type,
        }
    )
    source = make_source(
        store,
        PayloadFlags(
            data=data,
            lengths=lengths,
            image_sizes=image_sizes,
            expected=expected,
            server_timing=server_timing,
            model=model,
            inputs=inputs,
            template=template,
            answer=answer,
            headers=tuple(headers or ()),
            ca_file=ca_file,
            client_cert=client_cert,
            client_key=client_key,
            metrics=metrics,
        ),
    )
    contenders = make_contenders(where, targets or [], source, options)
    asked = Asked(
        rps=rps,
        users=users,
        arrivals=arrivals,
        shape=shape,
        scenario=scenario,
        replay=replay,
        replay_speed=replay_speed,
        model=model,
        protocol=protocol_of(contenders, protocol),
        batch=batch,
        duration=duration,
        warm_up=warm_up,
        precision=precision,
        max_duration=max_duration,
        percentile=percentile,
        errors=errors,
        seed=seed,
        max_in_flight=max_in_flight,
        timeout=timeout,
        workers=workers,
        check=check or expected is not None,
        locustfile=locustfile,
    )
    plan, trace = make_plan(asked)
    source = with_trace(source, trace)
    options = with_cores(options, plan)
    many = bool(axes) or len(contenders) > 1 or "repeats" in given
    if sum((tax, find_max, many)) > 1:
        raise UsageError(
            "--tax, --find-max and --sweep (or several targets) are different things; ask for one at a time"
        )
    if tax:
        _run_tax(contenders[0], source, plan, options, rps, json=json)
    elif find_max:
        _run_find_max(contenders[0], source, plan, options, _Search(slo, errors, resolution, rps, directory, json))
    elif many:
        check_many(given)
        _run_sweep(contenders, source, plan, options, _Grid(axes, repeats, protocol is None, directory, json))
    else:
        output = _Output(directory, label, json, master, web_port if web else None)
        _run_one(contenders[0], source, plan, options, output)


class _Output(NamedTuple):
    directory: Path | None
    label: str
    json: bool
    master: str
    web_port: int | None


class _Search(NamedTuple):
    slo: str
    errors: str | None
    resolution: str
    rps: float | None
    directory: Path | None
    json: bool


class _Grid(NamedTuple):
    axes: list[str]
    repeats: int
    any_protocol: bool
    directory: Path | None
    json: bool


def _run_one(contender: "Contender", source: "Source", plan: "Plan", options: "ServerOptions", output: _Output) -> None:
    from mlserve.bench.driver import run_bench
    from mlserve.bench.run_directory import default_directory, default_label, run_directory
    from mlserve.cli.bench_one import document, keeping_rows, print_run, watching
    from mlserve.tuning.measuring import read_recorded

    directory, crew = output.directory, _crew(plan, output)
    with ExitStack() as stack:
        if directory is not None:
            stack.enter_context(run_directory(directory))
        subject = stack.enter_context(_open(contender, source, plan, options))(plan.protocol)
        if directory is None:
            directory = default_directory(subject.model, plan, datetime.now(UTC))
            stack.enter_context(run_directory(directory))
        label = output.label or default_label(subject.model, plan)
        with keeping_rows(directory), watching(subject, plan) as show:
            run = run_bench(subject, plan, directory, label, show, crew=crew)
    recorded = read_recorded(directory)
    if output.json:
        print_json(document(recorded))
    else:
        print_run(recorded)
    if not run.counts.ok:
        raise typer.Exit(1)


def _run_sweep(
    contenders: "tuple[Contender, ...]", source: "Source", plan: "Plan", options: "ServerOptions", grid: _Grid
) -> None:
    from mlserve.cli.bench_sweep import bench_sweep
    from mlserve.tuning.grid import Sweep, parse_sweep
    from mlserve.tuning.opening import opener

    if not 1 <= grid.repeats <= 1000:
        raise UsageError(f"--repeats {grid.repeats} is out of range; give a whole number from 1 to 1000")
    sweep = Sweep(
        contenders=contenders,
        axes=parse_sweep(grid.axes),
        plan=plan,
        options=options,
        repeats=grid.repeats,
        any_protocol=grid.any_protocol,
    )
    bench_sweep(sweep, opener(source), grid.directory or _new_directory("sweep"), json=grid.json)


def _run_find_max(
    contender: "Contender", source: "Source", plan: "Plan", options: "ServerOptions", search: _Search
) -> None:
    from mlserve.cli.bench_max import bench_max
    from mlserve.tuning.evidence import parse_slo
    from mlserve.tuning.find_max import Quest
    from mlserve.tuning.opening import opener

    if not search.slo:
        raise UsageError("--find-max looks for the highest rate that meets an objective; give it with --slo p99=50ms")
    quest = Quest(
        contender=contender,
        plan=plan,
        options=options,
        objective=parse_slo(search.slo, search.errors or "0.1%"),
        resolution=parse_fraction(search.resolution),
        start_per_s=search.rps or 0.0,
    )
    bench_max(quest, opener(source), search.directory or _new_directory("max"), json=search.json)


def _run_tax(
    contender: "Contender",
    source: "Source",
    plan: "Plan",
    options: "ServerOptions",
    rps: float | None,
    *,
    json: bool,
) -> None:
    from mlserve.cli.bench_tax import bench_tax
    from mlserve.tuning.taxing import TaxPlan

    if plan.row_mix:
        raise UsageError("--tax asks with requests of one size; give --batch one")
    asked = TaxPlan(
        contender=contender,
        options=options,
        batch_rows=plan.batch_rows,
        duration_s=plan.duration_s,
        rate_per_s=rps or 0.0,
        seed=plan.seed,
    )
    bench_tax(asked, source, json=json)


def _join(address: str) -> None:
    """Makes load for others until none has come for a minute, or Ctrl-C."""
    from mlserve.bench.generator.process import join

    host, port = parse_address(address, "--join")
    err.print(f"joining {host}:{port}; Ctrl-C ends it", highlight=False)
    join(host, port, ())


@contextmanager
def _open(contender: "Contender", source: "Source", plan: "Plan", options: "ServerOptions") -> "Iterator[SubjectOf]":
    """What is loaded, with something to look at while a server of our own starts."""
    from mlserve.tuning.opening import opener, scenario_subject

    if plan.locustfile and contender.running:
        yield lambda protocol: scenario_subject(contender, source, protocol)
        return
    with ExitStack() as stack:
        with err.status(f"starting a server for {contender.name}" if not contender.running else "asking the server"):
            subject_of = stack.enter_context(opener(source)(contender, options))
        yield subject_of


def _crew(plan: "Plan", output: _Output) -> "Crew":
    from mlserve.bench.driver import Crew
    from mlserve.bench.generator.process import Leader, Page

    page = None
    if output.web_port is not None:
        page = Page(hold=_hold_page, port=output.web_port)
        err.print(f"Locust's page will be at http://{page.host}:{page.port}", highlight=False)
    if not output.master:
        return Crew(page=page)
    host, port = parse_address(output.master, "--master")
    joining = f"{plan.generators} generator{'' if plan.generators == 1 else 's'} to join"
    err.print(f"waiting for {joining}: mlserve bench --join {host}:{port}", highlight=False, soft_wrap=True)
    return Crew(leader=Leader(members=plan.generators, bind_host=host, bind_port=port), page=page)


def _hold_page() -> None:
    """Until Ctrl-C, which here ends the page and not the program."""
    err.print("the run is over; its page stays until Ctrl-C", highlight=False)
    try:
        signal.pause()
    except KeyboardInterrupt:
        err.print()


def _split_axes(what: list[str] | None, sweep: list[str] | None) -> tuple[str | None, list[str]]:
    """What is loaded, and the axes of a sweep, which may stand behind it one by one."""
    words = list(what or ())
    axes = [word for text in sweep or () for word in text.split()]
    if sweep:
        axes += [word for word in words if _is_axis(word)]
        words = [word for word in words if not _is_axis(word)]
    if len(words) > 1:
        raise UsageError(f"one thing is loaded at a time, and {len(words)} are named: {', '.join(words)}; see --target")
    return (words[0] if words else None), axes


def _is_axis(word: str) -> bool:
    return "=" in word and "://" not in word


def _new_directory(kind: str) -> Path:
    return Path("runs") / f"{kind}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
