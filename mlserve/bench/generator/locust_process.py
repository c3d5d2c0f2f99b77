"""One Locust process on our locustfile: started, listened to and ended."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from mlserve.bench.generator.job import Command, Report
from mlserve.bench.leash import leashed

__all__ = ["LocustProcess", "all_ended"]

_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
# What it may need to close its file of rows.
_END_S = 30.0
# From closing its pipes to being gone.
_EXIT_S = 0.5

_decoder: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


class LocustProcess:
    """Started in `folder`, held to `cpus` if any, and leashed to this process; what it prints is in `log`."""

    def __init__(self, name: str, arguments: Sequence[str], cpus: Sequence[int], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name.replace(' ', '-')}.log"
        self._reports, writing = os.pipe()
        obeying, self._commands = os.pipe()
        command = [sys.executable, "-m", "locust", "--locustfile", str(_LOCUSTFILE), *arguments]
        # Without its log Locust also keeps its own table of figures, which are rounded, to itself.
        command += ["--only-summary", "--skip-log-setup", "--exit-code-on-error", "0"]
        command += ["--mlserve-report-fd", str(writing), "--mlserve-command-fd", str(obeying)]
        self._rest = b""
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    leashed(command, cpus),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writing, obeying),
                    process_group=0,  # so that Ctrl-C in a terminal reaches us alone, and the rows are kept
                    cwd=folder,  # where no locust.conf lies; and no LOCUST_ variable shall set what we do not
                    env={name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
                )
        except BaseException:
            os.close(self._reports)
            os.close(self._commands)
            raise
        finally:
            os.close(writing)
            os.close(obeying)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def fileno(self) -> int:
        """What a selector watches for reports."""
        return self._reports

    def read(self) -> list[Report] | None:
        """What it has reported since; waits for something. None when it has ended."""
        more = os.read(self._reports, 1 << 16)
        if not more:
            return None
        *lines, self._rest = (self._rest + more).split(b"\n")
        return [_decoder.decode(line) for line in lines]

    def tell(self, command: Command) -> None:
        """Hands it a command."""
        with suppress(BrokenPipeError):  # it has just ended
            os.write(self._commands, msgspec.json.encode(command) + b"\n")

    def last_words(self) -> str:
        """The last line of what it printed."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"it said nothing, and its exit status is {self._process.poll()}"

    def failed(self) -> bool:
        """Whether it has ended, and by itself or by force with a fault; to be asked when there is no more to read."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_EXIT_S) != 0
        return False

    def terminate(self) -> None:
        """Asks it to end, which it does with its rows on the disk."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it."""
        self._process.kill()

    def wait(self) -> None:
        """Returns when it has ended, by force if it takes longer than it should or whoever waits is interrupted."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        except BaseException:
            self._process.kill()
            raise
        finally:
            self._process.wait()
            for fd in (self._reports, self._commands):
                os.close(fd)


@contextmanager
def all_ended(processes: list[LocustProcess]) -> Iterator[None]:
    """However the block ends, so do `processes`, with those that it adds: by themselves or, where it raises, because
    they are asked to.
    """
    try:
        yield
    except BaseException:
        _each(process.terminate for process in processes)
        raise
    finally:
        _each(process.wait for process in reversed(processes))


def _each(acts: Iterable[Callable[[], None]]) -> None:
    """Does all of them, even when one raises; then raises that."""
    with ExitStack() as stack:
        for act in acts:
            stack.callback(act)
