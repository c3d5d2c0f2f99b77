"""Calibration: what values a model's tensors take on the user's rows.

The model is run with its inner tensors as further outputs, a few rows at a time, and only what is asked of the values
is kept: memory does not grow with the rows, and texts of different length need no padding.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import EngineError, InvalidRequest, Refused
from mlserve.model.artifact import MODEL_FILE, Artifact
from mlserve.model.rows import Rows
from mlserve.model.tensors import Tensors
from mlserve.optimize.importers.onnx_model import INLINE_LIMIT_BYTES
from mlserve.optimize.passes.step import Resources

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = [
    "Calibration",
    "Entropy",
    "MinMax",
    "Percentile",
    "Range",
    "Tap",
    "Watch",
    "calibration_batches",
    "observe",
    "tapped",
]

Floats = npt.NDArray[np.float32]
Range = tuple[float, float]

# Masks hold the lowest number of their type, or minus infinity; no activation of a working model comes near.
_MASK = 1e30
# So fine that a thousand times the usual values still leaves these some hundred bins.
_BINS = 1 << 15
# Migacz 2017: the 128 levels that int8 has on either side of zero.
_LEVELS = 128
_THRESHOLDS = 128


class Calibration(msgspec.Struct, frozen=True):
    """Tensor -> the range to represent, from `rows` rows. `masks` are tensors that hold no finite range."""

    ranges: dict[str, Range]
    masks: frozenset[str]
    rows: int


class Watch(Protocol):
    """What is kept of one tensor's values; `add` takes those of one batch, finite and in any shape."""

    def add(self, values: Floats) -> None: ...

    def range(self) -> Range: ...


class MinMax:
    """All that was seen: the smallest and the largest value."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Floats) -> None:
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def range(self) -> Range:
        return self.low, self.high


class _Histogram:
    """Counts over [-limit, limit], twice as wide whenever a larger value comes, and the extremes."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.limit = 2.0**-60
        self.extremes = MinMax()

    def add(self, values: Floats) -> None:
        self.extremes.add(values)
        largest = max(abs(self.extremes.low), abs(self.extremes.high))
        while largest > self.limit:
            halved = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(halved, _BINS // 4)
            self.limit *= 2
        self.counts += np.histogram(values, _BINS, (-self.limit, self.limit))[0]

    def clipped(self, low: float, high: float) -> Range:
        """The range, no wider than what was seen."""
        return max(low, self.extremes.low), min(high, self.extremes.high)


class Percentile(_Histogram):
    """The range that holds `percentile` percent of the values, the same share cut off at either end."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        self.percentile = percentile

    def range(self) -> Range:
        cut = (100.0 - self.percentile) / 200.0
        shares = np.cumsum(self.counts) / max(int(self.counts.sum()), 1)
        edges = np.linspace(-self.limit, self.limit, _BINS + 1)
        low = edges[np.searchsorted(shares, cut, side="right")] if cut else -self.limit
        high = edges[min(int(np.searchsorted(shares, 1.0 - cut)) + 1, _BINS)]
        return self.clipped(float(low), float(high))


class Entropy(_Histogram):
    """The threshold that clips and rounds the values to what tells most about them.

    That is the least Kullback-Leibler divergence of both histograms of magnitudes (Migacz, 8-bit Inference with
    TensorRT, GTC 2017).
    """

    def range(self) -> Range:
        half = _BINS // 2
        magnitudes = self.counts[half:] + self.counts[:half][::-1]
        # A histogram's first bin counts the zeros of a ReLU, which any threshold represents exactly.
        magnitudes[0] = magnitudes[1]
        used = int(np.flatnonzero(magnitudes).max(initial=0)) + 1
        candidates = np.unique(np.geomspace(min(_LEVELS, used), used, _THRESHOLDS).astype(int))
        best = min(candidates, key=lambda bins: _divergence(magnitudes, int(bins)))
        threshold = self.limit * float(best) / half
        return self.clipped(-threshold, threshold)


def _divergence(magnitudes: npt.NDArray[np.int64], bins: int) -> float:
    """What 128 levels over the first `bins` bins lose of the values, those beyond clipped into the last bin."""
    real = magnitudes[:bins].astype(np.float64)
    level = np.minimum(np.arange(bins) * _LEVELS // bins, _LEVELS - 1)
    filled = real > 0
    totals = np.bincount(level, real, _LEVELS)
    sizes = np.bincount(level, filled, _LEVELS)
    rounded = np.where(filled, (totals / np.maximum(sizes, 1))[level], 0.0)
    real[-1] += magnitudes[bins:].sum()
    if not rounded.sum():
        return float("inf")
    p, q = real / real.sum(), rounded / rounded.sum()
    both = (p > 0) & (q > 0)
    # Where values were clipped into a bin that was empty, q misses them: as if it held one in a million.
    missed = p[(p > 0) & (q == 0)].sum()
    return float(np.sum(p[both] * np.log(p[both] / q[both])) + missed * np.log(max(missed, 1e-12) / 1e-6))


def calibration_batches(
    source: Artifact, resources: Resources, purpose: str, *, rows: int, batch_rows: int
) -> tuple[list[tuple[int, int]], Rows]:
    """At most `rows` of the user's rows, drawn by the seed, and where each batch starts and stops among them.

    A model with a fixed number of rows gets that many a batch. Raises Refused when there is no data, or too little of
    it for one batch.
    """
    if resources.rows is None:
        raise Refused(
            f"{purpose} needs rows to calibrate with; give some that are like those it will be asked, with --data "
            "(npz, parquet, csv, jsonl or txt)"
        )
    count = min(rows, len(resources.rows))
    drawn = np.random.default_rng(resources.seed).permutation(len(resources.rows))[:count]
    taken = resources.rows.take(sorted(drawn.tolist()))
    first = source.manifest.inputs[0].shape
    fixed = first[0] if first and isinstance(first[0], int) else 0
    size = fixed or batch_rows
    starts = range(0, count - size + 1, size) if fixed else range(0, count, size)
    batches = [(start, min(start + size, count)) for start in starts]
    if not batches:
        raise Refused(
            f"{purpose} needs {size} rows, as many as the model takes at once, and {resources.rows.source} has "
            f"{count} to calibrate with; give more rows with --data"
        )
    return batches, taken


def observe(
    tap: "Tap",
    rows: Rows,
    batches: Sequence[tuple[int, int]],
    watches: dict[str, Watch],
    on_step: Callable[[str], None],
) -> Calibration:
    """Runs every batch and shows its tensors to the watch of their name; says which ranges came out.

    A tensor that held an infinity or a mask's lowest number has no range: clipping it would open the mask.
    """
    masks: set[str] = set()
    seen: set[str] = set()
    for start, stop in batches:
        on_step(f"calibrating: {stop} of {len(rows)} rows")
        for name, values in tap.run(rows.batch(start, stop)).items():
            if name in masks or not values.size:
                continue
            if (np.abs(values) < _MASK).all():
                watches[name].add(values)
                seen.add(name)
            else:
                masks.add(name)
    return Calibration({name: watches[name].range() for name in sorted(seen - masks)}, frozenset(masks), batches[-1][1])


@contextlib.contextmanager
def tapped(model: "ModelProto", names: Sequence[str], scratch: Path, threads: int) -> Iterator["Tap"]:
    """`model` opened so that a run gives its float32 tensors `names`. Its file lies under `scratch` meanwhile.

    Raises Refused when onnxruntime does not load it.
    """
    import onnx

    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    inputs = {value.name for value in opened.graph.input}
    present = {value.name for value in opened.graph.output}
    inner = [name for name in dict.fromkeys(names) if name not in present | inputs]
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    with TemporaryDirectory(dir=scratch, prefix=".calibration-") as folder:
        path = Path(folder) / MODEL_FILE
        size_bytes = sum(len(tensor.raw_data) for tensor in opened.graph.initializer)
        onnx.save(opened, path, save_as_external_data=size_bytes > INLINE_LIMIT_BYTES)
        try:
            engine = OnnxEngine(path, EngineSettings(threads=threads))
        except EngineError as error:
            raise Refused(f"the model cannot be calibrated: {error}") from error
        with contextlib.closing(engine):
            yield Tap(engine, frozenset(names))


class Tap:
    """A model that gives inner tensors too."""

    def __init__(self, engine: OnnxEngine, names: frozenset[str]) -> None:
        self._engine, self._names = engine, names
        self.inner = frozenset(spec.name for spec in engine.outputs if spec.dtype == "float32") & names

    def run(self, inputs: Tensors) -> Tensors:
        """The float32 tensors asked for, inputs among them, for one batch. Raises Refused when the rows do not run."""
        try:
            outputs = self._engine.run(inputs)
        except (EngineError, InvalidRequest) as error:
            raise Refused(f"the model does not run on the rows to calibrate with: {error}") from error
        found = {name: array for name, array in inputs.items() if name in self._names and array.dtype == np.float32}
        return found | {name: outputs[name] for name in self.inner}
