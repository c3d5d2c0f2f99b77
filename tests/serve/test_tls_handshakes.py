"""TLS where it begins: how many handshakes are let in, and sessions that are taken up again."""

import socket
import ssl
import time
from contextlib import ExitStack, suppress
from datetime import timedelta

import pytest

from mlserve.serve.settings import Limits, TlsSettings
from mlserve.serve.tls import Certificates

CONNECTIONS, HEAD_S = 12, 4.0


@pytest.fixture(scope="module")
def root(authorities, tmp_path_factory):
    return authorities.Authority(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def pair(root):
    return root.issue("localhost", ["localhost"])


@pytest.fixture
def context(root, pair):
    """The server's, which asks clients for certificates."""
    return Certificates(TlsSettings(str(pair.certificate), str(pair.key), str(root.path))).http


@pytest.fixture
def client(root):
    """`client(pair)`: the context of one who shows `pair` and knows no newer version than TLS 1.2."""

    def make(shown=None, version=ssl.TLSVersion.TLSv1_2):
        made = ssl.create_default_context(cafile=str(root.path))
        made.maximum_version = version
        if shown is not None:
            made.load_cert_chain(shown.certificate, shown.key)
        return made

    return make


class Both:
    """Both sides of one connection, in memory."""

    def __init__(self, server, client, session=None):
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(to_server, to_client, server_side=True)
        self.client = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)

    def shake_hands(self):
        """Raises what the server does."""
        for _ in range(4):
            for side in (self.client, self.server):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        return self


def test_handshakes_under_way_and_connections_have_one_limit(context, client):
    connections = set()
    context.limit(connections, 3)
    connections.add(Both(context, client()).shake_hands())  # as a server adds what is made
    under_way = [Both(context, client()) for _ in range(2)]
    with pytest.raises(ConnectionRefusedError, match="there are 3 connections already"):
        Both(context, client())
    del under_way[0]
    under_way.append(Both(context, client()))
    under_way.pop().shake_hands()
    Both(context, client())


def test_what_is_made_or_has_failed_is_under_way_no_more(context, client, authorities, tmp_path):
    context.limit((), 1)
    stranger = authorities.Authority(tmp_path).issue("ci")
    for shown in (None, stranger) * 3:
        both = Both(context, client(shown))
        try:
            both.shake_hands()
        except ssl.SSLError:
            assert shown is stranger
        del both


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_of_tls_1_2_alone_can_be_taken_up_again_and_keeps_its_certificate(context, client, root, version):
    mine = client(root.issue("ci"), version)
    first = Both(context, mine).shake_hands()
    again = Both(context, mine, first.client.session).shake_hands()
    assert not first.client.session.has_ticket
    assert again.server.session_reused == (version < ssl.TLSVersion.TLSv1_3)
    assert again.server.getpeercert() == first.server.getpeercert()


def test_a_session_whose_certificate_has_expired_is_not_taken_up_again(context, client, root):
    mine, began_s = client(root.issue("ci", valid=timedelta(seconds=2))), time.time()
    first = Both(context, mine).shake_hands()  # a connection that is cut takes its session with it
    again = Both(context, mine, first.client.session).shake_hands()
    assert again.server.session_reused
    time.sleep(max(0.0, began_s + 2.1 - time.time()))
    late = Both(context, mine, first.client.session)
    with pytest.raises(ssl.SSLError, match="the client's certificate has expired"):
        late.shake_hands()
    assert late.server.session_reused


def test_a_session_is_not_taken_up_again_after_the_authority_changed(root, pair, client, tmp_path):
    placed, mine = pair.copy_to(tmp_path), client(root.issue("ci"))
    authority = tmp_path / "root.pem"
    authority.write_bytes(root.path.read_bytes())
    certificates = Certificates(TlsSettings(str(placed.certificate), str(placed.key), str(authority)))
    first = Both(certificates.http, mine).shake_hands()
    assert Both(certificates.http, mine, first.client.session).shake_hands().server.session_reused
    first = Both(certificates.http, mine).shake_hands()
    authority.write_bytes(root.path.read_bytes() + b"\n")
    certificates.look()
    assert not Both(certificates.http, mine, first.client.session).shake_hands().server.session_reused


# A real server


@pytest.fixture(scope="module")
def secure(serving_settings, tiny_onnx, root, pair):
    tls = TlsSettings(str(pair.certificate), str(pair.key))
    limits = Limits(head_s=HEAD_S, max_connections=CONNECTIONS)
    with serving_settings(tiny_onnx, tls=tls, limits=limits) as server:
        yield server


def greeted(port, client):
    """Whether a handshake is let in."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 10) as raw,
            client.wrap_socket(raw, server_hostname="localhost"),
        ):
            return True
    except OSError:
        return False


def silent(port):
    """A connection on which no handshake is begun."""
    return socket.create_connection(("127.0.0.1", port), 10)


@pytest.mark.parametrize("name", ["http_port", "grpc_port"])
def test_stalled_handshakes_take_no_more_than_connections_may(secure, client, until, name):
    port, mine = getattr(secure, name), client()
    with ExitStack() as stack:
        stalled = [stack.enter_context(silent(port)) for _ in range(CONNECTIONS - 1)]
        assert greeted(port, mine)
        # The one that was greeted may be there for a moment yet, in the place of the last of these.
        until(lambda: stack.enter_context(silent(port)) and not greeted(port, mine), HEAD_S / 2)
        for connection in stalled:
            connection.close()
        until(lambda: greeted(port, mine), HEAD_S / 2)
    until(lambda: greeted(port, mine))


@pytest.mark.parametrize("name", ["http_port", "grpc_port"])
def test_handshakes_that_fail_or_take_too_long_are_given_back(secure, client, until, name):
    port, mine = getattr(secure, name), client()
    for _ in range(2 * CONNECTIONS):
        with silent(port) as connection, suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while connection.recv(4096):
                pass
    until(lambda: greeted(port, mine), HEAD_S / 2)
    with ExitStack() as stack:
        for _ in range(CONNECTIONS + 2):
            stack.enter_context(silent(port))
        until(lambda: not greeted(port, mine), HEAD_S / 2)
        until(lambda: greeted(port, mine), HEAD_S + 5)
