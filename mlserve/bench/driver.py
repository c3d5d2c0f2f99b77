"""A load test from end to end: probe, load, certify, write."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from mlserve.bench.arrivals import schedule
from mlserve.bench.certificate import Facts, certify
from mlserve.bench.counters import read_count
from mlserve.bench.generator_process import drive
from mlserve.bench.job import Finished, Job
from mlserve.bench.payload import Payload, check_batch, data_payload, synthetic_payload
from mlserve.bench.probe import find_model, open_prober
from mlserve.bench.progress import Progress, ProgressMeter
from mlserve.bench.target import Target
from mlserve.errors import BenchError
from mlserve.model.tensors import TensorSpec
from mlserve.runs.machine import read_machine
from mlserve.runs.run import Counts, Plan, Run, ServedModel, ServerSettings, write_run
from mlserve.runs.samples import DROPPED, Samples, read_samples

__all__ = ["Subject", "run_bench", "url_subject"]

# A server counts an answer a moment after it has sent it.
_COUNTED_AFTER_S = 0.1


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is load-tested, and what it is fed.

    `metrics_url` is where the server shows its counters, "" where nobody knows. `server` is how it was set, where it
    is ours. `cpus` are the cores for the generator, empty for any. `data` holds the rows to send (made-up ones if
    None), and `tokenizer` turns them into inputs where they are texts.
    """

    target: Target
    model: ServedModel
    inputs: tuple[TensorSpec, ...]
    metrics_url: str = ""
    server: ServerSettings | None = None
    cpus: tuple[int, ...] = ()
    data: Path | None = None
    tokenizer: Path | None = None


def url_subject(target: Target, data: Path | None = None) -> Subject:
    """The model behind a URL, as its server describes it. Raises BenchError when it cannot."""
    target = find_model(target)
    inputs = open_prober(target).metadata().inputs
    return Subject(
        target=target,
        model=ServedModel(url=target.url, name=target.model, version=target.version),
        inputs=inputs,
        metrics_url=target.url if target.protocol == "rest" else "",
        data=data,
    )


def run_bench(
    subject: Subject, plan: Plan, directory: Path, label: str, on_progress: Callable[[Progress], None]
) -> Run:
    """Loads `subject` by `plan` and leaves the finished run in `directory`, an empty folder.

    Raises UsageError, DataFileError or BenchError before any load when the requests do not fit the model or the server
    does not answer one; BenchError when the generator breaks down. Cut short, the rows so far stay in `directory`
    without a `run.json`.
    """
    payload = _payload(subject, plan)
    version = open_prober(subject.target).infer(payload.bodies[0], payload.headers)
    plan = msgspec.structs.replace(plan, payload=payload.source)
    job = Job(
        plan=plan,
        target=subject.target,
        bodies=payload.bodies,
        headers=payload.headers,
        directory=str(directory.resolve()),
    )
    counted_before = _count(subject)
    meter = ProgressMeter()
    finished = drive(job, subject.cpus, lambda tick: on_progress(meter.add(tick)))
    counted_after = _count(subject)
    samples = read_samples(directory)
    _check_complete(samples, plan, directory)
    facts = Facts(
        generator_cpu=finished.cpu,
        ok=finished.ok,
        failed=finished.failed,
        counted_ok=None if counted_before is None or counted_after is None else counted_after - counted_before,
        device=subject.server.device if subject.server else "",
    )
    run = Run(
        label=label,
        started_at=finished.started_at,
        plan=plan,
        model=msgspec.structs.replace(subject.model, version=subject.model.version or version),
        server=subject.server,
        machine=read_machine(),
        counts=_counts(samples, finished),
        certificate=certify(samples, plan, facts),
    )
    write_run(directory, run)
    return run


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
        generator_cpu=finished.cpu,
    )


def _check_complete(samples: Samples, plan: Plan, directory: Path) -> None:
    """Raises BenchError unless every measured arrival of the schedule has its row."""
    due_ns = schedule(plan.arrivals, plan.rate_per_s, plan.warm_up_s + plan.duration_s, plan.seed)
    expected = int((due_ns >= round(plan.warm_up_s * 1e9)).sum())
    if len(samples) != expected:
        raise BenchError(
            f"the load generator wrote {len(samples)} of {expected} rows; what there is lies in {directory}, "
            "and is no finished run"
        )
