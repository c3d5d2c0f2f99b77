"""The PyTorch engine: a torch.export program (`model.pt2`), run as it is or compiled by torch.compile."""

import gc
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from mlserve.engines.device import parse_device
from mlserve.engines.engine import EngineSettings, Execution
from mlserve.engines.feed import arrays_in_order
from mlserve.engines.program_text import is_plain, unsafe_text
from mlserve.engines.unpickling import only_tensors
from mlserve.errors import EngineError, InvalidRequest, ModelFileError
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Array, Tensors, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch.export import ExportedProgram

__all__ = ["TorchEngine", "TorchFacts", "load_program", "torch_facts"]

# Rows that torch.compile is shown at load. It makes code of its own for one row, and so do oneDNN's convolutions for
# sixteen and more.
_SHOWN_ROWS = (2, 1, 32)


class TorchEngine:
    """An exported program on the CPU or a CUDA device.

    `inputs` and `outputs` are those of the manifest, in the order of the program's own: its outputs have no names, and
    those of its inputs need not be the model's. `compiled` compiles it while loading, by running made-up rows through
    it, and never at the first request.

    PyTorch's number of threads is a setting of the whole process; every `run` sets that of its engine, so engines with
    different numbers should not run at once in one process. Float32 is never rounded to TF32. Raises EngineError when
    the program cannot be loaded or compiled, or when the device or the compute type is not to be had.
    """

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        compiled: bool = False,
    ) -> None:
        if settings.compute_type:
            raise EngineError(
                f"PyTorch computes in the types its program was exported in, not in {settings.compute_type!r}; leave "
                "--compute-type away, or export the model in that type"
            )
        self.inputs, self.outputs = inputs, outputs
        self._threads = settings.threads
        self._device = _device(settings.device)
        self.execution = Execution(f"{'torch-compiled' if compiled else 'torch'} {self._device}")
        program = _load(path, self._device)
        _check_counts(program, inputs, outputs, path)
        self._in_spec = program.call_spec.in_spec
        self._overwrites = _writes_in_place(program)
        self._call: Callable[..., Any] = program.module()
        if compiled:
            self._compile(path)

    def run(self, inputs: Tensors) -> Tensors:
        arrays = arrays_in_order(inputs, self.inputs)
        try:
            results = self._compute(arrays)
        except IndexError as error:  # of an embedding
            raise InvalidRequest(f"the model refused these values: {error}") from error
        except Exception as error:  # what a model's own operators raise has no common base
            raise EngineError(_reason(error)) from error
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}

    def close(self) -> None:
        del self._call
        # A program's modules refer to each other in circles: the collector alone frees them, unless they are frozen.
        gc.unfreeze()
        gc.collect()

    def _compute(self, arrays: list[Array]) -> list[Array]:
        import torch
        from torch.utils import _pytree as pytree

        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            args, kwargs = pytree.tree_unflatten([self._tensor(array) for array in arrays], self._in_spec)
            results = pytree.tree_leaves(self._call(*args, **kwargs))
            return [result.cpu().numpy() for result in results]

    def _tensor(self, array: Array) -> "Tensor":
        """A tensor on the array's own memory, where that may be written to: PyTorch knows no read-only memory.

        Compiled code is made for one order of the values in memory, and would be made again for another.
        """
        import torch

        shared = array.flags.writeable and array.flags.c_contiguous and not self._overwrites
        return torch.from_numpy(array if shared else array.copy()).to(self._device)

    def _compile(self, path: Path) -> None:
        import torch

        rng = np.random.default_rng(0)
        try:
            # The compiler uses parts of PyTorch that PyTorch itself has deprecated.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _compile_in_this_process()
                self._call = torch.compile(self._call, dynamic=True, fullgraph=True)
                for rows in _SHOWN_ROWS:
                    shown = synthesize(self.inputs, rows, rng)
                    self._compute([shown[spec.name] for spec in self.inputs])
        except Exception as error:  # the compiler fails in as many ways as there are graphs
            advice = "use --engine torch"
            if "InvalidCxxCompiler" in str(error):
                advice = f"install a C++ compiler, such as g++, or {advice}"
            raise EngineError(f"{path} cannot be compiled by torch.compile: {_reason(error)}; {advice}") from error


class TorchFacts(msgspec.Struct, frozen=True):
    """What the installed PyTorch is and finds. `cuda` is the version it was built with, "" for none."""

    version: str
    cuda: str
    cuda_devices: tuple[str, ...]


def torch_facts() -> TorchFacts:
    """The PyTorch installed here; `cuda_devices` are the names of those it can use."""
    import torch

    found = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    names = tuple(torch.cuda.get_device_name(number) for number in found)
    return TorchFacts(str(torch.__version__), torch.version.cuda or "", names)


def _compile_in_this_process() -> None:
    """A pool of compiler processes would outlive the compilation, in every worker of a server."""
    from torch._inductor import config

    config.compile_threads = 1


def _device(text: str) -> "device":
    import torch

    wanted = parse_device(text, "PyTorch", ("cuda",))
    if wanted.kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available() or wanted.number >= torch.cuda.device_count():
        found = f"finds {torch.cuda.device_count()} CUDA devices" if torch.version.cuda else "was built without CUDA"
        raise EngineError(f"--device {text}: PyTorch {found}; see: mlserve doctor")
    # Convolutions round float32 to TF32 unless told not to; matrix products do not.
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    return torch.device("cuda", wanted.number)


def _load(path: Path, where: "device") -> "ExportedProgram":
    from torch.export.passes import move_to_device_pass

    logging.disable(logging.ERROR)  # PyTorch logs the traceback of what we report as an error of our own
    try:
        program = load_program(path)
        return program if where.type == "cpu" else move_to_device_pass(program, where)
    except Exception as error:  # a damaged archive fails anywhere
        raise EngineError(f"{path} cannot be loaded as a torch.export program: {_reason(error)}") from error
    finally:
        logging.disable(logging.NOTSET)


def load_program(path: Path) -> "ExportedProgram":
    """The torch.export program at `path`, loaded without running code of it, and fit to be made a module of.

    Raises ModelFileError for one that holds code, as a pickle, compiled or in its text, and whatever PyTorch does for
    damage.
    """
    import torch

    # By the reader that load itself has: another could see other files in the same archive. It refuses files outside of
    # one folder, and with them the format of torch 2.7, which load would turn to where it cannot read this one.
    reader = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001  # as above
    records = reader.get_all_records()
    compiled = next((name for name in records if "aotinductor/" in name or name.endswith((".so", ".o"))), "")
    if compiled:
        raise ModelFileError(f"{path} holds compiled code ({compiled[:200]}); export the program without compiling it")
    for name in records:
        if name.startswith("models/") and (unsafe := unsafe_text(reader.get_record(name))):
            raise _runs(path, unsafe)
    with only_tensors(path):
        program = torch.export.load(path)
    if unsafe := _unsafe_input(program):
        raise _runs(path, unsafe)
    return program


def _unsafe_input(program: "ExportedProgram") -> str:
    """What of the inputs PyTorch would write into the source of a module as more than a text; empty for nothing."""
    from torch.utils import _pytree as pytree

    samples, _ = pytree.tree_flatten_with_path(program.example_inputs)
    keys = [key.key for path, _ in samples for key in path if isinstance(key, pytree.MappingKey)]
    values = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    texts = [str(key) for key in keys] + [value for value in values if isinstance(value, str)]
    return next((f"an input: {text}" for text in texts if not is_plain(text)), "")


def _runs(path: Path, unsafe: str) -> ModelFileError:
    return ModelFileError(
        f"{path} holds text that PyTorch could run as code when it is loaded ({unsafe[:200]!r}); export the program "
        "again, with plain operators and names"
    )


def _writes_in_place(program: "ExportedProgram") -> bool:
    """Whether some operator writes to its argument, and so perhaps to an input; the signature does not tell."""
    schemas = (getattr(node.target, "_schema", None) for node in program.graph.nodes if node.op == "call_function")
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _check_counts(
    program: "ExportedProgram", inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], path: Path
) -> None:
    found = len(program.graph_signature.user_inputs), len(program.graph_signature.user_outputs)
    if found != (len(inputs), len(outputs)):
        raise EngineError(
            f"{path} has {found[0]} inputs and {found[1]} outputs, its manifest names {len(inputs)} and "
            f"{len(outputs)}; optimize the model again"
        )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:500] or type(error).__name__
