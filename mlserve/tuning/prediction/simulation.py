"""The simulated server: what becomes of requests that are due at given instants. Pure: it draws by a seed.

Each worker has an event loop and an engine, and all of them share the server's cores. What a worker does is what
serve/batching does, whose own `BatchWindow` decides here too: a short model without a delay runs on the event loop, and
what one turn of it received is one batch; any other runs on a thread of its own, one run at a time, while the loop goes
on reading and answering. Where more is to be computed than there are cores, all of it slows down alike.
"""

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf

import msgspec
import numpy as np

from mlserve.errors import Overloaded
from mlserve.serve.batching import batcher
from mlserve.serve.batching.window import BatchWindow
from mlserve.stats import Floats
from mlserve.tuning.prediction.connections import Connections
from mlserve.tuning.prediction.costs import Costs, Path, Runs

__all__ = ["Arrivals", "Simulated", "SimulatedServer", "simulate"]

# Of a server's turn, what it spends on reading; the rest is answering.
_READING = 0.5
# Multiples of it, without their whole part, are spread evenly however many they are.
_GOLDEN = (5**0.5 - 1) / 2


class Arrivals(msgspec.Struct, frozen=True):
    """Requests in the order they are due: when (seconds), how many rows each has, and of which kind its rows are; only
    those of a kind can share a batch. All [n]. They are sent by so many `generators` in turn.
    """

    due_s: Floats
    rows: Sequence[int]
    kinds: Sequence[int]
    generators: int = 1


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

    `most_rows` is how many rows were there at once, at most; `typical_s` how long its runs typically took, at most,
    which decides where they are; `moved`: that changed.
    """

    latency_s: Floats
    mean_batch_rows: float
    utilization: float
    most_rows: int
    typical_s: float
    moved: bool

    def same_for(self, rows: int, other_rows: int, runs: Runs) -> bool:
        """Whether a server that differs in its most rows alone, `other_rows` and not `rows`, does the very same: where
        neither was ever reached, and runs stay where they are (the most rows tell how long a run takes at first).
        """
        if self.most_rows >= min(rows, other_rows) or self.moved:
            return False
        begins_s, begins_other_s = (runs.mean_s(0, each) for each in (rows, other_rows))
        if min(begins_s, begins_other_s) > batcher.INLINE_LIMIT_S:
            return True
        return self.typical_s + max(0.0, begins_other_s - begins_s) <= batcher.INLINE_LIMIT_S


def simulate(arrivals: Arrivals, server: SimulatedServer, costs: Costs, seed: int = 0) -> Simulated:
    """Lets `server` answer `arrivals`; the same for the same seed."""
    simulation = _Simulation(arrivals, server, costs, seed)
    simulation.run()
    span_s = max(simulation.now_s - float(arrivals.due_s[0]), 1e-12)
    return Simulated(
        latency_s=_seen(arrivals, np.array(simulation.latency_s) + simulation.outside_s(), costs.inline.client_s),
        mean_batch_rows=simulation.ran_rows / max(simulation.ran, 1),
        utilization=min(simulation.ran_s / (server.workers * span_s), 1.0),
        most_rows=simulation.most_rows,
        typical_s=simulation.most_typical_s,
        moved=simulation.moved,
    )


def _seen(arrivals: Arrivals, latency_s: Floats, client_s: float) -> Floats:
    """`latency_s` [n] as the generators see it, which do one thing after the other: half of `client_s` is sending, and
    the other half taking the answer.
    """
    each_s, seen_s = client_s / 2, latency_s.copy()
    for number in range(arrivals.generators):
        own = np.arange(number, len(latency_s), arrivals.generators)
        own = own[np.isfinite(latency_s[own])]
        due_s = arrivals.due_s[own]
        at_s = np.concatenate([due_s, due_s + latency_s[own] - each_s])
        order, places = np.argsort(at_s, kind="stable"), np.arange(len(at_s))
        # Of equal jobs, one after the other, each begins when all since some pause are done, whichever is the latest.
        begun_s = np.maximum.accumulate(at_s[order] - each_s * places) + each_s * places
        waited_s = np.empty(len(at_s))
        waited_s[order] = begun_s - at_s[order]
        seen_s[own] += waited_s[: len(own)] + waited_s[len(own) :]
    return seen_s


class _Step:
    """Work on some cores: what of it is `left_s`, and what it is."""

    __slots__ = ("cores", "left_s", "started_s", "tickets", "what", "worker")

    def __init__(self, worker: "_Worker", what: str, left_s: float, cores: float, tickets: list[int]) -> None:
        self.worker, self.what, self.left_s, self.cores, self.tickets = worker, what, left_s, cores, tickets
        self.started_s = 0.0


class _Worker:
    """One process of the server."""

    __slots__ = (
        "computing", "core", "inbox", "looping", "outbox", "queues", "steps", "typical_s", "was_quick", "window",
    )  # fmt: skip

    def __init__(self, server: SimulatedServer, typical_s: float, core: int) -> None:
        self.core = core
        self.window: BatchWindow[int] = BatchWindow(server.max_rows, server.max_delay_s, server.max_waiting_rows)
        self.inbox: list[int] = []
        self.outbox: deque[list[int]] = deque()
        self.steps: deque[_Step] = deque()
        self.looping = self.computing = False
        self.typical_s = typical_s
        self.was_quick = server.max_delay_s == 0 and typical_s <= batcher.INLINE_LIMIT_S
        self.queues = not self.was_quick


class _Simulation:
    """All that happens, in the order in which it does."""

    def __init__(self, arrivals: Arrivals, server: SimulatedServer, costs: Costs, seed: int) -> None:
        self._due_s = arrivals.due_s.tolist()
        self._rows, self._kinds = list(arrivals.rows), list(arrivals.kinds)
        self._server, self._runs = server, costs.runs
        self._inline, self._queued = costs.inline, costs.queued
        typical_s = costs.runs.mean_s(0, server.max_rows)
        self._workers = [_Worker(server, typical_s, number % server.cores) for number in range(server.workers)]
        # How cold a worker is depends on its core, and not on who had it.
        self._ended_s = [-inf] * server.cores
        count = len(self._due_s)
        self._rng = np.random.default_rng([seed, 1])
        self._lots = self._rng.random(count).tolist()
        self._run_lots = self._rng.random(count).tolist()
        self._replayed_from_s = (seed + 0.5) * _GOLDEN % 1 * costs.runs.span_s
        self._connections = Connections(server.workers, self._rng, shared=server.shared_connections)
        self._were_queued: list[int] = []
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
        self.most_rows, self.most_typical_s, self.moved = 0, typical_s, False

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
        connection, number = self._connections.send(self.now_s)
        worker = self._workers[number]
        self._connection[ticket] = connection
        self._gap_s[ticket] = 0.0 if worker.looping or worker.computing else self.now_s - self._ended_s[worker.core]
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
            turn_s = path.turn_after_s(self._gap_s[tickets[0]])
            cost_s = (1 - _READING) * (turn_s + len(tickets) * path.request_s)
            self._begin(_Step(worker, "answer", cost_s, 1, tickets))
        elif worker.inbox:
            tickets, worker.inbox = worker.inbox, []
            turn_s = path.turn_after_s(self._gap_s[tickets[0]]) * (_READING if worker.queues else 1)
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
        self._ended_s[worker.core] = self.now_s
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
                    worker.queues = self.moved = True
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
                    self._connections.answered(self._connection[ticket], self.now_s)
            self.most_rows = max(self.most_rows, worker.window.waiting_rows)
            self._compute(worker)
            return
        self.most_rows = max(self.most_rows, sum([self._rows[ticket] for ticket in tickets]))
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
            late_s, lot = self._runs.late_s, self._lots[self.ran % len(self._lots)]
            rings_s = max(worker.window.due_at_s, self.now_s) + late_s[int(lot * len(late_s))]
            heappush(self._timers, (rings_s, self._workers.index(worker)))

    def _run_s(self, batch: list[int]) -> float:
        """How long the run of `batch` takes by itself."""
        rows, kind = sum([self._rows[ticket] for ticket in batch]), self._kinds[batch[0]]
        lot = self._run_lots[self.ran % len(self._run_lots)]
        self.ran += 1
        self.ran_rows += rows
        return self._runs.run_s(kind, rows, self._gap_s[batch[0]], lot, self._replayed_from_s + self.now_s)

    def _ran(self, worker: _Worker, step: _Step) -> None:
        took_s = self.now_s - step.started_s
        self.ran_s += took_s
        worker.typical_s += 0.1 * (took_s - worker.typical_s)
        self.most_typical_s = max(self.most_typical_s, worker.typical_s)

    def _give_up_thread(self, worker: _Worker) -> None:
        if worker.was_quick and worker.typical_s < batcher.INLINE_LIMIT_S / 2 and not worker.window.waiting_rows:
            worker.queues, self.moved = False, True

    def _answer(self, tickets: list[int], path: Path) -> None:
        """The requests of a batch, one after the other: the last is answered now. What passes outside comes later on,
        unless it decides which connection is free.
        """
        answered_s, apart_s = self.now_s, (1 - _READING) * path.request_s
        for ticket in reversed(tickets):
            self.latency_s[ticket] = answered_s - self._due_s[ticket]
            if self._connections.matter:
                outside_s = path.outside_s(self._lots[ticket], self._gap_s[ticket])
                self._connections.answered(self._connection[ticket], answered_s + outside_s)
            answered_s -= apart_s
        if path is self._queued:
            self._were_queued += tickets
        self._left -= len(tickets)

    def outside_s(self) -> Floats:
        """What of each request [n] passes outside the server."""
        spent_s = self._inline.each_outside_s(self._lots, self._gap_s)
        spent_queued_s = self._queued.each_outside_s(self._lots, self._gap_s)
        spent_s[self._were_queued] = spent_queued_s[self._were_queued]
        return spent_s
