"""What crosses between `mlserve bench` and its generators: the job on the way in, progress on the way back, and the
word to stop.
"""

from pathlib import Path

import msgspec

from mlserve.bench.clients.client import Request
from mlserve.bench.dialects.dialect import Transport
from mlserve.bench.trust import Trust
from mlserve.model.tensors import TensorSpec
from mlserve.runs.load import Plan
from mlserve.runs.run import Calibration

__all__ = [
    "Address",
    "Calibrated",
    "Command",
    "Failed",
    "Finished",
    "Go",
    "Job",
    "Joined",
    "Listening",
    "Message",
    "Prepared",
    "Report",
    "Started",
    "Stop",
    "Tick",
    "Waiting",
    "read_job",
    "write_job",
]


class Address(msgspec.Struct, frozen=True):
    """Where requests go: `path` is a path of HTTP, or a method of gRPC. With `trust` they go over TLS."""

    transport: Transport
    host: str
    port: int
    path: str
    trust: Trust | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the generators need.

    Arrival k of the schedule sends request `order[k % len(order)]`. `trace_ns` holds the arrivals of a replay, int64s
    since its beginning; empty otherwise. `expected[number]` are the tensors that the answer to request `number` must
    hold, as payload.expected writes them, `outputs` what they are called and `answer` where in a document they are;
    empty where answers are not checked. `null_server` is the one to calibrate against first. `locustfile` is a user's
    own scenario. `name` is what Locust calls the requests. `waits`: the generator, which is alone, begins when it is
    told to.
    """

    plan: Plan
    name: str
    address: Address
    requests: tuple[Request, ...]
    order: tuple[int, ...]
    directory: str
    trace_ns: bytes = b""
    expected: tuple[bytes, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    answer: str = ""
    null_server: Address | None = None
    locustfile: str = ""
    waits: bool = False


class Prepared(msgspec.Struct, frozen=True, kw_only=True, tag="prepared"):
    """The generator's process, which waits for `Go`."""

    pid: int


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The generators' processes run, each held to its cores, and the first request is due in `lead_s`."""

    started_at: str
    pids: tuple[int, ...]
    lead_s: float


class Calibrated(msgspec.Struct, frozen=True, kw_only=True, tag="calibrated"):
    """What came of the null server."""

    calibration: Calibration


class Tick(msgspec.Struct, frozen=True, kw_only=True, tag="tick"):
    """How far the generators are, counted from the run's first instant; `elapsed_s` is negative before it.

    `latencies` counts the good answers since the tick before by the bucket of their latency, see
    progress.LatencyHistogram.
    """

    elapsed_s: float
    sent: int
    ok: int
    failed: int
    dropped: int
    in_flight: int
    latencies: dict[int, int]


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The schedule was sent and every request answered or given up.

    `end_s` is the instant, since the run's first, before which every arrival of the schedule has its row. `cpus` are
    the shares of one core that each generator used while it sent. `ok` and `failed` count the whole run, warm-up
    included, as the server does.
    """

    end_s: float
    cpus: tuple[float, ...]
    ok: int
    failed: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True, tag="waiting"):
    """How many of the generators that share the schedule have joined."""

    joined: int
    expected: int


Message = Prepared | Started | Calibrated | Tick | Finished | Waiting


class Listening(msgspec.Struct, frozen=True, kw_only=True, tag="listening"):
    """The leader of several generators is there; the others may join it on this port."""

    port: int


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """A generator was welcomed by the leader."""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The run cannot go on, for a reason that its user can mend."""

    reason: str


Report = Message | Listening | Joined | Failed
"""What comes through the pipe of a generator's process: messages, and what only whoever started it heeds."""


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """Send what is due before `at_s` since the run's first instant, and nothing after. An instant that is over, or
    nearly, becomes the next that can be kept by all generators alike.
    """

    at_s: float


class Go(msgspec.Struct, frozen=True, kw_only=True, tag="go"):
    """To a generator that waits: the run's first instant, of `time.monotonic_ns`."""

    start_ns: int


Command = Stop | Go


def write_job(path: Path, job: Job) -> None:
    """MessagePack, because bodies are bytes."""
    path.write_bytes(msgspec.msgpack.encode(job))


def read_job(path: Path) -> Job:
    """The job that `write_job` wrote."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Job)
