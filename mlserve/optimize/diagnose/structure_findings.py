"""Findings about the graph: its size, its shape, and operators that could be fewer."""

import math
import shlex

from mlserve.model.tensors import TensorSpec
from mlserve.optimize.diagnose.facts import Facts, Operation, OutputOnly, Profile
from mlserve.optimize.diagnose.finding import Finding, largest, optimize_again, percent, serve_it
from mlserve.optimize.diagnose.roofline import bound, roof_s
from mlserve.optimize.diagnose.work import MOVING
from mlserve.units import format_bytes, format_duration, format_rate, format_ratio

__all__ = [
    "STRUCTURE_FINDINGS",
    "costly_outputs",
    "fixed_rows",
    "moving_operations",
    "old_opset",
    "small_model",
    "tiny_operations",
    "unfused_patterns",
    "weights_from_memory",
]

_NOTABLE = 0.05
_HEAVY = 0.15
_MOSTLY = 0.5
_TINY_S = 50e-6
# A request over REST costs a Python server about as much (docs/design: 8,500 requests/s, one at a time).
_SMALL_MODEL_S = 100e-6
# Per-channel scales need opset 13; what exporters write today is 17 and later.
_OLD_OPSET = 13
_FUSE_RECIPE = "recipes/fused.toml"
_OPENVINO_RECIPE = "recipes/cpu-openvino.toml"


def tiny_operations(facts: Facts) -> Finding | None:
    """Operators so small that starting them is the cost: rows together pay it once."""
    alone = min(facts.timings, key=lambda timing: timing.batch_rows)
    profile = next(each for each in facts.profiles if each.batch_rows == alone.batch_rows)
    if facts.peaks is None:
        return None
    small = [
        operation
        for operation in profile.operations
        if operation.self_s < _TINY_S and bound([operation], facts.peaks) == "overhead"
    ]
    together = min(facts.timings, key=lambda timing: timing.row_s)
    saved = 1 - together.row_s / alone.row_s
    if profile.time_share(small) < _MOSTLY or together is alone or saved < 2 * _HEAVY:
        return None
    return Finding(
        name="tiny-operations",
        title="starting operators costs more than computing them",
        seen=f"{len(small)} of {len(profile.operations)} operators take under {format_duration(_TINY_S)} each and "
        f"{percent(profile.time_share(small))} of the time, though the machine could do their work in "
        f"{format_duration(roof_s(small, facts.peaks))}; a row costs {format_duration(alone.row_s)} alone and "
        f"{format_duration(together.row_s)} in a batch of {together.batch_rows}",
        why="every operator costs some microseconds to start, however little it computes; a batch pays that once for "
        "all its rows",
        commands=(serve_it(facts, "--max-batch-rows", str(together.batch_rows), "--max-delay-ms", "1"),),
        saves_at_most=saved,
        batch_rows=alone.batch_rows,
    )


def weights_from_memory(facts: Facts) -> Finding | None:
    """Products that wait for their weights to come from the memory: narrower weights come sooner."""

    def waiting(profile: Profile) -> list[Operation]:
        return [
            operation
            for operation in profile.operations
            if 2 * operation.weight_bytes > (operation.moved_bytes or 0) and bound([operation], facts.peaks) == "memory"
        ]

    share, profile = largest(facts, lambda each: each.time_share(waiting(each)))
    if facts.peaks is None or share < _HEAVY:
        return None
    weight_bytes = sum(operation.weight_bytes for operation in waiting(profile))
    float32 = all(operation.precision == "fp32" for operation in waiting(profile))
    return Finding(
        name="weights-from-memory",
        title="the time goes into reading weights",
        seen=f"{percent(share)} of the time, with {profile.batch_rows} rows, is in operators that read "
        f"{format_bytes(weight_bytes)} of weights for little work; the memory gives "
        f"{format_bytes(facts.peaks.bytes_per_s)}/s",
        why="with so few rows each weight is used once or twice, so the memory sets the pace, not the arithmetic "
        "units; int8 weights are a quarter of float32's bytes and bf16 half, and a larger batch uses each weight more",
        commands=(
            *(
                [optimize_again(facts, "--int8"), optimize_again(facts, "--recipe", _OPENVINO_RECIPE, data=True)]
                if float32
                else []
            ),
            serve_it(facts, "--max-batch-rows", "32", "--max-delay-ms", "1"),
        ),
        saves_at_most=share * (0.75 if float32 else 0.5),
        batch_rows=profile.batch_rows,
    )


def unfused_patterns(facts: Facts) -> Finding | None:
    """A transformer's normalization, GELU or attention as many small operators, where one kernel would do."""
    if facts.structure is None or not facts.structure.patterns:
        return None
    names = {name for pattern in facts.structure.patterns for name in pattern.nodes}

    def parts(profile: Profile) -> list[Operation]:
        return [operation for operation in profile.operations if operation.name in names]

    share, profile = largest(facts, lambda each: each.time_share(parts(each)))
    if share < _NOTABLE:
        return None
    counted = ", ".join(f"{pattern.count} {pattern.kind}" for pattern in facts.structure.patterns)
    return Finding(
        name="unfused-transformer",
        title="operators that could be fused are not",
        seen=f"{counted} made of {len(parts(profile))} small operators, {percent(share)} of the time",
        why="each of these operators reads and writes every value; a fused kernel does it once. onnxruntime fuses what "
        "it recognizes when it loads a model, and `fuse` knows more patterns",
        commands=(optimize_again(facts, "--recipe", _FUSE_RECIPE),),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def fixed_rows(facts: Facts) -> Finding | None:
    """A model exported for one number of rows: requests cannot be run together."""
    rows, peaks = facts.subject.fixed_rows, facts.peaks
    if rows is None:
        return None
    timing = facts.timings[0]
    peak = max(peaks.fp32_flops_per_s, peaks.int8_ops_per_s or 0.0) if peaks else math.inf
    compute_s = facts.profiles[0].flops / peak
    return Finding(
        name="fixed-batch-dimension",
        title=f"the model takes exactly {rows} row(s)",
        seen=f"the first dimension of its inputs is {rows}; a run takes {format_duration(timing.p50_s)}, its "
        f"arithmetic at this machine's peak {format_duration(compute_s)}",
        why="requests that arrive together cannot share a run, so each pays for starting every operator and for "
        "reading every weight; export the model with a dynamic first dimension (torch: dynamic_shapes, dynamic_axes)",
        commands=(_with_dynamic_rows(facts),),
        saves_at_most=max(0.0, 1 - compute_s / timing.p50_s),
        batch_rows=rows,
    )


def moving_operations(facts: Facts) -> Finding | None:
    """Time that goes into putting numbers elsewhere."""

    def moving(profile: Profile) -> list[Operation]:
        return [operation for operation in profile.operations if operation.operator in MOVING]

    share, profile = largest(facts, lambda each: each.time_share(moving(each)))
    if share < _HEAVY:
        return None
    kinds = sorted({operation.operator for operation in moving(profile)})
    slowest = max(moving(profile), key=lambda operation: operation.self_s)
    return Finding(
        name="moving-operations",
        title="much time goes into moving numbers about",
        seen=f"{percent(share)} of the time is in {', '.join(kinds)}; the slowest is {slowest.name} with "
        f"{format_duration(slowest.self_s)}",
        why="these operators compute nothing; they come from layouts that do not fit (channels last against first), "
        "from attention heads split and joined by hand, or from shapes computed at run time. Fused attention and "
        "another engine's layout need fewer",
        commands=(
            optimize_again(facts, "--recipe", _FUSE_RECIPE),
            optimize_again(facts, "--recipe", _OPENVINO_RECIPE, data=True),
        ),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def costly_outputs(facts: Facts) -> Finding | None:
    """An output beside the first that costs time of its own: if nobody reads it, leave it out."""
    if facts.structure is None or not facts.structure.outputs_only:
        return None

    def share_of(profile: Profile, output: OutputOnly) -> float:
        return profile.time_share(operation for operation in profile.operations if operation.name in set(output.nodes))

    share, profile, output = max(
        (
            (share_of(profile, output), profile, output)
            for profile in facts.profiles
            for output in facts.structure.outputs_only
        ),
        key=lambda found: found[0],
    )
    if share < _NOTABLE:
        return None
    subject = facts.subject
    given = [spec.name for spec in subject.inputs]
    kept = [spec.name for spec in subject.outputs if spec.name != output.output]
    extract = f"from onnx.utils import extract_model as e; e({subject.path!r}, 'smaller.onnx', {given}, {kept})"
    return Finding(
        name="costly-output",
        title=f"the output {output.output!r} costs {percent(share)} of the time by itself",
        seen=f"{len(output.nodes)} operators work for {output.output!r} and no other of the {len(subject.outputs)}",
        why="an engine computes and copies every output of the graph, read or not; if nobody reads this one, leave it "
        "out",
        commands=(shlex.join(["python", "-c", extract]), "mlserve optimize smaller.onnx"),
        saves_at_most=share,
        batch_rows=profile.batch_rows,
    )


def old_opset(facts: Facts) -> Finding | None:
    """A graph in an old version of ONNX, which keeps optimizers from what newer operators allow."""
    if facts.structure is None or not 0 < facts.structure.opset < _OLD_OPSET:
        return None
    return Finding(
        name="old-opset",
        title=f"the graph is of opset {facts.structure.opset}",
        seen=f"opset {facts.structure.opset}; exporters write 17 and later today",
        why=f"a scale for each channel needs opset {_OLD_OPSET}, LayerNormalization 17 and Gelu 20 as one operator; by "
        "itself a newer version changes no time, but quantization and fusion find more to work on",
        commands=(optimize_again(facts),),
        saves_at_most=0.0,
        batch_rows=facts.profiles[0].batch_rows,
    )


def small_model(facts: Facts) -> Finding | None:
    """A model so small that the request around it costs more than the model."""
    timing = min(facts.timings, key=lambda each: each.batch_rows)
    if timing.p50_s >= _SMALL_MODEL_S:
        return None
    return Finding(
        name="too-small-to-matter",
        title="the model is too small to matter",
        seen=f"a run of {timing.batch_rows} row(s) takes {format_duration(timing.p50_s)}, "
        f"{format_rate(1 / timing.p50_s)} in one process; the request around it takes about "
        f"{format_duration(_SMALL_MODEL_S)} more, "
        f"{format_ratio(_SMALL_MODEL_S / timing.p50_s)} as long",
        why="even a model that took no time would hardly make a request quicker: protocol, batching and workers decide",
        commands=(serve_it(facts, "--workers", str(facts.machine.cores)),),
        saves_at_most=timing.p50_s / (timing.p50_s + _SMALL_MODEL_S),
        batch_rows=timing.batch_rows,
    )


def _with_dynamic_rows(facts: Facts) -> str:
    """The import of the original with any number of rows; only the user knows where that is."""
    words = ["mlserve", "optimize", "MODEL.pt"]
    for spec in facts.subject.inputs:
        words += ["--input", str(TensorSpec(spec.name, spec.dtype, ("batch", *spec.shape[1:])))]
    return shlex.join(words)


STRUCTURE_FINDINGS = (
    tiny_operations,
    weights_from_memory,
    unfused_patterns,
    fixed_rows,
    moving_operations,
    costly_outputs,
    old_opset,
    small_model,
)
