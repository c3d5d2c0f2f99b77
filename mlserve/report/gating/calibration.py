"""What gates of a server against itself (A/A) showed on this machine: how often they fail, and by how much they err."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mlserve.errors import UsageError
from mlserve.report.conditions import LOAD_FIELDS, Conditions, differences
from mlserve.report.gating.estimate import CERTAIN, Spread
from mlserve.report.gating.fingerprint import fingerprint_differences
from mlserve.report.gating.limits import Limit
from mlserve.report.gating.result import FalseAlarms, GateResult
from mlserve.report.measurement import Measurement
from mlserve.runs.machine import Machine

__all__ = [
    "Calibrated",
    "GateCalibration",
    "MetricSpread",
    "calibrate",
    "read_calibration",
    "unfit",
    "write_calibration",
]

# 1: first format
FORMAT_VERSION = 1

_MADE_BY = "mlserve gate NAME --calibrate --max-regression p50=5%"
_FEWEST_GATES = 2
_SIGNIFICANT = 0.95
_NOT_OF_PROCESSES = "does not show by how much processes of one server differ (--keep-servers)"


class MetricSpread(msgspec.Struct, frozen=True, kw_only=True):
    """Of the logarithm of one metric's ratio, which is truly 0: `between` is the variance that gates differ by beyond
    what their pairs of runs explain, of `gates` gates; `one_pair` that of single pairs, of `pairs_df` degrees of
    freedom.
    """

    metric: str
    gates: int
    between: float
    one_pair: float
    pairs_df: float


class Calibrated(msgspec.Struct, frozen=True, kw_only=True):
    """What the gates of a calibration held against itself: the name of the model, the load, for how long, under which
    limits. `kept`: both servers of a gate stayed up, so that gates differ as processes do.
    """

    model: str
    conditions: Conditions
    duration_s: float
    limits: tuple[Limit, ...]
    kept: bool = False


class GateCalibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file. It holds for `machine` alone, and for what it is `of`; None where nobody said."""

    format_version: int = FORMAT_VERSION
    machine: Machine
    false_alarms: FalseAlarms
    metrics: tuple[MetricSpread, ...]
    of: Calibrated | None = None

    @property
    def kept(self) -> bool:
        """Whether its gates kept their servers up, so that it knows what processes differ by."""
        return self.of is not None and self.of.kept

    def cautions(self, limits: Sequence[Limit]) -> list[str]:
        """What its false alarms do not tell of a gate with `limits`."""
        if self.of is None:
            return ["the calibration does not say of which model and load it is; make it anew"]
        if not limits or set(limits) == set(self.of.limits):
            return []
        return ["the false alarms of the calibration were counted under other limits than these"]

    def between(self, metric: str) -> Spread:
        """What gates of the same server differ by although their runs agree: where its processes came to lie, say."""
        found = self._of(metric)
        return Spread(found.between, found.gates) if found and found.between else CERTAIN

    def one_pair(self, metric: str) -> Spread | None:
        """What pairs of runs of the same server differ by; None where that was not seen."""
        found = self._of(metric)
        return Spread(found.one_pair, found.pairs_df) if found else None

    def unlike(self, machine: Machine) -> list[str]:
        """In what `machine` differs from the one that was calibrated."""
        return fingerprint_differences(self.machine, machine, software=False)

    def _of(self, metric: str) -> MetricSpread | None:
        return next((one for one in self.metrics if one.metric == metric), None)


def unfit(calibration: GateCalibration, candidate: Measurement, *, kept: bool = False) -> str:
    """Why `calibration` is not of what was measured, as the end of a sentence; "" where it is."""
    found = calibration.unlike(candidate.runs[0].run.machine)
    if found:
        return f"is of another machine ({'; '.join(found)})"
    of = calibration.of
    if of is None:
        return _NOT_OF_PROCESSES if kept else ""
    if of.model != candidate.model.name:
        return f"is of another model ({of.model} against {candidate.model.name})"
    found = differences(of.conditions, candidate.conditions, (*LOAD_FIELDS, "payload", "generators"))
    duration_s = candidate.runs[0].run.plan.duration_s
    if of.duration_s != duration_s:
        found.append(f"runs of {of.duration_s:g} s against {duration_s:g} s")
    if found:
        return f"is of another load ({'; '.join(found)})"
    if of.kept != kept:
        return "is of servers that were kept up" if of.kept else _NOT_OF_PROCESSES
    return ""


def calibrate(gates: Sequence[GateResult], machine: Machine, of: Calibrated | None = None) -> GateCalibration:
    """What `gates` of a server against itself, judged without any calibration, say of `machine` and what they are `of`.

    The interval of the share that fails is Clopper and Pearson's (1934). Raises UsageError for fewer than two gates.
    """
    from scipy.stats import binomtest

    if len(gates) < _FEWEST_GATES:
        raise UsageError(
            f"{len(gates)} gates of a server against itself calibrate nothing; make at least {_FEWEST_GATES}"
        )
    failed = sum(gate.verdict == "fail" for gate in gates)
    low, high = binomtest(failed, len(gates)).proportion_ci(0.95, method="exact")
    metrics = dict.fromkeys(metric.metric for gate in gates for metric in gate.metrics if metric.unit == "ratio")
    spreads = [_spread(metric, gates) for metric in metrics]
    return GateCalibration(
        machine=machine,
        false_alarms=FalseAlarms(
            gates=len(gates),
            failed=failed,
            suspected=sum(any(one.was_suspected for one in gate.metrics) for gate in gates),
            low=float(low),
            high=float(high),
        ),
        metrics=tuple(spread for spread in spreads if spread),
        of=of,
    )


def write_calibration(path: Path, calibration: GateCalibration) -> None:
    """Writes it by rename, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n")
    partial.rename(path)


def read_calibration(path: Path) -> GateCalibration:
    """Raises UsageError when `path` cannot be read, or is none that this version reads."""
    try:
        calibration = msgspec.json.decode(path.read_bytes(), type=GateCalibration)
    except OSError as error:
        raise UsageError(
            f"the calibration {path} cannot be read ({error.strerror}); make it with: {_MADE_BY}"
        ) from error
    except msgspec.DecodeError as error:
        raise UsageError(f"the calibration {path} is damaged: {error}; make it anew: {_MADE_BY}") from error
    if calibration.format_version != FORMAT_VERSION:
        raise UsageError(
            f"the calibration {path} has format {calibration.format_version}, this mlserve reads {FORMAT_VERSION}; "
            f"make it anew: {_MADE_BY}"
        )
    return calibration


def _spread(metric: str, gates: Sequence[GateResult]) -> MetricSpread | None:
    """By moments (DerSimonian and Laird 1986): gates are spread by chance and by what they differ in, and the former is
    known. What they differ in counts only where chance alone would spread them so far in less than one case of twenty.
    """
    from scipy.stats import chi2

    found = [
        (math.log(one.difference.change), one.difference.spread**2, one.pairs)
        for gate in gates
        for one in gate.metrics
        if one.metric == metric and not one.absolute and one.difference and one.difference.spread and one.pairs > 1
    ]
    if len(found) < _FEWEST_GATES:
        return None
    # A variance of few pairs is itself uncertain, which spreads its ratio by df / (df - 2).
    squares = sum(change**2 / variance * max(pairs - 3, 0.5) / (pairs - 1) for change, variance, pairs in found)
    between = max(0.0, sum(change**2 - variance for change, variance, _ in found) / len(found))
    degrees = sum(pairs - 1 for *_, pairs in found)
    return MetricSpread(
        metric=metric,
        gates=len(found),
        between=between if squares > chi2.ppf(_SIGNIFICANT, len(found)) else 0.0,
        one_pair=sum(variance * pairs * (pairs - 1) for _, variance, pairs in found) / degrees,
        pairs_df=float(degrees),
    )
