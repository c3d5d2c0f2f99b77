"""onnxruntime's profiler, on real models."""

import numpy as np
import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.errors import EngineError
from mlserve.optimize.diagnose.onnx_profile import profile_onnx, read_events
from mlserve.optimize.diagnose.work import is_quantized

ONE = EngineSettings(threads=1)


def rows(*shape):
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def test_the_work_of_a_known_mlp_is_counted_exactly_at_every_batch_size(nets, tmp_path):
    path = nets.mlp(tmp_path / "mlp.onnx", sizes=(256, 512, 128))
    profiles, structure = profile_onnx(path, ONE, {1: rows(1, 256), 16: rows(16, 256)})
    assert [profile.batch_rows for profile in profiles] == [1, 16]
    for profile in profiles:
        assert profile.flops == 2 * profile.batch_rows * (256 * 512 + 512 * 128)
        assert {operation.provider for operation in profile.operations} == {"CPUExecutionProvider"}
        assert sum(operation.weight_bytes for operation in profile.operations) == 4 * (256 * 512 + 512 * 128)
    assert structure.optimized
    assert structure.weights_precision == "fp32"


def test_the_work_of_known_convolutions_is_counted_exactly_in_float_and_in_int8(nets, tmp_path):
    float32 = nets.cnn(tmp_path / "cnn.onnx")
    int8 = nets.dynamic_int8(float32, tmp_path / "int8.onnx")
    work = 2 * 4 * (32 * 32 * (16 * 3 * 9 + 32 * 16 * 9) + 32 * 10)
    for path, operator in ((float32, "Conv"), (int8, "ConvInteger")):
        ((profile,), _) = profile_onnx(path, ONE, {4: rows(4, 3, 32, 32)})
        assert profile.flops == work
        assert sum(operation.operator == operator for operation in profile.operations) == 2


def test_static_int8_is_profiled_as_the_engine_merges_it(nets, tmp_path):
    float32 = nets.cnn(tmp_path / "cnn.onnx")
    int8 = nets.static_int8(float32, tmp_path / "int8.onnx", [rows(4, 3, 32, 32)])
    ((profile,), structure) = profile_onnx(int8, ONE, {4: rows(4, 3, 32, 32)})
    assert structure.weights_precision == "int8"
    assert profile.flops == 2 * 4 * (32 * 32 * (16 * 3 * 9 + 32 * 16 * 9) + 32 * 10)
    assert profile.work_share(filter(is_quantized, profile.operations)) == 1
    assert sum(operation.operator == "QLinearConv" for operation in profile.operations) == 2


def test_the_operators_together_take_about_as_long_as_the_run(nets, tmp_path):
    path = nets.mlp(tmp_path / "large.onnx", sizes=(1024, 2048, 1024))
    ((profile,), _) = profile_onnx(path, ONE, {64: rows(64, 1024)})
    # Medians of parts need not add up to the median of the whole, least of all on a busy machine.
    assert 0.4 < profile.operations_s / profile.run_s < 2
    assert profile.runs >= 3


def test_nodes_without_names_and_with_the_same_name_are_told_apart(nets, tmp_path):
    nodes = [
        ("Relu", ["x"], ["a"], {"name": "same"}),
        ("Exp", ["a"], ["b"], {"name": "same"}),
        ("Abs", ["b"], ["c"]),
        ("Neg", ["c"], ["y"]),
    ]
    path = nets.save(tmp_path / "names.onnx", nodes, [("x", "f", ["n", 64])], [("y", "f", ["n", 64])], {})
    ((profile,), _) = profile_onnx(path, ONE, {1: rows(1, 64)})
    assert sorted(operation.operator for operation in profile.operations) == ["Abs", "Exp", "Neg", "Relu"]
    assert len({operation.name for operation in profile.operations}) == 4


def test_the_time_inside_a_branch_is_not_counted_twice(tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save_model

    weights = numpy_helper.from_array(np.eye(512, dtype=np.float32), "w")
    inner_output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["z"], name=f"product{n}")], "branch", [], [inner_output]
        )
        for n in range(2)
    ]
    node = helper.make_node("If", ["on"], ["y"], name="choice", then_branch=branches[0], else_branch=branches[1])
    graph = helper.make_graph(
        [node],
        "branching",
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 512]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weights],
    )
    path = tmp_path / "branching.onnx"
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    ((profile,), _) = profile_onnx(path, ONE, {256: rows(256, 512) | {"on": np.array(True)}})
    by_operator = {operation.operator: operation for operation in profile.operations}
    assert by_operator.keys() == {"If", "MatMul"}
    assert by_operator["MatMul"].flops == 2 * 256 * 512 * 512
    # The branch would take at least as long as its product if the product's time were counted in it too.
    assert by_operator["MatMul"].self_s > 2 * by_operator["If"].self_s


def test_weights_in_files_of_their_own_are_profiled_too(nets, tmp_path):
    import onnx

    model = onnx.load(nets.mlp(tmp_path / "mlp.onnx"))
    onnx.save(model, tmp_path / "outside.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    ((profile,), structure) = profile_onnx(tmp_path / "outside.onnx", ONE, {2: rows(2, 64)})
    assert profile.flops == 2 * 2 * (64 * 128 + 128 * 16)
    assert not structure.optimized


def test_nothing_is_left_behind(nets, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    profile_onnx(nets.mlp(tmp_path / "mlp.onnx"), ONE, {1: rows(1, 64)})
    assert set(tmp_path.iterdir()) - before == {tmp_path / "mlp.onnx"}
    assert list(scratch.iterdir()) == []


def test_a_run_that_fails_is_an_engine_error(nets, tmp_path):
    path = nets.mlp(tmp_path / "mlp.onnx")
    with pytest.raises(EngineError, match="cannot be profiled"):
        profile_onnx(path, ONE, {1: rows(1, 65)})


def test_a_profile_that_is_none_is_an_engine_error():
    with pytest.raises(EngineError, match="cannot be read"):
        read_events(b"[{]")
