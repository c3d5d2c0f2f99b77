"""Two servers that are formulas, of which each answers in its own time, or fails its share of requests."""

from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mlserve.runs.load import Plan
from mlserve.tuning.gating.asked import LiveGate
from mlserve.tuning.gating.side import Side
from mlserve.tuning.opening import Contender
from mlserve.tuning.serving import ServerOptions

PLAN = Plan(rate_per_s=50.0, duration_s=4.0, warm_up_s=0.0, percentile=0.5)


class TwoServers:
    """Serves a request in `service_s`, by the contender's name, give or take `noise` from run to run. What was measured
    is in `runs`, as (folder, seed), and `most_open` is how many were open at once.
    """

    def __init__(self, make, service_s, *, noise=0.01, faults=None, broken=None, failed=None):
        self._make, self._service_s, self._faults, self._broken = make, service_s, faults, broken or {}
        self._noise, self._rng = noise, np.random.default_rng(1)
        self._failed = failed or {}
        self.runs, self.opened, self._open, self.most_open = [], [], 0, 0

    @contextmanager
    def opens(self, side):
        if side.name in self._broken:
            raise self._broken[side.name]
        self.opened.append(side.name)
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        try:
            yield lambda _: side.contender
        finally:
            self._open -= 1

    def one(self, subject_of, plan, folder, label, on_progress, decide):
        if folder.name in self._broken:
            raise self._broken[folder.name]
        name = subject_of(plan.protocol).name
        service_s = self._service_s[name] * float(np.exp(self._noise * self._rng.standard_normal()))
        faults = (lambda _: self._faults(folder.name)) if self._faults else None
        self.runs.append((folder.name, plan.seed))
        run = self._make(service_s=service_s, faults=faults).measure(
            subject_of, plan, folder, label, on_progress, decide
        )
        self._fail(folder / "samples.parquet", self._failed.get(name, 0.0))
        return run

    def at_once(self, loads, slot_s, on_progress):
        """Both runs of a pair, as if they had taken turns: whoever breaks down ends both."""
        broken = [self._broken.get(load.folder.name) for load in loads]
        if any(broken):
            return broken
        for load in loads:
            self.one(load.subject_of, load.plan, load.folder, load.label, on_progress, None)
        return broken

    def _fail(self, rows, share):
        """Has the server answer so many of the requests with an error."""
        table = parquet.read_table(rows)
        failed = self._rng.random(len(table)) < share
        statuses = np.where(failed, "500", np.array(table["status"].to_pylist(), dtype=object))
        place = table.schema.get_field_index("status")
        field = table.schema.field("status")
        parquet.write_table(table.set_column(place, field, pa.array(statuses).cast(field.type)), rows)


class Told:
    """A watcher that keeps what it is told."""

    def __init__(self):
        self.began, self.ended, self.results, self.courses = [], [], [], []

    def begins(self, sides, turn, course):
        self.began.append((tuple(side.name for side in sides), turn.number, turn.fresh))

    def moves(self, progress): ...

    def ends(self, side, turn, recorded):
        self.ended.append(recorded.directory.name)

    def judged(self, result, course):
        self.results.append(result)
        self.courses.append(course)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def two_servers(formula_server):
    """Makes TwoServers, called "main@1" and "branch@1"."""
    return lambda base_s, candidate_s, **said: TwoServers(
        formula_server, {"main@1": base_s, "branch@1": candidate_s}, **said
    )


@pytest.fixture
def live_gate():
    """Makes a LiveGate of the two."""

    def make(*limits, **said):
        from mlserve.report.gating.limits import parse_gate_limits

        sides = {
            name: Side(contender=Contender(where, where), store="store", options=ServerOptions())
            for name, where in (("base", "main@1"), ("candidate", "branch@1"))
        }
        return LiveGate(**(sides | {"plan": PLAN, "limits": parse_gate_limits(limits or ["p50=5%"])} | said))

    return make
