"""What browsers may be made to send: hosts that are no name of the server's, and pages of other sites."""

import http.client
import json

import pytest

from mlserve.errors import Forbidden
from mlserve.serve.browsers import BrowserGuard
from mlserve.serve.settings import AccessSettings

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.0] * 30}]}).encode()
INFER = "/v2/models/tiny/infer"
EVIL = {
    *("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "10.0.0.7"),
    *("", "localhost@evil.example", "evil.example#localhost", "[::1].evil.example", "[::1", "127.0.0.1:80:9", "a b"),
}
HERE = {"localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:65535"}


def fields(host=None, origin=None):
    given = {"host": host, "origin": origin}
    return [(name.encode(), value.encode()) for name, value in given.items() if value is not None]


def passes(guard, host=None, origin=None):
    try:
        guard.check(fields(host, origin))
    except Forbidden:
        return False
    return True


def test_a_server_of_this_machine_that_asks_for_no_keys_answers_to_its_own_names_alone():
    for address in ("127.0.0.1", "::1"):
        guard = BrowserGuard(address, open_to_all=True)
        assert {host for host in HERE | EVIL if passes(guard, host)} == HERE
        assert passes(guard)  # a client that names none is no browser
        assert not passes(guard, "127.0.0.2")
    assert passes(BrowserGuard("127.0.0.2", open_to_all=True), "127.0.0.2:80")


@pytest.mark.parametrize(
    ("address", "open_to_all", "hosts"), [("127.0.0.1", False, ()), ("0.0.0.0", True, ()), ("127.0.0.1", True, ("*",))]
)
def test_others_answer_to_any_name(address, open_to_all, hosts):
    guard = BrowserGuard(address, open_to_all=open_to_all, hosts=hosts)
    assert all(passes(guard, host) for host in HERE | EVIL)


def test_names_may_be_added():
    guard = BrowserGuard("127.0.0.1", open_to_all=True, hosts=("Models.Example",))
    assert {host for host in HERE | EVIL | {"models.example:8000"} if passes(guard, host)} == HERE | {
        "models.example:8000"
    }


def test_a_second_host_does_not_hide_behind_the_first():
    guard = BrowserGuard("127.0.0.1", open_to_all=True)
    with pytest.raises(Forbidden, match="--allowed-host"):
        guard.check([(b"host", b"localhost"), (b"host", b"evil.example")])


def test_pages_of_other_sites_send_nothing():
    guard = BrowserGuard("0.0.0.0", open_to_all=False, origins=("https://shop.example",))
    own = ("http://api.example:8000", "https://api.example:8000", "HTTP://API.example:8000", "https://shop.example")
    foreign = ("http://evil.example", "null", "http://api.example", "https://shop.example:444", "file://", "x" * 9000)
    assert [origin for origin in (*own, *foreign) if passes(guard, "api.example:8000", origin)] == [*own]
    assert not passes(guard, None, "http://api.example:8000")
    any_site = BrowserGuard("0.0.0.0", open_to_all=False, origins=("*",))
    assert all(passes(any_site, "api.example:8000", origin) for origin in (*own, *foreign))


def test_what_was_looked_at_is_remembered_and_bounded():
    guard = BrowserGuard("127.0.0.1", open_to_all=True)
    assert not passes(guard, "evil.example")
    assert guard.passed == set()
    for port in range(1000):
        assert passes(guard, f"localhost:{port}")
    assert 0 < len(guard.passed) <= 256


def asked(port, method, path, host=None, origin=None, times=1):
    """The statuses of the same request, sent `times` on one connection while that is kept."""
    headers = ({"host": host} if host else {}) | ({"origin": origin} if origin else {})
    connection, statuses = http.client.HTTPConnection("127.0.0.1", port, timeout=30), []
    try:
        for _ in range(times):
            connection.request(method, path, BODY if method == "POST" else None, headers)
            reply = connection.getresponse()
            body = reply.read()
            statuses.append(reply.status)
            assert reply.status == 200 or len(body) < 1024
    finally:
        connection.close()
    return statuses


@pytest.fixture(scope="module")
def guarded(serving_settings, tiny_onnx):
    access = AccessSettings(hosts=("models.example",), origins=("https://shop.example",))
    with serving_settings(tiny_onnx, access=access, management_port=0) as server:
        yield server


# The last asks for itself through the slow lane, which the first time any path does.
ASKED = [("POST", INFER), ("POST", "/v2/models/t%69ny/infer"), ("GET", "/v2"), ("GET", "/metrics"), ("POST", "/absent")]


@pytest.mark.parametrize(("method", "path"), ASKED)
def test_every_page_is_behind_it(guarded, method, path):
    usual = asked(guarded.http_port, method, path, times=4)
    assert 403 not in usual
    for host in ("localhost", f"127.0.0.1:{guarded.http_port}", "models.example:99"):
        assert asked(guarded.http_port, method, path, host, times=4) == usual
        for origin in (f"http://{host}", "https://shop.example"):
            assert asked(guarded.http_port, method, path, host, origin, times=4) == usual
        for origin in ("http://evil.example", "null"):
            assert asked(guarded.http_port, method, path, host, origin) == [403]
    assert asked(guarded.http_port, method, path, "evil.example") == [403]
    # The way of an attack: the name of the page is the name that means this machine by now.
    assert asked(guarded.http_port, method, path, "evil.example:1", "http://evil.example:1") == [403]


def test_so_is_the_management_port(guarded):
    port = guarded.management_port
    assert asked(port, "GET", "/models") == [200]
    assert asked(port, "GET", "/models", "evil.example") == [403]
    assert asked(port, "GET", "/models", "localhost", "http://evil.example") == [403]
    assert asked(port, "OPTIONS", "/", "localhost", "http://evil.example") == [403]


def test_a_request_that_offers_an_upgrade_is_looked_at_too(guarded):
    connection = guarded.connect()
    with connection:
        connection.sendall(
            b"GET /v2 HTTP/1.1\r\nhost: evil.example\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
            b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_a_server_with_keys_is_not_asked_by_pages_but_by_any_name(serving_settings, tiny_onnx, tmp_path):
    from mlserve.serve.keys import add_key, new_key

    add_key(tmp_path / "keys.json", new_key("ci", ["infer"]).key)
    settings = {"keys_file": str(tmp_path / "keys.json"), "access": AccessSettings(), "management_port": 0}
    with serving_settings(tiny_onnx, **settings) as server:
        assert asked(server.http_port, "GET", "/v2", "proxy.example") == [401]
        assert asked(server.http_port, "GET", "/health", "proxy.example") == [200]
        assert asked(server.http_port, "GET", "/health", "proxy.example", "http://evil.example") == [403]
