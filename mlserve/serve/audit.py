"""The log of admin calls: who asked for what of the server itself, and what came of it. One line of JSON each.

A line is written before its call is answered, with the system call itself: it is in the file when the client knows. A
file that was renamed or removed is made anew. Where it cannot be written the line goes to stderr, and the call goes on.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from mlserve.errors import Forbidden, RequestError, TooManyRequests, Unauthenticated
from mlserve.serve.control import Control
from mlserve.serve.watching.request_log import encode_line

__all__ = ["Audit", "AuditedControl"]

_LONGEST = 256
# Of calls that were refused for who makes them so many are told a second, of each name and of all strangers together:
# they shall not fill the disk. How many were not, the next line says.
_REFUSED = frozenset(each.__name__ for each in (Unauthenticated, Forbidden, TooManyRequests))
_REFUSED_PER_S = 20
# Names beyond these count as strangers in that second: who signs tokens may know many.
_MOST_NAMES = 32

_log = logging.getLogger("mlserve.audit")

# What is known by now of the call that is being answered.
_call: ContextVar[dict[str, Any] | None] = ContextVar("mlserve_audit", default=None)


class Audit:
    """Writes lines to the file at `path`, or to stderr when that is empty."""

    def __init__(self, path: str = "", *, now: Callable[[], float] = time.monotonic) -> None:
        self._path, self._now = path, now
        self._second, self._left_out = 0, 0
        self._refused: dict[str, int] = {}
        self._torn = False

    @contextmanager
    def call(self, action: str, *, who: str, remote: str, model: str = "") -> Iterator[dict[str, Any]]:
        """Writes one line at the end, with what came of it: `ok`, or the error that was raised. Of refusals not all.

        The dictionary is the line; what is put into it is told, too. `who` is a key's name or a token's subject, empty
        for somebody who is not known.
        """
        line: dict[str, Any] = {"action": action, "who": who, "remote": remote, "model": model, "outcome": "ok"}
        token = _call.set(line)
        try:
            yield line
        except RequestError as error:
            line |= {"outcome": type(error).__name__, "why": str(error)}
            raise
        except BaseException as error:
            line["outcome"] = type(error).__name__
            raise
        finally:
            _call.reset(token)
            if line["outcome"] not in _REFUSED or self._may_tell(who):
                self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        """One line, with the time and the worker; texts are cut at 256 characters, control characters escaped."""
        if self._left_out:
            line, self._left_out = {**line, "left_out": self._left_out}, 0
        cut = {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in line.items()}
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **cut, "worker": os.getpid()}
        data = encode_line({name: value for name, value in told.items() if value != ""})
        if self._path:
            try:
                _append(self._path, b"\n" * self._torn + data)
                self._torn = False
                return
            except OSError as error:
                self._torn = self._torn or error.errno is None
                _log.warning("the audit log cannot be written: %s", error.strerror or error)
        _log.info("%s", data.decode("ascii").rstrip("\n"))

    def _may_tell(self, who: str) -> bool:
        """Whether one more refused call of `who` is told."""
        second = int(self._now())
        if second != self._second:
            self._second, self._refused = second, {}
        if who not in self._refused and len(self._refused) >= _MOST_NAMES:
            who = ""
        count = self._refused[who] = self._refused.get(who, 0) + 1
        told = count <= _REFUSED_PER_S
        self._left_out += not told
        return told


class AuditedControl:
    """A `Control` that tells the audit log which model a call was about, and what was to be done with it."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def load(self, name: str, version: str = "") -> None:
        _note("load", name, version)
        await self._control.load(name, version)

    async def unload(self, name: str, version: str = "") -> None:
        _note("unload", name, version)
        await self._control.unload(name, version)

    async def set_default(self, name: str, version: str) -> None:
        _note("set-default", name, version)
        await self._control.set_default(name, version)


def _note(change: str, name: str, version: str) -> None:
    line = _call.get()
    if line is not None:
        line |= {"change": change, "model": name, "version": version}


def _append(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, data)
        if written < len(data):
            raise OSError(f"{written} of {len(data)} bytes were written")
    finally:
        os.close(descriptor)
