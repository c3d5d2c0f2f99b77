"""A candidate against runs of another session, such as a committed report. Pure.

Within one session, runs taken in turn share what the machine does; between two sessions they do not, and no number of
runs of either shows by how much sessions differ. A calibration does not show it either: its pairs of runs, and its
gates, are minutes apart. Only a history does; without one nothing is decided of a change, and what was found is told.
"""

from collections.abc import Collection, Sequence

from mlserve.report.gating.calibration import GateCalibration
from mlserve.report.gating.decision import Sides, fitting, judge_saved
from mlserve.report.gating.estimate import Spread
from mlserve.report.gating.evidence import Refused
from mlserve.report.gating.fingerprint import fingerprint_differences
from mlserve.report.gating.history import HistoryEntry, comparable, last_level
from mlserve.report.gating.likeness import cautions, unlike_loads
from mlserve.report.gating.limits import ERROR_RATE, FIXED, Limit
from mlserve.report.gating.result import GateResult
from mlserve.report.gating.tracks import FixedTrack, Track, track_of_sides
from mlserve.report.measurement import Measurement
from mlserve.runs.percentiles import too_few

__all__ = ["decide_against"]


def decide_against(
    baseline: Measurement,
    candidate: Measurement,
    limits: Sequence[Limit],
    *,
    calibration: GateCalibration | None = None,
    history: Sequence[HistoryEntry] = (),
    ignoring: Collection[str] = (),
) -> GateResult:
    """The verdict on `candidate` against a baseline that was measured in another session.

    Where the fingerprints of the machines disagree in more than `ignoring`, a limit of a change is inconclusive, and
    what differs is named. So it is where the last level of `history` does not tell how much sessions differ. Of the
    `calibration` only the false alarms are told. Raises UsageError for unlike loads.
    """
    unlike_loads(baseline, candidate)
    found = fingerprint_differences(
        baseline.runs[0].run.machine, candidate.runs[0].run.machine, ignoring=ignoring, software=True
    )
    calibration, notes = fitting(calibration, candidate)
    entries = comparable(history, candidate, ignoring)

    def track(limit: Limit) -> Track:
        if limit.absolute or limit.metric in FIXED:
            return track_of_sides(limit, baseline.runs, candidate.runs)
        if found:
            return _unknown(limit, f"the baseline is of another machine or other software: {'; '.join(found)}")
        if limit.metric == ERROR_RATE:
            return track_of_sides(limit, baseline.runs, candidate.runs)
        level = last_level(limit, entries)
        if isinstance(level, Refused):
            return _unknown(limit, _found(limit, baseline, candidate) + _sessions_unknown(level, entries))
        between = Spread(2 * float(level.places.var(ddof=1)), len(level.places) - 1)
        return track_of_sides(limit, baseline.runs, candidate.runs, between)

    sides = Sides(baseline.runs, candidate.runs, cautions(baseline, candidate) + notes + [_source(limits, entries)])
    return judge_saved("absolute", sides, limits, track, calibration)


def _found(limit: Limit, baseline: Measurement, candidate: Measurement) -> str:
    """`it was found at 1.034 times the baseline's, but `; "" where the runs do not tell even that."""
    if limit.q is not None and any(too_few(limit.metric, limit.q, _answers(side)) for side in (baseline, candidate)):
        return ""
    before, after = track_of_sides(limit, baseline.runs, candidate.runs).figures(len(candidate.runs))
    return f"it was found at {after / before:.3f} times the baseline's, but " if before and after else ""


def _answers(side: Measurement) -> int:
    return sum(int(one.samples.ok.sum()) for one in side.runs)


def _sessions_unknown(level: Refused, entries: Sequence[HistoryEntry]) -> str:
    few = f" ({level.reason})" if entries else ""
    return (
        f"how much sessions of the same server differ is not known{few}, and runs or a calibration of one day do not "
        "show it; keep a history (--append reports/history), or measure both in turn"
    )


def _source(limits: Sequence[Limit], entries: Sequence[HistoryEntry]) -> str:
    changes = [limit for limit in limits if not limit.absolute and limit.metric not in (ERROR_RATE, *FIXED)]
    if any(not isinstance(last_level(limit, entries), Refused) for limit in changes):
        return f"sessions of the same server differ as the {len(entries)} comparable entries of the history do"
    return "nothing shows how much sessions of the same server differ"


def _unknown(limit: Limit, reason: str) -> FixedTrack:
    return FixedTrack(limit, Refused(reason), None, None)
