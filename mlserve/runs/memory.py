"""How much memory this process may have: the machine's, or less where it runs in a control group, as in a container."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["ROOT", "GroupMemory", "control_groups", "free_memory_bytes", "total_memory_bytes"]

ROOT = Path("/")

# A control group without a limit says so by a number beyond every machine's.
_NO_LIMIT_BYTES = 1 << 60


class GroupMemory(NamedTuple):
    """What the processes of a control group use, without pages of files, which can be given up at once; its limit."""

    used_bytes: int
    limit_bytes: int


class _Files(NamedTuple):
    """Where a version of control groups keeps what is asked for, and the names of pages of files in `memory.stat`."""

    used: str
    limit: str
    pages: tuple[str, ...]


_VERSION_2 = _Files("memory.current", "memory.max", ("inactive_file", "active_file"))
_VERSION_1 = _Files("memory.usage_in_bytes", "memory.limit_in_bytes", ("total_inactive_file", "total_active_file"))


def total_memory_bytes(root: Path = ROOT) -> int:
    """The most that this process could have. `root` is where the system's files lie."""
    import psutil

    return min([psutil.virtual_memory().total, *(group.limit_bytes for group in control_groups(root))])


def free_memory_bytes(root: Path = ROOT) -> int:
    """What nobody uses of what this process could have."""
    import psutil

    groups = (max(0, group.limit_bytes - group.used_bytes) for group in control_groups(root))
    return min([psutil.virtual_memory().available, *groups])


def control_groups(root: Path = ROOT) -> Iterator[GroupMemory]:
    """Of this process's control group and those around it, each that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, files = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            mount, files = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        folder = mount / path.lstrip("/")
        for each in (folder, *folder.parents):
            group = _group(each, files)
            if group is not None:
                yield group
            if each == mount:
                break


def _group(folder: Path, files: _Files) -> GroupMemory | None:
    try:
        limit_bytes = int((folder / files.limit).read_text())
        if limit_bytes >= _NO_LIMIT_BYTES:
            return None
        used_bytes = int((folder / files.used).read_text())
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return GroupMemory(used_bytes - sum(int(told.get(name, 0)) for name in files.pages), limit_bytes)
    except (OSError, ValueError):  # "max", or no such group
        return None
