"""The load of a run as it was asked for: when requests are due, how large they are, and for how long."""

from typing import Annotated, Literal

import msgspec

__all__ = [
    "AboveZero",
    "Arrivals",
    "Bursts",
    "Flat",
    "Plan",
    "Protocol",
    "Ramp",
    "Replay",
    "RowShare",
    "Scenario",
    "Shape",
    "Spikes",
    "Steps",
]

Protocol = Literal[
    "rest", "rest-binary", "grpc", "tfserving", "tfserving-grpc", "torchserve", "sagemaker", "mlflow", "json"
]
"""How a request is written. `rest`, `rest-binary` and `grpc` are the Open Inference Protocol (V2)."""

Arrivals = Literal["poisson", "constant", "replay", "closed"]
"""`closed` is the one closed loop: every user sends when its last request is answered."""

Scenario = Literal["", "single-stream", "multi-stream", "server", "offline"]
"""MLPerf Inference's names for four loads; "" for none of them."""

AboveZero = Annotated[float, msgspec.Meta(gt=0)]


class Flat(msgspec.Struct, frozen=True, tag="flat"):
    """One rate from the beginning to the end."""


class Ramp(msgspec.Struct, frozen=True, tag="ramp"):
    """From the plan's rate to `to_per_s`, in a straight line over the measured part."""

    to_per_s: AboveZero


class Steps(msgspec.Struct, frozen=True, tag="steps"):
    """Each of `rates_per_s` for an equal part of the measured part."""

    rates_per_s: tuple[float, ...]


class Spikes(msgspec.Struct, frozen=True, tag="spikes"):
    """The plan's rate, and `factor` times that for the last `length_s` of every `every_s`."""

    factor: AboveZero
    length_s: AboveZero
    every_s: AboveZero


class Bursts(msgspec.Struct, frozen=True, tag="bursts"):
    """The plan's rate for `on_s`, nothing for `off_s`, and so on; `throughout`: in the warm-up, too."""

    on_s: AboveZero
    off_s: AboveZero
    throughout: bool = False


class Replay(msgspec.Struct, frozen=True, tag="replay"):
    """The arrivals, and the sizes, of a recorded trace: `speed` times as fast as they were, from its beginning."""

    source: str
    sha256: str
    speed: float = 1.0


Shape = Flat | Ramp | Steps | Spikes | Bursts | Replay


class RowShare(msgspec.Struct, frozen=True):
    """The share of the requests, above 0 and up to 1, that carry `rows` rows."""

    rows: int
    share: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The load: fully determined by these values and the payload they name.

    `rate_per_s` is what `shape` starts from; the mean of a replay; 0 in a closed loop, which has `users` instead.
    `duration_s` is the measured part. `warm_up_s` at the same rate comes before it; with `find_warm_up` it is the least
    that is cut, and where the run shows more warming up, more is. With `precision` (0: without), the run goes on until
    the interval of `percentile` is at most that share of it to either side, or until `max_duration_s` were measured.

    At most `max_in_flight` requests wait at once: one that is due beyond that is dropped and counted, never delayed.
    `row_mix` has more than one entry where requests differ in size; `batch_rows` is then the largest. `generators` is
    the number of processes that share the one schedule. `check_answers`: every answer is compared with the expected.
    `max_errors` is the share of failed requests up to which a run is VALID.
    """

    rate_per_s: Annotated[float, msgspec.Meta(ge=0)]
    duration_s: AboveZero
    warm_up_s: Annotated[float, msgspec.Meta(ge=0)]
    arrivals: Arrivals = "poisson"
    shape: Shape = Flat()
    users: int = 0
    scenario: Scenario = ""
    protocol: Protocol = "rest"
    batch_rows: int = 1
    row_mix: tuple[RowShare, ...] = ()
    seed: int = 0
    max_in_flight: int = 1024
    timeout_s: float = 10.0
    payload: str = ""
    find_warm_up: bool = False
    percentile: float = 0.99
    precision: float = 0.0
    max_duration_s: float = 0.0
    generators: int = 1
    check_answers: bool = False
    max_errors: float = 0.01
    locustfile: str = ""

    @property
    def closed(self) -> bool:
        """Whether this is a closed loop, whose latencies say nothing of a production load."""
        return self.arrivals == "closed"

    @property
    def endless(self) -> bool:
        """Whether the load is the same for as long as it is wanted, so that a run of it can be extended."""
        return self.arrivals != "replay" and not isinstance(self.shape, Ramp | Steps)

    @property
    def open_ended(self) -> bool:
        """Whether what is measured decides when the run ends."""
        return bool(self.precision or self.find_warm_up)

    @property
    def end_s(self) -> float:
        """When the run ends if nobody stops it, since its first instant."""
        return self.longest_s if self.open_ended else self.warm_up_s + self.duration_s

    @property
    def longest_s(self) -> float:
        """The most the run may take, without its last answers: warm-up, what it may be extended to, and room for
        more warm-up than was planned.
        """
        measured_s = max(self.duration_s, self.max_duration_s)
        return self.warm_up_s + measured_s + (self.duration_s if self.find_warm_up else 0.0)
