"""A recipe: which variants to make of a model, each by which passes. In TOML, or built from the command's flags.

[[variants]]
name = "int8"
passes = [{ pass = "fuse" }, { pass = "quantize", mode = "dynamic" }]
"""

from pathlib import Path
from typing import Annotated

import msgspec

from mlserve.errors import UsageError
from mlserve.optimize.passes import Fuse, Pass, Quantize

__all__ = ["BASELINE", "INT8", "Recipe", "Variant", "read_recipe"]


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One variant beside the model as it was imported, which is always made."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    passes: Annotated[tuple[Pass, ...], msgspec.Meta(min_length=1)]


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Variants in the order they are made and published."""

    description: str = ""
    variants: tuple[Variant, ...] = ()


BASELINE = Recipe("fp32 as imported")
INT8 = Recipe("int8 with dynamic activations, per channel", (Variant("int8", (Fuse(), Quantize())),))


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
    return recipe
