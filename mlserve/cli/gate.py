"""`mlserve gate`: did it get worse? Exit 0, 1 or 3 for pass, fail or inconclusive."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from mlserve.cli import bench_flags as load
from mlserve.cli import gate_flags as flag
from mlserve.cli.bench_kinds import given_flags
from mlserve.cli.bench_source import PayloadFlags, make_source, protocol_of, with_trace
from mlserve.cli.bench_wishes import Asked, make_plan, server_options, with_cores
from mlserve.cli.gate_output import Outputs, check_outputs, telling_of_errors
from mlserve.cli.gate_saved import OtherDay, Record, append_runs, gate_against, gate_saved, holds_runs
from mlserve.cli.gate_wishes import (
    Wanted,
    calibration_of,
    check_live,
    check_saved,
    highest_percentile,
    limits_of,
    with_file,
)
from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well
from mlserve.errors import UsageError
from mlserve.units import parse_duration_s, parse_fraction

if TYPE_CHECKING:
    from mlserve.runs.load import Plan
    from mlserve.tuning.gating.asked import LiveGate
    from mlserve.tuning.gating.side import Side
    from mlserve.tuning.opening import Source
    from mlserve.tuning.serving import ServerOptions

__all__ = ["gate"]


@ending_well
def gate(
    context: typer.Context,
    base: flag.Base = None,
    candidate: flag.Candidate = None,
    max_regression: flag.Limits = None,
    slo: flag.Slo = "",
    config: flag.Config = None,
    ignore_differences: flag.IgnoreDifferences = False,
    rps: load.Rps = None,
    users: load.Users = None,
    arrivals: load.Arrivals = None,
    shape: load.Shape = "flat",
    replay: load.Replay = None,
    replay_speed: load.ReplaySpeed = 1.0,
    seed: load.Seed = 0,
    max_in_flight: load.MaxInFlight = 1024,
    timeout: load.Timeout = "10s",
    protocol: load.Protocol = None,
    batch: load.Batch = None,
    data: load.Data = None,
    lengths: load.Lengths = "",
    image_sizes: load.ImageSizes = "",
    model: load.Model = "",
    inputs: load.Inputs = "",
    template: load.Template = "",
    answer: load.Answer = "",
    headers: load.Headers = None,
    ca_file: load.CaFile = None,
    client_cert: load.ClientCert = None,
    client_key: load.ClientKey = None,
    metrics: load.Metrics = "",
    check: load.Check = False,
    expected: load.Expected = None,
    duration: load.Duration = "10s",
    warm_up: load.WarmUp = "auto",
    percentile: flag.Percentile = "",
    errors: load.Errors = None,
    server_timing: load.ServerTiming = "sampled",
    workers: load.Workers = 1,
    budget: flag.Budget = "10m",
    keep_servers: flag.KeepServers = False,
    in_turn: flag.InTurn = False,
    base_python: flag.BasePython = "",
    candidate_python: flag.CandidatePython = "",
    resolution: flag.Resolution = "",
    calibrate: flag.Calibrate = False,
    times: flag.Times = 10,
    calibration: flag.Calibration = None,
    server_workers: load.ServerWorkers = None,
    threads: load.Threads = None,
    max_batch_rows: load.MaxBatchRows = None,
    max_delay_ms: load.MaxDelayMs = None,
    device: load.Device = None,
    engine: load.Engine = None,
    compute_type: load.ComputeType = None,
    against: flag.Against = None,
    may_differ: flag.MayDiffer = None,
    history: flag.History = None,
    append: flag.Append = None,
    commit: flag.Commit = "",
    junit: flag.Junit = None,
    badge: flag.Badge = None,
    comment: flag.Comment = None,
    directory: flag.Out = None,
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Compare a candidate with a base. Exit status: 0 pass, 1 fail, 3 inconclusive, 2 misuse.

    Two servers are asked by turns, on this machine, until it is decided, or --budget is out; or runs that were made
    before are held against each other. It fails only where the difference is beyond the limit and beyond
    noise, and fresh runs have confirmed it; it passes only where it is within the limit for all noise can do.

    [bold]Examples[/]

      mlserve gate minilm@production minilm@candidate --max-regression p99=5% --rps 200

      mlserve gate grpc://10.0.0.7:8001/minilm grpc://10.0.0.8:8001/minilm --max-regression p50=5%,p99=10%

      mlserve gate --config gate.toml --junit gate.xml

      mlserve gate minilm@production --calibrate --max-regression p99=5% --rps 200

      mlserve gate runs/main runs/branch --max-regression p99=10%

      mlserve gate runs/today --against reports/history --max-regression p99=10%
    """
    given = given_flags(context)
    outputs = Outputs(json=json, junit=junit, badge=badge, comment=comment)
    check_outputs(outputs, calibrates=calibrate)
    with telling_of_errors(outputs, base or "", candidate or ""):
        wanted = with_file(
            Wanted(
                base=base or "",
                candidate=candidate or "",
                limits=tuple(max_regression or ()),
                slo=slo,
                rps=rps,
                users=users,
                batch=batch,
                protocol=protocol,
                duration=duration,
                warm_up=warm_up,
                seed=seed,
                budget_s=parse_duration_s(budget),
                store=store,
                store_said="store" in given,
                against=against,
                calibration=calibration,
                may_differ=tuple(name for names in may_differ or () for name in names.split(",")),
                history=history,
            ),
            config,
            given,
        )
        if wanted.against is not None or append is not None or _are_saved(wanted):
            check_saved(given, wanted)
            _gate_runs(wanted, outputs, Record(folder=append, commit=commit), ignore_differences=ignore_differences)
            return
        check_live(given)
        source = make_source(
            wanted.store,
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
        sides = _sides(wanted, options, (base_python, candidate_python), calibrate=calibrate)
        plan, trace = make_plan(
            Asked(
                rps=wanted.rps,
                users=wanted.users,
                arrivals=arrivals,
                shape=shape,
                scenario="",
                replay=replay,
                replay_speed=replay_speed,
                model=model,
                protocol=protocol_of(tuple(side.contender for side in sides), wanted.protocol),
                batch=wanted.batch,
                duration=wanted.duration,
                warm_up=wanted.warm_up,
                precision="",
                max_duration=None,
                percentile=percentile or highest_percentile(limits_of(wanted)),
                errors=errors,
                seed=wanted.seed,
                max_in_flight=max_in_flight,
                timeout=timeout,
                workers=workers,
                check=check or expected is not None,
                locustfile=None,
            )
        )
        source = with_trace(source, trace)
        asked = _live_gate(wanted, sides, source, plan, resolution, errors, keep_servers=keep_servers, in_turn=in_turn)
        _measure(asked, source, wanted, directory, times if calibrate else 0, outputs)


def _are_saved(wanted: Wanted) -> bool:
    """Whether both sides are folders of runs. Raises UsageError where one is, and the other would be measured now."""
    if not wanted.candidate:
        return False
    for where in (wanted.base, wanted.candidate):
        _check_there(where)
    saved = [where for where in (wanted.base, wanted.candidate) if holds_runs(where)]
    if len(saved) == 1:
        other = wanted.candidate if saved[0] == wanted.base else wanted.base
        raise UsageError(
            f"{other} holds no run, and {saved[0]} does: runs of another time are not compared with what would be "
            "measured now; measure it by itself with bench, and hold its runs against them with --against"
        )
    return len(saved) == 2


def _check_there(where: str) -> None:
    """Raises UsageError for a path that nothing is at: it is no model's name either."""
    if "/" in where and "://" not in where and not Path(where).exists():
        raise UsageError(
            f"there is no {where}; give a model's name, FILE.onnx, a production.toml, a URL, or a folder of runs that "
            "mlserve bench --out made"
        )


def _gate_runs(wanted: Wanted, outputs: Outputs, record: Record, *, ignore_differences: bool) -> None:
    if wanted.candidate and (wanted.against is not None or record.folder is not None):
        flag = f"--against {wanted.against}" if wanted.against is not None else f"--append {record.folder}"
        raise UsageError(f"{flag} is about one folder of runs, and two are given; leave {wanted.candidate} out")
    if not wanted.base:
        raise UsageError("nothing was named to compare; give a folder of runs")
    if wanted.candidate and Path(wanted.base).resolve() == Path(wanted.candidate).resolve():
        raise UsageError(f"{wanted.base} is given twice, and no run differs from itself; give the runs of two servers")
    if wanted.against is not None:
        other = OtherDay(where=wanted.against, history=wanted.history, may_differ=wanted.may_differ)
        gate_against(wanted.base, other, limits_of(wanted), outputs, calibration_of(wanted), record)
    elif record.folder is not None:
        append_runs(wanted.base, record)
    else:
        gate_saved(
            wanted.base,
            wanted.candidate,
            limits_of(wanted),
            outputs,
            calibration_of(wanted),
            ignore_differences=ignore_differences,
        )


def _sides(
    wanted: Wanted, options: "ServerOptions | None", pythons: tuple[str, str], *, calibrate: bool
) -> "tuple[Side, Side]":
    from mlserve.runs.production import is_production
    from mlserve.tuning.serving import ServerOptions

    if not wanted.base:
        raise UsageError("nothing was named to compare; give BASE and CANDIDATE, each a model, a URL or runs")
    if calibrate and wanted.candidate:
        raise UsageError(f"--calibrate holds {wanted.base} against itself; leave {wanted.candidate} out")
    if not calibrate and not wanted.candidate:
        raise UsageError(f"{wanted.base} is compared with nothing; give CANDIDATE, --against, or --calibrate")
    told = options or ServerOptions()
    texts = (wanted.base, wanted.base if calibrate else wanted.candidate)
    one, other = (
        _side(text, wanted, msgspec.structs.replace(told, python=_python(python)))
        for text, python in zip(texts, pythons, strict=True)
    )
    running = [f"{side.name} runs already, and is not set by us" for side in (one, other) if side.options is None]
    written = [f"{text} says itself how it is served" for text in texts if is_production(Path(text))]
    if options is not None and (running or written):
        raise UsageError(f"{(running + written)[0]}; leave out --server-workers to --compute-type")
    return one, other


def _side(text: str, wanted: Wanted, options: "ServerOptions") -> "Side":
    from mlserve.runs.production import is_production, read_production
    from mlserve.tuning.gating.side import production_side, side_of

    if is_production(Path(text)):
        store = wanted.store if wanted.store_said else None
        return production_side(read_production(Path(text)), Path(text), options, store)
    return side_of(text, wanted.store, options)


def _python(text: str) -> str:
    if text and not Path(text).is_file():
        raise UsageError(f"there is no interpreter {text}; give a path such as /srv/main/.venv/bin/python")
    return str(Path(text).absolute()) if text else ""


def _live_gate(
    wanted: Wanted,
    sides: "tuple[Side, Side]",
    source: "Source",
    plan: "Plan",
    resolution: str,
    errors: str | None,
    *,
    keep_servers: bool,
    in_turn: bool,
) -> "LiveGate":
    from mlserve.report.gating.rate_resolution import resolution_for
    from mlserve.tuning.evidence import parse_slo
    from mlserve.tuning.gating.asked import LiveGate
    from mlserve.tuning.gating.content import with_content
    from mlserve.tuning.slots import slot_of

    told = [
        side if side.options is None else msgspec.structs.replace(side, options=with_cores(side.options, plan))
        for side in sides
    ]
    return LiveGate(
        base=with_content(told[0], source),
        candidate=with_content(told[1], source),
        plan=plan,
        limits=limits_of(wanted),
        objective=parse_slo(wanted.slo, errors or "0.1%") if wanted.slo else None,
        resolution=resolution_for(limits_of(wanted), parse_fraction(resolution) if resolution else None),
        keep_servers=keep_servers,
        slot_s=0.0 if in_turn else slot_of(plan),
    )


def _measure(
    asked: "LiveGate", source: "Source", wanted: Wanted, directory: Path | None, times: int, outputs: Outputs
) -> None:
    from mlserve.cli.gate_live import calibrate_gate, gate_live

    place = directory or Path("runs") / f"gate-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    if times:
        calibrate_gate(asked, source, place, wanted.budget_s, times, wanted.calibration_file, json=outputs.json)
    else:
        gate_live(asked, source, place, wanted.budget_s, outputs, calibration_of(wanted))
