"""How long what the generators cost by themselves holds. The bench is a formula that says what it was told."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mlserve.bench.load.trace import Trace
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.subject import Subject
from mlserve.bench.target import parse_target
from mlserve.model.tensors import TensorSpec
from mlserve.runs.run import Calibration, Certificate, ServedModel
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
def runs(bench, clock):
    return CalibratedRuns(bench, lambda: clock.now_s)


@pytest.fixture
def measured(runs, clock, tmp_path, made_runs):
    """Measures a run of a model, under a load of `rate_per_s`, at a time."""

    def measure(at_s=0.0, subject=None, label="a", **plan):
        clock.now_s = at_s
        asked = made_runs.make_plan(**{"rate_per_s": 50.0} | plan)
        return runs.one(lambda _: subject or subject_of(), asked, tmp_path, label, lambda _: None, None)

    return measure


TRACE = Trace(
    source="log",
    sha256="12",
    arrivals_ns=np.arange(3),
    kinds=(),
    kind_of=np.zeros(3, int),
    bodies=(),
    body_of=np.full(3, -1),
)


def subject_of(version="1", wide=30, answer=2, cpus=(), pids=(), **wish):
    return Subject(
        target=parse_target("http://127.0.0.1:8080", "tiny"),
        model=ServedModel(url="http://127.0.0.1:8080", name="tiny", version=version),
        inputs=(TensorSpec("x", "float32", ("batch", wide)),),
        outputs=(TensorSpec("scores", "float32", ("batch", answer)),),
        wish=PayloadWish(**wish),
        cpus=cpus,
        pids=pids,
    )


OPEN_ANSWER, OPEN_REQUEST, UNKNOWN_ANSWER = (
    subject_of(answer="classes"),
    subject_of(wide="tokens"),
    msgspec.structs.replace(subject_of(), outputs=()),
)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"duration_s": 77.0},
        {"label": "b"},
        {"subject": subject_of(version="2")},
        {"subject": subject_of(tokenizer=Path("another/tokenizer.json"))},
    ],
)
def test_requests_are_calibrated_once_whatever_the_seed_the_length_and_the_version(bench, measured, other):
    first, second = measured(), measured(**other)
    assert bench.told == [None, first.calibration]
    assert second.calibration == first.calibration


@pytest.mark.parametrize(
    "other",
    [
        {"rate_per_s": 60.0},
        {"protocol": "grpc"},
        {"batch_rows": 4},
        {"at_s": 301.0},
        {"subject": subject_of(wide=31)},
        {"subject": subject_of(timed="all")},
        {"subject": subject_of(trace=TRACE)},
        {"subject": subject_of(cpus=(1,))},
        {"subject": subject_of(pids=(12,))},
    ],
)
def test_other_requests_and_a_later_time_are_calibrated_anew(bench, measured, other):
    measured()
    measured(**other)
    measured(**other)
    assert bench.told[:2] == [None, None]
    assert bench.told[2] is not None


@pytest.mark.parametrize("subject", [OPEN_ANSWER, OPEN_REQUEST, UNKNOWN_ANSWER])
def test_where_sizes_are_open_each_label_is_calibrated_by_itself(bench, measured, subject):
    measured(subject=subject)
    measured(subject=subject, label="b")
    measured(subject=subject, label="b")
    assert [one is None for one in bench.told] == [True, True, False]


def test_what_was_found_can_be_forgotten(bench, measured, runs):
    measured()
    runs.forget()
    measured()
    assert bench.told == [None, None]


def test_what_an_invalid_run_found_is_not_believed(bench, measured, made_runs):
    bench.faults = (made_runs.LATE,)
    measured()
    bench.faults = ()
    measured()
    measured()
    assert [one is None for one in bench.told] == [True, True, False]


def test_what_an_invalid_run_was_told_is_believed_no_more(bench, measured, made_runs):
    measured()
    bench.faults = (made_runs.LATE,)
    measured()
    bench.faults = ()
    measured()
    assert [one is None for one in bench.told] == [True, False, True]
