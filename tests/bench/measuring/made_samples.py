"""Samples from numbers: runs whose course is known, without a server."""

import numpy as np
import pyarrow as pa
from scipy.signal import lfilter

from mlserve.runs.samples import OK, SCHEMA, Samples

BASE_S = 0.010


def make_samples(due_s, latency_s, failed=None) -> Samples:
    """One row for each of `due_s` [n], seconds since the run's first instant; `failed` [n] were not answered well."""
    n = len(due_s)
    scheduled = np.round(np.asarray(due_s) * 1e9).astype(np.int64)
    done = scheduled + np.round(np.broadcast_to(latency_s, n) * 1e9).astype(np.int64)
    status = np.full(n, OK, object)
    if failed is not None:
        status[failed] = "HTTP 503"
    zeros = pa.array(np.zeros(n, np.int16))
    of = {
        "scheduled_ns": pa.array(scheduled),
        "sent_ns": pa.array(scheduled),
        "done_ns": pa.array(done),
        "rows": pa.array(np.ones(n, np.int32)),
        "status": pa.array(status, pa.string()),
        "version": pa.array([""] * n),
    }
    columns = [
        of[field.name] if field.name in of else pa.nulls(n, field.type) if field.nullable else zeros.cast(field.type)
        for field in SCHEMA
    ]
    return Samples(pa.Table.from_arrays(columns, schema=SCHEMA))


def arrivals(rng, rate_per_s, duration_s):
    return np.sort(rng.uniform(0, duration_s, rng.poisson(rate_per_s * duration_s)))


def noisy(rng, n, spread=0.3):
    return BASE_S * np.exp(spread * rng.standard_normal(n))


def correlated(rng, n, r, spread=0.4):
    """Latencies whose logarithms are an AR(1) series."""
    noise = rng.standard_normal(n) * np.sqrt(1 - r * r)
    noise[0] = rng.standard_normal()
    return BASE_S * np.exp(spread * lfilter([1], [1, -r], noise))


def queue(due_s, service_s):
    """Response times of one server that takes requests in turn (Lindley)."""
    done = np.cumsum(service_s)
    return np.maximum.accumulate(due_s - (done - service_s)) + done - due_s


def steady_queue(rng, load, rate_per_s, duration_s):
    """(due, latency) of a queue of one server that had run for long before."""
    due_s = np.sort(rng.uniform(-duration_s / 2, duration_s, rng.poisson(1.5 * rate_per_s * duration_s)))
    latency_s = queue(due_s, rng.exponential(load / rate_per_s, len(due_s)))
    return due_s[due_s >= 0], latency_s[due_s >= 0]
