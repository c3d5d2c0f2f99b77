"""The log of single requests: one line of JSON each, for a sampled share of them and for errors.

A line says who asked for what and where the time went; never tensors, keys, messages or paths. Lines are written by a
thread of their own: a full disk or a reader of stderr that has stopped costs lines, never a request.
"""

import atexit
import fcntl
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = ["ERRORS_PER_S", "LineWriter", "RequestLog", "encode_line"]

# Lines that wait for their writer; more are dropped, and counted.
_MOST_WAITING = 4096
_MOST_TOGETHER = 256
_RETRY_AFTER_S = 1.0
_FLUSH_S = 2.0
ERRORS_PER_S = 20

_log = logging.getLogger("mlserve.serve")


class LineWriter:
    """Appends lines to a file, or to stderr when `path` is empty; several processes may share the file.

    A file that was renamed or removed is made anew. One of `max_bytes` (0: it may grow) is renamed `NAME.1`, what bore
    that name `NAME.2`, and so on; `keep` of them stay. What cannot be written is dropped; the next line that can be
    says how many were.
    """

    def __init__(self, path: str, max_bytes: int = 0, keep: int = 5) -> None:
        self._path = Path(path) if path else None
        self._max_bytes, self._keep = max_bytes, keep
        self._waiting: queue.Queue[Mapping[str, Any] | threading.Event] = queue.Queue(_MOST_WAITING)
        self._descriptor: int | None = None
        self._broken_until_s = 0.0
        self._torn = False
        self.dropped = 0
        threading.Thread(target=self._work, name="request log", daemon=True).start()
        atexit.register(self.flush)

    def write(self, fields: Mapping[str, Any]) -> None:
        """Lets a line wait for its turn."""
        try:
            self._waiting.put_nowait(fields)
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Returns when what was written before is in the file, or after two seconds."""
        written = threading.Event()
        with suppress(queue.Full):
            self._waiting.put(written, timeout=_FLUSH_S)
            written.wait(_FLUSH_S)

    def _work(self) -> None:
        while True:
            lines, events = self._next()
            if lines:
                self._append(lines)
            for event in events:
                event.set()

    def _next(self) -> tuple[list[Mapping[str, Any]], list[threading.Event]]:
        lines: list[Mapping[str, Any]] = []
        events: list[threading.Event] = []
        entry = self._waiting.get()
        while True:
            if isinstance(entry, threading.Event):
                events.append(entry)
            else:
                lines.append(entry)
            if len(lines) >= _MOST_TOGETHER:
                return lines, events
            try:
                entry = self._waiting.get_nowait()
            except queue.Empty:
                return lines, events

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        now_s = time.monotonic()
        if now_s < self._broken_until_s:
            self.dropped += len(lines)
            return
        dropped, self.dropped = self.dropped, 0
        first = {**lines[0], "dropped": dropped} if dropped else lines[0]
        data = b"".join([b"\n" if self._torn else b"", *map(encode_line, (first, *lines[1:]))])
        try:
            written = os.write(self._with_room(), data)
            self._torn = written < len(data)
            if self._torn:
                raise OSError(f"{written} of {len(data)} bytes were written")
        except OSError as error:
            if not self._broken_until_s:
                _log.warning("the request log cannot be written and loses lines: %s", error.strerror or error)
            self.dropped += dropped + len(lines)
            self._broken_until_s = now_s + _RETRY_AFTER_S
            self._close()
        else:
            self._broken_until_s = 0.0

    def _with_room(self) -> int:
        """The file, after it has made room for a new one if it is large enough."""
        descriptor = self._open()
        if not self._max_bytes or self._path is None or os.fstat(descriptor).st_size < self._max_bytes:
            return descriptor
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # of several processes one moves it; the others find that it is gone
        try:
            if self._is_named(descriptor):
                _make_room(self._path, self._keep)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return self._open()

    def _is_named(self, descriptor: int) -> bool:
        """Whether the log's name still means this file."""
        assert self._path is not None
        ours = os.fstat(descriptor)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)

    def _open(self) -> int:
        """The file, opened again if its name means another one by now."""
        if self._path is None:
            return sys.stderr.fileno()
        if self._descriptor is not None and not self._is_named(self._descriptor):
            self._close()
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class RequestLog:
    """What is told of single requests. `writer` is shared by every model of the worker."""

    def __init__(self, writer: LineWriter, model: str, version: str) -> None:
        self._writer = writer
        self._of = {"model": model, "version": version}
        self._worker = os.getpid()

    def answered(self, protocol: str, request_id: str, figures: Mapping[str, float]) -> None:
        """One request, answered; `figures` are its rows and where its time went."""
        self._write(protocol, request_id, {"outcome": "ok", "status": 200, **figures})

    def failed(self, protocol: str, request_id: str, outcome: str, status: int, figures: Mapping[str, float]) -> None:
        """One request, answered with an error."""
        self._write(protocol, request_id, {"outcome": outcome, "status": status, **figures})

    def _write(self, protocol: str, request_id: str, rest: Mapping[str, Any]) -> None:
        time_of = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._writer.write(
            {"time": time_of, "id": request_id, **self._of, "protocol": protocol, **rest, "worker": self._worker}
        )


def _make_room(path: Path, keep: int) -> None:
    """Renames `path` to `path.1`, and those before it by one more; the last of `keep` goes."""
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1))]
    for older, newer in reversed(list(pairwise(names))):
        with suppress(FileNotFoundError):
            older.replace(newer)


def encode_line(fields: Mapping[str, Any]) -> bytes:
    """One line of JSON in ASCII: whatever a client put into a name, it ends no line and drives no terminal."""
    return json.dumps(fields, separators=(",", ":")).replace("\x7f", "\\u007f").encode("ascii") + b"\n"
