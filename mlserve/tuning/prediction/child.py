"""A module of ours in a process of its own, on cores of its own: a job goes in by a file, and its result comes back."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from mlserve.bench.leash import leashed
from mlserve.bench.scratch import scratch_folder
from mlserve.errors import EngineError

__all__ = ["run_child"]

Result = TypeVar("Result", bound=msgspec.Struct)


def run_child(module: str, job: msgspec.Struct, cpus: Sequence[int], result: type[Result]) -> Result:
    """What `module` makes of `job`, held to `cpus` if any. It ends with us, however we end.

    Raises EngineError, with the process's last words, where it breaks down.
    """
    with scratch_folder() as folder, tempfile.TemporaryFile() as log:
        asked, made = folder / "job", folder / "result"
        asked.write_bytes(msgspec.msgpack.encode(job))
        process = subprocess.Popen(
            leashed([sys.executable, "-m", module, str(asked), str(made)], cpus),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # so that Ctrl-C in a terminal reaches us alone
        )
        try:
            status = process.wait()
        finally:
            process.kill()
            process.wait()
        if made.is_file():
            return msgspec.msgpack.decode(made.read_bytes(), type=result)
        log.seek(0)
        words = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        raise EngineError(
            f"a measuring process ended with {status}: {words[-1].strip() if words else 'it said nothing'}"
        )
