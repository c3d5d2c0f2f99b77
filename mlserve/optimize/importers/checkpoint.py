"""Weights that were saved without their model: found in what trainers write around them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mlserve.errors import ModelFileError

__all__ = ["read_checkpoint", "weights_for"]

_STATE_KEYS = ("state_dict", "model_state_dict", "model")


def read_checkpoint(path: Path) -> Any:
    """What was saved, read without running code of it.

    Raises ModelFileError for what cannot be read so, and for damage what torch and safetensors do.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines() or [""]
        raise ModelFileError(
            f"{path} is no plain state dict ({reason[0][:200]}); save it with torch.save(model.state_dict(), path)"
        ) from error


def weights_for(names: set[str], checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict in `checkpoint` for a module whose own state dict has `names`."""
    return _unwrapped(_inner_state(checkpoint), names)


def _inner_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights in a checkpoint: under a usual key, else the only part of it that is all tensors, else all of it."""
    usual = [checkpoint[key] for key in _STATE_KEYS if isinstance(checkpoint.get(key), Mapping)]
    tensors = [part for part in checkpoint.values() if isinstance(part, Mapping) and part and _all_tensors(part)]
    found: Mapping[str, Any] = next(iter(usual), tensors[0] if len(tensors) == 1 else checkpoint)
    return found


def _all_tensors(part: Mapping[str, Any]) -> bool:
    return all(isinstance(value, torch.Tensor) for value in part.values())


def _unwrapped(state: Mapping[str, Any], names: set[str]) -> Mapping[str, Any]:
    """`state` without the words that DataParallel, torch.compile or a trainer put before every one of its `names`."""
    while not names & state.keys():
        prefix, dot, _ = str(next(iter(state), "")).partition(".")
        if not dot or not all(str(name).startswith(f"{prefix}.") for name in state):
            break
        state = {name.removeprefix(f"{prefix}."): value for name, value in state.items()}
    return state
