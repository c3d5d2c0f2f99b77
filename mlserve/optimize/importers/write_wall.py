"""Where a model's own code may write while it is loaded: to folders that are made for the import, and nowhere else.

Linux's Landlock sees to it, for this process and all it starts, and cannot be undone (kernel 5.13; no privilege is
needed). Reading is not held back: Python and the libraries read everywhere, and there is no network to send it to.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["shut_writes"]

# linux/landlock.h; the numbers are those of every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38  # of sys/prctl.h
_WRITE_FILE = 1 << 1
# Removing and making of every kind of entry; moving between folders and shortening came later.
_ALTER = sum(1 << bit for bit in range(4, 13))
_SINCE = {2: 1 << 13, 3: 1 << 14}

_DEVICES = ("/dev/null", "/dev/zero", "/dev/tty", "/dev/full")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108  # where threads' and processes' locks live


def shut_writes(allowed: Iterable[Path]) -> bool:
    """From now on this thread, and what it starts, writes only below the folders `allowed`; whether that holds.

    Call it before threads start, each of which would keep the rights it began with.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    handled = _WRITE_FILE | _ALTER | sum(right for since, right in _SINCE.items() if version >= since)
    attributes = struct.pack("=Q", handled)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for path in (*allowed, Path(_SHARED_MEMORY)):
            _allow(libc, ruleset, path, handled)
        for device in _DEVICES:
            _allow(libc, ruleset, Path(device), handled & (_WRITE_FILE | _SINCE[3]))
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
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
