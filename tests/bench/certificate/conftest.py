"""A run that nothing is wrong with, made from numbers, and ways to change it."""

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from mlserve.bench.certificate.certificate import certify
from mlserve.bench.certificate.facts import Facts
from mlserve.bench.measuring.warm_up import WarmUp
from mlserve.runs.load import Plan
from mlserve.runs.machine import Machine
from mlserve.runs.resources import ProcessUse, Resources
from mlserve.runs.run import Calibration
from mlserve.runs.samples import DROPPED, OK, SCHEMA, Samples
from mlserve.runs.window import Window

PLAN = Plan(rate_per_s=100, duration_s=10, warm_up_s=1)
WINDOW = Window(1.0, 11.0)
MACHINE = Machine(
    cpu="AMD EPYC 9B14",
    cpu_flags=("avx2",),
    cores=2,
    memory_bytes=16_000_000_000,
    system="Linux 6.1.0 x86_64",
    python="3.11.9",
    packages={"mlserve": "0.1.0"},
)
RESOURCES = Resources(
    processes=(
        ProcessUse(role="server", pid=10, cpu=0.4, rss_max_bytes=1, cpus=(0,)),
        ProcessUse(role="generator", pid=11, cpu=0.3, rss_max_bytes=1, cpus=(1,)),
        ProcessUse(role="bench", pid=12, cpu=0.01, rss_max_bytes=1, cpus=(0,)),
    ),
    cores_in_use=2,
    steal=0.0,
    others_cpu=0.02,
    shared_cpu=0.01,
    clock_step_s=1e-7,
    clock_rate=1e-6,
)
FACTS = Facts(
    generator_cpus=(0.3,),
    ok=1100,
    failed=0,
    counted_ok=1100,
    device="cpu",
    provider="CPUExecutionProvider",
    precision="fp32",
    variant="fp32",
    sha256="a" * 64,
    calibration=Calibration(requests=500, p50_s=1e-4, p99_s=4e-4, lag_p99_s=1e-4, achieved_per_s=100.2),
    warm_up=WarmUp(end_s=0.5, found=True, over=True, reason="slower than later ones until 500 ms"),
    resources=RESOURCES,
    machine=MACHINE,
)


class MadeRun:
    """A certificate's four arguments. `with_` gives another one, with some of them, or fields of theirs, changed."""

    def __init__(self, samples, plan=PLAN, window=WINDOW, facts=FACTS):
        self.samples, self.plan, self.window, self.facts = samples, plan, window, facts

    def with_(self, *, samples=None, window=None, plan=None, facts=None, resources=None, **changed):
        facts = facts or self.facts
        if resources:
            changed["resources"] = msgspec.structs.replace(facts.resources, **resources)
        return MadeRun(
            samples or self.samples,
            msgspec.structs.replace(self.plan, **(plan or {})),
            window or self.window,
            msgspec.structs.replace(facts, **changed),
        )

    def certificate(self):
        return certify(self.samples, self.plan, self.window, self.facts)

    @property
    def checks(self):
        return {check.name: check for check in self.certificate().checks}

    @property
    def faults(self):
        return [check.name for check in self.certificate().faults]


def make_samples(latency_s=0.010, lag_s=0.0001, status=None, n=1000, due_s=None):
    """One request each 10 ms after a second of warm-up, or when `due_s` says. The rest are numbers or arrays [n]."""
    due_s = 1.0 + np.arange(n) * 0.01 if due_s is None else due_s
    scheduled = np.round(due_s * 1e9).astype(np.int64)
    status = np.full(len(due_s), OK, object) if status is None else status
    gone = status == DROPPED
    sent = scheduled + np.round(np.broadcast_to(lag_s, len(due_s)) * 1e9).astype(np.int64)
    done = scheduled + np.round(np.broadcast_to(latency_s, len(due_s)) * 1e9).astype(np.int64)
    known = {
        "scheduled_ns": scheduled,
        "sent_ns": pa.array(sent, mask=gone),
        "done_ns": pa.array(done, mask=gone),
        "rows": np.ones(len(due_s), np.int32),
        "body": np.zeros(len(due_s), np.int32),
        "status": pa.array(status, pa.string()),
        "version": pa.array([""] * len(due_s)),
        "generator": np.zeros(len(due_s), np.int16),
    }
    columns = [known.get(field.name, pa.nulls(len(due_s), field.type)) for field in SCHEMA]
    return Samples(pa.table(columns, schema=SCHEMA), WINDOW)


def with_status(count, status, n=1000):
    """[n] statuses, of which the first `count` are `status`."""
    column = np.full(n, OK, object)
    column[:count] = status
    return column


@pytest.fixture(name="make_samples")
def make_samples_fixture():
    return make_samples


@pytest.fixture(name="with_status")
def with_status_fixture():
    return with_status


@pytest.fixture
def clean():
    return MadeRun(make_samples())
