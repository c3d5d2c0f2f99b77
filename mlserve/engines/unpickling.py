"""While a program of PyTorch's is loaded, no pickle in it may name anything but tensors.

`torch.export.load` unpickles: sample inputs, when they are no plain tensors, and whatever weights and constants the
archive says are pickles, without restriction. Whoever made the file then runs what they like. Python tells of every
name that a pickle looks up before it does; here we refuse.
"""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlserve.errors import ModelFileError

__all__ = ["only_tensors"]

# What a pickle of plain tensors names. Not all of torch._utils: one function of it finds any other by its name.
_NAMES = frozenset(
    {
        "_codecs.encode", "collections.OrderedDict", "torch.Size", "torch.device", "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3", "torch.serialization._get_layout",
    }
)  # fmt: skip
_TYPES = re.compile(
    r"torch\.([A-Z][A-Za-z0-9]*Storage|u?int\d+|b?float\d+\w*|complex\d+|bool)|torch\.storage\.[A-Z]\w*Storage"
)

_guarded = threading.local()
_hooked = threading.Lock()
_hook_added = False


@contextmanager
def only_tensors(path: Path) -> Iterator[None]:
    """Within this block, this thread unpickles tensors and nothing else.

    Raises ModelFileError, naming `path`, where a pickle asked for more, whatever the code in between made of that.
    """
    _add_hook()
    refused: list[str] = []
    _guarded.refused = refused
    try:
        yield
    except Exception as error:
        if refused:
            raise _refusal(path, refused) from error
        raise
    finally:
        _guarded.refused = None
    if refused:
        raise _refusal(path, refused)


def _refusal(path: Path, refused: list[str]) -> ModelFileError:
    return ModelFileError(
        f"{path} holds a pickle that runs code when it is loaded ({refused[0][:200]}); export the program again with "
        "tensors alone as its sample inputs"
    )


def _add_hook() -> None:
    """Once for the process: what was added cannot be taken away."""
    global _hook_added  # noqa: PLW0603  # as above
    with _hooked:
        if not _hook_added:
            sys.addaudithook(_on_event)
            _hook_added = True


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "pickle.find_class":
        return
    refused = getattr(_guarded, "refused", None)
    name = ".".join(map(str, arguments))
    if refused is not None and name not in _NAMES and not _TYPES.fullmatch(name):
        refused.append(name)
        raise PermissionError(f"a pickle may name tensors alone, not {name}")
