"""Where the time of an onnxruntime session goes, by onnxruntime's own profiler."""

import contextlib
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from mlserve.engines.engine import EngineSettings
from mlserve.engines.onnx_session import reason, session_options
from mlserve.errors import EngineError
from mlserve.model.tensors import Tensors
from mlserve.optimize.diagnose.facts import Operation, Profile, Structure, Tensor
from mlserve.optimize.diagnose.graph import NodeFacts, node_facts, structure_of
from mlserve.optimize.diagnose.work import Executed, flops, precision, traffic

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

__all__ = ["profile_onnx", "read_events"]

_WARM_UP = 2
_FEWEST, _MOST = 3, 30
_LONGEST_S = 1.0
_NODE_SUFFIX = "_kernel_time"
_LAUNCHES = (
    "the times of a CUDA device are those of starting its kernels: this onnxruntime does not record when they end"
)


class _Arguments(msgspec.Struct, frozen=True):
    """What onnxruntime notes of a node that ran. A shape is `{"float": [8, 3]}`."""

    op_name: str = ""
    provider: str = ""
    input_type_shape: list[dict[str, list[int]]] = []
    output_type_shape: list[dict[str, list[int]]] = []


class _Event(msgspec.Struct, frozen=True):
    cat: str = ""
    name: str = ""
    tid: int = 0
    ts: int = 0
    dur: int = 0
    args: _Arguments = _Arguments()


def profile_onnx(
    path: Path, settings: EngineSettings, batches: Mapping[int, Tensors]
) -> tuple[tuple[Profile, ...], Structure]:
    """One profile for each of `batches` (rows -> inputs), and the structure of the graph that was run.

    `path` must have passed `inspect_onnx`. Raises EngineError when a run fails.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="mlserve-diagnose-") as folder:
        model, inline = _named(path)
        executed = Path(folder) / "executed.onnx"
        session = _open(model.SerializeToString() if inline else str(path), settings, executed, written=inline)
        taken = {rows: _run(session, inputs) for rows, inputs in batches.items()}
        runs = _runs(read_events(Path(session.end_profiling()).read_bytes()))
        del session
        if inline:
            model = onnx.load(executed)
    nodes = node_facts(model)
    notes = (_LAUNCHES,) if settings.device != "cpu" else ()
    profiles = [_profile(rows, times_s, list(islice(runs, len(times_s))), nodes) for rows, times_s in taken.items()]
    return tuple(msgspec.structs.replace(profile, notes=notes) for profile in profiles), structure_of(
        model, optimized=inline
    )


def _named(path: Path) -> tuple["ModelProto", bool]:
    """The model with a name of its own for every node, so that what ran can be told apart, and whether that copy can
    be run: one whose weights lie in other files is run as it is.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    inline = not any(tensor.data_location == tensor.EXTERNAL for tensor in model.graph.initializer)
    if inline:
        taken: set[str] = set()
        for number, node in enumerate(model.graph.node):
            if not node.name or node.name in taken:
                node.name = f"{node.name or node.op_type}_{number}"
            taken.add(node.name)
    return model, inline


def _open(source: bytes | str, settings: EngineSettings, executed: Path, *, written: bool) -> "InferenceSession":
    """A session that records what it does beside `executed`, where it writes the graph it really runs if `written`."""
    import onnxruntime

    kind, _, number = settings.device.partition(":")
    provider = "CPUExecutionProvider" if kind == "cpu" else "CUDAExecutionProvider"
    options = session_options(settings)
    options.enable_profiling = True
    options.profile_file_prefix = str(executed.with_name("profile"))
    if written:
        options.optimized_model_filepath = str(executed)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return onnxruntime.InferenceSession(
                source, options, [(provider, {"device_id": int(number)} if number else {})], enable_fallback=0
            )
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise EngineError(f"the model cannot be profiled: {reason(error)}") from error


def _run(session: "InferenceSession", inputs: Tensors) -> list[float]:
    """How long each run took (seconds), those for warming up too."""
    taken: list[float] = []
    started_s = time.perf_counter()
    while len(taken) < _WARM_UP + _FEWEST or (
        len(taken) < _WARM_UP + _MOST and time.perf_counter() - started_s < _LONGEST_S
    ):
        before_s = time.perf_counter()
        try:
            session.run(None, inputs)
        except Exception as error:  # as in _open
            raise EngineError(f"the model cannot be profiled: {reason(error)}") from error
        taken.append(time.perf_counter() - before_s)
    return taken


def read_events(content: bytes) -> list[_Event]:
    """The events of a profile that onnxruntime wrote. Raises EngineError when it is none."""
    try:
        return msgspec.json.decode(content, type=list[_Event])
    except msgspec.DecodeError as error:
        raise EngineError(f"onnxruntime's profile cannot be read: {error}") from error


def _profile(batch_rows: int, taken: list[float], runs: list[list[_Event]], nodes: Mapping[str, NodeFacts]) -> Profile:
    times_s: dict[str, list[float]] = defaultdict(list)
    last: dict[str, _Event] = {}
    for run in runs[_WARM_UP:]:
        in_run: dict[str, float] = defaultdict(float)
        for event, self_s in _self_times(run):
            name = event.name.removesuffix(_NODE_SUFFIX)
            in_run[name] += self_s
            last[name] = event
        for name, self_s in in_run.items():
            times_s[name].append(self_s)
    operations = [_operation(name, event.args, median(times_s[name]), nodes.get(name)) for name, event in last.items()]
    return Profile(
        batch_rows=batch_rows,
        runs=len(runs) - _WARM_UP,
        run_s=median(taken[_WARM_UP:]),
        operations=tuple(operations),
    )


def _runs(events: list[_Event]) -> Iterator[list[_Event]]:
    """The nodes of each run, in the order of the runs: those within the time of one `model_run`."""
    nodes = [event for event in events if event.cat == "Node" and event.name.endswith(_NODE_SUFFIX)]
    nodes.sort(key=lambda event: (event.ts, -event.dur))
    position = 0
    for run in sorted((event for event in events if event.name == "model_run"), key=lambda event: event.ts):
        found = []
        while position < len(nodes) and nodes[position].ts <= run.ts + run.dur:
            found.append(nodes[position])
            position += 1
        yield found


def _self_times(nodes: list[_Event]) -> Iterator[tuple[_Event, float]]:
    """Each node and its own time (seconds), without that of the nodes that ran inside it (If, Loop, Scan).

    `nodes` are ordered by their start, outer before inner.
    """
    own_us = [node.dur for node in nodes]
    around: list[int] = []
    for number, node in enumerate(nodes):
        while around and node.ts >= nodes[around[-1]].ts + nodes[around[-1]].dur:
            around.pop()
        if around:
            own_us[around[-1]] -= node.dur
        around.append(number)
    for node, us in zip(nodes, own_us, strict=True):
        yield node, max(us, 0) / 1e6


def _operation(name: str, seen: _Arguments, self_s: float, facts: NodeFacts | None) -> Operation:
    executed = Executed(
        operator=seen.op_name,
        inputs=[_tensor(shape) for shape in seen.input_type_shape],
        outputs=[_tensor(shape) for shape in seen.output_type_shape],
        weights=facts.weights if facts else {},
        attributes=facts.attributes if facts else {},
    )
    moved_bytes, weight_bytes = traffic(executed)
    return Operation(
        name=name,
        operator=seen.op_name,
        provider=seen.provider,
        self_s=self_s,
        precision=precision(executed),
        flops=flops(executed),
        moved_bytes=moved_bytes,
        weight_bytes=weight_bytes,
        outputs=tuple(executed.outputs),
    )


def _tensor(shape: dict[str, list[int]]) -> Tensor:
    dtype, dims = next(iter(shape.items()), ("", []))
    return Tensor("float32" if dtype == "float" else dtype, tuple(dims))
