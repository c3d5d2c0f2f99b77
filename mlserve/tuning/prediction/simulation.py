"""The simulated server: what becomes of requests that are due at given instants. Pure: it draws by a seed.

Each worker has an event loop and an engine, and all of them share the server's cores. What a worker does is what
serve/batching does, whose own `BatchWindow` decides here too: a short model without a delay runs on the event loop, and
what one turn of it received is one batch; any other runs on a thread of its own, one run at a time, while the loop goes
on reading and answering. Where more is to be computed than there are cores, all of it slows down alike.
"""

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf, log

import msgspec
import numpy as np

from mlserve.errors import Overloaded
from mlserve.serve.batching import batcher
from mlserve.serve.batching.window import BatchWindow
from mlserve.stats import Floats

__all__ = ["Arrivals", "Costs", "Path", "Runs", "Simulated", "SimulatedServer", "simulate"]

# Of a server's turn, what it spends on reading; the rest is answering.
_READING = 0.5
# A pause before a run that leaves caches and clocks as they were, and one after which they are cold.
_WARM_S, _COLD_S = 3e-4, 1e-2
# As clients of ours over gRPC: bench/clients/http2_pool.py.
_SHARED_CONNECTIONS = 4


class Arrivals(msgspec.Struct, frozen=True):
    """Requests in the order they are due: when (seconds), how many rows each has, and of which kind its rows are; only
    those of a kind can share a batch. All [n].
    """

    due_s: Floats
    rows: Sequence[int]
    kinds: Sequence[int]


class Runs(msgspec.Struct, frozen=True):
    """How long a run takes: `busy_s[kind][rows]` and `rested_s[kind][rows]` are the quantiles [levels] (seconds) right
    after another run, and after a pause. Row 0 is not used.
    """

    busy_s: Sequence[Sequence[Sequence[float]]]
    rested_s: Sequence[Sequence[Sequence[float]]]

    def mean_s(self, kind: int, rows: int) -> float:
        """Of runs one right after the other."""
        return float(np.mean(self.busy_s[kind][rows]))


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """What a request costs beside its run (seconds): `turn_s` of processor time for each turn of the server and
    `request_s` for each request in it; and `busy_s`, `rested_s`, the quantiles [levels] of what passes outside the
    server, where the last request was `busy_gap_s` ago, or `rested_gap_s`.
    """

    turn_s: float = 0.0
    request_s: float = 0.0
    busy_s: Sequence[float] = (0.0,)
    rested_s: Sequence[float] = (0.0,)
    busy_gap_s: float = _WARM_S
    rested_gap_s: float = _COLD_S


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """`inline` is the path where runs are on the event loop, `queued` that where they are not."""

    runs: Runs
    inline: Path = Path()
    queued: Path = Path()


class SimulatedServer(msgspec.Struct, frozen=True, kw_only=True):
    """`cores` for `workers`; a run uses `run_cores` of them. `shared_connections`: clients send many requests over a
    few connections, as over gRPC; else each request in flight has one, and the one used last is used next.
    """

    workers: int = 1
    cores: int = 1
    run_cores: int = 1
    max_rows: int = 32
    max_delay_s: float = 0.0
    max_waiting_rows: int = 4096
    shared_connections: bool = False


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: latency [n] from the instant due, infinite for a request that was refused. `utilization` is the
    share of the workers' time that their engines ran.
    """

    latency_s: Floats
    mean_batch_rows: float
    utilization: float


def simulate(arrivals: Arrivals, server: SimulatedServer, costs: Costs, seed: int = 0) -> Simulated:
    """Lets `server` answer `arrivals`; the same for the same seed."""
    simulation = _Simulation(arrivals, server, costs, seed)
    simulation.run()
    span_s = max(simulation.now_s - float(arrivals.due_s[0]), 1e-12)
    return Simulated(
        latency_s=np.array(simulation.latency_s),
        mean_batch_rows=simulation.ran_rows / max(simulation.ran, 1),
        utilization=min(simulation.ran_s / (server.workers * span_s), 1.0),
    )


class _Step:
    """Work on some cores: what of it is `left_s`, and what it is."""

    __slots__ = ("cores", "left_s", "started_s", "tickets", "what", "worker")

    def __init__(self, worker: "_Worker", what: str, left_s: float, cores: float, tickets: list[int]) -> None:
        self.worker, self.what, self.left_s, self.cores, self.tickets = worker, what, left_s, cores, tickets
        self.started_s = 0.0


class _Worker:
    """One process of the server."""

    __slots__ = (
        "computing", "ended_s", "inbox", "looping", "outbox", "queues", "steps", "typical_s", "was_quick", "window",
    )  # fmt: skip

    def __init__(self, server: SimulatedServer, typical_s: float) -> None:
        self.window: BatchWindow[int] = BatchWindow(server.max_rows, server.max_delay_s, server.max_waiting_rows)
        self.inbox: list[int] = []
        self.outbox: deque[list[int]] = deque()
        self.steps: deque[_Step] = deque()
        self.looping = self.computing = False
        self.typical_s = typical_s
        self.was_quick = server.max_delay_s == 0 and typical_s <= batcher.INLINE_LIMIT_S
        self.queues = not self.was_quick
        self.ended_s = -inf


class _Simulation:
    """All that happens, in the order in which it does."""

    def __init__(self, arrivals: Arrivals, server: SimulatedServer, costs: Costs, seed: int) -> None:
        self._due_s = arrivals.due_s.tolist()
        self._rows, self._kinds = list(arrivals.rows), list(arrivals.kinds)
        self._server, self._runs = server, costs.runs
        self._inline, self._queued = costs.inline, costs.queued
        typical_s = costs.runs.mean_s(0, server.max_rows)
        self._workers = [_Worker(server, typical_s) for _ in range(server.workers)]
        count = len(self._due_s)
        self._rng = np.random.default_rng([seed, 1])
        self._lots = self._rng.random(count).tolist()
        self._run_lots = self._rng.random(count).tolist()
        self._clients = _Clients(server, self._workers, self._rng)
        self._connection = [0] * count
        self._gap_s = [0.0] * count
        self._steps: list[_Step] = []
        self._timers: list[tuple[float, int]] = []
        self._demand = 0.0
        self._left = count
        self.now_s = 0.0
        self.latency_s = [inf] * count
        self.ran = self.ran_rows = 0
        self.ran_s = 0.0

    def run(self) -> None:
        """Until every request is answered."""
        due_s, cores, timers, workers = self._due_s, self._server.cores, self._timers, self._workers
        coming, count = 0, len(due_s)
        while self._left:
            now_s, steps = self.now_s, self._steps
            slowed = max(1.0, self._demand / cores)
            first, at_s = None, inf
            for step in steps:
                end_s = now_s + step.left_s * slowed
                if end_s < at_s:
                    first, at_s = step, end_s
            arrives = coming < count and due_s[coming] <= at_s
            if arrives:
                first, at_s = None, due_s[coming]
            rings = bool(timers) and timers[0][0] < at_s
            if rings:
                first, at_s = None, timers[0][0]
            passed_s = (at_s - now_s) / slowed
            for step in steps:
                step.left_s -= passed_s
            self.now_s = at_s
            if first is not None:
                self._end(first)
            elif rings:
                self._compute(workers[heappop(timers)[1]])
            else:
                self._arrive(coming)
                coming += 1

    def _arrive(self, ticket: int) -> None:
        connection, worker = self._clients.send(self.now_s)
        self._connection[ticket] = connection
        self._gap_s[ticket] = 0.0 if worker.looping or worker.computing else self.now_s - worker.ended_s
        worker.inbox.append(ticket)
        if not worker.looping:
            self._turn(worker)

    def _turn(self, worker: _Worker) -> None:
        """The next thing that the event loop does, if there is any."""
        path = self._queued if worker.queues else self._inline
        if worker.steps:
            self._begin(worker.steps.popleft())
        elif worker.outbox:
            tickets = worker.outbox.popleft()
            cost_s = (1 - _READING) * (path.turn_s + len(tickets) * path.request_s)
            self._begin(_Step(worker, "answer", cost_s, 1, tickets))
        elif worker.inbox:
            tickets, worker.inbox = worker.inbox, []
            turn_s = _READING * path.turn_s if worker.queues else path.turn_s
            self._begin(_Step(worker, "read", turn_s + len(tickets) * _READING * path.request_s, 1, tickets))

    def _begin(self, step: _Step) -> None:
        step.started_s = self.now_s
        if step.what == "compute":
            step.worker.computing = True
        else:
            step.worker.looping = True
        self._demand += step.cores
        self._steps.append(step)

    def _end(self, step: _Step) -> None:
        self._steps.remove(step)
        self._demand -= step.cores
        worker = step.worker
        worker.ended_s = self.now_s
        if step.what == "compute":
            worker.computing = False
            self._ran(worker, step)
            worker.outbox.append(step.tickets)
            self._give_up_thread(worker)
            self._compute(worker)
            if not worker.looping:
                self._turn(worker)
            return
        worker.looping = False
        match step.what:
            case "read":
                self._submit(worker, step.tickets)
            case "run":
                self._ran(worker, step)
                if worker.typical_s > batcher.INLINE_LIMIT_S:
                    worker.queues = True
                self._answer(step.tickets, self._inline)
            case "answer":
                self._answer(step.tickets, self._queued)
        self._turn(worker)

    def _submit(self, worker: _Worker, tickets: list[int]) -> None:
        if worker.queues:
            for ticket in tickets:
                try:
                    worker.window.push(ticket, self._rows[ticket], self.now_s, self._kinds[ticket])
                except Overloaded:
                    self._left -= 1
                    self._clients.answered(self._connection[ticket], self.now_s)
            self._compute(worker)
            return
        path = self._inline
        for batch in self._together(tickets):
            cost_s = self._run_s(batch) + len(batch) * (1 - _READING) * path.request_s
            worker.steps.append(_Step(worker, "run", cost_s, self._server.run_cores, batch))

    def _together(self, tickets: list[int]) -> list[list[int]]:
        """The batches of one turn, as the server's batcher makes them where nothing waits."""
        filling: dict[int, tuple[list[int], int]] = {}
        batches: list[list[int]] = []
        for ticket in tickets:
            kind, rows = self._kinds[ticket], self._rows[ticket]
            batch, held = filling.get(kind, ([], 0))
            if not batch or held + rows > self._server.max_rows:
                batch, held = [], 0
                batches.append(batch)
            batch.append(ticket)
            filling[kind] = batch, held + rows
        return batches

    def _compute(self, worker: _Worker) -> None:
        """Starts the engine's next run, if it is idle and one is due; else has itself called when one will be."""
        if worker.computing:
            return
        batch = worker.window.pop(self.now_s)
        if batch:
            cost_s = self._run_s(batch)
            self._begin(_Step(worker, "compute", cost_s, self._server.run_cores, batch))
        elif worker.window.waiting_rows:
            heappush(self._timers, (max(worker.window.due_at_s, self.now_s), self._workers.index(worker)))

    def _run_s(self, batch: list[int]) -> float:
        """How long the run of `batch` takes by itself."""
        rows, kind = sum([self._rows[ticket] for ticket in batch]), self._kinds[batch[0]]
        busy_s, rested_s = self._runs.busy_s[kind][rows], self._runs.rested_s[kind][rows]
        level = int(self._run_lots[self.ran % len(self._run_lots)] * len(busy_s))
        self.ran += 1
        self.ran_rows += rows
        cold = _share(self._gap_s[batch[0]], _WARM_S, _COLD_S)
        return busy_s[level] + cold * (rested_s[level] - busy_s[level])

    def _ran(self, worker: _Worker, step: _Step) -> None:
        took_s = self.now_s - step.started_s
        self.ran_s += took_s
        worker.typical_s += 0.1 * (took_s - worker.typical_s)

    def _give_up_thread(self, worker: _Worker) -> None:
        if worker.was_quick and worker.typical_s < batcher.INLINE_LIMIT_S / 2 and not worker.window.waiting_rows:
            worker.queues = False

    def _answer(self, tickets: list[int], path: Path) -> None:
        """The requests of a batch, one after the other: the last is answered now."""
        apart_s = (1 - _READING) * path.request_s
        for place, ticket in enumerate(reversed(tickets)):
            level = int(self._lots[ticket] * len(path.busy_s))
            cold = _share(self._gap_s[ticket], path.busy_gap_s, path.rested_gap_s)
            outside_s = path.busy_s[level] + cold * (path.rested_s[level] - path.busy_s[level])
            answered_s = self.now_s - place * apart_s + outside_s
            self.latency_s[ticket] = answered_s - self._due_s[ticket]
            self._clients.answered(self._connection[ticket], answered_s)
        self._left -= len(tickets)


class _Clients:
    """Which worker gets a request: the one that accepted its connection, by a hash that nobody can foretell."""

    def __init__(self, server: SimulatedServer, workers: list[_Worker], rng: np.random.Generator) -> None:
        self._workers, self._rng, self._shared = workers, rng, server.shared_connections
        self._worker_of: list[int] = []
        self._idle: list[int] = []
        self._busy: list[tuple[float, int]] = []
        self._sent = 0
        if self._shared:
            self._worker_of = rng.integers(len(workers), size=_SHARED_CONNECTIONS).tolist()

    def send(self, now_s: float) -> tuple[int, _Worker]:
        """The connection that the next request takes, and whose it is."""
        if len(self._workers) == 1:
            return 0, self._workers[0]
        if self._shared:
            connection = self._sent % _SHARED_CONNECTIONS
            self._sent += 1
        else:
            while self._busy and self._busy[0][0] <= now_s:
                self._idle.append(heappop(self._busy)[1])
            if self._idle:
                connection = self._idle.pop()
            else:
                connection = len(self._worker_of)
                self._worker_of.append(int(self._rng.integers(len(self._workers))))
        return connection, self._workers[self._worker_of[connection]]

    def answered(self, connection: int, at_s: float) -> None:
        """`connection` is free from `at_s` on."""
        if len(self._workers) > 1 and not self._shared:
            heappush(self._busy, (at_s, connection))


def _share(gap_s: float, warm_s: float, cold_s: float) -> float:
    """How cold all is after a pause of `gap_s`, from 0 to 1: by its logarithm, as what was seen at several rates."""
    if gap_s <= warm_s:
        return 0.0
    return 1.0 if gap_s >= cold_s else log(gap_s / warm_s) / log(cold_s / warm_s)
