"""The generator's process: Locust, started, followed and ended."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from mlserve.bench.generator.job import Command, Finished, Job, Message, write_job
from mlserve.bench.leash import leashed
from mlserve.errors import BenchError

__all__ = ["drive"]

_LOG = "generator.log"
# What it may need to close its file of rows.
_END_S = 30.0

_decoder = msgspec.json.Decoder(Message)


def drive(job: Job, cpus: Sequence[int], heed: Callable[[Message, Callable[[Command], None]], None]) -> Finished:
    """Runs `job` in processes of its own, held to `cpus` if any, and returns when its rows are on the disk.

    `heed` is called with every message that comes, and with what hands commands back. Raises BenchError, with the
    process's last words, when it ends before the job does. However this function ends, the process has ended too; cut
    short, it still closes the file of its rows.
    """
    finished: Finished | None = None
    with tempfile.TemporaryDirectory(prefix="mlserve-bench-") as scratch:
        path, log = Path(scratch) / "job", Path(scratch) / _LOG
        write_job(path, job)
        with log.open("wb") as output, _keeping_off(cpus), _locust(path, cpus, output) as (reports, commands):
            for line in reports:
                message = _decoder.decode(line)
                heed(message, lambda command: _write(commands, command))
                if isinstance(message, Finished):
                    finished = message
        if finished is None:
            kept = shutil.copy(log, job.directory)
            raise BenchError(f"the load generator broke down: {_last_words(log)}; all it said is in {kept}")
    return finished


@contextmanager
def _locust(path: Path, cpus: Sequence[int], log: BinaryIO) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Starts Locust on the job in `path`; yields its reports, and the file for commands. Ends it with the block."""
    reading, writing = os.pipe()
    obeying, commanding = os.pipe()
    locustfile = Path(__file__).with_name("locustfile.py")
    command = [sys.executable, "-m", "locust", "--locustfile", str(locustfile), "--headless", "--users", "1"]
    # Without its log Locust also keeps its own table of figures, which are rounded, to itself.
    command += ["--spawn-rate", "1", "--only-summary", "--skip-log-setup", "--exit-code-on-error", "0"]
    command += ["--mlserve-plan", str(path), "--mlserve-report-fd", str(writing), "--mlserve-command-fd", str(obeying)]
    with os.fdopen(reading, "rb") as reports, os.fdopen(commanding, "wb", 0) as commands:
        try:
            process = subprocess.Popen(
                leashed(command, cpus),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing, obeying),
                process_group=0,  # so that Ctrl-C in a terminal reaches us alone, and the rows are kept
                cwd=path.parent,  # where no locust.conf lies; and no LOCUST_ variable shall set what we do not
                env={name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")},
            )
        finally:
            os.close(writing)
            os.close(obeying)
        try:
            yield reports, commands
        except BaseException:
            process.terminate()
            raise
        finally:
            _wait(process)


@contextmanager
def _keeping_off(cpus: Sequence[int]) -> Iterator[None]:
    """Leaves the generator's cores to it: whoever follows its progress on one of them makes requests leave late."""
    own = os.sched_getaffinity(0) if cpus else set()
    if own - set(cpus):
        os.sched_setaffinity(0, own - set(cpus))
    try:
        yield
    finally:
        if own:
            os.sched_setaffinity(0, own)


def _write(commands: BinaryIO, command: Command) -> None:
    with suppress(BrokenPipeError):  # it has just ended
        commands.write(msgspec.json.encode(command) + b"\n")


def _wait(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
