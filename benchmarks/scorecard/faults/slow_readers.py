"""Clients that ask and ask, whatever becomes of it, and read the answers a kilobyte a second."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from scorecard.known import MODEL

__all__ = ["ANSWER_BYTES", "slow_readers"]

_ROWS = 2000
_PER_S = 1024
_STEPS_PER_S = 10
_ASKED_A_STEP, _STANDING_STEPS = 16, 4
# Of 28 figures and signs a row, such as 2.4691358e-20.
ANSWER_BYTES = 28 * _ROWS


@contextmanager
def slow_readers(address: str, count: int, requests: int) -> Iterator[threading.Event]:
    """`count` connections, each of which asks `requests` times within a few seconds, for answers of `ANSWER_BYTES`.

    What a server has read of that and not yet computed is for its queue to bound, and no more than a few at a time. The
    event that is yielded is set once the server has taken no more for a while: it waits for its answers to be read.
    """
    ending, standing = threading.Event(), threading.Event()
    thread = threading.Thread(target=_read, args=(address, count, requests, ending, standing), name="slow readers")
    thread.start()
    try:
        yield standing
    finally:
        ending.set()
        thread.join()


def _read(address: str, count: int, requests: int, ending: threading.Event, standing: threading.Event) -> None:
    host, _, port = address.rpartition(":")
    connections: dict[socket.socket, memoryview] = {}
    for _ in range(count):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the system reads in its place
        connection.connect((host, int(port)))
        connection.setblocking(False)
        connections[connection] = memoryview(_request() * requests)
    step_bytes = _ASKED_A_STEP * len(_request())
    try:
        quiet_steps = 0
        while not ending.is_set():
            quiet_steps += 1
            for connection, unsent in connections.items():
                with suppress(OSError):
                    connection.recv(_PER_S // _STEPS_PER_S)
                with suppress(OSError):
                    if unsent:
                        connections[connection] = unsent[connection.send(unsent[:step_bytes]) :]
                        quiet_steps = 0
            if quiet_steps >= _STANDING_STEPS:
                standing.set()
            time.sleep(1 / _STEPS_PER_S)
    finally:
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def _request() -> bytes:
    tensor = np.full((_ROWS, 2), 1.2345679e-20, np.float32).tobytes()
    head = (
        f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{_ROWS},2],'
        f'"parameters":{{"binary_data_size":{len(tensor)}}}}}]}}'
    ).encode()
    return (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: localhost\r\ninference-header-content-length: {len(head)}\r\n"
        f"content-length: {len(head) + len(tensor)}\r\n\r\n"
    ).encode() + (head + tensor)
