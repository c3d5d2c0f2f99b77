"""A variant that loses too much gets back the layer that it loses it by, and no more."""

import numpy as np
import onnx
import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.model.store import Store
from mlserve.optimize.importing import Source
from mlserve.optimize.passes import Quantize
from mlserve.optimize.recipe import Recipe, Variant
from mlserve.optimize.variants import Wish, optimize

BROAD = Recipe("one scale for all of a weight", (Variant("int8", (Quantize(per_channel=False),)),))


@pytest.fixture(params=[1e5, 0.0])
def network(request, tmp_path):
    """Scores [batch, 4] of x [batch, 16]. x15 is always zero; its weight in the first layer may be huge."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((16, 32)).astype(np.float32), rng.standard_normal((32, 4)).astype(np.float32)
    first[15] = request.param
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "first"], ["wide"], name="/first/MatMul"),
        onnx.helper.make_node("Relu", ["wide"], ["positive"], name="/Relu"),
        onnx.helper.make_node("MatMul", ["positive", "second"], ["scores"], name="/second/MatMul"),
    ]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", 16), ("scores", 4))
    ]
    weights = [onnx.numpy_helper.from_array(first, "first"), onnx.numpy_helper.from_array(second, "second")]
    graph = onnx.helper.make_graph(nodes, "network", values[:1], values[1:], weights)
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "network.onnx")
    x = rng.standard_normal((1200, 16)).astype(np.float32)
    x[:, 15] = 0
    np.savez(tmp_path / "rows.npz", x=x, label=(np.maximum(x @ first, 0) @ second).argmax(1))
    return Source(path=tmp_path / "network.onnx", data=tmp_path / "rows.npz"), request.param > 0


def test_only_the_layer_that_loses_it_goes_back(network, tmp_path):
    source, spoiled = network
    wish = Wish(recipe=BROAD, max_drop=0.04, settings=EngineSettings())
    outcome = optimize(source, wish, Store(tmp_path / "store"), "network", lambda _: None)
    assert not outcome.refused
    _, int8 = outcome.published
    assert int8.manifest.metrics.accuracy.loss_high <= 0.04
    assert int8.manifest.metrics.accuracy.split.startswith("600 of 1200 rows held out")
    exclude = int8.manifest.lineage[-1].parameters["exclude"]
    trials = outcome.trade_offs.get("int8", ())
    if spoiled:
        assert list(exclude) == ["/first/MatMul"]
        assert [(len(trial.kept), trial.holds) for trial in trials] == [(0, False), (1, True)]
        assert trials[0].loss > 0.2
    else:
        assert list(exclude) == []
        assert not trials


def test_without_a_floor_nothing_goes_back(network, tmp_path):
    source, spoiled = network
    outcome = optimize(source, Wish(recipe=BROAD), Store(tmp_path / "store"), "network", lambda _: None)
    _, int8 = outcome.published
    assert (int8.manifest.metrics.accuracy.loss > 0.2) == spoiled
    assert not outcome.trade_offs


def test_a_floor_that_no_layer_can_reach_leaves_the_variant_out(network, tmp_path):
    source, spoiled = network
    wish = Wish(recipe=BROAD, max_drop=0.0001)
    outcome = optimize(source, wish, Store(tmp_path / "store"), "network", lambda _: None)
    if spoiled:
        assert [artifact.manifest.variant for artifact in outcome.published] == ["fp32"]
        assert "more than the 0.01% allowed" in outcome.refused["int8"]
