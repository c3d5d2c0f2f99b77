"""The batcher: runs what the window says is due, where it costs least, and hands every request its own rows."""

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Protocol

import msgspec
import numpy as np

from mlserve.engines.engine import Engine
from mlserve.errors import EngineError, ModelFailed, Overloaded, RequestError
from mlserve.model.tensors import Tensors
from mlserve.serve.batching.window import BatchWindow

__all__ = ["Batch", "BatchObserver", "Batcher", "Ticket"]

# A run shorter than this costs less on the thread that received the request than the way to another thread and back.
INLINE_LIMIT_S = 0.001

_log = logging.getLogger("mlserve.serve")


class Batch(msgspec.Struct, frozen=True):
    """One run of the engine: how many rows, when it started (`time.perf_counter`) and how long it computed."""

    rows: int
    started_s: float
    compute_s: float


class Ticket(ABC):
    """One request on its way through a batcher. A transport's subclass sets every field, and knows how to reply.

    Of `answer` and `fail` one is called, once: on `loop` where the ticket has one, else on whichever thread ran the
    batch. `arrived_s` is `time.perf_counter` at the request's last byte.
    """

    __slots__ = ("arrived_s", "inputs", "key", "loop", "protocol", "rows")

    inputs: Tensors
    rows: int
    key: Hashable
    loop: asyncio.AbstractEventLoop | None
    protocol: str
    arrived_s: float

    @abstractmethod
    def answer(self, outputs: Tensors, batch: Batch) -> None:
        """Replies with this request's rows of every output."""

    @abstractmethod
    def fail(self, error: RequestError) -> None:
        """Replies that the request could not be answered."""


class BatchObserver(Protocol):
    """Told of every batch after it ran, and of the requests of it that were answered or failed."""

    def ran(self, batch: Batch, queued_s: float) -> None: ...

    def answered(self, tickets: Sequence[Ticket]) -> None: ...

    def failed(self, protocol: str, error: RequestError) -> None: ...


class Batcher:
    """Runs tickets on an engine, several together where the window allows.

    While runs are short and no delay is asked for, a batch runs right on the thread that submitted it: what one turn
    of an event loop received is one batch. A longer run moves to a thread of its own, so that nothing else waits for it
    (onnxruntime releases the interpreter lock while it computes).

    One bad request never fails its batch-mates: a batch that raises is run again request by request.
    """

    def __init__(
        self, name: str, engine: Engine, window: BatchWindow[Ticket], observer: BatchObserver, *, typical_s: float
    ) -> None:
        """`typical_s`: how long a full batch took when the engine was warmed up."""
        self.name = name
        self._engine, self._window, self._observer = engine, window, observer
        self._typical_s = typical_s
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._running = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        if window.max_delay_s > 0 or typical_s > INLINE_LIMIT_S:
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

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Lets `tickets` run; each is answered or failed, here or later, whatever happens."""
        now_s = time.perf_counter()
        refused: Results = []
        batches: list[list[Ticket]] = []
        with self._lock:
            for ticket in tickets:
                try:
                    self._window.push(ticket, ticket.rows, now_s, ticket.key)
                except Overloaded as error:
                    refused.append((ticket, error))
                if self._thread is None and self._window.waiting_rows >= self._window.max_rows:
                    batches += self._due(now_s)
            if self._thread is None:
                batches += self._due(now_s)
                self._running += len(batches)
            else:
                self._arrived.notify()
        if refused:
            self._deliver(refused, _NO_BATCH)
        for batch in batches:
            self._run(batch, here=True)

    def close(self) -> None:
        """Lets what waits run to its end, then stops the thread."""
        with self._lock:
            self._closed = True
            self._arrived.notify()
        if self._thread is not None:
            self._thread.join()

    def _due(self, now_s: float) -> list[list[Ticket]]:
        return list(iter(lambda: self._window.pop(now_s), []))

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._work, name=f"engine {self.name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            with self._arrived:
                while not (batch := self._window.pop(time.perf_counter())):
                    if self._closed and not self._window.waiting_rows:
                        return
                    due_in_s = self._window.due_at_s - time.perf_counter()
                    self._arrived.wait(None if due_in_s == float("inf") else max(due_in_s, 0.0))
                self._running += 1
            self._run(batch, here=False)

    def _run(self, tickets: list[Ticket], *, here: bool) -> None:
        started_s = time.perf_counter()
        results = self._results(tickets)
        compute_s = time.perf_counter() - started_s
        batch = Batch(sum([ticket.rows for ticket in tickets]), started_s, compute_s)
        queued_s = started_s - tickets[0].arrived_s
        if here:  # the answers first: at this length of a run they wait for every microsecond
            self._answer(results, batch)
            self._observer.ran(batch, queued_s)
        else:
            self._observer.ran(batch, queued_s)
            self._deliver(results, batch)
        with self._lock:
            self._running -= 1
            self._typical_s += 0.1 * (compute_s - self._typical_s)
            if here and self._typical_s > INLINE_LIMIT_S and self._thread is None:
                self._start_thread()

    def _results(self, tickets: list[Ticket]) -> "Results":
        if len(tickets) == 1:
            return [(tickets[0], self._run_alone(tickets[0]))]
        try:
            outputs = self._engine.run(
                {name: np.concatenate([ticket.inputs[name] for ticket in tickets]) for name in tickets[0].inputs}
            )
            return _split(tickets, outputs)
        except Exception:  # whose fault it is shows when each runs alone
            return [(ticket, self._run_alone(ticket)) for ticket in tickets]

    def _run_alone(self, ticket: Ticket) -> "Tensors | RequestError":
        try:
            return self._engine.run(ticket.inputs)
        except RequestError as error:
            return error
        except EngineError as error:
            _log.warning("model %s failed: %s", self.name, error)
            return ModelFailed(f"model '{self.name}' failed: {error}")
        except Exception:
            _log.exception("model %s failed", self.name)
            return ModelFailed(f"model '{self.name}' failed")

    def _deliver(self, results: "Results", batch: Batch) -> None:
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

    def _answer(self, results: "Results", batch: Batch) -> None:
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
            self._observer.answered(answered)

    def _fail(self, ticket: Ticket, error: RequestError) -> None:
        self._observer.failed(ticket.protocol, error)
        ticket.fail(error)


Results = list[tuple[Ticket, Tensors | RequestError]]

_NO_BATCH = Batch(0, 0.0, 0.0)


def _split(tickets: list[Ticket], outputs: Tensors) -> Results:
    """Each ticket with its own rows of every output."""
    rows = sum([ticket.rows for ticket in tickets])
    for name, array in outputs.items():
        if len(array) != rows:
            raise EngineError(f"output '{name}' has {len(array)} rows for {rows} rows of input")
    results: Results = []
    start = 0
    for ticket in tickets:
        stop = start + ticket.rows
        results.append((ticket, {name: array[start:stop] for name, array in outputs.items()}))
        start = stop
    return results
