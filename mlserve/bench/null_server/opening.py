"""Starting the null server, and ending it."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mlserve.bench.generator.job import Address
from mlserve.bench.leash import leashed
from mlserve.bench.scratch import scratch_folder
from mlserve.errors import BenchError

__all__ = ["open_null_server"]


@contextmanager
def open_null_server(address: Address, answer: bytes, cpus: Sequence[int] = ()) -> Iterator[Address]:
    """A server on this machine that answers what is sent to `address` at once: with the body, or message, `answer`.

    Yields its own address; the server ends with the block, or with this process. It is held to `cpus` if any. Raises
    BenchError when it cannot start.
    """
    with scratch_folder() as scratch:
        file, log = scratch / "answer", scratch / "log"
        file.write_bytes(answer)
        command = [sys.executable, "-m", "mlserve.bench.null_server", address.transport, address.path, str(file)]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                leashed(command, cpus),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,  # so that Ctrl-C in a terminal reaches us alone
                cwd=scratch,  # where no module lies that might be taken for ours
            )
        with process:
            try:
                assert process.stdout is not None, "asked for"
                port = process.stdout.readline()
                if not port:
                    raise BenchError(f"the null server did not start: {_last_line(log)}")
                yield msgspec.structs.replace(address, host="127.0.0.1", port=int(port), trust=None)
            finally:
                process.kill()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
