"""A PyTorch model as it came: loaded as carefully as its form allows, and callable with named numpy arrays."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlserve.errors import ModelFileError, UsageError
from mlserve.model.tensors import Tensors
from mlserve.optimize.importers.request import ImportRequest

__all__ = ["TorchOriginal", "call_named", "load_original", "named_outputs"]

_STATE_KEYS = ("state_dict", "model_state_dict", "model")


class TorchOriginal:
    """A module in inference mode. `parameters` are the names `forward` gives its inputs, `required` how many it needs.

    `run` maps named arrays to named arrays once `bind` has said which inputs there are; `bound` are their names.
    """

    def __init__(self, module: Any, parameters: Sequence[str], required: int, program: Any = None) -> None:
        self.module, self.parameters, self.required = module, list(parameters), required
        self.program = program
        self.bound: list[str] = list(parameters)

    @property
    def scripted(self) -> bool:
        """Whether it is TorchScript, which only the older of torch's two exporters reads."""
        return isinstance(self.module, torch.jit.ScriptModule)

    def bind(self, names: Sequence[str]) -> list[str]:
        """Says which inputs `run` will get; returns them in the order `forward` takes them."""
        known = all(name in self.parameters for name in names)
        self.bound = sorted(names, key=self.parameters.index) if known else list(names)
        return self.bound

    def arguments(self, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How `forward` is called with `inputs`: by position where the names follow its parameters, else by name."""
        values = {name: inputs[name] for name in self.bound}
        if self.bound == self.parameters[: len(values)] or not all(name in self.parameters for name in values):
            return tuple(values.values()), {}
        return (), values

    def run(self, inputs: Tensors) -> Tensors:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
        arguments, keywords = self.arguments(tensors)
        with torch.inference_mode():
            outputs = named_outputs(self.module(*arguments, **keywords))
        return {name: tensor.detach().cpu().numpy() for name, tensor in outputs.items()}


def load_original(request: ImportRequest) -> TorchOriginal:
    """The model in `request.source`.

    Only a pickle that the user vouched for runs code of its own. Raises ModelFileError or UsageError.
    """
    path = Path(request.source)
    match request.kind:
        case "exported":
            return _load_exported(path)
        case "torchscript":
            return _of_module(_trying(path, lambda: torch.jit.load(path, map_location="cpu")))
        case "pickle":
            sys.path.insert(0, str(Path.cwd()))
            module = _trying(path, lambda: torch.load(path, map_location="cpu", weights_only=False))
            if not isinstance(module, torch.nn.Module):
                raise ModelFileError(f"{path} holds a {type(module).__name__}, not a torch.nn.Module")
            return _of_module(module)
        case _:
            return _of_module(_with_weights(path, request.model_class))


def call_named(spec: str, flag: str) -> Any:
    """What `package.module:name` gives when it is called; the folder mlserve was started in is searched too.

    Raises UsageError, naming `flag`, when there is no such function or it fails.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise UsageError(f"{flag} {spec!r} names no function; write package.module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), name)()
    except Exception as error:  # the user's own code may raise anything
        raise UsageError(f"{flag} {spec}: {type(error).__name__}: {error}") from error


def named_outputs(value: Any) -> dict[str, torch.Tensor]:
    """The tensors a module returned, by name: `output`, or `output_0`, `output_1` ..., or the keys of a dictionary.

    None is left out. Raises ModelFileError for anything that is no tensor.
    """
    if isinstance(value, torch.Tensor):
        return {"output": value}
    if isinstance(value, Mapping):
        found = {str(name): part for name, part in value.items()}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        found = dict(zip(value._fields, value, strict=True))
    elif isinstance(value, list | tuple):
        found = {f"output_{position}": part for position, part in enumerate(value)}
    else:
        raise ModelFileError(f"the model returns a {type(value).__name__}; return tensors, alone or in a tuple or dict")
    tensors = {name: part for name, part in found.items() if part is not None}
    for name, part in tensors.items():
        if not isinstance(part, torch.Tensor):
            raise ModelFileError(f"output '{name}' of the model is a {type(part).__name__}; return only tensors")
    if not tensors:
        raise ModelFileError("the model returns no tensor")
    return tensors if len(found) > 1 or isinstance(value, Mapping) else {"output": next(iter(tensors.values()))}


def _of_module(module: Any) -> TorchOriginal:
    module.eval()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters()):
        module.float()
    for parameter in module.parameters():
        parameter.requires_grad_(requires_grad=False)
    if isinstance(module, torch.jit.ScriptModule):
        schema = module.forward.schema.arguments[1:]
        return TorchOriginal(
            module,
            [argument.name.partition(".")[0] for argument in schema],
            sum(not argument.has_default_value() for argument in schema),
        )
    named = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return TorchOriginal(
        module,
        [parameter.name for parameter in named],
        sum(parameter.default is parameter.empty for parameter in named),
    )


def _load_exported(path: Path) -> TorchOriginal:
    program = _trying(path, lambda: torch.export.load(path))
    names = [str(name) for name in program.graph_signature.user_inputs]
    return TorchOriginal(program.module(), names, len(names), program)


def _with_weights(path: Path, model_class: str) -> torch.nn.Module:
    module = call_named(model_class, "--model-class")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"--model-class {model_class} gives a {type(module).__name__}, not a torch.nn.Module")
    state = _trying(path, lambda: _read_state(path))
    if not isinstance(state, Mapping):
        raise ModelFileError(f"{path} holds a {type(state).__name__}, not a state dict")
    state = next((state[key] for key in _STATE_KEYS if isinstance(state.get(key), Mapping)), state)
    # DataParallel and torch.compile put a word before every name.
    state = {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ModelFileError(f"the weights in {path} do not fit {model_class}: {' '.join(lines)[:400]}") from error
    return module


def _read_state(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _trying(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except MemoryError:
        raise
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelFileError(f"{path} cannot be loaded: {reason}; save or copy the model again") from error
