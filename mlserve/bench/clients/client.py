"""The seam every client fits: `send` one encoded request and say what came of it."""

from typing import NamedTuple, Protocol

__all__ = ["Client", "Reply"]


class Reply(NamedTuple):
    """What came of one request.

    `status` is "ok" or a short word for what went wrong, of which there are few. `first_byte_ns` is the instant on the
    monotonic clock at which the answer began, None where the client cannot tell.
    """

    status: str
    version: str
    first_byte_ns: int | None


class Client(Protocol):
    """**Law:** `send` waits for the whole answer, in the calling greenlet only; it ends within the plan's timeout and
    does not raise: a request that failed is a reply with another status.
    """

    def send(self, body: bytes) -> Reply: ...

    def close(self) -> None: ...
