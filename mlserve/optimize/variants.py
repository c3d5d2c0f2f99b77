"""The optimize loop: import, make the recipe's variants, measure them against the model as imported, publish."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from mlserve.engines.engine import Engine, EngineSettings
from mlserve.engines.independence import rows_independent
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, Refused
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, Metrics, Step
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import TOKENIZER_FILE, Rows, SyntheticRows, read_rows
from mlserve.model.store import Store
from mlserve.optimize.disk import naming_a_full_disk
from mlserve.optimize.evaluation.accuracy import Answers, answer_rows, judge
from mlserve.optimize.evaluation.latency import measure_latency
from mlserve.optimize.importing import Source, import_model
from mlserve.optimize.precision import weight_precision
from mlserve.optimize.recipe import Recipe, Variant
from mlserve.runs.machine import read_machine

__all__ = ["optimize"]

_MADE_UP_ROWS = 64
OnStep = Callable[[str], None]


def optimize(source: Source, recipe: Recipe, store: Store, name: str, threads: int, on_step: OnStep) -> list[Artifact]:
    """Publishes the model as imported and every variant of `recipe` as versions of `name`, in that order; returns them.

    The first is named for the precision of its weights, which is fp32 unless an ONNX file says otherwise. Nothing is
    published before everything was made and measured, so a failure or Ctrl-C leaves the store as it was. Raises
    ModelFileError, UnknownInputError, DataFileError, UsageError or StoreError for what the user can mend. A variant
    that its passes cannot make does not keep the others from being published; Refused then says what was, and what was
    not. One that was made and does not load or gives no finite answers is a fault, and nothing is published.
    """
    with store.staging() as staging, naming_a_full_disk(store.root):
        made = [_import(source, _new_folder(staging, "imported"), on_step)]
        _check_names(recipe, made[0])
        rows = _rows(source.data, made[0])
        refusals: list[str] = []
        for variant in recipe.variants:
            try:
                made.append(_make(variant, made[0], staging, on_step))
            except Refused as refusal:
                refusals.append(str(refusal))
        measured = _measure(made, rows, threads, on_step)
        on_step("publishing")
        published = _publish(measured, store, name)
    if refusals:
        raise Refused(f"{'; '.join(refusals)}. Published: {', '.join(artifact.ref for artifact in published)}")
    return published


def _import(source: Source, out: Path, on_step: OnStep) -> Artifact:
    import onnx

    kind, imported = import_model(source, out, on_step)
    step = Step("import", {"source": source.path.name, "kind": kind}, imported.notes)
    manifest = Manifest(
        variant=weight_precision(onnx.load(out / MODEL_FILE, load_external_data=False)),
        task=imported.task,
        inputs=imported.inputs,
        outputs=imported.outputs,
        lineage=(step,),
        assumed=imported.assumed,
    )
    return Artifact(out, manifest)


def _check_names(recipe: Recipe, imported: Artifact) -> None:
    variant = imported.manifest.variant
    if variant in [wanted.name for wanted in recipe.variants]:
        raise Refused(f"nothing was published: most weights of the model are {variant} already; publish it as it is")


def _rows(data: Path | None, artifact: Artifact) -> Rows:
    """The user's rows, or made-up ones."""
    specs = artifact.manifest.inputs
    if data is None:
        first = specs[0].shape
        fixed = first[0] if first and isinstance(first[0], int) else None
        return SyntheticRows(specs, fixed or _MADE_UP_ROWS)
    return read_rows(data, specs, artifact.directory / TOKENIZER_FILE)


def _make(variant: Variant, origin: Artifact, staging: Path, on_step: OnStep) -> Artifact:
    """`origin` after every pass of the variant, each in a folder of its own."""
    artifact = origin
    for number, one_pass in enumerate(variant.passes, 1):
        on_step(f"{variant.name}: {type(one_pass).__name__.lower()}")
        artifact = one_pass(artifact, _new_folder(staging, f"{variant.name}-{number}"))
        inspect_onnx(artifact.model_path)
    return Artifact(artifact.directory, msgspec.structs.replace(artifact.manifest, variant=variant.name))


def _measure(made: list[Artifact], rows: Rows, threads: int, on_step: OnStep) -> list[Artifact]:
    """The artifacts with their accuracy, in-process latency and whether rows may run together."""
    with _engines(made, threads) as engines:
        answers: list[Answers] = []
        for artifact, engine in zip(made, engines, strict=True):
            on_step(f"{artifact.manifest.variant}: accuracy on {len(rows)} rows")
            answers.append(answer_rows(engine, rows))
        accuracies = [
            judge(found, answers[0], rows, task=made[0].manifest.task, reference=made[0].manifest.variant)
            for found in answers
        ]
        on_step("timing every variant in turn")
        latencies = measure_latency(engines, rows)
        independent = [
            rows_independent(engine, artifact.manifest.inputs) for artifact, engine in zip(made, engines, strict=True)
        ]
    cpu = read_machine().cpu
    return [
        Artifact(
            artifact.directory,
            msgspec.structs.replace(
                artifact.manifest,
                rows_independent=together,
                metrics=Metrics(accuracy=accuracy, latency=latency, machine=f"{cpu}, {threads} threads"),
            ),
        )
        for artifact, accuracy, latency, together in zip(made, accuracies, latencies, independent, strict=True)
    ]


@contextlib.contextmanager
def _engines(artifacts: list[Artifact], threads: int) -> Iterator[list[Engine]]:
    with contextlib.ExitStack() as stack:
        engines: list[Engine] = []
        for artifact in artifacts:
            engine = _engine(artifact, threads)
            stack.enter_context(contextlib.closing(engine))
            _same_interface(artifact, engine)
            engines.append(engine)
        yield engines


def _engine(artifact: Artifact, threads: int) -> Engine:
    try:
        return OnnxEngine(artifact.model_path, EngineSettings(threads=threads))
    except EngineError as error:
        reason = str(error).removeprefix(f"{artifact.model_path} ")
        raise Refused(f"nothing was published: {artifact.manifest.variant} {reason}") from error


def _same_interface(artifact: Artifact, engine: Engine) -> None:
    """The law every pass is held to: names and types of inputs and outputs stay."""
    for kind, specs, found in (
        ("input", artifact.manifest.inputs, engine.inputs),
        ("output", artifact.manifest.outputs, engine.outputs),
    ):
        said, has = [(spec.name, spec.dtype) for spec in specs], [(spec.name, spec.dtype) for spec in found]
        if said != has:
            raise Refused(f"nothing was published: {artifact.manifest.variant} has the {kind}s {has}, expected {said}")


def _publish(artifacts: list[Artifact], store: Store, name: str) -> list[Artifact]:
    baseline = store.add(artifacts[0], name)
    return [baseline, *(store.add(artifact, name, parent=baseline.ref) for artifact in artifacts[1:])]


def _new_folder(staging: Path, name: str) -> Path:
    folder = staging / name
    folder.mkdir()
    return folder
