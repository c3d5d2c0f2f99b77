"""What each core did, by the kernel's own count."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

__all__ = ["PROC", "CoreTimes", "parse_cores", "read_cores"]

PROC = Path("/proc")


class CoreTimes(msgspec.Struct, frozen=True):
    """Since the machine started: seconds in which the core ran processes, seconds in which its hypervisor kept it from
    running, and all seconds it was there. Interrupts belong to no process and are not `busy_s`.
    """

    busy_s: float
    steal_s: float
    total_s: float


def read_cores(proc: Path = PROC) -> Mapping[int, CoreTimes]:
    """Core number -> its times; empty where the system has no such file."""
    try:
        return parse_cores((proc / "stat").read_text(), os.sysconf("SC_CLK_TCK"))
    except OSError:
        return {}


def parse_cores(stat: str, ticks_per_s: int) -> dict[int, CoreTimes]:
    """The lines `cpuN user nice system idle iowait irq softirq steal guest guest_nice`, in ticks (proc(5)).

    `guest` is part of `user` already.
    """
    found = {}
    for line in stat.splitlines():
        name, *counts = line.split()
        if not name.startswith("cpu") or name == "cpu":
            continue
        user, nice, system, _, _, _, _, steal = ticks = [int(count) for count in counts[:8]]
        busy, total = user + nice + system, sum(ticks)
        found[int(name[3:])] = CoreTimes(busy / ticks_per_s, steal / ticks_per_s, total / ticks_per_s)
    return found
