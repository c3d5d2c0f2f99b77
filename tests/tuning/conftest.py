"""A server that is a formula: it answers one request after the other, each in the same time, and takes none itself."""

from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from mlserve.bench.load.schedule import schedule
from mlserve.runs.run import Certificate, write_run
from mlserve.runs.samples import OK, SCHEMA, Samples
from mlserve.runs.window import WHOLE, Window


def waits(due_s, service_s):
    """How long each of the requests due at `due_s` waits where one is served after the other (Lindley 1952)."""
    if not len(due_s):
        return np.empty(0)
    walk = np.cumsum(np.concatenate([[0.0], service_s - np.diff(due_s)]))
    return walk - np.minimum.accumulate(np.minimum(walk, 0.0))


class FormulaServer:
    """Serves a request in `service_s`. What it measured lies in `runs`, as (folder's name, plan), and `opened` says
    what was opened. `faults` gives the certificate's faults for a plan; `broken` is raised for a label.
    """

    def __init__(self, made_runs, service_s=0.001, faults=None, broken=None):
        self._made, self.service_s, self._faults, self._broken = made_runs, service_s, faults, broken or {}
        self.runs, self.opened, self.still_open = [], [], 0

    @contextmanager
    def opens(self, contender, options):
        self.opened.append((contender.name, options))
        if contender.name in self._broken:
            raise self._broken[contender.name]
        self.still_open += 1
        try:
            yield lambda _: contender
        finally:
            self.still_open -= 1

    def measure(self, subject_of, plan, folder: Path, label, on_progress, decide):
        contender = subject_of(plan.protocol)
        self.runs.append((folder.name, plan))
        if label in self._broken:
            raise self._broken[label]
        table = self._closed(plan) if plan.closed else self._open(plan)
        end_s = self._end_s(plan, table, decide)
        window = Window(plan.warm_up_s, end_s)
        table = table.filter(pa.compute.less(table["scheduled_ns"], round(end_s * 1e9)))
        pa.parquet.write_table(table, folder / "samples.parquet")
        usual = self._made.record(self._made.Load(), rate_per_s=10.0).run
        run = msgspec.structs.replace(
            usual,
            label=label,
            plan=plan,
            window=window,
            model=msgspec.structs.replace(usual.model, variant=contender.name),
            certificate=Certificate(tuple(self._faults(plan)) if self._faults else ()),
        )
        write_run(folder, run)
        return run

    def _open(self, plan):
        due_s = schedule(plan) / 1e9
        return rows(due_s, waits(due_s, self.service_s) + self.service_s)

    def _closed(self, plan):
        count = int((plan.warm_up_s + plan.duration_s) / self.service_s)
        due_s = np.arange(count) * self.service_s
        return rows(due_s, np.full(count, plan.users * self.service_s))

    def _end_s(self, plan, table, decide):
        planned_s = plan.warm_up_s + plan.duration_s
        done_ns = table["done_ns"].to_numpy()
        for elapsed_s in np.arange(0.5, planned_s, 0.5) if decide else ():
            there = table.filter(pa.array(done_ns <= elapsed_s * 1e9))
            stop = decide(Samples(there, WHOLE), float(elapsed_s))
            if stop is not None:
                return stop.at_s
        return planned_s


def rows(due_s, latency_s):
    """Requests that were all sent in time and answered well."""
    due_ns = np.rint(due_s * 1e9).astype(np.int64)
    done_ns = due_ns + np.rint(latency_s * 1e9).astype(np.int64)
    count = len(due_ns)
    columns = [due_ns, due_ns, done_ns, done_ns, np.ones(count), np.zeros(count), [OK] * count, ["1"] * count]
    columns += [pa.nulls(count)] * 3 + [np.zeros(count)]
    return pa.table(
        [pa.array(column).cast(field.type, safe=False) for column, field in zip(columns, SCHEMA, strict=True)],
        schema=SCHEMA,
    )


@pytest.fixture
def formula_server(made_runs):
    """Makes a FormulaServer."""
    return lambda **settings: FormulaServer(made_runs, **settings)


@pytest.fixture
def quiet():
    """A watcher that keeps what it is told: (what, its arguments)."""
    return Quiet()


class Quiet:
    def __init__(self):
        self.told = []

    def begins(self, *said):
        self.told.append(("begins", said))

    def moves(self, *said):
        self.told.append(("moves", said))

    def ends(self, *said):
        self.told.append(("ends", said))

    def of(self, what):
        return [said for kind, said in self.told if kind == what]


@pytest.fixture
def clock():
    return Clock()


class Clock:
    """Time that passes by a second whenever somebody looks."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        self.now_s += 1.0
        return self.now_s
