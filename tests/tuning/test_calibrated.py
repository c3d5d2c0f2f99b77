"""How long what the generators cost by themselves holds. The bench is a formula that says what it was told."""

import msgspec
import pytest

from mlserve.runs.run import Calibration, Certificate
from mlserve.tuning.calibrated import CalibratedRuns


class Bench:
    """Keeps what calibration each run was told of, and makes one where it was told of none."""

    def __init__(self, usual):
        self._usual = usual
        self.told = []
        self.faults = ()

    def __call__(self, subject, plan, directory, label, on_progress, decide, crew):
        self.told.append(crew.calibration)
        made = crew.calibration or Calibration(
            requests=460, p50_s=0.001, p99_s=0.002, lag_p99_s=0.001, achieved_per_s=float(len(self.told))
        )
        certificate = Certificate(checks=self.faults)
        return msgspec.structs.replace(self._usual, calibration=made, certificate=certificate)


@pytest.fixture
def bench(made_runs):
    return Bench(made_runs.record(made_runs.Load()).run)


@pytest.fixture
def measured(bench, clock, tmp_path, made_runs):
    """Measures a run of a side, under a load of `rate_per_s`, at a time."""
    runs = CalibratedRuns(bench, lambda: clock.now_s)

    def measure(side="a", seed=0, rate_per_s=50.0, at_s=0.0):
        clock.now_s = at_s
        plan = made_runs.make_plan(rate_per_s=rate_per_s, seed=seed)
        return runs.one(lambda _: None, plan, tmp_path, side, lambda _: None, None)

    return measure


def test_a_side_is_calibrated_once_whatever_the_seed(bench, measured):
    first, second = measured(seed=1), measured(seed=2)
    assert bench.told == [None, first.calibration]
    assert second.calibration == first.calibration


@pytest.mark.parametrize("other", [{"side": "b"}, {"rate_per_s": 60.0}, {"at_s": 301.0}])
def test_another_side_another_load_and_a_later_time_are_calibrated_anew(bench, measured, other):
    measured()
    measured(**other)
    measured(**other)
    assert bench.told[:2] == [None, None]
    assert bench.told[2] is not None


def test_what_an_invalid_run_found_is_not_believed(bench, measured, made_runs):
    bench.faults = (made_runs.LATE,)
    measured()
    bench.faults = ()
    measured()
    measured()
    assert [one is None for one in bench.told] == [True, True, False]
