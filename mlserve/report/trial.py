"""One variant of a model against the reference, under every load that both were measured under."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from mlserve.report.comparison import (
    MORE_ERRORS,
    Difference,
    Refusal,
    compare_errors,
    compare_percentile,
    confidence_of_each,
)
from mlserve.report.measurement import Measurement
from mlserve.report.names import ModelIdentity, Names

__all__ = ["Comparison", "Trial", "choose_reference", "try_all"]

Finding = Literal["faster", "slower", "no difference shown"]

_METRIC, _QUANTILE = "p99", 0.99
_REFERENCE = "fp32"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """p99 of `variant` against that of `reference` under one load; `refused` says why there is no difference."""

    load: str
    variant: str
    reference: str
    finding: Finding
    difference: Difference | None
    refused: str = ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What the comparisons say of `model`. `objection` is why it may not be recommended however fast it is."""

    model: ModelIdentity
    comparisons: tuple[Comparison, ...]
    objection: str

    def found(self, finding: Finding) -> list[Comparison]:
        """The comparisons with this finding."""
        return [comparison for comparison in self.comparisons if comparison.finding == finding]

    @property
    def better(self) -> bool:
        """Whether it may take the reference's place: faster somewhere, slower nowhere, nothing against it."""
        return bool(self.found("faster")) and not self.found("slower") and not self.objection

    @property
    def mean_ratio(self) -> float:
        """Geometric mean over the loads of its p99 against the reference's."""
        logs = [math.log(comparison.difference.change) for comparison in self.comparisons if comparison.difference]
        return math.exp(sum(logs) / len(logs)) if logs else math.inf


def choose_reference(measurements: Sequence[Measurement]) -> ModelIdentity:
    """fp32, the oldest version of it; else the model that was measured first."""
    models = [measurement.identity for measurement in measurements]
    fp32 = [model for model in models if model.variant == _REFERENCE]
    return min(fp32, key=lambda model: (len(model.version), model.version)) if fp32 else models[0]


def try_all(
    measurements: Sequence[Measurement], reference: ModelIdentity, names: Names, max_accuracy_loss: float
) -> list[Trial]:
    """Every model but the reference, in the order of the measurements."""
    pairs = [
        (one, other)
        for one in measurements
        for other in measurements
        if one.identity == reference != other.identity and one.conditions == other.conditions
    ]
    confidence = confidence_of_each(len(pairs))
    trials: list[Trial] = []
    for model in dict.fromkeys(one.identity for one in measurements if one.identity != reference):
        mine = [pair for pair in pairs if pair[1].identity == model]
        trials.append(
            Trial(
                model=model,
                comparisons=tuple(_compare(before, after, names, confidence) for before, after in mine),
                objection=" and ".join(_failing(mine, names, confidence) + _inaccurate(mine, max_accuracy_loss)),
            )
        )
    return trials


def _compare(reference: Measurement, candidate: Measurement, names: Names, confidence: float) -> Comparison:
    found = compare_percentile(_METRIC, _QUANTILE, reference, candidate, confidence)
    return Comparison(
        load=names.load(candidate.conditions),
        variant=names.model(candidate.identity),
        reference=names.model(reference.identity),
        finding=_finding(found),
        difference=found if isinstance(found, Difference) else None,
        refused=found.reason if isinstance(found, Refusal) else "",
    )


def _finding(found: Difference | Refusal) -> Finding:
    if isinstance(found, Refusal) or found.low <= 1 <= found.high:
        return "no difference shown"
    return "faster" if found.high < 1 else "slower"


def _failing(pairs: Sequence[tuple[Measurement, Measurement]], names: Names, confidence: float) -> list[str]:
    """A request that failed has no latency, so a variant that fails more of them only looks fast."""
    for reference, candidate in pairs:
        found = compare_errors(reference, candidate, confidence)
        if isinstance(found, Difference) and found.low > MORE_ERRORS:
            load = names.load(candidate.conditions)
            return [f"fails {found.candidate:.1%} of the requests at {load} (the reference {found.baseline:.1%})"]
    return []


def _inaccurate(pairs: Sequence[tuple[Measurement, Measurement]], max_accuracy_loss: float) -> list[str]:
    accuracy = pairs[0][1].model.accuracy if pairs else None
    if accuracy is None:
        return ["has no measured accuracy"]
    if accuracy.loss > max_accuracy_loss:
        return [f"loses {accuracy.loss:.2%} of its {accuracy.metric}, more than the {max_accuracy_loss:.2%} allowed"]
    return []
