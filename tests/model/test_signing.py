"""A version is vouched for by the signature of a trusted key over exactly its files, in OpenSSF's format."""

import json
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from mlserve.errors import StoreError, UsageError
from mlserve.model.signing import sign_version, signature_path, verify_signature


def key_pair(folder, name, key=None):
    """`(private, public)`: the paths of PEM files."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: key_pair(folder, name) for name in ("ours", "theirs")}


@pytest.fixture
def version(tmp_path, keys):
    """A signed version of two files and what is beside it."""
    folder = tmp_path / "m" / "3"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "manifest.json").write_text("{}")
    assert sign_version(folder, keys["ours"][0]) == signature_path(folder) == tmp_path / "m" / "signatures" / "3.sig"
    return folder


def fault(version, *trusted):
    try:
        verify_signature(version, signature_path(version), trusted)
    except StoreError as error:
        return str(error)
    return ""


def test_any_trusted_key_will_do_and_a_strange_one_will_not(version, keys):
    ours, theirs = keys["ours"][1], keys["theirs"][1]
    assert fault(version, ours) == fault(version, theirs, ours) == ""
    assert "was not made with the key theirs.pub" in fault(version, theirs)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes(b"other"), "does not hold: model.onnx was changed"),
        (lambda folder: (folder / "manifest.json").write_text("{ }"), "does not hold: manifest.json was changed"),
        (lambda folder: (folder / "more").write_bytes(b""), "does not hold: more was not signed"),
        (lambda folder: (folder / ".gitattributes").write_bytes(b""), ".gitattributes was not signed"),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda folder: signature_path(folder).write_text("{}"), "its signature does not hold"),
        (lambda folder: signature_path(folder).write_text("no json"), "its signature does not hold"),
        (lambda folder: signature_path(folder).unlink(), "it is not signed"),
    ],
)
def test_whatever_is_not_just_what_was_signed_is_refused(version, keys, change, told):
    change(version)
    assert told in fault(version, keys["ours"][1])


def test_a_signature_that_was_tampered_with_does_not_hold(version, keys):
    import base64

    path = signature_path(version)
    bundle = json.loads(path.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    (version / "model.onnx").write_bytes(b"other")
    # The digest of the whole is over those of the files: with both made to agree, only the key tells.
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"model", b"modem")).decode()
    path.write_text(json.dumps(bundle))
    assert "was not made with the key" in fault(version, keys["ours"][1])


def test_a_key_that_cannot_sign_or_be_trusted_is_named(version, keys, tmp_path):
    other, _ = key_pair(tmp_path, "edwards", ed25519.Ed25519PrivateKey.generate())
    for key in (other, version / "manifest.json", keys["ours"][1]):
        with pytest.raises(UsageError, match=rf"{key.name} is no private key that can sign"):
            sign_version(version, key)
    with pytest.raises(UsageError, match="is no public key that can be trusted"):
        fault(version, version / "manifest.json")
    assert fault(version, keys["ours"][1]) == ""  # what was there is left as it was


def test_the_official_tool_reads_ours_and_we_read_its(version, keys):
    def official(*arguments):
        command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    private, public = keys["ours"]
    signature = signature_path(version)
    done = official("verify", "key", version, "--signature", signature, "--public_key", public)
    assert "Verification succeeded" in done.stdout, done.stderr
    signature.unlink()
    done = official("sign", "key", version, "--signature", signature, "--private_key", private)
    assert done.returncode == 0, done.stderr
    assert fault(version, public) == ""
