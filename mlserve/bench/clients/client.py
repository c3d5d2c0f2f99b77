"""The seam every client fits: it sends one of the run's requests at once, and tells later what came of it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

__all__ = ["Answered", "Client", "Opens", "Reply", "Request"]


class Request(msgspec.Struct, frozen=True):
    """One encoded request. `headers` go with it (metadata over gRPC); `rows` is how many rows of input it carries."""

    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    rows: int = 1


class Reply(NamedTuple):
    """What came of one request.

    `status` is "ok" or a short word for what went wrong, of which there are few. `content` is the body of the answer,
    or the message over gRPC; of a failure it may be empty. `first_byte_ns` is the instant on the monotonic clock at
    which the answer began, None where the client cannot tell. `timing` is the answer's `server-timing`, "" without one.
    """

    status: str
    content: bytes = b""
    first_byte_ns: int | None = None
    timing: str = ""


Answered = Callable[[Reply], None]


class Client(Protocol):
    """Made with all of a run's requests, so that each can be prepared once.

    **Law:** `send` hands request `number` to a connection and returns without waiting for anything. `answered` is
    called exactly once for it, by the event loop and never before `send` returns: when the whole answer is there, when
    it failed, or when the plan's timeout is over. Neither raises: a request that failed is a reply with another status.
    """

    def send(self, number: int, answered: Answered) -> None: ...

    def close(self) -> None: ...


class Opens(Protocol):
    """How a client is made: for an address, a path (or gRPC method), and the requests."""

    def __call__(self, host: str, port: int, path: str, requests: Sequence[Request], timeout_s: float) -> Client: ...
