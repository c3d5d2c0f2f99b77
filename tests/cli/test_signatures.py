"""Versions are signed and checked on the command line, and a server is told whose signatures it asks for."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import TensorProto, helper, save_model

from mlserve.cli.serve_signatures import compiled_in, signatures_of
from mlserve.errors import StoreError, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.signing import sign_version, signature_path
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.runs.production import ServeChoice
from mlserve.serve.batching.turn import Turn
from mlserve.serve.loading import load_model
from mlserve.serve.settings import ModelSource, ServeSettings, SignatureSettings


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP384R1())
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        folder.joinpath(f"{name}.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        folder.joinpath(f"{name}.pub").write_bytes(public)
    return folder


@pytest.fixture
def store(tmp_path):
    """`same` in one version, which gives back what it takes."""
    made = Store(tmp_path / "store")
    with made.staging() as folder:
        (folder / "made").mkdir()
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save_model(model, folder / "made" / MODEL_FILE)
        specs = [(TensorSpec(name, "float32", ("batch", 2)),) for name in "xy"]
        made.add(Artifact(folder / "made", Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])), "same")
    return made


def test_a_version_is_signed_once_its_files_are_right_and_verified_by_whom_it_was(mlserve_here, store, keys):
    def models(*arguments):
        done = mlserve_here("models", *arguments, "--store", store.root, "--json")
        return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr

    key, ours, theirs = keys / "ours.pem", keys / "ours.pub", keys / "theirs.pub"
    code, document = models("sign", "same", "--private-key", key)
    assert (code, document["ref"], Path(document["signature"]).name) == (0, "same@1", "1.sig")
    assert models("verify", "--public-key", theirs, "--public-key", ours) == (0, {"same@1": "ok"})
    code, document = models("verify", "--public-key", theirs)
    assert (code, document["same@1"]) == (
        2,
        "same@1: its signature does not hold: it was not made with the key theirs.pub",
    )
    store.get("same", 1).model_path.write_bytes(b"changed")
    assert "model.onnx was changed" in " ".join(models("sign", "same", "--private-key", key)[1].split())


def test_a_server_that_enforces_signatures_does_not_start_without_one(mlserve, store, keys):
    flags = ["--store", store.root, "same", "--http-port", 0, "--grpc-port", 0, "--trusted-key", keys / "ours.pub"]
    done = mlserve("serve", *flags, "--require-signature", "enforce")
    assert done.returncode == 2
    assert "same@1 is refused: it is not signed; sign it with: mlserve models sign" in " ".join(done.stderr.split())


def test_a_copy_of_a_signed_version_in_another_place_is_vouched_for_by_nobody(mlserve_here, store, keys, caplog):
    places = (("same", "1"), ("other", "7"), ("same", "3"))
    same, *copies = (ModelSource(name, version, str(store.root / name / version)) for name, version in places)
    sign_version(store.get("same", 1).directory, keys / "ours.pem")
    for copy in copies:
        shutil.copytree(same.path, copy.path)
        signature_path(Path(copy.path)).parent.mkdir(exist_ok=True)
        shutil.copy(signature_path(Path(same.path)), signature_path(Path(copy.path)))
    asked = SignatureSettings("enforce", (str(keys / "ours.pub"),))
    settings = ServeSettings(models=(), defaults={}, signatures=asked)
    load_model(same, settings, Turn()).close()
    for copy in copies:
        with pytest.raises(StoreError, match=rf"{copy.name}@{copy.version} is refused: its manifest is of same@1, not"):
            load_model(copy, settings, Turn())
    warning = msgspec.structs.replace(settings, signatures=msgspec.structs.replace(asked, require="warn"))
    load_model(copies[0], warning, Turn()).close()
    assert "other@7 is served though nobody vouches for it: its manifest is of same@1" in caplog.text

    done = mlserve_here("models", "verify", "--public-key", keys / "ours.pub", "--store", store.root, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["same@1"]) == (2, "ok")
    assert told["other@7"].startswith("other@7: its manifest is of same@1, not of other@7; put it back")
    assert told["same@3"].startswith("same@3: its manifest is of same@1")
    done = mlserve_here("models", "sign", "other@7", "--private-key", keys / "ours.pem", "--store", store.root)
    assert (done.returncode, "its manifest is of same@1" in " ".join(done.stderr.split())) == (2, True)


@pytest.mark.parametrize(
    ("required", "trusted", "told"),
    [
        ("off", ("key",), "--trusted-key is of use with --require-signature warn or enforce"),
        ("warn", (), "--require-signature warn needs the public key of who signs: --trusted-key"),
        ("enforce", (), "--require-signature enforce needs the public key"),
        ("always", ("key",), "'always' is none of off, warn and enforce"),
    ],
)
def test_what_could_not_be_checked_is_not_promised(required, trusted, told):
    with pytest.raises(UsageError, match=told):
        signatures_of(ServeChoice(models=("m",), require_signature=required, trusted_key=trusted))


def test_what_is_compiled_is_kept_only_where_nobody_has_to_vouch_for_it():
    assert signatures_of(ServeChoice(models=("m",))) == SignatureSettings()
    for required in ("warn", "enforce"):
        choice = ServeChoice(models=("m",), require_signature=required, trusted_key=("k.pub",))
        assert signatures_of(choice) == SignatureSettings(required, (str(Path("k.pub").absolute()),))
        assert bool(compiled_in(choice)) == (required == "warn")
