"""A load test from end to end: probe, load, certify, write."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlserve.bench.certificate.certificate import Facts, certify
from mlserve.bench.counters import read_count
from mlserve.bench.dialects.find import find_dialect
from mlserve.bench.generator.job import Address, Calibrated, Command, Finished, Job, Message, Started, Stop, Tick
from mlserve.bench.generator.process import drive
from mlserve.bench.load.schedule import schedule
from mlserve.bench.payload.payload import Payload, check_batch, data_payload, synthetic_payload
from mlserve.bench.probe import ask_once, describe_model, find_model
from mlserve.bench.progress import Progress, ProgressMeter
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan
from mlserve.runs.machine import read_machine
from mlserve.runs.run import Calibration, Counts, Run, ServedModel, ServerSettings, write_run
from mlserve.runs.samples import DROPPED, Samples, read_samples
from mlserve.runs.window import Window

__all__ = ["Decide", "Subject", "run_bench", "url_subject"]

Decide = Callable[[Samples, float], Stop | None]
"""(all rows so far, warm-up included; seconds since the run's first instant) -> when to stop, None to go on."""

# A server counts an answer a moment after it has sent it.
_COUNTED_AFTER_S = 0.1
_DECIDE_EVERY_S = 0.5
# Deciding reads all rows: of a long run it is done more seldom, so that it stays a small part of a core.
_DECIDE_SHARE = 0.1


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is load-tested, and what it is fed.

    `metrics_url` is where the server shows its counters, "" where nobody knows. `server` is how it was set, where it
    is ours. `cpus` are the cores for the generator, empty for any. `data` holds the rows to send (made-up ones if
    None), and `tokenizer` turns them into inputs where they are texts. `pids` are the server's processes, where they
    are on this machine.
    """

    target: Target
    model: ServedModel
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()
    metrics_url: str = ""
    server: ServerSettings | None = None
    cpus: tuple[int, ...] = ()
    pids: tuple[int, ...] = ()
    data: Path | None = None
    tokenizer: Path | None = None


def url_subject(target: Target, data: Path | None = None) -> Subject:
    """The model behind a URL, as its server describes it. Raises BenchError when it cannot."""
    target = find_model(target)
    found = describe_model(target)
    return Subject(
        target=target,
        model=ServedModel(
            url=target.url,
            name=target.model,
            version=target.version,
            provider=found.provider,
            precision=found.precision,
        ),
        inputs=found.inputs,
        outputs=found.outputs,
        metrics_url=target.url if target.url.startswith("http://") else "",
        data=data,
    )


def run_bench(
    subject: Subject,
    plan: Plan,
    directory: Path,
    label: str,
    on_progress: Callable[[Progress], None],
    decide: Decide | None = None,
) -> Run:
    """Loads `subject` by `plan` and leaves the finished run in `directory`, an empty folder.

    `decide` is asked about twice a second whether the run should end before its time. Raises UsageError, DataFileError
    or BenchError before any load when the requests do not fit the model or the server does not answer one; BenchError
    when the generator breaks down. Cut short, the rows so far stay in `directory` without a `run.json`.
    """
    payload = _payload(subject, plan)
    dialect = find_dialect(plan.protocol)
    version = dialect.version(ask_once(subject.target, payload.requests[0]))
    plan = msgspec.structs.replace(plan, payload=payload.source)
    counted_before = _count(subject)
    course = _Course(directory, on_progress, decide)
    finished = drive(_job(subject, plan, payload, directory), subject.cpus, course.heed)
    counted_after = _count(subject)
    window = Window(plan.warm_up_s, finished.end_s)
    samples = read_samples(directory, window)
    _check_complete(samples, plan, window, directory)
    facts = Facts(
        generator_cpus=finished.cpus,
        ok=finished.ok,
        failed=finished.failed,
        counted_ok=None if counted_before is None or counted_after is None else counted_after - counted_before,
        device=subject.server.device if subject.server else "",
    )
    run = Run(
        label=label,
        started_at=course.started_at,
        plan=plan,
        window=window,
        model=msgspec.structs.replace(subject.model, version=subject.model.version or version),
        server=subject.server,
        machine=read_machine(),
        counts=_counts(samples, finished),
        calibration=course.calibration,
        certificate=certify(samples, plan, window, facts),
    )
    write_run(directory, run)
    return run


class _Course:
    """What the generators have told of a run so far."""

    def __init__(self, directory: Path, on_progress: Callable[[Progress], None], decide: Decide | None) -> None:
        self._directory, self._on_progress, self._decide = directory, on_progress, decide
        self._meter = ProgressMeter()
        self._next_decision_s = _DECIDE_EVERY_S
        self.started_at = ""
        self.calibration: Calibration | None = None

    def heed(self, message: Message, command: Callable[[Command], None]) -> None:
        match message:
            case Started():
                self.started_at = message.started_at
            case Calibrated():
                self.calibration = message.calibration
            case Tick():
                self._on_progress(self._meter.add(message))
                if self._decide is not None and message.elapsed_s >= self._next_decision_s:
                    self._ask(self._decide, message.elapsed_s, command)
            case Finished():
                pass

    def _ask(self, decide: Decide, elapsed_s: float, command: Callable[[Command], None]) -> None:
        asked_s = time.monotonic()
        stop = decide(read_samples(self._directory), elapsed_s)
        took_s = time.monotonic() - asked_s
        self._next_decision_s = elapsed_s + max(_DECIDE_EVERY_S, took_s / _DECIDE_SHARE)
        if stop is not None:
            self._decide = None
            command(stop)


def _job(subject: Subject, plan: Plan, payload: Payload, directory: Path) -> Job:
    target, dialect = subject.target, find_dialect(plan.protocol)
    return Job(
        plan=plan,
        name=target.model,
        address=Address(dialect.transport, target.host, target.port, dialect.path(target)),
        requests=payload.requests,
        order=payload.order,
        directory=str(directory.resolve()),
    )


def _payload(subject: Subject, plan: Plan) -> Payload:
    check_batch(plan.batch_rows, subject.inputs, subject.target.model)
    if subject.data is None:
        return synthetic_payload(subject.target, subject.inputs, plan.batch_rows, plan.seed)
    return data_payload(subject.target, subject.inputs, plan.batch_rows, subject.data, subject.tokenizer)


def _count(subject: Subject) -> int | None:
    if not subject.metrics_url:
        return None
    time.sleep(_COUNTED_AFTER_S)
    return read_count(subject.metrics_url, subject.target)


def _counts(samples: Samples, finished: Finished) -> Counts:
    ok, dropped = int(samples.ok.sum()), int((samples.status == DROPPED).sum())
    return Counts(
        scheduled=len(samples),
        ok=ok,
        failed=len(samples) - ok - dropped,
        dropped=dropped,
        generator_cpu=max(finished.cpus),
    )


def _check_complete(samples: Samples, plan: Plan, window: Window, directory: Path) -> None:
    """Raises BenchError unless every measured arrival of the schedule has its row."""
    due_s = schedule(plan) / 1e9
    expected = int(((due_s >= window.start_s) & (due_s < window.end_s)).sum())
    if len(samples) != expected:
        raise BenchError(
            f"the load generator wrote {len(samples)} of {expected} rows; what there is lies in {directory}, "
            "and is no finished run"
        )
