"""Gates of a server against itself: how often this machine raises a false alarm."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mlserve.report.gating.calibration import Calibrated
from mlserve.report.gating.result import GateResult
from mlserve.report.measurement import group, read_runs
from mlserve.tuning.gating.asked import LiveGate

__all__ = ["calibrated_of", "gate_against_itself"]

# No two gates share a schedule.
_SEEDS_A_GATE = 10_000_000


def gate_against_itself(
    asked: LiveGate, times: int, directory: Path, run: Callable[[LiveGate, Path], GateResult]
) -> list[GateResult]:
    """The results of `times` gates of `asked`, whose two sides are the same; `run` runs one into a folder."""
    return [
        run(
            msgspec.structs.replace(
                asked, plan=msgspec.structs.replace(asked.plan, seed=asked.plan.seed + number * _SEEDS_A_GATE)
            ),
            directory / f"gate-{number:02}",
        )
        for number in range(1, times + 1)
    ]


def calibrated_of(asked: LiveGate, gates: Sequence[GateResult]) -> Calibrated | None:
    """What `gates` of `asked` were of, by their runs; None where they made none.

    Raises RunFileError where a run cannot be read.
    """
    runs = [Path(run) for gate in gates[:1] for run in gate.candidate_runs[:1]]
    return next(
        (
            Calibrated(
                model=one.model.name,
                conditions=one.conditions,
                # Not that of `asked`: runs that take turns are longer.
                duration_s=one.runs[0].run.plan.duration_s,
                limits=asked.limits,
                # A server that runs already was held against itself, one process, which shows nothing of others.
                kept=asked.keep_servers and asked.base.options is not None,
            )
            for one in group(read_runs(runs))
        ),
        None,
    )
