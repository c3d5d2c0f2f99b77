"""What is served: versions of a store and bare files, checked before anything executes them."""

import concurrent.futures
import re
import subprocess
import sys
import threading

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from mlserve.engines.engine import EngineSettings
from mlserve.errors import DataFileError, EngineError, ModelFileError, StoreError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.processing import Processing, TextInput
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.serve.batching.turn import Turn
from mlserve.serve.loading import load_model
from mlserve.serve.metrics import render_metrics
from mlserve.serve.settings import BatchSettings, ModelSource, ServeSettings

SETTINGS = ServeSettings(models=(), defaults={})


def scale_onnx(path, factor, inputs=("batch", 2)):
    """`x` float32 -> `y` = factor * x, of shape `inputs`."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, list(inputs)) for name in "xy")
    scale = numpy_helper.from_array(np.float32(factor), "factor")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "g", [x], [y], [scale])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def publish(store, name, factor):
    with store.staging() as folder:
        made = folder / "made"
        made.mkdir()
        scale_onnx(made / MODEL_FILE, factor)
        specs = [(TensorSpec(tensor, "float32", ("batch", 2)),) for tensor in "xy"]
        return store.add(Artifact(made, Manifest(variant="fp32", inputs=specs[0], outputs=specs[1])), name)


def doubling(store, name):
    """The model `name` in three versions (x2, x4, x6) with 2 promoted."""
    for factor in (2, 4, 6):
        publish(store, name, factor)
    store.promote(name, 2)
    store.promote(name, 3, "candidate")


@pytest.fixture
def store(tmp_path):
    """`double` in three versions (x2, x4, x6) with 2 promoted, and `triple` in one."""
    made = Store(tmp_path / "store")
    doubling(made, "double")
    publish(made, "triple", 3)
    return made


def factor_of(server, path):
    status, document = server.infer("", {"x": ("FP32", [[1.0, 1.0]])}, path=f"/v2/models/{path}/infer")
    return document["outputs"][0]["data"][0] if status == 200 else status


def test_everything_in_the_store_is_served_when_no_name_is_given_and_without_a_cache_it_stays_as_it_was(serving, store):
    before = sorted(store.root.rglob("*"))
    with serving("--store", store.root, "--no-cache") as server:
        assert server.get_json("/v2/models/double")["versions"] == ["1", "2", "3"]
        assert [factor_of(server, f"double/versions/{version}") for version in (1, 2, 3)] == [2, 4, 6]
        assert factor_of(server, "double") == 4  # production
        assert factor_of(server, "triple") == 3
        assert factor_of(server, "double/versions/4") == 404
        assert factor_of(server, "double/versions/production") == 4
        assert factor_of(server, "double/versions/candidate") == 6
        assert factor_of(server, "double/versions/nobody") == 404
    assert sorted(store.root.rglob("*")) == before


# What is asked for of a model like `double`, and what its paths multiply by then.
REFERENCES = {
    "promoted": (["promoted"], {"promoted": 4, "promoted/versions/2": 4, "promoted/versions/1": 404}),
    "numbered": (["numbered@1"], {"numbered": 2, "numbered/versions/2": 404}),
    "aliased": (["aliased@candidate"], {"aliased": 6, "aliased/versions/3": 6, "aliased/versions/2": 404}),
    "several": (
        ["several@1", "several@3", "several@1"],
        {"several": 6, "several/versions/1": 2, "several/versions/2": 404},
    ),
    "unnamed": ([], {"unnamed": 404}),
}


@pytest.fixture(scope="module")
def referring(serving, tmp_path_factory):
    """One server that was asked for all of these."""
    store = Store(tmp_path_factory.mktemp("referring") / "store")
    for name in REFERENCES:
        doubling(store, name)
    with serving("--store", store.root, *(ref for refs, _ in REFERENCES.values() for ref in refs)) as server:
        yield server


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_serves_just_that_version(referring, name):
    _, expected = REFERENCES[name]
    assert {path: factor_of(referring, path) for path in expected} == expected


def weighty_onnx(folder):
    """`x` float32 [batch, 2000] -> `y` = 7 x, whose weights are in a file beside it."""
    import onnx

    path = scale_onnx(folder / "scale.onnx", 7)
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full(2000, 7, np.float32), "factor"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = 2000
    save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (folder / "weights.bin").stat().st_size >= 8000
    return path


def centre_onnx(path):
    """`x` float32 [batch, 1] -> `y` = x less the mean of all its rows."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def mixed_server(serving, tmp_path_factory):
    """Models of a store beside bare files, each of its own kind; their requests wait for others to run with."""
    folder = tmp_path_factory.mktemp("mixed")
    store = Store(folder / "store")
    doubling(store, "double")
    publish(store, "triple", 3)
    of_store = ("--store", store.root, "double@1", "double@2", "triple")
    named, fixed = folder / "my model (v2).onnx", folder / "fixed.onnx"
    files = [scale_onnx(named, 5), scale_onnx(fixed, 2, inputs=(3, 2)), weighty_onnx(folder)]
    with serving(*of_store, *files, centre_onnx(folder / "centre.onnx"), "--max-delay-ms", 20) as server:
        yield server


def test_models_and_versions_answer_side_by_side_under_load(mixed_server, until):
    paths = {"double/versions/1": 2, "double/versions/2": 4, "double": 4, "triple": 3, "my_model__v2_": 5}
    work = list(paths) * 10
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: factor_of(mixed_server, path), work))
    assert found == [paths[path] for path in work]
    until(lambda: mixed_server.counted("mlserve_requests_total", model="double", version="2", outcome="ok") == 20)


def test_a_file_is_served_under_its_own_name_as_far_as_a_url_allows(mixed_server):
    assert factor_of(mixed_server, "my_model__v2_") == 5


def test_weights_beside_the_model_are_loaded(mixed_server):
    status, document = mixed_server.infer("scale", {"x": ("FP32", [[1.0] * 2000])})
    assert (status, document["outputs"][0]["data"]) == (200, [7.0] * 2000)


def test_a_model_whose_rows_depend_on_each_other_is_never_batched(mixed_server):
    def ask(number):
        status, document = mixed_server.infer("centre", {"x": ("FP32", [[float(number)], [number + 2.0]])})
        return status, document["outputs"][0]["data"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == [(200, [-1.0, 1.0])] * 16
    assert mixed_server.counted("mlserve_batches_total", model="centre") == 16


def test_a_model_of_fixed_shape_takes_one_request_a_run(mixed_server):
    def ask(number):
        status, document = mixed_server.infer("fixed", {"x": ("FP32", [[number, 1.0]] * 3)})
        return status, document["outputs"][0]["data"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [(200, [2.0 * number, 2.0] * 3) for number in range(8)]
    assert mixed_server.infer("fixed", {"x": ("FP32", [[1.0, 1.0]])})[0] == 400


def keep_doubling(folder, kept_as, onnx_path):
    """The model y = 2 x, kept as one of the formats."""
    if kept_as == "onnx":
        onnx_path.rename(folder / MODEL_FILE)
    elif kept_as == "openvino":
        import openvino

        openvino.save_model(openvino.convert_model(onnx_path), folder / "model.xml", compress_to_fp16=False)
        onnx_path.unlink()
    else:
        onnx_path.unlink()
        subprocess.run([sys.executable, "-c", _EXPORT_DOUBLING, str(folder / "model.pt2")], check=True)


_EXPORT_DOUBLING = """
import sys
import torch

class Doubling(torch.nn.Module):
    def forward(self, x):
        return 2 * x

batch = torch.export.Dim("batch", max=4096)
torch.export.save(torch.export.export(Doubling(), (torch.ones(2, 2),), dynamic_shapes=({0: batch},)), sys.argv[1])
"""


@pytest.fixture(scope="module")
def formats_store(tmp_path_factory):
    """The model `onnx`, `openvino` and `torch`: each y = 2 x, kept as what its name says."""
    store = Store(tmp_path_factory.mktemp("formats") / "store")
    specs = [(TensorSpec(tensor, "float32", ("batch", 2)),) for tensor in "xy"]
    engines = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
    for kept_as, engine in engines.items():
        with store.staging() as folder:
            made = folder / "made"
            made.mkdir()
            keep_doubling(made, kept_as, scale_onnx(folder / "scale.onnx", 2))
            manifest = Manifest(variant="fp32", format=kept_as, engine=engine, inputs=specs[0], outputs=specs[1])
            store.add(Artifact(made, manifest), kept_as)
    return store


def test_versions_of_every_format_are_served_side_by_side_each_by_the_engine_it_was_made_for(serving, formats_store):
    everything = ["onnx", "openvino", "torch"]
    for names in (everything, ["onnx", "openvino"]):  # the second time from the cache, which keeps nothing of torch
        with serving("--store", formats_store.root, *names, "--max-delay-ms", 2) as server:
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                assert list(pool.map(lambda name: factor_of(server, name), names * 10)) == [2] * 10 * len(names)
            shapes = [
                server.infer(name, {"x": ("FP32", [[1.0, 2.0], [3.0, 4.0]])})[1]["outputs"][0]["shape"]
                for name in names
            ]
            assert shapes == [[2, 2]] * len(names)
        assert {path.parent.parent.parent for path in formats_store.root.rglob("files.json")} == {
            formats_store.root / ".cache"
        }


@pytest.mark.parametrize(
    ("names", "engine"),
    [
        (["onnx", "file"], "openvino"),
        pytest.param(["torch"], "torch-compiled", marks=pytest.mark.slow),
    ],
)
def test_a_model_is_served_by_the_engine_asked_for(serving, formats_store, tmp_path, names, engine):
    files = {"file": scale_onnx(tmp_path / "file.onnx", 2)}
    what = [files.get(name, name) for name in names]
    with serving("--store", formats_store.root, *what, "--engine", engine) as server:
        assert [factor_of(server, name) for name in names] == [2] * len(names)


def test_an_engine_that_cannot_serve_the_model_ends_the_server_with_the_reason(mlserve, store):
    flags = ["--engine", "openvino", "--compute-type", "int3"]
    done = mlserve("serve", "--store", store.root, "double", "--http-port", 0, "--grpc-port", 0, *flags)
    assert done.returncode == 2
    assert "cannot compute in 'int3'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            EngineSettings(engine="torch"),
            "the engine torch does not open a model kept as onnx; use onnxruntime or openvino",
        ),
        (EngineSettings(engine="tf"), "'tf' is no engine; use onnxruntime or openvino"),
        (EngineSettings(compute_type="bf16"), "onnxruntime on cpu cannot compute in 'bf16'"),
        (
            EngineSettings(engine="openvino", device="cuda"),
            "'cuda' is no device; use cpu, gpu or gpu:N with OpenVINO",
        ),
    ],
)
def test_an_engine_that_cannot_serve_the_model_says_why(store, settings, told):
    source = ModelSource("double", "1", str(store.get("double", 1).directory))
    with pytest.raises(EngineError, match=re.escape(told)):
        load_model(source, msgspec.structs.replace(SETTINGS, engine=settings), Turn())


def test_a_version_with_a_changed_byte_is_refused_before_it_is_loaded(store):
    artifact = store.get("double", 1)
    source = ModelSource("double", "1", str(artifact.directory))
    load_model(source, SETTINGS, Turn())
    content = bytearray(artifact.model_path.read_bytes())
    content[-1] ^= 1
    artifact.model_path.write_bytes(content)
    with pytest.raises(StoreError, match=r"double@1 does not match its manifest: model\.onnx was changed"):
        load_model(source, SETTINGS, Turn())


def test_a_file_that_is_no_model_and_one_that_onnxruntime_refuses_are_named(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"model\.onnx is no ONNX model"):
        load_model(ModelSource("m", "1", str(path)), SETTINGS, Turn())
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"])], "g", [x], [x])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    with pytest.raises(EngineError, match=r"model\.onnx cannot be loaded"):
        load_model(ModelSource("m", "1", str(path)), SETTINGS, Turn())


def test_a_version_whose_tokenizer_is_damaged_leaves_no_thread_and_is_not_counted_as_loaded(tmp_path):
    store = Store(tmp_path / "store")
    with store.staging() as folder:
        made = folder / "made"
        made.mkdir()
        ids, out = (
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "n"]) for name in ("input_ids", "y")
        )
        graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["y"])], "g", [ids], [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        save_model(model, made / MODEL_FILE)
        (made / "tokenizer.json").write_text("{}")
        inputs = (TensorSpec("input_ids", "int64", ("batch", "n"), 6),)
        manifest = Manifest(
            variant="fp32",
            inputs=inputs,
            outputs=(TensorSpec("y", "int64", ("batch", "n")),),
            processing=Processing(text=TextInput()),
        )
        artifact = store.add(Artifact(made, manifest), "damaged")
    source = ModelSource("damaged", "1", str(artifact.directory))
    settings = ServeSettings(batch=BatchSettings(max_delay_s=0.01))
    before = threading.active_count()
    with pytest.raises(DataFileError, match="tokenizer"):
        load_model(source, settings, Turn())
    assert threading.active_count() == before
    assert b'mlserve_model_loaded{model="damaged"' not in render_metrics()
