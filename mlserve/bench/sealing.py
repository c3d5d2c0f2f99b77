"""The digests of what a run sends and when: two runs with the same ones are the same experiment."""

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from mlserve.bench.load.schedule import schedule
from mlserve.bench.payload.payload import Payload, PayloadWish
from mlserve.errors import BenchError
from mlserve.runs.load import Plan
from mlserve.runs.lock import Lock, locked_file

__all__ = ["sealed"]

_SEALED = {"the instants at which requests are due": "schedule_sha256", "the requests": "requests_sha256"}


def sealed(lock: Lock | None, plan: Plan, payload: Payload, wish: PayloadWish) -> Lock | None:
    """`lock` with the digests of this run's schedule, requests and locustfile.

    **Law:** digests that `lock` names already are held to. Raises BenchError, before any load, where this run would
    send something else, or at other instants.
    """
    if lock is None:
        return None
    if plan.locustfile and lock.file("locustfile") is None:
        lock = msgspec.structs.replace(lock, files=(*lock.files, locked_file("locustfile", Path(plan.locustfile))))
    trace_ns = wish.trace.arrivals_ns.tobytes() if wish.trace is not None else b""
    found = msgspec.structs.replace(
        lock,
        schedule_sha256="" if plan.closed else hashlib.sha256(schedule(plan, trace_ns).tobytes()).hexdigest(),
        requests_sha256=_requests_sha256(payload),
    )
    for what, field in _SEALED.items():
        held, now = getattr(lock, field), getattr(found, field)
        if held and held != now:
            raise BenchError(
                f"{what} are not those of the run that is made again (SHA-256 {now[:12]}, there {held[:12]}): "
                "the server takes other inputs, or another version of mlserve or of numpy makes other ones; make a new "
                "run without --like"
            )
    return found


def _requests_sha256(payload: Payload) -> str:
    """Of each body's length and content, and then of the order as int64s; "" where there are none."""
    if not payload.requests:
        return ""
    digest = hashlib.sha256()
    for request in payload.requests:
        digest.update(len(request.body).to_bytes(8, "little"))
        digest.update(request.body)
    digest.update(np.array(payload.order, np.int64).tobytes())
    return digest.hexdigest()
