"""A folder among the temporary files that goes with the block it was made for. Where its processes were killed, it goes
with the next such folder that is made on this machine, as soon as none of them lives.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["LockedFolder", "locked_folder"]

_LOCK = "lock"


class LockedFolder(NamedTuple):
    """Where it lies, and the descriptor of its lock: a child that inherits that keeps the folder while it lives."""

    path: Path
    lock: int


@contextmanager
def locked_folder(prefix: str) -> Iterator[LockedFolder]:
    """A new folder, for this user alone, locked while the block lasts; first those of `prefix` go that nobody has
    locked.
    """
    _remove_abandoned(prefix)
    folder = _make(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        os.close(folder.lock)


def _make(prefix: str) -> LockedFolder:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (path / _LOCK).exists():
                return LockedFolder(path, lock)
            os.close(lock)


def _remove_abandoned(prefix: str) -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):  # it is in use, or another process has just removed it
            if path.lstat().st_uid != os.geteuid():
                continue
            # To open a pipe would wait for who reads it.
            lock = os.open(path / _LOCK, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)
