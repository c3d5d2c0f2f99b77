"""`mlserve what-if`: what settings of a server would do, foretold from the times of their parts; nothing is served."""

from collections.abc import Callable, Sequence
from itertools import product
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, out, print_json, steps
from mlserve.errors import UsageError
from mlserve.units import format_duration, format_rate

if TYPE_CHECKING:
    from mlserve.runs.load import Plan
    from mlserve.tuning.evidence import Objective
    from mlserve.tuning.opening import Source
    from mlserve.tuning.prediction.prediction import Prediction
    from mlserve.tuning.setting import Setting

__all__ = ["what_if"]

_MOST_SETTINGS = 2000
_SHOWN = 40

Value = TypeVar("Value", int, float, str)


def _option(panel: str, *names: str, **said: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **said)


_LOAD, _SERVER, _MEASURED = "Load", "Settings: each combination is foretold", "What is measured"

Models = Annotated[
    list[str],
    typer.Argument(metavar="NAME[@VERSION|@ALIAS] | FILE.onnx ...", help="The models, or several versions of one."),
]
Slo = Annotated[str, _option(_LOAD, help="The objective: p99=20ms.")]
Rps = Annotated[
    float | None,
    _option(_LOAD, help="Requests a second, open loop; else each setting at its highest rate.", show_default=False),
]
Errors = Annotated[str, _option(_LOAD, help="The share of requests that may be refused.")]
Batch = Annotated[str, _option(_LOAD, help="Rows in each request, or several sizes: 1:0.7,8:0.3.")]
Data = Annotated[
    Path | None, _option(_LOAD, help="Rows to send, as for mlserve bench; made-up ones if omitted.", show_default=False)
]
Lengths = Annotated[
    str, _option(_LOAD, help="Of made-up sequences: 8..128 or lognormal:64,40.", show_default="the model's")
]
Duration = Annotated[str, _option(_LOAD, help="Of the load that is foretold.")]
Seed = Annotated[int, _option(_LOAD, help="Of the schedule and of made-up rows.")]
Protocols = Annotated[str, _option(_SERVER, "--protocol", help="rest, rest-binary, grpc.")]
Workers = Annotated[str, _option(_SERVER, help="The server's processes.")]
Threads = Annotated[
    str, _option(_SERVER, help="Threads of one run; 0: the server's cores over its workers.", show_default=True)
]
MaxBatchRows = Annotated[str, _option(_SERVER, help="Most rows that run together.")]
MaxDelayMs = Annotated[str, _option(_SERVER, help="How long a request may wait to share a batch.")]
Devices = Annotated[str, _option(_SERVER, "--device", help="cpu, cuda or cuda:N.")]
Engines = Annotated[
    str, _option(_SERVER, "--engine", help="onnxruntime, openvino, ...", show_default="what each was made for")
]
ComputeTypes = Annotated[
    str, _option(_SERVER, "--compute-type", help="bf16, ...", show_default="what each was made for")
]
Times = Annotated[Path, _option(_MEASURED, help="Where measured times are kept, and found again.")]
Budget = Annotated[str, _option(_MEASURED, help="How long each engine and each protocol is measured, at least.")]


@ending_well
def what_if(
    models: Models,
    slo: Slo = "p99=50ms",
    rps: Rps = None,
    errors: Errors = "0.1%",
    batch: Batch = "1",
    data: Data = None,
    lengths: Lengths = "",
    duration: Duration = "20s",
    seed: Seed = 0,
    protocols: Protocols = "rest",
    workers: Workers = "1",
    threads: Threads = "0",
    max_batch_rows: MaxBatchRows = "1,8,32",
    max_delay_ms: MaxDelayMs = "0",
    devices: Devices = "cpu",
    engines: Engines = "",
    compute_types: ComputeTypes = "",
    times: Times = Path("runs/service-times.json"),
    budget: Budget = "4s",
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Foretell what settings of a server would do under a load, best first, without serving any of them.

    How long runs take is measured in process, for every number of rows, and what a protocol costs on a server whose
    model does nothing; both are kept. A simulated server then answers the very schedule that mlserve bench would send.
    It is a prediction: let mlserve bench or mlserve tune measure what you decide by.

    Exit status 1 where no setting is foretold to meet the objective.

    [bold]Examples[/]

      mlserve what-if minilm --rps 100 --slo p99=20ms --max-batch-rows 1,8,32 --max-delay-ms 0,2

      mlserve what-if minilm@1 minilm@2 --protocol rest,grpc --workers 1,2 --threads 1
    """
    from mlserve.tuning.evidence import parse_slo
    from mlserve.tuning.prediction.predict import Budget as Spent
    from mlserve.tuning.prediction.predict import open_predictor
    from mlserve.units import parse_duration_s

    objective = parse_slo(slo, errors)
    plan = _plan(rps, batch, duration, seed)
    source = _source(store, data, lengths)
    settings = _settings(
        _named(models, store),
        [
            _listed("--protocol", protocols, _protocol),
            _listed("--workers", workers, _whole),
            _listed("--threads", threads, _whole_or_0),
            _listed("--max-batch-rows", max_batch_rows, _whole),
            _listed("--max-delay-ms", max_delay_ms, _delay),
            _listed("--device", devices, str),
            _listed("--engine", engines, str),
            _listed("--compute-type", compute_types, str),
        ],
    )
    spent_s = parse_duration_s(budget)
    with steps("what-if") as on_step:
        predicts = open_predictor(
            settings, source, plan, times, on_step, Spent(engine_s=spent_s, protocol_s=2 * spent_s)
        )
        on_step(f"simulating {len(settings)} settings")
        found = sorted(predicts(settings, objective, rps), key=lambda each: _rank(each, objective))
    if predicts.disturbed:
        err.print(
            f"other work had the cores for up to {predicts.disturbed:.0%} of the time in which runs were timed, so "
            "that what is foretold is too slow; ask again when the machine is quiet",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    if json:
        print_json({"format_version": 1, "objective": objective, "predictions": [_written(each) for each in found]})
    else:
        _print(found, objective, rps)
    if not any(_meets(each, objective) for each in found):
        raise typer.Exit(1)


def _plan(rps: float | None, batch: str, duration: str, seed: int) -> "Plan":
    from mlserve.bench.payload.sizes import parse_row_mix
    from mlserve.bench.plan import check_plan
    from mlserve.runs.load import Plan
    from mlserve.units import parse_duration_s

    mix = parse_row_mix(batch)
    return check_plan(
        Plan(
            rate_per_s=100.0 if rps is None else rps,
            duration_s=parse_duration_s(duration),
            warm_up_s=0.0,
            batch_rows=mix[-1].rows,
            row_mix=mix if len(mix) > 1 else (),
            seed=seed,
        )
    )


def _source(store: Path, data: Path | None, lengths: str) -> "Source":
    from mlserve.bench.payload.payload import PayloadWish
    from mlserve.bench.payload.sizes import parse_lengths
    from mlserve.tuning.opening import Source

    if data is not None and not data.exists():
        raise UsageError(f"--data {data}: there is no such file; check the path")
    wish = PayloadWish(data=data, lengths=parse_lengths(lengths) if lengths else None)
    return Source(store=store, wish=wish)


def _named(models: Sequence[str], store: Path) -> list[tuple[str, str]]:
    """(version or file, what people call it), each once."""
    from mlserve.model.store import Store
    from mlserve.tuning.opening import Contender, settled

    named: dict[str, str] = {}
    for model in models:
        contender = settled(Contender(model, model), store)
        if contender.running:
            raise UsageError(f"{model} is a URL, and what runs there cannot be timed in process; give a model")
        is_file = Path(contender.where).is_file()
        variant = "" if is_file else Store(store).resolve(contender.where).manifest.variant
        named[contender.where] = f"{contender.where} {variant}".strip()
    return list(named.items())


def _settings(models: Sequence[tuple[str, str]], axes: Sequence[Sequence[Any]]) -> "list[Setting]":
    """Every combination. Raises UsageError for too many."""
    from mlserve.tuning.serving import ServerOptions
    from mlserve.tuning.setting import Setting

    settings = [
        Setting(
            model=model,
            variant=variant,
            protocol=protocol,
            options=ServerOptions(
                workers=workers,
                threads=threads,
                max_batch_rows=max_batch_rows,
                max_delay_ms=max_delay_ms,
                device=device,
                engine=engine,
                compute_type=compute_type,
            ),
        )
        for (model, variant), (
            protocol, workers, threads, max_batch_rows, max_delay_ms, device, engine, compute_type,
        ) in product(models, product(*axes))
    ]  # fmt: skip
    if len(settings) > _MOST_SETTINGS:
        raise UsageError(f"these are {len(settings):,} settings, at most {_MOST_SETTINGS:,} are foretold at once")
    return settings


def _listed(flag: str, text: str, read: Callable[[str], Value]) -> list[Value]:
    """The values of a flag, each once. Raises UsageError, naming it, for one that cannot be read."""
    try:
        return list(dict.fromkeys(read(part.strip()) for part in text.split(",")))
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} cannot be used; write one value or several, such as 1,2") from error


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _whole_or_0(text: str) -> int:
    return 0 if text == "0" else _whole(text)


def _delay(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def _protocol(text: str) -> str:
    from mlserve.bench.target import check_protocol

    return check_protocol(text)


def _meets(found: "Prediction", objective: "Objective") -> bool:
    return found.rate_per_s > 0 and found.objective_s <= objective.limit_s


def _rank(found: "Prediction", objective: "Objective") -> tuple[bool, float, float]:
    """Those that meet the objective come first, then the highest rate."""
    return not _meets(found, objective), -found.max_rate_per_s, found.objective_s


def _written(found: "Prediction") -> dict[str, Any]:
    """For JSON, which has no infinity: null is a queue that grows without end."""
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(found)
    return {name: None if isinstance(value, float) and isinf(value) else value for name, value in document.items()}


def _print(found: "Sequence[Prediction]", objective: "Objective", rps: float | None) -> None:
    at = f"at {format_rate(rps)}" if rps is not None else "each at its highest rate"
    out.print(f"[bold]foretold, not measured[/]: {objective.words}, {at}", highlight=False)
    table = Table(box=None, pad_edge=False)
    further = [] if objective.name in ("p50", "p99") else [objective.name]
    for heading in ("model", "protocol", "server"):
        table.add_column(heading)
    for heading in ("highest rate", "rate", "p50", "p99", *further, "rows/run", "computing"):
        table.add_column(heading, justify="right")
    for each in found[:_SHOWN]:
        table.add_row(*_row(each, objective), style="" if _meets(each, objective) else "dim")
    out.print(table)
    if len(found) > _SHOWN:
        out.print(f"and {len(found) - _SHOWN} more; --json has them all", style="dim")
    best = found[0]
    if _meets(best, objective):
        out.print("measure it with: mlserve bench, or let mlserve tune decide", style="dim", highlight=False)
    else:
        out.print("no setting is foretold to meet the objective", style="red", highlight=False)


def _row(each: "Prediction", objective: "Objective") -> list[str]:
    cells = [
        each.setting.variant,
        each.setting.protocol,
        _server(each.setting),
        format_rate(each.max_rate_per_s) if each.max_rate_per_s else "none",
        format_rate(each.rate_per_s),
        _time(each.p50_s),
        _time(each.p99_s),
    ]
    if objective.name not in ("p50", "p99"):
        cells.append(_time(each.objective_s))
    return [*cells, f"{each.mean_batch_rows:.1f}", f"{each.utilization:.0%}"]


def _time(seconds: float) -> str:
    return "grows" if isinf(seconds) else format_duration(seconds)


def _server(setting: "Setting") -> str:
    """`2 workers x 1 thread, 32 rows, 2 ms`."""
    options = setting.options
    words = [
        f"{options.workers} worker{'' if options.workers == 1 else 's'}",
        f"{options.threads or 'all'} thread{'' if options.threads == 1 else 's'}",
        f"{options.max_batch_rows} row{'' if options.max_batch_rows == 1 else 's'}",
        f"{options.max_delay_ms:g} ms",
        *([options.device] if options.device != "cpu" else []),
        *filter(None, (options.engine, options.compute_type)),
    ]
    return ", ".join(words)
