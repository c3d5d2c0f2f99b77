"""A model's inputs and outputs as the protocol sees them, and the one check that every encoding's decoder applies."""

import copy
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np

from mlserve.errors import InvalidRequest
from mlserve.model.tensors import Tensors, TensorSpec, batchable, numpy_dtype, shape_matches

__all__ = ["Field", "InferRequest", "Signature", "answered_field"]


class InferRequest(msgspec.Struct):
    """One request, whichever bytes it came in.

    `outputs` names the tensors wanted, in the order wanted; empty means all. `binary` names those that shall be
    answered as raw bytes (REST only). `classes` says of which outputs only the best elements are wanted, as text, and
    how many. `timeout_s` is how long the request may wait for its run, 0.0 for as long as it takes; `priority` 1 is
    the highest, larger numbers come later, 0 is the model's default. `timing`: the answer shall tell where the time
    went.
    """

    inputs: Tensors
    rows: int
    id: str = ""
    outputs: Sequence[str] = ()
    binary: frozenset[str] = frozenset()
    classes: Mapping[str, int] | None = None
    timeout_s: float = 0.0
    priority: int = 0
    timing: bool = False


def _elements_decoder(dtype: np.dtype[Any], depth: int) -> msgspec.json.Decoder[Any]:
    """Decodes a JSON list, nested `depth` deep, whose elements fit `dtype` and nothing else."""
    element: Any = {"b": bool, "O": str}.get(dtype.kind, int)
    if dtype.kind in "fV":
        # What is half a step or more beyond the largest value would become infinite.
        largest = _largest(dtype)
        limit = float(largest) + float(largest - np.nextafter(largest, dtype.type(0))) / 2
        element = Annotated[float, msgspec.Meta(gt=-limit, lt=limit)] if dtype.itemsize < 8 else float
    elif element is int:
        bounds = np.iinfo(dtype)
        # msgspec's bounds are 64-bit and signed; numpy refuses what is beyond a uint64.
        top = None if dtype == np.uint64 else int(bounds.max)
        element = Annotated[int, msgspec.Meta(ge=int(bounds.min), le=top)]
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def _largest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        return np.finfo(dtype).max
    import ml_dtypes

    limits: Any = ml_dtypes.finfo
    return limits(dtype).max


class Field:
    """One input or output, with what every request needs of it worked out once."""

    __slots__ = ("datatype", "dims", "dtype", "flat_json", "json_head", "name", "nested_json", "spec")

    def __init__(self, spec: TensorSpec) -> None:
        self.spec, self.name, self.dims = spec, spec.name, spec.shape
        self.dtype, self.datatype = numpy_dtype(spec.dtype), spec.datatype
        self.flat_json = _elements_decoder(self.dtype, depth=1)
        self.nested_json = _elements_decoder(self.dtype, depth=len(spec.shape))
        self.json_head = b'{"name":%b,"datatype":"%b","shape":' % (
            msgspec.json.encode(spec.name),
            self.datatype.encode(),
        )


class Signature:
    """The names, types and shapes a served model takes and gives.

    `together` says whether rows of several requests may run as one batch.
    """

    def __init__(
        self,
        name: str,
        version: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        together: bool = True,
    ) -> None:
        self.name, self.version = name, version
        self.inputs = {spec.name: Field(spec) for spec in inputs}
        self.outputs = {spec.name: Field(spec) for spec in outputs}
        self.together = together and bool(inputs) and batchable([*inputs, *outputs])
        self.json_head = b'{"model_name":%b,"model_version":%b' % (
            msgspec.json.encode(name),
            msgspec.json.encode(version),
        )
        self.output_names = frozenset(self.outputs)
        self._only_input = inputs[0].name if len(inputs) == 1 else None
        self._one_shape = self.together and all(isinstance(dim, int) for spec in inputs for dim in spec.shape[1:])

    def field(self, name: str, datatype: str, shape: list[int]) -> Field:
        """The input `name`, once `datatype` and `shape` were found to fit it. Raises InvalidRequest otherwise."""
        field = self.inputs.get(name)
        if field is None:
            known = ", ".join(f"'{known}'" for known in self.inputs)
            raise InvalidRequest(f"unexpected input '{name[:64]}' for model '{self.name}'; it takes {known}")
        if datatype != field.datatype:
            raise InvalidRequest(
                f"input '{name}' has datatype {datatype[:16]} for model '{self.name}', expected {field.datatype}"
            )
        if not shape_matches(shape, field.dims):
            raise InvalidRequest(
                f"input '{name}' has shape {shape[:16]} for model '{self.name}', expected {field.spec.wire_shape}"
            )
        return field

    def rows(self, inputs: Tensors) -> int:
        """How many rows the complete `inputs` hold (1 when rows have no dimension of their own).

        Raises InvalidRequest when an input is missing or row counts differ.
        """
        if len(inputs) != len(self.inputs):
            missing = [name for name in self.inputs if name not in inputs]
            raise InvalidRequest(
                f"expected {len(self.inputs)} inputs but got {len(inputs)} inputs for model '{self.name}'. "
                f"Got input(s) {list(inputs)}, but missing required input(s) {missing}. "
                "Please provide all required input(s)."
            )
        if not self.together:
            return 1
        if self._only_input is not None:
            return len(inputs[self._only_input])
        counts = {len(array) for array in inputs.values()}
        if len(counts) > 1:
            listed = ", ".join(f"'{name}' has {len(array)}" for name, array in inputs.items())
            raise InvalidRequest(f"inputs of one request must have one number of rows: {listed}")
        return counts.pop()

    def batch_key(self, inputs: Tensors) -> Hashable:
        """Equal for requests whose rows fit into one array: their shapes beyond the row dimension."""
        if self._one_shape:
            return None
        return tuple([inputs[name].shape[1:] for name in self.inputs])

    def wanted(self, names: Sequence[str]) -> Sequence[str]:
        """`names` if all are outputs of the model. Raises InvalidRequest for an unknown or repeated one."""
        for position, name in enumerate(names):
            if name not in self.outputs:
                known = ", ".join(f"'{output}'" for output in self.outputs)
                raise InvalidRequest(f"unexpected output '{name[:64]}' for model '{self.name}'; it gives {known}")
            if name in names[:position]:
                raise InvalidRequest(f"output '{name}' already exists in request for model '{self.name}'")
        return names

    def with_outputs(self, specs: Sequence[TensorSpec]) -> "Signature":
        """The same, but for the outputs that `specs` describe: answers made of the model's own."""
        changed = copy.copy(self)
        changed.outputs = {**self.outputs, **{spec.name: _field(spec) for spec in specs}}
        return changed


def answered_field(specs: Mapping[str, TensorSpec], name: str, datatype: str, shape: Sequence[int]) -> Field:
    """The output `name` of an answer. Raises InvalidRequest when it is none of `specs`, or of another type.

    Its dynamic dimensions may be empty: a detector finds nothing in some images.
    """
    spec = specs.get(name)
    if spec is None or spec.datatype != datatype:
        known = ", ".join(f"{spec.name} ({spec.datatype})" for spec in specs.values())
        raise InvalidRequest(f"unexpected output '{name[:64]}' of type {datatype[:16]}; the model gives {known}")
    if any(size < 0 for size in shape):
        raise InvalidRequest(f"output '{name}' has the negative shape {list(shape[:16])}")
    return _field(spec)


_field = lru_cache(maxsize=1024)(Field)
