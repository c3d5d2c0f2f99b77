"""The loop of `mlserve diagnose`: find the model, measure it and the machine, say what follows."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import msgspec

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_providers import loadable_providers
from mlserve.errors import EngineError, InvalidRequest, UsageError
from mlserve.model.rows import Rows, SyntheticRows, read_rows
from mlserve.model.store import Store
from mlserve.model.tensors import Tensors
from mlserve.optimize.diagnose.facts import Comparison, Conditions, Facts, Peaks, Subject, ThreadTiming, Timing
from mlserve.optimize.diagnose.finding import Finding
from mlserve.optimize.diagnose.findings import find
from mlserve.optimize.diagnose.peaks import measure_peaks
from mlserve.optimize.diagnose.profile import take_profiles
from mlserve.optimize.diagnose.roofline import OperatorTime, by_operator
from mlserve.optimize.diagnose.subject import Model, find_model, find_reference
from mlserve.optimize.diagnose.timing import affordable, measure_timings, thread_counts, time_threads
from mlserve.runs.machine import Machine, read_machine

__all__ = ["Diagnosis", "OperatorTable", "Question", "diagnose"]

OnStep = Callable[[str], None]

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
_CUDA = "CUDAExecutionProvider"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Which model, under which conditions. `against` is empty for its parent, `data` None for made-up rows."""

    ref: str
    store: Path
    device: str = "cpu"
    threads: int = 1
    batch_rows: tuple[int, ...] = (1, 32)
    data: Path | None = None
    against: str = ""


class OperatorTable(msgspec.Struct, frozen=True):
    """The time of one run of `batch_rows` rows by operator, the most first."""

    batch_rows: int
    operators: tuple[OperatorTime, ...]


class Diagnosis(msgspec.Struct, frozen=True):
    """The answer: what was measured, the same by operator, and what follows from it."""

    facts: Facts
    operators: tuple[OperatorTable, ...]
    findings: tuple[Finding, ...]


def diagnose(question: Question, on_step: OnStep) -> Diagnosis:
    """Measures the model and says why it is (not) fast; about ten seconds for a model of milliseconds.

    Raises StoreError, ModelFileError, DataFileError or UsageError for what cannot be found or read, and EngineError
    when the model does not load or run, or its engine has no profiler.
    """
    if not _DEVICE.fullmatch(question.device):
        raise UsageError(f"--device {question.device!r} is no device; use cpu, cuda or cuda:N")
    store = Store(question.store)
    on_step("looking for the model")
    model = find_model(question.ref, store)
    reference = find_reference(model, question.against, store)
    batches, source = _batches(model, question)
    facts = _measure(model, reference, question, batches, source, on_step)
    tables = tuple(OperatorTable(each.batch_rows, by_operator(each, facts.peaks)) for each in facts.profiles)
    return Diagnosis(facts, tables, find(facts))


def _measure(
    model: Model,
    reference: Model | None,
    question: Question,
    batches: dict[int, Tensors],
    source: str,
    on_step: OnStep,
) -> Facts:
    machine = read_machine()
    conditions = _conditions(model, question, machine, source)
    settings = EngineSettings(device=conditions.device, threads=question.threads)
    on_step("timing, cold and warm" + (f", in turn with {reference.ref}" if reference else ""))
    open_s, timings = _timings(model, reference, settings, batches, made_up=question.data is None)
    on_step("profiling every operator")
    profiles, structure = take_profiles(model, settings, batches)
    peaks: Peaks | None = None
    threads: tuple[ThreadTiming, ...] = ()
    if conditions.device == "cpu":
        on_step("measuring this machine's peaks")
        peaks = measure_peaks(question.threads, machine.memory_bytes)
        counts = thread_counts(machine.cores, question.threads)
        if affordable(model, counts, open_s, machine.memory_bytes):
            on_step(f"timing with {', '.join(map(str, counts))} threads")
            threads = time_threads(model, counts, batches[max(batches)])
    return Facts(
        subject=_subject(model, reference, question),
        machine=machine,
        conditions=conditions,
        open_s=open_s,
        timings=timings,
        profiles=profiles,
        peaks=peaks,
        threads=threads,
        structure=structure,
        against=Comparison(reference.ref, reference.variant) if reference else None,
    )


def _batches(model: Model, question: Question) -> tuple[dict[int, Tensors], str]:
    """The inputs of each batch size asked for, and where their values are from.

    A model with a fixed number of rows is run with that, and no batch is larger than the data.
    """
    sizes = (model.fixed_rows,) if model.fixed_rows else tuple(sorted(set(question.batch_rows)))
    rows: Rows
    if question.data is None:
        rows = SyntheticRows(model.inputs, max(sizes))
    else:
        rows = read_rows(question.data, model.inputs, model.tokenizer)
    fitting = [size for size in sizes if size <= len(rows)]
    if not fitting:
        raise UsageError(
            f"{rows.source} has {len(rows)} rows, the smallest batch asked for is {min(sizes)}; "
            "give more rows, or a smaller --batch-rows"
        )
    return {size: rows.batch(0, size) for size in fitting}, rows.source


@contextmanager
def _explaining(model: Model, *, made_up: bool) -> Iterator[None]:
    """Says what to give where the model refuses made-up rows."""
    try:
        yield
    except (EngineError, InvalidRequest) as error:
        if not made_up:
            raise
        raise EngineError(f"{model.ref} does not run on made-up rows ({error}); give real ones with --data") from error


def _conditions(model: Model, question: Question, machine: Machine, source: str) -> Conditions:
    """The device that can be had: the one asked for, or the CPU and why."""
    asked = question.device
    cuda_fault = device_fault = None
    if asked != "cpu" or machine.gpus:
        cuda_fault = loadable_providers().get(_CUDA, "this onnxruntime was built without it; install onnxruntime-gpu")
    if asked != "cpu":
        device_fault = _device_fault(model, asked, cuda_fault or "")
    return Conditions(
        device_asked=asked,
        device="cpu" if device_fault is not None else asked,
        threads=question.threads,
        rows_source=source,
        load=os.getloadavg()[0],
        device_fault=device_fault,
        cuda_fault=cuda_fault,
    )


def _device_fault(model: Model, device: str, cuda_fault: str) -> str | None:
    """Why the model does not run on `device`; None when it does."""
    try:
        model.open(EngineSettings(device=device)).close()
    except EngineError as error:
        missing = model.engine == "onnxruntime" and cuda_fault
        return f"{_CUDA} does not load: {cuda_fault}" if missing else str(error)
    return None


def _timings(
    model: Model, reference: Model | None, settings: EngineSettings, batches: dict[int, Tensors], *, made_up: bool
) -> tuple[float, tuple[Timing, ...]]:
    """How long the model takes to open, and its timing with each batch."""
    before_s = time.perf_counter()
    with closing(model.open(settings)) as engine:
        open_s = time.perf_counter() - before_s
        other_engine = closing(reference.open(settings)) if reference else nullcontext()
        with other_engine as other, _explaining(model, made_up=made_up):
            return open_s, measure_timings(engine, other, batches)


def _subject(model: Model, reference: Model | None, question: Question) -> Subject:
    origin = reference if reference and reference.format == "onnx" and not reference.quantized else model
    return Subject(
        ref=model.ref,
        name=model.artifact.manifest.name if model.artifact else "",
        variant=model.variant,
        format=model.format,
        engine=model.engine,
        compute_type=model.compute_type,
        size_bytes=model.size_bytes,
        path=str(model.path),
        source=str(origin.path),
        store=str(question.store),
        data=str(question.data or ""),
        inputs=model.inputs,
        outputs=model.outputs,
        fixed_rows=model.fixed_rows,
    )
