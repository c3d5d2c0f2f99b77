"""Findings about where a model runs: its device and its threads."""

from mlserve.optimize.diagnose.facts import Facts, Profile, ThreadTiming
from mlserve.optimize.diagnose.finding import Finding, diagnose_again, largest, percent, serve_it
from mlserve.units import format_duration, format_ratio

__all__ = [
    "BUSY",
    "MACHINE_FINDINGS",
    "fallen_back_operators",
    "poorly_shared_work",
    "stuck_on_the_cpu",
    "too_few_threads",
    "too_many_threads",
    "unused_gpu",
]

BUSY = 0.5
"""The load for each core beyond which other programs upset what is measured."""

_CPU_PROVIDER = "CPUExecutionProvider"
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
_NOTABLE = 0.05
_CLEARLY = 1.1
# The share of what so many threads could bring at best.
_POOR_SCALING = 0.7


def stuck_on_the_cpu(facts: Facts) -> Finding | None:
    """A GPU was asked for and could not be used: everything that was measured was measured on the CPU."""
    conditions = facts.conditions
    if conditions.device_fault is None:
        return None
    return Finding(
        name="stuck-on-the-cpu",
        title=f"the model is stuck on the CPU: {conditions.device_asked} cannot be used",
        seen=f"--device {conditions.device_asked} was asked for; {conditions.device_fault}",
        why="onnxruntime would fall back to the CPU without a word; mlserve serve refuses to start instead. Every "
        "time here is the CPU's",
        commands=(
            "mlserve doctor",
            *(["pip install 'onnxruntime-gpu[cuda,cudnn]'"] if facts.machine.gpus else []),
            diagnose_again(facts, "--device", conditions.device_asked),
        ),
        saves_at_most=1.0,
        batch_rows=facts.profiles[-1].batch_rows,
    )


def unused_gpu(facts: Facts) -> Finding | None:
    """There is a GPU, and the CPU was measured."""
    conditions = facts.conditions
    if not facts.machine.gpus or conditions.device != "cpu" or conditions.device_asked != "cpu":
        return None
    fault = conditions.cuda_fault
    gpu = facts.machine.gpus[0].name
    return Finding(
        name="unused-gpu",
        title=f"there is a GPU ({gpu}), and the model runs on the CPU",
        seen=f"the machine has {len(facts.machine.gpus)} GPU(s), --device is cpu, and CUDA "
        + ("loads" if not fault else f"does not load: {fault}"),
        why="the device is cpu unless --device says otherwise" + ("; first CUDA must load" if fault else ""),
        commands=(
            *(["pip install 'onnxruntime-gpu[cuda,cudnn]'", "mlserve doctor"] if fault else []),
            diagnose_again(facts, "--device", "cuda"),
        ),
        saves_at_most=1.0,
        batch_rows=facts.profiles[-1].batch_rows,
    )


def fallen_back_operators(facts: Facts) -> Finding | None:
    """A GPU is used, but some operators run on the CPU, with a copy to it and back."""
    if facts.conditions.device == "cpu":
        return None

    def share_of(profile: Profile) -> float:
        return profile.time_share(
            operation
            for operation in profile.operations
            if operation.provider == _CPU_PROVIDER or operation.operator in _COPIES
        )

    share, profile = largest(facts, share_of)
    fallen = [operation for operation in profile.operations if operation.provider == _CPU_PROVIDER]
    if share < _NOTABLE or not fallen:
        return None
    copies = sum(operation.operator in _COPIES for operation in profile.operations)
    names = ", ".join(sorted({operation.operator for operation in fallen}))
    return Finding(
        name="fallen-back-operators",
        title="operators fell back to the CPU",
        seen=f"{len(fallen)} of {len(profile.operations)} operators ran on the CPU ({names}), with {copies} copies "
        f"between the devices: {percent(share)} of the time",
        why="the CUDA provider has no kernel for them in their types (int8 above all), so onnxruntime gives them to "
        "the CPU",
        commands=(diagnose_again(facts, "--device", "cpu"),),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def too_many_threads(facts: Facts) -> Finding | None:
    """More threads than cores, or more than the work can be shared out over."""
    used = _timed(facts, facts.conditions.threads)
    best = min(facts.threads, key=lambda timing: timing.p50_s, default=None)
    if used is None or best is None:
        return None
    beyond = used.threads > facts.machine.cores
    if not (best.threads < used.threads and used.p50_s > (1.0 if beyond else _CLEARLY) * best.p50_s):
        return None
    return Finding(
        name="too-many-threads",
        title=f"{used.threads} threads are too many",
        seen=f"with {used.threads} threads on {facts.machine.cores} cores a run takes {format_duration(used.p50_s)}, "
        f"with {best.threads} {format_duration(best.p50_s)} ({_table(facts)})",
        why=(
            "threads beyond the cores take turns, and a run waits at every operator for the one whose turn comes last"
            if beyond
            else "sharing out so little work, and waiting for the last thread at every operator, costs more than it "
            "brings"
        )
        + _disturbed(facts),
        commands=(
            serve_it(facts, "--threads", str(best.threads)),
            serve_it(facts, "--threads", "1", "--workers", str(facts.machine.cores)),
        ),
        saves_at_most=1 - best.p50_s / used.p50_s,
        batch_rows=facts.profiles[-1].batch_rows,
    )


def too_few_threads(facts: Facts) -> Finding | None:
    """Cores that stand idle while one run takes its time."""
    used = _timed(facts, facts.conditions.threads)
    more = [timing for timing in facts.threads if used and used.threads < timing.threads <= facts.machine.cores]
    best = min(more, key=lambda timing: timing.p50_s, default=None)
    if used is None or best is None or used.p50_s < _CLEARLY * best.p50_s:
        return None
    return Finding(
        name="too-few-threads",
        title=f"more threads than {used.threads} would be quicker",
        seen=f"a run takes {format_duration(used.p50_s)} with {used.threads} threads and {format_duration(best.p50_s)} "
        f"with {best.threads}, on {facts.machine.cores} cores",
        why="the work of one run can be shared out over more cores; for throughput, more workers may be better still",
        commands=(serve_it(facts, "--threads", str(best.threads)),),
        saves_at_most=1 - best.p50_s / used.p50_s,
        batch_rows=facts.profiles[-1].batch_rows,
    )


def poorly_shared_work(facts: Facts) -> Finding | None:
    """Threads that bring far less than their number: several workers with one thread each serve more."""
    one, used = _timed(facts, 1), _timed(facts, min(facts.conditions.threads, facts.machine.cores))
    if one is None or used is None or used.threads < 2:
        return None
    speedup = one.p50_s / used.p50_s
    if speedup >= _POOR_SCALING * used.threads or too_many_threads(facts):
        return None
    return Finding(
        name="poorly-shared-work",
        title=f"{used.threads} threads do the work of {speedup:.1f}",
        seen=f"{used.threads} threads are {format_ratio(speedup)} as quick as one ({_table(facts)})",
        why="the operators are too small, or wait for the memory, so the threads stand idle between them; with one "
        "thread a worker, as many requests run side by side (this is about throughput; a single run gets slower)"
        + _disturbed(facts),
        commands=(serve_it(facts, "--threads", "1", "--workers", str(used.threads)),),
        saves_at_most=1 - speedup / used.threads,
        batch_rows=facts.profiles[-1].batch_rows,
    )


MACHINE_FINDINGS = (
    stuck_on_the_cpu,
    unused_gpu,
    fallen_back_operators,
    too_many_threads,
    too_few_threads,
    poorly_shared_work,
)


def _timed(facts: Facts, threads: int) -> ThreadTiming | None:
    return next((timing for timing in facts.threads if timing.threads == threads), None)


def _disturbed(facts: Facts) -> str:
    """A warning where other programs wanted the cores too: then threads do badly for a reason of another kind."""
    load, cores = facts.conditions.load, facts.machine.cores
    if load <= BUSY * cores:
        return ""
    return f". But {load:.1f} processes wanted the {cores} cores meanwhile: look again when the machine is idle"


def _table(facts: Facts) -> str:
    return ", ".join(f"{timing.threads}: {format_duration(timing.p50_s)}" for timing in facts.threads)
