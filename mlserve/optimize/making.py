"""One variant made: the model trained anew where the variant asks for it, then its graph passes in order."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlserve.engines.independence import rows_independent
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, Step
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import Rows
from mlserve.optimize.evaluation.split import Split
from mlserve.optimize.importers.request import Imported
from mlserve.optimize.importing import UNTRAINED, Source, Training, import_model
from mlserve.optimize.passes import Pass
from mlserve.optimize.passes.step import Resources, copy_companions, copy_model
from mlserve.optimize.precision import weight_precision
from mlserve.optimize.recipe import Variant, tag_of
from mlserve.optimize.stated import read_stated, settled
from mlserve.optimize.training import Distill, TrainingPass
from mlserve.optimize.unfinished import Unfinished, content_key
from mlserve.optimize.users_code import code_file

__all__ = ["Maker", "OnStep"]

OnStep = Callable[[str], None]


class Maker:
    """Makes variants of one source in folders of `staging`, and takes over what `unfinished` has of them already."""

    def __init__(
        self, source: Source, staging: Path, unfinished: Unfinished, on_step: OnStep, *, split: Split, threads: int
    ) -> None:
        self._source, self._staging, self._unfinished, self._on_step = source, staging, unfinished, on_step
        self._split, self.threads = split, threads
        self._folders = 0

    def imported(self) -> Artifact:
        """The model as it was given, converted."""
        kept = self._unfinished.kept("imported")
        return kept or self._unfinished.keep("imported", self._import(UNTRAINED))

    def variant(self, variant: Variant, origin: Artifact, tuning: Rows | None) -> Artifact:
        """`origin` after every pass of the variant; passes that calibrate do it on `tuning`.

        Raises Refused when a pass cannot be done to the model.
        """
        rows = None if tuning is None else str(self._split)
        key = f"{variant.name}-{content_key(variant, rows, *_student_code(variant))}"
        kept = self._unfinished.kept(key)
        if kept is not None:
            self._on_step(f"{variant.name}: finished by an earlier attempt")
            return kept
        artifact = self.before_graph_passes(variant, origin)
        for one_pass in variant.graph_passes:
            artifact = self.passed(artifact, one_pass, variant, tuning)
        return self._unfinished.keep(key, self.named(artifact, variant, origin))

    def before_graph_passes(self, variant: Variant, origin: Artifact) -> Artifact:
        """`origin`, or the model trained as the variant says, and as the program that its engine runs."""
        program = variant.engine.startswith("torch")
        if not variant.training and not program:
            return origin
        key = f"trained-{content_key(*variant.training, *_student_code(variant))}{'-program' * program}"
        kept = self._unfinished.kept(key)
        if kept is not None:
            return kept
        training = Training(variant.training, self._split, self._unfinished.checkpoints, program)
        return self._unfinished.keep(key, self._import(training, f"{variant.name}: "))

    def passed(self, artifact: Artifact, one_pass: Pass, variant: Variant, tuning: Rows | None) -> Artifact:
        """`artifact` after one graph pass."""
        step = f"{variant.name}: {tag_of(one_pass)}"
        self._on_step(step)
        resources = Resources(tuning, self.threads, self._split.seed, lambda detail: self._on_step(f"{step}: {detail}"))
        made = one_pass(artifact, self._new_folder(), resources)
        if made.manifest.format == "onnx":
            inspect_onnx(made.model_path)
        return made

    def named(self, artifact: Artifact, variant: Variant, origin: Artifact) -> Artifact:
        """`artifact` under the variant's name and engine, in a folder of its own."""
        if artifact.directory.parent != self._staging:
            folder = self._new_folder()
            copy_model(artifact, folder)
            copy_companions(artifact, folder)
            artifact = Artifact(folder, artifact.manifest)
        manifest = msgspec.structs.replace(
            artifact.manifest,
            variant=variant.name,
            engine=variant.engine or artifact.manifest.engine,
            compute_type=variant.compute_type or artifact.manifest.compute_type,
            split_batches=variant.split_batches,
        )
        return Artifact(artifact.directory, manifest)

    def _import(self, training: Training, prefix: str = "") -> Artifact:
        import onnx

        out = self._new_folder()
        kind, imported = import_model(self._source, out, lambda step: self._on_step(f"{prefix}{step}"), training)
        steps = (
            Step("import", {"source": self._source.path.name, "kind": kind}, imported.notes),
            *(_training_step(one, notes) for one, notes in zip(training.passes, imported.trained, strict=True)),
        )
        stated = self._source.stated or read_stated(self._source.path)
        processing, labels = settled(imported, stated, self._source.path, out, self._source.data)
        manifest = Manifest(
            variant=weight_precision(onnx.load(out / MODEL_FILE, load_external_data=False)),
            task=imported.task,
            labels=labels,
            processing=processing,
            inputs=imported.inputs,
            outputs=imported.outputs,
            rows_independent=_rows_independent(out, imported),
            lineage=steps,
            assumed=imported.assumed,
        )
        if training.program:
            for path in out.glob(f"{MODEL_FILE}*"):
                path.unlink()
            manifest = msgspec.structs.replace(manifest, format="torch")
        return Artifact(out, manifest)

    def _new_folder(self) -> Path:
        self._folders += 1
        folder = self._staging / str(self._folders)
        folder.mkdir()
        return folder


def _rows_independent(folder: Path, imported: Imported) -> bool:
    """Told at once, as it decides how variants may be run; each is looked at again when it is measured."""
    with contextlib.closing(OnnxEngine(folder / MODEL_FILE)) as engine:
        return rows_independent(engine, imported.inputs)


def _student_code(variant: Variant) -> list[Path | None]:
    """The files that its students come from: a network written anew is other work."""
    return [code_file(one.student) for one in variant.training if isinstance(one, Distill)]


def _training_step(one_pass: TrainingPass, notes: tuple[str, ...]) -> Step:
    parameters = msgspec.to_builtins(one_pass)
    return Step(str(parameters.pop("pass")), parameters, notes)
