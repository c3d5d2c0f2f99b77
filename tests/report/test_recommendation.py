"""Which variant is recommended, and that the words say why."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlserve.report.measurement import group
from mlserve.report.recommendation import recommend


@pytest.fixture(scope="module")
def bench(made_runs):
    """Measures (model, median in ms) pairs in turn under every protocol given."""

    def measure(*models, protocols=("rest",), repeats=2, **settings):
        runs = [
            made_runs.record(
                made_runs.Load(median_ms),
                model=model,
                protocol=protocol,
                seed=10 * repeat + number,
                minute=10 * repeat + number,
                **settings,
            )
            for repeat in range(repeats)
            for protocol in protocols
            for number, (model, median_ms) in enumerate(models)
        ]
        return group(runs)

    return measure


def judged(measurements, max_accuracy_loss=0.01):
    return recommend(measurements, max_accuracy_loss=max_accuracy_loss)


def test_a_faster_variant_that_keeps_its_accuracy_is_recommended_with_the_figures(bench, made_runs):
    advice = judged(bench((made_runs.FP32, 8.0), (made_runs.INT8, 4.0), protocols=("rest", "grpc")))
    assert advice.headline == "Serve int8"
    assert (advice.variant, advice.model) == ("int8", "minilm@2")
    assert advice.next_step == "mlserve models promote minilm@2"
    assert advice.reason.startswith("Its p99 latency is 0.")
    assert advice.reason.endswith(
        "that of fp32 under both loads, its size 0.25x and its accuracy 0.69% lower (cosine)."
    )
    assert [one.finding for one in advice.comparisons] == ["faster", "faster"]
    assert all(one.difference.high < 1 for one in advice.comparisons)
    evidence = "\n".join(advice.evidence)
    assert "At 60 requests/s over REST: p99" in evidence
    assert "At 60 requests/s over gRPC: p99" in evidence
    assert "Size: 22.9 MB, 90.4 MB for fp32; 0.25x." in evidence
    assert "cosine 0.9931 on 252 rows of sentences.txt" in evidence
    assert "pair_spearman 0.9921" in evidence
    assert advice.caveats == ()


def test_no_difference_shown_keeps_fp32(bench, made_runs):
    advice = judged(bench((made_runs.FP32, 4.0), (made_runs.INT8, 4.0)))
    assert advice.headline == "Keep fp32"
    assert advice.model == "minilm@1"
    assert "int8 shows no difference beyond noise" in advice.reason


def test_a_slower_variant_keeps_fp32(bench, made_runs):
    advice = judged(bench((made_runs.FP32, 4.0), (made_runs.INT8, 8.0)))
    assert advice.headline == "Keep fp32"
    assert "int8 has the higher p99" in advice.reason


def test_a_variant_faster_under_one_load_and_slower_under_another_is_not_recommended_and_that_is_said(bench, made_runs):
    measurements = bench((made_runs.FP32, 4.0), (made_runs.INT8, 2.0)) + bench(
        (made_runs.FP32, 4.0), (made_runs.INT8, 8.0), protocols=("grpc",)
    )
    advice = judged(measurements)
    assert advice.headline == "Keep fp32"
    assert advice.reason == (
        "int8 has the lower p99 at 60 requests/s over REST, but the higher at 60 requests/s over gRPC."
    )


def test_a_variant_faster_under_one_load_and_not_told_apart_under_another_is_recommended(bench, made_runs):
    measurements = bench((made_runs.FP32, 4.0), (made_runs.INT8, 2.0)) + bench(
        (made_runs.FP32, 4.0), (made_runs.INT8, 4.0), protocols=("grpc",)
    )
    advice = judged(measurements)
    assert advice.headline == "Serve int8"
    assert "under 1 of 2 loads" in advice.reason


def test_a_variant_that_loses_too_much_accuracy_is_not_recommended_however_fast(bench, made_runs):
    measurements = bench((made_runs.FP32, 8.0), (made_runs.INT8, 2.0))
    advice = judged(measurements, max_accuracy_loss=0.005)
    assert advice.headline == "Keep fp32"
    assert advice.reason == "int8 is faster, but loses 0.69% of its cosine, more than the 0.50% allowed."
    assert judged(measurements, max_accuracy_loss=0.0069).headline == "Serve int8"


def test_a_variant_of_unknown_accuracy_is_not_recommended(bench, made_runs):
    unknown = msgspec.structs.replace(made_runs.INT8, accuracy=None)
    advice = judged(bench((made_runs.FP32, 8.0), (unknown, 2.0)))
    assert advice.headline == "Keep fp32"
    assert "has no measured accuracy" in advice.reason


def test_a_variant_that_fails_more_requests_is_not_recommended_though_its_answers_are_quick(made_runs):
    def measured(failed):
        return group(
            [
                made_runs.record(made_runs.Load(8.0)),
                made_runs.record(made_runs.Load(2.0, failed=failed), model=made_runs.INT8),
            ]
        )

    advice = judged(measured(0.05))
    assert advice.headline == "Keep fp32"
    assert "is faster, but fails" in advice.reason
    assert judged(measured(0.0)).headline == "Serve int8"


def test_the_best_of_several_is_recommended_and_the_others_are_accounted_for(bench, made_runs):
    half = msgspec.structs.replace(made_runs.INT8, version="3", variant="fp16", sha256="c" * 64)
    lossy = msgspec.structs.replace(
        made_runs.INT8,
        version="4",
        variant="int4",
        sha256="d" * 64,
        accuracy=msgspec.structs.replace(made_runs.INT8_ACCURACY, loss=0.2),
    )
    advice = judged(bench((made_runs.FP32, 8.0), (half, 6.0), (made_runs.INT8, 4.0), (lossy, 1.0)))
    assert advice.headline == "Serve int8"
    assert "int4 is faster, but loses 20.00%" in " ".join(advice.caveats)
    assert "fp16 is better than the reference too" in " ".join(advice.caveats)
    assert not any("int4" in sentence for sentence in advice.evidence)


def test_invalid_runs_are_left_out_and_named(bench, made_runs):
    late = {"checks": (made_runs.LATE,)}
    valid, invalid = (made_runs.FP32, 8.0), (made_runs.INT8, 2.0)
    none = judged(bench(valid) + bench(invalid, **late))
    assert none.headline == "No recommendation"
    assert none.variant == ""
    assert "Only minilm@1 fp32 has VALID runs" in none.reason
    assert none.caveats == (
        "2 of 4 runs are INVALID and were not compared (generator on time: minilm-int8-rest-60rps).",
    )
    assert judged(bench(valid, **late)).reason.startswith("No run is VALID")
    assert judged(bench(valid, invalid)).headline == "Serve int8"


def test_one_valid_run_of_two_is_enough_and_the_other_is_not_in_the_figures(made_runs):
    runs = [
        made_runs.record(made_runs.Load(8.0)),
        made_runs.record(made_runs.Load(4.0), model=made_runs.INT8),
        made_runs.record(made_runs.Load(400.0), model=made_runs.INT8, checks=(made_runs.LATE,), minute=1),
    ]
    advice = judged(group(runs))
    assert advice.headline == "Serve int8"
    assert any("single run" in caveat for caveat in advice.caveats)


def test_unlike_loads_are_not_compared(bench, made_runs):
    advice = judged(bench((made_runs.FP32, 8.0)) + bench((made_runs.INT8, 2.0), rate_per_s=80.0))
    assert advice.headline == "No recommendation"
    assert "same conditions as fp32" in advice.reason


def test_different_models_are_no_choice(bench, made_runs):
    other = msgspec.structs.replace(made_runs.INT8, name="resnet")
    advice = judged(bench((made_runs.FP32, 8.0), (other, 2.0)))
    assert advice.headline == "No recommendation"
    assert "different models (minilm, resnet)" in advice.reason


def test_too_few_answers_for_p99_keep_the_reference_and_say_what_it_takes(bench, made_runs):
    advice = judged(bench((made_runs.FP32, 8.0), (made_runs.INT8, 2.0), repeats=1, duration_s=4.0))
    assert advice.headline == "Keep fp32"
    assert "int8 cannot be judged: baseline: p99 needs 459 answered requests" in advice.reason


def test_without_fp32_the_first_measured_is_the_reference(bench, made_runs):
    half = msgspec.structs.replace(made_runs.INT8, version="3", variant="fp16", sha256="c" * 64)
    assert judged(bench((half, 8.0), (made_runs.INT8, 8.0))).headline == "Keep fp16"
    assert judged(bench((half, 8.0), (made_runs.INT8, 4.0))).comparisons[0].reference == "fp16"


def test_the_quicker_protocol_is_named_where_it_is(bench, made_runs):
    models = (made_runs.FP32, 8.0), (made_runs.INT8, 4.0)
    quicker = ((model, median_ms / 2) for model, median_ms in models)
    measurements = bench(*models) + bench(*quicker, protocols=("grpc",))
    alike = bench(*models, protocols=("rest", "grpc"))
    assert any(sentence.startswith("Its p99 over gRPC is 0.5") for sentence in judged(measurements).evidence)
    assert not any("over gRPC is" in sentence for sentence in judged(alike).evidence)


@settings(max_examples=15)
@given(median_ms=st.floats(0.5, 20), loss=st.floats(0, 0.05), valid=st.booleans(), failed=st.sampled_from([0.0, 0.2]))
def test_what_is_recommended_instead_of_fp32_was_valid_faster_accurate_and_answering(
    made_runs, median_ms, loss, valid, failed
):
    accuracy = msgspec.structs.replace(made_runs.INT8_ACCURACY, loss=loss)
    runs = [
        made_runs.record(made_runs.Load(5.0), duration_s=10.0),
        made_runs.record(
            made_runs.Load(median_ms, failed=failed),
            model=msgspec.structs.replace(made_runs.INT8, accuracy=accuracy),
            duration_s=10.0,
            checks=(made_runs.ENOUGH,) if valid else (made_runs.LATE,),
        ),
    ]
    advice = judged(group(runs))
    if advice.variant == "int8":
        assert valid
        assert loss <= 0.01
        assert not failed
        assert advice.comparisons[0].difference.high < 1
    if valid and loss <= 0.01 and not failed and median_ms < 4.0:
        assert advice.variant == "int8"
