"""How much of the memory it may have a server uses: of its control group's, of its limits', of the machine's."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlserve.runs.memory import ROOT, control_groups

__all__ = ["MemoryUse", "memory_use"]


class MemoryUse(NamedTuple):
    """`used_bytes` of `limit_bytes`, which is that of `whom`."""

    used_bytes: int
    limit_bytes: int
    whom: str

    @property
    def share(self) -> float:
        """From 0 to 1, where the system begins to kill or to refuse."""
        return self.used_bytes / max(self.limit_bytes, 1)


def memory_use(process_ids: Sequence[int], root: Path = ROOT) -> MemoryUse:
    """The use that is nearest to its limit, given the server's processes.

    What can be given up at once, such as pages of files, does not count. `root` is where the system's files lie.
    """
    import psutil

    resident_bytes, found = 0, list[MemoryUse]()
    for process_id in process_ids:
        try:
            process = psutil.Process(process_id)
            use = process.memory_info()
            limit_bytes = process.rlimit(psutil.RLIMIT_AS)[0] if hasattr(process, "rlimit") else -1
        except psutil.Error:  # it has just ended
            continue
        resident_bytes += use.rss
        if limit_bytes >= 0:
            found.append(MemoryUse(use.vms, limit_bytes, f"worker {process_id} (RLIMIT_AS)"))
    # Of the machine's memory a server may have what it has and what is free; what others hold is no fault of its own.
    found.append(MemoryUse(resident_bytes, resident_bytes + psutil.virtual_memory().available, "the machine"))
    found += (MemoryUse(*group, "the control group") for group in control_groups(root))
    return max(found, key=lambda use: use.share)
