"""`mlserve tune`: a model and an objective to the configuration to serve, with the proof."""

import contextlib
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from mlserve.cli.bench_sweep import many_runs
from mlserve.cli.optimize import model_name
from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, print_json, steps
from mlserve.cli.tune_shown import Watching, document, print_verdict
from mlserve.cli.tune_wishes import Wanted, is_model_file, make_aim, make_pace, make_protocols, plan_of

if TYPE_CHECKING:
    from mlserve.runs.load import Protocol
    from mlserve.tuning.choosing.aim import Aim
    from mlserve.tuning.choosing.choose import Pace
    from mlserve.tuning.choosing.space import Machinery, Space
    from mlserve.tuning.choosing.tune import Tuning
    from mlserve.tuning.choosing.verdict import Verdict

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
    directory: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for runs, report and production.toml.", show_default="a new one in runs/"),
    ] = None,
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Find the version and the server settings that meet an objective best, by measuring real servers.

    Foretells what every setting will do, measures the promising ones, and confirms the best with a fresh run. The same
    command with the same --out goes on where it stopped; a larger --budget goes on further. Ctrl-C keeps the best.

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
    )
    aim, pace, protocols = make_aim(wanted), make_pace(budget, duration), make_protocols(protocol)
    _check_energy(aim)
    source = _Source(store, data, batch, seed)
    words = tuple(word.strip() for word in variants.split(",") if word.strip())
    # Whoever ends us politely gets the same as Ctrl-C: the best so far.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    ref, refused = _made(what, words, source, aim) if is_model_file(what, store) else (what, {})
    space, machinery = _space(ref, () if ref != what else words, source, aim, protocols)
    space = msgspec.structs.replace(space, left_out={**space.left_out, **refused})
    _run(space, machinery, aim, pace, source, directory or _new_directory(), json=json)


class _Source(msgspec.Struct, frozen=True):
    """Where models and rows come from, and what requests hold."""

    store: Path
    data: Path | None
    batch_rows: int
    seed: int


def _run(
    space: "Space", machinery: "Machinery", aim: "Aim", pace: "Pace", source: _Source, directory: Path, *, json: bool
) -> None:
    """Searches into `directory`, tells of it, and exits with 1 when nothing meets the objective."""
    from mlserve.bench.payload.payload import PayloadWish
    from mlserve.tuning.choosing.record import Search
    from mlserve.tuning.choosing.tune import Tuning
    from mlserve.tuning.opening import Source, opener
    from mlserve.tuning.prediction.predict import TIMES_FILE, open_predictor

    rows = Source(store=source.store, wish=PayloadWish(data=source.data))
    search = Search(
        models=tuple(dict.fromkeys(one.model for one in space.settings)),
        protocols=tuple(dict.fromkeys(one.protocol for one in space.settings)),
        aim=aim,
        plan=plan_of(source.batch_rows, source.seed),
        short_s=pace.short_s,
        long_s=pace.long_s,
    )
    with many_runs(directory) as line:
        tuning = Tuning(search, pace, directory, opener(rows))
        watching = Watching(line, pace.budget_s)
        watching.opens(space)
        predictor = partial(
            open_predictor, source=rows, plan=search.plan, file=directory / TIMES_FILE, on_step=line.show
        )
        tuning.foretell(space, predictor, machinery.cores, line.show)
        watching.foretold(tuning.contest, tuning.left_out)
        try:
            verdict = tuning.run(watching)
        except KeyboardInterrupt:
            _keep_best(tuning, directory, source)
            raise
    files = _write(tuning, verdict, directory, source)
    if json:
        print_json(document(tuning.contest, verdict, tuning.spent_s, directory, files))
    else:
        print_verdict(tuning.contest, verdict, tuning.spent_s, directory, files)
    if verdict.pick is None or not verdict.confirmed:
        raise typer.Exit(1)


def _space(
    ref: str, variants: Sequence[str], source: _Source, aim: "Aim", protocols: "Sequence[Protocol]"
) -> "tuple[Space, Machinery]":
    """What there is to choose from."""
    from mlserve.model.store import Store
    from mlserve.tuning.choosing.space import settings_of, this_machine, versions_for

    machinery = this_machine()
    versions, left_out = versions_for(Store(source.store), ref, aim, variants)
    space = settings_of(versions, protocols, aim, machinery)
    return msgspec.structs.replace(space, left_out={**left_out, **space.left_out}), machinery


def _made(what: str, variants: Sequence[str], source: _Source, aim: "Aim") -> tuple[str, dict[str, str]]:
    """Makes variants of a file as optimize does, and says their name in the store, and why others were not kept."""
    from typing import get_args

    from mlserve.engines.engine import EngineSettings
    from mlserve.errors import UsageError
    from mlserve.model.store import Store, check_name
    from mlserve.optimize.flags import Precision, recipe_of
    from mlserve.optimize.importing import Source
    from mlserve.optimize.variants import Wish, optimize
    from mlserve.runs.machine import usable_cores

    unknown = [word for word in variants if word not in (*get_args(Precision), "fp32")]
    if unknown:
        raise UsageError(f"--variants {','.join(unknown)}: of a file, tune makes {', '.join(get_args(Precision))}")
    precisions: list[Precision] = [one for one in get_args(Precision) if one in variants]
    wish = Wish(
        recipe=recipe_of(precisions) if variants else None,
        max_drop=aim.max_accuracy_loss,
        settings=EngineSettings(threads=usable_cores()),
    )
    path = Path(what)
    name = check_name(model_name(path))
    # stdout is for our result: what is imported may print.
    with steps("making variants") as on_step, contextlib.redirect_stdout(sys.stderr):
        outcome = optimize(Source(path=path, data=source.data), wish, Store(source.store), name, on_step)
    made = ", ".join(f"{artifact.ref} ({artifact.manifest.variant})" for artifact in outcome.published)
    err.print(f"made {made} in {source.store}", highlight=False, markup=False, soft_wrap=True)
    return name, dict(outcome.refused)


def _keep_best(tuning: "Tuning", directory: Path, source: _Source) -> None:
    """After Ctrl-C: what is known by now is written and said."""
    if not tuning.attempts:
        return
    verdict = tuning.keep()
    files = _write(tuning, verdict, directory, source)
    if verdict.pick is None:
        err.print("nothing met the objective yet", highlight=False)
        return
    text = f"best so far, not confirmed: {verdict.pick.label}; {files['production']}"
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
    from mlserve.bench.watching.gpus import load_nvml
    from mlserve.errors import UsageError

    if aim.goal == "energy" and not read_energy() and load_nvml() is None:
        raise UsageError(
            "--minimize energy: this machine does not tell how much it uses (no RAPL counter that can be read, no GPU "
            "with NVML); use --minimize cost, or measure where it does"
        )


def _new_directory() -> Path:
    return Path("runs") / f"tune-{datetime.now(UTC):%Y%m%dT%H%M%S}"
