"""The folder that the processes of one server share: theirs while one of them lives, then the next server removes it.

mlserve-run-XXXXXXXX/lock       locked by the supervisor and, as they inherit it, by its workers
mlserve-run-XXXXXXXX/metrics    what they count
mlserve-run-XXXXXXXX/control    what they agree on
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

__all__ = ["CommonFolder", "open_common_folder"]

_PREFIX = "mlserve-run-"


class CommonFolder(NamedTuple):
    """Where it lies, and the descriptor of its lock, for the workers to inherit."""

    path: Path
    lock: int

    @property
    def metrics(self) -> Path:
        """For what the workers count."""
        return self.path / "metrics"


@contextmanager
def open_common_folder() -> Iterator[CommonFolder]:
    """A new folder, for this user alone, removed at the end; and with it those that killed servers left behind."""
    _remove_abandoned()
    folder = _make()
    try:
        for part in (folder.metrics, folder.path / "control"):
            part.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)
        os.close(folder.lock)


def _make() -> CommonFolder:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with suppress(FileNotFoundError):  # another server took it for abandoned before it was locked
            lock = os.open(path / "lock", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (path / "lock").exists():
                return CommonFolder(path, lock)
            os.close(lock)


def _remove_abandoned() -> None:
    """Removes the folders of servers of which no process lives: those that nobody has locked."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is in use, or somebody else's, or another server has just removed it
            lock = os.open(path / "lock", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)
