"""`mlserve optimize`: a trained model to measured variants in the store."""

import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, out, print_json, steps
from mlserve.errors import UsageError
from mlserve.units import format_bytes, format_duration, format_ratio

if TYPE_CHECKING:
    from mlserve.model.artifact import Artifact, Latency
    from mlserve.optimize.recipe import Recipe

__all__ = ["optimize"]

_MOST_THREADS = 1024


@ending_well
def optimize(
    source: Annotated[Path, typer.Argument(help="A .pt or .onnx file, or a Hugging Face folder.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name in the store; by default that of the file.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Also make an int8 variant (dynamic, per channel).")] = False,
    recipe: Annotated[Path | None, typer.Option(help="TOML file that says which variants to make.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Rows to compare on: npz, npy, csv, parquet, jsonl or txt; with labels if any.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="name:dtype:dims, e.g. tokens:int64:batch,20 (words are dynamic). Repeatable."),
    ] = None,
    example: Annotated[str, typer.Option(help="package.module:function that returns example inputs.")] = "",
    model_class: Annotated[str, typer.Option(help="package.module:factory that a state dict belongs to.")] = "",
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Load a pickled module, which runs the code it names.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_THREADS, help="Threads to time with; by default the cores.")
    ] = None,
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Convert a model to ONNX, make variants of it, and measure what each keeps of its accuracy and saves in time.

    [bold]Examples[/]

      mlserve optimize model.pt --int8

      mlserve optimize weights.pt --model-class my.model:make --input "tokens:int64:batch,20"

      mlserve optimize ./minilm --int8 --data sentences.txt
    """
    from mlserve.model.store import Store, check_name
    from mlserve.model.tensors import parse_input_flag
    from mlserve.optimize.importing import Source
    from mlserve.optimize.variants import optimize as make_variants
    from mlserve.runs.machine import usable_cores

    chosen_name = check_name(name if name is not None else _name_of(source))
    chosen = _recipe(recipe, int8=int8)
    asked = Source(
        path=source,
        inputs=tuple(parse_input_flag(text) for text in inputs or []),
        example=example,
        data=data,
        model_class=model_class,
        trust_pickle=trust_pickle,
    )
    # Whoever ends us politely gets the same cleaning up as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with steps("optimize") as on_step:
        made = make_variants(asked, chosen, Store(store), chosen_name, threads or usable_cores(), on_step)
    if json:
        print_json([{"ref": artifact.ref, **_facts(artifact)} for artifact in made])
    else:
        _print(made)


def _recipe(path: Path | None, *, int8: bool) -> "Recipe":
    from mlserve.optimize.recipe import BASELINE, INT8, read_recipe

    if path and int8:
        raise UsageError("--int8 and --recipe both say which variants to make; give one of them")
    return read_recipe(path) if path else INT8 if int8 else BASELINE


def _name_of(source: Path) -> str:
    stem = source.resolve().name if source.is_dir() else source.name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip(".-") or "model"


def _facts(artifact: "Artifact") -> dict[str, object]:
    manifest = artifact.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "variant": manifest.variant,
        "directory": str(artifact.directory),
        "size_bytes": artifact.size_bytes,
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
        "rows_independent": manifest.rows_independent,
        "assumed": manifest.assumed,
        "lineage": manifest.lineage,
        "metrics": manifest.metrics,
    }


def _print(made: list["Artifact"]) -> None:
    baseline = made[0]
    reference = baseline.manifest.variant
    table = Table(title=f"{baseline.manifest.name}: in process, against {reference}", title_justify="left")
    for heading in ("version", "variant", "size"):
        table.add_column(heading, no_wrap=True)
    accuracy = baseline.manifest.metrics.accuracy
    table.add_column(accuracy.metric if accuracy else "accuracy", justify="right")
    table.add_column("loss", justify="right")
    for latency in baseline.manifest.metrics.latency:
        table.add_column(f"{latency.batch_rows} row{'s' * (latency.batch_rows > 1)}", justify="right")
    for artifact in made:
        table.add_row(*_row(artifact, baseline))
    out.print(table)
    if accuracy:
        out.print(
            f"compared on {accuracy.rows} rows of {accuracy.data}; timed on {baseline.manifest.metrics.machine}",
            style="dim",
            markup=False,
        )
    _print_remarks(made)


def _row(artifact: "Artifact", baseline: "Artifact") -> list[str]:
    manifest = artifact.manifest
    accuracy = manifest.metrics.accuracy
    size = format_bytes(artifact.size_bytes)
    if artifact is not baseline:
        size += f"\n{format_ratio(artifact.size_bytes / baseline.size_bytes)}"
    return [
        artifact.ref,
        manifest.variant,
        size,
        f"{accuracy.value:.4f}" if accuracy else "-",
        f"{accuracy.loss:.4f}" if accuracy else "-",
        *(_time(latency, reference=artifact is baseline) for latency in manifest.metrics.latency),
    ]


def _time(latency: "Latency", *, reference: bool) -> str:
    text = format_duration(latency.p50_s)
    return text if reference else f"{text}\n{format_ratio(1 / latency.against_fp32)} speed"


def _print_remarks(made: list["Artifact"]) -> None:
    for assumed in made[0].manifest.assumed:
        err.print(f"[yellow]assumed:[/] {escape(assumed)}", highlight=False)
    if not made[0].manifest.rows_independent:
        err.print(
            "[yellow]note:[/] requests for this model are not batched: its rows cannot run together", highlight=False
        )
    for artifact in made:
        for step in artifact.manifest.lineage[-2:] if artifact is not made[0] else artifact.manifest.lineage:
            notes = f"  {artifact.manifest.variant}: {step.step}: {'; '.join(step.notes)}"
            out.print(notes, style="dim", highlight=False, markup=False)
        slower = [latency for latency in artifact.manifest.metrics.latency if latency.against_fp32 > 1.0]
        if artifact is not made[0] and len(slower) == len(artifact.manifest.metrics.latency):
            reference = made[0].manifest.variant
            err.print(
                f"[yellow]note:[/] {artifact.manifest.variant} is not faster than {reference} here", highlight=False
            )
    out.print(f"serve it with: [bold]mlserve serve {made[-1].ref}[/]", highlight=False)
