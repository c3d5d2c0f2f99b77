"""A recipe: which variants to make of a model, each by which passes. In TOML, or built from the command's flags.

[[variants]]
name = "int8"
passes = [{ pass = "fuse" }, { pass = "quantize", mode = "dynamic" }]

[[variants]]
name = "openvino-bf16"
engine = "openvino"
compute_type = "bf16"
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

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
from mlserve.optimize.training import TrainingPass

__all__ = ["BASELINE", "INT8", "EngineName", "Recipe", "Variant", "check_order", "read_recipe", "tag_of"]

EngineName = Literal["onnxruntime", "openvino", "torch", "torch-compiled"]


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One variant beside the model as it was imported, which is always made.

    `passes` are done in order. `engine` runs it, computing in `compute_type` where that is not the type of the weights;
    empty means what the last pass made it for. `split_batches` runs large batches as pieces, one thread each.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    passes: tuple[TrainingPass | Pass, ...] = ()
    engine: EngineName | Literal[""] = ""
    compute_type: Literal["", "bf16", "fp16"] = ""
    split_batches: bool = False

    @property
    def training(self) -> tuple[TrainingPass, ...]:
        """The passes done to the PyTorch model, before it is exported."""
        return tuple(one for one in self.passes if isinstance(one, TrainingPass))

    @property
    def graph_passes(self) -> tuple[Pass, ...]:
        """The passes done to the exported graph."""
        return tuple(one for one in self.passes if not isinstance(one, TrainingPass))

    @property
    def needs_rows(self) -> bool:
        """Whether making it takes rows of data, which it must then not be judged on."""
        takers = TrainingPass | Cast | QuantizeStatic | SmoothQuant | QuantizeOpenvino
        return any(isinstance(one, takers) for one in self.passes)


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Variants in the order they are made and published.

    `metric` and `max_drop` are what `--metric` and `--max-drop` say where those are not given.
    """

    description: str = ""
    variants: tuple[Variant, ...] = ()
    metric: str = ""
    max_drop: str = ""

    @property
    def needs_rows(self) -> bool:
        """Whether any variant does."""
        return any(variant.needs_rows for variant in self.variants)


BASELINE = Recipe("fp32 as imported")
INT8 = Recipe("int8 with dynamic activations, per channel", (Variant("int8", (Fuse(), Quantize())),))

_Stage = Literal["training", "graph", "smoothing", "precision", "engine"]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file. Raises UsageError naming the place when it is none."""
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise UsageError(
            f"--recipe {path} cannot be read: {error.strerror}; recipes/ has some to start from"
        ) from error
    except msgspec.DecodeError as error:
        raise UsageError(f"--recipe {path} is no recipe: {error}; recipes/ has some to start from") from error
    names = [variant.name for variant in recipe.variants]
    doubled = next((name for name in names if names.count(name) > 1 or name == "fp32"), None)
    if doubled:
        raise UsageError(
            f"--recipe {path}: every variant needs a name of its own, and fp32 is made anyway ({doubled!r})"
        )
    for variant in recipe.variants:
        check_order(variant, f"--recipe {path}: ")
    return recipe


def check_order(variant: Variant, where: str = "") -> None:
    """Raises UsageError for passes in an order that makes no sense, or for a variant that changes nothing."""
    if not variant.passes and variant.engine in ("", "onnxruntime") and not variant.split_batches:
        raise UsageError(
            f"{where}variant {variant.name!r} has no passes and no engine of its own; it would be fp32 again"
        )
    if variant.engine.startswith("torch") and variant.graph_passes:
        raise UsageError(
            f"{where}variant {variant.name!r}: {tag_of(variant.graph_passes[0])} is done to an ONNX graph, which the "
            f"engine {variant.engine} does not run"
        )
    stages = get_args(_Stage)
    for before, after in zip(variant.passes, variant.passes[1:], strict=False):
        if stages.index(_stage(after)) < stages.index(_stage(before)):
            raise UsageError(
                f"{where}variant {variant.name!r}: {tag_of(after)} cannot come after {tag_of(before)}; the order is "
                "prune and distill, then fuse, smooth, and last cast or quantize"
            )
        narrowed = isinstance(before, WeightOnly) and isinstance(after, Cast)  # what is not a weight may be cast
        if _stage(before) == _stage(after) == "precision" and not narrowed:
            raise UsageError(
                f"{where}variant {variant.name!r}: {tag_of(after)} after {tag_of(before)}; one of them is enough"
            )


def tag_of(one_pass: TrainingPass | Pass) -> str:
    """The word that a recipe calls the pass by."""
    return str(one_pass.__struct_config__.tag)


def _stage(one_pass: TrainingPass | Pass) -> _Stage:
    match one_pass:
        case Fuse():
            return "graph"
        case SmoothQuant():
            return "smoothing"
        case Cast() | Quantize() | QuantizeStatic() | WeightOnly():
            return "precision"
        case ToOpenvino() | QuantizeOpenvino():
            return "engine"
    return "training"
