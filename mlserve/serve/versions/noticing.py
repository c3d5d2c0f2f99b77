"""Is told by the system when the store changes, so that a promotion takes effect in milliseconds.

Only a hint to look sooner: what is followed is found by looking, also where nobody tells (another system, a network's
file system, more models than are watched).
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["notice_changes"]

# Linux' sys/inotify.h: what appears in a folder, leaves it or is renamed in it; and the folder's own end.
_CHANGES = 0x100 | 0x200 | 0x40 | 0x80 | 0x400
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_READ_BYTES = 1 << 16
# The system shares out a few thousand watches among all of a user's processes.
_MOST_NAMES = 256


async def notice_changes(root: Path, wake: Callable[[], None]) -> None:
    """Calls `wake` whenever a version or an alias of the store at `root` appears, moves or goes; never returns."""
    loop = asyncio.get_running_loop()
    descriptor = _open()

    def noticed() -> None:
        with suppress(OSError):
            os.read(descriptor, _READ_BYTES)
        _watch(descriptor, root)  # what is watched already stays as it is
        wake()

    try:
        if descriptor >= 0:
            _watch(descriptor, root)
            loop.add_reader(descriptor, noticed)
        await asyncio.Event().wait()
    finally:
        if descriptor >= 0:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def _open() -> int:
    """A descriptor that tells of changes; -1 where the system has none to give."""
    if sys.platform != "linux":
        return -1
    return int(_libc().inotify_init1(_NONBLOCK_CLOEXEC))


def _watch(descriptor: int, root: Path) -> None:
    """Every folder that a change of the store shows in; one that cannot be watched is looked at in its time."""
    add = _libc().inotify_add_watch
    for folder in (root, *_names(root)):
        add(descriptor, os.fsencode(folder), _CHANGES)
        if folder is not root:
            add(descriptor, os.fsencode(folder / "aliases"), _CHANGES)


def _names(root: Path) -> Iterator[Path]:
    with suppress(OSError), os.scandir(root) as entries:
        names = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        yield from map(Path, names[:_MOST_NAMES])


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
