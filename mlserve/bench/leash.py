"""Child processes that end with us, however we end.

A child whose parent is killed outright lives on, and a forgotten generator or server spoils every later measurement.
Linux ends it for us if it asks before it becomes the real program, which `preexec_fn` cannot do safely once the parent
has threads: so this file is run as a script that asks, and then turns into the program. Elsewhere it only turns.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["leashed"]

_PR_SET_PDEATHSIG = 1


def leashed(command: Sequence[str], cpus: Sequence[int] = ()) -> list[str]:
    """`command` as a child of this process that gets SIGTERM when this process ends, held to `cpus` if any.

    Start it from the main thread: Linux counts the end of the thread that started it.
    """
    # -I -S: without the site packages the detour costs 10 ms.
    held = ",".join(map(str, cpus))
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), held, *command]


def _become(parent: int, cpus: str, command: list[str]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked
            sys.exit(1)
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(cpu) for cpu in cpus.split(",")])
    os.execv(command[0], command)  # noqa: S606  # a list that our own code made


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
