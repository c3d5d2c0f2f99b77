"""Large batches in pieces: the same answers, side by side, and errors that arrive."""

import threading

import numpy as np
import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.engines.fake import FakeEngine
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.engines.opening import open_engine
from mlserve.engines.split_engine import SplitEngine
from mlserve.errors import EngineError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.tensors import TensorSpec

X, Y = TensorSpec("x", "float32", ("batch", 2)), TensorSpec("y", "float32", ("batch", 2))


def fake(answer) -> FakeEngine:
    return FakeEngine((X,), (Y,), answer)


def double(inputs):
    return {"y": inputs["x"] * 2}


def rows(count: int):
    return {"x": np.arange(2 * count, dtype=np.float32).reshape(count, 2)}


@pytest.mark.parametrize(
    ("count", "whole", "parts"),
    [(1, [1], []), (7, [7], []), (8, [], [4, 4]), (9, [], [4, 5]), (32, [], [16, 16]), (33, [], [8, 8, 8, 9])],
)
def test_a_batch_is_cut_alike_for_every_stream(count, whole, parts):
    one, many = fake(double), fake(double)
    engine = SplitEngine(one, many, 2)
    assert np.array_equal(engine.run(rows(count))["y"], rows(count)["x"] * 2)
    assert (one.batches, sorted(many.batches)) == (whole, parts)
    engine.close()
    assert one.closed
    assert many.closed


def test_pieces_run_side_by_side():
    """Each piece waits for the other: one after the other they would wait for ever."""
    meeting = threading.Barrier(2, timeout=20)

    def wait(inputs):
        meeting.wait()
        return double(inputs)

    engine = SplitEngine(fake(double), fake(wait), 2)
    engine.run(rows(16))
    engine.close()


def test_an_error_in_a_piece_is_the_error_of_the_run():
    def fail(inputs):
        raise EngineError("no")

    engine = SplitEngine(fake(double), fake(fail), 2)
    with pytest.raises(EngineError, match="no"):
        engine.run(rows(16))
    assert len(engine.run(rows(2))["y"]) == 2
    engine.close()


@pytest.fixture
def artifact(tiny_onnx, tmp_path):
    (tmp_path / MODEL_FILE).write_bytes(tiny_onnx.read_bytes())
    engine = OnnxEngine(tiny_onnx)
    return Artifact(
        tmp_path, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs, split_batches=True)
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_version_made_for_it_is_opened_so_and_answers_the_same(artifact, engine):
    settings = EngineSettings(threads=2, engine=engine, split_batches=True)
    split, whole = open_engine(artifact, settings), open_engine(artifact, EngineSettings(split_batches=False))
    assert isinstance(split, SplitEngine)
    x = {"x": np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)}
    assert np.allclose(split.run(x)["scores"], whole.run(x)["scores"], atol=1e-5)


@pytest.mark.parametrize("why", ["one thread", "rows depend", "asked not to", "another engine"])
def test_it_is_not_split_where_that_would_be_wrong_or_of_no_use(artifact, why):
    import msgspec

    settings = EngineSettings(threads=2)
    assert isinstance(open_engine(artifact, settings), SplitEngine)
    if why == "one thread":
        settings = EngineSettings(threads=1)
    elif why == "asked not to":
        settings = EngineSettings(threads=2, split_batches=False)
    elif why == "another engine":
        settings = EngineSettings(threads=2, engine="openvino")
    else:
        artifact = Artifact(artifact.directory, msgspec.structs.replace(artifact.manifest, rows_independent=False))
    assert not isinstance(open_engine(artifact, settings), SplitEngine)
