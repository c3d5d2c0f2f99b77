"""What was measured of a machine for predictions: how long runs take, and what a protocol costs. Kept as JSON."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.errors import UsageError
from mlserve.runs.machine import Machine
from mlserve.tuning.prediction.processor import MOST_WAITED

__all__ = [
    "LEVELS",
    "EngineKey",
    "EngineTimes",
    "Pace",
    "PathTimes",
    "Phase",
    "RowTimes",
    "ServiceTimes",
    "levels_of",
    "read_times",
    "write_times",
]

# 1: first format
# 2: turn_s and request_s of a path, which bursts tell; what others used meanwhile
# 3: the pace of an engine's runs
# 4: requests of a path at several paces, evenly spaced
# 5: what a request costs the generator; the tails of all paces from all of them; how late waits end
# 6: runs are timed while the generators' cores are busy
FORMAT_VERSION = 6

LEVELS = 200
"""Of a distribution, so many quantiles are kept: those at (i + 0.5) / 200."""


class EngineKey(msgspec.Struct, frozen=True, kw_only=True):
    """What runs were timed of: a version (`name@version`, or a file) by its files' digest, how it was opened, and the
    digest of the requests that rows were taken from.
    """

    model: str
    sha256: str
    engine: str
    compute_type: str
    device: str
    threads: int
    cores: int
    requests: str


class RowTimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long a run of `rows` rows of the kind `kind` takes, as quantiles (seconds): right after another run, and
    after a pause.
    """

    kind: int
    rows: int
    busy_s: tuple[float, ...]
    rested_s: tuple[float, ...]


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast the machine was while runs were timed: how long each took, and how long its like typically takes [n],
    in the order in which they were made. Slow ones come together, which their quantiles do not tell.
    """

    took_s: tuple[float, ...] = ()
    typical_s: tuple[float, ...] = ()


class EngineTimes(msgspec.Struct, frozen=True, kw_only=True):
    """`kinds[body]` is the kind of each request's rows: rows of one kind can share a run, unless not `together`.

    `late_s` is how much longer than it should a thread waits that waits for a time, as quantiles (seconds).
    `waited` is the share of the time in which its threads waited for a core that others had; `taken_at_s` is when, by
    `time.time`.
    """

    key: EngineKey
    together: bool
    kinds: tuple[int, ...]
    times: tuple[RowTimes, ...]
    pace: Pace = Pace()
    late_s: tuple[float, ...] = (0.0,)
    waited: float = 0.0
    taken_at_s: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether other work made them longer than they are."""
        return self.waited > MOST_WAITED

    @property
    def most_rows(self) -> int:
        """The largest run that was timed."""
        return max(each.rows for each in self.times)


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """Requests at one pace, evenly spaced, to a server whose model does nothing, and which had nothing to do for
    `gap_s` before each: quantiles of their latency without the run; and what each turn of the server took of processor
    time, None where that was not measured at this pace.
    """

    gap_s: float
    outside_s: tuple[float, ...]
    turn_s: float | None = None


class PathTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One protocol, with requests like those of `interface`, where runs are on the event loop (`inline`) or not.

    Of processor time beside runs, each turn of the server took `turn_s`, and each request in it `request_s`; the
    generator took `client_s` for each. `phases` [paces] begin with the shortest pause. `waited` is the share of the
    cores' time that others used meanwhile; `taken_at_s` is when, by `time.time`.
    """

    protocol: str
    interface: str
    inline: bool
    turn_s: float
    request_s: float
    client_s: float
    phases: tuple[Phase, ...]
    waited: float = 0.0
    taken_at_s: float = 0.0

    @property
    def disturbed(self) -> bool:
        """Whether other work made them longer than they are."""
        return self.waited > MOST_WAITED


class ServiceTimes(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured on `machine`."""

    format_version: int = FORMAT_VERSION
    machine: Machine
    engines: tuple[EngineTimes, ...] = ()
    paths: tuple[PathTimes, ...] = ()

    def engine(self, key: EngineKey, rows: int) -> EngineTimes | None:
        """The times of `key` for runs of up to `rows` rows, if they were measured."""
        return next((each for each in self.engines if each.key == key and _covers(each, rows)), None)

    @property
    def disturbed(self) -> float:
        """The largest share of the time in which others had the cores while something was timed, where that was enough
        to show; 0.0 where the machine was quiet.
        """
        engines = (each.waited for each in self.engines if each.disturbed)
        return max((*engines, *(each.waited for each in self.paths if each.disturbed)), default=0.0)

    def quiet(self, since_s: float) -> "ServiceTimes":
        """Without those that were taken before `since_s`, by `time.time`, while other work ran."""
        engines = tuple(each for each in self.engines if not each.disturbed or each.taken_at_s >= since_s)
        paths = tuple(each for each in self.paths if not each.disturbed or each.taken_at_s >= since_s)
        return msgspec.structs.replace(self, engines=engines, paths=paths)

    def path(self, protocol: str, interface: str, *, inline: bool) -> PathTimes | None:
        """The times of a protocol, if they were measured."""
        return next((each for each in self.paths if _is_path(each, protocol, interface, inline=inline)), None)

    def with_engine(self, times: EngineTimes) -> "ServiceTimes":
        """With `times`, in place of those of the same key."""
        others = tuple(each for each in self.engines if each.key != times.key)
        return msgspec.structs.replace(self, engines=(*others, times))

    def with_path(self, times: PathTimes) -> "ServiceTimes":
        """With `times`, in place of those of the same protocol and interface."""
        others = (each for each in self.paths if not _is_path(each, times.protocol, times.interface, times.inline))
        return msgspec.structs.replace(self, paths=(*others, times))


def levels_of(values: npt.NDArray[np.float64] | Sequence[float]) -> tuple[float, ...]:
    """The quantiles [LEVELS] of `values`, which are some."""
    at = (np.arange(LEVELS) + 0.5) / LEVELS
    return tuple(np.round(np.quantile(np.asarray(values, np.float64), at), 9).tolist())


def read_times(path: Path, machine: Machine) -> ServiceTimes:
    """What `path` holds of `machine`; nothing where it is not there, or of another machine or other software.

    Raises UsageError for a file that is something else.
    """
    if not path.is_file():
        return ServiceTimes(machine=machine)
    try:
        content = path.read_bytes()
        if msgspec.json.decode(content, type=_Format).format_version != FORMAT_VERSION:
            return ServiceTimes(machine=machine)
        held = msgspec.json.decode(content, type=ServiceTimes)
    except (msgspec.DecodeError, OSError) as error:
        raise UsageError(f"{path} holds no measured times: {error}; delete it, and they are measured again") from error
    return held if _essence(held.machine) == _essence(machine) else ServiceTimes(machine=machine)


def write_times(path: Path, times: ServiceTimes) -> None:
    """Writes `path` by rename. Raises UsageError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(msgspec.json.encode(times) + b"\n")
        partial.rename(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; choose another folder") from error


class _Format(msgspec.Struct):
    format_version: int


def _covers(times: EngineTimes, rows: int) -> bool:
    return not times.together or times.most_rows >= rows


def _is_path(each: PathTimes, protocol: str, interface: str, inline: bool) -> bool:  # noqa: FBT001  # one of its keys
    return (each.protocol, each.interface, each.inline) == (protocol, interface, inline)


def _essence(machine: Machine) -> tuple[object, ...]:
    """What a time depends on."""
    return machine.cpu, machine.cpu_flags, machine.cores, machine.gpus, machine.packages
