"""Whether there is room for a request, asked before its bytes are read: to refuse one must cost less than to run it."""

from mlserve.serve.batching.batcher import Batcher

__all__ = ["check_room"]

_MAY_BE_URGENT = b"priority"


def check_room(batcher: Batcher, body: bytes) -> None:
    """Raises Overloaded where the queue is full for every request, except for one that may name a priority.

    Only where requests wait at all (`batcher.queues`) is that worth asking.
    """
    if _MAY_BE_URGENT not in body:
        batcher.check_room()
