"""The pipes between a generator's process and `mlserve bench`: messages go one way, commands the other."""

import os
import signal
from collections.abc import Callable
from typing import Any

import gevent
import msgspec
from gevent.os import make_nonblocking, nb_read, nb_write
from gevent.queue import Queue

from mlserve.bench.generator.job import Command, Report

__all__ = ["Pipe"]


class Pipe:
    """One JSON document a line.

    A reader that has stopped reading (a paused terminal) must not stop the load, so a greenlet of its own writes.
    """

    def __init__(self, report_fd: int | None, command_fd: int | None) -> None:
        self._waiting: Queue[Report | None] = Queue()
        self._writing: Any = None
        self._command_fd = command_fd
        if report_fd is not None:
            make_nonblocking(report_fd)
            self._writing = gevent.spawn(self._write, report_fd)

    def send(self, message: Report) -> None:
        """Hands `message` over; it is written when the reader takes it."""
        if self._writing is not None:
            self._waiting.put(message)

    def follow(self, obey: Callable[[Command], None]) -> None:
        """Calls `obey` with every command that comes from now on. Ends this process, as SIGTERM does, when whoever
        gives them has gone: that holds where no leash does.
        """
        if self._command_fd is not None:
            make_nonblocking(self._command_fd)
            gevent.spawn(self._read, self._command_fd, obey)

    def close(self) -> None:
        """Waits until everything was written."""
        if self._writing is not None:
            self._waiting.put(None)
            self._writing.join()

    def _write(self, fd: int) -> None:
        while (message := self._waiting.get()) is not None:
            line = msgspec.json.encode(message) + b"\n"
            try:
                while line:
                    line = line[nb_write(fd, line) :]
            except BrokenPipeError:
                # Nobody is left to load for: end as on request, with the rows so far on the disk.
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _read(self, fd: int, obey: Callable[[Command], None]) -> None:
        decoder = msgspec.json.Decoder(Command)
        text = b""
        while more := nb_read(fd, 65536):
            *lines, text = (text + more).split(b"\n")
            for line in lines:
                obey(decoder.decode(line))
        os.kill(os.getpid(), signal.SIGTERM)
