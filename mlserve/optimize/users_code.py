"""Code of the user's own, named as `package.module:name` in a flag or a recipe."""

import importlib
import sys
from pathlib import Path
from typing import Any

from mlserve.errors import UsageError

__all__ = ["call_named", "code_file", "load_named"]


def code_file(spec: str) -> Path | None:
    """The file in the working folder that `package.module:name` is in; None where it is elsewhere."""
    module = Path.cwd().joinpath(*spec.partition(":")[0].split("."))
    candidates = (module.with_suffix(".py"), module / "__init__.py")
    return next((path for path in candidates if path.is_file()), None) if spec else None


def load_named(spec: str, flag: str) -> Any:
    """What `package.module:name` is; the folder mlserve was started in is searched first.

    Raises UsageError, naming `flag`, when there is no such thing, or its module fails.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise UsageError(f"{flag} {spec!r} names no function; write package.module:function")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(f"{flag} {spec}: {type(error).__name__}: {error}") from error


def call_named(spec: str, flag: str) -> Any:
    """What `package.module:name` gives when it is called. Raises UsageError as `load_named`, and when it fails."""
    function = load_named(spec, flag)
    try:
        return function()
    except Exception as error:  # as above
        raise UsageError(f"{flag} {spec}: {type(error).__name__}: {error}") from error
