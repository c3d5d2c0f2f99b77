"""Where a request's time went, as the standard header `server-timing` says it: in one place, for every transport."""

from mlserve.serve.batching.batcher import Batch

__all__ = ["SERVER_TIMING", "WANTS_TIMING", "server_timing"]

SERVER_TIMING = "server-timing"
"""The response header, or gRPC's trailing metadata, that says it."""

WANTS_TIMING = b"mlserve-timing"
"""The request header, of any value, that asks for it."""


def server_timing(arrived_s: float, *batches: Batch) -> str:
    """`queue;dur=0.120, compute;dur=1.934, batch;desc="8 rows"`, times in milliseconds.

    `queue` is from the request's last byte, at `arrived_s`, until its run began, with the reading of texts or images
    where there is any. Of several `batches` the first began it, and all of them computed.
    """
    queue_s = min(batch.started_s for batch in batches) - arrived_s
    compute_s = sum(batch.compute_s for batch in batches)
    rows = sum(batch.rows for batch in batches)
    plural = "" if rows == 1 else "s"
    return f'queue;dur={1e3 * queue_s:.3f}, compute;dur={1e3 * compute_s:.3f}, batch;desc="{rows} row{plural}"'
