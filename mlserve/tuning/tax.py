"""What a protocol costs: the same model and the same rows in process and over each protocol, one request at a time,
and where the time of a request goes.

Client, network and server are told apart by three measurements, taken in turn. The server says what it spent (its
`server-timing`). The same client, asking a server that answers at once with the same bytes, shows what client and
network take by themselves; of that, the client's is the processor time that it used. What is left of a request's time
is `other`: what the server does around what it times, reading the head and writing the reply among it, beyond what
the null server does.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.stats import Interval, mean_of, ratio_interval

__all__ = ["PARTS", "Asked", "Floor", "Split", "TaxReport", "TaxRow", "read_entries", "tax_row"]

PARTS = ("client", "network", "parse", "queue", "wait", "compute", "encode", "other")
"""The parts of a request's time, in the order in which they come about; `wait` is for others to share a batch."""

_ENTRY = re.compile(r"([a-z]+);dur=([0-9.]+)")
# The requests around the median, whose mean split stands for it: parts of a median do not add up.
_MIDDLE = (0.4, 0.6)


class Asked(msgspec.Struct, frozen=True):
    """One request: how long it took, what of that the client spent on encoding and decoding, and what the server said
    (seconds). `round` is the round that it was asked in.
    """

    round: int
    total_s: float
    coding_s: float
    said_s: Mapping[str, float] = {}


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """What one request costs client and network by themselves: mean and median of its time without coding, and the
    processor time of that (seconds).
    """

    mean_s: float = 0.0
    median_s: float = 0.0
    cpu_s: float = 0.0


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a request went (seconds). The parts add up to `total`."""

    client: float = 0.0
    network: float = 0.0
    parse: float = 0.0
    queue: float = 0.0
    wait: float = 0.0
    compute: float = 0.0
    encode: float = 0.0
    other: float = 0.0
    total: float


class TaxRow(msgspec.Struct, frozen=True, kw_only=True):
    """One way to ask. `tax` is its mean time over that in process, `low` and `high` bound it with 95% confidence, by a
    bootstrap of rounds; NaN where there are too few of them, and in process.
    """

    way: str
    requests: int
    mean: Split
    median: Split
    tax: float
    low: float
    high: float


class TaxReport(msgspec.Struct, frozen=True, kw_only=True):
    """The way in process first. `rate_per_s` is 0.0 where each request followed the one before."""

    format_version: int = 1
    model: str
    batch_rows: int
    rate_per_s: float
    rows: tuple[TaxRow, ...]


def read_entries(header: str) -> dict[str, float]:
    """The durations (seconds) that a `server-timing` header says, by name."""
    return {name: float(duration) / 1000 for name, duration in _ENTRY.findall(header)}


def tax_row(way: str, asked: Sequence[Asked], floor: Floor | None, in_process: Sequence[Asked]) -> TaxRow:
    """The row of `asked`; `floor` is None in process, where all is compute."""
    totals = np.array([one.total_s for one in asked])
    low, high = np.quantile(totals, _MIDDLE)
    middle = [one for one in asked if low <= one.total_s <= high]
    interval = (math.nan, math.nan) if asked is in_process else _tax_interval(in_process, asked)
    return TaxRow(
        way=way,
        requests=len(asked),
        mean=_split(asked, floor, lambda floor: floor.mean_s),
        median=_split(middle, floor, lambda floor: floor.median_s),
        tax=float(totals.mean()) / float(np.mean([one.total_s for one in in_process])),
        low=interval[0],
        high=interval[1],
    )


def _split(asked: Sequence[Asked], floor: Floor | None, floor_s: Callable[[Floor], float]) -> Split:
    total = float(np.mean([one.total_s for one in asked]))
    if floor is None:
        return Split(compute=total, total=total)
    said = {name: float(np.mean([one.said_s.get(name, 0.0) for one in asked])) for name in _SAID}
    library_s = min(floor.cpu_s, floor_s(floor))
    parts = {
        "client": float(np.mean([one.coding_s for one in asked])) + library_s,
        "network": floor_s(floor) - library_s,
        "parse": said["parse"],
        "queue": said["queue"] - said["wait"],
        "wait": said["wait"],
        "compute": said["compute"],
        "encode": said["encode"],
    }
    return Split(**parts, other=total - sum(parts.values()), total=total)


_SAID = ("parse", "queue", "wait", "compute", "encode")


def _tax_interval(in_process: Sequence[Asked], asked: Sequence[Asked]) -> Interval:
    """A round is a block: what asks in turn within it has the machine's mood in common."""
    return ratio_interval([_blocks(in_process)], [_blocks(asked)], mean_of)


def _blocks(asked: Sequence[Asked]) -> list[npt.NDArray[np.float64]]:
    rounds = sorted({one.round for one in asked})
    return [np.array([one.total_s for one in asked if one.round == number]) for number in rounds]
