"""The processes of a server on this machine: those that listen on the target's port, and theirs."""

import ipaddress

import psutil

from mlserve.bench.target import Target

__all__ = ["listening_pids"]


def listening_pids(target: Target) -> tuple[int, ...]:
    """The processes that listen on the target's port, and all that they have started; ascending.

    A server often listens in one process and computes in its children. Empty for a target on another machine, and
    where this user may not look into the server's processes.
    """
    if not _is_here(target.host):
        return ()
    found: set[int] = set()
    for pid in _listeners(target.port):
        try:
            found |= {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
        except psutil.Error:  # it has ended meanwhile
            continue
    return tuple(sorted(found))


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, of whichever machine
        return False


def _listeners(port: int) -> set[int]:
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:  # macOS shows them to root only
        return set()
    return {
        pid
        for pid, status, address in ((each.pid, each.status, tuple(each.laddr)) for each in connections)
        if pid is not None and status == psutil.CONN_LISTEN and address[1:] == (port,)
    }
