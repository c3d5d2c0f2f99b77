"""From the command's flags to a recipe: one variant a precision asked for, all pruned or distilled alike first."""

from collections.abc import Sequence
from typing import Literal, TypeVar, cast, get_args

import msgspec

from mlserve.errors import UsageError
from mlserve.optimize.passes import (
    Cast,
    Fuse,
    Pass,
    Quantize,
    QuantizeOpenvino,
    QuantizeStatic,
    SmoothQuant,
    ToOpenvino,
    WeightOnly,
)
from mlserve.optimize.recipe import EngineName, Recipe, Variant, check_order
from mlserve.optimize.training import Distill, Prune, TrainingPass
from mlserve.optimize.training.schedule import Schedule

__all__ = ["Precision", "parse_distill", "parse_engine", "parse_prune", "recipe_of"]

Precision = Literal["int8", "int8-static", "int4", "fp16", "bf16"]
TrainingStruct = TypeVar("TrainingStruct", Prune, Distill)

_GRAPH_PASSES: dict[Precision, tuple[Pass, ...]] = {
    "int8": (Fuse(), Quantize()),
    "int8-static": (Fuse(transformer=False), SmoothQuant(alpha=0.75), QuantizeStatic()),
    "int4": (Fuse(separate_weights=True), WeightOnly()),
    "fp16": (Fuse(), Cast(to="fp16")),
}


def recipe_of(
    precisions: Sequence[Precision], training: Sequence[TrainingPass] = (), engine: EngineName | Literal[""] = ""
) -> Recipe:
    """The recipe that the flags ask for; empty when they ask for nothing beside the model as imported.

    Raises UsageError for a precision that the engine has no way to.
    """
    wanted = [_variant(precision, tuple(training), engine) for precision in precisions]
    if not wanted and (training or engine not in ("", "onnxruntime")):
        wanted = [Variant(_name(training, "", engine), tuple(training), engine)]
    for variant in wanted:
        check_order(variant)
    return Recipe("as the flags say", tuple(wanted))


def parse_prune(text: str) -> Prune:
    """`"channels=0.5"`, `"2:4"` or `"layers=0.33,epochs=10"`: what to take away, how much, and how to train afterwards.

    Raises UsageError for another form or an unknown word.
    """
    what, _, rest = text.partition(",")
    kind, _, amount = what.partition("=")
    items = f"what={kind}" + (f",amount={amount}" if amount else "") + (f",{rest}" if rest else "")
    return _parse("--prune", items, text, Prune, "tuning")


def parse_distill(text: str) -> Distill:
    """`"layers=3,width=0.5,epochs=20"` or `"student=package.module:factory"`. Raises UsageError for another form."""
    return _parse("--distill", text, text, Distill, "schedule")


def _parse(flag: str, items: str, text: str, struct: type[TrainingStruct], schedule: str) -> TrainingStruct:
    pairs = [item.partition("=") for item in items.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise UsageError(f"{flag} {text!r} cannot be read; write name=value, separated by commas")
    values = {name.strip(): value.strip() for name, _, value in pairs}
    timing = {name: values.pop(name) for name in Schedule.__struct_fields__ if name in values}
    try:
        return msgspec.convert({"pass": struct.__struct_config__.tag, **values, schedule: timing}, struct, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(field.name for one in (struct, Schedule) for field in msgspec.structs.fields(one))
        raise UsageError(f"{flag} {text!r}: {error}; it takes {known}") from error


def _variant(precision: Precision, training: tuple[TrainingPass, ...], engine: EngineName | Literal[""]) -> Variant:
    name = _name(training, precision, engine)
    if engine in ("", "onnxruntime") and precision == "bf16":
        raise UsageError("onnxruntime computes next to nothing in bfloat16; add --engine openvino, or use --fp16")
    if engine in ("", "onnxruntime"):
        return Variant(name, (*training, *_GRAPH_PASSES[precision]))
    if engine == "openvino" and precision == "int8-static":
        return Variant(name, (*training, QuantizeOpenvino()), engine)
    if engine == "openvino" and precision in ("bf16", "fp16"):
        return Variant(name, training, engine, precision)
    if engine == "openvino" and precision == "int8":
        return Variant(name, (*training, ToOpenvino(weights="int8")), engine)
    raise UsageError(f"--engine {engine} has no {precision}; leave out --{precision}, or the engine")


def _name(training: Sequence[TrainingPass], precision: str, engine: str) -> str:
    done = [{Prune: "pruned", Distill: "distilled"}[type(one)] for one in training]
    ran = [engine] if engine not in ("", "onnxruntime") else []
    return "-".join(dict.fromkeys([*ran, *done, *([precision] if precision else [])]))


def parse_engine(text: str) -> EngineName | Literal[""]:
    """The engine of that name; "" for none. Raises UsageError for another name."""
    if text and text not in get_args(EngineName):
        raise UsageError(f"--engine {text!r} is unknown; use one of {', '.join(get_args(EngineName))}")
    return cast("EngineName | Literal['']", text)
