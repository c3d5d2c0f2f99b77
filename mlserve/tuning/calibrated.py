"""How runs that are compared are measured: one by one, or several at once in turns; the generators are calibrated now
and then, and not before every run.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from mlserve.bench.driver import Crew, Decide, run_bench
from mlserve.bench.generator.calibration import calibration_plan
from mlserve.bench.meeting import Meeting, Seat, side_by_side
from mlserve.bench.payload.payload import PayloadWish
from mlserve.bench.progress import Progress
from mlserve.bench.subject import Subject
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan
from mlserve.runs.run import Calibration, Run
from mlserve.tuning.measuring import OnProgress
from mlserve.tuning.opening import SubjectOf

__all__ = ["CalibratedRuns", "Runs", "SideLoad"]

# A calibration takes 460 requests, which may be as long as the run that it is for.
_HOLDS_S = 300.0


class SideLoad(msgspec.Struct, frozen=True, kw_only=True):
    """One of the runs that are made at once: what is open, its plan, an empty folder, and what it is called."""

    subject_of: SubjectOf
    plan: Plan
    folder: Path
    label: str


class Runs(Protocol):
    """Makes runs that are compared."""

    def one(
        self,
        subject_of: SubjectOf,
        plan: Plan,
        folder: Path,
        label: str,
        on_progress: OnProgress,
        decide: Decide | None,
    ) -> Run:
        """A `Measure`: one run by itself."""
        ...

    def at_once(
        self, loads: Sequence[SideLoad], slot_s: float, on_progress: OnProgress
    ) -> Sequence[BaseException | None]:
        """Several, of which each begins `slot_s` after the one before: what went wrong with each."""
        ...

    def forget(self) -> None:
        """The next run calibrates its generators itself."""
        ...


class CalibratedRuns:
    """Real runs: what the generators cost by themselves in a VALID run holds for five minutes of runs with the same
    requests at the same rate, whatever their seed, their length and the server's setting; until one is not VALID.

    Machine, generators and requests are the same in them. Where a shape leaves more open than the rows, requests and
    answers may differ in size, and it holds for runs of the same label only. What disturbs one run is seen by the
    checks that it has of its own: generator on time, other work.
    """

    def __init__(self, bench: Callable[..., Run] = run_bench, now_s: Callable[[], float] = time.monotonic) -> None:
        self._bench, self._now_s = bench, now_s
        self._known: dict[_Load, tuple[float, Calibration]] = {}

    def one(
        self,
        subject_of: SubjectOf,
        plan: Plan,
        folder: Path,
        label: str,
        on_progress: OnProgress,
        decide: Decide | None,
    ) -> Run:
        asked = SideLoad(subject_of=subject_of, plan=plan, folder=folder, label=label)
        return self._run(asked, on_progress, decide, None)

    def at_once(
        self, loads: Sequence[SideLoad], slot_s: float, on_progress: OnProgress
    ) -> Sequence[BaseException | None]:
        """See Runs. Progress is that of the last."""

        def run(seat: Seat) -> None:
            tell = on_progress if seat.number == len(loads) - 1 else _tell_nobody
            self._run(loads[seat.number], tell, None, seat)

        return side_by_side(Meeting(slot_s, len(loads)), run)

    def forget(self) -> None:
        """See Runs."""
        self._known.clear()

    def _run(self, asked: SideLoad, on_progress: OnProgress, decide: Decide | None, seat: Seat | None) -> Run:
        subject = asked.subject_of(asked.plan.protocol)
        load = _load_of(subject, asked.plan, asked.label)
        made_s, known = self._known.get(load, (float("-inf"), None))
        calibration = known if self._now_s() - made_s < _HOLDS_S else None
        crew = Crew(calibration=calibration, seat=seat)
        run = self._bench(subject, asked.plan, asked.folder, asked.label, on_progress, decide, crew)
        if not run.certificate.valid:
            self._known.pop(load, None)
        elif calibration is None and run.calibration is not None:
            self._known[load] = self._now_s(), run.calibration
        return run


class _Load(NamedTuple):
    """What a calibration is of: how requests are sent, what they hold, who sends and who answers from which cores.

    `label` is that of the run where sizes are open, by which tokenizers and models differ, "" where they are not.
    """

    sent: Plan
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    wish: PayloadWish
    trace_sha256: str
    cores: tuple[tuple[int, ...], tuple[int, ...], bool]
    label: str


def _load_of(subject: Subject, plan: Plan, label: str) -> _Load:
    wish, server = subject.wish, subject.server
    return _Load(
        sent=msgspec.structs.replace(calibration_plan(plan, plan.generators), seed=0),
        inputs=subject.inputs,
        outputs=subject.outputs,
        wish=msgspec.structs.replace(wish, tokenizer=None, trace=None),
        trace_sha256=wish.trace.sha256 if wish.trace else "",
        cores=(subject.cpus, server.cpus if server else (), bool(subject.pids)),
        label=label if any(map(_is_open, (*subject.inputs, *subject.outputs))) or not subject.outputs else "",
    )


def _is_open(spec: TensorSpec) -> bool:
    """Whether more than the rows of it may differ from request to request."""
    return any(isinstance(dimension, str) for dimension in spec.shape[1:]) or spec.dtype == "string"


def _tell_nobody(_: Progress) -> None:
    """Of runs at once, one is followed."""
