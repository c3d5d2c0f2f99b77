"""TLS of a real server, over HTTP and gRPC: who is let in, as whom, and a certificate that changes while it serves."""

import http.client
import json
import socket
import ssl
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import grpc
import pytest

from mlserve.errors import UsageError
from mlserve.serve.keys import add_key, new_key
from mlserve.serve.settings import Limits, TlsSettings
from mlserve.serve.tls import Certificates

HEAD_S = 1.0
PATH = "/v2/models/tiny/infer"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}]})
METADATA, INDEX, HEALTH = (
    "/inference.GRPCInferenceService/ServerMetadata",
    "/inference.GRPCInferenceService/RepositoryIndex",
    "/grpc.health.v1.Health/Check",
)
BOTH_WAYS = pytest.mark.parametrize("call", [METADATA, INDEX], ids=["native", "grpcio"])


@pytest.fixture(scope="module")
def root(authorities, tmp_path_factory):
    return authorities.Authority(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def secure(serving_settings, tiny_onnx, root, tmp_path_factory):
    """A server that knows certificates and keys, with little patience. `first` is what it began with."""
    folder = tmp_path_factory.mktemp("secure")
    first = root.issue("localhost", ["localhost", "127.0.0.1"])
    placed = first.copy_to(folder)
    identities = folder / "identities.toml"
    identities.write_text('format_version = 1\n[[identity]]\ncertificate = "CN:ci"\nscopes = ["infer", "metadata"]\n')
    key = new_key("k", ["metrics"])
    add_key(folder / "keys.json", key.key)
    tls = TlsSettings(str(placed.certificate), str(placed.key), str(root.path), False, str(identities))
    limits = Limits(head_s=HEAD_S, max_request_bytes=100_000)
    with serving_settings(tiny_onnx, tls=tls, keys_file=str(folder / "keys.json"), limits=limits) as server:
        server.folder, server.first, server.identities, server.key = folder, first, identities, key.secret
        yield server


@pytest.fixture(scope="module")
def ci(root):
    return root.issue("ci")


def context(root, client=None):
    made = ssl.create_default_context(cafile=str(root.path))
    if client is not None:
        made.load_cert_chain(client.certificate, client.key)
    return made


def ask(server, context, method="POST", path=PATH, body=BODY, headers=None):
    connection = http.client.HTTPSConnection("localhost", server.http_port, context=context, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def call(server, root, path, client=None, metadata=()):
    """The status of a call with an empty message."""
    pair = (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(root.path.read_bytes(), *pair)
    with grpc.secure_channel(f"localhost:{server.grpc_port}", credentials) as channel:
        try:
            channel.unary_unary(path)(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def certificate_shown(port, alpn=()):
    """The certificate that a new handshake gets, in DER."""
    trusting = ssl._create_unverified_context()
    trusting.set_alpn_protocols(list(alpn))
    with socket.create_connection(("127.0.0.1", port), 10) as raw, trusting.wrap_socket(raw) as connection:
        return connection.getpeercert(binary_form=True), connection.version(), connection.selected_alpn_protocol()


def shown_everywhere(server):
    return {certificate_shown(server.http_port, ["http/1.1"])[0], certificate_shown(server.grpc_port, ["h2"])[0]}


def der(pair):
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def test_it_says_https_and_agrees_on_the_newest_version_and_the_protocol(secure):
    _, version, protocol = certificate_shown(secure.http_port, ["http/1.1"])
    assert (version, protocol) == ("TLSv1.3", "http/1.1")
    assert certificate_shown(secure.grpc_port, ["h2"])[1:] == ("TLSv1.3", "h2")


def test_a_certificate_stands_for_a_key_in_both_lanes(secure, root, ci):
    mine = context(root, ci)
    for path in (PATH, f"{PATH}?lane=slow"):
        assert ask(secure, mine, path=path)[0] == 200
        assert ask(secure, context(root), path=path)[0] == 401
        status, answer = ask(secure, context(root, root.issue("stranger")), path=path)
        assert (status, "certificate" in json.loads(answer)["error"]) == (401, True)
    assert ask(secure, mine, "GET", "/metrics")[0] == 403
    assert ask(secure, mine, "GET", "/v2/models/tiny")[0] == 200


def test_the_examples_it_shows_speak_tls(secure, root, ci):
    status, page = ask(secure, context(root, ci), "GET", "/", headers={"accept": "text/html"})
    assert status == 200
    assert f"https://localhost:{secure.http_port}/".encode() in page
    assert b"http://localhost" not in page
    assert page.count(b"ssl=True") == page.count(b"InferenceServerClient") > 0


def test_a_key_that_is_sent_counts_and_not_the_certificate(secure, root, ci):
    bearer = {"authorization": f"Bearer {secure.key}"}
    for client in (None, ci):
        mine = context(root, client)
        assert ask(secure, mine, "GET", "/metrics", headers=bearer)[0] == 200
        assert ask(secure, mine, headers=bearer)[0] == 403
        assert ask(secure, mine, headers={"x-api-key": "wrong"})[0] == 401


def test_a_certificate_predicts_by_graphql(secure, root, ci):
    pytest.importorskip("graphql")
    query = "{ models { name } predict(rows: [%s]) { version } }" % ([0.5] * 30)
    body, kind = json.dumps({"query": query}), {"content-type": "application/json"}
    status, answer = ask(secure, context(root, ci), path="/graphql", body=body, headers=kind)
    assert (status, json.loads(answer)) == (200, {"data": {"models": [{"name": "tiny"}], "predict": {"version": "1"}}})
    assert ask(secure, context(root, root.issue("stranger")), path="/graphql", body=body, headers=kind)[0] == 401
    with_key = {**kind, "x-api-key": secure.key}  # a key that is sent counts
    assert ask(secure, context(root, ci), path="/graphql", body=body, headers=with_key)[0] == 403


@BOTH_WAYS
def test_a_certificate_stands_for_a_key_over_grpc(secure, root, ci, call_status, call):
    assert call_status(call, ci) == grpc.StatusCode.OK
    assert call_status(call) == call_status(call, root.issue("stranger")) == grpc.StatusCode.UNAUTHENTICATED
    assert call_status(HEALTH) == grpc.StatusCode.OK
    bearer = [("authorization", f"Bearer {secure.key}")]
    assert call_status(call, ci, bearer) == grpc.StatusCode.PERMISSION_DENIED


@BOTH_WAYS
def test_nobody_can_say_by_itself_what_the_server_notes_of_a_certificate(call_status, call):
    for value in ("CN:ci", "certificate", "0" * 32):
        assert call_status(call, None, [("mlserve-certificate", value)]) == grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
def call_status(secure, root):
    return lambda path, client=None, metadata=(): call(secure, root, path, client, metadata)


@pytest.mark.parametrize("kind", ["self-signed", "expired", "of another root"])
def test_a_certificate_that_is_no_good_ends_the_handshake(secure, root, authorities, tmp_path, kind):
    bad = {
        "self-signed": lambda: root.issue_self_signed("ci"),
        "expired": lambda: root.issue("ci", valid=timedelta(hours=-1)),
        "of another root": lambda: authorities.Authority(tmp_path).issue("ci"),
    }[kind]()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(secure, context(root, bad))
    assert call(secure, root, METADATA, bad) == grpc.StatusCode.UNAVAILABLE


def test_old_versions_of_tls_are_refused(secure, root):
    old = context(root)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(secure, old)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert ask(secure, old, "GET", "/v2/health/live")[0] == 200


def test_plain_text_gets_no_answer(secure):
    with socket.create_connection(("127.0.0.1", secure.http_port), 10) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"HTTP" not in _rest(connection)


def test_a_refusal_before_the_body_was_read_still_arrives(secure, root, ci):
    with (
        socket.create_connection(("127.0.0.1", secure.http_port), 10) as raw,
        context(root, ci).wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10000000\r\n\r\n".encode())
        connection.sendall(b"x" * 50_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_handshake_that_stalls_ends_and_disturbs_nobody(secure, root, ci):
    stalled = [_stalled(port) for port in (secure.http_port, secure.grpc_port) for _ in range(20)]
    began_s = time.monotonic()
    mine = context(root, ci)
    assert ask(secure, mine)[0] == 200
    assert call(secure, root, METADATA, ci) == grpc.StatusCode.OK
    for connection in stalled:
        with connection:
            assert _rest(connection) == b""
    assert HEAD_S - 0.2 < time.monotonic() - began_s < HEAD_S + 2


def _stalled(port):
    """A connection that has sent half of the first message of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl._create_unverified_context().wrap_bio(incoming, outgoing).do_handshake()
    hello = outgoing.read()
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.sendall(hello[: len(hello) // 2])
    return connection


def _rest(connection):
    try:
        return connection.recv(4096)
    except ConnectionError:
        return b""


def test_what_a_certificate_may_do_can_be_taken_back(secure, root, ci, until):
    mine, before = context(root, ci), secure.identities.read_text()
    with_metrics = before.replace('"metadata"', '"metadata", "metrics"')
    secure.identities.write_text(with_metrics)
    assert until(lambda: ask(secure, mine, "GET", "/metrics")[0] == 200)
    secure.identities.write_text(before)
    assert until(lambda: ask(secure, mine, "GET", "/metrics")[0] == 403)


def test_a_new_certificate_is_shown_within_a_second_and_no_request_is_lost(secure, root, ci, until):
    asked = SimpleNamespace(statuses=[], errors=[])
    stop = threading.Event()
    threads = [threading.Thread(target=_load, args=(secure, root, ci, each, asked, stop)) for each in (True, False)]
    for thread in threads:
        thread.start()
    with (
        socket.create_connection(("127.0.0.1", secure.http_port), 10) as raw,
        context(root, ci).wrap_socket(raw, server_hostname="localhost") as before,
    ):
        for _ in range(3):
            pair = root.issue("localhost", ["localhost", "127.0.0.1"])
            pair.copy_to(secure.folder)
            until(lambda: shown_everywhere(secure) == {der(pair)}, 1.0)  # noqa: B023  # it is called here
        before.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert before.recv(100).startswith(b"HTTP/1.1 200")
    stop.set()
    for thread in threads:
        thread.join()
    assert asked.errors == []
    assert len(asked.statuses) > 20
    assert set(asked.statuses) == {200}
    secure.first.copy_to(secure.folder)
    until(lambda: certificate_shown(secure.http_port)[0] == der(secure.first))


def _load(server, root, client, kept, asked, stop):
    """Asks without end, on one connection or on a new one each time."""
    mine = context(root, client)
    connection = http.client.HTTPSConnection("localhost", server.http_port, context=mine, timeout=20)
    while not stop.is_set():
        try:
            connection.request("POST", PATH, BODY)
            reply = connection.getresponse()
            reply.read()
            asked.statuses.append(reply.status)
        except (OSError, http.client.HTTPException) as error:
            asked.errors.append(error)
        if not kept:
            connection.close()
    connection.close()


def test_a_pair_that_does_not_fit_changes_nothing_and_is_told_once(secure, root, until):
    stranger = root.issue("localhost")
    (secure.folder / "cert.pem").write_bytes(stranger.certificate.read_bytes())
    until(lambda: "is not the key of" in secure.log)
    assert certificate_shown(secure.http_port)[0] == der(secure.first)
    time.sleep(0.6)
    assert secure.log.count("TLS goes on with the certificate from before") == 1
    (secure.folder / "key.pem").write_text("no key")
    until(lambda: secure.log.count("TLS goes on with the certificate from before") == 2)
    assert certificate_shown(secure.grpc_port)[0] == der(secure.first)
    stranger.copy_to(secure.folder)
    until(lambda: certificate_shown(secure.http_port)[0] == der(stranger))
    secure.first.copy_to(secure.folder)
    until(lambda: certificate_shown(secure.http_port)[0] == der(secure.first))


# Without a server


@pytest.fixture
def files(root, tmp_path):
    return root.issue("localhost").copy_to(tmp_path)


def test_two_files_replaced_one_after_the_other_are_no_fault(files, root, caplog):
    certificates, other = Certificates(TlsSettings(str(files.certificate), str(files.key))), root.issue("localhost")
    began_with = certificates.http.current
    other.certificate.replace(files.certificate)
    certificates.look()
    assert certificates.http.current is began_with
    other.key.replace(files.key)
    certificates.look()
    assert certificates.http.current is not began_with
    assert "TLS goes on" not in caplog.text


def test_a_file_that_is_gone_changes_nothing(files, caplog):
    certificates = Certificates(TlsSettings(str(files.certificate), str(files.key)))
    files.key.unlink()
    for _ in range(4):
        certificates.look()
    assert caplog.text.count("cannot be read: No such file or directory") == 1


@pytest.mark.parametrize("goes", ["certificate", "key", "client_ca"])
def test_a_file_that_goes_between_two_looks_at_it_ends_nothing(files, root, tmp_path, goes, monkeypatch):
    authority = tmp_path / "root.pem"
    authority.write_bytes(root.path.read_bytes())
    paths = {"certificate": files.certificate, "key": files.key, "client_ca": authority}
    settings = TlsSettings(*map(str, paths.values()))
    certificates, content = Certificates(settings), paths[goes].read_bytes()
    began_with = certificates.http.current
    loads = "load_verify_locations" if goes == "client_ca" else "load_cert_chain"
    load = getattr(ssl.SSLContext, loads)

    def late(*given):
        paths[goes].unlink()
        load(*given)

    with monkeypatch.context() as patched:
        patched.setattr(ssl.SSLContext, loads, late)
        paths[goes].write_bytes(content)
        certificates.look()
    assert not paths[goes].exists()
    assert certificates.http.current is began_with
    paths[goes].write_bytes(content)
    certificates.look()
    assert certificates.http.current is not began_with


@pytest.mark.parametrize(
    ("changed", "content", "complaint"),
    [
        ("key", "other", "is not the key of --tls-cert"),
        ("key", "gone", "--tls-key .* cannot be read: No such file"),
        ("key", "locked", "locked with a passphrase"),
        ("certificate", "key", "cannot be used"),
        ("client_ca", "key", "--tls-client-ca .* cannot be used"),
    ],
)
def test_files_that_cannot_be_used_are_refused_at_the_start(files, root, changed, content, complaint):
    put = {
        "other": lambda: root.issue("x").key,
        "gone": lambda: files.key.with_name("gone.pem"),
        "locked": lambda: _locked(files.key),
        "key": lambda: files.key,
    }[content]
    settings = {"certificate": str(files.certificate), "key": str(files.key)} | {changed: str(put())}
    with pytest.raises(UsageError, match=complaint):
        Certificates(TlsSettings(**settings))


def _locked(path):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(path.read_bytes(), None)
    locked = path.with_name("locked.pem")
    lock = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    return locked
