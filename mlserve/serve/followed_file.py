"""A file that a server follows: read at the start, and again whenever it changes.

What was last found good is kept in the server's own folder: a worker that takes another's place while the file is
damaged starts with that, as the one before would have gone on with it.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from mlserve.errors import UsageError

__all__ = ["FollowedFile", "LastGood"]

T = TypeVar("T")

_log = logging.getLogger("mlserve.serve")


class LastGood:
    """What the workers of one server last found good, in the file `path` that only its user may read; None: nowhere."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    @classmethod
    def within(cls, folder: str, what: str) -> "LastGood":
        """The one for `what` in `folder`, that of the server; nowhere for an empty one."""
        return cls(Path(folder) / f"good-{what}" if folder else None)

    @property
    def folder(self) -> Path | None:
        """Where it lies."""
        return self._path.parent if self._path is not None else None

    def keep(self, content: bytes) -> None:
        """Puts `content` in the place of what was kept. Where it cannot be, nothing is: a key may have been revoked."""
        if self._path is None:
            return
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        try:
            partial.touch(0o600)
            partial.write_bytes(content)
            partial.replace(self._path)
        except OSError as error:
            _log.warning("what a successor of this worker may need cannot be kept: %s", error.strerror)
            for each in (partial, self._path):
                with suppress(OSError):
                    each.unlink()

    def read(self) -> bytes | None:
        """What was kept; None for nothing."""
        try:
            return self._path.read_bytes() if self._path is not None else None
        except OSError:
            return None


class FollowedFile(Generic[T]):
    """What `parse(content, path)` makes of the file; `what` is what messages call that, in the plural."""

    def __init__(self, path: Path, parse: Callable[[bytes, Path], T], what: str) -> None:
        self._path, self._parse, self._what, self._good = path, parse, what, LastGood()
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
        self._good.keep(content)
        self._stamp = stamp
        return found

    def begin(self, good: LastGood, *, resumes: bool) -> T:
        """As `read`, for a worker; whatever is read from now on and is good is kept in `good`.

        `resumes`: the worker takes another's place, so what is kept there stands in for a file that cannot be read.
        """
        self._good, stamp = good, self._stamp_now()
        try:
            return self.read()
        except UsageError as error:
            content = good.read() if resumes else None
            if content is None:
                raise
            _log.warning("the %s stay as they were: %s", self._what, error)
            self._stamp = stamp
            return self._parse(content, self._path)

    def changed(self) -> T | None:
        """What the file says if it changed since it was last read, else None.

        A file that cannot be read changes nothing: what held before stays, and the log says why, once.
        """
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            return self.read()
        except UsageError as error:
            _log.warning("the %s stay as they were: %s", self._what, error)
            return None

    def _stamp_now(self) -> tuple[int, ...]:
        try:
            return _stamp(self._path.stat())
        except OSError:
            return ()


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_mtime_ns, status.st_ino, status.st_size, status.st_dev)
