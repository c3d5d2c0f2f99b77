"""One worker process as its supervisor sees it: what it reports, whether its heart beats, how it ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from mlserve.serve.life.pulse import Pulse
from mlserve.serve.life.slate import Key, Slate
from mlserve.serve.settings import ServeSettings, WorkerReport
from mlserve.units import format_exit

__all__ = ["WorkerProcess"]

# A worker that is at work, computing or loading, may be silent for so many times as long as another.
_AT_WORK = 6.0
# One that takes less of a processor than this does not compute.
_BUSY_SHARE = 0.1
_ASK_EVERY_S = 0.5


class WorkerProcess:
    """A worker that is starting, serving, or has ended. `environment` is all of its environment.

    `end` is a descriptor that can be read from once it has ended, where the system has such. `faulty`: what it reported
    is why it cannot serve.

    Raises OSError where there is no process, or no file, to be had.
    """

    def __init__(self, settings: ServeSettings, lock: int, environment: Mapping[str, str]) -> None:
        self.slate = Slate.shared()
        assert self.slate.descriptor is not None
        self.started_s = time.monotonic()
        self.served_s: float | None = None
        self.stopped = self.faulty = False
        self._pulse, self._rest = Pulse(self.started_s), b""
        self._cpu_s, self._asked_s = 0.0, 0.0
        self.busy = False
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlserve.serve.worker_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                pass_fds=(lock, self.slate.descriptor, *settings.doors),
                process_group=0,  # so that Ctrl-C in a terminal reaches the supervisor alone, which then drains
            )
        except BaseException:  # or each further try would cost a descriptor
            self.slate.close()
            raise
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self.output = self.process.stdin, self.process.stdout
        told = msgspec.structs.replace(settings, slate=self.slate.descriptor)
        with suppress(BrokenPipeError):  # it has died already, which the supervisor sees
            self._input.write(msgspec.json.encode(told) + b"\n")
            self._input.flush()
        os.set_blocking(self.output.fileno(), False)
        self.end: int | None = None
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):  # it is looked at now and then all the same
                self.end = os.pidfd_open(self.pid)

    @property
    def pid(self) -> int:
        """Its process's number."""
        return self.process.pid

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    def report(self) -> WorkerReport | None:
        """What it reports, once; None while it has not. Other lines, of what it imports, are passed over."""
        if self.served_s is not None:
            return None
        *lines, self._rest = (self._rest + (self.output.read() or b"")).split(b"\n")
        for line in lines:
            with suppress(msgspec.DecodeError):
                report = msgspec.json.decode(line, type=WorkerReport)
                self.served_s, self.faulty = time.monotonic(), bool(report.fault)
                return report
        return None

    def is_hung(self, after_s: float, now_s: float) -> bool:
        """Whether its heart has been still for `after_s` at `now_s`: longer where it computes or loads meanwhile."""
        self._pulse.look(self.slate.beats, now_s)
        if self._pulse.quiet_s <= after_s:
            self._asked_s = 0.0
            return False
        self._ask(now_s)
        at_work = self.served_s is None or any(running for running, _ in self.slate.runs().values())
        may_work = self.busy or (self.served_s is None and not self._pulse.beaten)
        return self._pulse.quiet_s > (_AT_WORK if at_work and may_work else 1.0) * after_s

    def _ask(self, now_s: float) -> None:
        """Asks the system now and then whether it computes, and whether somebody has stopped it."""
        import psutil

        if now_s - self._asked_s < _ASK_EVERY_S:
            return
        try:
            process = psutil.Process(self.pid)
            times, self.stopped = process.cpu_times(), process.status() == psutil.STATUS_STOPPED
        except (psutil.Error, OSError):  # it has just ended, or there is no file to be had
            return
        cpu_s = times.user + times.system
        # At the first question nobody knows yet; the next one tells.
        self.busy = not self._asked_s or cpu_s - self._cpu_s > _BUSY_SHARE * (now_s - self._asked_s)
        self._cpu_s, self._asked_s = cpu_s, now_s

    def last_runs(self) -> dict[Key, tuple[bool, int]]:
        """What it was running when it ended, as `Slate.runs` has it."""
        return self.slate.runs()

    def terminate(self, *, hurry: bool) -> None:
        """Tells it to drain; `hurry`: without a lame duck's time."""
        if not self.ended:
            self.slate.hurry = hurry
            self.process.terminate()

    def tell_away(self, away: int) -> None:
        """Tells it which workers are away, a bit for each, where that has changed."""
        if away != self.slate.away:
            self.slate.away = away
            with suppress(OSError):  # it has just ended
                self._input.write(b"\n")
                self._input.flush()

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()

    def close(self) -> None:
        """Gives back what it leaves, once it has ended."""
        for pipe in (self._input, self.output):
            with suppress(OSError):
                pipe.close()
        if self.end is not None:
            os.close(self.end)
            self.end = None
        self.slate.close()

    def cause(self) -> str:
        """How it ended: `signal SIGSEGV`, `status 1`."""
        return format_exit(self.process.returncode)

    def by_itself(self) -> bool:
        """Whether what it ran may be why it ended: not where somebody ended it from outside."""
        return self.process.returncode not in (0, 2, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
