"""A file that a server follows: read at the start, and again whenever it changes."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from mlserve.errors import UsageError

__all__ = ["FollowedFile"]

T = TypeVar("T")

_log = logging.getLogger("mlserve.serve")


class FollowedFile(Generic[T]):
    """What `parse(content, path)` makes of the file; `what` is what messages call that, in the plural."""

    def __init__(self, path: Path, parse: Callable[[bytes, Path], T], what: str) -> None:
        self._path, self._parse, self._what = path, parse, what
        self._stamp: tuple[int, ...] | None = None

    def read(self) -> T:
        """As it is now. Raises UsageError, naming the file, for what cannot be read, and what `parse` raises."""
        try:
            with self._path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                content = file.read()
        except OSError as error:
            raise UsageError(f"the {self._what} file {self._path} cannot be read: {error.strerror}") from error
        found = self._parse(content, self._path)
        self._stamp = stamp
        return found

    def changed(self) -> T | None:
        """What the file says if it changed since it was last read, else None.

        A file that cannot be read changes nothing: what held before stays, and the log says why, once.
        """
        try:
            stamp = _stamp(self._path.stat())
        except OSError:
            stamp = ()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            return self.read()
        except UsageError as error:
            _log.warning("the %s stay as they were: %s", self._what, error)
            return None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mtime_ns, status.st_ino, status.st_size, status.st_dev)
