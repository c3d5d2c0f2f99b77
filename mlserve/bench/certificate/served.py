"""Whether the server was what it was taken for: on that device, in that type, and used by nobody else."""

from mlserve.bench.certificate.facts import Facts
from mlserve.runs.run import Check

__all__ = ["computed_in", "counters_agree", "ran_on"]

# What a provider's name holds, in the order in which they count: TensorRT and CUDA devices are GPUs too.
_DEVICES = ("tensorrt", "cuda", "gpu", "cpu")
_PRECISION_OF = {
    **dict.fromkeys(("fp32", "float32", "f32"), "fp32"),
    **dict.fromkeys(("fp16", "float16", "f16", "half"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
    **dict.fromkeys(("int8", "i8", "uint8", "u8"), "int8"),
    **dict.fromkeys(("int4", "i4", "uint4", "u4"), "int4"),
}
# The type of a variant's arithmetic goes before that of its weights: `int8-bf16` computes the rest in bf16.
_COMPUTED_FIRST = ("bf16", "fp16", "fp32", "int8", "int4")
_INTEGER = ("int8", "int4")


def ran_on(facts: Facts) -> Check | None:
    """The execution provider that the server says it used is one of the device it was held to."""
    used = next((name for name in _DEVICES if name in facts.provider.lower()), None)
    if not facts.device or used is None:
        return None
    return Check(
        name="execution provider",
        ok=used == facts.device.partition(":")[0],
        found=facts.provider,
        limit=f"one of device {facts.device}",
        advice="See what this machine can run on: mlserve doctor.",
    )


def computed_in(facts: Facts) -> Check | None:
    """The type that the server says it computes in is the one that the variant is made for.

    OpenVINO names the type of what it does not do in integers, so of a quantized variant its word says nothing.
    """
    asked, found = _asked_precision(facts), _PRECISION_OF.get(facts.precision.lower())
    if not asked or found is None or (asked in _INTEGER and facts.provider.lower().startswith("openvino")):
        return None
    return Check(
        name="precision",
        ok=found == asked,
        found=f"computed in {found}",
        limit=f"{asked}, which variant {facts.variant or facts.compute_type} is made for",
        advice="See what this machine can compute in: mlserve doctor. Or set the server's --compute-type.",
    )


def counters_agree(facts: Facts) -> Check | None:
    """The server counted the requests that the generator saw answered.

    It may have counted some of the failed ones too: those it answered after the generator had given them up.
    """
    if facts.counted_ok is None:
        return None
    most = facts.ok + facts.failed
    return Check(
        name="server counters",
        ok=facts.ok <= facts.counted_ok <= most,
        found=f"the server counted {facts.counted_ok} answers",
        limit=f"{facts.ok}" if most == facts.ok else f"{facts.ok} to {most}",
        advice="Something else used the server, or answers were lost on the way: give it to the bench alone.",
    )


def _asked_precision(facts: Facts) -> str:
    """What the variant computes in, by what it was made for or by its name; "" where neither says."""
    if facts.compute_type:
        return _PRECISION_OF.get(facts.compute_type.lower(), "")
    named = {_PRECISION_OF.get(part) for part in facts.variant.lower().replace("_", "-").split("-")}
    return next((name for name in _COMPUTED_FIRST if name in named), "")
