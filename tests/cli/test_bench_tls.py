"""`mlserve bench` of a server over TLS that wants to know who asks, as a user types it."""

import json
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)


@pytest.fixture(scope="module")
def files(authorities, tmp_path_factory):
    """(authority, the server's certificate and key, a client's)."""
    root = authorities.Authority(tmp_path_factory.mktemp("root"))
    return root, root.issue("localhost", ["localhost"]), root.issue("ci")


@pytest.fixture(scope="module")
def served(files, tiny_onnx):
    """What `mlserve serve --json` says of a server that lets nobody in without a certificate."""
    root, own, _ = files
    flags = ("--http-port", 0, "--grpc-port", 0, "--json", "--tls-cert", own.certificate, "--tls-key", own.key)
    flags += ("--tls-client-ca", root.path, "--tls-client-required")
    command = [sys.executable, "-m", "mlserve", "serve", tiny_onnx, *flags]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        said = ""
        while line := process.stdout.readline():
            said += line
            if line.rstrip() == "}":
                break
        yield json.loads(said)
        process.terminate()


def url_of(served, scheme):
    plain, path = ("http", "/v2/models/tiny") if scheme == "https" else ("grpc", "/tiny")
    return f"{scheme}://localhost:{served[plain].rpartition(':')[2]}{path}"


LOAD = ("--rps", 200, "--duration", "1s", "--warm-up", "0s", "--json")


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_it_is_loaded_by_who_may_and_its_certificate_is_judged(mlserve_here, served, files, scheme, tmp_path):
    root, own, ci = files
    shown = ("--ca-file", root.path, "--client-cert", ci.certificate, "--client-key", ci.key)
    done = mlserve_here("bench", url_of(served, scheme), *LOAD, *shown)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["counts"]["failed"] == 0
    assert run["counts"]["ok"] > 100
    assert run["model"]["url"].startswith(scheme)
    assert str(ci.key) not in done.stdout
    together = tmp_path / "both.pem"
    together.write_bytes(ci.certificate.read_bytes() + ci.key.read_bytes())
    vouched = ("--ca-file", own.certificate, "--client-cert", together)
    as_one = mlserve_here("bench", url_of(served, scheme), *LOAD, *vouched)
    assert as_one.returncode == 0, as_one.stderr  # a server's own certificate vouches for itself


def test_who_shows_nothing_and_who_is_shown_nothing_are_told(mlserve_here, served, files):
    root, _, _ = files
    url = url_of(served, "https")
    nobody = mlserve_here("bench", url, *LOAD, "--ca-file", root.path)
    assert nobody.returncode != 0
    assert "error: there is no TLS with https://localhost" in nobody.stderr
    stranger = mlserve_here("bench", url, *LOAD)
    assert stranger.returncode != 0
    assert "name the authority of its certificate, or that itself, with --ca-file" in stranger.stderr
    plain = mlserve_here("bench", url.replace("s://", "://"), *LOAD)
    assert plain.returncode != 0
    assert "Traceback" not in plain.stderr


def test_files_that_are_none_and_models_of_our_own_are_refused(mlserve_here, files, tiny_onnx, tmp_path):
    root, _, ci = files
    locked = tmp_path / "locked.pem"
    key = load_pem_private_key(ci.key.read_bytes(), None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    for arguments, complaint in (
        (("https://localhost:1", "--ca-file", wrong), f"--ca-file {wrong} cannot be used"),
        (("https://localhost:1", "--client-cert", root.path), f"--client-cert {root.path} cannot be used"),
        (("https://localhost:1", "--client-cert", ci.certificate, "--client-key", locked), "has a passphrase"),
        (("https://localhost:1", "--client-key", ci.key), "--client-key belongs to a certificate"),
        ((tiny_onnx, "--ca-file", root.path), "--ca-file is for a URL"),
        ((tiny_onnx, "--client-cert", ci.certificate, "--client-key", ci.key), "--client-cert is for a URL"),
    ):
        done = mlserve_here("bench", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert complaint in done.stderr
