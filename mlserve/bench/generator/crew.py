"""What crosses between the generators of one run: Locust's own messages, each of which carries one of these values.

The leader asks (`Order`), the members answer (`News`). Rows travel as they are, in MessagePack, which costs a member a
twentieth of what turning them into Arrow would (0.04 us a row against 0.85).
"""

import socket
from pathlib import Path
from typing import Any

import msgspec

from mlserve import __version__
from mlserve.bench.generator.generator import Share, Total
from mlserve.bench.generator.job import Stop, Tick
from mlserve.runs.run import Calibration
from mlserve.runs.samples import Sample

__all__ = [
    "HELLO",
    "NEWS",
    "ORDER",
    "REFUSED",
    "Assignment",
    "Begin",
    "Done",
    "Left",
    "News",
    "Order",
    "Ping",
    "Pong",
    "Ready",
    "Rows",
    "boot_id",
    "decode_news",
    "decode_order",
    "describe_self",
    "encode",
]

HELLO, REFUSED, ORDER, NEWS = "mlserve-hello", "mlserve-refused", "mlserve-order", "mlserve-news"
"""Locust's names for our messages. Only the first two are understood by every version of mlserve."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Assignment(msgspec.Struct, frozen=True, kw_only=True, tag="assignment"):
    """A member's part: `job` as write_job writes it, and `scenario`, the text of its locustfile, if it has one."""

    job: bytes
    share: Share
    scenario: bytes = b""


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """To be answered at once, with the same stamp."""

    stamp_ns: int


class Begin(msgspec.Struct, frozen=True, kw_only=True, tag="begin"):
    """The first instant of the schedule: on the clock that both sides read, or counted from the arrival of this."""

    start_ns: int
    from_arrival: bool


Order = Assignment | Ping | Begin | Stop


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Everything is prepared, and the null server, if there is one, was asked."""

    calibration: Calibration | None


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to a ping."""

    stamp_ns: int


class Rows(msgspec.Struct, frozen=True, kw_only=True, tag="rows"):
    """What came since the last of these, and how far the member is."""

    rows: list[Sample]
    tick: Tick


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The member's share was sent, and all its rows."""

    total: Total


class Left(msgspec.Struct, frozen=True, kw_only=True, tag="left"):
    """The member cannot go on."""

    reason: str


News = Ready | Pong | Rows | Done | Left

_encoder = msgspec.msgpack.Encoder()
_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_news: msgspec.msgpack.Decoder[News] = msgspec.msgpack.Decoder(News)


def encode(value: Order | News) -> bytes:
    """The payload of one message."""
    return _encoder.encode(value)


def decode_order(payload: bytes) -> Order:
    """What `encode` wrote."""
    return _orders.decode(payload)


def decode_news(payload: bytes) -> News:
    """What `encode` wrote."""
    return _news.decode(payload)


def describe_self(pid: int, number: int | None) -> dict[str, Any]:
    """What a member says of itself, plainly, so that a leader of any version understands it."""
    said = {"version": __version__, "host": socket.gethostname(), "pid": pid, "boot_id": boot_id()}
    return said if number is None else said | {"number": number}


def boot_id() -> str:
    """What two processes have in common whose monotonic clocks are one; "" where the system does not tell."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.is_file() else ""
