"""Energy by RAPL: what Intel and AMD packages count of themselves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from mlserve.runs.machine import SYS
from mlserve.stats import Floats

__all__ = ["EnergyReading", "energy_spent_j", "read_energy"]

_MICRO = 1e-6


class EnergyReading(msgspec.Struct, frozen=True):
    """One package's counter, and where it starts again from zero."""

    energy_uj: int
    range_uj: int


def read_energy(sys: Path = SYS) -> Mapping[str, EnergyReading]:
    """Zone -> its counter, of each CPU package; empty where there is none or only root may read it.

    Zones within a package (cores, memory) are part of it or none of it, and `psys` is the whole board: both are left
    out, so that nothing counts twice.
    """
    found = {}
    for zone in (sys / "class/powercap").glob("intel-rapl:*"):
        try:
            if (zone / "name").read_text().startswith("package"):
                found[zone.name] = EnergyReading(
                    int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text())
                )
        except (OSError, ValueError):
            continue
    return found


def energy_spent_j(readings: Sequence[Mapping[str, EnergyReading]]) -> Floats | None:
    """[readings] energy that all packages used since the first of the readings, joules; None where a package is
    missing from one of them, or there is no package.

    Between two readings a counter starts again at most once: it takes a minute or more.
    """
    zones = readings[0].keys() if readings else set()
    if not zones or any(reading.keys() != zones for reading in readings):
        return None
    spent: Floats = np.zeros(len(readings))
    for zone in zones:
        counts = np.array([reading[zone].energy_uj for reading in readings], np.float64)
        steps = np.diff(counts)
        steps[steps < 0] += readings[0][zone].range_uj
        spent[1:] += np.cumsum(steps) * _MICRO
    return spent
