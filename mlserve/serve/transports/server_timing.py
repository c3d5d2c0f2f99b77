"""Where a request's time went, as the standard header `server-timing` says it: in one place, for every transport."""

from mlserve.serve.batching.batcher import Batch

__all__ = ["SERVER_TIMING", "WANTS_TIMING", "server_timing"]

SERVER_TIMING = "server-timing"
"""The response header, or gRPC's trailing metadata, that says it."""

WANTS_TIMING = b"mlserve-timing"
"""The request header, of any value, that asks for it."""


def server_timing(
    arrived_s: float, *batches: Batch, parse_s: float | None = None, encode_s: float | None = None
) -> str:
    """`queue;dur=0.120, compute;dur=1.934, batch;desc="8 rows"`, times in milliseconds.

    `queue` is from the request's last byte, at `arrived_s`, until its run began, with the reading of texts or images
    where there is any. Of several `batches` the first began it, and all of them computed. Where the fast lane knows
    `parse_s`, the decoding of the request before that, and `encode_s`, that of the answer, there are three entries more
    before the last: `parse`, `wait` (the part of `queue` in which the engine was free, so that the request waited only
    for others to share its run) and `encode`.
    """
    first = min(batches, key=_started_s)
    compute_s = sum(batch.compute_s for batch in batches)
    rows = sum(batch.rows for batch in batches)
    said = f"queue;dur={1e3 * (first.started_s - arrived_s):.3f}, compute;dur={1e3 * compute_s:.3f}"
    if parse_s is not None and encode_s is not None:
        wait_s = max(0.0, first.started_s - max(arrived_s, first.free_s))
        said += f", parse;dur={1e3 * parse_s:.3f}, wait;dur={1e3 * wait_s:.3f}, encode;dur={1e3 * encode_s:.3f}"
    return f'{said}, batch;desc="{rows} row{"" if rows == 1 else "s"}"'


def _started_s(batch: Batch) -> float:
    return batch.started_s
