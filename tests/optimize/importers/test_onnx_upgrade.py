"""ONNX files as they come: old opsets, a batch fixed at one. Nothing is changed that changes an answer."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.model.artifact import MODEL_FILE

FIXED, OPEN = "the batch stays fixed at 1", "the batch was fixed at 1 and is open now"


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), [output], **attributes)


@pytest.fixture
def model(home):
    """Writes a graph from `x` to `y`, with random weights `w` (and `v`, and what else is given), as a file."""

    def write(nodes, x, y, opset=13, **constants):
        rng = np.random.default_rng(0)
        weights = {
            name: rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.array(value)
            for name, value in constants.items()
        }
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
        onnx.save(made, home / "model.onnx")
        return home / "model.onnx"

    return write


CONV = node("Conv", "x w", "a", pads=[1] * 4)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([CONV, node("Flatten", "a", "b"), node("Gemm", "b v", "y")], {}),
        ([CONV, node("Reshape", "a s", "b"), node("Gemm", "b v", "y")], {"s": [-1, 128]}),
    ],
)
def test_a_batch_of_one_is_opened_where_rows_together_answer_as_alone(home, model, bring, nodes, constants):
    path = model(nodes, [1, 1, 8, 8], [1, 5], w=(2, 1, 3, 3), v=(128, 5), **constants)
    before = path.read_bytes()
    _, imported, engine = bring(path)
    assert [str(spec) for spec in (*imported.inputs, *imported.outputs)] == [
        "x:float32:batch,1,8,8",
        "y:float32:batch,5",
    ]
    assert any(OPEN in note for note in imported.notes)
    rows = np.random.default_rng(1).random((4, 1, 8, 8), np.float32)
    alone = np.concatenate([OnnxEngine(path).run({"x": row[None]})["y"] for row in rows])
    np.testing.assert_allclose(engine.run({"x": rows})["y"], alone, rtol=1e-5)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("nodes", "x", "y", "constants", "why"),
    [
        (
            [CONV, node("Reshape", "a s", "b"), node("Gemm", "b v", "y")], [1, 1, 8, 8], [1, 5],
            {"w": (2, 1, 3, 3), "v": (128, 5), "s": [1, 128]}, "does not run with 3 rows",
        ),
        ([node("Softmax", "x", "a", axis=0), node("MatMul", "a w", "y")], [1, 4], [1, 3], {"w": (4, 3)}, "differs by"),
        (
            [node("Reshape", "x s", "a"), node("Softmax", "a", "b", axis=1), node("Reshape", "b t", "y")],
            [1, 4], [1, 4], {"s": [1, -1], "t": [-1, 4]}, "differs by",
        ),
    ],
)  # fmt: skip
def test_a_batch_stays_fixed_where_rows_would_mix(model, bring, nodes, x, y, constants, why):
    _, imported, _ = bring(model(nodes, x, y, **constants))
    assert [spec.shape for spec in (*imported.inputs, *imported.outputs)] == [tuple(x), tuple(y)]
    assert any(note.startswith(FIXED) and why in note for note in imported.notes)


def test_a_batch_of_two_is_no_batch_of_one(model, bring):
    _, imported, _ = bring(model([node("MatMul", "x w", "y")], [2, 4], [2, 3], w=(4, 3)))
    assert imported.inputs[0].shape == (2, 4)
    assert not any("batch" in note for note in imported.notes)


def test_an_old_opset_becomes_a_recent_one(home, model, bring):
    nodes = [node("MatMul", "x w", "a"), node("Softmax", "a", "b"), node("Unsqueeze", "b", "y", axes=[1])]
    path = model(nodes, ["n", 4], ["n", 1, 3], opset=9, w=(4, 3))
    _, imported, engine = bring(path)
    assert "opset 9 became 17" in imported.notes
    assert onnx.load(home / "out-0" / MODEL_FILE).opset_import[0].version == 17
    rows = np.random.default_rng(1).random((5, 4), np.float32)
    np.testing.assert_allclose(engine.run({"x": rows})["y"], OnnxEngine(path).run({"x": rows})["y"], rtol=1e-6)


def test_an_opset_that_cannot_be_converted_is_kept_and_said(home, model, bring):
    path = model([node("MatMul", "x w", "a"), node("Relu", "a", "y")], ["n", 4], ["n", 3], opset=9, w=(4, 3))
    loaded = onnx.load(path)
    loaded.graph.node[1].CopyFrom(helper.make_node("Gelu", ["a"], ["y"], domain="com.microsoft"))
    loaded.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(loaded, path)
    _, imported, _ = bring(path)
    version = onnx.load(home / "out-0" / MODEL_FILE).opset_import[0].version
    assert (version == 9) == any(note.startswith("opset 9 was kept") for note in imported.notes)
    assert (version == 17) == ("opset 9 became 17" in imported.notes)


def test_inner_shapes_are_written_down(home, model, bring):
    bring(model([node("MatMul", "x w", "a"), node("Relu", "a", "y")], ["n", 4], ["n", 3], w=(4, 3)))
    (inner,) = [value for value in onnx.load(home / "out-0" / MODEL_FILE).graph.value_info if value.name == "a"]
    dims = [dim.dim_param or dim.dim_value for dim in inner.type.tensor_type.shape.dim]
    assert dims == ["n", 3]
