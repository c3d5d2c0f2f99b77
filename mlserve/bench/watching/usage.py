"""What was used between two instants, from readings taken before, between and after them. Pure.

The counters that are read only grow, so that what was used until any instant lies on a line between two readings.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from mlserve.bench.watching.clock import ClockReading, monotonic_rate, wall_step_s
from mlserve.bench.watching.cores import CoreTimes
from mlserve.bench.watching.energy import EnergyReading, energy_spent_j
from mlserve.bench.watching.gpus import GpuReading
from mlserve.bench.watching.processes import Everyone, ProcessReading
from mlserve.runs.resources import DeviceUse, ProcessUse, Resources
from mlserve.stats import Floats

__all__ = ["Reading", "busiest_others", "resources_between"]

# The kernel counts a core's time in ticks: over less, the count says little.
_LEAST_S = 0.9
_WORTH_NAMING = 0.05
_MOST_NAMED = 3


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one instant of the monotonic clock."""

    at_s: float
    clocks: ClockReading
    processes: tuple[ProcessReading, ...] = ()
    cores: Mapping[int, CoreTimes] = msgspec.field(default_factory=dict)
    gpus: tuple[GpuReading, ...] = ()
    energy: Mapping[str, EnergyReading] = msgspec.field(default_factory=dict)


def resources_between(readings: Sequence[Reading], start_s: float, end_s: float) -> Resources:
    """What was used from `start_s` to `end_s` of the monotonic clock. Readings are in the order of their time.

    The clocks are judged over all readings: a step during the warm-up moves what was due after it.
    """
    inside = _covering(readings, start_s, end_s)
    if not inside or end_s <= start_s:
        return Resources()
    span = _Span(inside, start_s, end_s)
    processes = _processes(span)
    clocks = [reading.clocks for reading in readings]
    cores = _cores(_while_generating(span))
    energy_j, energy_of = _energy(span)
    return Resources(
        processes=processes,
        devices=_devices(inside),
        cores_in_use=cores.in_use,
        steal=cores.steal,
        others_cpu=cores.others_cpu,
        shared_cpu=cores.shared_cpu,
        clock_step_s=wall_step_s(clocks),
        clock_rate=monotonic_rate(clocks),
        energy_j=energy_j,
        energy_of=energy_of,
    )


def busiest_others(before: Everyone, after: Everyone, ours: Collection[int]) -> tuple[ProcessUse, ...]:
    """The processes that are not `ours` and used a twentieth of a core or more, at most three, the busiest first.

    One that began in between has used all it has.
    """
    elapsed_s = after.at_s - before.at_s
    cpu_of = {
        pid: (used_s - before.used_s.get(pid, 0.0)) / elapsed_s
        for pid, used_s in after.used_s.items()
        if pid not in ours
    }
    busiest = sorted(cpu_of, key=lambda pid: -cpu_of[pid])[:_MOST_NAMED]
    return tuple(
        ProcessUse(role="other", pid=pid, name=after.names[pid], cpu=cpu_of[pid], rss_max_bytes=0)
        for pid in busiest
        if cpu_of[pid] >= _WORTH_NAMING
    )


class _Span:
    """The stretch of time that is asked for, and the readings that cover it."""

    def __init__(self, readings: Sequence[Reading], start_s: float, end_s: float) -> None:
        self.readings, self.start_s, self.end_s = readings, start_s, end_s

    @property
    def duration_s(self) -> float:
        """How long it is."""
        return self.end_s - self.start_s

    def used(self, times_s: Sequence[float], counted: Sequence[float] | Floats) -> float:
        """How much a counter, read as `counted` at `times_s`, grew in the span."""
        until_start, until_end = np.interp([self.start_s, self.end_s], times_s, counted)
        return float(until_end - until_start)


def _covering(readings: Sequence[Reading], start_s: float, end_s: float) -> list[Reading]:
    """The readings from the last before `start_s` to the first after `end_s`; empty for fewer than two."""
    times_s = [reading.at_s for reading in readings]
    first = max(int(np.searchsorted(times_s, start_s, side="right")) - 1, 0)
    last = int(np.searchsorted(times_s, end_s, side="left")) + 1
    inside = list(readings[first:last])
    return inside if len(inside) >= 2 else []


def _processes(span: _Span) -> tuple[ProcessUse, ...]:
    seen: dict[int, list[tuple[float, ProcessReading]]] = {}
    for reading in span.readings:
        for process in reading.processes:
            seen.setdefault(process.pid, []).append((reading.at_s, process))
    return tuple(
        ProcessUse(
            role=course[-1][1].role,
            pid=pid,
            cpu=span.used([at_s for at_s, _ in course], [process.cpu_s for _, process in course]) / span.duration_s,
            rss_max_bytes=max(process.rss_bytes for _, process in course),
            cpus=course[-1][1].cpus,
        )
        for pid, course in seen.items()
    )


class _CoreUse(msgspec.Struct, frozen=True, kw_only=True):
    """What is derived from the cores' times, as Resources has it."""

    in_use: int = 0
    steal: float | None = None
    others_cpu: float | None = None
    shared_cpu: float | None = None


def _while_generating(span: _Span) -> _Span:
    """The part of a span in which every generator was seen: unseen, its work would look like somebody else's."""
    seen: dict[int, list[float]] = {}
    for reading in span.readings:
        for process in reading.processes:
            if process.role == "generator":
                seen.setdefault(process.pid, []).append(reading.at_s)
    start_s = max([span.start_s, *(times_s[0] for times_s in seen.values())])
    end_s = min([span.end_s, *(times_s[-1] for times_s in seen.values())])
    return _Span(span.readings, start_s, end_s)


def _cores(span: _Span) -> _CoreUse:
    known = set(span.readings[0].cores)
    if not known or span.duration_s < _LEAST_S or any(set(reading.cores) != known for reading in span.readings):
        return _CoreUse()
    processes = _processes(span)
    generators = [process for process in processes if process.role == "generator"]
    in_use = _held([process for process in processes if process.role in ("generator", "server")], known) & known
    if not in_use:
        return _CoreUse()
    stolen_s = _of_cores(span, in_use, lambda core: core.steal_s)
    there_s = _of_cores(span, in_use, lambda core: core.total_s)
    own = _held(generators, known) & known if all(process.cpus for process in generators) else set()
    beside = [process for process in processes if process.role == "beside"]
    return _CoreUse(
        in_use=len(in_use),
        steal=stolen_s / there_s if there_s else None,
        others_cpu=_beside(span, processes, in_use),
        shared_cpu=_beside(span, [*generators, *beside], own) if own else None,
    )


def _held(processes: Sequence[ProcessUse], known: Collection[int]) -> set[int]:
    """The cores that any of `processes` may run on."""
    return {cpu for process in processes for cpu in (process.cpus or known)}


def _beside(span: _Span, processes: Sequence[ProcessUse], cpus: set[int]) -> float:
    """What anything but `processes` used of `cpus`, in cores. One that may run there is taken to run nowhere else."""
    busy = _of_cores(span, cpus, lambda core: core.busy_s) / span.duration_s
    ours = sum(process.cpu for process in processes if not process.cpus or cpus & set(process.cpus))
    return max(0.0, busy - ours)


def _of_cores(span: _Span, cpus: Collection[int], field: Callable[[CoreTimes], float]) -> float:
    times_s = [reading.at_s for reading in span.readings]
    return sum(span.used(times_s, [field(reading.cores[cpu]) for reading in span.readings]) for cpu in cpus)


def _devices(readings: Sequence[Reading]) -> tuple[DeviceUse, ...]:
    seen: dict[int, list[GpuReading]] = {}
    for reading in readings:
        for gpu in reading.gpus:
            seen.setdefault(gpu.number, []).append(gpu)
    return tuple(
        DeviceUse(
            name=course[0].name,
            utilization=_mean(gpu.utilization for gpu in course) or 0.0,
            memory_max_bytes=max(gpu.memory_bytes or 0 for gpu in course),
            power_w=_mean(gpu.power_w for gpu in course),
        )
        for course in seen.values()
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _energy(span: _Span) -> tuple[float | None, tuple[str, ...]]:
    """(energy_j, energy_of), as Resources has them."""
    times_s = [reading.at_s for reading in span.readings]
    packages = energy_spent_j([reading.energy for reading in span.readings])
    devices = _gpu_energy_j(span.readings)
    known = {
        name: span.used(times_s, spent) for name, spent in (("cpu", packages), ("gpu", devices)) if spent is not None
    }
    return (sum(known.values()) if known else None), tuple(known)


def _gpu_energy_j(readings: Sequence[Reading]) -> Floats | None:
    """[readings] what all GPUs counted; None where one of them does not tell, or there is none."""
    counted = [[gpu.energy_j for gpu in reading.gpus] for reading in readings]
    if not counted[0] or any(joules is None for course in counted for joules in course):
        return None
    return np.array([sum(joules for joules in course if joules is not None) for course in counted])
