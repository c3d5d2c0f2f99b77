"""`mlserve what-if`: what settings of a server would do, foretold from the times of their parts; nothing is served."""

from collections.abc import Callable, Sequence
from itertools import product
from math import inf, isinf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
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

__all__ = ["disturbed_words", "what_if"]

_MOST_SETTINGS = 2000
_SHOWN = 40
_LONGEST_NAME = 20
_THE_SAME = ": the same here"

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
    budget: Budget = "8s",
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Foretell what settings of a server would do under a load, best first, without serving any of them.

    Times runs in process, and what a protocol costs on a server whose model does nothing; both are kept.

    A simulated server then answers the very schedule that mlserve bench would send.

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
        predicts = open_predictor(settings, source, plan, times, on_step, Spent(engine_s=spent_s, protocol_s=spent_s))
        on_step(f"simulating {len(settings)} settings")
        found = sorted(predicts(settings, objective, rps), key=lambda each: _rank(each, objective))
    if disturbed := max((each.disturbed for each in found), default=0.0):
        err.print(disturbed_words(disturbed), style="yellow", highlight=False, soft_wrap=True)
    if json:
        print_json({"format_version": 1, "objective": objective, "predictions": [_written(each) for each in found]})
    else:
        _print(found, objective, rps)
    if not any(_meets(each, objective) for each in found):
        raise typer.Exit(1)


def disturbed_words(share: float) -> str:
    """Of predictions that rest on times which were taken beside other work."""
    return (
        f"disturbed: the machine was busy, and others had the cores for {share:.0%} of the time in which parts were "
        "timed, so that what is foretold is too slow; these are timed again when asked once more, so ask when the "
        "machine is quiet"
    )


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
    """Those that meet the objective come first, then the highest rate; equals stay in the order in which they came."""
    return not _meets(found, objective), -found.max_rate_per_s, found.objective_s


def _written(found: "Prediction") -> dict[str, Any]:
    """For JSON, which has no infinity: null is a queue that grows without end."""
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(found)
    return {name: None if isinstance(value, float) and isinf(value) else value for name, value in document.items()}


def _print(found: "Sequence[Prediction]", objective: "Objective", rps: float | None) -> None:
    at = f"at {format_rate(rps)}" if rps is not None else "each at its highest rate"
    out.print(f"[bold]foretold, not measured[/]: {objective.words}, {at}", highlight=False, soft_wrap=True)
    groups = _alike(found)
    common, labels = _labels([[each.setting for each in group] for group in groups[:_SHOWN]])
    if common:
        out.print(f"all of them: {common}", style="dim", highlight=False, markup=False, soft_wrap=True)
    out.print(_table(groups[:_SHOWN], labels, objective))
    if len(groups) > _SHOWN:
        out.print(f"and {len(groups) - _SHOWN} more; --json has them all", style="dim")
    if _meets(found[0], objective):
        out.print("measure it with: mlserve bench, or let mlserve tune decide", style="dim", highlight=False)
    else:
        out.print(_missed_words(found, objective), style="red", highlight=False, soft_wrap=True)


def _missed_words(found: "Sequence[Prediction]", objective: "Objective") -> str:
    words = "no setting is foretold to meet the objective"
    alone_s = min((each.objective_s for each in found if not each.rate_per_s), default=inf)
    if isinf(alone_s):
        return words
    return f"{words}: even where requests hardly meet, {objective.name} is {format_duration(alone_s)} at best"


def _alike(found: "Sequence[Prediction]") -> "list[list[Prediction]]":
    """In their order, those together of which the very same is foretold, and whose batch or delay alone differs."""
    groups = [[each] for each in found]
    for knob in ("max_batch_rows", "max_delay_ms"):
        joined: dict[Any, list[Prediction]] = {}
        for group in groups:
            joined.setdefault(frozenset(_without(each, knob) for each in group), []).extend(group)
        groups = list(joined.values())
    return groups


def _without(each: "Prediction", knob: str) -> "Prediction":
    import msgspec

    options = msgspec.structs.replace(each.setting.options, **{knob: 0})
    return msgspec.structs.replace(each, setting=msgspec.structs.replace(each.setting, options=options))


def _labels(groups: "Sequence[Sequence[Setting]]") -> tuple[str, list[str]]:
    """What all have in common, and of each what it has for itself: `rest, batch 1, 8, 32: the same here`."""
    names = _shortened(list(dict.fromkeys(group[0].variant for group in groups)))
    columns = list(zip(*([names[group[0].variant], *_knobs(group)] for group in groups), strict=True))
    if len(groups) == 1:
        return "", [", ".join(filter(None, (column[0] for column in columns)))]
    common = [column[0] for column in columns if len(set(column)) == 1 and column[0]]
    telling = [column for column in columns if len(set(column)) > 1]
    return ", ".join(common), [", ".join(filter(None, words)) for words in zip(*telling, strict=True)]


def _knobs(group: "Sequence[Setting]") -> list[str]:
    """A word each, empty where it is left as it is; several values where they make no difference."""
    options = group[0].options
    rows = sorted({each.options.max_batch_rows for each in group})
    delays = sorted({each.options.max_delay_ms for each in group})
    return [
        options.engine,
        options.compute_type,
        options.device,
        group[0].protocol,
        f"{options.workers} worker{'' if options.workers == 1 else 's'}",
        f"{options.threads or 'all'} thread{'' if options.threads == 1 else 's'}",
        f"batch {', '.join(map(str, rows))}{_THE_SAME if len(rows) > 1 else ''}",
        f"delay {', '.join(f'{each:g}' for each in delays)} ms{_THE_SAME if len(delays) > 1 else ''}",
    ]


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """Paths without the folders that they share, and the rest without its beginning where it is long."""
    folders = {name.rpartition("/")[0] for name in names}
    shared = f"{folders.pop()}/" if len(folders) == 1 else ""
    short = {name: name.removeprefix(shared) for name in names}
    cut = {
        name: text if len(text) <= _LONGEST_NAME else f"...{text[3 - _LONGEST_NAME :]}" for name, text in short.items()
    }
    return cut if len(set(cut.values())) == len(names) else short


def _table(groups: "Sequence[Sequence[Prediction]]", labels: Sequence[str], objective: "Objective") -> Table:
    """No number is cut: the labels have what is left of the line, and go on in another."""
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", overflow="fold")
    further = [] if objective.name in ("p50", "p99") else [objective.name]
    headings = ["highest rate", "p50", "p99", *further, "rows/run", "busy"]
    rows = [_cells(group[0], objective) for group in groups]
    for heading, column in zip(headings, zip(*rows, strict=True), strict=True):
        widest = max(map(len, (heading, *column)))
        table.add_column(heading, justify="right", no_wrap=True, min_width=widest)
    for group, label, cells in zip(groups, labels, rows, strict=True):
        table.add_row(escape(label), *cells, style="" if _meets(group[0], objective) else "dim")
    return table


def _cells(each: "Prediction", objective: "Objective") -> list[str]:
    highest = format_rate(each.max_rate_per_s) if each.max_rate_per_s else "none"
    if not each.rate_per_s:
        return [highest, *["-"] * (4 if objective.name in ("p50", "p99") else 5)]
    further = [] if objective.name in ("p50", "p99") else [each.objective_s]
    times = [_time(seconds) for seconds in (each.p50_s, each.p99_s, *further)]
    return [highest, *times, f"{each.mean_batch_rows:.1f}", f"{each.utilization:.0%}"]


def _time(seconds: float) -> str:
    return "grows" if isinf(seconds) else format_duration(seconds)
