"""Fusion: groups of operators replaced by one that onnxruntime has a kernel for, and what is constant computed once."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, InvalidRequest
from mlserve.model.artifact import Artifact
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors
from mlserve.optimize.disk import no_space_left
from mlserve.optimize.evaluation.parity import largest_difference
from mlserve.optimize.passes.graph import computes_in_int8, excluded_names, graphs, operator_count, write_graph
from mlserve.optimize.passes.int8_operators import refuse_unless_onnx
from mlserve.optimize.passes.step import ALONE, Resources, copy_companions, copy_model, quiet, stepped

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Fuse"]

_FUSED_OPERATORS = ("Gelu", "LayerNormalization")  # and all that are onnxruntime's own
_OWN_DOMAIN = "com.microsoft"
_HIDDEN = "mlserve.excluded."
# Rows, and the length of every other dynamic dimension; 0: as usual for such an input.
_COMPARED_SIZES = ((4, 0), (1, 7), (3, 33))
_COMPARED_ROWS = 8

Rewrite = Callable[["ModelProto"], "ModelProto"]


class Fuse(msgspec.Struct, frozen=True, tag_field="pass", tag="fuse", forbid_unknown_fields=True):
    """Fewer operators for the same answers.

    `transformer`: onnxruntime's fusions (attention, normalization, GELU), found by their pattern in the graph.
    `simplify`: what depends on no input is computed once, batch normalization goes into the convolution before it, and
    what is computed twice or for nothing goes (onnxslim). `separate_weights` leaves the weights of attention and
    embeddings to a MatMul and a Gather of their own, where weight-only and static quantization find them. Operators
    whose name matches one of the patterns `exclude` stay as they are; the shapes behind them are then unknown, and a
    fusion that needs them (SkipLayerNormalization) is not found either.

    Either part is left out when it would change the answers, and a model that holds nothing to fuse comes out as it
    went in. What the hardware decides, such as the layout of convolutions, is left to the session that loads it.
    Raises Refused for a model that is no ONNX file, UsageError for a pattern that matches no operator.
    """

    transformer: bool = True
    simplify: bool = True
    separate_weights: bool = False
    exclude: tuple[str, ...] = ()

    def __call__(self, source: Artifact, out: Path, resources: Resources = ALONE) -> Artifact:
        import onnx

        refuse_unless_onnx(source, "a fusion")
        model = onnx.load(source.model_path)
        excluded = excluded_names(model, self.exclude)
        with TemporaryDirectory(dir=out, prefix=".fused-") as scratch:
            attempts = _Attempts(source, model, Path(scratch), resources)
            if computes_in_int8(model):
                attempts.notes.append("left as it is: it computes in int8 already, and fusions come before that")
            elif attempts.comparable():
                # In this order: simplified, the patterns of attention would not be found any more.
                if self.transformer:
                    rewrite = partial(_fuse_transformer, separate_weights=self.separate_weights)
                    attempts.make("fused", partial(_hiding, excluded, rewrite))
                if self.simplify:
                    attempts.make("simplified", partial(_hiding, excluded, _simplify))
            notes = (*attempts.notes, *_what_changed(model, attempts.model))
            if attempts.folder is None:
                copy_model(source, out)
            else:
                for path in attempts.folder.iterdir():
                    path.rename(out / path.name)
        copy_companions(source, out)
        return stepped(source, out, self, notes or ("nothing to fuse",))


class _Attempts:
    """The best model so far, and the folder it lies in; None while that is the source itself."""

    def __init__(self, source: Artifact, model: "ModelProto", scratch: Path, resources: Resources) -> None:
        self.model = model
        self.folder: Path | None = None
        self.notes: list[str] = []
        self._source, self._scratch, self._resources = source, scratch, resources
        self._cases: list[tuple[Tensors, Tensors]] = []

    def comparable(self) -> bool:
        """Whether there are rows that the source answers, so that what is made of it can be held against that."""
        settings = EngineSettings(threads=self._resources.threads)
        unfit = ""
        with contextlib.closing(OnnxEngine(self._source.model_path, settings)) as engine:
            for inputs in _compared_inputs(self._source, self._resources):
                try:
                    self._cases.append((inputs, engine.run(inputs)))
                except (EngineError, InvalidRequest) as error:
                    unfit = str(error)
        if not self._cases:
            self.notes.append(f"not fused: the result could not be compared on made-up rows ({unfit})")
        return bool(self._cases)

    def make(self, done: str, rewrite: Rewrite) -> None:
        """Keeps what `rewrite` makes of the model when it answers like the source. `done` names it in the notes."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        folder = self._scratch / done
        folder.mkdir()
        try:
            with quiet():
                model = rewrite(model)
            if _operators(model) == _operators(self.model):
                return
            _restore_interface(model, self.model)
            fault = self._fault(write_graph(model, folder, self._source))
        except Exception as error:  # the optimizers fail in as many ways as there are graphs
            if no_space_left(error):
                raise
            fault = f"{type(error).__name__}: {error}"
        if fault:
            self.notes.append(f"not {done}: {fault}")
        else:
            self.model, self.folder = model, folder

    def _fault(self, target: Path) -> str:
        """Why the model in `target` must not be used; "" when it answers like the source."""
        try:
            with contextlib.closing(OnnxEngine(target, EngineSettings(threads=self._resources.threads))) as engine:
                difference = max(
                    (largest_difference(expected, engine.run(inputs)) for inputs, expected in self._cases),
                    key=lambda found: found.relative,
                )
        except (EngineError, InvalidRequest) as error:
            return f"the result could not be compared ({error})"
        return "" if difference.acceptable else f"it would change the answers ({difference})"


def _hiding(excluded: frozenset[str], rewrite: Rewrite, model: "ModelProto") -> "ModelProto":
    """`rewrite`, done while the operators `excluded` are of a kind that no pattern knows."""
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.name in excluded:
                node.domain, node.op_type = f"{_HIDDEN}{node.domain}", f"{_HIDDEN}{node.op_type}"
    made = rewrite(model)
    for graph in graphs(made.graph):
        for node in graph.node:
            node.domain, node.op_type = node.domain.removeprefix(_HIDDEN), node.op_type.removeprefix(_HIDDEN)
    return made


def _fuse_transformer(model: "ModelProto", *, separate_weights: bool) -> "ModelProto":
    """The fusions for encoders like BERT, which are also those onnxruntime has CPU kernels for."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_gelu_approximation = False  # it would change the answers
    options.use_raw_attention_mask(True)  # the other kind takes every mask for padding on the right
    options.use_multi_head_attention = separate_weights
    options.enable_embed_layer_norm = not separate_weights
    return optimize_model(model, "bert", opt_level=0, optimization_options=options).model


def _simplify(model: "ModelProto") -> "ModelProto":
    import onnxslim

    made = onnxslim.slim(model)
    _restore_names(made, model)
    return made


def _restore_names(made: "ModelProto", origin: "ModelProto") -> None:
    """Gives an operator that took another into it its own name again: others find it by that."""
    present = {node.name for node in made.graph.node}
    vanished: dict[tuple[str, str], list[str]] = {}
    for node in origin.graph.node:
        if node.name and node.input and node.name not in present:
            vanished.setdefault((node.op_type, node.input[0]), []).append(node.name)
    named = {node.name for node in origin.graph.node}
    for node in made.graph.node:
        names = vanished.get((node.op_type, node.input[0]), []) if node.input else []
        if node.name not in named and len(names) == 1:
            node.name = names.pop()


def _restore_interface(made: "ModelProto", origin: "ModelProto") -> None:
    """Gives `made` the inputs and outputs of `origin`: onnxslim drops an input that nothing uses."""
    weights = {tensor.name for tensor in made.graph.initializer}
    inputs = [value for value in origin.graph.input if value.name not in weights]
    del made.graph.input[:], made.graph.output[:]
    made.graph.input.extend(inputs)
    made.graph.output.extend(origin.graph.output)


def _operators(model: "ModelProto") -> Counter[tuple[str, str]]:
    return Counter(
        (node.domain, node.op_type)
        for graph in graphs(model.graph)
        for node in graph.node
        if node.op_type != "Constant"
    )


def _what_changed(before: "ModelProto", after: "ModelProto") -> list[str]:
    gained = _operators(after) - _operators(before)
    fused = [
        f"{count} {name}"
        for (domain, name), count in sorted(gained.items())
        if domain == _OWN_DOMAIN or name in _FUSED_OPERATORS
    ]
    one, other = operator_count(before), operator_count(after)
    return [*fused, f"{one} operators became {other}"] if after is not before else []


def _compared_inputs(source: Artifact, resources: Resources) -> Iterator[Tensors]:
    """Made-up rows of several sizes, some of them padded on either side, and some of the user's."""
    specs = source.manifest.inputs
    rng = np.random.default_rng(3)
    image = any(len(spec.shape) == 4 for spec in specs)
    names = {dim for spec in specs for dim in spec.shape[1:] if isinstance(dim, str)}
    for rows, length in _COMPARED_SIZES[: 1 if image or not names else None]:
        yield _padded(synthesize(specs, rows, rng, dict.fromkeys(names, length) if length else {}))
    if resources.rows is not None:
        first = specs[0].shape[0] if specs[0].shape else 1
        yield resources.rows.batch(0, first if isinstance(first, int) else min(_COMPARED_ROWS, len(resources.rows)))


def _padded(inputs: Tensors) -> Tensors:
    """Masks [rows, length] with every second row padded on the right, and every fourth on the left."""
    padded = dict(inputs)
    for name, array in inputs.items():
        if "mask" in name and array.ndim == 2 and array.dtype.kind in "iub":
            mask = array.copy()
            half = mask.shape[1] // 2
            mask[1::2, mask.shape[1] - half :] = 0
            mask[2::4, :half] = 0
            padded[name] = mask
    return padded
