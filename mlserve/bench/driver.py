"""A load test from end to end: probe, load, certify, write."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from mlserve.bench.certificate.certificate import Facts, certify
from mlserve.bench.cores import own_cores, split_cores
from mlserve.bench.counters import read_count
from mlserve.bench.course import ByPlan, Course, Decide
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.generator.job import Address, Finished, Job
from mlserve.bench.generator.process import Leader, Page, drive
from mlserve.bench.load.schedule import schedule
from mlserve.bench.measuring.stopping import measured_part
from mlserve.bench.measuring.warm_up import WarmUp
from mlserve.bench.meeting import Seat
from mlserve.bench.null_server.opening import open_null_server
from mlserve.bench.payload.answered_rows import check_answered_rows
from mlserve.bench.payload.expected import ask_expected, encode_expected
from mlserve.bench.payload.payload import Payload, make_payload
from mlserve.bench.probe import ask_once
from mlserve.bench.progress import Progress
from mlserve.bench.sealing import sealed
from mlserve.bench.subject import Subject, url_subject
from mlserve.bench.watching.watch import THIS_MACHINE, Sources, watching
from mlserve.errors import BenchError
from mlserve.runs.load import Plan
from mlserve.runs.machine import Machine, read_machine
from mlserve.runs.resources import Resources
from mlserve.runs.run import Calibration, Counts, Run, write_run
from mlserve.runs.samples import DROPPED, Samples, read_samples
from mlserve.runs.window import Window

__all__ = ["Crew", "Decide", "Subject", "run_bench", "url_subject"]

# What answers in these looks like is known: anything else comes from a server of another kind.
_SELF_DESCRIBING = ("rest", "rest-binary", "grpc")
# A server counts an answer a moment after it has sent it.
_COUNTED_AFTER_S = 0.1


class Crew(msgspec.Struct, frozen=True, kw_only=True):
    """Where generators come from beside this machine, the page that shows them, what they cost by themselves where a
    run like this one has shown it, so that they are not calibrated again, and where this run takes turns with another;
    None for none of it. Only a generator that is alone takes turns.
    """

    leader: Leader | None = None
    page: Page | None = None
    calibration: Calibration | None = None
    seat: Seat | None = None


def run_bench(
    subject: Subject,
    plan: Plan,
    directory: Path,
    label: str,
    on_progress: Callable[[Progress], None],
    decide: Decide | None = None,
    crew: Crew = Crew(),  # noqa: B008  # a frozen value
    sources: Sources = THIS_MACHINE,
) -> Run:
    """Loads `subject` by `plan` and leaves the finished run in `directory`, an empty folder.

    `decide` is asked about twice a second whether the run should end; without it the plan says when enough was seen.
    `sources` is where the use of the machine, and its clocks, are read.
    Raises UsageError, DataFileError or BenchError before any load when the requests do not fit the model or the server
    does not answer one; BenchError when the generator breaks down. Cut short, the rows so far stay in `directory`
    without a `run.json`.
    """
    if subject.server is None and subject.pids:  # a server on this machine, which nobody holds to any cores
        subject = msgspec.structs.replace(subject, cpus=split_cores(own_cores(), plan.generators)[1])
    asked = _ask_first(subject, plan)
    plan = msgspec.structs.replace(plan, payload=asked.payload.source)
    lock = sealed(subject.lock, plan, asked.payload, subject.wish)
    with (
        _null_server(subject, asked, crew) as null_server,
        watching(subject.pids, subject.cpus, sources) as watch,
    ):
        by_plan = ByPlan(plan) if decide is None and plan.open_ended else None
        course = Course(directory, watch, on_progress, decide or by_plan, crew.seat)
        course.calibration = crew.calibration
        counted_before = _count(subject)
        job = _job(subject, plan, asked, directory, null_server, waits=crew.seat is not None)
        finished = drive(job, subject.cpus, course.heed, crew.leader, crew.page)
        counted_after = _count(subject)
    whole = read_samples(directory, Window(0.0, finished.end_s))
    warm_up, window = measured_part(whole, plan, finished.end_s)
    samples = read_samples(directory, window)
    _check_complete(samples, job, window)
    watch.write(directory, course.first_s)
    resources = watch.resources(course.first_s + window.start_s, course.first_s + window.end_s)
    machine, counted = read_machine(), (counted_before, counted_after)
    facts = _facts(subject, finished, course, resources, machine, warm_up if plan.endless else None, counted)
    run = Run(
        label=label,
        started_at=course.started_at,
        plan=plan,
        window=window,
        model=msgspec.structs.replace(subject.model, version=subject.model.version or asked.version),
        server=subject.server,
        machine=machine,
        counts=_counts(samples, finished),
        calibration=course.calibration,
        resources=resources,
        ended=by_plan.reason if by_plan else "",
        start_up_s=subject.start_up_s,
        lock=lock,
        certificate=certify(samples, plan, window, facts),
    )
    write_run(directory, run)
    return run


class _Asked(NamedTuple):
    """The requests, and what the server answered to the first of them before any load."""

    payload: Payload
    answer: bytes
    version: str


def _ask_first(subject: Subject, plan: Plan) -> _Asked:
    """Makes the requests, and shows that the server answers them; the reference answers, where answers are checked."""
    if plan.locustfile:
        return _Asked(Payload(requests=(), order=(), source=f"locustfile {Path(plan.locustfile).name}"), b"", "")
    payload = make_payload(subject.target, subject.inputs, plan, subject.wish)
    answer = ask_once(subject.target, payload.requests[0])
    dialect = find_dialect(plan.protocol, subject.target.answer)
    if plan.protocol in _SELF_DESCRIBING:
        check_answered_rows(subject.target, payload.requests, answer, subject.inputs, subject.outputs)
    if plan.check_answers and not payload.expected:
        payload = msgspec.structs.replace(payload, expected=ask_expected(subject.target, payload, subject.outputs))
    return _Asked(payload, answer, dialect.version(answer))


@contextmanager
def _null_server(subject: Subject, asked: _Asked, crew: Crew) -> Iterator[Address | None]:
    """What to calibrate against, on the server's cores, which are idle meanwhile; None where that was done, and where
    generators join from other machines, which could not reach it.
    """
    joining = crew.leader is not None and crew.leader.members
    if not asked.payload.requests or joining or crew.calibration is not None:
        yield None
        return
    cpus = subject.server.cpus if subject.server else ()
    with open_null_server(_address(subject), asked.answer, cpus) as null_server:
        yield null_server


def _address(subject: Subject) -> Address:
    target, dialect = subject.target, find_dialect(subject.target.protocol)
    return Address(dialect.transport, target.host, target.port, dialect.path(target), target.trust)


def _job(
    subject: Subject, plan: Plan, asked: _Asked, directory: Path, null_server: Address | None, *, waits: bool
) -> Job:
    payload, trace = asked.payload, subject.wish.trace
    return Job(
        plan=plan,
        name=subject.target.title,
        address=_address(subject),
        requests=payload.requests,
        order=payload.order,
        directory=str(directory.resolve()),
        trace_ns=trace.arrivals_ns.tobytes() if trace is not None else b"",
        expected=tuple(map(encode_expected, payload.expected)) if plan.check_answers else (),
        outputs=subject.outputs,
        answer=subject.target.answer,
        null_server=null_server,
        locustfile=plan.locustfile,
        waits=waits,
    )


def _count(subject: Subject) -> int | None:
    if not subject.metrics_url:
        return None
    time.sleep(_COUNTED_AFTER_S)
    return read_count(subject.metrics_url, subject.target)


def _facts(
    subject: Subject,
    finished: Finished,
    course: Course,
    resources: Resources,
    machine: Machine,
    warm_up: WarmUp | None,
    counted: Sequence[int | None],
) -> Facts:
    before, after = counted
    model, server = subject.model, subject.server
    return Facts(
        generator_cpus=finished.cpus,
        ok=finished.ok,
        failed=finished.failed,
        counted_ok=None if before is None or after is None else after - before,
        device=server.device if server else "",
        provider=model.provider,
        precision=model.precision,
        variant=model.variant,
        compute_type=subject.compute_type,
        sha256=model.sha256,
        warm_up=warm_up,
        server_cpus=server.cpus if server else (),
        generator_cores=subject.cpus,
        calibration=course.calibration,
        resources=resources,
        machine=machine,
    )


def _counts(samples: Samples, finished: Finished) -> Counts:
    ok, dropped = int(samples.ok.sum()), int((samples.status == DROPPED).sum())
    return Counts(
        scheduled=len(samples),
        ok=ok,
        failed=len(samples) - ok - dropped,
        dropped=dropped,
        generator_cpu=max(finished.cpus),
    )


def _check_complete(samples: Samples, job: Job, window: Window) -> None:
    """Raises BenchError unless every measured arrival of the schedule has its row."""
    if job.plan.closed:  # no schedule says how many there are
        return
    due_s = schedule(job.plan, job.trace_ns) / 1e9
    due_s = due_s[(due_s >= window.start_s) & (due_s < window.end_s)]
    found_s = samples.scheduled_s
    if job.plan.locustfile:  # a task may have made several requests, of which the first has the arrival's instant
        found_s = found_s[np.isin(found_s, due_s)]
        complete = len(np.setdiff1d(due_s, found_s)) == 0
    else:
        complete = len(found_s) == len(due_s)
    if not complete:
        raise BenchError(
            f"the load generator wrote {len(found_s)} of {len(due_s)} rows; what there is lies in {job.directory}, "
            "and is no finished run"
        )
