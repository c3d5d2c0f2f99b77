"""What a gate serves of a production.toml: all that it says, or nothing."""

import sys

import msgspec
import pytest

from mlserve.bench.payload.payload import PayloadWish
from mlserve.errors import MlserveError, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest, sha256_of
from mlserve.model.digest import model_sha256
from mlserve.model.store import Store
from mlserve.runs.production import Evidence, Production, ServeChoice
from mlserve.tuning.gating.content import with_content
from mlserve.tuning.gating.side import production_side, side_of
from mlserve.tuning.opening import Source
from mlserve.tuning.serving import ServerOptions

# Something else than what a server does by itself, of every key.
OTHERS = {
    "engine": "openvino",
    "compute_type": "int8",
    "device": "cuda",
    "workers": 2,
    "threads": 3,
    "max_batch_rows": 4,
    "max_delay_ms": 1.5,
}
UNMEASURED = {
    "server_name": "ours",
    "host": "0.0.0.0",
    "http_port": 1,
    "grpc_port": 2,
    "management_port": 3,
    "overload_status": 429,
    "trial_time": "1s",
    "drain": "1s",
    "lame_duck": "5s",
    "hang_after": "1s",
}


def side(path, *models, store=None, evidence=None, **said):
    chosen = ServeChoice(models=tuple(map(str, models)), store=str(path.parent / "store"), **said)
    options = ServerOptions(spare_cores=3, python="python")
    return production_side(Production(serve=chosen, evidence=evidence), path, options, store)


def of_model(sha256):
    return Evidence(
        runs=(), valid=True, cpu="abacus", cores=2, model_sha256=sha256, mlserve="0.1.0", measured_at="2026-11-22"
    )


@pytest.fixture
def file(tmp_path):
    return tmp_path / "production.toml"


@pytest.fixture
def stores(tmp_path, tiny_onnx):
    """Two stores of one name, of which the second has another model."""
    for name, more in (("store", b""), ("other", b"\0")):
        store = Store(tmp_path / name)
        with store.staging() as folder:
            made = folder / "made"
            made.mkdir()
            (made / MODEL_FILE).write_bytes(tiny_onnx.read_bytes() + more)
            store.add(Artifact(made, Manifest(variant="fp32", inputs=(), outputs=())), "tiny")
    return tmp_path


@pytest.mark.parametrize("name", OTHERS)
def test_what_our_servers_can_be_told_they_are_told(file, tiny_onnx, name):
    usual, found = side(file, tiny_onnx).options, side(file, tiny_onnx, **{name: OTHERS[name]}).options
    assert found == msgspec.structs.replace(usual, **{name: OTHERS[name]})
    assert (found.spare_cores, found.python) == (3, "python")


@pytest.mark.parametrize("name", UNMEASURED)
def test_where_a_server_listens_and_how_it_ends_is_no_matter(file, tiny_onnx, name):
    assert side(file, tiny_onnx, **{name: UNMEASURED[name]}) == side(file, tiny_onnx)


@pytest.mark.parametrize(
    "name", [name for name in ServeChoice.__struct_fields__ if name not in (*OTHERS, *UNMEASURED, "models", "store")]
)
def test_whatever_else_would_change_what_is_measured_is_refused_and_named(file, tiny_onnx, name):
    usual = getattr(ServeChoice(models=()), name)
    other = {bool: not usual, str: "other", tuple: ("other",), int: 7, float: 0.5}[type(usual)]
    with pytest.raises(UsageError, match=rf"production.toml: serve.{name} = .* would change what is measured"):
        side(file, tiny_onnx, **{name: other})
    assert side(file, tiny_onnx, **{name: usual}) == side(file, tiny_onnx)


def test_a_file_that_is_measured_as_another_model_is_refused(file, tiny_onnx):
    assert side(file, tiny_onnx, evidence=of_model(sha256_of(tiny_onnx))) == side(file, tiny_onnx)
    assert side(file, tiny_onnx, evidence=of_model("")) == side(file, tiny_onnx)
    with pytest.raises(UsageError, match=r"measured with the model of SHA-256 abababababab, and .*tiny.onnx has"):
        side(file, tiny_onnx, evidence=of_model("ab" * 32))


def test_the_model_of_a_store_is_held_to_the_one_that_was_measured_too(file, stores):
    sha256 = Store(stores / "store").resolve("tiny").manifest.files[MODEL_FILE].sha256
    found = side(file, "tiny", evidence=of_model(sha256))
    assert (found.name, found.store) == ("tiny@1", str(stores / "store"))
    assert side(file, "tiny", store=stores / "other").store == str(stores / "other")
    with pytest.raises(UsageError, match="its figures are of another model"):
        side(file, "tiny", store=stores / "other", evidence=of_model(sha256))


def test_a_model_of_several_files_is_held_to_the_digest_of_all(file, stores, tiny_onnx):
    store = Store(stores / "store")
    with store.staging() as folder:
        made = folder / "made"
        made.mkdir()
        (made / MODEL_FILE).write_bytes(tiny_onnx.read_bytes())
        (made / "model.onnx.data").write_bytes(b"weights")
        store.add(Artifact(made, Manifest(variant="fp32", inputs=(), outputs=())), "heavy")
    files = store.resolve("heavy").manifest.files
    assert side(file, "heavy", evidence=of_model(model_sha256(files))).name == "heavy@1"
    with pytest.raises(UsageError, match="its figures are of another model"):
        side(file, "heavy", evidence=of_model(files[MODEL_FILE].sha256))


def test_a_side_is_known_by_its_model_its_rows_and_the_code_that_serves_it(file, tiny_onnx, tmp_path):
    model, rows = tmp_path / "model.onnx", tmp_path / "rows.npz"
    model.write_bytes(tiny_onnx.read_bytes())
    other = tmp_path / "other"
    for package in (tmp_path / "code" / "mlserve", other / "mlserve"):
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"where = {str(package)!r}\n")

    def known(data=None, code=None):
        python = tmp_path / "python.sh"
        python.write_text(f'#!/bin/sh\nPYTHONSAFEPATH=1 PYTHONPATH={code} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        rows.write_bytes(data or b"")
        asked = side_of(str(model), tmp_path / "store", ServerOptions(python=str(python) if code else ""))
        found = with_content(asked, Source(store=tmp_path / "store", wish=PayloadWish(data=rows if data else None)))
        return found.content, found.code

    usual = known()
    assert all(usual)
    assert known() == usual
    assert known(data=b"1")[0] not in (usual[0], known(data=b"2")[0])
    codes = [usual[1], known(code=tmp_path / "code")[1], known(code=other)[1]]
    assert len(set(codes)) == 3
    assert all(codes)
    model.write_bytes(tiny_onnx.read_bytes() + b"\x72\x00")
    assert known()[0] != usual[0]


def test_a_model_that_is_not_there_is_an_error_of_ours(file):
    with pytest.raises(MlserveError, match=r"gone.onnx cannot be read"):
        side(file, "gone.onnx", evidence=of_model("ab" * 32))


def test_a_file_with_several_models_is_refused(file, tiny_onnx):
    with pytest.raises(UsageError, match="serves 2 models; a gate compares one with one"):
        side(file, tiny_onnx, tiny_onnx)
