"""What --auto tries, and what it takes."""

import msgspec
import numpy as np
import onnx
import pytest

from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.model.artifact import MODEL_FILE, Artifact, Latency, Manifest, Metrics
from mlserve.optimize.auto import best_of, sensible_variants, speed_of
from mlserve.runs.machine import read_machine

MACHINE = read_machine()


def artifact_of(folder, operator: str) -> Artifact:
    make = onnx.helper.make_node
    weight = np.ones((4, 4, 1, 1) if operator == "Conv" else (4, 4), np.float32)
    node = make(operator, ["x", "w"] if operator != "Relu" else ["x"], ["y"])
    shape = ["batch", 4, 5, 5] if operator == "Conv" else ["batch", 4]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy"]
    weights = [onnx.numpy_helper.from_array(weight, "w")] if operator != "Relu" else []
    graph = onnx.helper.make_graph([node], "graph", values[:1], values[1:], weights)
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / MODEL_FILE)
    engine = OnnxEngine(folder / MODEL_FILE)
    return Artifact(folder, Manifest(variant="fp32", inputs=engine.inputs, outputs=engine.outputs))


def names(recipe) -> list[str]:
    return [variant.name for variant in recipe.variants]


@pytest.mark.parametrize("operator", ["MatMul", "Conv", "Relu"])
@pytest.mark.parametrize("has_rows", [True, False])
def test_what_is_tried_follows_from_operators_and_data(tmp_path, operator, has_rows):
    found = names(sensible_variants(artifact_of(tmp_path, operator), MACHINE, "cpu", has_rows=has_rows))
    if operator == "Relu":
        assert found == []
        return
    assert ("int8" in found) == (operator == "MatMul")
    assert ("int8-static" in found) == ("openvino-int8" in found) == has_rows
    assert {"fused", "openvino"} <= set(found)


def test_bfloat16_is_tried_where_the_cpu_has_it(tmp_path):
    artifact = artifact_of(tmp_path, "MatMul")
    for flags, wanted in ((("avx2",), False), (("avx2", "avx512_bf16"), True)):
        machine = msgspec.structs.replace(MACHINE, cpu_flags=flags)
        found = names(sensible_variants(artifact, machine, "cpu", has_rows=True))
        assert ("openvino-bf16" in found) == ("openvino-int8-bf16" in found) == wanted


def test_a_gpu_gets_half_precision_and_nothing_of_the_cpus(tmp_path):
    assert names(sensible_variants(artifact_of(tmp_path, "MatMul"), MACHINE, "cuda", has_rows=True)) == [
        "fused",
        "fp16",
    ]


def timed(tmp_path, variant: str, *ratios: float) -> Artifact:
    pairs = zip((1, 32), ratios, strict=True)
    latencies = tuple(Latency(rows, 0.001 * ratio, 1000, ratio, ratio * 0.9, ratio * 1.1) for rows, ratio in pairs)
    manifest = Manifest(variant=variant, inputs=(), outputs=(), metrics=Metrics(latency=latencies))
    return Artifact(tmp_path, manifest)


def test_speed_is_the_geometric_mean_over_batch_sizes(tmp_path):
    assert speed_of(timed(tmp_path, "int8", 0.5, 0.125)) == pytest.approx(4)


def test_the_fastest_that_is_not_beaten_is_taken(tmp_path):
    fp32, slow = timed(tmp_path, "fp32", 1, 1), timed(tmp_path, "slow", 0.8, 0.8)
    fast, beaten = timed(tmp_path, "fast", 0.5, 0.5), timed(tmp_path, "beaten", 0.4, 0.4)
    assert best_of([fp32, slow, fast, beaten], {"beaten": "fast"}) == [fp32, fast]


def test_what_may_be_noise_is_not_taken(tmp_path):
    fp32 = timed(tmp_path, "fp32", 1, 1)
    assert best_of([fp32, timed(tmp_path, "int8", 0.95, 0.95)], {}) == [fp32]
    assert len(best_of([fp32, timed(tmp_path, "int8", 0.95, 0.85)], {})) == 2


def test_nothing_faster_is_nothing_taken(tmp_path):
    fp32, slow = timed(tmp_path, "fp32", 1, 1), timed(tmp_path, "slow", 1.5, 1.5)
    assert best_of([fp32, slow], {}) == [fp32]
