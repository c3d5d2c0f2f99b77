"""TLS on gevent's event loop: the same bytes as over a plain connection, or a word on why there are none."""

import socket
import ssl
import threading
from contextlib import suppress

import gevent
import pytest
from gevent.event import Event

from mlserve.bench.clients.client import Request
from mlserve.bench.clients.connection import CLOSED, resolve
from mlserve.bench.clients.http import HttpClient
from mlserve.bench.clients.secure_connection import Security, open_connection
from mlserve.bench.trust import Trust

GOODBYE = b"goodbye"


@pytest.fixture(scope="module")
def root(authorities, tmp_path_factory):
    return authorities.Authority(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def pair(root):
    return root.issue("localhost", ["localhost", "127.0.0.1"])


@pytest.fixture
def echo(pair, root):
    """`echo(...)` -> the port of a server that sends back what it gets, until it gets GOODBYE."""
    stopping = []

    def start(*, asks_who=False, version=None, speaks=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        if asks_who:
            context.load_verify_locations(root.path)
            context.verify_mode = ssl.CERT_REQUIRED
        if version:
            context.maximum_version = version
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=serve, args=(listener, context, speaks))
        thread.start()
        stopping.append((listener, thread))
        return listener.getsockname()[1]

    yield start
    for listener, thread in stopping:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def serve(listener, context, speaks):
    while True:
        try:
            raw, _ = listener.accept()
        except OSError:
            return
        raw.settimeout(10)
        with raw, suppress(OSError):
            if speaks is not None:
                raw.recv(10)
                raw.sendall(speaks)
                continue
            with context.wrap_socket(raw, server_side=True) as connection:
                while (content := connection.recv(65536)) and content != GOODBYE:
                    connection.sendall(content)
                if content:
                    connection.unwrap()


class Spoken:
    """A connection, all that came over it, and why it ended."""

    def __init__(self, port, trust):
        self.content, self.status, self.ended = b"", None, Event()
        self.connection = open_connection(
            resolve("localhost", port), self._received, self._closed, Security(trust.context(), "localhost")
        )

    def _received(self, content):
        self.content += content

    def _closed(self, status):
        self.status = status
        self.ended.set()

    def wait(self, size):
        with gevent.Timeout(10):
            while len(self.content) < size and self.status is None:
                gevent.sleep(0.002)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_is_sent_before_it_is_open_and_after_it_arrives_in_order(echo, root, version):
    spoken = Spoken(echo(version=version), Trust(ca_file=str(root.path)))
    parts = [bytes([number]) * size for number, size in enumerate((1, 20_000, 3, 400_000))]
    for part in parts[:2]:
        spoken.connection.send(part)
    assert not spoken.connection.opened
    spoken.wait(20_001)
    assert spoken.connection.opened
    for part in parts[2:]:
        spoken.connection.send(memoryview(part))
    spoken.wait(len(b"".join(parts)))
    assert spoken.content == b"".join(parts)
    assert spoken.status is None
    spoken.connection.send(GOODBYE)
    assert spoken.ended.wait(10)
    assert (spoken.status, spoken.connection.at_end, spoken.connection.opened) == (CLOSED, True, False)


def test_a_connection_that_was_closed_says_and_hears_nothing_more(echo, root):
    spoken = Spoken(echo(), Trust(ca_file=str(root.path)))
    spoken.connection.send(b"one")
    spoken.wait(3)
    spoken.connection.close()
    spoken.connection.send(b"two")
    gevent.sleep(0.05)
    assert (spoken.content, spoken.status) == (b"one", None)


def test_a_certificate_that_nobody_vouches_for_is_told(echo):
    spoken = Spoken(echo(), Trust())
    spoken.connection.send(b"secret")
    assert spoken.ended.wait(10)
    assert spoken.status.startswith("tls: ")
    assert "unable to get local issuer certificate" in spoken.status


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_to_know_who_asks_is_told_or_says_no(echo, root, version):
    port, ci = echo(asks_who=True, version=version), root.issue("ci")
    nobody = Spoken(port, Trust(ca_file=str(root.path)))
    nobody.connection.send(b"one")
    assert nobody.ended.wait(10)
    assert nobody.status.startswith(("tls: ", CLOSED))
    assert nobody.content == b""
    known = Spoken(port, Trust(ca_file=str(root.path), certificate_file=str(ci.certificate), key_file=str(ci.key)))
    known.connection.send(b"one")
    known.wait(3)
    assert known.content == b"one"
    known.connection.close()


def test_a_server_without_tls_is_told(echo, root):
    spoken = Spoken(echo(speaks=b"HTTP/1.1 400 Bad Request\r\n\r\n"), Trust(ca_file=str(root.path)))
    assert spoken.ended.wait(10)
    assert spoken.status == "tls: wrong version number"


def test_a_client_tells_it_as_the_status_of_its_requests(echo, ask):
    client = HttpClient("localhost", echo(), "/", [Request(b"x")], 5.0, Trust())
    (reply,) = ask(client, 0)
    client.close()
    assert reply.status.startswith("tls: ")
