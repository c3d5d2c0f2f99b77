"""A PyTorch model to ONNX: the first way of exporting it whose file gives the original's answers."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, InvalidRequest, ModelFileError, Refused
from mlserve.model.onnx_file import inspect_onnx
from mlserve.model.rows import Rows
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.evaluation.parity import Difference, largest_difference
from mlserve.optimize.importers.inputs import Inputs
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES, name_values, write_model
from mlserve.optimize.importers.original import TorchOriginal, named_outputs
from mlserve.optimize.importers.shapes import Run, Sizes, fix, output_specs, words
from mlserve.optimize.importers.torchscript import know_unflatten, program_of, replayed

__all__ = ["Exported", "check_parity", "export", "save_program"]

_OPSET, _TRACE_OPSET = 18, 17
_PARITY_ROWS = 32

OnStep = Callable[[str], None]
Exporter = Literal["dynamo", "trace", "program", "replay"]


class Exported(msgspec.Struct, frozen=True):
    """The specs the written file holds to, and how it came about."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


class _Attempt(msgspec.Struct, frozen=True):
    """One way to export, with these dimensions open.

    `dynamo` and `trace` are torch's newer and older exporter. The others are for TorchScript that the older one cannot
    read: `program` converts it for the newer one, `replay` records the operators of one run, which fixes every size.
    """

    exporter: Exporter
    specs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        dims = ", ".join(words(self.specs)) or "nothing"
        return f"torch.onnx ({self.exporter}), open: {dims}"


def export(original: TorchOriginal, inputs: Inputs, rows: Rows | None, out: Path, on_step: OnStep) -> Exported:
    """Writes `out/model.onnx`, checked against `original` on made-up inputs of several sizes and on `rows`.

    Raises Refused, naming the worst output, when a file was made but none agrees; ModelFileError when none was made.
    """
    refusals: list[str] = []
    failures: list[str] = []
    for attempt in _attempts(original, inputs):
        on_step(f"exporting: {attempt}")
        with tempfile.TemporaryDirectory(dir=out) as folder:
            path = Path(folder) / "exported.onnx"
            try:
                outputs = output_specs(original.run, attempt.specs, inputs.sizes)
                _write(original, attempt, outputs, inputs.sizes, path)
                name_values(path, {_interim(spec): spec.name for spec in (*attempt.specs, *outputs)})
            except ModelFileError:  # what the model gives cannot be served, whichever way it is exported
                raise
            except Exception as error:  # an exporter fails in as many ways as there are models
                if no_space_left(error):
                    raise
                failures.append(f"{attempt}: {_reason(error)}")
                continue
            difference = _compare(original.run, path, attempt.specs, inputs.sizes, rows)
            if difference.acceptable:
                write_model(path, out)
                return Exported(attempt.specs, outputs, (str(attempt), _agreement(difference)))
            refusals.append(f"{attempt}: {difference}")
    if refusals:
        raise Refused(
            f"nothing was published: the ONNX file does not give the model's answers. {'; '.join(refusals[:2])}"
        )
    raise ModelFileError(f"the model cannot be exported to ONNX. {'; '.join(failures[:2])}")


def save_program(original: TorchOriginal, specs: Sequence[TensorSpec], sizes: Sizes, path: Path) -> None:
    """Writes the model as a torch.export program that takes `specs` in their order, for the engine `torch`.

    Raises Refused when it becomes none, or one that gives other answers.
    """
    if original.scripted:
        raise Refused("TorchScript becomes no torch.export program; save the model itself with torch.export")
    made_up = synthesize([fix(spec, sizes) for spec in specs], 1, np.random.default_rng(0))
    arguments = tuple(torch.from_numpy(array) for array in made_up.values())
    shapes = (tuple(_open_dims(spec) for spec in specs),)
    try:
        with torch.no_grad():
            program = torch.export.export(_Flat(original), arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # as in `export`
        raise Refused(f"the model becomes no torch.export program: {_reason(error)}") from error
    module = program.module()
    for inputs in _trials(specs, sizes, None):
        expected = original.run(inputs)
        with torch.inference_mode():
            found = module(*[torch.from_numpy(inputs[spec.name]) for spec in specs])
        answers = dict(zip(expected, (tensor.numpy() for tensor in found), strict=True))
        difference = largest_difference(expected, answers)
        if not difference.acceptable:
            raise Refused(f"the torch.export program does not give the model's answers: {difference}")
    torch.export.save(program, path)


def check_parity(run: Run, path: Path, specs: Sequence[TensorSpec], sizes: Sizes, rows: Rows | None) -> str:
    """How well the file agrees with `run`, in words. Raises Refused, naming the worst output, when it does not."""
    difference = _compare(run, path, specs, sizes, rows)
    if not difference.acceptable:
        raise Refused(f"nothing was published: the ONNX file does not give the model's answers: {difference}")
    return _agreement(difference)


def _agreement(difference: Difference) -> str:
    return f"agrees with the original to {difference.relative:.1e} of each output's size"


def _attempts(original: TorchOriginal, inputs: Inputs) -> Iterator[_Attempt]:
    """All dimensions open, then only the rows, then none; each with every exporter that can read the model."""
    exporters: list[Exporter] = ["dynamo", "trace"]
    if original.scripted:
        exporters = ["trace", "program"]
    elif original.program is not None:
        exporters = ["dynamo"]
    rows = words(inputs.specs)[:1]
    ways = (_with_open(inputs, open_words, rows) for open_words in (words(inputs.specs), rows, []))
    for specs in dict.fromkeys(ways):
        yield from (_Attempt(exporter, specs) for exporter in exporters)
    if original.scripted:
        yield _Attempt("replay", _with_open(inputs, [], rows))


def _with_open(inputs: Inputs, open_words: list[str], rows: list[str]) -> tuple[TensorSpec, ...]:
    """The specs with every other dimension fixed; fixed rows are one row."""
    sizes = inputs.sizes | dict.fromkeys(rows, 1)
    return tuple(fix(spec, {word: sizes[word] for word in sizes if word not in open_words}) for spec in inputs.specs)


def _write(original: TorchOriginal, attempt: _Attempt, outputs: Sequence[TensorSpec], sizes: Sizes, path: Path) -> None:
    specs = attempt.specs
    large = sum(parameter.nbytes for parameter in original.module.parameters()) > INLINE_LIMIT_BYTES
    names: dict[str, Any] = {
        "input_names": [_interim(spec) for spec in specs],
        "output_names": [_interim(spec) for spec in outputs],
    }
    dynamo: dict[str, Any] = {"dynamo": True, "external_data": large, "verbose": False, **names}
    if original.program is not None:
        torch.onnx.export(original.program, (), path, **dynamo)
        return
    made_up = synthesize([fix(spec, sizes) for spec in specs], 1, np.random.default_rng(0))
    tensors = {name: torch.from_numpy(array) for name, array in made_up.items()}
    arguments = tuple(tensors.values())
    if attempt.exporter == "program":
        torch.onnx.export(program_of(original.module, *original.arguments(tensors)), (), path, **dynamo)
    elif attempt.exporter == "replay":
        graph = replayed(_Flat(original).forward, original.module, arguments)
        torch.onnx.export(graph, arguments, path, opset_version=_OPSET, **dynamo)
    elif attempt.exporter == "dynamo":
        shapes = (tuple(_open_dims(spec) for spec in specs),)
        with torch.no_grad():
            torch.onnx.export(_Flat(original), arguments, path, dynamic_shapes=shapes, opset_version=_OPSET, **dynamo)
    else:
        module: Any = _Flat(original)
        keywords: dict[str, Any] = {}
        if original.scripted:  # a module that is TorchScript itself cannot stand inside another one
            module = original.module
            arguments, keywords = original.arguments(tensors)
            know_unflatten()
        axes = {_interim(spec): _open_axes(spec) for spec in (*specs, *outputs)}
        with torch.no_grad():
            torch.onnx.export(
                module, arguments, path, kwargs=keywords or None, dynamo=False, dynamic_axes=axes,
                opset_version=_TRACE_OPSET, **names,
            )  # fmt: skip


def _interim(spec: TensorSpec) -> str:
    """What an input or output is called while it is exported: exporters name values inside after torch's operators, and
    an output named `embedding` or `mean` would be there twice.
    """
    return f"interface/{spec.name}"


class _Flat(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """The model with its outputs as a plain tuple, the one form both exporters keep the order of."""

    def __init__(self, original: TorchOriginal) -> None:
        super().__init__()
        self.module = original.module
        self._original = original

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        names = self._original.bound
        arguments, keywords = self._original.arguments(dict(zip(names, tensors, strict=True)))
        return tuple(named_outputs(self.module(*arguments, **keywords)).values())


def _open_dims(spec: TensorSpec) -> dict[int, Any]:
    return {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}


def _open_axes(spec: TensorSpec) -> dict[int, str]:
    return {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}


def _compare(run: Run, path: Path, specs: Sequence[TensorSpec], sizes: Sizes, rows: Rows | None) -> Difference:
    """The worst difference over made-up inputs of several sizes and the user's own rows.

    Raises ModelFileError when the original does not run on one of them.
    """
    inspect_onnx(path)
    try:
        engine = OnnxEngine(path, EngineSettings(threads=torch.get_num_threads()))
    except EngineError as error:
        reason = str(error).removeprefix(f"{path} cannot be loaded: ")
        return Difference("", np.inf, f"onnxruntime does not load it: {reason}")
    with contextlib.closing(engine):
        differences = []
        for inputs in _trials(specs, sizes, rows):
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            try:
                expected = run(inputs)
            except Exception as error:  # the model's own code may raise anything
                raise ModelFileError(f"the model itself does not run on {shapes}: {_reason(error)}") from error
            try:
                differences.append(largest_difference(expected, engine.run(inputs)))
            except (EngineError, InvalidRequest) as error:
                return Difference("", np.inf, f"onnxruntime fails on {shapes}: {error}")
        return max(differences, key=lambda difference: difference.relative)


def _trials(specs: Sequence[TensorSpec], sizes: Sizes, rows: Rows | None) -> Iterator[Tensors]:
    rng = np.random.default_rng(2)
    open_words = words(specs)
    for count in (3, 1, 8) if open_words else (1,):
        # Other dimensions shrink as the rows grow: a size baked into the graph must show.
        varied = {word: max(1, sizes[word] - count // 2) for word in open_words[1:]} | dict.fromkeys(
            open_words[:1], count
        )
        yield synthesize([fix(spec, sizes | varied) for spec in specs], count, rng)
    if rows is not None:
        step = 1 if not open_words else _PARITY_ROWS
        for start in range(0, min(len(rows), _PARITY_ROWS), step):
            yield rows.batch(start, min(start + step, len(rows)))


def _reason(error: Exception) -> str:
    """The cause at the end of the chain: exporters wrap it several times over."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else 'no reason given'}"
