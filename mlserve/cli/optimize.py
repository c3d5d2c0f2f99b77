"""`mlserve optimize`: a trained model to measured variants in the store."""

import contextlib
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlserve.cli.terminal import JsonFlag, StoreOption, ending_well, err, print_json, steps
from mlserve.cli.variants_table import facts, print_outcome
from mlserve.errors import Refused, UsageError

if TYPE_CHECKING:
    from mlserve.optimize.evaluation.split import Split
    from mlserve.optimize.flags import Precision
    from mlserve.optimize.recipe import Recipe
    from mlserve.optimize.training import TrainingPass
    from mlserve.optimize.variants import Wish

__all__ = ["model_name", "optimize"]

_MOST_THREADS = 1024
_AUTO_MAX_DROP = "1%"

_MAKE, _WITH, _KEEP = "What to make", "What is known of the model", "What to keep"


@ending_well
def optimize(
    source: Annotated[
        Path,
        typer.Argument(
            help="A model of PyTorch, ONNX, Hugging Face, scikit-learn, XGBoost, LightGBM, Keras or TensorFlow.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name in the store; by default that of the file.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Rows: npz, npy, csv, parquet, jsonl, txt or a folder of images; with labels if any."),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Try what is sensible on this machine, publish the best.", rich_help_panel=_MAKE),
    ] = False,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML file that says which variants to make.", rich_help_panel=_MAKE)
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="int8, activations scaled as they come.", rich_help_panel=_MAKE)
    ] = False,
    int8_static: Annotated[
        bool, typer.Option("--int8-static", help="int8, calibrated on --data.", rich_help_panel=_MAKE)
    ] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Weights in 4 bits.", rich_help_panel=_MAKE)] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision.", rich_help_panel=_MAKE)] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="bfloat16, with --engine openvino.", rich_help_panel=_MAKE)
    ] = False,
    prune: Annotated[
        list[str] | None,
        typer.Option(
            help="Before quantizing: channels=0.5, heads=0.25, layers=0.33, unstructured=0.8, 2:4. Repeatable.",
            rich_help_panel=_MAKE,
        ),
    ] = None,
    distill: Annotated[
        str,
        typer.Option(
            help="Before quantizing: layers=3, width=0.5 or student=package.module:factory; then e.g. ,epochs=20.",
            rich_help_panel=_MAKE,
        ),
    ] = "",
    engine: Annotated[
        str, typer.Option(help="onnxruntime, openvino, torch or torch-compiled.", rich_help_panel=_MAKE)
    ] = "",
    metric: Annotated[
        str,
        typer.Option(
            help="accuracy, top5, f1, auc, mae, rmse, r2, cosine, spearman or package.module:function.",
            rich_help_panel=_KEEP,
        ),
    ] = "",
    max_drop: Annotated[
        str, typer.Option(help="Keep a variant only if it surely loses no more, e.g. 1%.", rich_help_panel=_KEEP)
    ] = "",
    held_out: Annotated[
        float, typer.Option(help="Share of --data kept for judging alone.", min=0.01, max=0.99, rich_help_panel=_KEEP)
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the split of --data.", min=0, rich_help_panel=_KEEP)] = 0,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="name:dtype:dims, e.g. tokens:int64:batch,20 (words are dynamic). Repeatable.",
            rich_help_panel=_WITH,
        ),
    ] = None,
    example: Annotated[
        str, typer.Option(help="package.module:function that returns example inputs.", rich_help_panel=_WITH)
    ] = "",
    model_class: Annotated[
        str, typer.Option(help="package.module:factory that a state dict belongs to.", rich_help_panel=_WITH)
    ] = "",
    trust_pickle: Annotated[
        bool,
        typer.Option("--trust-pickle", help="Load a pickle, which runs the code it names.", rich_help_panel=_WITH),
    ] = False,
    device: Annotated[str, typer.Option(help="Where to measure: cpu, cuda[:N] or tensorrt[:N].")] = "cpu",
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_THREADS, help="Threads to time with; by default the cores.")
    ] = None,
    store: StoreOption = Path("store"),
    json: JsonFlag = False,
) -> None:
    """Convert a model, make variants of it, and measure what each keeps of its accuracy and saves in time.

    [bold]Examples[/]

      mlserve optimize model.pt --int8

      mlserve optimize model.pt --auto --data rows.npz --max-drop 1%

      mlserve optimize weights.pt --model-class my.model:make --prune channels=0.5 --int8-static --data rows.npz

      mlserve optimize ./minilm --int8 --data sentences.txt
    """
    from mlserve.model.store import Store, check_name
    from mlserve.model.tensors import parse_input_flag
    from mlserve.optimize.evaluation.split import Split
    from mlserve.optimize.importing import Source
    from mlserve.optimize.variants import optimize as make_variants

    chosen_name = check_name(name if name is not None else model_name(source))
    precisions: dict[Precision, bool] = {
        "int8": int8, "int8-static": int8_static, "int4": int4, "fp16": fp16, "bf16": bf16,
    }  # fmt: skip
    wanted = _recipe(
        recipe, [one for one, asked in precisions.items() if asked], prune or [], distill, engine, auto=auto
    )
    wish = _wish(wanted, metric, max_drop, Split(seed, held_out), device, threads)
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
    # stdout is for our result: a metric of the user's may print.
    with steps("optimize") as on_step, contextlib.redirect_stdout(sys.stderr):
        outcome = make_variants(asked, wish, Store(store), chosen_name, on_step)
    if json:
        print_json(facts(outcome))
    else:
        print_outcome(outcome)
        if wish.recipe is None and len(outcome.measured) == 1 and not outcome.refused:
            err.print(
                "[yellow]note:[/] nothing was tried: the model has no matrix product or convolution to make cheaper"
            )
    if outcome.refused and wish.recipe:
        published = ", ".join(artifact.ref for artifact in outcome.published)
        reasons = "; ".join(f"{variant}: {reason}" for variant, reason in outcome.refused.items())
        raise Refused(f"{reasons}. Published: {published}")


def _recipe(
    path: Path | None, precisions: list["Precision"], prune: list[str], distill: str, engine: str, *, auto: bool
) -> "Recipe | None":
    """What to make; None for whatever is sensible here."""
    from mlserve.optimize.flags import parse_distill, parse_engine, parse_prune, recipe_of
    from mlserve.optimize.recipe import read_recipe

    ways = {"--auto": auto, "--recipe": path is not None, "flags": bool(precisions or prune or distill or engine)}
    given = [way for way, used in ways.items() if used]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} both say which variants to make; give one of them")
    if auto:
        return None
    if path:
        return read_recipe(path)
    training: list[TrainingPass] = [*map(parse_prune, prune), *([parse_distill(distill)] if distill else [])]
    return recipe_of(precisions, training, parse_engine(engine))


def _wish(
    recipe: "Recipe | None", metric: str, max_drop: str, split: "Split", device: str, threads: int | None
) -> "Wish":
    from mlserve.engines.engine import EngineSettings
    from mlserve.optimize.evaluation.drop import parse_max_drop
    from mlserve.optimize.evaluation.metrics import parse_metric
    from mlserve.optimize.variants import Wish
    from mlserve.runs.machine import usable_cores

    metric = metric or (recipe.metric if recipe else "")
    max_drop = max_drop or (recipe.max_drop if recipe else _AUTO_MAX_DROP)
    return Wish(
        recipe=recipe,
        metric=parse_metric(metric) if metric else None,
        max_drop=parse_max_drop(max_drop) if max_drop else None,
        split=split,
        settings=EngineSettings(device=device, threads=threads or usable_cores()),
    )


def model_name(source: Path) -> str:
    """What the model of a file or folder is called where nobody says."""
    stem = source.resolve().name if source.is_dir() else source.name.split(".")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip(".-") or "model"
