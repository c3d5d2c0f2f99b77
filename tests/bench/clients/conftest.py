"""A server over TCP that says, byte by byte, what a test wants it to say, and how a client's replies are awaited."""

import re
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from gevent.event import Event

RESET = "reset"
"""In a script: the connection is reset."""
IGNORED = "ignored"
"""In a script: a request is read and not answered."""


class ScriptedServer:
    """Connection number i follows `scripts[i]` (the last one, where there are more): for each item it reads a request
    and sends the item's bytes, or, of a list, its items one by one; then it closes the connection. `requests` are all
    that came, `connections` how many there were.
    """

    def __init__(self, *scripts, family=socket.AF_INET):
        self.scripts, self.requests, self.connections = scripts, [], 0
        address = "127.0.0.1" if family == socket.AF_INET else "::1"
        try:
            self._listener = socket.create_server((address, 0), family=family, backlog=512)
        except OSError:
            pytest.skip(f"this system has no {address}")
        self.host, self.port = address, self._listener.getsockname()[1]
        self._open, self._lock = set(), threading.Lock()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self):
        threads = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            self._open.add(connection)
            threads.append(threading.Thread(target=self._play, args=(connection, script)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _play(self, connection, script):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(OSError):
            for said in script:
                self._read(connection)
                if said == RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                for part in [] if said == IGNORED else [said] if isinstance(said, bytes) else said:
                    if part == RESET:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    elif isinstance(part, float):
                        time.sleep(part)
                    else:
                        connection.sendall(part)
        self._open.discard(connection)

    def _read(self, connection):
        content = b""
        while b"\r\n\r\n" not in content:
            content += self._more(connection)
        head, _, body = content.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        while len(body) < length:
            body += self._more(connection)
        with self._lock:
            self.requests.append((head + b"\r\n\r\n", body))

    def _more(self, connection):
        if not (more := connection.recv(65536)):
            raise ConnectionError
        return more

    def stop(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


@pytest.fixture
def scripted():
    """Starts a ScriptedServer; all are stopped with the test."""
    servers = []

    def start(*scripts, **settings) -> ScriptedServer:
        servers.append(ScriptedServer(*scripts, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def unused_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.fixture
def ask():
    """Sends all of the requests at once; their replies, in the order of the numbers."""

    def at_once(client, *numbers):
        replies, over = {}, Event()

        def answered(place, reply):
            assert place not in replies, "answered twice"
            replies[place] = reply
            if len(replies) == len(numbers):
                over.set()

        for place, number in enumerate(numbers):
            client.send(number, lambda reply, place=place: answered(place, reply))
        assert not replies, "answered before send returned"
        assert over.wait(10)
        return [replies[place] for place in range(len(numbers))]

    return at_once


@pytest.fixture
def ask_in_turn(ask):
    """Sends each of the requests when the one before it was answered; their replies."""
    return lambda client, *numbers: [ask(client, number)[0] for number in numbers]
