"""Every engine behind the one seam: the same answers from each, in every format it opens, and clear refusals."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine, loadable_providers
from mlserve.engines.opening import open_engine, open_onnx_file
from mlserve.engines.openvino_engine import OpenvinoEngine
from mlserve.engines.torch_engine import TorchEngine
from mlserve.errors import EngineError, InvalidRequest, ModelFileError

WAYS = [
    ("onnx", "onnxruntime"),
    ("onnx", "openvino"),
    ("openvino", "openvino"),
    ("torch", "torch"),
    ("torch", "torch-compiled"),
]
# Compiling takes seconds a network.
NETS_AND_WAYS = [
    pytest.param(net, way, marks=[pytest.mark.slow] if (net, way[1]) == ("conv", "torch-compiled") else [])
    for net in ("mlp", "conv", "transformer")
    for way in WAYS
    if (net, way[1]) != ("mlp", "torch-compiled")
]
CHECKED_BY_US = [way for way in WAYS if way[1] != "onnxruntime" and way[1] != "torch-compiled"]


@pytest.fixture(scope="session")
def opened(kept):
    """`opened(net, kept_as, engine)`: that engine, opened once for all tests."""
    engines = {}

    def engine(*way):
        if way not in engines:
            net, kept_as, name = way
            engines[way] = open_engine(kept(net, kept_as), EngineSettings(engine=name))
        return engines[way]

    yield engine
    for each in engines.values():
        each.close()


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("net", "way"), NETS_AND_WAYS, ids=str)
def test_every_engine_answers_what_onnxruntime_answers(opened, kept, rows_of, net, way):
    engine, reference = opened(net, *way), OnnxEngine(kept(net, "onnx").model_path)
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*engine.inputs, *engine.outputs)] == [
        (spec.name, spec.dtype, spec.shape) for spec in (*reference.inputs, *reference.outputs)
    ]
    for rows in (1, 2, 5, 33):
        inputs = rows_of(net, rows)
        before = {name: array.copy() for name, array in inputs.items()}
        assert_alike(engine.run(inputs), reference.run(inputs))
        assert all((inputs[name] == before[name]).all() for name in inputs)


@pytest.mark.parametrize("way", WAYS, ids="-by-".join)
def test_eight_threads_at_once_get_each_their_own_answer(opened, rows_of, way):
    engine = opened("transformer", *way)
    asked = [rows_of("transformer", 1 + number % 5, seed=number, length=5 + number % 3) for number in range(64)]
    expected = [engine.run(inputs) for inputs in asked]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(engine.run, asked), expected, strict=True):
            assert_alike(found, wanted)


@pytest.mark.parametrize("way", WAYS, ids="-by-".join)
def test_answers_stay_as_they_are_when_the_engine_runs_again(opened, rows_of, way):
    engine = opened("transformer", *way)
    first = engine.run(rows_of("transformer", 3))
    kept = {name: array.copy() for name, array in first.items()}
    engine.run(rows_of("transformer", 3, seed=1))
    assert all((first[name] == kept[name]).all() for name in first)


@pytest.mark.parametrize("way", WAYS, ids="-by-".join)
def test_rows_may_lie_in_memory_that_is_read_only_or_strided(opened, rows_of, way):
    engine = opened("conv", *way)
    image = rows_of("conv", 4)["image"]
    expected = engine.run({"image": image})
    frozen = np.frombuffer(image.tobytes(), np.float32).reshape(image.shape)
    assert not frozen.flags.writeable
    assert_alike(engine.run({"image": frozen}), expected)
    assert_alike(engine.run({"image": np.asfortranarray(image)}), expected)


@pytest.mark.parametrize("way", CHECKED_BY_US, ids="-by-".join)
@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "the model takes x, not nothing"),
        ({"y": np.zeros((1, 12), np.float32)}, "the model takes x, not y"),
        ({"x": np.zeros((1, 12)), "y": np.zeros(1)}, "the model takes x, not x, y"),
        ({"x": np.zeros((2, 12))}, "it takes x:float32:batch,12, not float64:2,12"),
        ({"x": np.zeros((2, 13), np.float32)}, "it takes x:float32:batch,12, not float32:2,13"),
    ],
)
def test_what_the_model_does_not_take_is_the_request_s_fault(opened, rows_of, way, inputs, told):
    engine = opened("mlp", *way)
    engine.run(rows_of("mlp", 1))  # so that OpenVINO has old values it could use instead
    with pytest.raises(InvalidRequest, match=told):
        engine.run(inputs)


@pytest.mark.parametrize("way", [("onnx", "onnxruntime"), *CHECKED_BY_US], ids="-by-".join)
def test_a_token_the_vocabulary_lacks_is_refused_and_the_engine_runs_on(opened, rows_of, way):
    engine = opened("transformer", *way)
    inputs = rows_of("transformer", 2)
    expected = engine.run(inputs)
    with pytest.raises(InvalidRequest, match="the model refused these values"):
        engine.run({**inputs, "input_ids": inputs["input_ids"] + 50})
    assert_alike(engine.run(inputs), expected)


def test_an_artifact_is_opened_by_the_engine_it_was_made_for(kept):
    assert isinstance(open_engine(kept("mlp", "onnx")), OnnxEngine)
    assert isinstance(open_engine(kept("mlp", "onnx", engine="openvino")), OpenvinoEngine)
    assert isinstance(open_engine(kept("mlp", "openvino")), OpenvinoEngine)
    assert isinstance(open_engine(kept("mlp", "torch")), TorchEngine)
    assert isinstance(
        open_engine(kept("mlp", "onnx", engine="openvino"), EngineSettings(engine="onnxruntime")), OnnxEngine
    )


def test_the_compute_type_an_artifact_was_made_for_goes_with_its_engine(kept):
    made_for = kept("mlp", "onnx", engine="openvino", compute_type="nonsense")
    with pytest.raises(EngineError, match="cannot compute in 'nonsense'"):
        open_engine(made_for)
    open_engine(made_for, EngineSettings(compute_type="fp32")).close()
    open_engine(made_for, EngineSettings(engine="onnxruntime")).close()


@pytest.mark.parametrize(
    ("kept_as", "engine", "told"),
    [
        ("onnx", "torch", "the engine torch does not open a model kept as onnx; use onnxruntime or openvino"),
        ("openvino", "onnxruntime", "does not open a model kept as openvino; use openvino"),
        ("torch", "openvino", "does not open a model kept as torch; use torch or torch-compiled"),
        ("onnx", "tensorflow", "'tensorflow' is no engine; use onnxruntime or openvino"),
    ],
)
def test_an_engine_that_cannot_open_the_format_says_which_can(kept, kept_as, engine, told):
    with pytest.raises(EngineError, match=told):
        open_engine(kept("mlp", kept_as), EngineSettings(engine=engine))


@pytest.mark.parametrize("way", WAYS, ids="-by-".join)
def test_a_compute_type_that_is_not_to_be_had_is_refused(kept, way):
    kept_as, engine = way
    with pytest.raises(EngineError, match="'fp7'"):
        open_engine(kept("mlp", kept_as), EngineSettings(engine=engine, compute_type="fp7"))


@pytest.mark.parametrize(
    ("way", "device", "told"),
    [
        (
            ("onnx", "onnxruntime"),
            "gpu",
            "'gpu' is no device; use cpu, cuda or cuda:N, tensorrt or tensorrt:N with onnxruntime",
        ),
        (("onnx", "openvino"), "cuda", "'cuda' is no device; use cpu, gpu or gpu:N with OpenVINO"),
        (("onnx", "openvino"), "gpu:9", "--device gpu:9: OpenVINO finds .*CPU.* here; see: mlserve doctor"),
        (("torch", "torch"), "gpu", "'gpu' is no device; use cpu, cuda or cuda:N with PyTorch"),
        (("torch", "torch"), "cuda:99", "--device cuda:99: PyTorch .*; see: mlserve doctor"),
        (("torch", "torch-compiled"), "cuda:99", "--device cuda:99: PyTorch .*; see: mlserve doctor"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(kept, way, device, told):
    kept_as, engine = way
    with pytest.raises(EngineError, match=told):
        open_engine(kept("mlp", kept_as), EngineSettings(device, engine=engine))


@pytest.mark.skipif(loadable_providers().get("TensorrtExecutionProvider") == "", reason="TensorRT loads here")
def test_tensorrt_that_does_not_load_is_an_error_and_never_another_provider_in_its_stead(kept):
    with pytest.raises(EngineError, match=r"--device tensorrt.*mlserve doctor"):
        open_engine(kept("mlp", "onnx"), EngineSettings("tensorrt"))


@pytest.mark.parametrize(
    "setting", [{"graph_optimization": "basic"}, {"memory_arena": False}, {"io_binding": True}], ids=str
)
def test_a_setting_that_an_engine_would_ignore_is_refused(kept, setting):
    with pytest.raises(EngineError, match=f"{next(iter(setting))} is a setting of onnxruntime's, which openvino"):
        open_engine(kept("mlp", "onnx"), EngineSettings(engine="openvino", **setting))
    open_engine(kept("mlp", "onnx"), EngineSettings(**setting)).close()


@pytest.mark.parametrize("way", WAYS, ids="-by-".join)
def test_a_model_file_that_is_missing_or_damaged_is_named(kept, tmp_path, way):
    from mlserve.model.artifact import Artifact

    kept_as, engine = way
    artifact = Artifact(tmp_path, kept("mlp", kept_as).manifest)
    for content in (None, b"no model"):
        if content:
            artifact.model_path.write_bytes(content)
        with pytest.raises(EngineError, match=rf"{artifact.model_path.name} cannot be loaded"):
            open_engine(artifact, EngineSettings(engine=engine))


@pytest.mark.parametrize("engine", ["", "onnxruntime", "openvino"])
def test_a_bare_file_is_inspected_and_keeps_the_names_of_its_dimensions(kept, rows_of, engine, tmp_path):
    path = kept("transformer", "onnx").model_path
    opened = open_onnx_file(path, EngineSettings(engine=engine))
    assert [str(spec) for spec in opened.inputs] == [
        "input_ids:int64:batch,sequence",
        "attention_mask:int64:batch,sequence",
    ]
    assert opened.inputs[0].below == 50
    assert opened.run(rows_of("transformer", 3))["sentence"].shape == (3, 16)
    with pytest.raises(InvalidRequest):
        opened.run({**rows_of("transformer", 3), "input_ids": np.full((3, 7), 50)})
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="is no ONNX model"):
        open_onnx_file(tmp_path / "m.onnx", EngineSettings(engine=engine))


def test_a_bare_file_is_not_opened_by_an_engine_of_programs(kept):
    with pytest.raises(EngineError, match="the engine torch does not open a model kept as onnx"):
        open_onnx_file(kept("mlp", "onnx").model_path, EngineSettings(engine="torch"))
