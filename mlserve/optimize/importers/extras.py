"""The libraries of other trainers, which come with an extra of mlserve."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from mlserve.errors import ModelFileError

__all__ = ["need"]


def need(extra: str, modules: Sequence[str], path: Path) -> None:
    """Imports `modules`. Raises ModelFileError with the command that installs them when one is missing."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ModelFileError(
                f"{path} needs {name}, which cannot be imported ({error}); install it with: "
                f"pip install 'mlserve[{extra}]'"
            ) from error
