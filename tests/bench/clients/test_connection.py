import socket
import threading
import time

import gevent
import pytest

from mlserve.bench.clients.connection import Connection, resolve, status_of


class Told:
    """What a connection has told."""

    def __init__(self):
        self.content, self.statuses = b"", []

    def received(self, content):
        self.content += content

    def connect(self, addresses):
        self.connection = Connection(addresses, self.received, self.statuses.append)
        assert not self.statuses
        return self.connection

    def wait(self, until):
        deadline_s = time.monotonic() + 10
        while not until():
            assert time.monotonic() < deadline_s
            gevent.sleep(0.002)


@pytest.fixture
def peer():
    """Serves one connection in a thread with the function given; its address."""
    threads = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(speak):
        def accept():
            connection, _ = listener.accept()
            with connection:
                speak(connection)

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return resolve("127.0.0.1", listener.getsockname()[1])

    yield serve
    for thread in threads:
        thread.join()
    listener.close()


def read_all(connection):
    parts = []
    while part := connection.recv(1_000_000):
        parts.append(part)
    return b"".join(parts)


def test_everything_arrives_in_order_what_was_sent_too_early_or_too_fast_too(peer):
    parts = [bytes([number]) * size for number, size in enumerate([10, 4_000_000, 0, 7, 3_000_000, 1])]
    found = []

    def speak(connection):
        time.sleep(0.02)
        found.append(read_all(connection))

    told = Told()
    connection = told.connect(peer(speak))
    for part in parts[:3]:
        connection.send(part)
    assert not connection.opened
    told.wait(lambda: connection.opened)
    for part in parts[3:]:
        connection.send(part)
    gevent.sleep(0.05)
    told.wait(lambda: not connection._unsent)
    connection.close()
    told.wait(lambda: found)
    assert found[0] == b"".join(parts)
    assert told.statuses == []


def test_the_end_is_told_once_and_whether_it_came_in_good_order(peer):
    told = Told()
    connection = told.connect(peer(lambda connection: connection.sendall(b"bye")))
    told.wait(lambda: told.statuses)
    connection.send(b"too late")
    gevent.sleep(0.01)
    assert (told.content, told.statuses, connection.at_end, connection.opened) == (
        b"bye",
        ["connection closed"],
        True,
        False,
    )


def test_a_peer_that_answers_and_leaves_in_the_middle_of_what_is_sent_is_heard(peer):
    def speak(connection):
        connection.recv(10)
        connection.sendall(b"too large")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1_000_000):
            pass

    told = Told()
    told.connect(peer(speak)).send(b"x" * 8_000_000)
    told.wait(lambda: told.statuses)
    assert told.content == b"too large"


def test_nothing_is_told_after_close(peer):
    told = Told()
    connection = told.connect(peer(lambda connection: connection.recv(1)))
    told.wait(lambda: connection.opened)
    connection.close()
    refused = Told()
    refused.connect([]).close()
    gevent.sleep(0.02)
    assert told.statuses == refused.statuses == []


def test_the_address_that_accepted_is_the_first_for_the_next_connection(peer, unused_port):
    addresses = [*resolve("127.0.0.1", unused_port), *peer(lambda connection: connection.recv(1))]
    good = addresses[1]
    told = Told()
    connection = told.connect(addresses)
    told.wait(lambda: connection.opened)
    assert addresses[0] == good
    assert len(addresses) == 2
    connection.send(b"x")
    told.wait(lambda: told.statuses)


@pytest.mark.parametrize(
    ("addresses", "status"), [([], "unknown host"), ([(socket.AF_INET, ("127.0.0.1", 0))], "connection refused")]
)
def test_without_an_address_that_accepts_the_reason_is_told(addresses, status):
    told = Told()
    told.connect(addresses).send(b"x")
    told.wait(lambda: told.statuses)
    assert told.statuses == [status]


def test_every_failure_has_a_word():
    assert status_of(ConnectionResetError()) == status_of(BrokenPipeError()) == "connection closed"
    assert status_of(OSError(101, "Network is unreachable")) == "network is unreachable"
    assert status_of(TimeoutError()) == "timeouterror"
