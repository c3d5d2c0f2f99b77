"""Which dimensions of a model's inputs and outputs may vary: found out by running it, for files seldom say."""

from collections.abc import Callable, Sequence

import numpy as np

from mlserve.errors import ModelFileError
from mlserve.model.synthesis import concrete_shape, synthesize
from mlserve.model.tensors import Tensors, TensorSpec

__all__ = ["Run", "Sizes", "Unfit", "default_sizes", "fix", "fix_rigid_dims", "output_specs", "rows_mix", "words"]

Run = Callable[[Tensors], Tensors]
"""A model: named arrays to named arrays. Raises whatever it raises for inputs it cannot take."""

Sizes = dict[str, int]
"""A size for each dynamic dimension, by its word."""

_ROWS = 3  # neither 1, which broadcasts, nor a number that other dimensions are likely to have


class Unfit(Exception):
    """The model does not run on inputs of these specs; the message is what it said."""


def words(specs: Sequence[TensorSpec]) -> list[str]:
    """The dynamic dimensions of `specs`, each once, in the order they appear."""
    return list(dict.fromkeys(dim for spec in specs for dim in spec.shape if isinstance(dim, str)))


def default_sizes(specs: Sequence[TensorSpec]) -> Sizes:
    """The size `synthesize` gives every dynamic dimension; 3 for the rows."""
    sizes: Sizes = {}
    for spec in specs:
        for position, (dim, size) in enumerate(zip(spec.shape, concrete_shape(spec, _ROWS, {}), strict=True)):
            if isinstance(dim, str):
                sizes[dim] = min(sizes.get(dim, size), _ROWS if position == 0 else size)
    return sizes


def _run_made_up(run: Run, specs: Sequence[TensorSpec], sizes: Sizes) -> Tensors:
    """The answer to made-up inputs of these sizes. Raises Unfit when the model has none."""
    fixed = [fix(spec, sizes) for spec in specs]
    inputs = synthesize(fixed, _ROWS, np.random.default_rng(0))
    try:
        return run(inputs)
    except ModelFileError:  # it ran; what it gives cannot be served, whatever it takes
        raise
    except Exception as error:  # a model may raise anything; which is not our concern, that it does is the answer
        raise Unfit(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__) from error


def fix(spec: TensorSpec, sizes: Sizes) -> TensorSpec:
    """`spec` with every dimension in `sizes` fixed."""
    shape = tuple(sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
    return TensorSpec(spec.name, spec.dtype, shape, spec.below)


def fix_rigid_dims(run: Run, specs: Sequence[TensorSpec], sizes: Sizes) -> tuple[TensorSpec, ...]:
    """`specs` with those dimensions fixed that the model only takes in one size.

    The row dimension also counts as rigid when outputs do not have a row for each. Raises Unfit when the model does not
    run at `sizes`, not even with one row.
    """
    rows = words(specs)[:1]
    try:
        found = _run_made_up(run, specs, sizes)
    except Unfit:
        if not rows or sizes[rows[0]] == 1:
            raise
        alone = sizes | {rows[0]: 1}
        _run_made_up(run, specs, alone)
        return fix_rigid_dims(run, [fix(spec, {rows[0]: 1}) for spec in specs], alone)
    rigid = {word: sizes[word] for word in words(specs) if not _varies(run, specs, sizes, word, found)}
    return tuple(fix(spec, rigid) for spec in specs)


def output_specs(run: Run, specs: Sequence[TensorSpec], sizes: Sizes) -> tuple[TensorSpec, ...]:
    """The outputs' names, types and shapes; a dimension that follows an input's has its word.

    Raises Unfit when the model does not run.
    """
    found = _run_made_up(run, specs, sizes)
    dims: dict[str, list[int | str]] = {name: list(array.shape) for name, array in found.items()}
    for word in words(specs):
        other = sizes | {word: sizes[word] + 2}
        for name, array in _run_made_up(run, specs, other).items():
            for axis, (before, after) in enumerate(zip(found[name].shape, array.shape, strict=True)):
                if before != after:
                    follows = before == sizes[word] and after == other[word]
                    dims[name][axis] = word if follows else f"{name}_{axis}"
    return tuple(TensorSpec(name, _dtype_name(array.dtype), tuple(dims[name])) for name, array in found.items())


def rows_mix(run: Run, specs: Sequence[TensorSpec], sizes: Sizes) -> bool:
    """Whether a row's answer changes with the rows beside it."""
    inputs = synthesize([fix(spec, sizes) for spec in specs], _ROWS, np.random.default_rng(1))
    together = run(inputs)
    alone = run({name: array[:1] for name, array in inputs.items()})
    return any(
        not np.allclose(array[:1], alone[name], rtol=1e-2, atol=1e-4, equal_nan=True)
        for name, array in together.items()
        if array.dtype.kind == "f"
    )


def _varies(run: Run, specs: Sequence[TensorSpec], sizes: Sizes, word: str, found: Tensors) -> bool:
    """Whether the model runs with another size of `word`; for the rows, also whether the answers have as many."""
    is_rows = word == words(specs)[0]
    other = sizes | {word: sizes[word] + 2}
    try:
        outputs = _run_made_up(run, specs, other)
    except Unfit:
        return False
    if any(array.ndim != found[name].ndim for name, array in outputs.items() if name in found):
        return False
    return not is_rows or all(array.ndim and len(array) == other[word] for array in outputs.values())


def _dtype_name(dtype: np.dtype[np.generic]) -> str:
    return "object" if dtype.kind in "OUS" else dtype.name
