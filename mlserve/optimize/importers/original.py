"""A PyTorch model as it came: loaded as carefully as its form allows, and callable with named numpy arrays."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch

from mlserve.engines.torch_engine import load_program
from mlserve.errors import ModelFileError, UsageError
from mlserve.model.tensors import DATATYPE_OF, Tensors
from mlserve.optimize.importers.checkpoint import read_checkpoint, weights_for
from mlserve.optimize.importers.request import ImportRequest
from mlserve.optimize.users_code import call_named

__all__ = ["TorchOriginal", "load_original", "named_outputs"]

_HALF_TYPES = (torch.float16, torch.bfloat16)


class TorchOriginal:
    """A module in inference mode. `parameters` are the names `forward` gives its inputs, `required` how many it needs.

    `run` maps named arrays to named arrays once `bind` has said which inputs there are; `bound` are their names.
    `by_name` are the inputs that a torch.export `program` only takes as keywords, `widened_from` the half precision its
    weights had, `frozen` the parameters that its own code keeps from being trained.
    """

    def __init__(
        self,
        module: Any,
        parameters: Sequence[str],
        required: int,
        *,
        program: Any = None,
        by_name: Sequence[str] = (),
        widened_from: str = "",
        frozen: Collection[str] = (),
    ) -> None:
        self.module, self.parameters, self.required = module, list(parameters), required
        self.program, self.by_name, self.widened_from = program, frozenset(by_name), widened_from
        self.frozen = frozenset(frozen)
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
        if self.program is not None:
            positional = tuple(value for name, value in values.items() if name not in self.by_name)
            return positional, {name: value for name, value in values.items() if name in self.by_name}
        if self.bound == self.parameters[: len(values)] or not all(name in self.parameters for name in values):
            return tuple(values.values()), {}
        return (), values

    def with_module(self, module: Any) -> "TorchOriginal":
        """The same with another module in its place, which takes and gives the same; in inference mode."""
        if module is self.module:
            module.eval()
            _freeze(module)
            return self
        found = _of_module(module)
        found.bind(self.bound)
        found.widened_from = self.widened_from
        return found

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
    _choose_plain_attention()
    path = Path(request.source)
    match request.kind:
        case "exported":
            return _load_exported(path, trust=request.trust_pickle)
        case "torchscript":
            return _of_module(_trying(path, lambda: torch.jit.load(path, map_location="cpu")))
        case "pickle":
            sys.path.insert(0, str(Path.cwd()))
            module = _trying(path, lambda: torch.load(path, map_location="cpu", weights_only=False))
            if isinstance(module, Mapping):  # a checkpoint
                modules = [part for part in module.values() if isinstance(part, torch.nn.Module)]
                module = modules[0] if len(modules) == 1 else module
            if not isinstance(module, torch.nn.Module):
                raise ModelFileError(f"{path} holds a {type(module).__name__}, not a torch.nn.Module")
            return _of_module(module)
        case _:
            return _of_module(_with_weights(path, request.model_class))


def named_outputs(value: Any) -> dict[str, torch.Tensor]:
    """The tensors a module returned, by name: `output`, or `output_0`, `output_1` ..., or the keys or fields they have.

    None is left out. Raises ModelFileError for anything that is no tensor, or of a type that is not served.
    """
    if isinstance(value, torch.Tensor):
        found = {"output": value}
    elif isinstance(value, Mapping):
        found = {str(name): part for name, part in value.items()}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        found = dict(zip(value._fields, value, strict=True))
    elif dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, list | tuple):
        found = {f"output_{position}": part for position, part in enumerate(value)}
    else:
        raise ModelFileError(f"the model returns a {type(value).__name__}; return tensors, alone or in a tuple or dict")
    tensors = {name: part for name, part in found.items() if part is not None}
    for name, part in tensors.items():
        if not isinstance(part, torch.Tensor):
            raise ModelFileError(f"output '{name}' of the model is a {type(part).__name__}; return only tensors")
        if str(part.dtype).removeprefix("torch.") not in DATATYPE_OF:
            raise ModelFileError(f"output '{name}' of the model is {part.dtype}, which no serving protocol carries")
    if not tensors:
        raise ModelFileError("the model returns no tensor")
    return tensors if len(found) > 1 or isinstance(value, Mapping) else {"output": next(iter(tensors.values()))}


def _choose_plain_attention() -> None:
    """Keeps torch's encoder from what no exporter can follow: neither changes the answers.

    In inference its layers run as one fused operator that ONNX has no name for, and it looks into the values of a mask
    to see whether a shortcut for causal masks would do.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    torch.nn.modules.transformer._detect_is_causal_mask = lambda _mask, is_causal=None, _size=None: bool(is_causal)  # noqa: SLF001  # there is no switch


def _of_module(module: Any) -> TorchOriginal:
    module.eval()
    half = next((parameter.dtype for parameter in module.parameters() if parameter.dtype in _HALF_TYPES), None)
    if half is not None:
        module.float()
    widened_from = str(half).removeprefix("torch.") if half is not None else ""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    _freeze(module)
    if isinstance(module, torch.jit.ScriptModule):
        schema = module.forward.schema.arguments[1:]
        return TorchOriginal(
            module,
            [argument.name.partition(".")[0] for argument in schema],
            sum(not argument.has_default_value() for argument in schema),
            widened_from=widened_from,
            frozen=frozen,
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
        widened_from=widened_from,
        frozen=frozen,
    )


def _freeze(module: Any) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(requires_grad=False)


def _load_exported(path: Path, *, trust: bool) -> TorchOriginal:
    program = _trying(path, lambda: torch.export.load(path) if trust else load_program(path))
    names = [str(name) for name in program.graph_signature.user_inputs]
    positional, keywords = program.call_spec.in_spec.children()
    if any(not part.is_leaf() for part in (*positional.children(), *keywords.children())):
        raise ModelFileError(
            f"{path} takes {', '.join(names)} inside lists or dictionaries; export it with plain tensors as its inputs"
        )
    by_name = names[positional.num_children :]
    module = program.module()
    # The graph is of one mode, and torch raises when it is asked for the other.
    module.train = module.eval = MethodType(lambda self, *_: self, module)
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    return TorchOriginal(module, names, len(names), program=program, by_name=by_name, frozen=frozen)


def _with_weights(path: Path, model_class: str) -> torch.nn.Module:
    module = call_named(model_class, "--model-class")
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"--model-class {model_class} gives a {type(module).__name__}, not a torch.nn.Module")
    state = _trying(path, lambda: read_checkpoint(path))
    if not isinstance(state, Mapping):
        raise ModelFileError(f"{path} holds a {type(state).__name__}, not a state dict")
    try:
        module.load_state_dict(weights_for(set(module.state_dict()), state))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise ModelFileError(f"the weights in {path} do not fit {model_class}: {' '.join(lines)[:400]}") from error
    return module


def _trying(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (MemoryError, ModelFileError):
        raise
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ModelFileError(f"{path} cannot be loaded: {reason}; save or copy the model again") from error
