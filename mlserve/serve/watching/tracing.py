"""Traces of single requests for an OpenTelemetry collector: a span each for the request, its wait, and its run.

Spans are made when a request has been answered, from the times the batcher took anyway. The extra `otel` brings what
sends them.
"""

import os
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mlserve import __version__
from mlserve.errors import UsageError

__all__ = ["TRACEPARENT", "Moments", "Parent", "Tracing", "parse_traceparent"]

TRACEPARENT = b"traceparent"
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_EXPORT_TIMEOUT_S = 2.0


class Parent(NamedTuple):
    """The client's span, and whether the client keeps its trace."""

    trace_id: int
    span_id: int
    sampled: bool


class Moments(NamedTuple):
    """When a request came, when its run began, how long that computed, and when it was answered (`perf_counter`).

    `started_s` is None for a request that never ran.
    """

    arrived_s: float
    started_s: float | None
    compute_s: float
    done_s: float


def parse_traceparent(value: bytes | None) -> Parent | None:
    """What the header says (W3C Trace Context, 3.2); None where it says nothing that can be used."""
    found = _TRACEPARENT.fullmatch(value) if value else None
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    return Parent(trace_id, span_id, bool(int(found[4], 16) & 1)) if trace_id and span_id else None


class Tracing:
    """Sends spans to `endpoint`, a collector's OTLP address over HTTP (`http://127.0.0.1:4318`).

    Raises UsageError when the extra `otel` is not installed or `endpoint` is no address.
    """

    def __init__(self, endpoint: str) -> None:
        address = urlsplit(endpoint)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise UsageError(f"--otlp-endpoint {endpoint!r} is no address; write it like http://127.0.0.1:4318")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError as error:
            raise UsageError(f"traces need the extra 'otel' ({error}); pip install 'mlserve[otel]'") from error
        url = endpoint if address.path.strip("/") else f"{address.scheme}://{address.netloc}/v1/traces"
        described = {"service.name": "mlserve", "service.version": __version__, "service.instance.id": str(os.getpid())}
        # It sends what waits when the process ends.
        provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource(described))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url, timeout=_EXPORT_TIMEOUT_S)))
        self._tracer = provider.get_tracer("mlserve", __version__)

    def add(
        self, name: str, moments: Moments, attributes: Mapping[str, Any], parent: Parent | None, error: str = ""
    ) -> None:
        """One request's spans. `error` is the name of what it was answered with, empty for an answer."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        # perf_counter's zero is nobody else's: what counts is how long ago things were.
        now_ns, now_s = time.time_ns(), time.perf_counter()

        def at_ns(moment_s: float) -> int:
            return now_ns - round((now_s - moment_s) * 1e9)

        span = self._tracer.start_span(
            name, _context(parent), SpanKind.SERVER, attributes, start_time=at_ns(moments.arrived_s)
        )
        if moments.started_s is not None:
            inside = set_span_in_context(span)
            ran_s = moments.started_s + moments.compute_s
            for part, begin_s, end_s in (
                ("queue", moments.arrived_s, moments.started_s),
                ("compute", moments.started_s, ran_s),
            ):
                self._tracer.start_span(part, inside, start_time=at_ns(begin_s)).end(at_ns(end_s))
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(at_ns(moments.done_s))


def _context(parent: Parent | None) -> Any:
    if parent is None:
        return None
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    return set_span_in_context(
        NonRecordingSpan(SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags))
    )
