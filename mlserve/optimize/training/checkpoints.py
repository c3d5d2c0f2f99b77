"""Unfinished training on disk: written whole or not at all, and read without running code of it."""

import hashlib
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

__all__ = ["drop_checkpoint", "fingerprint_of", "read_checkpoint", "write_checkpoint"]

# 1: fingerprint, and the state of the loop
_FORMAT = 1


def write_checkpoint(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Replaces `path` by `state`, in one move: whoever is killed meanwhile leaves the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    try:
        torch.save({"format": _FORMAT, "fingerprint": fingerprint, "state": state}, unfinished)
    except Exception:
        unfinished.unlink(missing_ok=True)  # a full disk needs the room
        raise
    unfinished.replace(path)


def read_checkpoint(path: Path, fingerprint: str) -> tuple[dict[str, Any] | None, str]:
    """The state that the training with this `fingerprint` wrote; else None and, if there is a file, why not."""
    if not path.is_file():
        return None, ""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        return None, f"{path} is no checkpoint ({type(error).__name__}); training starts over"
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        return None, f"{path} was written by another version of mlserve; training starts over"
    if saved["fingerprint"] != fingerprint:
        return None, f"{path} is of another training (model, rows, schedule or seed differ); training starts over"
    state: dict[str, Any] = saved["state"]
    return state, ""


def drop_checkpoint(path: Path) -> None:
    """Removes `path` and what a killed writer left beside it."""
    path.unlink(missing_ok=True)
    _unfinished(path).unlink(missing_ok=True)


def fingerprint_of(parts: Iterable[object], weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over `parts` as text and over the names, types, shapes and values of `weights`."""
    digest = hashlib.sha256(repr(tuple(parts)).encode())
    for name, tensor in weights.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")
