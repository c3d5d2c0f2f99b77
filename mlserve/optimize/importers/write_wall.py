"""Where a model's own code may write while it is loaded: to folders that are made for the import, and shared memory.

Linux's Landlock sees to it, for this process and all it starts, and cannot be undone (kernel 6.2; 5.13 for all but
shortening; no privilege is needed). Reading is not held back: Python and the libraries read everywhere, and there is no
network to send it to. Nor is what Landlock knows nothing of: who owns a file and what its mode is, signals to other
processes of the user, and sockets that lie in the file system.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

__all__ = ["Held", "shut_writes"]

# Of writing: "most" where files elsewhere can still be shortened.
Held = Literal["nothing", "most", "all"]

# linux/landlock.h; the numbers are those of every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38  # of sys/prctl.h
_WRITE_FILE = 1 << 1
# Removing and making of every kind of entry; moving between folders and shortening came later.
_ALTER = sum(1 << bit for bit in range(4, 13))
_MOVING, _SHORTENING = 2, 3  # the versions of Landlock that brought them
_SINCE = {_MOVING: 1 << 13, _SHORTENING: 1 << 14}

_DEVICES = ("/dev/null", "/dev/zero", "/dev/tty", "/dev/full")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # where threads' and processes' locks live


def shut_writes(allowed: Iterable[Path], *, newest: int = _SHORTENING) -> Held:
    """From now on this thread, and what it starts, writes only below the folders `allowed`; how much of that holds.

    Call it before threads start, each of which would keep the rights it began with. `newest` is the version of Landlock
    beyond which nothing is asked of it.
    """
    if sys.platform != "linux":
        return "nothing"
    libc = ctypes.CDLL(None, use_errno=True)
    version = min(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION), newest)
    if version < 1:
        return "nothing"
    handled = _WRITE_FILE | _ALTER | sum(right for since, right in _SINCE.items() if version >= since)
    attributes = struct.pack("=Q", handled)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return "nothing"
    try:
        for path in (*allowed, Path(_SHARED_MEMORY)):
            _allow(libc, ruleset, path, handled)
        for device in _DEVICES:
            _allow(libc, ruleset, Path(device), handled & (_WRITE_FILE | _SINCE[_SHORTENING]))
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0 or libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return "nothing"
        return "all" if version >= _SHORTENING else "most"
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    if not path.exists():  # a device that this machine has not
        return
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)
