"""onnxruntime behind the engine seam: what it answers, and what it says when it cannot."""

import contextlib
import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.engines.engine import EngineSettings, Execution
from mlserve.engines.onnx_engine import OnnxEngine, loadable_providers
from mlserve.errors import EngineError, InvalidRequest
from mlserve.model.tensors import TensorSpec


def save(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def value(name, element, shape):
    return helper.make_tensor_value_info(name, element, shape)


@pytest.fixture
def lookup_onnx(tmp_path):
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")
    return save(
        tmp_path / "lookup.onnx",
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        [value("ids", TensorProto.INT64, ["batch"])],
        [value("y", TensorProto.FLOAT, ["batch"])],
        [table],
    )


def test_an_engine_says_its_inputs_and_outputs_and_answers_what_onnxruntime_answers(tiny_onnx):
    import onnxruntime

    engine = OnnxEngine(tiny_onnx)
    assert engine.inputs == (TensorSpec("x", "float32", ("batch", 30)),)
    assert engine.outputs == (TensorSpec("scores", "float32", ("batch", 2)),)
    rows = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tiny_onnx), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(engine.run({"x": rows})["scores"], session.run(None, {"x": rows})[0], rtol=1e-6)
    engine.close()


def test_an_engine_tells_the_provider_it_runs_on(tiny_onnx):
    assert OnnxEngine(tiny_onnx).execution == Execution("CPUExecutionProvider")


def test_several_threads_may_run_at_once(tiny_onnx):
    engine = OnnxEngine(tiny_onnx, EngineSettings(threads=1))
    rows = np.random.default_rng(0).standard_normal((8, 30)).astype(np.float32)
    expected = engine.run({"x": rows})["scores"]
    wrong = []

    def run(start):
        for _ in range(50):
            found = engine.run({"x": rows[start : start + 1]})["scores"]
            if not np.allclose(found, expected[start : start + 1], rtol=1e-5):
                wrong.append(found)

    threads = [threading.Thread(target=run, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_value_the_model_refuses_is_the_request_s_fault_and_the_engine_runs_on(lookup_onnx):
    engine = OnnxEngine(lookup_onnx)
    with pytest.raises(InvalidRequest, match=r"the model refused these values: .*idx=10"):
        engine.run({"ids": np.array([1, 10])})
    assert engine.run({"ids": np.array([1, -1])})["y"].tolist() == [1.0, 9.0]


def test_an_unnamed_dimension_gets_a_name_of_its_own(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, [None, 3, None])],
        [value("y", TensorProto.FLOAT, [None, 3, None])],
    )
    assert OnnxEngine(path).inputs == (TensorSpec("x", "float32", ("x_0", 3, "x_2")),)


def test_an_output_that_no_protocol_carries_is_refused_with_the_way_out(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [2])],
    )
    with pytest.raises(
        EngineError, match=r"'y' is a seq\(tensor\(float\)\), which no serving protocol carries; export"
    ):
        OnnxEngine(path)


def test_a_file_onnxruntime_cannot_load_is_named_with_its_reason(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    with pytest.raises(EngineError, match=r"m\.onnx cannot be loaded: .*NoSuchOperator"):
        OnnxEngine(path)


@pytest.mark.parametrize(
    "device", ["gpu", "cpu:0", "cpu:", "cuda:", "cuda:x", "cuda:-1", "cuda:99999999999", "", "CPU"]
)
def test_a_device_that_is_none_is_refused_with_those_there_are(tiny_onnx, device):
    with pytest.raises(
        EngineError, match="is no device; use cpu, cuda or cuda:N, tensorrt or tensorrt:N with onnxruntime"
    ):
        OnnxEngine(tiny_onnx, EngineSettings(device))


@pytest.mark.skipif(loadable_providers().get("CUDAExecutionProvider") == "", reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_an_error_and_never_the_cpu_in_its_stead(tiny_onnx):
    with pytest.raises(EngineError, match=r"--device cuda.*see: mlserve doctor|--device cuda.*with: mlserve doctor"):
        OnnxEngine(tiny_onnx, EngineSettings("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(loadable_providers().get("CUDAExecutionProvider") != "", reason="there is no CUDA device")
@pytest.mark.parametrize("io_binding", [False, True])
def test_a_cuda_device_answers_what_the_cpu_answers_and_gets_the_operators(kept, rows_of, io_binding):
    path, rows = kept("conv", "onnx").model_path, rows_of("conv", 5)
    engine = OnnxEngine(path, EngineSettings("cuda", io_binding=io_binding))
    assert engine.operators_by_provider()["CUDAExecutionProvider"]["Conv"] == 1
    expected = OnnxEngine(path).run(rows)
    assert all(np.allclose(found, expected[name], rtol=1e-4, atol=1e-5) for name, found in engine.run(rows).items())


def test_the_cpu_provider_loads_everywhere():
    assert loadable_providers()["CPUExecutionProvider"] == ""


@pytest.mark.parametrize(
    "setting",
    [
        {"graph_optimization": "off"},
        {"graph_optimization": "basic"},
        {"graph_optimization": "extended"},
        {"memory_arena": False},
        {"io_binding": True},
        {"threads": 2},
    ],
    ids=str,
)
def test_a_setting_changes_how_a_model_runs_and_not_what_it_answers(kept, rows_of, setting):
    path, rows = kept("transformer", "onnx").model_path, rows_of("transformer", 5)
    with (
        contextlib.closing(OnnxEngine(path)) as plain,
        contextlib.closing(OnnxEngine(path, EngineSettings(**setting))) as other,
    ):
        np.testing.assert_allclose(other.run(rows)["sentence"], plain.run(rows)["sentence"], rtol=1e-4, atol=1e-6)


def test_graph_optimization_leaves_fewer_operators_and_off_leaves_them_all(kept):
    from onnx import load

    path = kept("transformer", "onnx").model_path

    def operators(level):
        placed = OnnxEngine(path, EngineSettings(graph_optimization=level)).operators_by_provider()
        assert list(placed) == ["CPUExecutionProvider"]
        return sum(placed["CPUExecutionProvider"].values())

    nodes = load(path).graph.node
    constants = sum(node.op_type == "Constant" for node in nodes)
    assert operators("off") == len(nodes) - constants
    assert operators("all") < operators("off")


def test_a_value_the_model_refuses_is_the_request_s_fault_with_bound_inputs_too(lookup_onnx):
    engine = OnnxEngine(lookup_onnx, EngineSettings(io_binding=True))
    with pytest.raises(InvalidRequest, match=r"the model refused these values: .*idx=10"):
        engine.run({"ids": np.array([1, 10])})
    assert engine.run({"ids": np.array([1, -1])})["y"].tolist() == [1.0, 9.0]


def test_nothing_is_printed_by_a_failing_load(tmp_path, capfd):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError):
        OnnxEngine(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")
