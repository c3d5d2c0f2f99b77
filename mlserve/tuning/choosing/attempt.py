"""One run of a setting: which is to be made, and what came of it."""

import math
from typing import Literal

import msgspec
import numpy as np

from mlserve.report.measurement import Recorded
from mlserve.runs.load import Bursts
from mlserve.stats import bootstrap_interval, quantile_of
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.evidence import conclude, weigh
from mlserve.tuning.find_max import settled_requests

__all__ = ["Attempt", "Fidelity", "Trial", "failed_attempt", "judge_attempt", "memory_of"]

Fidelity = Literal["short", "long", "confirm"]
"""How well something is measured. A run that confirms is as long as a long one, and decides by itself."""

_GENERATOR_CHECKS = frozenset(("generator on time", "generator CPU", "calibration rate", "calibration latency"))
# A short run that misses beside other work only turns the search another way; one that confirms would end it.
_MACHINE_CHECKS = frozenset(("steal", "other work", "clock"))
_RESAMPLES = 500


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is to be made: of the setting `number`, at `rate_per_s`. `why` is one of a few words.

    The runs of the settings `beside` are made at once with it, in turns; they are the trials that come next.
    """

    number: int
    rate_per_s: float
    fidelity: Fidelity
    why: str = ""
    beside: tuple[int, ...] = ()

    @property
    def next_beside(self) -> "Trial | None":
        """The next of those that are made at once, None after the last."""
        if not self.beside:
            return None
        return msgspec.structs.replace(self, number=self.beside[0], beside=self.beside[1:])


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial. `met`: the objective held; `sure`: the evidence proves that or the contrary, with the
    chances that `tuning.evidence.Evidence` describes.

    `percentile_s` is the objective's percentile over all requests, with a 95% interval, None where it is infinite or
    there is none. `good_per_s` counts the answers within the limit. `memory_bytes` and `joules_a_request` are None
    where the machine does not tell. `seconds` is what the run took with everything. `blame` says why a run that missed
    shows the generator, or one that was to confirm other work, and not the server; `failure` why there is no run, and
    `died` whether that is because the server's process ended. `generator_cpu` is the share of a core that the busiest
    generator used. `in_turns`: it shared its time with the runs beside it, which count no seconds of their own but for
    the first. `past`: the search has ended since without a proof, and what confirms may be tried as often again.
    """

    trial: Trial
    folder: str
    seconds: float
    met: bool = False
    sure: bool = False
    chance_met: float = 1.0
    chance_missed: float = 1.0
    percentile_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    p50_s: float | None = None
    good_per_s: float = 0.0
    error_rate: float = 0.0
    requests: int = 0
    memory_bytes: int | None = None
    joules_a_request: float | None = None
    valid: bool = False
    faults: tuple[str, ...] = ()
    why: str = ""
    blame: str = ""
    failure: str = ""
    died: bool = False
    generator_cpu: float = 0.0
    in_turns: bool = False
    past: bool = False

    @property
    def number(self) -> int:
        """Of the setting."""
        return self.trial.number

    @property
    def rate_per_s(self) -> float:
        """What was offered."""
        return self.trial.rate_per_s

    @property
    def error(self) -> float:
        """The standard error of the percentile's logarithm, as its interval tells; a guess where there is none."""
        if self.low_s and self.high_s:
            return min(max(math.log(self.high_s / self.low_s) / 3.92, 0.02), 0.5)
        return 0.3


def judge_attempt(trial: Trial, recorded: Recorded, aim: Aim, seconds: float) -> Attempt:
    """What a finished run says."""
    run, samples, objective = recorded.run, recorded.samples, aim.objective
    evidence = weigh(settled_requests(samples, samples.scheduled_s), objective)
    verdict = conclude(evidence, objective)
    memory = memory_of(recorded)
    too_large = memory is not None and aim.max_memory_bytes is not None and memory > aim.max_memory_bytes
    low, high = bootstrap_interval([recorded.latency_blocks], quantile_of(objective.percentile), resamples=_RESAMPLES)
    latency_s = samples.latency_s
    faults = tuple(check.name for check in run.certificate.faults)
    blamable = _GENERATOR_CHECKS | (_MACHINE_CHECKS if trial.fidelity == "confirm" else frozenset())
    blamed = [check for check in run.certificate.faults if check.name in blamable]
    energy = run.resources.energy_j
    return Attempt(
        trial=trial,
        folder=recorded.directory.name,
        seconds=seconds,
        met=verdict.met and not too_large and len(latency_s) > 0,
        sure=verdict.sure,
        chance_met=evidence.chance_met,
        chance_missed=evidence.chance_missed,
        percentile_s=_finite(evidence.found_s),
        low_s=_finite(low),
        high_s=_finite(high),
        p50_s=float(np.median(latency_s)) if len(latency_s) else None,
        good_per_s=float((latency_s <= objective.limit_s).sum()) / run.window.duration_s,
        error_rate=1 - len(latency_s) / len(samples) if len(samples) else 0.0,
        requests=len(samples),
        memory_bytes=memory,
        joules_a_request=energy / len(latency_s) if energy is not None and len(latency_s) else None,
        valid=run.certificate.valid,
        faults=faults,
        why="memory" if too_large else verdict.why,
        blame="" if verdict.met or not blamed else f"{blamed[0].name}: {blamed[0].found}",
        generator_cpu=run.counts.generator_cpu,
        in_turns=isinstance(run.plan.shape, Bursts),
    )


def failed_attempt(trial: Trial, folder: str, failure: str, seconds: float, *, died: bool = False) -> Attempt:
    """A run that there is not."""
    return Attempt(trial=trial, folder=folder, seconds=seconds, failure=failure, died=died)


def memory_of(recorded: Recorded) -> int | None:
    """What the server's processes took at most, together (bytes); None where the machine does not tell."""
    server = [one.rss_max_bytes for one in recorded.run.resources.processes if one.role == "server"]
    return sum(server) if server else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
