"""What a file is, told without running it."""

import bz2
import gzip
import lzma
import os
import pickle
import tracemalloc
import warnings
import zipfile
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import ModelFileError, UsageError
from mlserve.optimize.importers.source import identify


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "state.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_needs_its_code(tmp_path, legacy):
    path = tmp_path / "state.pt"
    checkpoint = {"epoch": 3, "state_dict": torch.nn.Linear(3, 2).state_dict()}
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    assert identify(path, model_class="a:b") == "state-dict"
    with pytest.raises(ModelFileError, match="--model-class"):
        identify(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickled_module_needs_trust(tmp_path, legacy):
    path = tmp_path / "module.pt"
    torch.save(torch.nn.Linear(3, 2), path, _use_new_zipfile_serialization=not legacy)
    assert identify(path, trust_pickle=True) == "pickle"
    with pytest.raises(ModelFileError, match=r"torch\.nn\.modules\.linear\.Linear.*--trust-pickle"):
        identify(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ModelFileError, match="no plain file"):
        identify(tmp_path / "pipe.pt")


@pytest.mark.parametrize("keep", [100, 600])
def test_a_truncated_file_is_called_damaged(state, keep):
    whole = state.read_bytes()
    assert len(whole) > 700
    state.write_bytes(whole[:keep])
    with pytest.raises(ModelFileError, match="damaged or was cut short"):
        identify(state, model_class="a:b")
    state.write_bytes(whole)
    assert identify(state, model_class="a:b") == "state-dict"


def test_a_flag_for_another_kind_of_file_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have us use torch.export
        torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save(tmp_path / "traced.pt")
    with pytest.raises(UsageError, match="a TorchScript archive"):
        identify(tmp_path / "traced.pt", model_class="a:b")
    assert identify(tmp_path / "traced.pt") == "torchscript"


def test_a_pickle_of_anything_else_is_no_model(tmp_path):
    path = tmp_path / "thing.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelFileError, match="pickle that torch did not write"):
        identify(path)


def test_an_archive_of_anything_else_is_no_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelFileError, match=r"readme\.txt"):
        identify(tmp_path / "some.zip")


def test_missing_empty_and_folders(tmp_path):
    (tmp_path / "empty.pt").touch()
    for path, words in (
        (tmp_path / "none.pt", "No such file"),
        (tmp_path / "empty.pt", "empty"),
        (tmp_path, "config.json"),
    ):
        with pytest.raises(ModelFileError, match=words):
            identify(path)


def test_every_trainer_is_told_by_content_not_by_name(tmp_path, tiny_onnx):
    import lightgbm
    import numpy as np
    import skops.io
    import xgboost
    from sklearn.linear_model import LinearRegression

    rows, answers = np.random.default_rng(0).random((60, 3)), np.arange(60.0)
    booster = xgboost.train({}, xgboost.DMatrix(rows, label=answers), 1)
    booster.save_model(tmp_path / "a.json")
    booster.save_model(tmp_path / "b.ubj")
    quiet = {"verbose": -1, "num_threads": 1}
    lightgbm.train(quiet, lightgbm.Dataset(rows, answers, params=quiet), 1).save_model(tmp_path / "c.txt")
    skops.io.dump(LinearRegression().fit(rows, answers), tmp_path / "d.skops")
    (tmp_path / "e").write_bytes(tiny_onnx.read_bytes())
    (tmp_path / "f").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with zipfile.ZipFile(tmp_path / "g", "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    kinds = {path.name: identify(path.rename(tmp_path / f"{path.stem}.bin")) for path in sorted(tmp_path.iterdir())}
    assert kinds == {
        "a.json": "xgboost",
        "b.ubj": "xgboost",
        "c.txt": "lightgbm",
        "d.skops": "skops",
        "e": "onnx",
        "f": "keras",
        "g": "keras",
        "saved": "savedmodel",
    }


@pytest.mark.parametrize("pack", [bytes, zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_a_pickled_estimator_needs_trust_however_it_is_packed(tmp_path, pack):
    from sklearn.linear_model import LinearRegression

    path = tmp_path / "model.pkl"
    path.write_bytes(pack(pickle.dumps(LinearRegression())))
    assert identify(path, trust_pickle=True) == "sklearn"
    with pytest.raises(ModelFileError, match=r"LinearRegression.*skops\.io\.dump.*--trust-pickle"):
        identify(path)
    path.write_bytes(pack(pickle.dumps({"a": 1})))
    with pytest.raises(ModelFileError, match="holds no scikit-learn model"):
        identify(path, trust_pickle=True)


def test_a_pickled_estimator_before_an_archive_is_a_pickle(tmp_path):
    from sklearn.linear_model import LinearRegression

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(LinearRegression()))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelFileError, match=r"LinearRegression.*--trust-pickle"):
        identify(path)


def test_a_packed_file_that_was_cut_short_is_called_damaged(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(gzip.compress(pickle.dumps(list(range(10_000))))[:500])
    with pytest.raises(ModelFileError, match="damaged or was cut short"):
        identify(path)


@pytest.mark.parametrize(
    ("packing", "size_bytes", "told"),
    [
        (zipfile.ZIP_DEFLATED, 70_000_000, r"data\.pkl, has more than 64\.0 MB"),
        (zipfile.ZIP_BZIP2, 100, "packed by bzip2, which torch does not read"),
    ],
    ids=["unpacks to much", "unpacks to nobody knows how much"],
)
def test_an_archive_is_unpacked_no_further_than_a_pickle_of_torch_goes(tmp_path, packing, size_bytes, told):
    path = tmp_path / "state.pt"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": 1}) + bytes(size_bytes))
    with pytest.raises(ModelFileError, match=told):
        identify(path, model_class="a:b")


@pytest.mark.parametrize("pack", [bytes, zlib.compress], ids=["as it is", "zlib"])
def test_of_a_large_pickle_the_beginning_is_read(tmp_path, pack):
    from sklearn.linear_model import LinearRegression

    path = tmp_path / "model.pkl"
    path.write_bytes(pack(pickle.dumps(LinearRegression())))
    os.truncate(path, 300_000_000)
    tracemalloc.start()
    try:
        assert identify(path, trust_pickle=True) == "sklearn"
        with pytest.raises(ModelFileError, match="LinearRegression"):
            identify(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_an_old_format_says_what_to_do(tmp_path):
    (tmp_path / "old.model").write_bytes(b"binf" + bytes(100))
    with pytest.raises(ModelFileError, match=r"xgboost<3\.1"):
        identify(tmp_path / "old.model")


def test_what_nobody_knows_is_told_what_is_known(tmp_path):
    (tmp_path / "notes.txt").write_text("a tree")
    with pytest.raises(ModelFileError, match=r"TorchScript.*\.onnx.*Hugging Face.*scikit-learn.*XGBoost.*SavedModel"):
        identify(tmp_path / "notes.txt")


@given(content=st.binary(max_size=300))
def test_no_bytes_make_it_raise_anything_but_its_own_errors(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.pt"
    path.write_bytes(content)
    try:
        kind = identify(path)
    except ModelFileError:
        return
    assert any(content.startswith(beginning) for beginning in (b"\x89HDF", b"tree", b"{")), kind


@given(data=st.data())
def test_a_flipped_byte_never_raises_anything_but_its_own_errors(tmp_path_factory, data):
    base = tmp_path_factory.getbasetemp()
    whole = base / "whole.pt"
    if not whole.exists():
        torch.save(torch.nn.Linear(3, 2).state_dict(), whole)
    content = bytearray(whole.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = base / "flipped.pt"
    path.write_bytes(content)
    try:
        kind = identify(path, model_class="a:b")
    except (ModelFileError, UsageError):
        return
    assert kind == "state-dict"
