"""Findings about numbers: what is computed in which precision, and what turning one into another costs."""

from mlserve.optimize.diagnose.facts import Facts, Operation, Profile, Timing
from mlserve.optimize.diagnose.finding import Finding, largest, optimize_again, percent, serve_it
from mlserve.optimize.diagnose.roofline import bound, roof_s
from mlserve.optimize.diagnose.work import CONVERTING, DYNAMIC, convolves, is_quantized
from mlserve.units import format_duration, format_ratio

__all__ = [
    "INT8_FLAGS",
    "PRECISION_FINDINGS",
    "costly_conversions",
    "dynamic_convolutions",
    "float32_where_int8_is_quicker",
    "half_precision_on_the_cpu",
    "int8_slower_than_its_original",
    "no_int8_instructions",
]

INT8_FLAGS = frozenset(("amx_int8", "asimddp", "avx512_vnni", "avx_vnni", "i8mm"))
"""Instructions that multiply and add int8 in one step; without them int8 costs as much as float32, or more."""

STATIC_RECIPE = "recipes/cpu-int8-static.toml"
OPENVINO_RECIPE = "recipes/cpu-openvino.toml"

_SLOWER = 1.05
_NOTABLE = 0.1
_MOSTLY = 0.5


def int8_slower_than_its_original(facts: Facts) -> Finding | None:
    """An int8 model that is slower than the float model it came from, with the reasons that the profile shows."""
    against = facts.against
    slower = [
        timing for timing in facts.timings if timing.against_p50_s and timing.p50_s > _SLOWER * timing.against_p50_s
    ]
    if against is None or not slower or not any(map(_computes_int8, facts.profiles)):
        return None
    timing = max(slower, key=_slowdown)
    profile = _profile(facts, timing)
    assert timing.against_p50_s is not None
    commands = [serve_it(facts, ref=against.ref)]
    if len(slower) < len(facts.timings):
        better = max(facts.timings, key=lambda each: -_slowdown(each)).batch_rows
        commands.insert(0, serve_it(facts, "--max-batch-rows", str(better), "--max-delay-ms", "1"))
    if _convolutions(profile):
        commands.insert(0, optimize_again(facts, "--recipe", STATIC_RECIPE, data=True))
    return Finding(
        name="int8-slower-than-fp32",
        title=f"{facts.subject.variant} is slower than {against.variant}",
        seen=f"{_rows(timing)} {format_duration(timing.p50_s)}, with {against.ref} ({against.variant}) "
        f"{format_duration(timing.against_p50_s)}: {format_ratio(_slowdown(timing))} the time",
        why="; ".join(_why_slower(facts, profile)),
        commands=(*commands, optimize_again(facts, "--recipe", OPENVINO_RECIPE, data=True)),
        saves_at_most=1 - 1 / _slowdown(timing),
        batch_rows=timing.batch_rows,
    )


def _why_slower(facts: Facts, profile: Profile) -> list[str]:
    integer = [operation for operation in profile.operations if is_quantized(operation)]
    converting = [operation for operation in profile.operations if operation.operator in CONVERTING]
    reasons = []
    if facts.conditions.device != "cpu":
        reasons.append("onnxruntime's CUDA provider has no int8 kernels for these operators")
    elif _no_int8_instructions(facts):
        reasons.append("this CPU has no instructions for int8 (VNNI, AMX, dot product), so int8 is emulated")
    integer_convolutions = [operation for operation in integer if operation.operator == "ConvInteger"]
    if integer_convolutions:
        reasons.append(
            f"{percent(profile.time_share(integer_convolutions))} of the time goes into ConvInteger, a plain kernel "
            "that float32's blocked convolutions beat"
        )
    if profile.time_share(converting) >= _NOTABLE:
        reasons.append(f"{percent(profile.time_share(converting))} of the time only turns numbers into int8 and back")
    if profile.flops and profile.work_share(integer) < _MOSTLY:
        reasons.append(f"only {percent(profile.work_share(integer))} of the work is in int8")
    peaks = facts.peaks
    if any(operation.operator == "MatMulNBits" for operation in integer):
        reasons.append("only its weights are narrow: they are made float again for every product")
    elif peaks and integer and bound(integer, peaks) == "overhead" and not integer_convolutions:
        mean_flops = sum(operation.flops for operation in integer) / len(integer)
        reasons.append(
            f"its {len(integer)} int8 products are so small ({mean_flops / 1e6:.3g} million operations each) that "
            f"starting them takes longer than computing: {format_duration(sum(o.self_s for o in integer))} in all, "
            f"{format_duration(roof_s(integer, peaks))} at this machine's peak"
        )
    if not reasons and peaks and peaks.int8_ops_per_s is not None:
        reasons.append(
            f"the int8 kernels have little to give here: this machine's int8 peak is "
            f"{format_ratio(peaks.int8_ops_per_s / peaks.fp32_flops_per_s)} that of float32"
        )
    return reasons or ["the profile does not tell"]


def dynamic_convolutions(facts: Facts) -> Finding | None:
    """Dynamic quantization of a network of convolutions: ConvInteger is slow, and what is left in float32 is most."""

    def concerned(profile: Profile) -> list[Operation]:
        if not any(operation.operator in (*DYNAMIC, "ConvInteger") for operation in profile.operations):
            return []
        integer = [operation for operation in profile.operations if operation.operator == "ConvInteger"]
        around = [operation for operation in profile.operations if operation.operator in CONVERTING]
        return [*integer, *around] if integer else _convolutions(profile)

    share, profile = largest(facts, lambda each: each.time_share(concerned(each)))
    if share < _NOTABLE:
        return None
    integer = any(operation.operator == "ConvInteger" for operation in profile.operations)
    work = percent(profile.work_share(_convolutions(profile)))
    return Finding(
        name="dynamic-quantization-of-convolutions",
        title="dynamic quantization does not suit a network of convolutions",
        seen=f"{percent(share)} of the time goes into "
        + ("ConvInteger and the conversions around it" if integer else "convolutions that stayed in float")
        + f"; convolutions are {work} of the work",
        why=(
            "dynamic quantization finds the scale of every input anew at each run and computes convolutions with "
            "ConvInteger, which is slower than float32's kernels"
            if integer
            else "dynamic quantization leaves convolutions as they are; int8 convolutions need scales that were found "
            "beforehand"
        )
        + ". Static quantization on calibration rows gives QLinearConv, which has quick kernels",
        commands=(
            optimize_again(facts, "--recipe", STATIC_RECIPE, data=True),
            optimize_again(facts, "--recipe", OPENVINO_RECIPE, data=True),
        ),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def costly_conversions(facts: Facts) -> Finding | None:
    """An int8 model that spends its time turning numbers into int8 and back."""
    share, profile = largest(facts, _converting_share)
    if share < 1.5 * _NOTABLE or not _computes_int8(profile):
        return None
    integer = [operation for operation in profile.operations if is_quantized(operation)]
    return Finding(
        name="costly-conversions",
        title="turning numbers into int8 and back costs much",
        seen=f"{percent(share)} of the time goes into {_operators(profile, CONVERTING)}; int8 operators take "
        f"{percent(profile.time_share(integer))} of it and do {percent(profile.work_share(integer))} of the work",
        why="every island of int8 between float operators is entered by a quantization and left by another; scales "
        "that are found beforehand (static) let neighbours hand int8 on, and dynamic ones read every value twice",
        commands=(optimize_again(facts, "--recipe", STATIC_RECIPE, data=True),),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def no_int8_instructions(facts: Facts) -> Finding | None:
    """int8 on a CPU without instructions for it."""
    share, profile = largest(facts, lambda each: each.time_share(filter(is_quantized, each.operations)))
    if not share or not _no_int8_instructions(facts):
        return None
    flags = " ".join(facts.machine.cpu_flags) or "none that matter here"
    return Finding(
        name="no-int8-instructions",
        title="this CPU has no instructions for int8",
        seen=f"{percent(share)} of the time is in int8 operators; the CPU's instruction sets: {flags}",
        why="without VNNI, AMX or the dot product, one int8 product takes several instructions, and float32 with AVX "
        "or NEON is as quick; int8 then saves memory, not time",
        commands=("mlserve doctor", serve_it(facts, ref=facts.against.ref if facts.against else "")),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def half_precision_on_the_cpu(facts: Facts) -> Finding | None:
    """fp16 on a CPU: onnxruntime computes it in float32, with casts around every operator."""
    precision = facts.structure.weights_precision if facts.structure else facts.subject.variant
    if precision != "fp16" or facts.conditions.device != "cpu" or facts.subject.engine != "onnxruntime":
        return None

    def casts(profile: Profile) -> list[Operation]:
        return [operation for operation in profile.operations if operation.operator == "Cast"]

    share, profile = largest(facts, lambda each: each.time_share(casts(each)))
    return Finding(
        name="fp16-on-the-cpu",
        title="fp16 brings nothing on the CPU",
        seen=f"the weights are fp16; {len(casts(profile))} Casts take {percent(share)} of the time",
        why="onnxruntime's CPU kernels compute in float32, so it turns fp16 into float32 before an operator and back "
        "after it; fp16 is for GPUs",
        commands=(
            *([serve_it(facts, ref=facts.against.ref)] if facts.against else []),
            optimize_again(facts, "--recipe", OPENVINO_RECIPE, data=True),
        ),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def float32_where_int8_is_quicker(facts: Facts) -> Finding | None:
    """Large float32 products near the machine's peak, on a machine whose int8 peak is well above it."""
    peaks = facts.peaks
    if peaks is None or peaks.int8_ops_per_s is None:
        return None
    gain = 1 - peaks.fp32_flops_per_s / peaks.int8_ops_per_s

    def heavy(profile: Profile) -> list[Operation]:
        return [
            operation
            for operation in profile.operations
            if operation.flops and operation.precision == "fp32" and bound([operation], peaks) == "compute"
        ]

    share, profile = largest(facts, lambda each: each.time_share(heavy(each)))
    if share * gain < _NOTABLE:
        return None
    convolutions = profile.work_share(_convolutions(profile)) > _MOSTLY
    return Finding(
        name="float32-where-int8-is-quicker",
        title="the time goes into large float32 products",
        seen=f"{percent(share)} of the time is in {_operators(profile, {o.operator for o in heavy(profile)})} limited "
        f"by the arithmetic units; this machine's peak is {peaks.fp32_flops_per_s / 1e9:.0f} GFLOP/s in float32 and "
        f"{peaks.int8_ops_per_s / 1e9:.0f} GOP/s in int8",
        why="these kernels are near what the machine can do in float32; only fewer or narrower numbers are quicker",
        commands=(
            optimize_again(facts, "--recipe", STATIC_RECIPE, data=True)
            if convolutions
            else optimize_again(facts, "--int8"),
            optimize_again(facts, "--recipe", OPENVINO_RECIPE, data=True),
        ),
        saves_at_most=share * gain,
        batch_rows=profile.batch_rows,
    )


PRECISION_FINDINGS = (
    int8_slower_than_its_original,
    dynamic_convolutions,
    costly_conversions,
    no_int8_instructions,
    half_precision_on_the_cpu,
    float32_where_int8_is_quicker,
)


def _profile(facts: Facts, timing: Timing) -> Profile:
    return next(profile for profile in facts.profiles if profile.batch_rows == timing.batch_rows)


def _computes_int8(profile: Profile) -> bool:
    return any(map(is_quantized, profile.operations))


def _convolutions(profile: Profile) -> list[Operation]:
    return [operation for operation in profile.operations if convolves(operation)]


def _converting_share(profile: Profile) -> float:
    return profile.time_share(operation for operation in profile.operations if operation.operator in CONVERTING)


def _no_int8_instructions(facts: Facts) -> bool:
    """Only Linux tells which instructions there are; where nobody tells, nothing is claimed."""
    flags = set(facts.machine.cpu_flags)
    return facts.machine.system.startswith("Linux") and facts.conditions.device == "cpu" and not flags & INT8_FLAGS


def _operators(profile: Profile, kinds: frozenset[str] | set[str]) -> str:
    """Those of `kinds` that the profile has, the most time first: `Cast, QuantizeLinear`."""
    times_s: dict[str, float] = {}
    for operation in profile.operations:
        if operation.operator in kinds:
            times_s[operation.operator] = times_s.get(operation.operator, 0.0) + operation.self_s
    return ", ".join(sorted(times_s, key=lambda operator: -times_s[operator]))


def _slowdown(timing: Timing) -> float:
    return timing.p50_s / timing.against_p50_s if timing.against_p50_s else 0.0


def _rows(timing: Timing) -> str:
    return "1 row takes" if timing.batch_rows == 1 else f"{timing.batch_rows} rows take"
