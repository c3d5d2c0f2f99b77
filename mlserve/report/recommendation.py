"""Which variant of a model to serve, and why, in plain words. Pure functions of measurements.

Every variant is compared with one reference, fp32 where there is one, on p99 under each load that both were measured
under. It takes the reference's place where it is faster under a load by more than noise, slower under none, fails no
more requests, and keeps its accuracy. Without such a variant the reference stays: no difference shown is no reason to
change. INVALID runs are not compared. The intervals of all comparisons hold together with 95% (Bonferroni).
"""

import shlex
from collections.abc import Sequence

import msgspec

from mlserve.report.choice import Choice
from mlserve.report.comparison import Difference, compare_percentile, confidence_of_each
from mlserve.report.conditions import Conditions, differences
from mlserve.report.measurement import Measurement
from mlserve.report.names import ModelIdentity, Names
from mlserve.report.slo import Slo
from mlserve.report.trial import Comparison, Trial, choose_reference, try_all
from mlserve.report.verdict import Verdict
from mlserve.runs.run import ServedModel
from mlserve.units import format_bytes, format_duration, format_ratio

__all__ = ["Recommendation", "heed", "recommend", "recommend_choice"]

_MOST_LABELS = 2


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve. `variant` and `model` (`name@version`) are empty where nothing can be recommended: it could not be
    compared, or is not shown to keep the objective.

    `reason` is one sentence; `evidence` and `caveats` are what it rests on and what to know beside it; `next_step` is
    a command.
    """

    headline: str
    reason: str
    variant: str = ""
    model: str = ""
    evidence: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    next_step: str = ""


def recommend(measurements: Sequence[Measurement], *, max_accuracy_loss: float) -> Recommendation:
    """The variant to serve among `measurements`, of those that lose at most `max_accuracy_loss` of their accuracy."""
    valid = [measurement for measurement in measurements if measurement.valid]
    invalid = _left_out(measurements, "were not compared")
    missing = _missing(valid, alone=len(valid) == len(measurements))
    if missing:
        return _no_recommendation(missing, invalid)
    names = Names([one.identity for one in measurements], [one.conditions for one in measurements])
    reference = choose_reference(valid)
    trials = try_all(valid, reference, names, max_accuracy_loss)
    if not any(trial.comparisons for trial in trials):
        return _no_recommendation(
            f"No other variant was measured under the same conditions as {names.model(reference)}. "
            "Measure all under the same load and settings, on the same machine.",
            invalid,
        )
    better = sorted((trial for trial in trials if trial.better), key=lambda trial: trial.mean_ratio)
    chosen = better[0].model if better else reference
    ours, theirs = _model(valid, chosen), _model(valid, reference)
    traits = _traits(ours, theirs, names.model(reference)) if better else []
    return Recommendation(
        headline=f"{'Serve' if better else 'Keep'} {names.model(chosen)}",
        variant=names.model(chosen),
        model=chosen.ref,
        reason=_why_change(better[0], ours, theirs) if better else _why_keep(trials, names),
        evidence=(*_speeds(better[:1] or trials), *_protocols(valid, chosen), *traits),
        caveats=(*invalid, *_other_variants(trials, better, names), *_few_runs(valid)),
        comparisons=tuple(comparison for trial in trials for comparison in trial.comparisons),
        next_step=shlex.join(["mlserve", "models", "promote", chosen.ref]) if ours.sha256 else "",
    )


def recommend_choice(choice: Choice, measurements: Sequence[Measurement], folder: str, slo: Slo) -> Recommendation:
    """What a search chose, in `folder`, where its production.toml is. To be served is only what VALID runs confirmed.
    `slo` is what the report judges by, which need not be what was sought.
    """
    tried = (
        f"{len(choice.tried)} of {choice.settings:,} settings {'was' if len(choice.tried) == 1 else 'were'} measured"
    )
    invalid = _left_out(measurements, "prove nothing")
    if choice.pick is None:
        help_ = (f"What would help: {choice.needed}.",) if choice.needed else ()
        return Recommendation(
            headline=_nothing(choice, measurements),
            reason=f"{tried}. The nearest was {choice.nearest}." if choice.nearest else f"{tried}: {choice.why}.",
            caveats=(*help_, *invalid),
        )
    mine = [one for one in measurements if _holds(one, choice.folders)]
    if not mine or not mine[-1].valid or not choice.valid:
        proven = bool(mine) and mine[-1].valid
        why = f"It was not confirmed ({choice.why})" if proven else "No VALID run shows that it does"
        return Recommendation(headline=_not_shown(choice.pick.label), reason=f"{why}; {tried}.", caveats=invalid)
    model = mine[-1].model
    proof = "A fresh run confirmed it" if slo == choice.slo else f"The search confirmed it for {choice.slo.words}"
    return Recommendation(
        headline=f"Serve {choice.pick.label}",
        variant=choice.pick.label,
        model=f"{model.name}@{model.version}" if model.version else "",
        reason=f"{proof}; {tried}.",
        caveats=invalid,
        next_step=shlex.join(["mlserve", "serve", "--config", f"{folder}/production.toml"]),
    )


def heed(advice: Recommendation, verdict: Verdict | None, *, has_objective: bool) -> Recommendation:
    """`advice` in one voice with `verdict`: nothing is to be served that misses the objective, or that is not shown to
    keep it. What is said of the only variant is the headline where there is nothing to choose.
    """
    if verdict is None or (advice.variant and (verdict.meets or not has_objective)):
        return advice
    subject = advice.variant or verdict.variant
    if not has_objective:
        return msgspec.structs.replace(advice, headline=f"{subject}, measured")
    if verdict.meets:
        return msgspec.structs.replace(advice, headline=f"{subject} keeps the SLO")
    headline = _not_shown(subject) if verdict.meets is None else f"{subject} misses the SLO"
    return msgspec.structs.replace(advice, headline=headline, variant="", model="", next_step="")


def _not_shown(subject: str) -> str:
    return f"{subject} is not shown to keep the SLO"


def _nothing(choice: Choice, measurements: Sequence[Measurement]) -> str:
    """That all missed is known only where all were VALID and none was met."""
    if not choice.tried:
        return "Nothing was measured"
    limit = f"{choice.slo.name} within {format_duration(choice.slo.limit_s)}"
    if choice.all_missed and all(one.valid for one in measurements):
        return f"Nothing that was tried keeps {limit}"
    return f"Nothing is shown to keep {limit}"


def _holds(measurement: Measurement, folders: Sequence[str]) -> bool:
    return any(one.directory.name in folders for one in measurement.runs)


def _no_recommendation(reason: str, invalid: tuple[str, ...]) -> Recommendation:
    return Recommendation(headline="No recommendation", reason=reason, caveats=invalid)


def _missing(valid: Sequence[Measurement], *, alone: bool) -> str:
    """What it would take to recommend anything; "" where nothing is missing."""
    if not valid:
        return "No run is VALID. Its certificate says what to change; then measure again."
    names = sorted({measurement.model.name for measurement in valid})
    if len(names) > 1:
        return f"The runs are of different models ({', '.join(names)}). Report on each model by itself."
    if len({measurement.identity for measurement in valid}) == 1:
        measured = valid[0].identity.full
        only = "was measured. Measure another variant" if alone else "has VALID runs. Measure the others again"
        return f"Only {measured} {only} under the same load to compare."
    return ""


def _why_change(best: Trial, ours: ServedModel, theirs: ServedModel) -> str:
    """One sentence: how much faster, how much smaller, how much less accurate."""
    faster = best.found("faster")
    ratios = sorted(one.difference.change for one in faster if one.difference)
    span = format_ratio(ratios[0])
    if format_ratio(ratios[-1]) != span:
        span = f"{span} to {format_ratio(ratios[-1])}"
    loads = (
        f"under {_of_all(len(faster), len(best.comparisons))}" if len(best.comparisons) > 1 else f"at {faster[0].load}"
    )
    clauses = [f"Its p99 latency is {span} that of {faster[0].reference} {loads}"]
    if ours.size_bytes and theirs.size_bytes:
        clauses.append(f"its size {format_ratio(ours.size_bytes / theirs.size_bytes)}")
    if ours.accuracy:
        loss = ours.accuracy.loss
        lower = "as good" if abs(loss) < 5e-5 else f"{abs(loss):.2%} {'lower' if loss > 0 else 'higher'}"
        clauses.append(f"its accuracy {lower} ({ours.accuracy.metric})")
    return (", ".join(clauses[:-1]) + f" and {clauses[-1]}" if len(clauses) > 1 else clauses[0]) + "."


def _of_all(number: int, loads: int) -> str:
    if number < loads:
        return f"{number} of {loads} loads"
    return "both loads" if loads == 2 else f"all {loads} loads"


def _why_keep(trials: Sequence[Trial], names: Names) -> str:
    return "; ".join(_why_not(trial, names) for trial in trials) + "."


def _why_not(trial: Trial, names: Names) -> str:
    name, faster, slower = names.model(trial.model), trial.found("faster"), trial.found("slower")
    if not trial.comparisons:
        return f"{name} was not measured under the same conditions"
    if faster and slower:
        won, lost = (" and ".join(one.load for one in found) for found in (faster, slower))
        return f"{name} has the lower p99 at {won}, but the higher at {lost}"
    if faster:
        return f"{name} is faster, but {trial.objection}"
    if slower:
        return f"{name} has the higher p99: " + " and ".join(f"{_ratio(one)} at {one.load}" for one in slower)
    refused = next((one.refused for one in trial.comparisons if one.refused), "")
    if refused:
        return f"{name} cannot be judged: {refused}"
    ratios = " and ".join(f"{_ratio(one)} at {one.load}" for one in trial.comparisons)
    return f"{name} shows no difference beyond noise: its p99 is {ratios}"


def _ratio(comparison: Comparison) -> str:
    found = comparison.difference
    if found is None:
        return "unknown"
    return f"{format_ratio(found.change)} ({format_ratio(found.low)} to {format_ratio(found.high)})"


def _speeds(trials: Sequence[Trial]) -> list[str]:
    """What was measured under each load."""
    return [
        f"At {one.load}: p99 {format_duration(one.difference.candidate)} for {one.variant}, "
        f"{format_duration(one.difference.baseline)} for {one.reference}; {_ratio(one)}, {one.finding}."
        for trial in trials
        for one in trial.comparisons
        if one.difference
    ]


def _protocols(valid: Sequence[Measurement], chosen: ModelIdentity) -> list[str]:
    """Where the chosen variant was measured over both protocols: whether one of them is faster."""
    mine = [measurement for measurement in valid if measurement.identity == chosen]
    pairs = [
        (rest, grpc)
        for rest in mine
        for grpc in mine
        if rest.conditions.protocol == "rest" and _only_protocol_differs(rest.conditions, grpc.conditions)
    ]
    found = [compare_percentile("p99", 0.99, rest, grpc, confidence_of_each(len(pairs))) for rest, grpc in pairs]
    return [
        f"Its p99 over gRPC is {format_ratio(one.change)} ({format_ratio(one.low)} to {format_ratio(one.high)}) "
        f"that over REST, {_pace(rest.conditions)}."
        for (rest, _), one in zip(pairs, found, strict=True)
        if isinstance(one, Difference) and not one.low <= 1 <= one.high
    ]


def _pace(conditions: Conditions) -> str:
    if conditions.users:
        return f"with {conditions.users:,} users in a closed loop"
    return f"at {conditions.rate_per_s:g} requests/s"


def _only_protocol_differs(one: Conditions, other: Conditions) -> bool:
    # The payload says how many bodies fitted, which differs with the encoding.
    others = [field for field in Conditions.__struct_fields__ if field not in ("protocol", "payload")]
    return one.protocol != other.protocol and not differences(one, other, others)


def _traits(ours: ServedModel, theirs: ServedModel, reference: str) -> list[str]:
    """Size and accuracy of a variant that is to take the reference's place."""
    sentences: list[str] = []
    if ours.size_bytes and theirs.size_bytes:
        share = format_ratio(ours.size_bytes / theirs.size_bytes)
        sizes = f"{format_bytes(ours.size_bytes)}, {format_bytes(theirs.size_bytes)} for {reference}"
        sentences.append(f"Size: {sizes}; {share}.")
    if ours.accuracy:
        found = ours.accuracy
        others = "".join(f", {name} {value:.4g}" for name, value in found.details.items() if name != found.metric)
        sentences.append(
            f"Accuracy: {found.metric} {found.value:.4g} on {found.rows} rows of {found.data}, a loss of "
            f"{found.loss:.2%} against {found.reference}{others}."
        )
    return sentences


def _left_out(measurements: Sequence[Measurement], so: str) -> tuple[str, ...]:
    runs = [recorded.run for measurement in measurements for recorded in measurement.runs]
    invalid = [run for run in runs if not run.certificate.valid]
    if not invalid:
        return ()
    by_fault: dict[str, list[str]] = {}
    for run in invalid:
        by_fault.setdefault(run.certificate.faults[0].name, []).append(run.label)
    few = len(invalid) <= _MOST_LABELS
    reasons = "; ".join(
        f"{fault}: {', '.join(dict.fromkeys(labels))}" if few else f"{fault} in {len(labels)}"
        for fault, labels in by_fault.items()
    )
    verb = "is" if len(invalid) == 1 else "are"
    so = so.replace("were", "was").replace("prove ", "proves ") if len(invalid) == 1 else so
    return (f"{len(invalid)} of {len(runs)} runs {verb} INVALID and {so} ({reasons}).",)


def _other_variants(trials: Sequence[Trial], better: Sequence[Trial], names: Names) -> list[str]:
    if not better:
        return []
    sentences = [f"{_why_not(trial, names)}." for trial in trials if not trial.better]
    if len(better) > 1:
        sentences.append(f"{names.model(better[1].model)} is better than the reference too; the two were not compared.")
    return sentences


def _few_runs(valid: Sequence[Measurement]) -> list[str]:
    if all(len(measurement.believed) > 1 for measurement in valid):
        return []
    return [
        "Some figures come from a single run, so how much runs of the same server differ is not in their intervals."
    ]


def _model(valid: Sequence[Measurement], model: ModelIdentity) -> ServedModel:
    return next(measurement.model for measurement in valid if measurement.identity == model)
