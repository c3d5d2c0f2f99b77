"""The batcher: runs what the window says is due, where it costs least, and hands every request its own rows."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from math import inf

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.errors import DeadlineExceeded, ModelFailed, NotServing, Overloaded, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.pace import Pace
from mlserve.serve.batching.results import Results, failure, outcome_of, split
from mlserve.serve.batching.share import DeviceShare
from mlserve.serve.batching.ticket import NO_HEADERS, Batch, BatchObserver, Ticket
from mlserve.serve.batching.window import BatchWindow

__all__ = ["INLINE_LIMIT_S", "NO_HEADERS", "Batch", "BatchObserver", "Batcher", "Ticket"]

# A run shorter than this costs less on the thread that received the request than the way to another thread and back.
INLINE_LIMIT_S = 0.001

# The operating system refuses to wait for ever so long as clients may ask.
_LONGEST_WAIT_S = 3600.0

_log = logging.getLogger("mlserve.serve")


class Batcher:
    """Runs tickets on an engine, several together where the window allows.

    While runs are short and no delay is asked for, a batch runs right on the thread that submitted it: what one turn
    of an event loop received is one batch. When they grow longer they move to a thread of their own, so that nothing
    else waits for them (onnxruntime releases the interpreter lock while it computes), and back when they are short
    again. Those that were long at the warm-up stay there, and take turns with those of the other models on the device.

    One bad request never fails its batch-mates: of a batch that raises the halves run again, and their halves, until
    who fails is alone. Past its deadline nobody runs again.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        window: BatchWindow[Ticket],
        observer: BatchObserver,
        *,
        typical_s: float,
        single_s: float = 0.0,
        share: DeviceShare | None = None,
    ) -> None:
        """`typical_s`: how long a full batch took when the engine was warmed up; `single_s`: one row, 0.0 if unknown.

        `share` is that of the device which other models run on, too; None for a device of its own.
        """
        self.name = name
        self._pace = Pace(window.max_rows, single_s, typical_s)
        self._turns = (share or DeviceShare()).join(typical_s)
        self._engine, self._window, self._observer = engine, window, observer
        self._typical_s = typical_s
        self._free_s = 0.0
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._deadlines = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._running = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._watch: threading.Thread | None = None
        self._was_quick = window.max_delay_s == 0 and typical_s <= INLINE_LIMIT_S
        if not self._was_quick:
            self._start_thread()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        with self._lock:
            return not self._window.waiting_rows and not self._running

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for their run."""
        return self._window.waiting_rows

    @property
    def queues(self) -> bool:
        """Whether tickets may wait here; otherwise `submit` has run them when it returns."""
        return self._thread is not None

    def check_room(self) -> None:
        """Raises Overloaded where a request would be refused for certain, unless it is an urgent one."""
        with self._lock:
            self._window.check_room()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Lets `tickets` run; each is answered or failed, here or later, whatever happens."""
        refused: Results = []
        with self._lock:
            if self._closed:
                batches: list[list[Ticket]] = []
                error = NotServing(f"model '{self.name}' is no longer served here; send the request again")
                refused = [(ticket, error) for ticket in tickets]
            elif self._thread is None:
                batches = self._in_order(tickets) or self._by_window(tickets, refused)
                self._running += len(batches)
            else:
                batches = []
                self._push(tickets, refused)
                self._arrived.notify()
        if refused:
            self._deliver(refused, _NO_BATCH)
        for batch in batches:
            self._run_here(batch)

    def drop(self, ticket: Ticket, error: RequestError | None = None) -> bool:
        """Takes `ticket` out of the queue, because its client has gone; False when it runs or has run.

        It is told `error`, if there is one.
        """
        with self._lock:
            dropped = self._window.drop(ticket, ticket.key, ticket.priority)
        if dropped and error is not None:
            self._fail(ticket, error)
        return dropped

    def close(self) -> None:
        """Lets what waits run to its end, then stops the threads. What is submitted later is refused.

        When it returns nothing runs on the engine, and nothing will. It waits for a run, so call it off the event loop
        where a run may be long. To call it again does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._arrived.notify()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            self._deadlines.notify()
        if self._watch is not None:
            self._watch.join()
        self._turns.end()
        with self._ended:
            while self._running:
                self._ended.wait()

    def _in_order(self, tickets: Sequence[Ticket]) -> list[list[Ticket]]:
        """The batches of requests that ask for nothing special, as an empty window would make them.

        Empty when it is not as simple as that.
        """
        key, most_rows, rows = tickets[0].key, self._window.max_rows, 0
        batches: list[list[Ticket]] = [[]]
        for ticket in tickets:
            if ticket.key != key or ticket.priority or ticket.deadline_s != inf:
                return []
            rows += ticket.rows
            if rows > most_rows and batches[-1]:
                rows = ticket.rows
                batches.append([ticket])
            else:
                batches[-1].append(ticket)
        return batches

    def _by_window(self, tickets: Sequence[Ticket], refused: Results) -> list[list[Ticket]]:
        """The batches of all of `tickets`; nothing else waits."""
        batches: list[list[Ticket]] = []
        for ticket in tickets:
            self._push([ticket], refused)
            if self._window.waiting_rows >= self._window.max_rows:
                batches += self._due(refused)
        return batches + self._due(refused)

    def _push(self, tickets: Sequence[Ticket], refused: Results) -> None:
        now_s = time.perf_counter()
        for ticket in tickets:
            try:
                gone = self._window.push(ticket, ticket.rows, now_s, ticket.key, ticket.priority, ticket.deadline_s)
            except RequestError as error:
                refused.append((ticket, error))
                continue
            if gone:
                refused += [(each, self._displaced(each)) for each in gone]
            if ticket.deadline_s != inf and self._thread is not None:
                self._watch_deadlines()

    def _due(self, refused: Results) -> list[list[Ticket]]:
        now_s = time.perf_counter()
        batches = list(iter(lambda: self._window.pop(now_s), []))
        refused += [(ticket, self._too_late(ticket)) for ticket in self._window.expire(now_s)]
        return batches

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._work, name=f"engine {self.name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        ended_s = 0.0  # when the last run ended, if others waited already
        while True:
            with self._arrived:
                while (due_in_s := self._window.due_at_s - time.perf_counter()) > 0:
                    if self._closed and not self._window.waiting_rows:
                        return
                    ended_s = 0.0
                    self._arrived.wait(None if due_in_s == inf else due_in_s)
            most_rows = self._turns.take(self._pace)
            with self._lock:
                # Chosen now that it can start: what came meanwhile, what was urgent and what is too late counts.
                now_s = time.perf_counter()
                batch = self._window.pop(now_s, most_rows)
                self._running += bool(batch)
                self._window.busy_until_s = now_s + self._typical_s if batch else 0.0
                deep = self._window.waiting_rows >= self._window.max_rows
            if not batch:
                self._turns.give(0.0)
                continue
            computed, first_s = self._run(batch, here=False)
            del batch  # what is answered is not kept in memory until somebody asks again
            self._turns.give(computed.compute_s)
            self._learn(computed, first_s, ended_s, deep=deep)
            ended_s = computed.started_s + computed.compute_s
            if self._is_needless():
                return

    def _learn(self, batch: Batch, first_s: float, before_s: float, *, deep: bool) -> None:
        """Notes how long a run took; of one that followed the run before at once, which ended at `before_s`, how long
        the engine takes under load. `deep`: whole batches of rows stayed behind.

        What counts is `first_s`, in which all its rows ran: running parts of it again says nothing of other requests.
        """
        self._pace.ran(batch.rows, first_s)
        self._turns.typical_s = self._typical_s
        if before_s and (deep or 2 * batch.rows >= self._window.max_rows):
            self._pace.kept_busy(batch.rows, batch.started_s + first_s - before_s)
        with self._lock:
            self._window.row_s, self._window.busy_until_s = self._pace.row_s, 0.0

    def _is_needless(self) -> bool:
        """Whether runs are short again, and the engine's thread is given up: a moment of noise had called for it."""
        with self._lock:
            quick = self._was_quick and self._typical_s < INLINE_LIMIT_S / 2
            if not quick or self._closed or self._window.waiting_rows:
                return False
            self._thread = None
            return True

    def _watch_deadlines(self) -> None:
        """Wakes the thread that fails requests at their deadlines, whatever the engine does; the first starts it."""
        if self._watch is None:
            self._watch = threading.Thread(target=self._fail_late, name=f"deadlines {self.name}", daemon=True)
            self._watch.start()
        else:
            self._deadlines.notify()

    def _fail_late(self) -> None:
        while True:
            with self._deadlines:
                while not (late := self._window.expire(time.perf_counter())):
                    if self._closed and not self._window.waiting_rows:
                        return
                    due_in_s = self._window.deadline_s - time.perf_counter()
                    self._deadlines.wait(min(max(due_in_s, 0.0), _LONGEST_WAIT_S))
                self._running += 1
                self._arrived.notify()  # the engine's thread may wait for what has just left
            self._deliver([(ticket, self._too_late(ticket)) for ticket in late], _NO_BATCH)
            self._end_run()

    def _displaced(self, ticket: Ticket) -> Overloaded:
        return Overloaded(
            "Exceeds maximum queue size: a more urgent request took this one's place; retry later",
            max(1.0, self._window.wait_s(ticket.priority)),
        )

    def _too_late(self, ticket: Ticket) -> DeadlineExceeded:
        waited_s = ticket.deadline_s - ticket.arrived_s
        return DeadlineExceeded(f"Request timeout expired: it waited {waited_s:.3g} s for model '{self.name}'")

    def _run_here(self, batch: list[Ticket]) -> None:
        """Runs a batch on this thread, without those whose deadline passed while the batches before it ran."""
        now_s = time.perf_counter()
        late = [ticket for ticket in batch if ticket.deadline_s <= now_s]
        if late:
            self._deliver([(ticket, self._too_late(ticket)) for ticket in late], _NO_BATCH)
            batch = [ticket for ticket in batch if ticket.deadline_s > now_s]
        if batch:
            self._run(batch, here=True)
        else:
            self._end_run()

    def _end_run(self) -> None:
        with self._lock:
            self._running -= 1
            if self._closed:
                self._ended.notify_all()

    def _run(self, tickets: list[Ticket], *, here: bool) -> tuple[Batch, float]:
        """Runs and answers `tickets`; gives how long they ran together, too, without what ran again."""
        started_s = time.perf_counter()
        try:
            results = self._together(tickets)
            first_s = compute_s = time.perf_counter() - started_s
        except Exception as error:
            first_s = time.perf_counter() - started_s
            results = self._apart(tickets, error)
            compute_s = time.perf_counter() - started_s
        batch = Batch(sum([ticket.rows for ticket in tickets]), started_s, compute_s, self._free_s)
        self._free_s = started_s + compute_s
        if here:  # the answers first: at this length of a run they wait for every microsecond
            self._answer(results, batch)
            self._observer.ran(batch, tickets, outcome_of(results), self._window.waiting_rows)
        else:
            self._observer.ran(batch, tickets, outcome_of(results), self._window.waiting_rows)
            self._deliver(results, batch)
        with self._lock:
            self._running -= 1
            self._typical_s += 0.1 * (first_s - self._typical_s)
            if self._closed:
                self._ended.notify_all()
            elif here and self._typical_s > INLINE_LIMIT_S and self._thread is None:
                self._start_thread()
        return batch, first_s

    def _together(self, tickets: list[Ticket]) -> Results:
        """Each ticket's own rows, of one run. Raises whatever the engine raises."""
        if len(tickets) == 1:
            return [(tickets[0], self._engine.run(tickets[0].inputs))]
        outputs = self._engine.run(
            {name: np.concatenate([ticket.inputs[name] for ticket in tickets]) for name in tickets[0].inputs}
        )
        return split(tickets, outputs)

    def _apart(self, tickets: list[Ticket], error: Exception) -> Results:
        """What each of `tickets` gets, which failed together with `error`: with one bad request among n, after at most
        2 ceil(log2 n) more runs.
        """
        if len(tickets) == 1:
            return [(tickets[0], failure(error, self.name))]
        results = dict[Ticket, Tensors | RequestError]()
        parts = deque(_halves(tickets))
        while parts:  # the largest first: they answer most until deadlines pass
            part, now_s = parts.popleft(), time.perf_counter()
            results.update((ticket, self._too_late(ticket)) for ticket in part if ticket.deadline_s <= now_s)
            part = [ticket for ticket in part if ticket.deadline_s > now_s]
            try:
                results.update(self._together(part) if part else [])
            except Exception as again:
                if len(part) == 1:
                    results[part[0]] = failure(again, self.name)
                else:
                    parts += _halves(part)
        return [(ticket, results[ticket]) for ticket in tickets]

    def _deliver(self, results: Results, batch: Batch) -> None:
        """Answers every ticket on the loop it came from."""
        by_loop: dict[asyncio.AbstractEventLoop | None, Results] = {}
        for ticket, result in results:
            by_loop.setdefault(ticket.loop, []).append((ticket, result))
        for loop, part in by_loop.items():
            if loop is None:
                self._answer(part, batch)
            else:
                try:
                    loop.call_soon_threadsafe(self._answer, part, batch)
                except RuntimeError:  # closed after its grace period: nobody waits for these answers any more
                    _log.warning("%d answers came after the server had stopped", len(part))

    def _answer(self, results: Results, batch: Batch) -> None:
        answered: list[Ticket] = []
        for ticket, result in results:
            if isinstance(result, RequestError):
                self._fail(ticket, result)
                continue
            try:
                ticket.answer(result, batch)
                answered.append(ticket)
            except Exception:
                _log.exception("an answer of model %s could not be written", self.name)
                self._fail(ticket, ModelFailed(f"model '{self.name}': its answer could not be written"))
        if answered:
            self._observer.answered(answered, batch)

    def _fail(self, ticket: Ticket, error: RequestError) -> None:
        self._observer.failed(ticket.protocol, error, ticket)
        ticket.fail(error)


def _halves(tickets: list[Ticket]) -> tuple[list[Ticket], list[Ticket]]:
    middle = len(tickets) // 2
    return tickets[:middle], tickets[middle:]


_NO_BATCH = Batch(0, 0.0, 0.0)
