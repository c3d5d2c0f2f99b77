"""OpenVINO behind the engine seam: what only it does differently."""

import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, save_model

from mlserve.engines.engine import EngineSettings, Execution
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.engines.openvino_engine import OpenvinoEngine, openvino_devices
from mlserve.errors import EngineError

CAPABILITIES = openvino_devices()["cpu"][1:]
ELEMENTS = {
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    **{
        f"{kind}{bits}": getattr(TensorProto, f"{kind}{bits}".upper())
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}


def echo(path, element, shape=("batch", None, 3)):
    """`in` -> `out`, the same values."""
    values = [helper.make_tensor_value_info(name, element, list(shape)) for name in ("in", "out")]
    graph = helper.make_graph([helper.make_node("Identity", ["in"], ["out"])], "echo", values[:1], values[1:])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("dtype", ELEMENTS)
def test_names_types_and_dimensions_are_those_onnxruntime_tells(tmp_path, dtype):
    path = echo(tmp_path / "echo.onnx", ELEMENTS[dtype])
    engine, reference = OpenvinoEngine(path), OnnxEngine(path)
    assert (engine.inputs, engine.outputs) == (reference.inputs, reference.outputs)
    rows = np.arange(12).reshape(2, 2, 3).astype(dtype)
    answer = engine.run({"in": rows})["out"]
    assert answer.dtype == rows.dtype
    assert (answer == rows).all()


@pytest.mark.parametrize("element", ["STRING", "BFLOAT16"])
def test_a_type_openvino_cannot_serve_is_refused_with_the_way_out(tmp_path, element):
    path = echo(tmp_path / "echo.onnx", getattr(TensorProto, element), ("batch", 2))
    with pytest.raises(EngineError, match=r"'in' is a tensor of \w+, which OpenVINO cannot serve; use --engine onnxr"):
        OpenvinoEngine(path)


def test_an_operator_openvino_lacks_is_named(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")], "g", [x], [x])
    graph.output[0].name = "y"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(EngineError, match=r"m\.onnx cannot be loaded: .*NoSuchOperator"):
        OpenvinoEngine(tmp_path / "m.onnx")


def test_it_tells_the_device_and_the_type_that_openvino_uses(tmp_path):
    path = echo(tmp_path / "echo.onnx", TensorProto.FLOAT)
    assert OpenvinoEngine(path).execution == Execution("openvino CPU", "fp32")
    if "BF16" in CAPABILITIES:
        rounded = OpenvinoEngine(path, EngineSettings(compute_type="bf16"))
        assert rounded.execution == Execution("openvino CPU", "bf16")


def test_without_a_compute_type_nothing_is_rounded_to_bf16(kept, rows_of):
    path, rows = kept("mlp", "onnx").model_path, rows_of("mlp", 64)
    exact = OnnxEngine(path).run(rows)["scores"]
    for compute_type in ("", "fp32"):
        plain = OpenvinoEngine(path, EngineSettings(compute_type=compute_type)).run(rows)["scores"]
        assert np.abs(plain - exact).max() < 1e-5
    if "BF16" in CAPABILITIES:
        rounded = OpenvinoEngine(path, EngineSettings(compute_type="bf16")).run(rows)["scores"]
        assert 1e-4 < np.abs(rounded - exact).max() < 0.1


@pytest.mark.parametrize(("compute_type", "capability"), [("bf16", "BF16"), ("fp16", "FP16")])
def test_a_compute_type_this_cpu_lacks_is_refused(kept, compute_type, capability):
    path, settings = kept("mlp", "onnx").model_path, EngineSettings(compute_type=compute_type)
    if capability in CAPABILITIES:
        OpenvinoEngine(path, settings).close()
    else:
        with pytest.raises(EngineError, match=f"cannot compute in '{compute_type}'; use fp32"):
            OpenvinoEngine(path, settings)


def test_a_manifest_that_speaks_of_other_tensors_is_refused(kept):
    from mlserve.engines.opening import open_engine

    other = kept("conv", "openvino").manifest
    with pytest.raises(EngineError, match=r"model\.xml has x:float32:x_0,12, its manifest says image:float32"):
        open_engine(kept("mlp", "openvino", inputs=other.inputs))
    open_engine(kept("mlp", "openvino")).close()


def test_without_the_package_the_error_says_what_to_install(kept, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"pip install 'mlserve\[openvino\]'"):
        OpenvinoEngine(kept("mlp", "onnx").model_path)
    assert openvino_devices() == {}


@pytest.mark.parametrize("kept_as", ["onnx", "openvino"])
def test_loading_prints_nothing(kept, kept_as, capfd):
    OpenvinoEngine(kept("mlp", kept_as).model_path).close()
    assert capfd.readouterr() == ("", "")
