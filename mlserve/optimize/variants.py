"""The optimize loop: import, make the variants, keep those that hold their accuracy, measure, publish."""

from pathlib import Path

import msgspec

from mlserve.engines.engine import EngineSettings
from mlserve.errors import DataFileError, EngineError, InvalidRequest, Refused, UsageError
from mlserve.model.artifact import Accuracy, Artifact
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import TOKENIZER_FILE, Rows, SyntheticRows, read_rows
from mlserve.model.store import Store
from mlserve.optimize.auto import best_of, sensible_variants
from mlserve.optimize.disk import naming_a_full_disk
from mlserve.optimize.evaluation.drop import holds
from mlserve.optimize.evaluation.metrics import Metric
from mlserve.optimize.evaluation.pareto import Point, dominated
from mlserve.optimize.evaluation.search import Trial
from mlserve.optimize.evaluation.split import Split, split_rows
from mlserve.optimize.importing import Source
from mlserve.optimize.judging import Judge
from mlserve.optimize.making import Maker, OnStep
from mlserve.optimize.recipe import Recipe, Variant
from mlserve.optimize.restoring import Restorer, can_restore
from mlserve.optimize.stated import files_stated
from mlserve.optimize.unfinished import content_key, unfinished_work
from mlserve.optimize.users_code import code_file
from mlserve.runs.machine import read_machine

__all__ = ["Outcome", "Wish", "optimize"]

_MADE_UP_ROWS = 64
# What keeps one variant from being made; the others are made all the same.
_OF_ONE_VARIANT = (Refused, EngineError, InvalidRequest, UsageError, DataFileError)
Judged = tuple[Artifact, Accuracy]


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants beside the model itself.

    Without a `recipe`, whatever is sensible on this machine is tried, and only the best of it is published. `max_drop`
    is the accuracy that a variant may lose (0.01: one point), None for any.
    """

    recipe: Recipe | None
    metric: Metric | None = None
    max_drop: float | None = None
    split: Split = Split()
    settings: EngineSettings = EngineSettings()


class Outcome(msgspec.Struct, frozen=True):
    """What came of it. The model as imported is first everywhere.

    `measured` are all variants that hold their accuracy, `published` those that are in the store now. `refused` says
    why a variant could not be made or does not hold, `beaten` which other one dominates it, `trade_offs` what was tried
    to bring its accuracy back.
    """

    published: tuple[Artifact, ...]
    measured: tuple[Artifact, ...]
    refused: dict[str, str] = {}
    beaten: dict[str, str] = {}
    trade_offs: dict[str, tuple[Trial, ...]] = {}


def optimize(source: Source, wish: Wish, store: Store, name: str, on_step: OnStep) -> Outcome:
    """Publishes the model as imported and the variants that the wish asks for as versions of `name`.

    The first is named for the precision of its weights, which is fp32 unless an ONNX file says otherwise. Nothing is
    published before everything was made and measured, so a failure or Ctrl-C leaves the versions as they were; what was
    finished by then is taken up by the next attempt. A variant that cannot be made, or loses more than allowed, does
    not keep the others from being published. Raises ModelFileError, UnknownInputError, DataFileError, UsageError,
    EngineError, StoreError or Refused for what the user can mend.
    """
    key = _key(source, wish)
    with store.staging() as staging, naming_a_full_disk(store.root), unfinished_work(store.root, key) as unfinished:
        maker = Maker(source, staging, unfinished, on_step, split=wish.split, threads=wish.settings.threads)
        origin = maker.imported()
        recipe = wish.recipe or sensible_variants(
            origin, read_machine(), wish.settings.device, has_rows=source.data is not None
        )
        recipe = _without_namesakes(recipe, origin, chosen=wish.recipe is not None)
        tuning, rows, split = _divided(source.data, origin, recipe, wish)
        judge = Judge(origin, rows, wish.settings, on_step, metric=wish.metric, split=split)
        best_accuracy = judge.accuracy(origin)  # what cannot be judged is told before anything is made
        selection = _Selection(maker, judge, origin, tuning, wish, on_step)
        for variant in recipe.variants:
            selection.run(variant)
        measured = judge.measured([(origin, best_accuracy), *selection.kept])
        beaten = dominated([_point(artifact) for artifact in measured])
        chosen = measured if wish.recipe else best_of(measured, beaten)
        on_step("publishing")
        published = _publish(chosen, store, name)
    return Outcome(tuple(published), tuple(measured), selection.refused, beaten, selection.trade_offs)


class _Selection:
    """Variants made and judged one by one: kept, or refused with the reason."""

    def __init__(
        self, maker: Maker, judge: Judge, origin: Artifact, tuning: Rows | None, wish: Wish, on_step: OnStep
    ) -> None:
        self.kept: list[Judged] = []
        self.refused: dict[str, str] = {}
        self.trade_offs: dict[str, tuple[Trial, ...]] = {}
        self._maker, self._judge, self._origin, self._tuning = maker, judge, origin, tuning
        self._wish, self._on_step = wish, on_step

    def run(self, variant: Variant) -> None:
        try:
            self._run(variant)
        except _OF_ONE_VARIANT as refusal:
            self.refused[variant.name] = str(refusal)

    def _run(self, variant: Variant) -> None:
        artifact = self._maker.variant(variant, self._origin, self._tuning)
        accuracy = self._judge.accuracy(artifact)
        max_drop = self._wish.max_drop
        if max_drop is None or holds(accuracy, max_drop).kept:
            self.kept.append((artifact, accuracy))
            return
        self.refused[variant.name] = holds(accuracy, max_drop).reason
        if accuracy.loss > 0 and can_restore(variant):  # else it is rows that are lacking, not precision
            self._restore(variant, artifact, max_drop)

    def _restore(self, variant: Variant, failed: Artifact, max_drop: float) -> None:
        restorer = Restorer(self._maker, self._tuning_judge(), self._tuning, max_drop, self._on_step)
        restored, found = restorer.restored(variant, self._origin, failed)
        self.trade_offs[variant.name] = restored.trials
        for artifact in found[:1]:  # to look at more of them on the rows they are judged by would flatter the choice
            accuracy = self._judge.accuracy(artifact)
            if holds(accuracy, max_drop).kept:
                self.kept.append((artifact, accuracy))
                del self.refused[variant.name]

    def _tuning_judge(self) -> Judge:
        """Layers are chosen by these rows and judged by the others; made-up rows are all alike, so they do for both."""
        if self._tuning is None:
            return self._judge
        return Judge(self._origin, self._tuning, self._wish.settings, self._on_step, metric=self._wish.metric)


def _key(source: Source, wish: Wish) -> str:
    """Names the work by all that its results follow from, but for the variants."""
    asked = msgspec.structs.replace(source, path=Path(source.path.name), data=None)
    codes = [code_file(spec) for spec in (source.model_class, source.example)]
    beside: list[Path] = []
    if source.path.suffix == ".onnx" and source.path.is_file():
        names = (*inspect_onnx(source.path).external_files, TOKENIZER_FILE)
        beside = [path for path in map(source.path.parent.joinpath, names) if path.is_file()]
    return content_key(source.path, source.data, asked, wish.split, *codes, *beside, *files_stated(source.path))


def _without_namesakes(recipe: Recipe, origin: Artifact, *, chosen: bool) -> Recipe:
    """`recipe` without what the model is already; Refused when the user has `chosen` it."""
    name = origin.manifest.variant
    left = tuple(wanted for wanted in recipe.variants if wanted.name != name)
    if chosen and len(left) < len(recipe.variants):
        raise Refused(f"nothing was published: most weights of the model are {name} already; publish it as it is")
    return msgspec.structs.replace(recipe, variants=left)


def _divided(data: Path | None, origin: Artifact, recipe: Recipe, wish: Wish) -> tuple[Rows | None, Rows, str]:
    """Rows for making variants (None without data), rows for judging them, and in words which those are."""
    specs = origin.manifest.inputs
    if data is None:
        first = specs[0].shape
        fixed = first[0] if first and isinstance(first[0], int) else None
        return None, SyntheticRows(specs, fixed or _MADE_UP_ROWS), ""
    processing = origin.manifest.processing
    images = processing.image if processing else None
    rows = read_rows(data, specs, origin.directory / TOKENIZER_FILE, images)
    chooses_layers = wish.max_drop is not None and any(map(can_restore, recipe.variants))
    if not recipe.needs_rows and not chooses_layers:
        return None, rows, ""
    tuning, held_out = split_rows(rows, wish.split)
    return tuning, held_out, wish.split.described(len(held_out), len(rows))


def _point(artifact: Artifact) -> Point:
    metrics = artifact.manifest.metrics
    assert metrics.accuracy is not None
    high = metrics.accuracy.loss_high
    return Point(
        artifact.manifest.variant,
        metrics.accuracy.loss if high is None else high,
        tuple(latency.p50_s for latency in metrics.latency),
        artifact.size_bytes,
    )


def _publish(artifacts: list[Artifact], store: Store, name: str) -> list[Artifact]:
    baseline = store.add(artifacts[0], name)
    return [baseline, *(store.add(artifact, name, parent=baseline.ref) for artifact in artifacts[1:])]
