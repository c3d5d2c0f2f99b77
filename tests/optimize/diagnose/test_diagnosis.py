"""Real models, measured and explained. Machines are noisy: what is decided from times is decided from facts elsewhere
(test_findings); here the facts must be plausible, and what does not hang on times must be found.
"""

from itertools import pairwise
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from mlserve.engines.engine import EngineSettings
from mlserve.errors import DataFileError, EngineError, ModelFileError, StoreError, UsageError
from mlserve.model.artifact import MODEL_FILE, Artifact, Manifest
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.optimize.diagnose.diagnosis import Question, diagnose
from mlserve.optimize.diagnose.facts import ThreadTiming
from mlserve.optimize.diagnose.findings import find
from mlserve.optimize.diagnose.onnx_profile import profile_onnx
from mlserve.optimize.diagnose.profile import take_profiles
from mlserve.optimize.diagnose.subject import find_model, find_reference


def ask(ref, folder, **rest):
    steps = []
    found = diagnose(Question(ref=str(ref), store=folder / "store", **rest), steps.append)
    assert steps
    return found


def publish(folder, variant, specs, source, parent="", **manifest):
    store = Store(folder / "store")
    with store.staging() as staging:
        made = staging / variant
        made.mkdir()
        (made / MODEL_FILE).write_bytes(source.read_bytes())
        inputs, outputs = specs
        return store.add(
            Artifact(made, Manifest(variant=variant, inputs=inputs, outputs=outputs, **manifest)), "net", parent
        )


CNN = ((TensorSpec("x", "float32", ("batch", 3, 32, 32)),), (TensorSpec("y", "float32", ("batch", 10)),))


def mlp_specs(wide, narrow):
    return (TensorSpec("x", "float32", ("batch", wide)),), (TensorSpec("y", "float32", ("batch", narrow)),)


def test_dynamic_int8_of_a_convolution_net_is_explained(nets, tmp_path):
    float32 = nets.cnn(tmp_path / "cnn.onnx")
    publish(tmp_path, "fp32", CNN, float32)
    publish(tmp_path, "int8", CNN, nets.dynamic_int8(float32, tmp_path / "int8.onnx"), parent="net@1")
    found = ask("net@2", tmp_path, threads=1, batch_rows=(2,))
    facts = found.facts
    assert facts.against.ref == "net@1"
    assert facts.subject.source == str(tmp_path / "store" / "net" / "1" / MODEL_FILE)
    (profile,) = facts.profiles
    assert profile.flops == 2 * 2 * (32 * 32 * (16 * 3 * 9 + 32 * 16 * 9) + 32 * 10)
    finding = next(finding for finding in found.findings if finding.name == "dynamic-quantization-of-convolutions")
    assert "ConvInteger" in finding.seen
    # What the times of a busy machine may hide: against float32 in a third of the time it is explained as well.
    (timing,) = facts.timings
    slower = msgspec.structs.replace(facts, timings=(msgspec.structs.replace(timing, against_p50_s=timing.p50_s / 3),))
    why = next(finding.why for finding in find(slower) if finding.name == "int8-slower-than-fp32")
    assert "ConvInteger" in why


def test_float32_of_the_same_net_is_not_accused_of_dynamic_quantization(nets, made, tmp_path):
    """The negative control."""
    inputs = {"x": np.ones((8, 3, 32, 32), np.float32)}
    profiles, structure = profile_onnx(nets.cnn(tmp_path / "cnn.onnx"), EngineSettings(), {8: inputs})
    facts = made.facts(profiles=profiles, structure=structure, timings=(made.timing(8),))
    assert "dynamic-quantization-of-convolutions" not in [finding.name for finding in find(facts)]


def test_tiny_int8_products_are_explained_and_large_ones_are_not_accused(nets, tmp_path):
    explained = {}
    for name, sizes, ratio in (("tiny", (16, 16, 16, 16), 0.5), ("large", (2048, 2048, 2048), 3.0)):
        home = tmp_path / name
        home.mkdir()
        float32 = nets.mlp(home / "mlp.onnx", sizes)
        specs = mlp_specs(sizes[0], sizes[-1])
        publish(home, "fp32", specs, float32)
        publish(home, "int8", specs, nets.dynamic_int8(float32, home / "int8.onnx"), parent="net@1")
        facts = ask("net@2", home, threads=1, batch_rows=(1,)).facts
        work = sum(wide * narrow for wide, narrow in pairwise(sizes))
        assert facts.profiles[0].flops == 2 * work
        assert all(timing.against_p50_s > 0 for timing in facts.timings)
        # The verdict is on the facts as they are where nothing else runs: tiny products slower, large ones quicker.
        calm = tuple(msgspec.structs.replace(each, against_p50_s=each.p50_s * ratio) for each in facts.timings)
        found = find(msgspec.structs.replace(facts, timings=calm))
        explained[name] = {finding.name: finding for finding in found}
    assert "so small" in explained["tiny"]["int8-slower-than-fp32"].why
    assert "int8-slower-than-fp32" not in explained["large"]
    assert "too-small-to-matter" in explained["tiny"]
    assert "too-small-to-matter" not in explained["large"]


def test_a_device_that_is_not_there_is_said_first_with_the_reason(nets, tmp_path):
    from mlserve.engines.onnx_providers import loadable_providers

    fault = loadable_providers().get("CUDAExecutionProvider", "built without it")
    if not fault:
        pytest.skip("CUDA loads here")
    found = ask(nets.mlp(tmp_path / "mlp.onnx"), tmp_path, device="cuda", batch_rows=(1,))
    assert found.findings[0].name == "stuck-on-the-cpu"
    assert fault in found.findings[0].seen
    assert (found.facts.conditions.device_asked, found.facts.conditions.device) == ("cuda", "cpu")


@pytest.fixture(scope="module")
def both(nets, tmp_path_factory):
    """A float32 file and its int8 file, each asked about against the other: the first with more threads than cores, the
    second with five rows of data. Every question measures the machine anew, which takes a second.
    """
    folder = tmp_path_factory.mktemp("both")
    float32 = nets.mlp(folder / "float32.onnx")
    int8 = nets.dynamic_int8(float32, folder / "int8.onnx")
    data = folder / "rows.npz"
    np.savez(data, x=np.ones((5, 64), np.float32))
    return SimpleNamespace(
        float32=float32,
        int8=int8,
        data=data,
        about_float32=ask(float32, folder, against=str(int8), threads=16, batch_rows=(1,)).facts,
        about_int8=ask(int8, folder, against=str(float32), data=data, batch_rows=(1, 4, 32)).facts,
    )


def test_threads_beyond_the_cores_are_measured_and_told(both):
    facts = both.about_float32
    counts = [timing.threads for timing in facts.threads]
    assert {1, facts.machine.cores, 2 * facts.machine.cores, 16} <= set(counts)
    assert all(timing.p50_s > 0 for timing in facts.threads)
    cores = facts.machine.cores
    calm = tuple(ThreadTiming(count, 1e-3 * (1 if count <= cores else count)) for count in counts)
    too_many = [
        finding for finding in find(msgspec.structs.replace(facts, threads=calm)) if finding.name == "too-many-threads"
    ]
    assert bool(too_many) == (cores < 16)


def test_the_parent_is_compared_with_and_else_the_first_version_and_else_nothing(nets, tmp_path):
    specs = mlp_specs(64, 16)
    first = nets.mlp(tmp_path / "a.onnx")
    publish(tmp_path, "fp32", specs, first)
    publish(tmp_path, "other", specs, nets.dynamic_int8(first, tmp_path / "b.onnx"))
    publish(tmp_path, "third", specs, nets.mlp(tmp_path / "c.onnx", (64, 32, 16)), parent="net@2")
    publish(tmp_path, "alien", CNN, nets.cnn(tmp_path / "d.onnx"))
    store = Store(tmp_path / "store")
    found = [find_reference(find_model(f"net@{version}", store), "", store) for version in (1, 2, 3, 4)]
    assert [reference and reference.ref for reference in found] == [None, "net@1", "net@2", None]
    assert find_reference(find_model("net@3", store), "net@1", store).ref == "net@1"
    with pytest.raises(UsageError, match="takes"):
        find_reference(find_model("net@1", store), "net@4", store)


def test_a_fixed_number_of_rows_is_run_as_it_is(nets, tmp_path):
    found = ask(nets.mlp(tmp_path / "fixed.onnx", rows=4), tmp_path)
    assert [profile.batch_rows for profile in found.facts.profiles] == [4]
    assert "fixed-batch-dimension" in [finding.name for finding in found.findings]


def test_real_rows_are_run_and_batches_larger_than_the_data_are_not(both, tmp_path):
    assert [timing.batch_rows for timing in both.about_int8.timings] == [1, 4]
    assert "rows.npz" in both.about_int8.conditions.rows_source
    with pytest.raises(UsageError, match="5 rows"):
        ask(both.int8, tmp_path, data=both.data, batch_rows=(32,))


def test_what_is_asked_wrongly_is_told(nets, tmp_path):
    mlp = nets.mlp(tmp_path / "mlp.onnx")
    other = nets.cnn(tmp_path / "cnn.onnx")
    junk = tmp_path / "junk.onnx"
    junk.write_text("junk")
    for expected, ref, rest in (
        (StoreError, "unknown", {}),
        (UsageError, tmp_path / "missing.onnx", {}),
        (ModelFileError, junk, {}),
        (UsageError, mlp, {"device": "tpu"}),
        (UsageError, mlp, {"against": str(other)}),
        (DataFileError, mlp, {"data": tmp_path / "missing.npz"}),
    ):
        with pytest.raises(expected):
            ask(ref, tmp_path, **rest)


def test_a_model_that_refuses_made_up_rows_names_the_way_to_give_real_ones(nets, tmp_path):
    nodes = [("Add", ["x", "zero"], ["z"]), ("Gather", ["table", "z"], ["y"])]
    table = {"table": np.ones((3, 2), np.float32)}
    path = nets.save(
        tmp_path / "g.onnx",
        nodes,
        [("x", "i", ["batch", 4])],
        [("y", "f", ["batch", 4, 2])],
        table | {"zero": np.int64(0)},
    )
    with pytest.raises(EngineError, match="--data"):
        ask(path, tmp_path)


def test_an_engine_without_a_profiler_is_told(nets, tmp_path):
    model = find_model(str(nets.mlp(tmp_path / "mlp.onnx")), Store(tmp_path))
    with pytest.raises(EngineError, match="'abacus', which has no profiler"):
        take_profiles(msgspec.structs.replace(model, engine="abacus"), EngineSettings(), {})


def test_other_variants_are_made_of_the_float_model_whichever_is_asked_about(both):
    for facts, against in ((both.about_float32, both.int8), (both.about_int8, both.float32)):
        assert facts.subject.source == str(both.float32)
        assert facts.against.ref == str(against)


def test_a_version_made_for_openvino_is_diagnosed_too(nets, tmp_path):
    pytest.importorskip("openvino")
    path = nets.cnn(tmp_path / "cnn.onnx")
    publish(tmp_path, "fp32", CNN, path)
    publish(tmp_path, "openvino", CNN, path, parent="net@1", engine="openvino")
    found = ask("net@2", tmp_path, threads=1, batch_rows=(2,))
    (table,) = found.operators
    assert "Convolution" in [row.operator for row in table.operators]
    assert found.facts.structure is None
    assert found.facts.profiles[0].flops == 2 * 2 * (32 * 32 * (16 * 3 * 9 + 32 * 16 * 9) + 32 * 10)
