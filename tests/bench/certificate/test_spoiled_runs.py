"""Ten ways to spoil a run, each on made figures; benchmarks/spoiled.py does the same to real servers."""

import msgspec
import numpy as np
import pytest

from mlserve.bench.measuring.warm_up import WarmUp
from mlserve.runs.resources import ProcessUse

HOG = ProcessUse(role="other", pid=99, name="stress", cpu=0.9, rss_max_bytes=0)


def test_a_clean_run_is_valid_and_every_check_was_made(clean):
    assert clean.faults == []
    assert clean.certificate().valid
    assert list(clean.checks) == [
        "schedule kept",
        "rate reached",
        "answered",
        "enough samples",
        "warm-up",
        "steady",
        "generator on time",
        "generator CPU",
        "calibration rate",
        "calibration latency",
        "own cores",
        "other work",
        "steal",
        "clock",
        "execution provider",
        "precision",
        "server counters",
        "machine known",
    ]


@pytest.mark.parametrize(
    ("cpu", "lag_s", "faults"), [(0.79, 0.0009, []), (0.81, 0.0011, ["generator on time", "generator CPU"])]
)
def test_an_overloaded_generator(clean, make_samples, cpu, lag_s, faults):
    assert clean.with_(samples=make_samples(lag_s=lag_s), generator_cpus=(0.2, cpu)).faults == faults


@pytest.mark.parametrize(
    ("server", "used", "faults"),
    [
        ((0,), 0.5, []),
        ((0, 1), 0.09, []),
        ((1,), 0.01, ["own cores"]),
        ((0, 1), 0.11, ["own cores"]),
        ((), None, ["own cores"]),
    ],
)
def test_a_shared_core(clean, server, used, faults):
    processes = (
        ProcessUse(role="server", pid=10, cpu=0.4, rss_max_bytes=1, cpus=server),
        ProcessUse(role="generator", pid=11, cpu=0.3, rss_max_bytes=1, cpus=(1,)),
    )
    assert clean.with_(resources={"processes": processes, "shared_cpu": used}).faults == faults


@pytest.mark.parametrize(
    ("cold", "end_s", "over", "faults"),
    [
        (0, 1.5, True, []),
        (9, 1.09, True, []),
        (11, 1.11, True, ["warm-up"]),  # more than one in a hundred
        (0, 0.5, False, ["warm-up"]),
        (11, 1.0, True, []),
    ],
)
def test_a_cold_start_included(clean, make_samples, cold, end_s, over, faults):
    """The first `cold` requests of a thousand take 20 ms instead of 10, and the start-up is said to end at `end_s`."""
    samples = make_samples(latency_s=np.where(np.arange(1000) < cold, 0.020, 0.010))
    found = WarmUp(end_s=end_s, found=True, over=over, reason="slower than later ones")
    run = clean.with_(samples=samples, warm_up=found)
    assert run.faults == faults
    assert run.checks["warm-up"].found.startswith("slower than later ones; the first 1.00 s were cut")


@pytest.mark.parametrize(("slower_s", "faults"), [(0.00009, []), (0.0002, ["warm-up"])])
def test_a_cold_start_too_small_to_matter(clean, make_samples, slower_s, faults):
    samples = make_samples(latency_s=np.where(np.arange(1000) < 100, 0.0005 + slower_s, 0.0005))
    found = WarmUp(end_s=2.0, found=True, over=True, reason="slower than later ones")
    assert clean.with_(samples=samples, warm_up=found).faults == faults


def test_wrong_answers(clean, make_samples, with_status):
    spoiled = clean.with_(
        samples=make_samples(status=with_status(1, "wrong answer")), plan={"check_answers": True}, ok=1099, failed=1
    )
    assert spoiled.faults == ["right answers"]
    assert clean.with_(plan={"check_answers": True}).faults == []
    assert "right answers" not in clean.checks


@pytest.mark.parametrize(("needed", "faults"), [(1000, []), (1001, ["enough samples"])])
def test_too_few_samples(clean, make_samples, needed, faults):
    # the smallest n with q^n <= 0.01
    percentile = 0.01 ** (1 / (needed - 0.5))
    assert clean.with_(plan={"percentile": percentile}).faults == faults


@pytest.mark.parametrize(
    ("device", "provider", "faults"),
    [
        ("cuda", "CUDAExecutionProvider", []),
        ("cuda:1", "torch cuda:1", []),
        ("tensorrt", "TensorrtExecutionProvider", []),
        ("gpu", "openvino GPU.0", []),
        ("cpu", "openvino CPU", []),
        ("cuda", "CPUExecutionProvider", ["execution provider"]),
        ("tensorrt:0", "CUDAExecutionProvider", ["execution provider"]),
        ("gpu", "openvino CPU", ["execution provider"]),
        ("cpu", "CUDAExecutionProvider", ["execution provider"]),
    ],
)
def test_a_wrong_provider(clean, device, provider, faults):
    assert clean.with_(device=device, provider=provider).faults == faults


@pytest.mark.parametrize(
    ("variant", "compute_type", "precision", "provider", "faults"),
    [
        ("int8", "", "int8", "server", []),
        ("int8", "", "float32", "CPUExecutionProvider", ["precision"]),
        ("openvino-int8", "", "fp32", "openvino CPU", []),
        ("openvino-int8-bf16", "", "bf16", "openvino CPU", []),
        ("openvino-int8-bf16", "", "fp32", "openvino CPU", ["precision"]),
        ("fp32", "", "bf16", "openvino CPU", ["precision"]),
        ("mine", "bf16", "bfloat16", "openvino CPU", []),
        ("mine", "bf16", "f32", "openvino CPU", ["precision"]),
    ],
)
def test_a_wrong_precision(clean, variant, compute_type, precision, provider, faults):
    run = clean.with_(variant=variant, compute_type=compute_type, precision=precision, provider=provider)
    assert run.faults == faults


@pytest.mark.parametrize(
    ("step_s", "rate", "faults"),
    [(0.004, 0.0, []), (0.006, 0.0, ["clock"]), (0.0, 0.001, []), (0.0, -0.01, ["clock"]), (0.0, None, [])],
)
def test_a_clock_step(clean, step_s, rate, faults):
    assert clean.with_(resources={"clock_step_s": step_s, "clock_rate": rate}).faults == faults


@pytest.mark.parametrize(
    ("count", "allowed", "faults"), [(10, 0.01, []), (11, 0.01, ["answered"]), (11, 0.02, []), (1, 0.0, ["answered"])]
)
def test_server_errors(clean, make_samples, with_status, count, allowed, faults):
    samples = make_samples(status=with_status(count, "HTTP 503"))
    run = clean.with_(
        samples=samples, plan={"max_errors": allowed}, ok=1100 - count, failed=count, counted_ok=1100 - count
    )
    assert run.faults == faults
    assert "HTTP 503" in run.checks["answered"].found


@pytest.mark.parametrize(
    ("counted", "failed", "faults"),
    [
        (1100, 0, []),
        (1099, 0, ["server counters"]),
        (1101, 0, ["server counters"]),
        (1103, 3, []),
        (1104, 3, ["server counters"]),
        (1097, 3, ["server counters"]),
    ],
)
def test_a_counter_mismatch(clean, counted, failed, faults):
    assert clean.with_(counted_ok=counted, failed=failed).faults == faults


def test_a_rate_that_was_not_reached(clean, make_samples):
    """Each request takes 10.4 ms, or 11 ms, and one comes each 10 ms."""
    just = clean.with_(samples=make_samples(latency_s=5 + np.arange(1000) * 0.0004))
    short = clean.with_(samples=make_samples(latency_s=5 + np.arange(1000) * 0.001))
    assert just.faults == []
    assert short.faults == ["rate reached"]
    assert "90.9%" in short.checks["rate reached"].found


def test_another_process_on_the_same_cores(clean):
    spoiled = clean.with_(resources={"others_cpu": 0.9, "processes": (*clean.facts.resources.processes, HOG)})
    assert spoiled.faults == ["other work"]
    assert "stress (pid 99) 90%" in spoiled.checks["other work"].found
    # elsewhere it may do what it likes
    assert clean.with_(resources={"processes": (*clean.facts.resources.processes, HOG)}).faults == []


@pytest.mark.parametrize(("steal", "faults"), [(0.019, []), (0.021, ["steal"])])
def test_a_core_that_was_stolen(clean, steal, faults):
    assert clean.with_(resources={"steal": steal}).faults == faults


@pytest.mark.parametrize(
    ("calibration", "latency_s", "faults"),
    [
        ({"p50_s": 0.0039, "p99_s": 0.0039}, 0.020, []),
        ({"p99_s": 0.0041}, 0.020, ["calibration latency"]),
        ({"p50_s": 0.0041}, 0.020, ["calibration latency"]),
        ({"p50_s": 0.0009, "p99_s": 0.0019}, 0.001, []),
        ({"p50_s": 0.0011}, 0.001, ["calibration latency"]),
        ({"p99_s": 0.0021}, 0.001, ["calibration latency"]),
        ({"p99_s": 0.5, "requests": 300}, 0.010, []),  # too few for a p99
        ({"achieved_per_s": 88.0}, 0.010, []),  # 500 arrivals scatter that much
        ({"achieved_per_s": 80.0}, 0.010, ["calibration rate"]),
    ],
)
def test_a_null_server_that_is_no_better(clean, make_samples, calibration, latency_s, faults):
    found = msgspec.structs.replace(clean.facts.calibration, **calibration)
    assert clean.with_(samples=make_samples(latency_s=latency_s), calibration=found).faults == faults


def test_a_machine_that_nobody_knows(clean):
    nameless = msgspec.structs.replace(clean.facts.machine, cpu="")
    assert clean.with_(machine=nameless).faults == ["machine known"]
    assert clean.with_(sha256="").faults == ["machine known"]
    # a server of somebody else's names no file, whatever people call it; nor does a bare file of ours
    assert clean.with_(sha256="", device="", variant="theirs").faults == []
    assert clean.with_(sha256="", variant="").faults == []
