"""Compiled models are kept and found again, and whatever is wrong with what is found costs time, never an answer."""

import locale
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest

from mlserve.engines.compiled_cache import CacheEntry, cache_entry, model_digest
from mlserve.engines.engine import EngineSettings
from mlserve.engines.opening import open_engine
from mlserve.model.artifact import Artifact, FileRecord, record_files

WAYS = [("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino")]
each_way = pytest.mark.parametrize("way", WAYS, ids="-by-".join)


@pytest.fixture
def asked(kept, rows_of, tmp_path):
    """`asked(kept_as, engine, ...)`: what the engine answers from the cache in tmp_path."""

    def ask(kept_as, engine, net="transformer", **settings):
        with_cache = EngineSettings(engine=engine, cache=str(tmp_path / "cache"), **settings)
        opened = open_engine(kept(net, kept_as), with_cache)
        try:
            return opened.run(rows_of(net, 3))
        finally:
            opened.close()

    return ask


@pytest.fixture
def entries(tmp_path):
    """The entries of the cache, each with its content; never a half one."""

    def list_entries():
        assert not list((tmp_path / "cache").rglob(".staging-*"))
        return {
            record.parent: {path.name: path.read_bytes() for path in record.parent.iterdir()}
            for record in (tmp_path / "cache").glob("*/*/files.json")
        }

    return list_entries


def assert_same(found, expected):
    assert all((found[name] == array).all() for name, array in expected.items())


@each_way
def test_a_model_that_was_opened_before_is_taken_from_the_cache_with_the_same_answers(
    asked, entries, kept, rows_of, way, caplog
):
    kept_as, engine = way
    plain = open_engine(kept("transformer", kept_as), EngineSettings(engine=engine)).run(rows_of("transformer", 3))
    assert_same(asked(*way), plain)
    made = entries()
    assert len(made) == 1
    assert_same(asked(*way), plain)
    assert entries() == made
    assert not caplog.records


def test_a_hit_is_read_from_the_entry_and_not_made_again(asked, entries):
    """An entry that holds another network, with the digests of just that, is what answers."""
    asked("onnx", "onnxruntime")
    honest = asked("onnx", "onnxruntime")["sentence"]
    (folder,) = entries()
    weights = folder / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[:] = bytes(len(content))
    weights.write_bytes(content)
    records = {name: record for name, record in record_files(folder).items() if name != "files.json"}
    (folder / "files.json").write_bytes(msgspec.json.encode(records))
    assert not np.allclose(asked("onnx", "onnxruntime")["sentence"], honest)


@each_way
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "another", "record"])
def test_a_damaged_entry_is_discarded_and_made_anew(asked, entries, way, damage, caplog):
    expected = asked(*way)
    (folder,) = entries()
    largest = max(
        (path for path in folder.iterdir() if path.name != "files.json"), key=lambda path: path.stat().st_size
    )
    largest.chmod(0o644)
    content = bytearray(largest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif damage == "cut":
        largest.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        largest.unlink()
    elif damage == "another":
        (folder / "stray").write_bytes(b"")
    else:
        (folder / "files.json").write_bytes(b"{")
    with caplog.at_level(logging.WARNING, "mlserve.engines"):
        assert_same(asked(*way), expected)
    assert [record.getMessage() for record in caplog.records] == [
        f"discarded the compiled model {folder}: it is damaged"
    ]
    caplog.clear()
    assert_same(asked(*way), expected)
    assert not caplog.records
    assert CacheEntry(folder).intact()


def test_what_loads_no_more_is_discarded_although_its_digests_are_right(asked, entries, caplog):
    expected = asked("onnx", "onnxruntime")
    (folder,) = entries()
    (folder / "graph.onnx").write_bytes(b"of another version")
    records = {name: record for name, record in record_files(folder).items() if name != "files.json"}
    (folder / "files.json").write_bytes(msgspec.json.encode(records))
    assert_same(asked("onnx", "onnxruntime"), expected)
    assert "discarded the compiled model" in caplog.text
    assert (folder / "graph.onnx").read_bytes() != b"of another version"


def test_other_settings_and_other_models_have_other_entries(asked, entries):
    asked("onnx", "onnxruntime")
    asked("onnx", "onnxruntime", graph_optimization="basic")
    asked("onnx", "openvino")
    asked("onnx", "openvino", threads=2)
    asked("onnx", "onnxruntime", net="mlp")
    assert len(entries()) == 5
    asked("onnx", "onnxruntime", threads=2)  # the number of threads is not in onnxruntime's graph
    assert len(entries()) == 5


def test_a_model_with_other_weights_never_finds_the_entry_of_the_old_one(kept, rows_of, tmp_path):
    import onnx
    from onnx import numpy_helper

    settings = EngineSettings(cache=str(tmp_path / "cache"))
    before = kept("mlp", "onnx")
    folder = tmp_path / "model"
    shutil.copytree(before.directory, folder)
    old = open_engine(Artifact(folder, before.manifest), settings).run(rows_of("mlp", 2))["scores"]
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, folder / "model.onnx")
    changed = msgspec.structs.replace(before.manifest, files=record_files(folder))
    new = open_engine(Artifact(folder, changed), settings).run(rows_of("mlp", 2))["scores"]
    assert not np.allclose(old, new)


@each_way
def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_answer(asked, entries, tmp_path, way, caplog):
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    assert asked(*way)["sentence"].shape == (3, 16)
    assert "the compiled model is not kept" in caplog.text


def test_a_model_that_fails_to_load_leaves_nothing_behind(kept, tmp_path):
    from mlserve.errors import EngineError

    artifact = Artifact(tmp_path / "model", kept("mlp", "onnx").manifest)
    artifact.directory.mkdir()
    artifact.model_path.write_bytes(b"no model")
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(EngineError, match="cannot be loaded"):
            open_engine(artifact, EngineSettings(engine=engine, cache=str(tmp_path / "cache")))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@each_way
def test_many_at_once_make_one_entry_and_all_answer(asked, entries, way):
    encoding = locale.getencoding()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: asked(*way), range(24)))
    assert locale.getencoding() == encoding  # OpenVINO by itself would leave it at ASCII
    assert len(entries()) == 1
    for answer in answers:
        assert_same(answer, answers[0])


def test_without_a_cache_or_without_a_published_model_there_is_no_entry(asked, tmp_path, kept):
    assert cache_entry("", "abc", {}) is None
    assert cache_entry(str(tmp_path), "", {}) is None
    assert cache_entry(str(tmp_path), "abc", {}) is not None
    unpublished = kept("mlp", "onnx", files={})
    open_engine(unpublished, EngineSettings(cache=str(tmp_path / "cache"))).close()
    assert not (tmp_path / "cache").exists()


def test_the_digest_of_a_model_is_that_of_its_graph_and_weights_alone():
    graph, weights, words = (FileRecord(letter * 64, 1) for letter in "abc")
    model = {"model.onnx": graph, "model.onnx.data": weights}
    assert model_digest(model) == model_digest({**model, "tokenizer.json": words})
    assert model_digest(model) != model_digest({**model, "model.onnx.data": words})
    assert model_digest({"tokenizer.json": words}) == ""


def test_nothing_is_published_when_the_making_fails(tmp_path):
    entry = CacheEntry(tmp_path / "model" / "entry")

    def make():
        with entry.making() as folder:
            (folder / "half").write_bytes(b"")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make()
    assert not entry.intact()
    assert not list((tmp_path / "model").iterdir())
    with entry.making() as folder:
        (folder / "whole").write_bytes(b"")
    assert entry.intact()
