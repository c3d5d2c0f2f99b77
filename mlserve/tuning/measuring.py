"""One run of many: how it is measured, and how it is read again."""

from collections.abc import Callable
from pathlib import Path

from mlserve.bench.driver import Decide, run_bench
from mlserve.bench.progress import Progress
from mlserve.report.measurement import Recorded, read_runs
from mlserve.runs.load import Plan
from mlserve.runs.run import Run
from mlserve.tuning.opening import SubjectOf

__all__ = ["Measure", "OnProgress", "measure_run", "read_recorded"]

OnProgress = Callable[[Progress], None]

Measure = Callable[[SubjectOf, Plan, Path, str, OnProgress, Decide | None], Run]
"""(what is open, plan, empty folder, label, progress, when to stop) -> the finished run in the folder."""


def measure_run(
    subject_of: SubjectOf, plan: Plan, folder: Path, label: str, on_progress: OnProgress, decide: Decide | None
) -> Run:
    """A real run."""
    return run_bench(subject_of(plan.protocol), plan, folder, label, on_progress, decide)


def read_recorded(folder: Path) -> Recorded:
    """The finished run in `folder`. Raises RunFileError."""
    return read_runs([folder])[0]
