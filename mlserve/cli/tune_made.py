"""Variants of a model's file, made once for a search: one that goes on takes those that it began with."""

import contextlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from mlserve.cli.optimize import model_name
from mlserve.cli.terminal import err, steps
from mlserve.errors import MlserveError, UsageError

if TYPE_CHECKING:
    from mlserve.tuning.choosing.record import Made, Making

__all__ = ["make_variants"]

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
_OURS = frozenset(("--data", "--max-drop", "--out", "--store", "--variants"))


def make_variants(
    path: Path, variants: Sequence[str], data: Path | None, max_drop: float, store: Path, directory: Path
) -> "Made":
    """The versions of the model in `path` that the search in `directory` may choose from, made as optimize makes them;
    where that search has begun, those that were made for it.

    Raises UsageError where it began with something else, and what optimize raises.
    """
    from mlserve.tuning.choosing.record import Made, read_search

    _check_words(variants)
    asked = _asked(path, variants, data)
    held = read_search(directory)
    if held is None:
        versions, refused = _optimized(path, variants, data, max_drop, store)
        return Made(asked=asked, versions=versions, refused=refused)
    if held.made is None:
        raise UsageError(
            f"--out {directory} holds a search of {', '.join(held.models)} by that name, or one of an older mlserve, "
            "which did not keep of what file they were made; give the name to go on with it, or choose another folder"
        )
    if words := _unlike_words(held.made.asked, asked):
        raise UsageError(f"--out {directory} holds a search that was begun {words}; choose another folder")
    err.print(f"goes on with {', '.join(held.made.versions)} of {store}", highlight=False, markup=False, soft_wrap=True)
    return held.made


def _check_words(variants: Sequence[str]) -> None:
    """Raises UsageError for a variant that there is not."""
    from mlserve.optimize.flags import Precision

    known = ("fp32", *get_args(Precision))
    if unknown := [word for word in variants if word not in known]:
        raise UsageError(f"--variants {','.join(unknown)}: of a file, tune makes {', '.join(known[1:])}")


def _unlike_words(held: "Making", asked: "Making") -> str:
    """In what two makings differ, by what the first was begun with; "" where they are the same."""
    words = []
    if held.variants != asked.variants:
        words.append(f"with --variants {','.join(held.variants)}" if held.variants else "without --variants")
    if held.data != asked.data:
        words.append("with other rows by --data" if held.data else "without --data")
    if (held.file, held.content) != (asked.file, asked.content):
        of = held.file if held.file != asked.file else f"another content of {held.file}"
        words.append(f"with {of}")
    return " and ".join(words)


def _asked(path: Path, variants: Sequence[str], data: Path | None) -> "Making":
    from mlserve.model.onnx_file import inspect_onnx
    from mlserve.optimize.unfinished import content_key
    from mlserve.tuning.choosing.record import Making

    beside = inspect_onnx(path).external_files if path.suffix == ".onnx" and path.is_file() else ()
    return Making(
        file=path.name,
        content=content_key(path, *map(path.parent.joinpath, beside)),
        data=content_key(data) if data is not None else "",
        variants=tuple(variants),
    )


def _optimized(
    path: Path, variants: Sequence[str], data: Path | None, max_drop: float, store: Path
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of the new versions, and of each variant that was not kept why."""
    from mlserve.engines.engine import EngineSettings
    from mlserve.model.store import Store, check_name
    from mlserve.optimize.flags import Precision, recipe_of
    from mlserve.optimize.importing import Source
    from mlserve.optimize.variants import Wish, optimize
    from mlserve.runs.machine import usable_cores

    precisions: list[Precision] = [one for one in get_args(Precision) if one in variants]
    wish = Wish(
        recipe=recipe_of(precisions) if variants else None,
        max_drop=max_drop,
        settings=EngineSettings(threads=usable_cores()),
    )
    name = check_name(model_name(path))
    # stdout is for our result: what is imported may print.
    with steps("making variants") as on_step, contextlib.redirect_stdout(sys.stderr):
        try:
            outcome = optimize(Source(path=path, data=data), wish, Store(store), name, on_step)
        except MlserveError as error:
            raise UsageError(f"{error}{_elsewhere(str(error), path, name)}") from error
    made = ", ".join(f"{artifact.ref} ({artifact.manifest.variant})" for artifact in outcome.published)
    err.print(f"made {made} in {store}", highlight=False, markup=False, soft_wrap=True)
    return tuple(artifact.ref for artifact in outcome.published), dict(outcome.refused)


def _elsewhere(said: str, path: Path, name: str) -> str:
    """How to go on where an error advises flags that optimize has and tune has not; "" for any other."""
    lacking = list(dict.fromkeys(flag for flag in _FLAG.findall(said) if flag not in _OURS))
    if not lacking:
        return ""
    flags = " and ".join(lacking)
    return f". That takes mlserve optimize {shlex.quote(str(path))} with {flags}, and then mlserve tune {name}"
