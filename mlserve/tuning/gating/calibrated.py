"""How the runs of a gate are measured: the generators are calibrated now and then, and not before every run."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlserve.bench.driver import Crew, Decide, run_bench
from mlserve.runs.load import Plan
from mlserve.runs.run import Calibration, Run
from mlserve.tuning.measuring import OnProgress
from mlserve.tuning.opening import SubjectOf

__all__ = ["CalibratedRuns"]

# A calibration takes 460 requests, which may be as long as the run that it is for.
_HOLDS_S = 300.0


class CalibratedRuns:
    """A `Measure`: what the generators cost by themselves in a VALID run holds for five minutes of runs of the same
    side under the same load, whatever their seed.

    Machine, generators and requests are the same in them. What disturbs one of them is seen by the checks that it has
    of its own: generator on time, other work.
    """

    def __init__(self, bench: Callable[..., Run] = run_bench, now_s: Callable[[], float] = time.monotonic) -> None:
        self._bench, self._now_s = bench, now_s
        self._known: dict[tuple[str, Plan], tuple[float, Calibration]] = {}

    def __call__(
        self,
        subject_of: SubjectOf,
        plan: Plan,
        folder: Path,
        label: str,
        on_progress: OnProgress,
        decide: Decide | None,
    ) -> Run:
        load = label, msgspec.structs.replace(plan, seed=0)
        made_s, known = self._known.get(load, (float("-inf"), None))
        calibration = known if self._now_s() - made_s < _HOLDS_S else None
        crew = Crew(calibration=calibration)
        run = self._bench(subject_of(plan.protocol), plan, folder, label, on_progress, decide, crew)
        if calibration is None and run.calibration is not None and run.certificate.valid:
            self._known[load] = self._now_s(), run.calibration
        return run
