"""How much memory and time the importing process may take, and what ends it when it takes more."""

import os
import signal
import threading
import time
from contextlib import suppress
from subprocess import Popen
from typing import Self

import msgspec
import psutil

from mlserve.runs.memory import total_memory_bytes
from mlserve.units import format_bytes, format_duration

__all__ = ["Limits", "Watch", "end"]

_MEMORY_SHARE = 0.8
_LOOK_EVERY_S = 0.1


class Limits(msgspec.Struct, frozen=True):
    """`memory_bytes` of resident memory for the process and its children, and `time_s` on the clock.

    0 bytes stand for four fifths of the machine's memory, or of its control group's where that has less; 0 seconds for
    no limit.
    """

    memory_bytes: int = 0
    time_s: float = 1800.0


class Watch:
    """Ends a process, and what it started, once it exceeds its limits; `exceeded` then says which, in words."""

    def __init__(self, process: Popen[bytes], limits: Limits) -> None:
        self.exceeded = ""
        self._process = process
        self._memory_bytes = limits.memory_bytes or int(total_memory_bytes() * _MEMORY_SHARE)
        self._time_s = limits.time_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="import watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        started_s = time.monotonic()
        while not self._over.wait(_LOOK_EVERY_S):
            if self._time_s and time.monotonic() - started_s > self._time_s:
                self.exceeded = f"it took longer than {format_duration(self._time_s)}"
            elif _resident_bytes(self._process.pid) > self._memory_bytes:
                self.exceeded = f"it took more than {format_bytes(self._memory_bytes)} of memory"
            if self.exceeded:
                end(self._process)
                return


def end(process: Popen[bytes]) -> None:
    """Kills the process group that `process` leads. It must not have been waited for: its number may be another's."""
    with suppress(ProcessLookupError, PermissionError):  # the second: all of it is dead already (macOS)
        os.killpg(process.pid, signal.SIGKILL)


def _resident_bytes(pid: int) -> int:
    total = 0
    with suppress(psutil.Error):  # it has just ended
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total
