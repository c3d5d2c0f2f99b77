"""The signature a version is served by: with rows that may be padded, where its answers do not change by it."""

from collections.abc import Sequence

import numpy as np

from mlserve.engines.engine import Engine
from mlserve.errors import EngineError, RequestError
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.model.tokens import padding_id
from mlserve.serve.batching.lengths import LADDER, LadderSignature, Padding
from mlserve.serve.tasks.carried import Carried
from mlserve.wire.signature import Signature

__all__ = ["open_signature"]

_SHORT, _LONG = 6, 16
# A sum in another order differs by 1e-6 of an answer's size.
_ROUNDING = 1e-3
# In an int8 model a row's batch-mates shift its scale, longer ones not much more than others.
_MORE_THAN_MATES = 2.0

_MASK = "attention_mask"


def open_signature(name: str, version: str, carried: Carried, engine: Engine, *, by_length: bool = True) -> Signature:
    """The signature of the version that is `carried`, which `engine` runs.

    Where it has a tokenizer and a mask, and padded rows get the answers that they get alone, requests of different
    length share batches: those of about equal length, or, not `by_length`, all of them.
    """
    manifest = carried.artifact.manifest
    padding = _padding(carried, engine) if manifest.rows_independent else None
    if padding is None:
        return Signature(name, version, manifest.inputs, manifest.outputs, together=manifest.rows_independent)
    steps = LADDER if by_length else ()
    return LadderSignature(name, version, manifest.inputs, manifest.outputs, padding=padding, steps=steps)


def _padding(carried: Carried, engine: Engine) -> Padding | None:
    """How the rows of the version are padded; None where they must not be."""
    inputs, outputs = carried.artifact.manifest.inputs, carried.artifact.manifest.outputs
    word = inputs[0].shape[-1] if inputs and inputs[0].shape else 1
    if carried.processing.text is None or not any(spec.name == _MASK for spec in inputs) or not isinstance(word, str):
        return None
    if any(not isinstance(spec.shape[0], str) or spec.shape[1] != word for spec in inputs):
        return None
    axes = {spec.name: spec.shape.index(word) for spec in outputs if word in spec.shape}
    untold = any(isinstance(dim, str) and dim != word for spec in outputs for dim in spec.shape[1:])
    if untold or any(not spec.shape or not isinstance(spec.shape[0], str) for spec in outputs):
        return None
    fill = {spec.name: 0 for spec in inputs}
    fill["input_ids"] = padding_id(carried.tokenizer)
    padding = Padding(fill, axes)
    return padding if _alike(engine, inputs, padding) else None


def _alike(engine: Engine, inputs: Sequence[TensorSpec], padding: Padding) -> bool:
    """Whether a row padded beside a longer one gets the answer that it gets alone, up to what batch-mates do anyway."""
    word = str(inputs[0].shape[1])
    rng = np.random.default_rng(0)
    row, mate = (synthesize(inputs, 1, rng, {word: _SHORT}) for _ in range(2))
    longer = synthesize(inputs, 1, rng, {word: _LONG})
    try:
        alone = engine.run(row)
        beside = padding.own(engine.run(padding.joined([row, mate])), 0, 1, _SHORT)
        padded = padding.own(engine.run(padding.joined([row, longer])), 0, 1, _SHORT)
    except (EngineError, RequestError):
        return False
    allowed = max(_ROUNDING, _MORE_THAN_MATES * _difference(alone, beside))
    return _difference(alone, padded) <= allowed


def _difference(one: Tensors, other: Tensors) -> float:
    """The largest difference of an output, of its own size; infinite where shapes differ."""
    worst = 0.0
    for name, array in one.items():
        found = other[name]
        if array.shape != found.shape or array.dtype.kind not in "fiub":
            return float("inf")
        size = float(np.linalg.norm(array.astype(np.float64)))
        change = float(np.linalg.norm(array.astype(np.float64) - found.astype(np.float64)))
        worst = max(worst, change / (size + 1e-9))
    return worst
