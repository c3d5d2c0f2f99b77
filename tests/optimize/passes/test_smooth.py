"""SmoothQuant: the answers stay, and static int8 of the result loses less."""

import numpy as np
import onnx
import pytest

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import Refused
from mlserve.model.artifact import Artifact, record_files
from mlserve.optimize.importers.onnx_model import write_model
from mlserve.optimize.passes import smooth
from mlserve.optimize.passes.smooth import SmoothQuant
from mlserve.optimize.passes.static import QuantizeStatic
from mlserve.optimize.passes.step import ALONE, Resources

SAME = 1e-4


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("one_pass", [SmoothQuant(), SmoothQuant(alpha=0.8, reach="all")])
def test_smoothing_keeps_the_law_of_a_pass_and_the_answers(corpus, fresh, error, one_pass, first, capsys):
    source, rows = corpus.encoder(outliers=20.0, first=first)
    before = record_files(source.directory)
    made = one_pass(source, fresh(), Resources(rows=rows))
    assert record_files(source.directory) == before
    old, new = OnnxEngine(source.model_path), OnnxEngine(made.model_path)
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
    assert error(old, new, rows) < SAME
    assert {path.name for path in made.directory.iterdir()} == {"model.onnx", "tokenizer.json"}
    assert [step.step for step in made.manifest.lineage] == ["smooth"]
    assert not capsys.readouterr().out


@pytest.mark.parametrize("first", [True, False])
def test_channels_with_outliers_cost_static_int8_less_after_smoothing(corpus, fresh, first):
    source, rows = corpus.encoder(outliers=40.0, first=first)
    resources = Resources(rows=rows)
    smoothed = SmoothQuant()(source, fresh("smoothed"), resources)
    expected = OnnxEngine(source.model_path).run(rows.batch(0, len(rows)))["pooled"]
    plain, better = (
        np.abs(OnnxEngine(made.model_path).run(rows.batch(0, len(rows)))["pooled"] - expected).mean()
        for made in (
            QuantizeStatic()(source, fresh("plain"), resources),
            QuantizeStatic()(smoothed, fresh("better"), resources),
        )
    )
    assert better < plain / 1.5


def test_scales_go_into_the_normalization_and_a_residual_gets_them_back(corpus, fresh):
    for first, multiplications in ((True, 0), (False, 2)):
        source, rows = corpus.encoder(f"encoder {first}", outliers=20.0, first=first)
        made = SmoothQuant()(source, fresh(f"made {first}"), Resources(rows=rows))
        old, new = (onnx.load(artifact.model_path).graph for artifact in (source, made))
        count = [sum(node.op_type == "Mul" for node in graph.node) for graph in (old, new)]
        assert count[1] - count[0] == multiplications
        assert "4 products smoothed at 2 places, 2 of them inside" in made.manifest.lineage[0].notes[0]
        assert made.size_bytes < source.size_bytes * 1.1


def test_weights_used_both_ways_round_are_smoothed_each_in_its_own(corpus, fresh, error):
    source, rows = corpus.mlp()
    made = SmoothQuant(reach="all")(source, fresh(), Resources(rows=rows))
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < SAME


def test_without_rows_smoothing_is_refused_with_the_next_step(corpus, fresh):
    with pytest.raises(Refused, match="--data"):
        SmoothQuant()(corpus.encoder()[0], fresh(), ALONE)


def test_a_model_without_normalizations_comes_out_as_it_went_in(digits, fresh):
    made = SmoothQuant()(digits.source, fresh(), Resources(rows=digits.rows))
    assert "nothing to smooth" in made.manifest.lineage[-1].notes[0]
    assert made.model_path.read_bytes() == digits.source.model_path.read_bytes()


def test_a_quantized_model_is_refused(corpus, fresh):
    source, rows = corpus.encoder()
    resources = Resources(rows=rows)
    with pytest.raises(Refused, match="quantized already"):
        SmoothQuant()(QuantizeStatic()(source, fresh("int8"), resources), fresh(), resources)


def test_other_answers_are_refused(corpus, fresh, monkeypatch):
    """The negative control of the check at the end."""
    source, rows = corpus.encoder(outliers=20.0)
    monkeypatch.setattr(smooth, "_multiply", lambda *_: None)  # the residual does not get its scales back
    with pytest.raises(Refused, match="change the answers"):
        SmoothQuant()(source, fresh(), Resources(rows=rows))


def test_a_silent_channel_is_left_alone(corpus, fresh, error):
    source, rows = corpus.encoder(outliers=0.0)
    model = onnx.load(source.model_path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".shift"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[[3, 17]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, source.model_path)
    made = SmoothQuant()(source, fresh(), Resources(rows=rows))
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(made.model_path).graph.initializer]
    assert all(np.isfinite(weight).all() for weight in weights if weight.dtype == np.float32)
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < SAME


def test_smoothing_weights_beyond_what_a_message_holds(corpus, fresh, error, monkeypatch):
    for module in ("importers.onnx_model", "passes.graph", "passes.calibration"):
        monkeypatch.setattr(f"mlserve.optimize.{module}.INLINE_LIMIT_BYTES", 1000)
    source, rows = corpus.encoder(outliers=20.0)
    folder = fresh("large")
    write_model(source.model_path, folder)
    made = SmoothQuant()(Artifact(folder, source.manifest), fresh(), Resources(rows=rows))
    assert {path.name for path in made.directory.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert error(OnnxEngine(source.model_path), OnnxEngine(made.model_path), rows) < SAME
