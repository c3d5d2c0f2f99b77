"""What is measured of a model and of the machine under it. Findings are functions of these values and nothing else.

Times are seconds, medians over runs after warm-up, of one run of `batch_rows` rows unless their name says otherwise.
"""

from collections.abc import Iterable

import msgspec

from mlserve.model.tensors import TensorSpec
from mlserve.runs.machine import Machine

__all__ = [
    "Comparison",
    "Conditions",
    "Facts",
    "Operation",
    "OutputOnly",
    "Pattern",
    "Peaks",
    "Profile",
    "Structure",
    "Subject",
    "Tensor",
    "ThreadTiming",
    "Timing",
]


class Tensor(msgspec.Struct, frozen=True):
    """One value that an operation read or wrote, as it really was: `Tensor("float32", (32, 384))`."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the graph that was really run, its own time without that of the graphs inside it.

    `precision` is what it computes in (`int8`, `int4`, `fp32`, ...). `flops` counts multiplications and additions of
    matrix products and convolutions, of integers too, and is 0 for all else; `moved_bytes` is every input, weight and
    output once, None where the profiler does not tell.
    """

    name: str
    operator: str
    provider: str
    self_s: float
    precision: str
    flops: int = 0
    moved_bytes: int | None = 0
    weight_bytes: int = 0
    outputs: tuple[Tensor, ...] = ()


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one run goes. `run_s` is the run under the profiler, which costs some microseconds a node.

    `notes` say in words what this engine's profiler cannot tell.
    """

    batch_rows: int
    runs: int
    run_s: float
    operations: tuple[Operation, ...]
    notes: tuple[str, ...] = ()

    @property
    def operations_s(self) -> float:
        """The time of all operations together."""
        return sum(operation.self_s for operation in self.operations)

    @property
    def flops(self) -> int:
        """The work of one run."""
        return sum(operation.flops for operation in self.operations)

    def time_share(self, operations: Iterable[Operation]) -> float:
        """The part of the operations' time that these take, 0 to 1."""
        return _share(sum(operation.self_s for operation in operations), self.operations_s)

    def work_share(self, operations: Iterable[Operation]) -> float:
        """The part of the work that these do, 0 to 1; 0 where no work was counted."""
        return _share(sum(operation.flops for operation in operations), self.flops)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size, timed without a profiler. `first_run_s` is the first run after loading.

    `against_p50_s` is the same of the model it is held against, its runs taken in turn with these.
    """

    batch_rows: int
    runs: int
    first_run_s: float
    p50_s: float
    against_p50_s: float | None = None

    @property
    def row_s(self) -> float:
        """The time a row costs."""
        return self.p50_s / self.batch_rows


class ThreadTiming(msgspec.Struct, frozen=True):
    """The same rows with another number of threads, in turn with the others."""

    threads: int
    p50_s: float


class Peaks(msgspec.Struct, frozen=True):
    """The most this machine was seen to do with as many threads, in the same minute: the two roofs of the roofline.

    `int8_ops_per_s` is None where onnxruntime has no such kernel.
    """

    fp32_flops_per_s: float
    int8_ops_per_s: float | None
    bytes_per_s: float


class Pattern(msgspec.Struct, frozen=True):
    """A group of operators that one fused operator could replace, `count` times; `nodes` are all that would go."""

    kind: str
    count: int
    nodes: tuple[str, ...]


class OutputOnly(msgspec.Struct, frozen=True):
    """Nodes that nothing but the output `output` needs."""

    output: str
    nodes: tuple[str, ...]


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """What the graph says of itself. `optimized` when it is the one the engine runs, not the one in the file."""

    opset: int
    nodes: int
    weights_precision: str
    optimized: bool = False
    patterns: tuple[Pattern, ...] = ()
    outputs_only: tuple[OutputOnly, ...] = ()


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The model. `ref` is `name@version` or the file; `source` the file to optimize again from.

    `name` is empty for a file that is in no store, `data` where rows were made up.
    """

    ref: str
    name: str
    variant: str
    format: str
    engine: str
    compute_type: str
    size_bytes: int
    path: str
    source: str
    store: str
    data: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fixed_rows: int | None


class Comparison(msgspec.Struct, frozen=True):
    """The model that the subject is held against."""

    ref: str
    variant: str


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """How it was run. `load` is how many processes wanted a core in the minute before.

    `device_fault` says why the device asked for was not used, `cuda_fault` why CUDA does not load ("" when it does);
    both are None where there is nothing to say.
    """

    device_asked: str
    device: str
    threads: int
    rows_source: str
    load: float
    device_fault: str | None = None
    cuda_fault: str | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything findings are made from. `peaks` are the CPU's, and None where another device was measured.

    `threads` were timed with the largest batch.
    """

    subject: Subject
    machine: Machine
    conditions: Conditions
    open_s: float
    timings: tuple[Timing, ...]
    profiles: tuple[Profile, ...]
    peaks: Peaks | None
    threads: tuple[ThreadTiming, ...] = ()
    structure: Structure | None = None
    against: Comparison | None = None

    def timing(self, batch_rows: int) -> Timing | None:
        """The timing of one batch size."""
        return next((timing for timing in self.timings if timing.batch_rows == batch_rows), None)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
