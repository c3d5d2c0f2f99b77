"""Every finding is decided from facts alone; each comes with facts that look alike and must not bring it up."""

import shlex

import pytest

from mlserve.model.tensors import TensorSpec
from mlserve.optimize.diagnose.facts import OutputOnly, Pattern, Peaks, ThreadTiming
from mlserve.optimize.diagnose.findings import find
from mlserve.runs.machine import Gpu

BIG = {"flops": 80_000_000, "moved_bytes": 1_000_000}  # 0.8 ms of float32 at the made machine's peak, 0.2 ms of int8
SMALL = {"flops": 1_000, "moved_bytes": 1_000}
GPU = (Gpu("H200", 140 << 30, "570"),)


def names(facts):
    return [finding.name for finding in find(facts)]


def one(facts, name, understood):
    """The finding `name`, after what holds of all findings was checked."""
    findings = find(facts)
    assert [finding.saves_at_most for finding in findings] == sorted(
        (finding.saves_at_most for finding in findings), reverse=True
    )
    for finding in findings:
        assert 0 <= finding.saves_at_most <= 1
        assert finding.title
        assert finding.seen
        assert finding.why
        understood(finding.commands)
    return next(finding for finding in findings if finding.name == name)


# int8 slower than float32


def small_int8(made, **changes):
    """Tiny products with their inputs quantized anew each time, against float32 in half the time."""
    operations = [
        *(made.operation("MatMulIntegerToFloat", 20, precision="int8", **SMALL) for _ in range(4)),
        *(made.operation("DynamicQuantizeLinear", 15, precision="uint8") for _ in range(4)),
        made.operation("Add", 10),
    ]
    timings = (made.timing(p50_us=150, against_us=75),)
    return made.facts(operations, **{"timings": timings, "against": made.against()} | changes)


def test_an_int8_model_slower_than_float32_is_explained_with_numbers(made, understood):
    finding = one(small_int8(made), "int8-slower-than-fp32", understood)
    assert "150 us" in finding.seen
    assert "75.0 us" in finding.seen
    assert "2.00x" in finding.seen
    assert "40% of the time only turns numbers into int8 and back" in finding.why
    assert "so small" in finding.why
    assert "mlserve serve net@1" in finding.commands
    assert finding.saves_at_most == pytest.approx(0.5)


def test_an_int8_model_that_is_faster_than_float32_is_not_accused(made):
    """The negative control: large products, three times as quick."""
    operations = [made.operation("DynamicQuantizeMatMul", 250, precision="int8", **BIG)]
    facts = made.facts(operations, timings=(made.timing(p50_us=300, against_us=900),), against=made.against())
    assert names(facts) == []


def test_a_float_model_slower_than_its_parent_is_not_called_a_slow_int8_model(made):
    facts = made.facts(
        [made.operation("MatMul", 900, **SMALL)],
        timings=(made.timing(p50_us=900, against_us=300),),
        against=made.against(),
    )
    assert "int8-slower-than-fp32" not in names(facts)


def test_noise_is_no_slowness(made):
    assert "int8-slower-than-fp32" not in names(small_int8(made, timings=(made.timing(p50_us=103, against_us=100),)))


def test_int8_that_is_slower_only_alone_is_to_be_batched(made, understood):
    alone = made.profile([made.operation("MatMulIntegerToFloat", 200, precision="int8", **SMALL)], 1)
    together = made.profile([made.operation("MatMulIntegerToFloat", 800, precision="int8", **BIG)], 32)
    timings = (made.timing(1, 200, 100), made.timing(32, 900, 1800))
    facts = made.facts(profiles=(alone, together), timings=timings, against=made.against())
    finding = one(facts, "int8-slower-than-fp32", understood)
    assert finding.batch_rows == 1
    assert finding.commands[0] == "mlserve serve net@2 --max-batch-rows 32 --max-delay-ms 1"


def test_little_work_in_int8_is_a_reason_and_so_is_a_cpu_without_instructions(made, understood):
    operations = [
        made.operation("MatMulIntegerToFloat", 100, precision="int8", flops=10_000_000),
        made.operation("MatMul", 900, flops=90_000_000),
    ]
    facts = small_int8(
        made, profiles=(made.profile(operations),), machine=made.machine(cpu_flags=("avx2",), system="Linux 6 x86_64")
    )
    why = one(facts, "int8-slower-than-fp32", understood).why
    assert "only 10% of the work is in int8" in why
    assert "no instructions for int8" in why
    assert "no-int8-instructions" in names(facts)


def test_nothing_is_claimed_of_instructions_where_the_system_does_not_tell(made):
    facts = small_int8(made, machine=made.machine(cpu_flags=(), system="Darwin 24 arm64"))
    assert "no-int8-instructions" not in names(facts)
    assert "no-int8-instructions" not in names(small_int8(made))


def test_narrow_weights_alone_are_told_from_int8_arithmetic(made, understood):
    operations = [made.operation("MatMulNBits", 900, precision="int4", **BIG)]
    facts = made.facts(operations, timings=(made.timing(p50_us=900, against_us=500),), against=made.against())
    assert "made float again" in one(facts, "int8-slower-than-fp32", understood).why


# convolutions and dynamic quantization


def test_dynamic_int8_convolutions_are_explained(made, understood):
    operations = [
        made.operation("ConvInteger", 700, precision="int8", **BIG),
        made.operation("DynamicQuantizeLinear", 100, precision="uint8"),
        made.operation("Relu", 200),
    ]
    finding = one(made.facts(operations), "dynamic-quantization-of-convolutions", understood)
    assert "80% of the time goes into ConvInteger" in finding.seen
    assert any("cpu-int8-static.toml --data ROWS.npz" in command for command in finding.commands)
    assert finding.saves_at_most == pytest.approx(0.8)


def test_convolutions_that_dynamic_quantization_left_in_float_are_explained(made, understood):
    operations = [
        made.operation("Conv", 900, **BIG),
        made.operation("DynamicQuantizeMatMul", 100, precision="int8", **SMALL),
    ]
    finding = one(made.facts(operations), "dynamic-quantization-of-convolutions", understood)
    assert "stayed in float" in finding.seen


@pytest.mark.parametrize("operator", ["QLinearConv", "Conv"])
def test_static_int8_and_float_convolutions_are_not_called_dynamic(made, operator):
    """The negative control."""
    precision = "int8" if operator == "QLinearConv" else "fp32"
    operations = [made.operation(operator, 900, precision=precision, **BIG), made.operation("QuantizeLinear", 10)]
    assert "dynamic-quantization-of-convolutions" not in names(made.facts(operations))


def test_the_users_rows_and_store_are_in_the_commands(made, understood):
    operations = [made.operation("ConvInteger", 700, precision="int8", **BIG)]
    facts = made.facts(operations, subject=made.subject(data="my rows.npz", store="/models"))
    (command, *_) = one(facts, "dynamic-quantization-of-convolutions", understood).commands
    assert command == (
        "mlserve optimize store/net/1/model.onnx --name net --recipe recipes/cpu-int8-static.toml "
        "--data 'my rows.npz' --store /models"
    )


# conversions and precision


def test_costly_conversions_are_told_for_int8_models_only(made, understood):
    casting = [made.operation("DequantizeLinear", 400), made.operation("QLinearMatMul", 600, precision="int8", **BIG)]
    finding = one(made.facts(casting), "costly-conversions", understood)
    assert finding.saves_at_most == pytest.approx(0.4)
    floats = [made.operation("Cast", 400), made.operation("MatMul", 600, **SMALL)]
    assert "costly-conversions" not in names(made.facts(floats))


def test_fp16_on_the_cpu_is_told_and_on_a_gpu_it_is_not(made, understood):
    operations = [made.operation("Cast", 300, name=f"c{n}") for n in range(2)] + [
        made.operation("MatMul", 400, **SMALL)
    ]
    fp16 = made.structure(weights_precision="fp16")
    finding = one(made.facts(operations, structure=fp16), "fp16-on-the-cpu", understood)
    assert "2 Casts take 60%" in finding.seen
    on_gpu = made.conditions(device_asked="cuda", device="cuda")
    assert "fp16-on-the-cpu" not in names(made.facts(operations, structure=fp16, conditions=on_gpu))
    assert "fp16-on-the-cpu" not in names(made.facts(operations))


def test_large_float_products_on_a_machine_good_at_int8_are_told(made, understood):
    operations = [made.operation("MatMul", 1000, **BIG)]
    finding = one(made.facts(operations), "float32-where-int8-is-quicker", understood)
    assert finding.saves_at_most == pytest.approx(0.75)
    assert "mlserve optimize store/net/1/model.onnx --name net --int8" in finding.commands
    no_better = Peaks(100e9, 100e9, 10e9)
    assert names(made.facts(operations, peaks=no_better)) == []
    assert names(made.facts(operations, peaks=Peaks(100e9, None, 10e9))) == []


# device


def test_a_model_stuck_on_the_cpu_comes_first_and_says_why(made, understood):
    conditions = made.conditions(device_asked="cuda", device_fault="CUDAExecutionProvider does not load: libcudnn.so.9")
    facts = small_int8(made, conditions=conditions)
    finding = one(facts, "stuck-on-the-cpu", understood)
    assert find(facts)[0] == finding
    assert "libcudnn.so.9" in finding.seen
    assert "mlserve doctor" in finding.commands
    assert "stuck-on-the-cpu" not in names(small_int8(made))


def test_a_gpu_that_nobody_asked_for_is_told(made, understood):
    facts = made.facts(machine=made.machine(gpus=GPU), conditions=made.conditions(cuda_fault=""))
    assert "CUDA loads" in one(facts, "unused-gpu", understood).seen
    broken = made.facts(machine=made.machine(gpus=GPU), conditions=made.conditions(cuda_fault="no libcublas"))
    finding = one(broken, "unused-gpu", understood)
    assert "no libcublas" in finding.seen
    assert finding.commands[0].startswith("pip install")
    used = made.conditions(device_asked="cuda", device="cuda", cuda_fault="")
    assert "unused-gpu" not in names(made.facts(machine=made.machine(gpus=GPU), conditions=used, peaks=None))


def test_operators_that_fell_back_to_the_cpu_are_named(made, understood):
    operations = [
        made.operation("Conv", 600, provider="CUDAExecutionProvider", **BIG),
        made.operation("MatMulInteger", 300, precision="int8"),
        made.operation("MemcpyFromHost", 100, provider="CUDAExecutionProvider"),
    ]
    on_gpu = made.conditions(device_asked="cuda", device="cuda", cuda_fault="")
    finding = one(made.facts(operations, conditions=on_gpu, peaks=None), "fallen-back-operators", understood)
    assert "1 of 3 operators ran on the CPU (MatMulInteger), with 1 copies" in finding.seen
    assert finding.saves_at_most == pytest.approx(0.4)
    assert "fallen-back-operators" not in names(made.facts(operations))


# threads


def threads(*pairs):
    return tuple(ThreadTiming(count, us / 1e6) for count, us in pairs)


def test_threads_beyond_the_cores_are_too_many(made, understood):
    facts = made.facts(conditions=made.conditions(threads=8), threads=threads((1, 1000), (2, 600), (4, 700), (8, 900)))
    finding = one(facts, "too-many-threads", understood)
    assert "with 8 threads on 2 cores" in finding.seen
    assert "beyond the cores" in finding.why
    assert finding.commands[0] == "mlserve serve net@2 --threads 2"
    assert finding.saves_at_most == pytest.approx(1 / 3)


def test_fewer_threads_that_are_quicker_are_told_even_within_the_cores(made, understood):
    facts = made.facts(threads=threads((1, 500), (2, 700), (4, 900)))
    finding = one(facts, "too-many-threads", understood)
    assert finding.commands[0] == "mlserve serve net@2 --threads 1"
    assert "beyond" not in finding.why
    assert "idle" not in finding.why
    busy = made.facts(threads=threads((1, 500), (2, 700), (4, 900)), conditions=made.conditions(load=6.0))
    assert "6.0 processes wanted the 2 cores" in one(busy, "too-many-threads", understood).why


def test_threads_that_help_are_left_alone(made):
    """The negative control."""
    assert names(made.facts(threads=threads((1, 1000), (2, 550), (4, 560)))) == []


def test_too_few_threads_and_poorly_shared_work_are_told(made, understood):
    timed = threads((1, 1000), (2, 520), (4, 600))
    one(made.facts(conditions=made.conditions(threads=1), threads=timed), "too-few-threads", understood)
    poor = made.facts(threads=threads((1, 1000), (2, 950), (4, 990)))
    finding = one(poor, "poorly-shared-work", understood)
    assert finding.commands == ("mlserve serve net@2 --threads 1 --workers 2",)
    assert finding.saves_at_most == pytest.approx(1 - (1000 / 950) / 2)


# structure


def test_tiny_operators_are_to_be_batched(made, understood):
    alone = made.profile([made.operation("Add", 8, **SMALL) for _ in range(40)], 1)
    together = made.profile([made.operation("Add", 9, **SMALL) for _ in range(40)], 32)
    timings = (made.timing(1, 320), made.timing(32, 400))
    facts = made.facts(profiles=(alone, together), timings=timings)
    finding = one(facts, "tiny-operations", understood)
    assert "40 of 40 operators" in finding.seen
    assert finding.saves_at_most == pytest.approx(1 - (400 / 32) / 320)
    unbatched = made.facts(profiles=(alone, together), timings=(made.timing(1, 320), made.timing(32, 32 * 320)))
    assert "tiny-operations" not in names(unbatched)


def test_weights_that_come_from_the_memory_are_told(made, understood):
    waiting = made.operation("MatMul", 1100, flops=2_000_000, moved_bytes=10_000_000, weight_bytes=9_900_000)
    finding = one(made.facts([waiting]), "weights-from-memory", understood)
    assert "9.90 MB of weights" in finding.seen
    assert finding.saves_at_most == pytest.approx(0.75)
    computing = made.operation("MatMul", 1100, flops=100_000_000, moved_bytes=1_000_000, weight_bytes=900_000)
    assert "weights-from-memory" not in names(made.facts([computing]))
    activations = made.operation("Add", 1100, moved_bytes=10_000_000)
    assert "weights-from-memory" not in names(made.facts([activations]))


def test_an_unfused_transformer_is_told_by_the_time_of_its_parts(made, understood):
    operations = [made.operation("Erf", 200, name="erf"), made.operation("MatMul", 800, name="product", **SMALL)]
    structure = made.structure(patterns=(Pattern("GELU", 6, ("erf", "gone")),))
    finding = one(made.facts(operations, structure=structure), "unfused-transformer", understood)
    assert "6 GELU made of 1 small operators, 20% of the time" in finding.seen
    assert "unfused-transformer" not in names(made.facts(operations))


def test_a_fixed_number_of_rows_is_told_with_the_inputs_to_export(made, understood):
    subject = made.subject(fixed_rows=1, inputs=(TensorSpec("x", "float32", (1, 3, 8, 8)),))
    finding = one(made.facts(subject=subject), "fixed-batch-dimension", understood)
    assert finding.commands == ("mlserve optimize MODEL.pt --input x:float32:batch,3,8,8",)
    assert "fixed-batch-dimension" not in names(made.facts())


def test_moving_numbers_about_is_told_from_a_share_on(made, understood):
    operations = [made.operation("Transpose", 300, name="t"), made.operation("MatMul", 700, **SMALL)]
    finding = one(made.facts(operations), "moving-operations", understood)
    assert "30% of the time is in Transpose; the slowest is t" in finding.seen
    few = [made.operation("Transpose", 100), made.operation("MatMul", 900, **SMALL)]
    assert "moving-operations" not in names(made.facts(few))


def test_an_output_with_work_of_its_own_is_told(made, understood):
    operations = [made.operation("MatMul", 700, name="a", **SMALL), made.operation("Gemm", 300, name="b", **SMALL)]
    outputs = (TensorSpec("y", "float32", ("batch", 2)), TensorSpec("pooled", "float32", ("batch", 2)))
    subject = made.subject(outputs=outputs)
    costly = made.structure(outputs_only=(OutputOnly("pooled", ("b",)),))
    finding = one(made.facts(operations, structure=costly, subject=subject), "costly-output", understood)
    assert finding.saves_at_most == pytest.approx(0.3)
    assert "['x'], ['y']" in shlex.split(finding.commands[0])[2]
    cheap = made.structure(outputs_only=(OutputOnly("pooled", ("c",)),))
    assert "costly-output" not in names(made.facts(operations, structure=cheap, subject=subject))


def test_an_old_opset_is_told_and_saves_nothing_by_itself(made, understood):
    finding = one(made.facts(structure=made.structure(opset=9)), "old-opset", understood)
    assert finding.saves_at_most == 0
    assert "old-opset" not in names(made.facts())
    assert "old-opset" not in names(made.facts(structure=None))


def test_a_model_too_small_to_matter_is_told(made, understood):
    finding = one(made.facts(timings=(made.timing(1, 20),)), "too-small-to-matter", understood)
    assert finding.commands == ("mlserve serve net@2 --workers 2",)
    assert "too-small-to-matter" not in names(made.facts(timings=(made.timing(1, 200),)))


def test_a_model_without_faults_has_no_findings(made):
    operations = [made.operation("DynamicQuantizeMatMul", 250, precision="int8", **BIG)]
    assert find(made.facts(operations, threads=threads((1, 500), (2, 260), (4, 270)))) == ()
