"""A meter that also logs and traces: what a worker uses where single requests are to be told of."""

import secrets
import time
from collections.abc import Mapping, Sequence
from functools import cache

from mlserve.errors import RequestError
from mlserve.serve.batching.batcher import Batch, Ticket
from mlserve.serve.metrics import ModelMeter
from mlserve.serve.settings import WatchSettings
from mlserve.serve.transports.http_reply import REQUEST_ID
from mlserve.serve.watching.request_log import ERRORS_PER_S, LineWriter, RequestLog
from mlserve.serve.watching.sampling import Allowance, Sampler
from mlserve.serve.watching.tracing import TRACEPARENT, Moments, Tracing, parse_traceparent

__all__ = ["WatchedMeter", "headers_wanted", "open_meter"]

# What clients may choose is cut: an identity has no more use than this.
_LONGEST_ID = 128


def open_meter(model: str, version: str, watch: WatchSettings) -> ModelMeter:
    """The meter of a version: a plain one unless `watch` asks for more. Raises UsageError without the extra `otel`."""
    log = None
    if watch.log_share > 0 or watch.log_file:
        log = RequestLog(_writer(watch.log_file, watch.log_max_bytes, watch.log_keep), model, version)
    tracing = _tracing(watch.otlp_endpoint) if watch.otlp_endpoint else None
    if log is None and tracing is None:
        return ModelMeter(model, version)
    return WatchedMeter(model, version, watch, log, tracing)


def headers_wanted(watch: WatchSettings) -> frozenset[bytes]:
    """The headers that logs and traces look at, for the transports to note."""
    logged = {REQUEST_ID} if watch.log_share > 0 or watch.log_file else set()
    traced = {REQUEST_ID, TRACEPARENT} if watch.otlp_endpoint else set()
    return frozenset(logged | traced)


class WatchedMeter(ModelMeter):
    """Counts, and tells of a share of the requests: lines to `log`, spans to `tracing`, where they are not None.

    Every error is logged, up to a rate; a request whose client traces it is traced, one whose client does not is not.
    """

    def __init__(
        self, model: str, version: str, watch: WatchSettings, log: RequestLog | None, tracing: Tracing | None
    ) -> None:
        super().__init__(model, version)
        self._log, self._tracing = log, tracing
        self._named = {"mlserve.model": model, "mlserve.version": version}
        self._span = f"infer {model}"
        self._logged = Sampler(watch.log_share if log else 0.0)
        self._traced = Sampler(watch.trace_share if tracing else 0.0)
        self._errors = Allowance(ERRORS_PER_S)

    def answered(self, tickets: Sequence[Ticket], batch: Batch) -> None:
        super().answered(tickets, batch)
        with self._lock:
            logged, traced = self._logged.choose(len(tickets)), self._traced.choose(len(tickets))
        done_s = time.perf_counter()
        for position in logged:
            self._log_answer(tickets[position], batch, done_s)
        if self._tracing is not None:
            for position, ticket in enumerate(tickets):
                if position in traced or TRACEPARENT in ticket.headers:
                    self._trace(ticket, batch, done_s, chosen=position in traced)

    def asked(self, protocol: str, elapsed_s: float, request_id: str = "") -> None:
        super().asked(protocol, elapsed_s, request_id)
        with self._lock:
            logged, traced = self._logged.choose(1), self._traced.choose(1)
        identity = request_id[:_LONGEST_ID] or _made_up()
        if logged and self._log is not None:
            self._log.answered(protocol, identity, {"total_s": round(elapsed_s, 6)})
        if traced and self._tracing is not None:
            done_s = time.perf_counter()
            attributes = {**self._named, "mlserve.protocol": protocol, "mlserve.request_id": identity}
            self._tracing.add(self._span, Moments(done_s - elapsed_s, None, 0.0, done_s), attributes, None)

    def failed(self, protocol: str, error: RequestError, ticket: Ticket | None = None) -> None:
        super().failed(protocol, error, ticket)
        if not protocol:
            return
        done_s = time.perf_counter()
        outcome = type(error).__name__
        if self._log is not None:
            self._log_failure(protocol, outcome, error.http_status, ticket, done_s)
        if self._tracing is not None and ticket is not None:
            parent = parse_traceparent(ticket.headers.get(TRACEPARENT))
            with self._lock:
                chosen = bool(self._traced.choose(1))
            if parent.sampled if parent else chosen:
                moments = Moments(ticket.arrived_s, None, 0.0, done_s)
                self._tracing.add(self._span, moments, self._attributes(ticket), parent, outcome)

    def _log_answer(self, ticket: Ticket, batch: Batch, done_s: float) -> None:
        if self._log is None or not ticket.protocol:
            return
        figures = {
            "rows": ticket.rows,
            "batch_rows": batch.rows,
            "queue_s": round(batch.started_s - ticket.arrived_s, 6),
            "compute_s": round(batch.compute_s, 6),
            "total_s": round(done_s - ticket.arrived_s, 6),
        }
        self._log.answered(ticket.protocol, _identity(ticket), figures)

    def _log_failure(self, protocol: str, outcome: str, status: int, ticket: Ticket | None, done_s: float) -> None:
        assert self._log is not None
        with self._lock:
            if not self._errors.take(done_s):
                return
            suppressed, self._errors.refused = self._errors.refused, 0
        figures: dict[str, float] = {}
        if ticket is not None:
            figures = {"rows": ticket.rows, "total_s": round(done_s - ticket.arrived_s, 6)}
        if suppressed:
            figures["suppressed"] = suppressed
        self._log.failed(protocol, _identity(ticket) if ticket else _made_up(), outcome, status, figures)

    def _trace(self, ticket: Ticket, batch: Batch, done_s: float, *, chosen: bool) -> None:
        parent = parse_traceparent(ticket.headers.get(TRACEPARENT))
        if not ticket.protocol or not (parent.sampled if parent else chosen):
            return
        assert self._tracing is not None
        moments = Moments(ticket.arrived_s, batch.started_s, batch.compute_s, done_s)
        attributes = {**self._attributes(ticket), "mlserve.batch_rows": batch.rows}
        self._tracing.add(self._span, moments, attributes, parent)

    def _attributes(self, ticket: Ticket) -> Mapping[str, str | int]:
        return {
            **self._named,
            "mlserve.protocol": ticket.protocol,
            "mlserve.rows": ticket.rows,
            "mlserve.request_id": _identity(ticket),
        }


def _identity(ticket: Ticket) -> str:
    """The request's own id, else the one its header gives, else a new one."""
    own = ticket.request.id
    if own:
        return own[:_LONGEST_ID]
    given = ticket.headers.get(REQUEST_ID)
    return given[:_LONGEST_ID].decode("latin-1") if given else _made_up()


def _made_up() -> str:
    return secrets.token_hex(8)


@cache
def _writer(path: str, max_bytes: int, keep: int) -> LineWriter:
    return LineWriter(path, max_bytes, keep)


@cache
def _tracing(endpoint: str) -> Tracing:
    return Tracing(endpoint)
