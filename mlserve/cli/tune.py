"""`mlserve tune`: a model and an objective to the configuration to serve, with the proof."""

import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from mlserve.cli.bench_sweep import many_runs
from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, print_json
from mlserve.cli.tune_made import make_variants
from mlserve.cli.tune_shown import Watching, document, print_verdict
from mlserve.cli.tune_wishes import Wanted, is_model_file, make_aim, make_pace, make_protocols, plan_of

if TYPE_CHECKING:
    from mlserve.report.choice import Verdict
    from mlserve.runs.load import Plan, Protocol
    from mlserve.tuning.choosing.aim import Aim
    from mlserve.tuning.choosing.choose import Pace
    from mlserve.tuning.choosing.record import Made, Search
    from mlserve.tuning.choosing.space import Machinery, Space
    from mlserve.tuning.choosing.tune import Tuning

__all__ = ["tune"]

_WANTED, _SEARCHED, _MEASURED = "What is wanted", "What is searched", "How it is measured"


@ending_well
def tune(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION] | MODEL",
            help="A model of the store, or a model's file, of which variants are made first as optimize makes them.",
            show_default=False,
        ),
    ],
    slo: Annotated[str, typer.Option(help="The objective: p99=20ms.", rich_help_panel=_WANTED, show_default=False)],
    rps: Annotated[
        float | None,
        typer.Option(
            help="The load to bear, requests a second.", rich_help_panel=_WANTED, show_default="the most there is"
        ),
    ] = None,
    maximize: Annotated[
        Literal["throughput", "goodput"] | None,
        typer.Option(help="Without --rps.", rich_help_panel=_WANTED, show_default="throughput"),
    ] = None,
    minimize: Annotated[
        Literal["cost", "latency", "energy"] | None,
        typer.Option(help="At --rps; cost also without it.", rich_help_panel=_WANTED, show_default="latency"),
    ] = None,
    max_drop: Annotated[
        str, typer.Option(help="Most a version may lose of its accuracy.", rich_help_panel=_WANTED)
    ] = "1%",
    max_memory: Annotated[
        str, typer.Option(help="Most the server may take: 2GB.", rich_help_panel=_WANTED, show_default="no limit")
    ] = "",
    price: Annotated[
        str,
        typer.Option(
            help="What a machine like this costs, in any currency: 1.20/h.", rich_help_panel=_WANTED, show_default=False
        ),
    ] = "",
    max_cost: Annotated[
        str,
        typer.Option(
            help="Most an hour of a setting's share of the machine may cost, with --price: 0.40/h.",
            rich_help_panel=_WANTED,
            show_default="no limit",
        ),
    ] = "",
    errors: Annotated[str, typer.Option(help="Most of the requests that may fail.", rich_help_panel=_WANTED)] = "0.1%",
    protocol: Annotated[
        str, typer.Option(help="How it may be asked: rest, rest-binary, grpc, ...", rich_help_panel=_SEARCHED)
    ] = "rest,grpc",
    variants: Annotated[
        str,
        typer.Option(
            help="Only these versions of a NAME; of a file, what to make: int8, int8-static, int4, fp16, bf16.",
            rich_help_panel=_SEARCHED,
            show_default="all; of a file, what is sensible here",
        ),
    ] = "",
    budget: Annotated[
        str, typer.Option(help="How long real servers may be measured.", rich_help_panel=_MEASURED)
    ] = "20m",
    duration: Annotated[
        str,
        typer.Option(help="Of a long run, such as the one that confirms the pick.", rich_help_panel=_MEASURED),
    ] = "20s",
    batch: Annotated[int, typer.Option(min=1, help="Rows in each request.", rich_help_panel=_MEASURED)] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Rows to send, and of a file to judge its variants by; made-up ones if omitted.",
            rich_help_panel=_MEASURED,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every schedule.", rich_help_panel=_MEASURED)] = 0,
    times: Annotated[
        Path,
        typer.Option(
            help="Where the times that predictions rest on are kept, and found again.", rich_help_panel=_MEASURED
        ),
    ] = Path("runs/service-times.json"),
    directory: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for runs, report and production.toml.", show_default="a new one in runs/"),
    ] = None,
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Find the version and the server settings that meet an objective best, by measuring real servers.

    Foretells what every setting will do, measures the promising ones, and confirms the best with a fresh run.

    The same command with the same --out goes on where it stopped, and further with a larger --budget.

    Ctrl-C keeps the best.

    [bold]Examples[/]

      mlserve tune minilm --slo p99=20ms

      mlserve tune minilm --slo p99=20ms --rps 300 --minimize cost --price 1.20/h

      mlserve tune model.pt --slo p99=50ms --data rows.npz --max-drop 0.5% --budget 10m
    """
    wanted = Wanted(
        slo=slo,
        errors=errors,
        rps=rps,
        maximize=maximize,
        minimize=minimize,
        max_drop=max_drop,
        max_memory=max_memory,
        price=price,
        max_cost=max_cost,
    )
    aim, protocols = make_aim(wanted), make_protocols(protocol)
    pace, plan = make_pace(budget, duration, aim), plan_of(batch, seed)
    _check_energy(aim)
    _check_places(data, times, directory)
    source = _Source(store, data, times)
    words = tuple(word.strip() for word in variants.split(",") if word.strip())
    # Whoever ends us politely gets the same as Ctrl-C: the best so far.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = directory or _new_directory()
    made = None
    if is_model_file(what, store):
        made = make_variants(Path(what), words, data, aim.max_accuracy_loss, store, directory)
    space, machinery = _space(made.versions if made else [what], () if made else words, source, aim, protocols)
    if made:
        space = msgspec.structs.replace(space, left_out={**space.left_out, **made.refused})
    search = _search(space, made, aim, pace, plan, source)
    _run(search, space, machinery, pace, source, directory, json=json)


class _Source(msgspec.Struct, frozen=True):
    """Where models, rows and measured times come from."""

    store: Path
    data: Path | None
    times: Path


def _run(
    search: "Search",
    space: "Space",
    machinery: "Machinery",
    pace: "Pace",
    source: _Source,
    directory: Path,
    *,
    json: bool,
) -> None:
    """Searches into `directory`, tells of it, and exits with 1 when nothing meets the objective."""
    from mlserve.bench.payload.payload import PayloadWish
    from mlserve.tuning.choosing.tune import Tuning
    from mlserve.tuning.opening import Source, opener
    from mlserve.tuning.prediction.predict import open_predictor

    rows = Source(store=source.store, wish=PayloadWish(data=source.data))
    with many_runs(directory) as line:
        tuning = Tuning(search, pace, directory, opener(rows))
        watching = Watching(line, pace.budget_s)
        watching.opens(space, kept=tuning.is_foretold)
        predictor = partial(
            open_predictor,
            source=rows,
            plan=search.plan,
            file=source.times,
            on_step=watching.prepares,
            highest=False,  # where a rate is asked for, how much more a setting would bear decides nothing
            since_s=time.time(),  # what was just timed for another version serves for this one too
        )
        tuning.foretell(space, predictor, machinery.cores, watching.prepares, machine_cores=machinery.machine_cores)
        watching.foretold(tuning.contest, tuning.left_out)
        try:
            verdict = tuning.run(watching)
        except KeyboardInterrupt:
            _keep_best(tuning, directory, source)
            raise
    files = _write(tuning, verdict, directory, source)
    if json:
        print_json(document(tuning, verdict, directory, files))
    else:
        print_verdict(tuning.contest, verdict, tuning.spent_s, directory, files)
    if verdict.pick is None or not verdict.confirmed:
        raise typer.Exit(1)


def _search(space: "Space", made: "Made | None", aim: "Aim", pace: "Pace", plan: "Plan", source: _Source) -> "Search":
    from mlserve.model.digest import model_sha256
    from mlserve.model.store import Store
    from mlserve.runs.lock import digest_of
    from mlserve.tuning.choosing.record import Search

    models = tuple(dict.fromkeys(one.model for one in space.settings))
    return Search(
        models=models,
        digests=tuple(model_sha256(Store(source.store).resolve(one).manifest.files) for one in models),
        data="" if source.data is None else digest_of(source.data),
        made=made,
        protocols=tuple(dict.fromkeys(one.protocol for one in space.settings)),
        aim=aim,
        plan=plan,
        short_s=pace.short_s,
        long_s=pace.long_s,
    )


def _space(
    refs: Sequence[str], variants: Sequence[str], source: _Source, aim: "Aim", protocols: "Sequence[Protocol]"
) -> "tuple[Space, Machinery]":
    """What there is to choose from."""
    from mlserve.model.store import Store
    from mlserve.tuning.choosing.space import settings_of, this_machine, versions_for

    machinery = this_machine()
    versions, left_out = versions_for(Store(source.store), refs, aim, variants)
    space = settings_of(versions, protocols, aim, machinery)
    return msgspec.structs.replace(space, left_out={**left_out, **space.left_out}), machinery


def _keep_best(tuning: "Tuning", directory: Path, source: _Source) -> None:
    """After Ctrl-C: what is known by now is written and said."""
    verdict = tuning.keep()
    if verdict is None:  # nothing was measured yet, or nothing beyond what was there before
        return
    files = _write(tuning, verdict, directory, source)
    if verdict.pick is None:
        err.print("nothing met the objective yet", highlight=False)
        return
    how, caution = ("confirmed", "") if verdict.valid else ("not confirmed", ", not to be relied on")
    text = f"best so far, {how}: {verdict.pick.label}; {files['production']}{caution}"
    err.print(text, highlight=False, markup=False, soft_wrap=True)


def _write(tuning: "Tuning", verdict: "Verdict", directory: Path, source: _Source) -> dict[str, str]:
    """`production.toml` where there is a pick, and the report on every run; by kind, where they are."""
    from mlserve.report.render.files import write_report
    from mlserve.report.report import build_report
    from mlserve.runs.production import write_production
    from mlserve.tuning.choosing.chosen import evidence_of, production_of

    files = {}
    path = directory / "production.toml"
    path.unlink(missing_ok=True)  # that of an earlier end of the same search
    if verdict.pick is not None:
        proof = [tuning.read(one.folder) for one in evidence_of(tuning.attempts, verdict.pick.number)]
        write_production(path, production_of(tuning.contest, verdict, proof, source.store))
        files["production"] = str(path)
    runs = tuning.runs()
    if runs:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        report = build_report(runs, max_accuracy_loss=tuning.contest.aim.max_accuracy_loss, created_at=now)
        files |= {one.suffix[1:]: str(one) for one in write_report(report, directory / "report")}
    return files


def _check_energy(aim: "Aim") -> None:
    """Refuses what no run here could tell."""
    from mlserve.bench.watching.energy import read_energy
    from mlserve.bench.watching.gpus import Gpus, load_nvml
    from mlserve.errors import UsageError

    if aim.goal != "energy" or read_energy():
        return
    gpus = Gpus(load_nvml())
    counted = any(one.energy_j is not None for one in gpus.read())
    gpus.close()
    if not counted:
        raise UsageError(
            "--minimize energy: this machine does not tell how much it uses (no RAPL counter that can be read, no GPU "
            "that counts it); use --minimize cost, or measure where it does"
        )


def _check_places(data: Path | None, times: Path, directory: Path | None) -> None:
    """Refuses what could only fail later, after a model was loaded."""
    from mlserve.errors import UsageError
    from mlserve.report.choice import SEARCH_FILE
    from mlserve.tuning.campaign import check_place

    if data is not None and not data.exists():
        raise UsageError(f"--data {data}: there is no such file; check the path")
    if times.is_dir():
        raise UsageError(f"--times {times} is a folder; name the file in it, such as {times / 'service-times.json'}")
    if directory is not None and directory.exists() and not directory.is_dir():
        raise UsageError(f"--out {directory} is a file; choose a folder")
    if directory is not None:
        check_place(directory, SEARCH_FILE)


def _new_directory() -> Path:
    return Path("runs") / f"tune-{datetime.now(UTC):%Y%m%dT%H%M%S}"
