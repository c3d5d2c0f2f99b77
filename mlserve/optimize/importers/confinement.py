"""What a model's own code may not do while it is loaded: reach the network.

Two things see to it. Where the system permits, the process leaves for a network of its own in which nothing is
connected: a wall. Always, an audit hook refuses every call of Python's that would open a connection, and remembers it:
a seat belt, which code that means harm can undo, and which gives the clear message. Memory and time are watched from
outside: see `mlserve.optimize.importers.limits`.
"""

import ctypes
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

__all__ = ["Wall", "attempts", "shut_network"]

Wall = Literal["a network of its own", "an audit hook alone"]
"""What keeps the process from the network: see above."""

_NEW_USERS, _NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET of linux/sched.h
_WITH_SOCKET = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg")
_THIS_MACHINE = ("127.0.0.1", "::1")  # libraries bind there to see which protocols there are
_NAMES_ONLY = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")

_attempts: list[str] = []


def shut_network() -> Wall:
    """Cuts this process off. Call it before threads start, each of which would keep the network it began with."""
    sys.addaudithook(_refuse)
    return "a network of its own" if _leave_network() else "an audit hook alone"


def attempts() -> tuple[str, ...]:
    """What was tried since, each once: `socket.connect to ('10.0.0.1', 80)`."""
    return tuple(dict.fromkeys(_attempts))


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _NAMES_ONLY:
        target = arguments[0]
    elif event in _WITH_SOCKET and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        target = arguments[1]
        if event == "socket.bind" and target[0] in _THIS_MACHINE:
            return
    else:
        return
    attempt = f"{event} to {target!r}"
    _attempts.append(attempt)
    raise PermissionError(f"a model may not reach the network while it is imported ({attempt})")


def _leave_network() -> bool:
    """Whether this process now has a network of its own; only Linux has such, and only where it lets us."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if libc.unshare(_NEW_NETWORK) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_USERS | _NEW_NETWORK) != 0:
        return False
    # In the new set of users we keep our number: what looks up who we are finds the same as before. Where that is not
    # let (AppArmor of Ubuntu 24.04) we are `nobody` to ourselves, but may read and write the files we might before.
    with suppress(OSError):
        for name, content in (
            ("setgroups", "deny"),
            ("gid_map", f"{group} {group} 1"),
            ("uid_map", f"{user} {user} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(content, encoding="ascii")
    return True
