"""What crosses between `mlserve bench` and its generator process: the job on the way in, progress on the way back."""

from pathlib import Path

import msgspec

from mlserve.bench.target import Target
from mlserve.runs.run import Plan

__all__ = ["Finished", "Job", "Message", "Tick", "read_job", "write_job"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one generator needs. `headers` belong to every body (REST only); rows go to `directory`."""

    plan: Plan
    target: Target
    bodies: tuple[bytes, ...]
    headers: dict[str, str]
    directory: str


class Tick(msgspec.Struct, frozen=True, kw_only=True, tag="tick"):
    """How far the generator is, counted from the run's first instant; `elapsed_s` is negative before it.

    `latencies_ns` are those of the measured requests that were answered well since the tick before.
    """

    elapsed_s: float
    sent: int
    ok: int
    failed: int
    dropped: int
    in_flight: int
    latencies_ns: list[int]


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The schedule was sent and every request answered or given up.

    `cpu` is the share of one core that the generator used while it sent the measured part. `ok` and `failed` count the
    whole run, warm-up included, as the server does.
    """

    started_at: str
    cpu: float
    ok: int
    failed: int


Message = Tick | Finished


def write_job(path: Path, job: Job) -> None:
    """MessagePack, because bodies are bytes."""
    path.write_bytes(msgspec.msgpack.encode(job))


def read_job(path: Path) -> Job:
    """The job that `write_job` wrote."""
    return msgspec.msgpack.decode(path.read_bytes(), type=Job)
