"""Which cores are the server's, and which the generators'."""

import os
from collections.abc import Sequence

__all__ = ["own_cores", "split_cores"]


def own_cores() -> list[int]:
    """The cores this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def split_cores(cpus: Sequence[int], generators: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The cores for the server, and the last ones for the generators, one for each as long as the server keeps one.

    Nobody is held to one where there is only one. A generator that waits for the server to leave its core is late, and
    its lateness looks like the server's.
    """
    if len(cpus) < 2:
        return tuple(cpus), ()
    kept = max(1, len(cpus) - generators)
    return tuple(cpus[:kept]), tuple(cpus[kept:])
