"""What a gate says: plain data."""

from typing import Literal

import msgspec

from mlserve.report.gating.limits import Sense, Unit

__all__ = ["About", "FalseAlarms", "Finding", "GateResult", "MetricVerdict", "Mode", "Verdict"]

# 1: first format (0.1.0)
# 2: limits of the candidate alone, metrics beyond latency, suspicion and its confirmation, A/A runs
FORMAT_VERSION = 2

Verdict = Literal["pass", "fail", "inconclusive"]
Mode = Literal["saved", "relative", "absolute", "history"]
About = Literal["servers", "processes"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A figure of the baseline, None where the limit needs none, and of the candidate (geometric means over the runs).

    `change` is their ratio, or their difference for shares, or the candidate's figure itself where that alone is
    limited; it lies between `low` and `high`, at the confidence that is this metric's share of all of them together.
    `spread` is the standard error of `change` (of its logarithm for a ratio), None where it is not one number.
    """

    baseline: float | None
    candidate: float
    change: float
    low: float | None
    high: float | None
    spread: float | None = None


class MetricVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One limit, judged. `difference.change` must be `sense` (`at most`, `at least`) `limit`; both are in `unit`, the
    figures of `difference` in `figure_unit`. None is a difference that is unknown.

    `pairs` is how many runs of each side it rests on. `was_suspected` is whether the first runs of a live gate had it
    beyond its limit, and `confirmed` whether a `fail` stands: fresh runs found it too, or it is no matter of runs.
    `more_runs` is how many further runs on each side would about decide if the figures stay as they are: None where
    nothing is open, or where no number is likely to help.
    """

    metric: str
    difference: Finding | None
    limit: float
    verdict: Verdict
    sense: Sense = "at most"
    unit: Unit | Literal["ratio", "points"] = "ratio"
    figure_unit: Unit = "s"
    absolute: bool = False
    pairs: int = 0
    was_suspected: bool = False
    confirmed: bool = False
    reason: str = ""
    more_runs: int | None = None


class FalseAlarms(msgspec.Struct, frozen=True, kw_only=True):
    """How many of `gates` that held a server against itself on this machine failed, and how many of them raised a
    suspicion that fresh runs had to clear; `low` to `high` is the 95% interval of the share that fails.
    """

    gates: int
    failed: int
    suspected: int
    low: float
    high: float

    @property
    def words(self) -> str:
        """`0 of 20 gates of a server against itself failed (95% interval 0.0% to 16.8%), 1 was suspected`."""
        return (
            f"{self.failed} of {self.gates} gates of a server against itself failed "
            f"(95% interval {self.low:.1%} to {self.high:.1%}), {self.suspected} raised a suspicion"
        )


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict, the limits it follows from, and why where they alone do not say. `notes` do not change it.

    `suspected` are the metrics that only fresh runs can decide now; `settled` is whether further runs would change
    nothing. `false_alarms` is what A/A runs on this machine showed, None without a calibration.

    `about` is `processes` where each side was one process all the time and nobody knows how much processes of the same
    server differ: the verdict is of these two. `broken` says how the candidate does not work where the base does, and
    is "" where it does; that is a `fail` whatever the limits say.
    """

    format_version: int = FORMAT_VERSION
    mode: Mode = "saved"
    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: tuple[MetricVerdict, ...]
    notes: tuple[str, ...]
    baseline_runs: tuple[str, ...]
    candidate_runs: tuple[str, ...]
    suspected: tuple[str, ...] = ()
    settled: bool = True
    false_alarms: FalseAlarms | None = None
    about: About = "servers"
    broken: str = ""
