"""How much of the memory it may have a server uses: of its control group's, of its limits', of the machine's."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["MemoryUse", "memory_use"]

# A control group without a limit says so by a number beyond every machine's.
_NO_LIMIT_BYTES = 1 << 60


class MemoryUse(NamedTuple):
    """`used_bytes` of `limit_bytes`, which is that of `whom`."""

    used_bytes: int
    limit_bytes: int
    whom: str

    @property
    def share(self) -> float:
        """From 0 to 1, where the system begins to kill or to refuse."""
        return self.used_bytes / max(self.limit_bytes, 1)


def memory_use(process_ids: Sequence[int], root: Path = Path("/")) -> MemoryUse:
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
    return max((*found, *_groups(root)), key=lambda use: use.share)


def _groups(root: Path) -> Iterator[MemoryUse]:
    """Of the control group and those around it, each that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, names = root / "sys/fs/cgroup", ("memory.current", "memory.max", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
        else:
            continue
        folder = mount / path.lstrip("/")
        for each in (folder, *folder.parents):
            use = _group(each, *names)
            if use is not None:
                yield use
            if each == mount:
                break


def _group(folder: Path, used: str, limit: str, reclaimable: str) -> MemoryUse | None:
    try:
        limit_bytes = int((folder / limit).read_text())
        if limit_bytes >= _NO_LIMIT_BYTES:
            return None
        used_bytes = int((folder / used).read_text())
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return MemoryUse(used_bytes - int(told.get(reclaimable, 0)), limit_bytes, "the control group")
    except (OSError, ValueError):  # "max", or no such group
        return None
