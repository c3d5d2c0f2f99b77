"""The generators' cores, kept busy while something is timed on the server's: as they are when a server is asked.

Cores share caches, memory and a clock. A run of MiniLM took 3 to 5% longer beside a busy core than beside an idle one
(two cores, 8 pairs in turns), and a queue makes more of that.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

from mlserve.bench.leash import leashed

__all__ = ["busy_neighbours"]

# About what a generator does, without end: it writes requests and reads answers.
_WORK = """
import json
row = {"data": [float(number) for number in range(64)]}
while True:
    json.loads(json.dumps(row))
"""


@contextlib.contextmanager
def busy_neighbours(cpus: Sequence[int]) -> Iterator[None]:
    """Keeps each of `cpus` busy, until left; they end with us, however we end."""
    command = [sys.executable, "-I", "-S", "-c", _WORK]
    with contextlib.ExitStack() as stack:
        for cpu in cpus:
            process = subprocess.Popen(
                leashed(command, [cpu]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # so that Ctrl-C in a terminal reaches us alone
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield
