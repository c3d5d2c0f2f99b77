"""The last words of a worker that was killed: who waits for its answer is told, and loses no connection without a word.

A small process shares the worker's table of files and sleeps. When the worker ends, however it ends, its connections
are still open there: HTTP clients that wait for an answer get 503, gRPC clients a GOAWAY, upon which they send their
calls again elsewhere, and those that were about to be accepted are told the same. While the worker lives this costs
nothing, for no file is held twice.

Linux alone can do that; elsewhere, and over TLS, a connection is cut.
"""

import array
import ctypes
import fcntl
import json
import mmap
import os
import platform
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["Will", "appoint"]

_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE_FILES = 0x400
_WILL_BYTES = 4096
# So long who was told may go on sending: to close before would reset the connection, and take the words with it.
# So long others may still ask: who sends at the moment of the end would hear nothing.
_LINGER_S, _SILENCE_S = 0.3, 2.0
_LOOK_MS = 50
_ERROR = b'{"error":"the process that had this request ended before it was answered; send it again"}'
_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_ERROR), _ERROR)
)
_SETTINGS = struct.pack(">BHBBI", 0, 0, 4, 0, 0)
# Of no stream, it says, anything was done.
_GOAWAY = struct.pack(">BHBBIII", 0, 8, 7, 0, 0, 0, 0)
# Where `struct tcp_info` has how many ms ago data was sent, and received, and how many packets of data came and went.
_INFO_BYTES, _SENT_AT, _RECEIVED_AT, _CAME_AT, _WENT_AT = 160, 44, 52, 152, 156


class Will:
    """What the executor has to know: the ports whose clients are told. `pid` is its process's number."""

    def __init__(self, content: mmap.mmap, pid: int) -> None:
        self._content, self.pid = content, pid

    def write(self, http_ports: Sequence[int], grpc_ports: Sequence[int], shared_ports: Sequence[int] = ()) -> None:
        """From now on there is something to be said. Who comes to one of `shared_ports` is let in by others."""
        words = json.dumps([list(http_ports), list(grpc_ports), list(shared_ports)]).encode()
        self._content[1 : 1 + len(words)] = words
        self._content[0] = 1


def appoint() -> Will | None:
    """Starts the executor of this process, which should be small still; None where there can be none."""
    number = _CLONE.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return None
    content = mmap.mmap(-1, _WILL_BYTES)
    try:
        worker = os.pidfd_open(os.getpid())
    except OSError:
        return None
    # As fork does it, but for the table of files, which stays one.
    child = ctypes.PyDLL(None).syscall(number, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        try:
            _execute(content, worker)
        finally:
            os._exit(0)
    return Will(content, child) if child > 0 else None


def _execute(content: mmap.mmap, worker: int) -> None:
    """Sleeps until the worker has ended, and says its last words."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sleep = select.poll()
    sleep.register(worker, select.POLLIN)
    sleep.poll()
    if content[0]:
        ports = json.loads(content[1:].rstrip(b"\0"))
        os.close(worker)  # there may be no other room for what is opened next
        _speak(*map(frozenset, ports))


class _Connection:
    """One client's. `told`: there is nothing more to say."""

    def __init__(self, connection: socket.socket, *, is_http: bool, is_new: bool) -> None:
        self.socket, self.is_http, self.is_new, self.told = connection, is_http, is_new, False

    def tell(self) -> None:
        """Says what there is to say, unless an answer is on its way: in the midst of that it would be a part of it."""
        if self.is_http and not (self.is_new or _owes_answer(self.socket)):
            return  # it may be about to ask
        if _waiting_bytes(self.socket, termios.TIOCOUTQ) == 0:
            goaway = _SETTINGS + _GOAWAY if self.is_new else _GOAWAY
            self.socket.send(_UNAVAILABLE if self.is_http else goaway)
        self.socket.shutdown(socket.SHUT_WR)
        self.told = True


def _speak(http_ports: frozenset[int], grpc_ports: frozenset[int], shared_ports: frozenset[int]) -> None:
    listening, connections = [], list[_Connection]()
    for each in _sockets():
        port = each.getsockname()[1]
        if port in http_ports or port in grpc_ports:
            each.setblocking(False)
            if each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                if port in shared_ports:
                    each.close()  # others have copies
                else:
                    listening.append((each, port in http_ports))
            else:
                connections.append(_Connection(each, is_http=port in http_ports, is_new=False))
    for listener, is_http in listening:
        with suppress(OSError):  # there is none any more
            while True:
                accepted = listener.accept()[0]
                accepted.setblocking(False)
                connections.append(_Connection(accepted, is_http=is_http, is_new=True))
        listener.close()
    for connection in connections:
        with suppress(OSError):  # its client has gone
            connection.tell()
    _linger(connections)


def _sockets() -> Iterator[socket.socket]:
    """Every TCP socket of this process."""
    for path in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # such as the descriptor of this very list
            number = int(path.name)
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                found = socket.socket(fileno=number)
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                    yield found
                else:
                    found.detach()


def _owes_answer(connection: socket.socket) -> bool:
    """Whether the client has sent something since it was sent something."""
    if _waiting_bytes(connection, termios.FIONREAD):
        return True
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if len(told) < _INFO_BYTES:  # an old kernel
        return False
    sent_ms, received_ms, came, went = (
        struct.unpack_from("=I", told, place)[0] for place in (_SENT_AT, _RECEIVED_AT, _CAME_AT, _WENT_AT)
    )
    if received_ms != sent_ms:
        return bool(received_ms < sent_ms and came)
    # Both within one tick of the system's clock. An idle client that is told for nothing connects again, as it would
    # anyway; one that waits and is not told has lost its request.
    return bool(came and (not went or came > went))


def _waiting_bytes(connection: socket.socket, which: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), which, count)
    return count[0]


def _linger(connections: Sequence[_Connection]) -> None:
    """Tells those that ask meanwhile, and reads what the others still send, until they have closed or time is up."""
    open_ones = {each.socket.fileno(): each for each in connections}
    waiting = select.poll()
    for number in open_ones:
        waiting.register(number, select.POLLIN)
    ends_s, told_s = time.monotonic() + _SILENCE_S, time.monotonic()
    while open_ones:
        events = waiting.poll(_LOOK_MS)
        now_s = time.monotonic()
        all_told = all(each.told for each in open_ones.values())
        if not events and (now_s > ends_s or (all_told and now_s - told_s > _LINGER_S)):
            return
        if now_s > ends_s + _SILENCE_S:
            return
        for number, _ in events:
            connection, data = open_ones[number], b""
            with suppress(OSError):
                if not connection.told:
                    connection.tell()
                    told_s = now_s
                data = connection.socket.recv(1 << 16)
            if not data:
                waiting.unregister(number)
                open_ones.pop(number).socket.close()
