"""Runs as `mlserve bench` writes them, made from numbers instead of from a server."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlserve.model.artifact import Accuracy
from mlserve.report.measurement import Recorded
from mlserve.runs.load import Plan
from mlserve.runs.machine import Machine
from mlserve.runs.run import Certificate, Check, Counts, Run, ServedModel, ServerSettings, write_run
from mlserve.runs.samples import DROPPED, OK, SCHEMA, Sample, Samples, SampleWriter
from mlserve.runs.window import Window

MACHINE = Machine(
    cpu="AMD EPYC 9B14",
    cpu_flags=("avx2", "fma", "avx512f", "avx512_vnni"),
    cores=2,
    memory_bytes=16_000_000_000,
    system="Linux 6.1.0 x86_64",
    python="3.11.9",
    packages={"mlserve": "0.1.0", "onnxruntime": "1.23.0", "locust": "2.43.4"},
)
SERVER = ServerSettings(workers=1, threads=1, max_batch_rows=32, max_delay_ms=0.0, device="cpu", cpus=(0,))
INT8_ACCURACY = Accuracy(
    "cosine", 0.9931, 0.0069, 252, "sentences.txt (sha256 4f1a)", "fp32", {"cosine": 0.9931, "pair_spearman": 0.9921}
)
FP32 = ServedModel(
    url="http://127.0.0.1:40001", name="minilm", version="1", variant="fp32", sha256="a" * 64, size_bytes=90_400_000
)
INT8 = ServedModel(
    url="http://127.0.0.1:40002",
    name="minilm",
    version="2",
    variant="int8",
    sha256="b" * 64,
    size_bytes=22_900_000,
    accuracy=INT8_ACCURACY,
)
ENOUGH = Check(name="enough samples", ok=True, found="1200 answers", limit="at least 459 for p99", advice="")
LATE = Check(
    name="generator on time",
    ok=False,
    found="p99 of requests left 9.10 ms late",
    limit="at most 1.00 ms",
    advice="Stop other work on this machine, give the generator a core of its own, or lower --rps.",
)


class Load:
    """What a server does, as numbers: its median latency, how latencies spread and wander, and what goes wrong."""

    def __init__(self, median_ms=4.0, *, spread=0.25, wander=0.0, memory_s=0.5, failed=0.0, dropped=0.0, stall_ms=0.0):
        self.median_ms, self.spread, self.wander, self.memory_s = median_ms, spread, wander, memory_s
        self.failed, self.dropped, self.stall_ms = failed, dropped, stall_ms

    def samples(self, plan: Plan, seed: int) -> list[Sample]:
        """Poisson arrivals, the same for the same plan; everything else differs with `seed`."""
        total_s = plan.warm_up_s + plan.duration_s
        schedule = np.random.default_rng(plan.seed)
        due_s = np.sort(schedule.uniform(0, total_s, schedule.poisson(plan.rate_per_s * total_s)))
        rng = np.random.default_rng([plan.seed, seed])
        late_s = rng.gamma(2.0, 3e-5, len(due_s))
        latency_s = self._latency_s(rng, due_s, total_s)
        fate = rng.uniform(size=len(due_s))
        status = np.where(fate < self.dropped, DROPPED, np.where(fate < self.dropped + self.failed, "HTTP 503", OK))
        return [
            _sample(plan, due, late, latency, str(what))
            for due, late, latency, what in zip(due_s, late_s, latency_s, status, strict=True)
        ]

    def _latency_s(self, rng, due_s, total_s):
        level = wandering(rng, total_s, memory_s=self.memory_s)[(due_s / 0.01).astype(int)]
        latency_s = self.median_ms / 1000 * np.exp(self.wander * level + self.spread * rng.standard_normal(len(due_s)))
        stall_s = self.stall_ms / 1000
        since_s = due_s % 7
        return latency_s + np.where(since_s < stall_s, stall_s - since_s, 0)


def wandering(rng, duration_s, *, memory_s, step_s=0.01):
    """A stationary series of mean 0, variance 1 and correlation exp(-t / memory_s), one value each `step_s`."""
    keep = np.exp(-step_s / memory_s)
    noise = rng.standard_normal(int(duration_s / step_s) + 2) * np.sqrt(1 - keep**2)
    series = np.empty(len(noise))
    series[0] = rng.standard_normal()
    for number in range(1, len(noise)):
        series[number] = keep * series[number - 1] + noise[number]
    return series


def make_plan(**changes) -> Plan:
    """60 requests a second for 20 s, where nothing else is said."""
    usual = {
        "rate_per_s": 60.0,
        "duration_s": 20.0,
        "warm_up_s": 2.0,
        "payload": "sentences.txt (sha256 4f1a), 252 bodies",
    }
    return Plan(**(usual | changes))


def record(
    load: Load,
    *,
    model: ServedModel = FP32,
    server: ServerSettings | None = SERVER,
    machine: Machine = MACHINE,
    checks: tuple[Check, ...] = (ENOUGH,),
    seed: int = 0,
    minute: int = 0,
    label: str = "",
    directory: Path = Path("runs/one"),
    **plan,
) -> Recorded:
    """One run in memory. `seed` is of what the server does; whatever else is given belongs to the plan."""
    chosen = make_plan(**plan)
    rows = load.samples(chosen, seed)
    window = Window(chosen.warm_up_s, chosen.warm_up_s + chosen.duration_s)
    measured = [row for row in rows if row.scheduled_ns >= window.start_s * 1e9]
    ok, dropped = (sum(row.status == status for row in measured) for status in (OK, DROPPED))
    run = Run(
        label=label or f"{model.name}-{model.variant}-{chosen.protocol}-{chosen.rate_per_s:g}rps",
        started_at=(datetime(2026, 11, 21, 12, 0, tzinfo=UTC) + timedelta(minutes=minute)).isoformat(),
        plan=chosen,
        window=window,
        model=model,
        server=server,
        machine=machine,
        counts=Counts(
            scheduled=len(measured), ok=ok, failed=len(measured) - ok - dropped, dropped=dropped, generator_cpu=0.21
        ),
        certificate=Certificate(checks),
    )
    columns = zip(*rows, strict=True) if rows else [[] for _ in SCHEMA]
    return Recorded(directory, run, Samples(pa.table(list(map(list, columns)), schema=SCHEMA), window))


def save(directory: Path, load: Load, *, seed: int = 0, **settings) -> Path:
    """The same run on disk, as the bench leaves it."""
    one = record(load, seed=seed, directory=directory, **settings)
    directory.mkdir(parents=True)
    with SampleWriter(directory) as writer:
        writer.append(load.samples(one.run.plan, seed))
    write_run(directory, one.run)
    return directory


def save_demo(folder: Path) -> Path:
    """fp32 and int8, REST and gRPC, two rounds taken in turn, as `make demo` leaves them: int8 is twice as fast."""
    minute = 0
    for repeat in (1, 2):
        for protocol, extra_ms in (("rest", 0.6), ("grpc", 0.0)):
            for model, median_ms in ((FP32, 5.4), (INT8, 2.6)):
                load = Load(median_ms + extra_ms, spread=0.2, wander=0.08, stall_ms=6.0)
                save(
                    folder / f"{model.variant}-{protocol}-{repeat}",
                    load,
                    seed=minute,
                    model=model,
                    protocol=protocol,
                    minute=minute,
                )
                minute += 1
    return folder


def _sample(plan: Plan, due_s: float, late_s: float, latency_s: float, status: str) -> Sample:
    scheduled, sent = int(due_s * 1e9), int((due_s + late_s) * 1e9)
    done = max(sent + 2, scheduled + int(latency_s * 1e9))
    if status == DROPPED:
        return Sample(scheduled, None, None, None, plan.batch_rows, 0, status, "")
    first_byte = done - 1 if status == OK else None
    return Sample(scheduled, sent, first_byte, done, plan.batch_rows, 0, status, "2" if status == OK else "")
