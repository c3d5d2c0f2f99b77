"""What a search may choose from: versions that keep their accuracy, and settings that fit the machine."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import StoreError, UsageError
from mlserve.model.artifact import Accuracy, Artifact, Manifest, Metrics, Step
from mlserve.model.store import Store
from mlserve.model.tensors import TensorSpec
from mlserve.tuning.choosing.aim import Aim
from mlserve.tuning.choosing.space import MOST_SETTINGS, Machinery, layouts, settings_of, versions_for
from mlserve.tuning.evidence import Objective

IMPORTED, QUANTIZED = (Step("import"),), (Step("import"), Step("fuse"), Step("quantize"))


def accuracy(loss, high):
    return Accuracy("accuracy", 0.9 - loss, loss, 1000, "rows.npz", "fp32", loss_low=0.0, loss_high=high)


@pytest.fixture
def store(tmp_path, tiny_onnx):
    """Publishes versions of `tiny`: (variant, accuracy or None, lineage), ..."""

    def publish(*versions, **more):
        made = Store(tmp_path / "store")
        for number, (variant, found, lineage) in enumerate(versions):
            with made.staging() as folder:
                directory = folder / "1"
                directory.mkdir()
                (directory / "model.onnx").write_bytes(tiny_onnx.read_bytes())
                (directory / "notes.txt").write_text(str(number))
                manifest = Manifest(
                    variant=variant,
                    inputs=(TensorSpec("x", "float32", ("batch", 30)),),
                    outputs=(TensorSpec("scores", "float32", ("batch", 2)),),
                    lineage=lineage,
                    metrics=Metrics(accuracy=found),
                    **more,
                )
                made.add(Artifact(directory, manifest), "tiny")
        return made

    return publish


@pytest.fixture
def aim(objective):
    return Aim(objective=objective, max_accuracy_loss=0.01)


def test_versions_that_may_lose_too_much_or_were_never_judged_are_left_out_with_the_reason(store, aim):
    made = store(
        ("fp32", accuracy(0.0, 0.0), IMPORTED),
        ("int8", accuracy(0.002, 0.005), QUANTIZED),
        ("int4", accuracy(0.05, 0.07), QUANTIZED),
        ("mystery", None, QUANTIZED),
    )
    kept, left_out = versions_for(made, ["tiny"], aim, ())
    assert [one.manifest.variant for one in kept] == ["fp32", "int8"]
    assert set(left_out) == {"tiny@3 (int4)", "tiny@4 (mystery)"}
    assert "never measured" in left_out["tiny@4 (mystery)"]
    assert "0.05" in left_out["tiny@3 (int4)"] or "5" in left_out["tiny@3 (int4)"]


def test_of_a_variant_the_newest_counts_and_a_version_can_be_named(store, aim):
    made = store(("fp32", None, IMPORTED), ("fp32", None, IMPORTED))
    kept, left_out = versions_for(made, ["tiny"], aim, ())
    assert [one.ref for one in kept] == ["tiny@2"]
    assert left_out == {"tiny@1 (fp32)": "tiny@2 is a newer one"}
    assert [one.ref for one in versions_for(made, ["tiny@1"], aim, ())[0]] == ["tiny@1"]


def test_what_cannot_be_chosen_from_is_refused(store, aim, objective):
    made = store(("fp32", None, IMPORTED))
    with pytest.raises(UsageError, match=r"--variants int8: tiny has fp32"):
        versions_for(made, ["tiny"], aim, ("int8",))
    with pytest.raises(StoreError, match="other"):
        versions_for(made, ["other"], aim, ())
    small = Aim(objective=objective, max_memory_bytes=100)
    with pytest.raises(UsageError, match=r"no version of tiny may be served: .* larger than --max-memory"):
        versions_for(made, ["tiny"], small, ())


def test_another_engine_is_tried_only_where_the_accuracy_stays_as_it_was_judged(store, aim):
    made = store(("fp32", None, IMPORTED), ("int8", accuracy(0.0, 0.0), QUANTIZED))
    kept, _ = versions_for(made, ["tiny"], aim, ())
    space = settings_of(kept, ("rest",), aim, Machinery(cores=1, engines=("openvino",)))
    engines = {(one.variant, one.options.engine) for one in space.settings}
    assert engines == {("fp32", "onnxruntime"), ("fp32", "openvino"), ("int8", "onnxruntime")}


def test_delays_leave_half_the_limit_and_rows_that_depend_on_each_other_are_not_batched(store, aim, objective):
    one_way = Machinery(cores=1)
    kept, _ = versions_for(store(("fp32", None, IMPORTED), rows_independent=False), ["tiny"], aim, ())
    assert {one.options.max_batch_rows for one in settings_of(kept, ("rest",), aim, one_way).settings} == {1}
    tight = Aim(objective=type(objective)(percentile=0.99, limit_s=0.003, max_errors=0.0))
    kept, _ = versions_for(store(("int8", None, IMPORTED)), ["tiny@2"], aim, ())
    delays = {one.options.max_delay_ms for one in settings_of(kept, ("rest",), tight, one_way).settings}
    assert delays == {0.0, 1.0}


@given(st.integers(1, 200))
def test_layouts_never_take_more_cores_than_there_are_and_some_take_all(cores):
    found = layouts(cores)
    assert all(workers * threads <= cores for workers, threads in found)
    assert (1, cores) in found
    assert (cores, 1) in found
    assert set(layouts(cores, few=True)) <= set(found)


def test_a_large_machine_does_not_make_more_settings_than_can_be_foretold(store, aim):
    kept, _ = versions_for(store(*((f"v{number}", None, IMPORTED) for number in range(4))), ["tiny"], aim, ())
    large = Machinery(cores=63, devices=("cpu", "cuda"), engines=("openvino",))
    space = settings_of(kept, ("rest", "rest-binary", "grpc"), aim, large)
    assert len(space.settings) <= MOST_SETTINGS
    assert {one.variant for one in space.settings} == {"v0", "v1", "v2", "v3"}
    assert {one.options.device for one in space.settings} == {"cpu", "cuda"}


def test_settings_that_cost_too_much_are_left_out_before_anything_is_measured(store, aim, objective):
    kept, _ = versions_for(store(("fp32", None, IMPORTED)), ["tiny"], aim, ())
    machinery = Machinery(cores=3, machine_cores=4, devices=("cpu", "cuda"))
    every = settings_of(kept, ("rest",), aim, machinery).settings
    capped = Aim(objective=objective, price_per_h=1.2, max_cost_per_h=0.6)
    space = settings_of(kept, ("rest",), capped, machinery)
    assert {one.options.device for one in space.settings} == {"cpu"}
    assert {one.options.workers * one.options.threads for one in space.settings} == {1, 2}
    dear = len(every) - len(space.settings)
    assert space.left_out == {f"{dear} settings": "cost more than 0.6/h (--max-cost)"}
    poor = msgspec.structs.replace(capped, max_cost_per_h=0.2)
    with pytest.raises(
        UsageError, match=r"--max-cost 0\.2/h: every setting costs more, the cheapest 0\.3/h of the 1\.2/h"
    ):
        settings_of(kept, ("rest",), poor, machinery)


@given(price=st.floats(0.01, 1e3), cores=st.integers(1, 64), taken=st.integers(1, 64))
def test_what_costs_just_the_most_it_may_is_kept(price, cores, taken):
    """Whatever is lost where a price is divided, and where a user wrote the quotient in decimals."""
    taken = min(taken, cores)
    wanted = Objective(percentile=0.99, limit_s=0.02, max_errors=0.001)
    capped = Aim(objective=wanted, price_per_h=price, max_cost_per_h=taken * price / cores)
    version = Artifact(Path("x"), Manifest(name="m", version=1, variant="fp32", inputs=(), outputs=()))
    found = settings_of([version], ("rest",), capped, Machinery(cores=cores)).settings
    assert max(one.options.workers * one.options.threads for one in found) <= taken
    assert any(one.options.workers * one.options.threads == 1 << taken.bit_length() - 1 for one in found)
