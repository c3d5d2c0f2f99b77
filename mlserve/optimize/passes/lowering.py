"""An ONNX graph from float32 to a type of half the size, operator by operator.

Which operators can compute in the narrow type is read from their schemas. The others stay in float32, as do those that
the caller names, and control flow with all that is inside it; a cast stands wherever the two meet. Inputs and outputs
keep their types.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from mlserve.optimize.passes.graph import FREE_INITIALIZERS_IR, graphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from mlserve.model.tensors import Array

__all__ = ["Lowered", "Narrow", "constants_as_weights", "first_result", "largest_number", "lower"]

Narrow = Literal["fp16", "bf16"]

_FLOAT32 = "tensor(float)"
_TYPE_NAMES: dict[Narrow, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}


class Lowered(msgspec.Struct, frozen=True):
    """What `lower` did. `operators` compute in the narrow type; `incapable`: type of operator -> how many cannot.

    Of the `weights` numbers that were stored in the narrow type, `rounded` were too small for its full precision.
    """

    operators: int
    incapable: dict[str, int]
    weights: int
    rounded: int


class _Plan(msgspec.Struct, frozen=True):
    """Which inputs and outputs of one operator are of the narrow type."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


class _Form(msgspec.Struct, frozen=True):
    """A schema: the type of each parameter, or the name of a set of types; whether the last one repeats."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: dict[str, frozenset[str]]


def largest_number(to: Narrow) -> float:
    """The largest finite number of the type."""
    return float(_limits(to).max)


def constants_as_weights(model: "ModelProto") -> None:
    """Turns float32 constants that are written as operators into weights, and weights that are inputs too into such
    that are not.
    """
    from onnx import TensorProto

    graph = model.graph
    operators = []
    for node in graph.node:
        value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
        if node.op_type == "Constant" and value is not None and value.data_type == TensorProto.FLOAT:
            weight = TensorProto()
            weight.CopyFrom(value)
            weight.name = node.output[0]
            graph.initializer.append(weight)
        else:
            operators.append(node)
    del graph.node[:]
    graph.node.extend(operators)
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, FREE_INITIALIZERS_IR)


def lower(model: "ModelProto", to: Narrow, floats: frozenset[str], stay: frozenset[str]) -> Lowered:
    """Rewrites `model` in place.

    `floats` are the float32 tensors that its operators make, `stay` the operators that keep float32, each by its first
    result. Float32 weights beyond the range become its largest number; those too small, its smallest.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == tensor.FLOAT}
    inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == 1}
    known = floats | weights.keys() | inputs
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    plans = [_plan(node, opsets, to, known, stay) for node in graph.node]
    rewriting = _Rewriting(model, to, plans)
    narrowed = rewriting.weights(weights)
    rewriting.operators(sorted(inputs))
    # What was noted of shapes and types holds no more; onnxruntime infers them.
    del graph.value_info[:]
    incapable = Counter(
        node.op_type
        for node, plan in zip(rewriting.origin, plans, strict=True)
        if first_result(node) not in stay and not any(plan.outputs + plan.inputs) and known & {*node.input}
    )
    operators = sum(any(plan.outputs + plan.inputs) for plan in plans)
    return Lowered(operators, dict(incapable), *narrowed)


def first_result(node: "NodeProto") -> str:
    """What names an operator also when it has no name."""
    return next((name for name in node.output if name), "")


class _Rewriting:
    """Carries out the plans for every operator of a graph."""

    def __init__(self, model: "ModelProto", to: Narrow, plans: Sequence[_Plan]) -> None:
        from onnx import TensorProto

        self._graph, self._to, self._plans = model.graph, to, plans
        self._type = TensorProto.FLOAT16 if to == "fp16" else TensorProto.BFLOAT16
        self.origin = list(model.graph.node)
        self._narrow_wanted = {
            name
            for node, plan in self._planned()
            for name, narrow in zip(node.input, plan.inputs, strict=True)
            if narrow
        }
        self._wide_wanted = {value.name for value in self._graph.output} | {
            name
            for node, plan in self._planned()
            for name, narrow in zip(node.input, plan.inputs, strict=True)
            if not narrow
        }
        for node in self.origin:
            self._wide_wanted.update(_captured(node))
        self._taken = {
            name for inner in graphs(model.graph) for node in inner.node for name in (*node.input, *node.output)
        }
        self._narrow_names: dict[str, str] = {}

    def _planned(self) -> "Iterator[tuple[NodeProto, _Plan]]":
        return zip(self.origin, self._plans, strict=True)

    def _narrow_name(self, name: str) -> str:
        if name not in self._narrow_names:
            fresh = f"{name}_{self._to}"
            while fresh in self._taken:
                fresh += "_"
            self._taken.add(fresh)
            self._narrow_names[name] = fresh
        return self._narrow_names[name]

    def weights(self, weights: "dict[str, TensorProto]") -> tuple[int, int]:
        """Stores weights in the types they are wanted in; how many numbers are narrow, and how many lost precision."""
        kept = [tensor for tensor in self._graph.initializer if tensor.name not in weights]
        count = rounded = 0
        for name, tensor in weights.items():
            if name in self._narrow_wanted:
                narrow, lost = _narrowed(tensor, self._to, self._narrow_name(name))
                kept.append(narrow)
                count, rounded = count + int(np.prod(tensor.dims)), rounded + lost
            if name in self._wide_wanted:
                kept.append(tensor)
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        return count, rounded

    def operators(self, inputs: Sequence[str]) -> None:
        """Rewires every operator, and puts a cast behind what is wanted in the other type."""
        nodes = [self._cast(name, to_narrow=True) for name in inputs if name in self._narrow_wanted]
        for node, plan in self._planned():
            for position, narrow in enumerate(plan.inputs):
                if narrow:
                    node.input[position] = self._narrow_name(node.input[position])
            casts = []
            for position, narrow in enumerate(plan.outputs):
                name = node.output[position]
                if narrow:
                    node.output[position] = self._narrow_name(name)
                if name in (self._wide_wanted if narrow else self._narrow_wanted):
                    casts.append(self._cast(name, to_narrow=not narrow))
            if node.op_type == "Cast" and any(plan.outputs):
                next(attribute for attribute in node.attribute if attribute.name == "to").i = self._type
            nodes += [node, *casts]
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _cast(self, name: str, *, to_narrow: bool) -> "NodeProto":
        from onnx import TensorProto, helper

        wide, narrow = name, self._narrow_name(name)
        if to_narrow:
            return helper.make_node("Cast", [wide], [narrow], name=f"{name}_to_{self._to}", to=self._type)
        return helper.make_node("Cast", [narrow], [wide], name=f"{name}_to_fp32", to=TensorProto.FLOAT)


def _plan(node: "NodeProto", opsets: dict[str, int], to: Narrow, known: frozenset[str], stay: frozenset[str]) -> _Plan:
    """Which parameters of `node` become narrow: the float32 ones whose schema allows it."""
    wide = _Plan((False,) * len(node.input), (False,) * len(node.output))
    if first_result(node) in stay or any(True for _ in _inner_graphs(node)):
        return wide
    form = _form(_domain(node.domain), node.op_type, opsets.get(_domain(node.domain), 1))
    if form is None:
        return wide
    target = _TYPE_NAMES[to]

    def narrow(kind: str) -> bool:
        return {_FLOAT32, target} <= form.allowed.get(kind, frozenset())

    kinds = _spread(form.inputs, len(node.input))
    inputs = tuple(name in known and narrow(kind) for name, kind in zip(node.input, kinds, strict=True))
    bound = {kind for kind, is_narrow in zip(kinds, inputs, strict=True) if is_narrow}
    # The type of a result that no input decides is written in an attribute; only a cast's is rewritten.
    outputs = tuple(
        name in known and (kind in bound or (node.op_type == "Cast" and not node.domain and narrow(kind)))
        for name, kind in zip(node.output, _spread(form.outputs, len(node.output)), strict=True)
    )
    return _Plan(inputs, outputs)


def _spread(kinds: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The kind of each of `count` parameters; the last kind repeats."""
    return (*kinds, *kinds[-1:] * (count - len(kinds)))[:count]


@cache
def _form(domain: str, operator: str, opset: int) -> _Form | None:
    """The schema of an operator as of `opset`; None when it is not known."""
    import onnx

    try:
        schema = onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return _own_forms().get((domain, operator))
    return _Form(
        tuple(parameter.type_str for parameter in schema.inputs),
        tuple(parameter.type_str for parameter in schema.outputs),
        {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in schema.type_constraints},
    )


@cache
def _own_forms() -> dict[tuple[str, str], _Form]:
    """The schemas of onnxruntime's own operators, where its build tells them; each has one version."""
    from onnxruntime.capi import onnxruntime_pybind11_state

    schemas: list[Any] = getattr(onnxruntime_pybind11_state, "get_all_operator_schema", list)()
    return {
        (schema.domain, schema.name): _Form(
            tuple(parameter.typeStr for parameter in schema.inputs),
            tuple(parameter.typeStr for parameter in schema.outputs),
            {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in schema.type_constraints},
        )
        for schema in schemas
    }


def _narrowed(tensor: "TensorProto", to: Narrow, name: str) -> "tuple[TensorProto, int]":
    """The weight in the narrow type, and how many of its numbers are below the type's full precision."""
    from onnx import numpy_helper

    array: Array = numpy_helper.to_array(tensor)
    dtype = _dtype(to)
    info = _limits(to)
    finite = np.isfinite(array)
    narrow = np.where(finite, np.clip(array, float(info.min), float(info.max)), array).astype(dtype)
    vanished = (narrow == 0) & (array != 0)
    # A small number that stands in a denominator, such as a normalization's epsilon, must not become zero.
    narrow[vanished] = np.copysign(float(info.smallest_subnormal), array[vanished]).astype(dtype)
    rounded = int(np.count_nonzero((array != 0) & (np.abs(array) < float(info.smallest_normal))))
    return numpy_helper.from_array(narrow, name), rounded


def _dtype(to: Narrow) -> "np.dtype[Any]":
    import ml_dtypes

    return np.dtype(np.float16 if to == "fp16" else ml_dtypes.bfloat16)


def _limits(to: Narrow) -> Any:
    import ml_dtypes

    limits: Any = ml_dtypes.finfo
    return limits(_dtype(to))


def _inner_graphs(node: "NodeProto") -> "Iterator[GraphProto]":
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from graphs(inner)


def _captured(node: "NodeProto") -> set[str]:
    """Every name that the graphs inside `node` may take from around it."""
    names = {name for inner in _inner_graphs(node) for each in inner.node for name in each.input}
    return names | {output.name for inner in _inner_graphs(node) for output in inner.output}


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
