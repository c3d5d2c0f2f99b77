"""Real servers whose files of keys, identities and certificates are damaged: who takes a worker's place goes on with
what was good, and who starts anew does not start.
"""

import http.client
import json
import ssl
import stat
from pathlib import Path

import psutil
import pytest

from mlserve.serve.keys import add_key, new_key, remove_key
from mlserve.serve.settings import AccessSettings, TlsSettings

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 30], "data": [0.5] * 30}]})


@pytest.fixture
def root(authorities, tmp_path):
    (tmp_path / "root").mkdir()
    return authorities.Authority(tmp_path / "root")


@pytest.fixture
def asked(root):
    """`asked(server, key=..., client=...)`: the status of a request over TLS, or how the connection ended."""

    def ask(server, key="", client=None):
        trusting = ssl.create_default_context(cafile=str(root.path))
        if client is not None:
            trusting.load_cert_chain(client.certificate, client.key)
        connection = http.client.HTTPSConnection("localhost", server.http_port, context=trusting, timeout=20)
        try:
            connection.request("POST", "/v2/models/tiny/infer", BODY, {"authorization": f"Bearer {key}"} if key else {})
            return connection.getresponse().status
        except OSError as error:
            return type(error).__name__
        finally:
            connection.close()

    return ask


def token(claims):
    """A token, and the JWKS file of who signs it."""
    jwt = pytest.importorskip("jwt")
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    public = jwt.get_algorithm_by_name("EdDSA").to_jwk(key.public_key(), as_dict=True)
    signed = jwt.encode(claims, key, "EdDSA", {"kid": "one"})
    return signed, json.dumps({"keys": [{**public, "kid": "one"}]})


def test_a_successor_goes_on_with_what_was_good_until_the_files_are_mended(
    serving_settings, tiny_onnx, root, asked, tmp_path, until, monkeypatch
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    pair = root.issue("localhost", ["localhost", "127.0.0.1"]).copy_to(tmp_path)
    keys, identities, jwks = (tmp_path / name for name in ("keys.json", "who.toml", "jwks.json"))
    good, revoked, late = (new_key(name, ["infer"]) for name in ("good", "revoked", "late"))
    for each in (good, revoked):
        add_key(keys, each.key)
    signed, listed = token({"exp": 4e9, "iss": "i", "aud": "a", "sub": "ci", "scope": "infer"})
    jwks.write_text(listed)
    identities.write_text('format_version = 1\n[[identity]]\ncertificate = "CN:ci"\nscopes = ["infer"]\n')
    ci = root.issue("ci")
    tls = TlsSettings(str(pair.certificate), str(pair.key), str(root.path), False, str(identities))
    access = AccessSettings(jwks_file=str(jwks), jwt_issuer="i", jwt_audience="a")
    with serving_settings(tiny_onnx, tls=tls, keys_file=str(keys), access=access) as server:
        assert asked(server, revoked.secret) == asked(server, signed) == asked(server, client=ci) == 200
        remove_key(keys, "revoked")
        until(lambda: asked(server, revoked.secret) == 401)
        sound = {path: path.read_bytes() for path in (keys, identities, jwks, pair.certificate)}
        for path in sound:
            path.write_text("{")
        pair.key.unlink()
        until(lambda: server.log.count(" as they were") == 3 and "TLS goes on with" in server.log)
        (kept,) = (tmp_path / "temporary").glob("mlserve-run-*")
        assert stat.S_IMODE(kept.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in kept.glob("good-*")} == {0o600}

        psutil.Process(server.workers[0]).kill()
        until(lambda: asked(server, good.secret) == 200)
        assert asked(server, signed) == asked(server, client=ci) == 200
        for wrong in ("", "wrong", revoked.secret, late.secret):
            assert asked(server, wrong) == 401
        assert asked(server, client=root.issue("stranger")) == 401
        assert server.log.count(" as they were") == 6
        assert server.log.count("TLS goes on with") == 2
        assert not [*kept.glob(".good-*")]  # nothing is left lying about

        keys.write_bytes(sound[keys])
        add_key(keys, late.key)
        until(lambda: asked(server, late.secret) == 200)
        other = root.issue("localhost", ["localhost", "127.0.0.1"]).copy_to(tmp_path)
        until(lambda: shown(server) == ssl.PEM_cert_to_DER_cert(other.certificate.read_text()))
    assert not kept.exists()


def shown(server):
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("localhost", server.http_port)))


@pytest.mark.parametrize("damaged", ["keys", "identities", "certificate"])
def test_a_server_does_not_start_with_a_damaged_file(serving_settings, tiny_onnx, root, tmp_path, damaged):
    pair = root.issue("localhost").copy_to(tmp_path)
    add_key(tmp_path / "keys.json", new_key("ci", ["infer"]).key)
    (tmp_path / "who.toml").write_text("format_version = 1\nidentity = []\n")
    path = {"keys": tmp_path / "keys.json", "identities": tmp_path / "who.toml", "certificate": Path(pair.certificate)}
    path[damaged].write_text("{")
    tls = TlsSettings(str(pair.certificate), str(pair.key), str(root.path), False, str(tmp_path / "who.toml"))
    with (
        pytest.raises(AssertionError, match=f"the server ended with(.|\n)*{path[damaged].name}"),
        serving_settings(tiny_onnx, tls=tls, keys_file=str(tmp_path / "keys.json")),
    ):
        pass
