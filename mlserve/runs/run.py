"""`run.json`: what was asked of a load test, of what, where, and what came of it. The raw rows lie beside it."""

import shlex
from pathlib import Path
from typing import Any

import msgspec

from mlserve.errors import RunFileError
from mlserve.model.artifact import Accuracy
from mlserve.runs.load import Plan
from mlserve.runs.lock import Lock
from mlserve.runs.machine import Machine
from mlserve.runs.resources import Resources
from mlserve.runs.window import Window

__all__ = [
    "RUN_FILE",
    "Calibration",
    "Certificate",
    "Check",
    "Counts",
    "Run",
    "ServedModel",
    "ServerSettings",
    "find_runs",
    "read_run",
    "write_run",
]

RUN_FILE = "run.json"

# 1: first format (0.1.0)
# 2: `window` says what was measured; what the processes used, and the null server
FORMAT_VERSION = 2


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """What answered. `variant`, `sha256`, `size_bytes` and `accuracy` are known for a version of a store only.

    `provider` is the execution provider, or the engine, that the server says it runs the model on, and `precision` the
    type it computes in; "" where it does not say.
    """

    url: str
    name: str
    version: str = ""
    variant: str = ""
    sha256: str = ""
    size_bytes: int | None = None
    accuracy: Accuracy | None = None
    provider: str = ""
    precision: str = ""


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server was set, where the bench started it itself. `cpus` are the cores it was held to; `engine` and
    `compute_type` are "" where it chose them itself, `python` is the interpreter whose mlserve served, "" for the
    bench's own.
    """

    workers: int
    threads: int
    max_batch_rows: int
    max_delay_ms: float
    device: str
    cpus: tuple[int, ...]
    engine: str = ""
    compute_type: str = ""
    python: str = ""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """The same generator with the same requests at the same rate against a server that answers at once, just before
    the run: what generator, client and kernel cost by themselves. Latency counts from the scheduled instant.
    """

    requests: int
    p50_s: float
    p99_s: float
    lag_p99_s: float
    achieved_per_s: float


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of the measured part, and the generators' own cost: the share of one core that the busiest used."""

    scheduled: int
    ok: int
    failed: int
    dropped: int
    generator_cpu: float


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One condition under which a run's figures may be believed; `advice` says what to do when it does not hold."""

    name: str
    ok: bool
    found: str
    limit: str
    advice: str


class Certificate(msgspec.Struct, frozen=True):
    """VALID when every check holds."""

    checks: tuple[Check, ...]

    @property
    def valid(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def faults(self) -> list[Check]:
        """The checks that do not hold."""
        return [check for check in self.checks if not check.ok]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One load test. `window` is the measured part; what lies before it was warm-up. `ended` says why it ended where
    that was not simply the plan's time. `start_up_s` is how long the server took until it served, where it is ours.
    `lock` is what the run was made of beyond its plan, None for a run that did not keep it.
    """

    format_version: int = FORMAT_VERSION
    label: str
    started_at: str
    plan: Plan
    window: Window
    model: ServedModel
    server: ServerSettings | None
    machine: Machine
    counts: Counts
    calibration: Calibration | None = None
    resources: Resources = Resources()
    ended: str = ""
    start_up_s: float | None = None
    lock: Lock | None = None
    certificate: Certificate


class _FormatOnly(msgspec.Struct):
    format_version: int = 0


def write_run(directory: Path, run: Run) -> None:
    """Writes `run.json` by rename: a directory that has one holds a finished run."""
    partial = directory / f"{RUN_FILE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=2) + b"\n")
    partial.rename(directory / RUN_FILE)


def read_run(directory: Path) -> Run:
    """The run in `directory`. Raises RunFileError when there is none, or none that this version reads."""
    path = directory / RUN_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunFileError(
            f"{directory} is no run: {RUN_FILE} cannot be read ({error.strerror}); "
            "give a folder that mlserve bench wrote"
        ) from error
    try:
        format_version = msgspec.json.decode(content, type=_FormatOnly).format_version
        if not 1 <= format_version <= FORMAT_VERSION:
            raise RunFileError(
                f"{path} has format {format_version}, this mlserve reads 1 to {FORMAT_VERSION}; "
                "use the mlserve that wrote it"
            )
        if format_version == 1:
            return msgspec.convert(_from_format_1(msgspec.json.decode(content)), Run)
        return msgspec.json.decode(content, type=Run)
    except msgspec.DecodeError as error:
        raise RunFileError(f"{path} is damaged: {error}; run the bench again") from error
    except KeyError as error:
        raise RunFileError(f"{path} is damaged: it has no {error}; run the bench again") from error


def _from_format_1(document: dict[str, Any]) -> dict[str, Any]:
    """Its plan was kept to the second: the measured part is where the plan says."""
    plan = document["plan"]
    window = {"start_s": plan["warm_up_s"], "end_s": plan["warm_up_s"] + plan["duration_s"]}
    return document | {"format_version": FORMAT_VERSION, "window": window}


def find_runs(path: Path) -> list[Path]:
    """The run directories that `path` means: itself, or those inside it (repeats of one measurement), by name.

    Raises RunFileError when there are none.
    """
    if (path / RUN_FILE).is_file():
        return [path]
    inside = sorted(file.parent for file in path.glob(f"*/{RUN_FILE}")) if path.is_dir() else []
    if not inside:
        raise RunFileError(
            f"{path} holds no run ({RUN_FILE}); write one with: mlserve bench NAME --out {shlex.quote(str(path))}"
        )
    return inside
