"""A report: everything the pages show, as values. Each renderer is fed this and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from mlserve import __version__
from mlserve.report.breakdown import Breakdown, breakdown
from mlserve.report.choice import Choice, read_choice
from mlserve.report.command import bench_command
from mlserve.report.conditions import Conditions
from mlserve.report.curves import Distribution, Timeline, distribution, timeline
from mlserve.report.measurement import Measurement, Recorded, group
from mlserve.report.names import Names
from mlserve.report.recommendation import Recommendation, heed, recommend, recommend_choice
from mlserve.report.slo import Slo
from mlserve.report.summary import Summary, summarize
from mlserve.report.usage import Usage, usage
from mlserve.report.verdict import Verdict, speak, speak_of_choice
from mlserve.runs.load import Plan
from mlserve.runs.machine import Machine
from mlserve.runs.run import Certificate, Counts, ServedModel, ServerSettings

__all__ = ["Report", "Result", "RunResult", "build_report"]

# 1: first format (0.1.0)
# 2: the verdict and its objective; of each result its conditions, where the time went, what was used, warm-up, stalls
FORMAT_VERSION = 2


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a measurement. `command` makes it again, `machine` counts the report's machines from 0."""

    directory: str
    label: str
    started_at: str
    valid: bool
    plan: Plan
    server: ServerSettings | None
    machine: int
    counts: Counts
    certificate: Certificate
    summary: Summary
    command: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One variant under one load. The figures are those of its VALID runs; of all its runs where `valid` is false; of
    what a search picked, those of the runs alone that confirmed it.

    `breakdown` and `usage` are None where the runs do not have them, `conditions` where a report of format 1 was read.
    """

    variant: str
    load: str
    protocol: str
    rate_per_s: float
    recommended: bool
    valid: bool
    model: ServedModel
    summary: Summary
    distribution: Distribution
    timeline: Timeline
    runs: tuple[RunResult, ...]
    conditions: Conditions | None = None
    breakdown: Breakdown | None = None
    usage: Usage | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The recommendation, and every result it may rest on. `created_at` is ISO 8601. `slo` is what was promised, where
    anyone said; `verdict` is None where there is no variant to speak of. `choice` is what a search chose, where the
    runs are those of one.
    """

    format_version: int = FORMAT_VERSION
    mlserve: str = __version__
    created_at: str
    max_accuracy_loss: float
    recommendation: Recommendation
    results: tuple[Result, ...]
    machines: tuple[Machine, ...]
    slo: Slo | None = None
    verdict: Verdict | None = None
    choice: Choice | None = None

    @property
    def leading_loads(self) -> tuple[str, ...]:
        """The loads to look at first: of a search that of the pick and that of the runner-up, else the verdict's."""
        if self.choice is None:
            return (self.verdict.load,) if self.verdict else ()
        by_folder = {Path(run.directory).name: result.load for result in self.results for run in result.runs}
        folders = (*self.choice.folders[-1:], *self.choice.runner_up_folders[-1:])
        return tuple(dict.fromkeys(by_folder[name] for name in folders if name in by_folder))

    def counted(self, result: Result) -> tuple[RunResult, ...]:
        """The runs of `result` that its figures are taken of: of a confirmed pick, those that confirmed it."""
        confirming = self.choice.confirming if self.choice else ()
        return tuple(run for run in result.runs if Path(run.directory).name in confirming) or result.runs


def build_report(
    runs: Sequence[Recorded], *, max_accuracy_loss: float, created_at: str, slo: Slo | None = None
) -> Report:
    """The report on `runs`; loads stand together, so that variants are read against each other.

    Where they are the runs of a search, what it chose takes the recommendation's place, and its objective is judged by
    unless `slo` is given. Raises RunFileError where the search's own files cannot be read.
    """
    choice = read_choice(runs)
    measurements = group(runs, choice.confirming if choice else ())
    slo = slo or (choice.slo if choice else None)
    names = Names([one.identity for one in measurements], [one.conditions for one in measurements])
    machines = list({msgspec.json.encode(one.run.machine): one.run.machine for one in runs}.values())
    results = [_result(one, names, machines) for one in measurements]
    judged = [(one, result.summary) for one, result in zip(measurements, results, strict=True)]
    if choice and slo:
        advice = recommend_choice(choice, measurements, str(runs[0].directory.parent), slo)
        verdict = speak_of_choice(judged, names, choice, slo)
        advice = heed(advice, verdict, has_objective=True) if advice.variant else advice
    else:
        advice = recommend(measurements, max_accuracy_loss=max_accuracy_loss)
        verdict = speak(judged, names, pick=advice.variant, max_accuracy_loss=max_accuracy_loss, slo=slo)
        advice = heed(advice, verdict, has_objective=slo is not None)
    return Report(
        created_at=created_at,
        max_accuracy_loss=max_accuracy_loss,
        recommendation=advice,
        results=_in_order(results, _picked(measurements, names, advice, choice)),
        machines=tuple(machines),
        slo=slo,
        verdict=verdict,
        choice=choice,
    )


def _picked(
    measurements: Sequence[Measurement], names: Names, advice: Recommendation, choice: Choice | None
) -> list[bool]:
    """Which of `measurements` are of what is to be served."""
    if not advice.variant:
        return [False] * len(measurements)
    if choice:
        return [any(run.directory.name in choice.folders for run in one.runs) for one in measurements]
    return [names.model(one.identity) == advice.variant for one in measurements]


def _in_order(results: Sequence[Result], picked: Sequence[bool]) -> tuple[Result, ...]:
    """Loads together, each with its variants in the order in which they were first measured."""
    loads = list(dict.fromkeys(one.load for one in results))
    variants = list(dict.fromkeys(one.variant for one in results))
    told = [msgspec.structs.replace(one, recommended=best) for one, best in zip(results, picked, strict=True)]
    return tuple(sorted(told, key=lambda one: (loads.index(one.load), variants.index(one.variant))))


def _result(measurement: Measurement, names: Names, machines: list[Machine]) -> Result:
    believed = measurement.believed
    runs = tuple(_run_result(one, machines) for one in measurement.runs)
    return Result(
        variant=names.model(measurement.identity),
        load=names.load(measurement.conditions),
        protocol=measurement.conditions.protocol,
        rate_per_s=measurement.conditions.rate_per_s,
        recommended=False,
        valid=measurement.valid,
        model=measurement.model,
        summary=runs[0].summary if len(runs) == 1 else summarize(believed),
        distribution=distribution(believed),
        timeline=timeline(believed),
        runs=runs,
        conditions=measurement.conditions,
        breakdown=breakdown(believed),
        usage=usage(believed),
    )


def _run_result(recorded: Recorded, machines: list[Machine]) -> RunResult:
    run = recorded.run
    return RunResult(
        directory=str(recorded.directory),
        label=run.label,
        started_at=run.started_at,
        valid=run.certificate.valid,
        plan=run.plan,
        server=run.server,
        machine=machines.index(run.machine),
        counts=run.counts,
        certificate=run.certificate,
        summary=summarize([recorded]),
        command=bench_command(run, recorded.directory),
    )
