"""A candidate against runs of another session, such as a committed report. Pure.

Within one session, runs taken in turn share what the machine does; between two sessions they do not, and no number of
runs of either shows by how much sessions differ. So that is taken from elsewhere, or nothing is said of a change.
"""

from collections.abc import Collection, Sequence

from mlserve.report.gating.calibration import GateCalibration
from mlserve.report.gating.decision import Sides, fitting, judge_saved
from mlserve.report.gating.estimate import CERTAIN, Spread, plus
from mlserve.report.gating.evidence import Refused
from mlserve.report.gating.fingerprint import fingerprint_differences
from mlserve.report.gating.history import HistoryEntry, comparable, last_level
from mlserve.report.gating.likeness import cautions, unlike_loads
from mlserve.report.gating.limits import ERROR_RATE, FIXED, Limit
from mlserve.report.gating.result import GateResult
from mlserve.report.gating.tracks import FixedTrack, Track, track_of_sides
from mlserve.report.measurement import Measurement

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
    what differs is named. How much sessions differ is taken from the last level of `history`, else from what single
    pairs of runs differed by in the `calibration`, which is the least it can be. Raises UsageError for unlike loads.
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
        between = _between(limit, entries, calibration)
        if limit.metric != ERROR_RATE and between is None:
            return _unknown(
                limit,
                "how much sessions of the same server differ is not known; keep a history of them, "
                "calibrate with mlserve gate --calibrate, or measure both in turn",
            )
        return track_of_sides(limit, baseline.runs, candidate.runs, between or CERTAIN)

    sides = Sides(
        baseline.runs, candidate.runs, cautions(baseline, candidate) + notes + [_source(entries, calibration)]
    )
    return judge_saved("absolute", sides, limits, track, calibration)


def _between(limit: Limit, entries: Sequence[HistoryEntry], calibration: GateCalibration | None) -> Spread | None:
    """What two sessions of the same server differ by."""
    level = last_level(limit, entries)
    if not isinstance(level, Refused):
        variance = float(level.places.var(ddof=1))
        return Spread(2 * variance, len(level.places) - 1)
    one_pair = calibration.one_pair(limit.metric) if calibration else None
    return plus(one_pair, calibration.between(limit.metric)) if calibration and one_pair else None


def _source(entries: Sequence[HistoryEntry], calibration: GateCalibration | None) -> str:
    if entries:
        return f"sessions of the same server differ as the {len(entries)} comparable entries of the history do"
    if calibration:
        return "sessions are taken to differ as single pairs of runs did in the calibration; they may differ by more"
    return "nothing shows how much sessions of the same server differ"


def _unknown(limit: Limit, reason: str) -> FixedTrack:
    return FixedTrack(limit, Refused(reason), None, None)
