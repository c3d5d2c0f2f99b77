"""A variant that loses too much gets its most sensitive layers back, as few as it takes."""

from collections.abc import Sequence

import msgspec

from mlserve.errors import EngineError, Refused
from mlserve.model.artifact import Artifact
from mlserve.model.rows import Rows
from mlserve.optimize.evaluation.drop import holds
from mlserve.optimize.evaluation.search import Restored, Trial, restore_accuracy
from mlserve.optimize.evaluation.sensitivity import rank_layers
from mlserve.optimize.judging import Judge
from mlserve.optimize.making import Maker, OnStep
from mlserve.optimize.passes import Cast, Pass, Quantize, QuantizeOpenvino, QuantizeStatic, WeightOnly
from mlserve.optimize.passes.int8_operators import HEAVY_OPERATORS
from mlserve.optimize.passes.quantize import DYNAMIC_OPERATORS
from mlserve.optimize.recipe import Variant

__all__ = ["Restorer", "can_restore"]

Lowering = Cast | Quantize | QuantizeStatic | WeightOnly | QuantizeOpenvino


def can_restore(variant: Variant) -> bool:
    """Whether one of its passes can leave layers out."""
    return _selective(variant) is not None


class Restorer:
    """Makes a variant again and again with more layers left in the precision they came in.

    `judge` is of the rows that variants are tuned with: what is chosen by looking at rows must be judged on others.
    """

    def __init__(self, maker: Maker, judge: Judge, tuning: Rows | None, max_drop: float, on_step: OnStep) -> None:
        self._maker, self._judge, self._tuning = maker, judge, tuning
        self._max_drop, self._on_step = max_drop, on_step

    def restored(self, variant: Variant, origin: Artifact, failed: Artifact) -> tuple[Restored, list[Artifact]]:
        """Every variant that was tried, and those that hold their accuracy, fewest layers left out first."""
        position = _selective(variant)
        assert position is not None
        before = self._maker.before_graph_passes(variant, origin)
        for one_pass in variant.graph_passes[:position]:
            before = self._maker.passed(before, one_pass, variant, self._tuning)
        ranking = rank_layers(
            before,
            self._judge.rows,
            threads=self._maker.threads,
            on_step=lambda step: self._on_step(f"{variant.name}: {step}"),
            operators=_operators(variant.graph_passes[position]),
            output=self._judge.output,
        )
        found: dict[tuple[str, ...], Artifact] = {}

        def make(kept: tuple[str, ...]) -> Trial | None:
            self._on_step(f"{variant.name}: with {len(kept)} of {len(ranking)} layers in full precision")
            try:
                artifact = self._without(kept, before, variant, position, origin)
            except (Refused, EngineError):  # nothing is left to make smaller
                return None
            found[kept] = artifact
            return self._trial(kept, artifact)

        restored = restore_accuracy(self._trial((), failed), [layer.pattern for layer in ranking], make)
        return restored, [found[trial.kept] for trial in restored.trials if trial.holds and trial.kept]

    def _without(
        self, kept: tuple[str, ...], before: Artifact, variant: Variant, position: int, origin: Artifact
    ) -> Artifact:
        selective, *rest = variant.graph_passes[position:]
        artifact = before
        for one_pass in (_leaving(selective, kept), *rest):
            artifact = self._maker.passed(artifact, one_pass, variant, self._tuning)
        return self._maker.named(artifact, variant, origin)

    def _trial(self, kept: tuple[str, ...], artifact: Artifact) -> Trial:
        accuracy = self._judge.accuracy(artifact)
        verdict = holds(accuracy, self._max_drop)
        high = accuracy.loss if accuracy.loss_high is None else accuracy.loss_high
        return Trial(kept, verdict.kept, accuracy.loss, high, artifact.size_bytes)


def _selective(variant: Variant) -> int | None:
    """The place of the graph pass that lowers the precision, and can leave nodes out."""
    return next((number for number, one in enumerate(variant.graph_passes) if isinstance(one, Lowering)), None)


def _leaving(one_pass: Pass, kept: Sequence[str]) -> Pass:
    assert isinstance(one_pass, Lowering)
    return msgspec.structs.replace(one_pass, exclude=(*one_pass.exclude, *kept))


def _operators(one_pass: Pass) -> tuple[str, ...]:
    """What the pass makes smaller; empty for anything with weights. Other operators are not worth a trial."""
    match one_pass:
        case QuantizeStatic() | QuantizeOpenvino():
            return HEAVY_OPERATORS
        case Quantize():
            return DYNAMIC_OPERATORS
        case WeightOnly():
            return ("Gather", "Gemm", "MatMul")
    return ()
